//! Discovery: which name is served by which socket. Never on a call's path.
//!
//! A published object is a socket in a directory that only trusted users can write; a name that several instances share has a
//! socket for each. A socket is alive while the process that listens there is, whoever else holds it; a dead one is replaced or
//! removed by the next publisher of its name, or removed by the next lister.

mod address;
mod binding;
mod directory;
mod name;
mod probe;
mod watch;

pub(crate) use address::{Address, Tag};
pub(crate) use binding::Bound;
pub(crate) use directory::Directory;
pub(crate) use name::Name;
pub(crate) use watch::{Change, NameWatch};

#[cfg(test)]
mod tests;
