//! What a response says before its body: how the call ended.

use serde::{Deserialize, Serialize};

use crate::error::{BusError, CallError, Executed};
use crate::wire::budget::{Budget, decode};

/// A response's status byte. The numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    /// The body is the method's result.
    Returned = 1,
    /// The body is the method's own error.
    Failed = 2,
    /// The body is a [`Refused`].
    Refused = 3,
    /// A one-way call was taken; no body.
    Taken = 4,
}

impl Status {
    pub fn from_byte(byte: u8) -> Option<Status> {
        [Status::Returned, Status::Failed, Status::Refused, Status::Taken]
            .into_iter()
            .find(|s| *s as u8 == byte)
    }
}

/// Why the bus gives no result, as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refused {
    BadRequest(String),
    BadResponse(String),
    TooLargeRequest { limit: u64, size: u64 },
    TooLargeResponse { limit: u64, size: u64 },
    UnknownKey,
    Panicked(String),
    Poisoned(String),
    WouldDeadlock,
    Unpublished,
    DeadlineExceeded,
    Cancelled { executed: Executed },
    Overloaded,
    PermissionDenied,
    NoMemory { executed: Executed },
}

impl Refused {
    /// The caller's error for it. `unknown_key` makes the one for a key that the object does not have.
    pub fn into_error(self, unknown_key: impl FnOnce() -> BusError) -> BusError {
        let (no, yes) = (Executed::No, Executed::Yes);
        match self {
            Refused::BadRequest(reason) => CallError::BadRequest { reason, executed: no },
            Refused::BadResponse(reason) => CallError::BadResponse { reason, executed: yes },
            Refused::TooLargeRequest { limit, size } => CallError::TooLarge { limit, size, executed: no },
            Refused::TooLargeResponse { limit, size } => CallError::TooLarge { limit, size, executed: yes },
            Refused::UnknownKey => unknown_key(),
            Refused::Panicked(message) => CallError::MethodPanicked { message, executed: Executed::Unknown },
            Refused::Poisoned(message) => CallError::MethodPanicked { message, executed: no },
            Refused::WouldDeadlock => CallError::WouldDeadlock { executed: no },
            Refused::Unpublished => CallError::Unpublished { executed: no },
            Refused::DeadlineExceeded => CallError::DeadlineExceeded { executed: no },
            Refused::Cancelled { executed } => CallError::Cancelled { executed },
            Refused::Overloaded => CallError::Overloaded { executed: no },
            Refused::PermissionDenied => CallError::PermissionDenied { executed: no },
            Refused::NoMemory { executed } => CallError::NoMemory { executed },
        }
    }

    /// Reads one; `None` if no honest owner wrote it.
    pub fn decode(body: &[u8]) -> Option<Refused> {
        decode(body, &Budget::default()).ok()
    }
}
