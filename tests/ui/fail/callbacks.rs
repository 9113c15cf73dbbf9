//! Objects of the caller's that cannot be called back, or not like this.
#![allow(unused)]

#[derive(serde::Serialize, serde::Deserialize, objbus::Type)]
pub struct E;

impl From<objbus::BusError> for E {
    fn from(_: objbus::BusError) -> E {
        E
    }
}

#[objbus::interface]
trait Progress {
    fn at(&self, done: u32) -> Result<(), E>;
}

mod borrowed {
    use super::*;

    #[objbus::interface]
    trait Api {
        fn dynamic(&self, progress: &dyn Progress) -> Result<(), E>;

        fn known(&self, n: u32, progress: Option<&impl Progress>) -> Result<(), E>;
    }
}

mod unshared {
    use super::*;

    #[objbus::interface]
    trait Api {
        fn moved(&self, progress: impl Progress + 'static) -> Result<(), E>;
    }
}

mod nested {
    use super::*;

    struct Worker;

    #[objbus::object]
    impl Worker {
        pub fn pair(&self, both: (u32, &dyn Progress)) {}

        pub fn any(&self, progress: &dyn std::fmt::Debug) {}

        pub fn mutable(&self, progress: &mut dyn Progress) {}
    }
}

mod unknown {
    use super::*;

    trait Plain {
        fn at(&self, done: u32);
    }

    struct Worker;

    #[objbus::object]
    impl Worker {
        pub fn plain(&self, progress: &dyn Plain) {}
    }
}

mod given {
    use super::*;

    struct Worker;

    #[objbus::object]
    impl Worker {
        pub fn run(&self, progress: &dyn Progress) {}
    }

    struct Local<'a>(&'a std::cell::Cell<u32>);

    impl Progress for Local<'_> {
        fn at(&self, done: u32) -> Result<(), E> {
            self.0.set(done);
            Ok(())
        }
    }

    fn give(worker: WorkerProxy, cell: &std::cell::Cell<u32>) {
        let _ = worker.run(Local(cell));
        let _ = worker.run(3);
    }
}

fn main() {}
