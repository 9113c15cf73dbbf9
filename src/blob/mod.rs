//! Memory lent to other processes: where it comes from, and how theirs is read.
//!
//! The writer's side is an [`Arena`](arena::Arena), all of whose bookkeeping is private memory: a peer can corrupt none of
//! it, and a dead one holds no lock. The reader's side is a table of the segments announced on a lane,
//! [`Segments`](segments::Segments).
//!
//! What users hold are [`BlobMut`](exclusive::BlobMut), a chunk that is being filled, and [`Blob`](shared::Blob), bytes that are
//! not changed any more and what keeps them.

pub(crate) mod arena;
mod buddy;
#[cfg(feature = "bytes")]
mod bytes;
pub(crate) mod error;
pub(crate) mod exclusive;
pub(crate) mod limit;
pub(crate) mod memory;
mod pool;
mod returns;
pub(crate) mod segment;
pub(crate) mod segments;
pub(crate) mod shared;
mod slots;
pub(crate) mod supply;
#[cfg(feature = "zerocopy")]
pub(crate) mod views;

#[cfg(test)]
mod arena_tests;
#[cfg(test)]
mod blob_tests;
#[cfg(test)]
mod supply_tests;
