//! A shared-memory object bus for Linux.
//!
//! A process publishes an object under a name; any other process gets a typed proxy and calls its methods as if the object
//! were its own. Requests and responses go through shared memory; a call between two busy processes makes no system call.
//! There is no daemon, nothing to clean up, and no attribute on any method.
//!
//! ```
//! use objbus::Bus;
//!
//! struct Math;
//!
//! #[objbus::object]
//! impl Math {
//!     /// x to the power of y.
//!     pub fn pow(&self, x: f64, y: f64) -> f64 {
//!         x.powf(y)
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let bus = Bus::in_memory();
//! # if false {
//! let bus = Bus::open()?; // this user's bus
//! # }
//! let _published = bus.publish("math", Math)?; // until the guard is dropped
//!
//! let math: MathProxy = bus.proxy("math").wait()?; // the same in any process
//! assert_eq!(math.pow(2.0, 10.0).wait()?, 1024.0); // or .await, on any runtime
//! # Ok(()) }
//! ```
//!
//! # The pieces
//!
//! - [`Bus`]: where names live; this user's by default, one shared between users by [`Bus::builder`], one inside the
//!   process by [`Bus::in_memory`].
//! - [`object`] makes a plain `impl` block publishable and writes its proxy; [`interface`] does so for a trait in a crate
//!   of its own; a [`MethodTable`] is an object made of closures. [`Type`](macro@Type) goes beside serde's derives on the
//!   types that methods take and give.
//! - [`Call`]: what a proxy's method returns. Wait for it, await it, send it one way, give it a time-out, or drop it.
//! - [`Batch`]: many calls sent together, for a fraction of what they cost one after the other.
//! - [`CallError`]: the method's own error, or the bus's, which says whether the method ran.
//! - [`Event`] and [`Watched`]: what an object tells by itself, to any number of subscribers, and a value of which others want to
//!   know what it is now. The page `docs/events.md` of the repository says what is promised.
//! - [`CallContext`]: what a method can ask about its call: who calls, how long will they wait, do they still.
//!
//! # Blobs
//!
//! Big buffers are lent instead of copied. [`Bus::alloc`], or inside a method [`CallContext::alloc`], gives a [`BlobMut`]:
//! shared memory to be filled in place, or straight from a file or a socket. [`freeze`](BlobMut::freeze) makes it a [`Blob`]:
//! immutable bytes, cheap to clone and to slice, which may stand anywhere in arguments, results and errors.
//!
//! ```
//! # use objbus::{AllocError, Blob, Bus};
//! # fn draw(shot: &mut [u8]) { shot.fill(0xff) }
//! struct Screen(Bus);
//!
//! #[objbus::object]
//! impl Screen {
//!     /// What is on it now, to be read where it was drawn.
//!     pub fn shot(&self) -> Result<Blob, AllocError> {
//!         let mut shot = self.0.alloc(1920 * 1080 * 4)?;
//!         draw(&mut shot); // `&mut [u8]`, `Write` and `Seek`
//!         Ok(shot.freeze())
//!     }
//! }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let bus = Bus::in_memory();
//! # let _published = bus.publish("screen", Screen(bus.clone()))?;
//! # let screen: ScreenProxy = bus.proxy("screen").wait()?;
//! let shot = screen.shot().wait()?; // in another process: its memory goes back when this is dropped
//! # assert!(shot.iter().all(|&byte| byte == 0xff));
//! # Ok(()) }
//! ```
//!
//! The lender has its memory back when the last process that reads it has dropped the blob or is dead. The page `docs/blobs.md` of
//! the repository says who owns a buffer when, what is copied, which limits there are, and what not to do.
//!
//! The feature `bytes` makes a blob a `bytes::Bytes` without a copy and a [`BlobMut`] a `BufMut`; the feature `zerocopy` shows
//! either as a slice of numbers or structs, checked.
//!
//! # Async
//!
//! A [`Call`] is a future on any executor. One whose answer is about to come, or there, makes no system call; one that waits is woken
//! by a thread of the library. With the feature `tokio`, what is awaited in a tokio runtime is woken by that runtime itself, through its
//! I/O driver (`enable_io`, as `#[tokio::main]` has it), which is quicker; and async methods of objects that are published within a
//! runtime run there. Many calls at once cost least in a [`Batch`].
//!
//! A runtime of one thread wakes nothing while nobody drives it: what is awaited by another executor inside `Runtime::enter` of such a
//! runtime sees its answer only when the runtime is driven, or at its deadline. Await it within `block_on`, or outside the runtime.
//!
//! A call that is dropped before its answer, by a `select!`, a time-out or by hand, is cancelled: an async method is dropped at its next
//! await, a plain one sees [`CallContext::cancelled`].
//!
//! # Streams
//!
//! A method that returns `impl Stream<Item = T>` gives its caller a [`Stream`]; an argument `objbus::Stream<T>` is any stream of `T` at
//! the caller. Items may hold blobs. The receiver's speed is the sender's, dropping the stream stops it, and either side's
//! death ends it: see `docs/streams.md` in the repository.
//!
//! # Callbacks
//!
//! An argument may be an object of the caller's own, which the method calls while it runs, over the same connection:
//!
//! ```
//! use objbus::BusError;
//!
//! #[objbus::interface]
//! pub trait Progress {
//!     fn at(&self, percent: u32) -> Result<(), BusError>;
//! }
//!
//! struct Kitchen;
//!
//! #[objbus::object]
//! impl Kitchen {
//!     pub fn bake(&self, progress: &dyn Progress) -> Result<(), BusError> {
//!         progress.at(100)
//!     }
//! }
//!
//! struct Printed;
//!
//! impl Progress for Printed {
//!     fn at(&self, percent: u32) -> Result<(), BusError> {
//!         println!("{percent} %");
//!         Ok(())
//!     }
//! }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let bus = objbus::Bus::in_memory();
//! # let _published = bus.publish("kitchen", Kitchen)?;
//! # let kitchen: KitchenProxy = bus.proxy("kitchen").wait()?;
//! kitchen.bake(Printed).wait()?; // prints here, wherever it bakes
//! # Ok(()) }
//! ```
//!
//! The page `docs/callbacks.md` of the repository says what else an argument like this can be, when and where it is called, and
//! what it gets when one of the two dies.
//!
//! # Instances
//!
//! Several processes may share a name: each publishes an instance with [`Bus::publish_as`], and proxies spread their calls over
//! them ([`Balance`]), skip the dead, and can choose by [tag](Connect::tag) or [process](Connect::pid).
//! [`instances`](Proxy::instances) and [`call_all`](Proxy::call_all) go to each of them. The page `docs/instances.md` of the repository
//! tells what becomes of calls when instances come and go.
//!
//! # Limits
//!
//! 64 calls of one process can be in flight on one object, or on each of its instances; a further one waits for a slot. A body is at most 4 GiB, and
//! 256 MiB unless configured. Names are up to 100 bytes of letters, digits, `.`, `_` and `-`.
//!
//! # What it does not do
//!
//! It does not cross machines, does not persist, and does not protect two processes of one user from each other beyond
//! keeping each from crashing or blocking the other.
#![warn(missing_docs)]
// The loom models are of the ring; nothing else is built for them.
#![cfg_attr(loom, allow(dead_code))]

/// Runs what `docs/streams.md` shows.
#[cfg(doctest)]
#[doc = include_str!("../docs/streams.md")]
struct Streams;

/// Runs what `docs/blobs.md` shows.
#[cfg(doctest)]
#[doc = include_str!("../docs/blobs.md")]
struct Blobs;

/// Runs what `docs/callbacks.md` shows.
#[cfg(doctest)]
#[doc = include_str!("../docs/callbacks.md")]
struct Callbacks;

/// Runs what `docs/events.md` shows.
#[cfg(doctest)]
#[doc = include_str!("../docs/events.md")]
struct EventsGuide;

/// Runs what `docs/instances.md` shows.
#[cfg(doctest)]
#[doc = include_str!("../docs/instances.md")]
struct InstancesOfAName;

// The macros' code names the crate as its users do.
extern crate self as objbus;

#[cfg(not(loom))]
mod access;
#[cfg(not(loom))]
mod blob;
#[cfg(not(loom))]
mod bus;
#[cfg(not(loom))]
mod channel;
#[cfg(not(loom))]
mod engine;
#[cfg(not(loom))]
mod error;
#[cfg(not(loom))]
mod events;
#[cfg(not(loom))]
mod handshake;
#[cfg(not(loom))]
mod job;
#[cfg(not(loom))]
mod names;
#[cfg(not(loom))]
mod object;
#[cfg(not(loom))]
mod owner;
#[cfg(not(loom))]
mod panics;
#[cfg(not(loom))]
mod parcels;
#[cfg(not(loom))]
mod park;
#[cfg(not(loom))]
mod peer;
#[cfg(not(loom))]
mod proxy;
#[cfg(not(loom))]
mod publish;
mod ring;
#[cfg(not(loom))]
mod status;
#[cfg(not(loom))]
mod stream;
mod sync;
#[cfg(not(loom))]
mod sys;
#[cfg(not(loom))]
mod wire;

#[cfg(not(loom))]
pub use access::Access;
#[cfg(not(loom))]
pub use blob::error::AllocError;
#[cfg(not(loom))]
pub use blob::exclusive::BlobMut;
#[cfg(not(loom))]
pub use blob::memory::{Borrower, Copied, Memory, UserMemory};
#[cfg(not(loom))]
pub use blob::shared::Blob;
#[cfg(all(not(loom), feature = "zerocopy"))]
pub use blob::views::ViewError;
#[cfg(not(loom))]
pub use bus::{Bus, BusBuilder, CopyOnArrival, Spin};
#[cfg(not(loom))]
pub use error::{BusError, CallError, ConnectError, Executed, OpenError, PublishError, RemoteError};
#[cfg(not(loom))]
pub use events::{EmitError, Event, Events, Gap, Lag, Subscribe, Watch, Watched};
#[cfg(not(loom))]
pub use futures_core;
#[cfg(not(loom))]
pub use objbus_macros::{Type, interface, object};
#[cfg(not(loom))]
pub use object::{Callable, FallibleCallable, Interface, MethodTable, Object, Proxy, StreamCallable};
#[cfg(not(loom))]
pub use owner::context::CallContext;
#[cfg(not(loom))]
pub use owner::hosted::{Limits, PanicPolicy};
#[cfg(not(loom))]
pub use proxy::{
    Absent, Balance, Batch, Call, CallAll, Connect, Handle, Instances, Join, Member, Results, Untyped,
};
#[cfg(not(loom))]
pub use publish::{Instance, Publication, Published, Shutdown};
#[cfg(not(loom))]
pub use stream::{Iter, Next, Stream, StreamCall, stream_of};
#[cfg(not(loom))]
pub use wire::describe::{Description, MethodDescription, MethodKind};
#[cfg(not(loom))]
pub use wire::errors::{MethodResult, OwnError, WireError};
#[cfg(not(loom))]
pub use wire::schema::{MethodShape, NamedType, Primitive, Schemas, Shape, Type, TypeRef};

/// What the macros' code uses and nobody else should.
#[cfg(not(loom))]
#[doc(hidden)]
pub mod __private {
    pub use crate::channel::ChannelId;
    pub use crate::events::Told;
    pub use crate::object::{
        AsyncInvocation, AsyncRequest, Invocation, MethodSpec, Opening, callback_schema, index_of,
    };
    pub use crate::proxy::{CalledBack, Extras, Receiving};
    pub use crate::wire::errors::settle;
    pub use std::convert::Infallible;
    pub use std::result::Result;
    pub use std::sync::Arc;
}
