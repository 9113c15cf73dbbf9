//! What can go wrong, one enum per operation.
//!
//! Every error of a call says whether the method ran ([`Executed`]): after a death or a time-out that is what
//! the caller must know to decide between calling again and asking a human. A variant exists only where a caller would
//! act differently on it; what merely explains goes into the sentence.

use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// Whether the method of a failed call ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Executed {
    /// It did not run and never will: calling again is safe.
    No,
    /// It may have run, to the end or in part: call again only what is harmless twice.
    Unknown,
    /// It ran to its end; only its answer is missing.
    Yes,
}

/// What an error says of [`Executed::No`] where calling again is safe, too, but would fail in the same way.
const DID_NOT_RUN: &str = "the method did not run";

impl fmt::Display for Executed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Executed::No => "the method did not run, so calling again is safe",
            Executed::Unknown => "the method may have run",
            Executed::Yes => "the method ran to its end",
        })
    }
}

/// Why a call has no result: the method's own error in [`App`](CallError::App), or what the bus has to report.
///
/// `E` is the error type of the method; a method that cannot fail has `Infallible` there, which makes its error a
/// [`BusError`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallError<E = Infallible> {
    /// The method ran and returned this error.
    App(E),
    /// The process that published the object died before it answered.
    OwnerDied {
        /// Whether the method ran.
        executed: Executed,
    },
    /// The connection to the object ended and its process lives: it has let go of it without a word, or runs another program by now.
    Disconnected {
        /// Always `Unknown`: a process that lives may still run what it has not begun.
        executed: Executed,
    },
    /// No answer came within the call's deadline.
    DeadlineExceeded {
        /// Whether the method ran, or still may.
        executed: Executed,
    },
    /// The call was cancelled before it was answered.
    Cancelled {
        /// Whether the method ran.
        executed: Executed,
    },
    /// A limit is reached now that may not be later: calls in flight, workers, a quota of this caller.
    Overloaded {
        /// Always `No`.
        executed: Executed,
    },
    /// The encoded arguments (`executed: No`) or result (`executed: Yes`) exceed the configured maximum.
    TooLarge {
        /// The largest body allowed, in bytes.
        limit: u64,
        /// The size that was needed, in bytes; at least this much if encoding stopped early.
        size: u64,
        /// `No` for arguments, `Yes` for a result.
        executed: Executed,
    },
    /// The arguments could not be encoded here, or not be decoded by the owner.
    BadRequest {
        /// What was wrong with them.
        reason: String,
        /// Always `No`.
        executed: Executed,
    },
    /// The result could not be encoded by the owner, or not be decoded here.
    BadResponse {
        /// What was wrong with it.
        reason: String,
        /// Always `Yes`.
        executed: Executed,
    },
    /// The object has no method of this name.
    UnknownMethod {
        /// The name called.
        method: String,
        /// Always `No`.
        executed: Executed,
    },
    /// The object has a method of this name, built with other argument or result types.
    SchemaMismatch {
        /// The name called.
        method: String,
        /// The key of the method as this process was built.
        ours: u64,
        /// The key of the method as the owner was built.
        theirs: u64,
        /// Always `No`.
        executed: Executed,
    },
    /// The method panicked, or the object is poisoned by an earlier panic (`executed: No`).
    MethodPanicked {
        /// The panic's message.
        message: String,
        /// `Unknown` for the call that panicked.
        executed: Executed,
    },
    /// The object serves one call at a time and is itself waiting, through others, for this call.
    WouldDeadlock {
        /// Always `No`.
        executed: Executed,
    },
    /// The peer broke the protocol; its connection was closed.
    ProtocolViolation {
        /// Whether the method ran.
        executed: Executed,
    },
    /// The object was withdrawn before the call began.
    Unpublished {
        /// Whether the method ran.
        executed: Executed,
    },
    /// Nobody publishes the name at present.
    NotFound {
        /// The name.
        name: String,
        /// Always `No`.
        executed: Executed,
    },
    /// The access rules of the bus, the object or the method exclude this process.
    PermissionDenied {
        /// Always `No`.
        executed: Executed,
    },
    /// The proxy was made before `fork` and used in the child; open the bus again there.
    ForkedHandle {
        /// Always `No`.
        executed: Executed,
    },
    /// Memory for the arguments (`No`) or the result (`Yes`) would exceed the bus's limit; or the result what this caller
    /// may have in flight.
    NoMemory {
        /// `No` for arguments, `Yes` for a result.
        executed: Executed,
    },
    /// The object could not be reached, for a reason of the connection.
    Unreachable {
        /// Why connecting failed.
        reason: Box<ConnectError>,
        /// Always `No`.
        executed: Executed,
    },
    /// The method ran and itself returned a [`BusError`], from a call that it made: what a method of an interface that returns
    /// `Result<T, BusError>` gives, so that `executed` is always that of the caller's own call.
    Nested {
        /// The error that the method returned, in words; whether the call that it made ran is said there.
        error: Box<RemoteError>,
        /// Always `Yes`.
        executed: Executed,
    },
}

/// An error of the bus alone, without any method's own error in it.
///
/// The error type of an interface's method, where the bus's errors are all that it can give: at a proxy, they are returned as they
/// are. One that the method returned itself arrives as [`Nested`](CallError::Nested); of an object's method, as a [`RemoteError`]
/// in [`App`](CallError::App).
pub type BusError = CallError<Infallible>;

impl<E> CallError<E> {
    /// Whether the method ran; an error of the method's own means that it did.
    pub fn executed(&self) -> Executed {
        match self {
            CallError::App(_) => Executed::Yes,
            CallError::OwnerDied { executed }
            | CallError::Disconnected { executed }
            | CallError::DeadlineExceeded { executed }
            | CallError::Cancelled { executed }
            | CallError::Overloaded { executed }
            | CallError::TooLarge { executed, .. }
            | CallError::BadRequest { executed, .. }
            | CallError::BadResponse { executed, .. }
            | CallError::UnknownMethod { executed, .. }
            | CallError::SchemaMismatch { executed, .. }
            | CallError::MethodPanicked { executed, .. }
            | CallError::WouldDeadlock { executed }
            | CallError::ProtocolViolation { executed }
            | CallError::Unpublished { executed }
            | CallError::NotFound { executed, .. }
            | CallError::PermissionDenied { executed }
            | CallError::ForkedHandle { executed }
            | CallError::NoMemory { executed }
            | CallError::Unreachable { executed, .. }
            | CallError::Nested { executed, .. } => *executed,
        }
    }

    /// Turns the method's own error into another, leaving the bus's errors as they are.
    pub fn map_app<F>(self, f: impl FnOnce(E) -> F) -> CallError<F> {
        match self {
            CallError::App(e) => CallError::App(f(e)),
            CallError::OwnerDied { executed } => CallError::OwnerDied { executed },
            CallError::Disconnected { executed } => CallError::Disconnected { executed },
            CallError::DeadlineExceeded { executed } => CallError::DeadlineExceeded { executed },
            CallError::Cancelled { executed } => CallError::Cancelled { executed },
            CallError::Overloaded { executed } => CallError::Overloaded { executed },
            CallError::TooLarge { limit, size, executed } => CallError::TooLarge { limit, size, executed },
            CallError::BadRequest { reason, executed } => CallError::BadRequest { reason, executed },
            CallError::BadResponse { reason, executed } => CallError::BadResponse { reason, executed },
            CallError::UnknownMethod { method, executed } => CallError::UnknownMethod { method, executed },
            CallError::SchemaMismatch { method, ours, theirs, executed } => {
                CallError::SchemaMismatch { method, ours, theirs, executed }
            }
            CallError::MethodPanicked { message, executed } => {
                CallError::MethodPanicked { message, executed }
            }
            CallError::WouldDeadlock { executed } => CallError::WouldDeadlock { executed },
            CallError::ProtocolViolation { executed } => CallError::ProtocolViolation { executed },
            CallError::Unpublished { executed } => CallError::Unpublished { executed },
            CallError::NotFound { name, executed } => CallError::NotFound { name, executed },
            CallError::PermissionDenied { executed } => CallError::PermissionDenied { executed },
            CallError::ForkedHandle { executed } => CallError::ForkedHandle { executed },
            CallError::NoMemory { executed } => CallError::NoMemory { executed },
            CallError::Unreachable { reason, executed } => CallError::Unreachable { reason, executed },
            CallError::Nested { error, executed } => CallError::Nested { error, executed },
        }
    }

    /// Splits into the method's own error (`Ok`) and the bus's (`Err`).
    pub fn into_app(self) -> Result<E, BusError> {
        match self {
            CallError::App(e) => Ok(e),
            bus => Err(bus.map_app(|_| unreachable!("the variant App is handled above"))),
        }
    }
}

impl BusError {
    /// The same error as that of a method with error type `E`.
    pub fn widen<E>(self) -> CallError<E> {
        self.map_app(|never| match never {})
    }
}

impl<E: fmt::Display> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::App(e) => e.fmt(f),
            CallError::OwnerDied { executed } => {
                write!(f, "the process that published the object died before it answered; {executed}")
            }
            CallError::Disconnected { executed } => {
                write!(f, "the process that published the object lives, but has dropped the connection; {executed}")
            }
            CallError::DeadlineExceeded { executed } => {
                write!(f, "no answer came before the deadline; {executed}")
            }
            CallError::Cancelled { executed } => write!(f, "the call was cancelled; {executed}"),
            CallError::Overloaded { executed } => {
                write!(f, "too many calls of this caller are in flight, or too many bytes: let some end first; {executed}")
            }
            CallError::TooLarge { limit, size, executed } => say_too_large(f, *limit, *size, *executed),
            CallError::BadRequest { reason, .. } => {
                write!(f, "the arguments were refused: {reason}; {DID_NOT_RUN}")
            }
            CallError::BadResponse { reason, executed } => {
                write!(f, "the result cannot be read: {reason}; {executed}")
            }
            CallError::UnknownMethod { method, .. } => write!(
                f,
                "the object has no method `{method}`: its owner may be of an older build, or the name another object's; {DID_NOT_RUN}"
            ),
            CallError::SchemaMismatch { method, ours, theirs, .. } => write!(
                f,
                "`{method}` was built with other types here (key {ours:016x}) than in the owner (key {theirs:016x}): build both from the same definitions; {DID_NOT_RUN}"
            ),
            CallError::MethodPanicked { message, executed: Executed::No } => write!(
                f,
                "the object is poisoned by an earlier panic ({message}): its owner must publish it anew; {DID_NOT_RUN}"
            ),
            CallError::MethodPanicked { message, executed } => {
                write!(f, "the method panicked: {message}; {executed}")
            }
            CallError::WouldDeadlock { .. } => f.write_str(
                "the object serves one call at a time and is waiting, through others, for this one: publish it with more workers, or do not call it from there; the method did not run",
            ),
            CallError::ProtocolViolation { executed } => {
                write!(f, "the other process broke the protocol and its connection was closed; {executed}")
            }
            CallError::Unpublished { executed } => write!(f, "the object was withdrawn; {executed}"),
            CallError::NotFound { name, .. } => {
                write!(f, "nobody publishes `{name}` now: start who does, or use `Absent::Wait`; {DID_NOT_RUN}")
            }
            CallError::PermissionDenied { .. } => f.write_str(
                "this process may not make the call: neither its user nor a group of it is named in the rules of the object or of the method; the method did not run",
            ),
            CallError::ForkedHandle { .. } => f.write_str(
                "this proxy was made before fork(); open the bus again in the child; the method did not run",
            ),
            CallError::NoMemory { executed } => say_no_memory(f, *executed),
            CallError::Unreachable { reason, .. } => {
                write!(f, "the object cannot be reached: {reason}; {DID_NOT_RUN}")
            }
            CallError::Nested { error, executed } => {
                write!(f, "a call that the method made failed ({error}); {executed}")
            }
        }
    }
}

fn say_too_large(f: &mut fmt::Formatter<'_>, limit: u64, size: u64, executed: Executed) -> fmt::Result {
    if executed == Executed::Yes {
        write!(
            f,
            "the result needs {size} bytes and the owner allows {limit}: raise its `Limits::body_bytes` or return less; the method ran"
        )
    } else {
        write!(
            f,
            "the arguments need {size} bytes and {limit} are allowed: raise `Limits::body_bytes` on both sides or send less; {DID_NOT_RUN}"
        )
    }
}

fn say_no_memory(f: &mut fmt::Formatter<'_>, executed: Executed) -> fmt::Result {
    if executed == Executed::Yes {
        f.write_str("the result does not fit the owner's memory limit (`BusBuilder::memory`), or what this caller may have in flight there: return less, or take other answers first; the method ran")
    } else {
        write!(
            f,
            "the arguments do not fit the bus's memory limit: raise it (`BusBuilder::memory`), send less, or let other calls end first; {executed}"
        )
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for CallError<E> {}

impl From<RemoteError> for BusError {
    /// What a method returned, as its caller gets it.
    fn from(error: RemoteError) -> BusError {
        CallError::Nested { error: Box::new(error), executed: Executed::Yes }
    }
}

/// Why a name could not be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody publishes the name.
    NotFound {
        /// The name.
        name: String,
        /// How long this side waited for it to appear; zero where it was told to wait for none.
        waited: Duration,
    },
    /// A process of another user answers under this name.
    WrongOwnerUid {
        /// That user's id.
        uid: u32,
    },
    /// The owner does not admit this user.
    PermissionDenied,
    /// The two sides speak different versions of the protocol.
    VersionMismatch {
        /// This side's version.
        ours: u32,
        /// The other side's version.
        theirs: u32,
    },
    /// The owner's limit of callers is reached.
    TooManyCallers,
    /// The owner did not answer the handshake in time.
    HandshakeTimeout {
        /// How long this side waited.
        after: Duration,
    },
    /// What the peer passed is not the sealed memory that was agreed on.
    BadSegment {
        /// What was wrong.
        reason: &'static str,
    },
    /// This process or the system has no file descriptors left.
    NoFds,
    /// No memory for the connection.
    NoMemory,
    /// The name is not a valid one.
    NameInvalid {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The bus was opened before `fork` and used in the child; open it again there.
    ForkedHandle,
    /// The bus was closed in this process.
    Closed,
    /// The run-time directory cannot be trusted or used.
    RuntimeDirUnsafe {
        /// Which directory, and what is wrong with it.
        reason: String,
    },
    /// The system refused in a way that no other variant names.
    System {
        /// The operation and the system's word for the error.
        reason: String,
    },
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::NotFound { name, waited } if waited.is_zero() => write!(
                f,
                "nobody publishes `{name}`: start the process that does, or wait for it with wait_for"
            ),
            ConnectError::NotFound { name, waited } => {
                write!(f, "nobody published `{name}` within {waited:.1?}: start the process that does")
            }
            ConnectError::WrongOwnerUid { uid } => write!(
                f,
                "the name is served by user {uid}, not by the user expected; nothing was shared with it"
            ),
            ConnectError::PermissionDenied => f.write_str(
                "the owner does not admit this user: its bus must (`BusBuilder::admit`), and so must the object's rules (`Publication::access`)",
            ),
            ConnectError::VersionMismatch { ours, theirs } if ours == theirs => f.write_str(
                "the owner lays shared memory out otherwise than this process: build both with the same objbus for the same kind of machine",
            ),
            ConnectError::VersionMismatch { ours, theirs } => write!(
                f,
                "the owner speaks protocol version {theirs}, this process {ours}: build both with the same objbus"
            ),
            ConnectError::TooManyCallers => f.write_str(
                "the owner's limit of callers is reached: let others go first, or raise its `Limits::lanes`",
            ),
            ConnectError::HandshakeTimeout { after } => {
                write!(f, "the owner did not answer within {after:?}: it may be stopped or overloaded")
            }
            ConnectError::BadSegment { reason } => {
                write!(f, "the peer passed memory that cannot be trusted: {reason}")
            }
            ConnectError::NoFds => f.write_str("no file descriptors are left: raise the limit (ulimit -n)"),
            ConnectError::NoMemory => f.write_str("no memory is left for a connection"),
            ConnectError::NameInvalid { name, reason } => write!(f, "the name {name:?} is not valid: {reason}"),
            ConnectError::ForkedHandle => {
                f.write_str("the bus was opened before fork(); open it again in the child")
            }
            ConnectError::Closed => f.write_str("the bus was closed in this process; open it again"),
            ConnectError::RuntimeDirUnsafe { reason } | ConnectError::System { reason } => {
                f.write_str(reason)
            }
        }
    }
}

impl std::error::Error for ConnectError {}

/// Why an object could not be published.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublishError {
    /// Another process, or this one, publishes the name already.
    AlreadyPublished {
        /// The publisher's process id, 0 if it lies outside this pid namespace.
        pid: u32,
    },
    /// Other processes, or this one, publish instances of the name, and this object was to have it for itself.
    PublishedAsInstances {
        /// The process id of one of them, 0 if it lies outside this pid namespace.
        pid: u32,
    },
    /// The run-time directory cannot be trusted or used.
    RuntimeDirUnsafe {
        /// Which directory, and what is wrong with it.
        reason: String,
    },
    /// The name, or the instance's tag, is not a valid one.
    NameInvalid {
        /// The name, or the tag.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The directory does not let this process bind names in it, or the present owner does not let it replace one.
    PermissionDenied,
    /// No file descriptors are left.
    NoFds,
    /// No memory is left.
    NoMemory,
    /// The object is not publishable: it has no methods or too many, or two of them share a name.
    BadObject {
        /// What is wrong with it.
        reason: String,
    },
    /// The bus was opened before `fork` and used in the child; open it again there.
    ForkedHandle,
    /// The bus was closed in this process.
    Closed,
    /// The system refused in a way that no other variant names.
    System {
        /// The operation and the system's word for the error.
        reason: String,
    },
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PublishError::AlreadyPublished { pid: 0 } => f.write_str(
                "a process outside of this pid namespace publishes this name already: choose another name, or take it over with replace()",
            ),
            PublishError::AlreadyPublished { pid } => write!(
                f,
                "process {pid} publishes this name already: choose another name, or take it over with replace()"
            ),
            PublishError::PublishedAsInstances { pid } => write!(
                f,
                "process {pid} publishes an instance of this name: publish another with publish_as(), choose another name, or take it over with replace()"
            ),
            PublishError::RuntimeDirUnsafe { reason } | PublishError::System { reason } => {
                f.write_str(reason)
            }
            PublishError::NameInvalid { name, reason } => write!(f, "the name {name:?} is not valid: {reason}"),
            PublishError::PermissionDenied => f.write_str(
                "this process may not take the name: it cannot write to the run-time directory, or the name is another user's",
            ),
            PublishError::NoFds => f.write_str("no file descriptors are left: raise the limit (ulimit -n)"),
            PublishError::NoMemory => f.write_str("no memory is left to publish an object"),
            PublishError::BadObject { reason } => write!(f, "the object cannot be published: {reason}"),
            PublishError::ForkedHandle => {
                f.write_str("the bus was opened before fork(); open it again in the child")
            }
            PublishError::Closed => f.write_str("the bus was closed in this process; open it again"),
        }
    }
}

impl std::error::Error for PublishError {}

/// An error that could not travel as itself: its kind, its message and what caused it.
///
/// Methods that return `anyhow::Error`, `Box<dyn Error>`, `std::io::Error` or a [`CallError`] have this type on the caller's side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteError {
    /// The name of the error's type as the owner knows it.
    pub kind: String,
    /// The error's own sentence.
    pub message: String,
    /// The sentences of the errors behind it, outermost first.
    pub sources: Vec<String>,
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.sources.iter().try_for_each(|source| write!(f, ": {source}"))
    }
}

impl std::error::Error for RemoteError {}

/// Why a bus could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenError {
    /// The run-time directory cannot be trusted or used.
    RuntimeDirUnsafe {
        /// Which directory, and what is wrong with it.
        reason: String,
    },
    /// The system refused what the bus runs on: descriptors, threads, memory.
    System {
        /// The operation and the system's word for the error.
        reason: String,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::RuntimeDirUnsafe { reason } | OpenError::System { reason } => f.write_str(reason),
        }
    }
}

impl std::error::Error for OpenError {}
