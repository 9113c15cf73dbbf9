//! The caller's side: from a proxy's method to its result.
//!
//! [`call`] is the value that a proxy's method returns; [`flight`] its way from sending to its end; [`port`] where it gets
//! a slot; [`lane`] how it waits, and hears of the owner's end; [`answer`] its response, copied out; [`link`] what all
//! proxies of a name share, and how the next owner is found; [`extras`] what goes along with a
//! call, [`callback`] objects among that.

mod answer;
mod batch;
mod call;
mod callback;
mod connect;
mod extras;
mod flight;
mod group;
mod lane;
mod link;
mod members;
mod port;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::engine::Engine;
use crate::events::{Subscribe, Watch};
use crate::object::{Interface, Proxy};
use crate::owner::dispatch::DESCRIBE_KEY;
use crate::stream::{Stream, StreamCall};
use crate::sys::clock;
use crate::wire::describe::Description;
use crate::wire::errors::OwnError;
use crate::wire::key::{key_at, method_key_of};
use crate::wire::schema::Type;

use call::Style;
use callback::Claim;

pub use batch::{Batch, Join, Results};
pub use call::Call;
pub use callback::CalledBack;
pub(crate) use callback::WayBack;
pub use connect::Connect;
pub(crate) use extras::Extra;
pub use extras::{Extras, Receiving};
pub use group::Balance;
pub(crate) use lane::{Lane, Parts as LaneParts};
pub(crate) use link::{HANDSHAKE_NS, Link};
pub use members::{CallAll, Instances, Member};

/// What a call does while nobody publishes its object's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Absent {
    /// It fails at once with `NotFound`.
    #[default]
    Fail,
    /// It waits for the name until its deadline.
    Wait,
}

/// What a proxy calls through. Generated proxies hold one; cheap to clone, and any number of threads may use it.
#[derive(Clone)]
pub struct Handle {
    link: Arc<Link>,
    /// The keys of the proxy's methods.
    keys: Arc<[u64]>,
    style: Style,
    /// Of an object of the caller's, given along with a call.
    claim: Option<Arc<Claim>>,
}

impl Handle {
    pub(crate) fn new(link: Arc<Link>, interface: &Interface, style: Style) -> Handle {
        Handle { link, keys: interface.methods.iter().map(|(_, key)| *key).collect(), style, claim: None }
    }

    /// Of an object that came along with a call.
    fn back(link: Arc<Link>, interface: &Interface, style: Style, claim: Arc<Claim>) -> Handle {
        let keys = interface.methods.iter().map(|(_, key)| key_at(*key, claim.number)).collect();
        Handle { link, keys, style, claim: Some(claim) }
    }

    /// A call of the proxy's `index`th method. For generated code.
    #[doc(hidden)]
    #[inline(always)]
    pub fn call<A: Serialize + ?Sized, T: DeserializeOwned + 'static, E: OwnError>(
        &self,
        index: usize,
        method: &'static str,
        arguments: &A,
    ) -> Call<T, E> {
        Call::new(&self.link, self.keys[index], method, self.style, arguments)
    }

    /// As [`call`](Self::call), with what goes along with it. For generated code.
    #[doc(hidden)]
    pub fn call_with<A: Serialize + ?Sized, T: DeserializeOwned + 'static, E: OwnError>(
        &self,
        index: usize,
        method: &'static str,
        arguments: &A,
        extras: Extras,
    ) -> Call<T, E> {
        self.call(index, method, arguments).with(extras)
    }

    /// As [`call_with`](Self::call_with), of a method that returns a stream: the last of the arguments stands for the channel. For
    /// generated code.
    #[doc(hidden)]
    pub fn stream<A: Serialize + ?Sized, T, E: OwnError>(
        &self,
        index: usize,
        method: &'static str,
        arguments: &A,
        extras: Extras,
        receiving: Receiving,
    ) -> StreamCall<T, E> {
        StreamCall::new(self.call_with(index, method, arguments, extras), receiving.place)
    }

    /// A call of the method `method` with this key, whatever the proxy's methods.
    pub(crate) fn call_by_key<A: Serialize + ?Sized, T: DeserializeOwned + 'static>(
        &self,
        key: u64,
        method: &str,
        arguments: &A,
    ) -> Call<T> {
        Call::named(&self.link, key, method, self.style, arguments)
    }

    /// The same of one that sends over the channel that goes along.
    pub(crate) fn stream_by_key<A: Serialize + ?Sized, T>(
        &self,
        key: u64,
        method: &str,
        arguments: &A,
        (extras, receiving): (Extras, Receiving),
    ) -> StreamCall<T> {
        StreamCall::new(self.call_by_key(key, method, arguments).with(extras), receiving.place)
    }

    /// The same, whose calls wait until somebody publishes the name and answers.
    pub(crate) fn patient(mut self) -> Handle {
        self.style = Style { timeout_ns: u64::MAX, absent: Absent::Wait };
        self
    }

    /// Whether this process is a forked child of the one that made it.
    pub(crate) fn is_foreign(&self) -> bool {
        self.link.is_foreign()
    }

    pub(crate) fn engine(&self) -> &'static Engine {
        self.link.bus.engine
    }

    /// The key of the proxy's `index`th method.
    pub(crate) fn key(&self, index: usize) -> u64 {
        self.keys[index]
    }

    /// The name of the object.
    pub fn name(&self) -> &str {
        self.link.name().as_str()
    }

    /// The process id of the present owner; `None` while there is none, 0 if it lies outside this pid namespace.
    pub fn owner_pid(&self) -> Option<u32> {
        self.link.with_lane(|lane| lane.peer.credentials.pid)
    }

    /// Whether the object can be called at present, as far as this process knows. A call connects by itself.
    pub fn is_connected(&self) -> bool {
        self.link.is_connected()
    }

    /// Calls of this process in flight on the object, one-way ones that are not yet taken included.
    pub fn in_flight(&self) -> usize {
        self.link.in_flight()
    }

    /// What the object can do: its methods and properties with the names and types of their arguments, and their docs.
    pub fn describe(&self) -> Call<Description> {
        let key = self.claim.as_ref().map_or(DESCRIBE_KEY, |claim| key_at(DESCRIBE_KEY, claim.number));
        Call::new(&self.link, key, "describe", self.style, &())
    }

    /// The same handle with another time-out for calls made through it.
    pub fn with_timeout(mut self, timeout: Duration) -> Handle {
        self.style.timeout_ns = clock::span_ns(timeout);
        self
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("object", &self.name()).field("owner_pid", &self.owner_pid()).finish()
    }
}

/// A proxy without a type of its own: methods are named where they are called, and their types said there.
///
/// For objects made of closures, and for tools. A method's types must be exactly the object's: a call with others gets
/// `SchemaMismatch`, never garbage.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use objbus::{Bus, MethodTable, Untyped};
///
/// let bus = Bus::in_memory();
/// let math = MethodTable::named("Math").method("hypot", |x: f64, y: f64| x.hypot(y));
/// let _published = bus.publish("math", math)?;
///
/// let math: Untyped = bus.proxy("math").wait()?;
/// assert_eq!(math.call::<(f64, f64), f64>("hypot", &(3.0, 4.0)).wait()?, 5.0);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Untyped {
    handle: Handle,
}

impl Untyped {
    /// A call of the method `name` with a tuple of arguments, which cannot fail by itself.
    pub fn call<A: Arguments, T: Type + DeserializeOwned + 'static>(
        &self,
        name: &str,
        arguments: &A,
    ) -> Call<T> {
        self.try_call::<A, T, std::convert::Infallible>(name, arguments)
    }

    /// A call of the method `name` that may return an error of its own.
    pub fn try_call<A: Arguments, T: Type + DeserializeOwned + 'static, E: OwnError>(
        &self,
        name: &str,
        arguments: &A,
    ) -> Call<T, E> {
        let key = method_key_of::<A, T, E>(name);
        Call::named(&self.handle.link, key, name, self.handle.style, arguments)
    }

    /// A call of the method `name` that returns a stream, and cannot fail by itself.
    pub fn stream<A: Arguments, T: Type + DeserializeOwned>(
        &self,
        name: &str,
        arguments: &A,
    ) -> StreamCall<T> {
        self.try_stream::<A, T, std::convert::Infallible>(name, arguments)
    }

    /// A call of the method `name` that returns a stream, or an error of its own.
    pub fn try_stream<A: Arguments, T: Type + DeserializeOwned, E: OwnError>(
        &self,
        name: &str,
        arguments: &A,
    ) -> StreamCall<T, E> {
        let mut extras = Extras::default();
        let receiving = extras.receive();
        let key = method_key_of::<A, Stream<T>, E>(name);
        // Tuples are written as what they hold, so this is a tuple of one more.
        let arguments = (arguments, receiving.id());
        let call = Call::named(&self.handle.link, key, name, self.handle.style, &arguments);
        StreamCall::new(call.with(extras), receiving.place)
    }

    /// A subscription to the event `name`, of values of type `T`.
    pub fn subscribe<T: Type + DeserializeOwned + 'static>(&self, name: &str) -> Subscribe<T> {
        Subscribe::named(&self.handle, name)
    }

    /// The watched property `name`, of type `T`.
    pub fn watch<T: Type + DeserializeOwned + 'static>(&self, name: &str) -> Watch<T> {
        Watch::named(&self.handle, name)
    }

    /// Reads the property `name`.
    pub fn property<T: Type + DeserializeOwned + 'static>(&self, name: &str) -> Call<T> {
        self.call::<(), T>(name, &())
    }
}

impl Proxy for Untyped {
    fn interface() -> Interface {
        Interface { type_name: "", methods: Vec::new() }
    }

    fn from_handle(handle: Handle) -> Untyped {
        Untyped { handle }
    }

    fn handle(&self) -> &Handle {
        &self.handle
    }
}

pub use crate::wire::key::Arguments;
