//! What can go wrong between an event and its subscribers, on either side.

use std::error::Error;
use std::fmt;

use crate::error::{BusError, CallError, ConnectError, RemoteError};
use crate::object::Refusal;
use crate::wire::errors::WireError;
use crate::wire::output::EncodeError;

/// Something that a subscription has to tell beside the events, at the place where it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gap {
    /// So many events were left out here, because this subscriber did not take earlier ones in time.
    Missed(u64),
    /// The subscription was made anew: its owner had been restarted, or replaced, or let go of it. What was emitted in between, nobody
    /// knows here. A watched property comes with its present value next.
    Resubscribed,
    /// Nothing came in the time that [`wait_next`](crate::Events::wait_next) was given; the subscription goes on.
    TimedOut,
    /// The subscription has ended for good; nothing comes after this.
    Ended(BusError),
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gap::Missed(1) => f.write_str("one event was missed: it was not taken in time"),
            Gap::Missed(count) => write!(f, "{count} events were missed: they were not taken in time"),
            Gap::Resubscribed => f.write_str(
                "the subscription was lost and is made anew: what was emitted in between is not known",
            ),
            Gap::TimedOut => f.write_str("nothing came in time"),
            Gap::Ended(error) => write!(f, "the subscription has ended: {error}"),
        }
    }
}

impl Error for Gap {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Gap::Ended(error) => Some(error),
            Gap::Missed(_) | Gap::Resubscribed | Gap::TimedOut => None,
        }
    }
}

/// Whether a subscription that ended with this error would end with it again, however often it is made anew.
pub(super) fn is_final(error: &BusError) -> bool {
    match error {
        CallError::SchemaMismatch { .. }
        | CallError::UnknownMethod { .. }
        | CallError::PermissionDenied { .. }
        | CallError::BadRequest { .. }
        | CallError::BadResponse { .. }
        | CallError::ProtocolViolation { .. }
        | CallError::ForkedHandle { .. } => true,
        CallError::Unreachable { reason, .. } => matches!(
            **reason,
            ConnectError::Closed | ConnectError::ForkedHandle | ConnectError::VersionMismatch { .. }
        ),
        _ => false,
    }
}

/// Why a value could not be told.
///
/// A method may return it; its caller gets a [`RemoteError`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EmitError {
    /// Its encoding is larger than what any subscriber could take.
    TooLarge {
        /// The most bytes allowed.
        limit: u64,
        /// The size that was needed; at least this much if encoding stopped early.
        size: u64,
    },
    /// No memory is left for it.
    NoMemory,
    /// Its `Serialize` failed.
    Unencodable {
        /// In which words.
        reason: String,
    },
}

impl fmt::Display for EmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EmitError::TooLarge { limit, size } => {
                write!(f, "the event needs {size} bytes and {limit} are allowed: nobody was told of it")
            }
            EmitError::NoMemory => f.write_str("no memory is left for the event: nobody was told of it"),
            EmitError::Unencodable { reason } => {
                write!(f, "the event cannot be encoded ({reason}): nobody was told of it")
            }
        }
    }
}

impl Error for EmitError {}

impl From<Box<EncodeError>> for EmitError {
    fn from(error: Box<EncodeError>) -> EmitError {
        match *error {
            EncodeError::TooLarge { limit, size } => EmitError::TooLarge { limit, size },
            EncodeError::NoMemory => EmitError::NoMemory,
            EncodeError::Unencodable(reason) => EmitError::Unencodable { reason },
        }
    }
}

impl From<EmitError> for Box<Refusal> {
    #[cold]
    fn from(error: EmitError) -> Box<Refusal> {
        Box::new(match error {
            EmitError::TooLarge { limit, size } => Refusal::TooLarge { limit, size },
            EmitError::NoMemory => Refusal::NoMemory,
            EmitError::Unencodable { reason } => Refusal::BadResponse(reason),
        })
    }
}

impl WireError for EmitError {
    type Wire = RemoteError;

    fn into_wire(self) -> RemoteError {
        RemoteError { kind: "objbus::EmitError".to_owned(), message: self.to_string(), sources: Vec::new() }
    }
}
