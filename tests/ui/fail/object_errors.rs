//! An error that cannot travel.
#![allow(unused)]

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Silent;

struct Thing;

#[objbus::object]
impl Thing {
    pub fn fails(&self) -> Result<(), Silent> {
        Err(Silent)
    }
}

fn main() {}
