//! What travels: arguments and results in the postcard format, and the schema behind a method's key.
//!
//! [`output`] and [`encoder`] encode (straight into a cell, then into the arena), [`budget`] and [`decoder`] decode what a peer
//! sent without trusting any number in it, [`blob`] is how buffers are lent beside both, [`schema`] and [`key`] make sure that
//! nothing is ever decoded under another type than it was encoded from.

pub(crate) mod blob;
pub(crate) mod budget;
mod decoder;
pub(crate) mod describe;
mod encoder;
pub(crate) mod errors;
pub(crate) mod key;
pub(crate) mod output;
pub(crate) mod schema;
mod types;

#[cfg(test)]
mod blob_tests;
#[cfg(test)]
mod tests;
