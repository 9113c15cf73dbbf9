//! A shared-memory object bus for Linux.
#![warn(missing_docs)]

#[allow(dead_code)]
mod blob;
mod error;

pub use error::{BusError, CallError, ConnectError, Executed, PublishError, RemoteError};
