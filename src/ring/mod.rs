//! The lane: one caller process and one published object, and the two memories between them.
//!
//! A call, top-down:
//!
//! 1. The caller reserves a response slot ([`slots::SlotSet`], private) and claims the next cell of the request
//!    ring; it copies the request there and publishes it with one store of the cell's number ([`caller`]).
//! 2. If no thread of the owner polls the lane, the caller rings its doorbell; else it makes no system call.
//! 3. The owner takes cells in order, says which call it begins, runs it, and publishes the response in the call's
//!    slot with one store of the slot's count ([`owner`]).
//! 4. The caller sees the count. If it has gone to sleep meanwhile, its sleep word told the owner to wake it.
//!
//! Three rules carry everything:
//!
//! - **One writing process per word.** Nothing in shared memory is a lock, a claim or a compare-and-swap. A process
//!   killed at any instruction leaves nothing to repair; a hostile one can spoil its own lane only.
//! - **Every number read is checked** against the few values an honest peer can have written; any other closes the lane.
//! - **Store, fence, look.** Who publishes stores, fences, reads whether the other sleeps; who goes to sleep stores that
//!   it does, fences, looks once more. One of the two sees the other, so no wake-up is lost (`models`).
//!
//! No Rust reference points at data that the peer can change: both memories are reached through atomics only.

#[cfg(not(loom))]
pub(crate) mod buffer;
pub(crate) mod caller;
pub(crate) mod channel;
#[cfg(all(test, not(loom)))]
mod document;
pub(crate) mod layout;
pub(crate) mod leases;
#[cfg(all(test, loom))]
mod models;
pub(crate) mod owner;
pub(crate) mod slots;
#[cfg(all(test, not(loom)))]
mod tests;
