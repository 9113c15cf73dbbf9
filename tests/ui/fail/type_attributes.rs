//! Attributes of serde that change what travels.
#![allow(unused)]

use objbus::Type;

#[derive(Type)]
struct Flat {
    #[serde(flatten)]
    inner: u8,
}

#[derive(Type)]
#[serde(tag = "kind")]
enum Tagged {
    A,
}

#[derive(Type)]
#[serde(untagged)]
enum Untagged {
    A,
}

#[derive(Type)]
struct Sometimes {
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<u8>,
}

#[derive(Type)]
struct With {
    #[serde(with = "other")]
    other: u8,
}

#[derive(Type)]
struct Renamed {
    #[serde(rename(serialize = "a", deserialize = "b"))]
    value: u8,
}

#[derive(Type)]
enum Skipped {
    #[serde(skip)]
    A,
    B,
}

#[derive(Type)]
#[serde(rename_all = "sPoNgE")]
struct Sponge {
    value: u8,
}

#[derive(Type)]
union Union {
    value: u8,
}

#[derive(Type)]
struct Foreign {
    #[objbus(transparent = "x")]
    value: u8,
}

#[derive(Type)]
struct Nameless {
    #[objbus(opaque = "")]
    value: u8,
}

fn main() {}
