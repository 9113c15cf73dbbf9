//! Blocks that are no objects.
#![allow(unused)]

struct Generic<T>(T);

#[objbus::object]
impl<T> Generic<T> {
    pub fn get(&self) {}
}

struct Nothing;

#[objbus::object]
impl Nothing {
    pub fn new() -> Self {
        Nothing
    }
}

#[objbus::object]
impl Clone for Nothing {
    fn clone(&self) -> Self {
        Nothing
    }
}

#[objbus::object(name = "thing")]
impl Nothing {
    pub fn get(&self) {}
}

#[objbus::object]
struct OnTheStruct;

#[objbus::interface]
impl OnTheStruct {
    pub fn get(&self) {}
}

struct Borrows<'a>(&'a str);

#[objbus::object]
impl Borrows<'_> {
    pub fn get(&self) {}
}

fn main() {}
