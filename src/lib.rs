//! A shared-memory object bus for Linux.
#![warn(missing_docs)]

mod error;

pub use error::{BusError, CallError, ConnectError, Executed, PublishError, RemoteError};
