//! A shared-memory object bus for Linux.
#![warn(missing_docs)]

mod error;
#[allow(dead_code, unused_imports)]
mod names;
#[allow(dead_code)]
mod sys;

pub use error::{BusError, CallError, ConnectError, Executed, PublishError, RemoteError};
