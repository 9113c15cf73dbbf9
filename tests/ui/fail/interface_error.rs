//! An interface whose error has no room for the bus's.
#![allow(unused)]

#[derive(serde::Serialize, serde::Deserialize, objbus::Type)]
pub struct Own;

#[objbus::interface]
trait Api {
    fn get(&self) -> Result<u32, Own>;
}

fn main() {}
