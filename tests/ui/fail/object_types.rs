//! Types that have no schema, or no serde.
#![allow(unused)]

#[derive(serde::Serialize, serde::Deserialize)]
struct NoSchema;

struct Thing;

#[objbus::object]
impl Thing {
    pub fn take(&self, value: NoSchema) {}
}

fn main() {}
