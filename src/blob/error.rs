//! Why memory for a blob was not to be had.

use std::fmt;

use super::arena::ALIGN_MAX;
use crate::error::{CallError, ConnectError, Executed, RemoteError};
use crate::wire::errors::WireError;

/// Why shared memory was not to be had.
///
/// A method may return it; its caller gets a [`RemoteError`]. Where a function gives [`CallError`]s, `?` makes it the one that
/// is nearest, with `executed: No`: the call that the memory was for has not been made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AllocError {
    /// The bus's memory limit, or the system, leaves no room.
    NoMemory,
    /// The bus's memory limit left no room, and not enough came back in time.
    TimedOut,
    /// No mapping can be aligned so.
    BadAlignment {
        /// What was asked for, in bytes.
        align: usize,
    },
    /// The bus was opened before `fork` and used in the child; open it again there.
    ForkedHandle,
    /// The bus of the call was dropped in this process.
    Closed,
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AllocError::NoMemory => f.write_str(
                "the bus's memory limit leaves no room for it: let go of blobs, wait for lent ones to come back (`Bus::alloc_wait`), or raise the limit (`BusBuilder::memory`)",
            ),
            AllocError::TimedOut => f.write_str(
                "the bus's memory limit leaves no room for it, and not enough came back in time: see who holds blobs, or raise the limit (`BusBuilder::memory`)",
            ),
            AllocError::BadAlignment { align } => write!(
                f,
                "memory cannot be aligned to {align} bytes: ask for a power of two of at most {ALIGN_MAX}"
            ),
            AllocError::ForkedHandle => {
                f.write_str("the bus was opened before fork(); open it again in the child")
            }
            AllocError::Closed => f.write_str("the bus was closed in this process; open it again"),
        }
    }
}

impl std::error::Error for AllocError {}

impl<E> From<AllocError> for CallError<E> {
    fn from(error: AllocError) -> CallError<E> {
        let executed = Executed::No;
        match error {
            AllocError::NoMemory | AllocError::TimedOut => CallError::NoMemory { executed },
            AllocError::ForkedHandle => CallError::ForkedHandle { executed },
            AllocError::BadAlignment { .. } => CallError::BadRequest { reason: error.to_string(), executed },
            AllocError::Closed => CallError::Unreachable { reason: Box::new(ConnectError::Closed), executed },
        }
    }
}

// Not as itself: its variants, which later versions add to, would be part of the method's key.
impl WireError for AllocError {
    type Wire = RemoteError;

    fn into_wire(self) -> RemoteError {
        RemoteError { kind: "objbus::AllocError".to_owned(), message: self.to_string(), sources: Vec::new() }
    }
}
