//! Memory lent to other processes: where it comes from, and how theirs is read.
//!
//! The writer's side is an [`Arena`](arena::Arena), all of whose bookkeeping is private memory: a peer can corrupt none of
//! it, and a dead one holds no lock. The reader's side is a table of the segments announced on a lane,
//! [`Segments`](segments::Segments).

pub(crate) mod arena;
mod buddy;
pub(crate) mod limit;
mod pool;
pub(crate) mod segment;
pub(crate) mod segments;

#[cfg(test)]
mod arena_tests;
