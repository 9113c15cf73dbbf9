//! What travels: arguments and results in the postcard format, and the schema behind a method's key.
//!
//! [`output`] encodes (straight into a cell, spilling to the heap), [`budget`] decodes what a peer sent without
//! trusting any number in it, [`bytes`] moves byte buffers whole, [`schema`] and [`key`] make sure that nothing is
//! ever decoded under another type than it was encoded from.

pub(crate) mod budget;
pub(crate) mod bytes;
mod decoder;
pub(crate) mod describe;
pub(crate) mod errors;
pub(crate) mod key;
pub(crate) mod output;
pub(crate) mod schema;
mod types;

#[cfg(test)]
mod tests;
