//! Events and watched properties that cannot be subscribed to, each refused where it says so.
#![allow(unused)]

use objbus::{Event, Watched};

struct Downloads {
    loaded: Event<u32>,
    title: Watched<String>,
}

#[objbus::object]
impl Downloads {
    pub fn of(&self, id: u32) -> &Event<u32> {
        &self.loaded
    }

    pub async fn later(&self) -> &Event<u32> {
        &self.loaded
    }

    #[objbus(property)]
    pub fn marked(&self) -> &Watched<String> {
        &self.title
    }

    #[objbus(property)]
    pub fn read(&self) -> &Event<u32> {
        &self.loaded
    }
}

struct Maybe {
    loaded: Event<u32>,
}

#[objbus::object]
impl Maybe {
    pub fn loaded(&self) -> Option<&Event<u32>> {
        Some(&self.loaded)
    }
}

#[objbus::interface]
trait Tells {
    fn loaded(&self) -> &Event<u32>;
}

fn main() {}
