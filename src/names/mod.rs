//! Discovery: which name is served by which socket. Never on a call's path.
//!
//! A published object is a socket in a directory that only trusted users can write. A name is alive while the process that
//! listens there is, whoever else holds the socket; a dead one is replaced by the next publisher or removed by the next
//! lister.

mod binding;
mod directory;
mod name;
mod probe;
mod watch;

pub(crate) use binding::Bound;
pub(crate) use directory::Directory;
pub(crate) use name::Name;
pub(crate) use watch::{Change, NameWatch};

#[cfg(test)]
mod tests;
