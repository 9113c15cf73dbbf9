//! Traits that are no interfaces.
#![allow(unused)]

#[derive(serde::Serialize, serde::Deserialize, objbus::Type)]
pub struct E;

impl From<objbus::BusError> for E {
    fn from(_: objbus::BusError) -> E {
        E
    }
}

#[objbus::interface]
trait Api {
    fn no_result(&self) -> u32;

    fn nothing(&self);

    fn changes(&mut self) -> Result<(), E>;

    fn makes() -> Result<(), E>;

    fn borrows(&self) -> Result<&str, E>;

    #[objbus(skip)]
    fn skipped(&self) -> Result<(), E>;

    async fn default(&self) -> Result<(), E> {
        Ok(())
    }

    type Item;

    const SIZE: usize;
}

#[objbus::interface]
trait Generic<T> {
    fn get(&self) -> Result<(), E>;
}

#[objbus::interface]
trait Empty {}

fn main() {}
