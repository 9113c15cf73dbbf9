//! A shared-memory object bus for Linux.
#![warn(missing_docs)]

#[allow(dead_code)]
mod blob;
mod error;
#[allow(dead_code, unused_imports)]
mod names;
#[allow(dead_code)]
mod sys;

pub use error::{BusError, CallError, ConnectError, Executed, PublishError, RemoteError};
