//! Memory lent to other processes: where it comes from, and how theirs is read.

mod buddy;
pub(crate) mod limit;
