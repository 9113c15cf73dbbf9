//! Streams where they cannot be, or of what cannot travel.
#![allow(unused)]

use objbus::futures_core::Stream;
use objbus::stream_of;

struct Thing;

#[objbus::object]
impl Thing {
    pub fn nothing_said(&self) -> impl Stream {
        stream_of(0..3)
    }

    #[objbus(property)]
    pub fn property(&self) -> impl Stream<Item = u32> {
        stream_of(0..3)
    }

    pub fn takes(&self, numbers: impl Stream<Item = u32>) {}
}

struct Local;

#[objbus::object]
impl Local {
    pub fn bound_to_its_thread(&self) -> impl Stream<Item = u32> {
        stream_of(vec![std::rc::Rc::new(3)].into_iter().map(|number| *number))
    }
}

#[objbus::interface]
pub trait Clock {
    fn ticks(&self) -> Result<impl Stream<Item = u32>, objbus::BusError>;

    fn sum(&self, numbers: objbus::Stream<u32>) -> Result<u32, objbus::BusError>;
}

fn main() {}
