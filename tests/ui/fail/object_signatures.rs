//! Methods that cannot be called from another process, each refused where it says so.
#![allow(unused)]

struct Thing;

#[objbus::object]
impl Thing {
    pub fn generic<T>(&self, value: T) {}

    pub fn sized<const N: usize>(&self) {}

    pub fn anything(&self, value: impl Into<String>) {}

    pub fn changes(&self, value: &mut u32) {}

    pub fn forever(&self, value: &'static str) {}

    pub fn pattern(&self, (a, b): (u8, u8)) {}

    pub fn points(&self, value: *const u8) {}

    pub fn calls(&self, value: fn(u8)) {}

    pub fn dynamic(&self, value: &dyn std::fmt::Debug) {}

    pub unsafe fn careful(&self) {}

    pub fn iterates(&self) -> impl Iterator<Item = u8> {
        std::iter::empty()
    }

    #[objbus(property)]
    pub fn asks(&self, value: u8) -> u8 {
        value
    }

    #[objbus(property)]
    fn hidden(&self) -> u8 {
        3
    }

    #[objbus(shown)]
    pub fn misspelt(&self) {}

    pub fn constrained(&self)
    where
        Self: Sized,
    {
    }
}

fn main() {}
