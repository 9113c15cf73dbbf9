//! Objects of the caller's as arguments, in every form.
#![deny(warnings, missing_docs)]

use std::sync::Mutex;

/// A module of its own.
pub mod api {
    /// What can go wrong.
    #[derive(Debug, serde::Serialize, serde::Deserialize, objbus::Type)]
    pub struct Lost;

    impl From<objbus::BusError> for Lost {
        fn from(_: objbus::BusError) -> Lost {
            Lost
        }
    }

    /// How far it is.
    #[objbus::interface]
    pub trait Progress {
        /// So much is done.
        fn at(&self, done: u32) -> Result<(), Lost>;
    }

    /// Has each of its own kind shown.
    #[objbus::interface]
    pub trait Node {
        /// Shows itself, and where it comes from.
        fn visit(&self, from: impl Node + Send + Sync + 'static) -> Result<(), Lost>;
        /// Whether it has been seen.
        async fn is_seen(&self) -> Result<bool, Lost>;
    }
}

use api::{Lost, Node, NodeProxy, Progress, ProgressObject, ProgressProxy};

/// Works.
#[derive(Default)]
pub struct Worker {
    kept: Mutex<Vec<Box<dyn Progress + Send>>>,
}

#[objbus::object]
impl Worker {
    /// By reference.
    pub fn dynamic(&self, progress: &dyn Progress) -> Result<(), Lost> {
        progress.at(1)
    }

    /// By a path, with bounds, beside others.
    pub fn path<'a>(&self, text: &'a str, progress: &'a (dyn api::Progress + Send + Sync + 'a), n: u32) -> u32 {
        let _ = (text, progress.at(n));
        n
    }

    /// Known when it is compiled.
    pub fn known(&self, first: &impl Progress, second: impl Progress) -> Result<(), Lost> {
        first.at(1)?;
        second.at(2)
    }

    /// If there is one.
    pub fn perhaps(
        &self,
        first: Option<&dyn Progress>,
        second: Option<&impl Progress>,
        third: Option<impl Progress>,
    ) -> Result<(), Lost> {
        first.map_or(Ok(()), |progress| progress.at(1))?;
        second.map_or(Ok(()), |progress| progress.at(1))?;
        third.map_or(Ok(()), |progress| progress.at(1))
    }

    /// To be kept.
    pub fn keep(&self, progress: impl Progress + Clone + Send + Sync + 'static) {
        self.kept.lock().unwrap().push(Box::new(progress.clone()));
    }

    /// Awaited.
    pub async fn awaited(&self, node: impl Node + Send + Sync, progress: &(dyn Progress + Sync)) -> Result<bool, Lost> {
        progress.at(1)?;
        node.is_seen().await
    }
}

struct Printed;

impl Progress for Printed {
    fn at(&self, done: u32) -> Result<(), Lost> {
        println!("{done}");
        Ok(())
    }
}

fn main() {
    let bus = objbus::Bus::in_memory();
    let _published = bus.publish("worker", Worker::default()).unwrap();
    let worker: WorkerProxy = bus.proxy("worker").wait().unwrap();
    worker.dynamic(Printed).wait().unwrap();
    assert_eq!(worker.path("a", Printed, 3).wait().unwrap(), 3);
    worker.known(Printed, Printed).wait().unwrap();
    worker.perhaps(Some(Printed), None::<Printed>, Some(Printed)).wait().unwrap();
    worker.keep(Printed).wait().unwrap();
    let _awaits = |node: NodeProxy| worker.awaited(node, Printed);
    // A proxy implements the trait, and so goes on to others.
    let _passes_on = |progress: ProgressProxy| worker.dynamic(progress);
    let _published = bus.publish("progress", ProgressObject(Printed)).unwrap();
}
