//! The attribute and derive macros of objbus; use them through the `objbus` crate.
