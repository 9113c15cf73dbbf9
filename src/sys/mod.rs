//! The kernel's side of the bus: one file per kind of object, each a thin and safe front over its system calls.
//!
//! Nothing here knows of calls, objects or names. Whatever a peer may have made is checked here before it is used.

pub(crate) mod clock;
pub(crate) mod closer;
pub(crate) mod cpu;
pub(crate) mod eventfd;
pub(crate) mod fd;
pub(crate) mod features;
pub(crate) mod fork;
pub(crate) mod futex;
pub(crate) mod memfd;
pub(crate) mod notify;
pub(crate) mod pidfd;
pub(crate) mod signals;
pub(crate) mod socket;

#[cfg(test)]
pub(crate) mod testing;
