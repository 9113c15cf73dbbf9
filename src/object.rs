//! What `#[objbus::object]` and `#[objbus::interface]` implement, and what the owner's loop and the proxies use of it.
//!
//! An object is a [`MethodTable`]: for each method its signature, the key made from that, and a handler that decodes
//! the arguments, runs the method and encodes the result. A proxy knows the same signatures as an [`Interface`].

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

mod closures;
mod invocation;
mod pool;
mod streams;
mod table;

pub use closures::{Callable, FallibleCallable, StreamCallable};
pub(crate) use invocation::RequestBody;
pub use invocation::{AsyncInvocation, AsyncRequest, Completed, Concluded, Invocation, Refusal};
pub use pool::PooledFuture;
pub use streams::Opening;
pub(crate) use table::Handler;
pub use table::{MethodSpec, MethodTable, callback_schema, index_of};

#[cfg(test)]
pub(crate) mod allocations;
#[cfg(test)]
mod tests;

use crate::proxy::{Call, CallAll, Handle, Instances};
use crate::wire::errors::OwnError;
use crate::wire::schema::Schemas;

/// Something that can be published: `#[objbus::object]` implements it, and a [`MethodTable`] of closures is one.
///
/// # Example
///
/// ```
/// struct Math;
///
/// #[objbus::object]
/// impl Math {
///     pub fn pow(&self, x: f64, y: f64) -> f64 {
///         x.powf(y)
///     }
/// }
///
/// let table = objbus::Object::table(std::sync::Arc::new(Math));
/// assert_eq!(table.description().methods[0].name, "pow");
/// ```
///
/// It is published with `bus.publish("math", Math)`, and called through the `MathProxy` that the macro makes.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an object that can be published",
    note = "put `#[objbus::object]` on its `impl` block",
    note = "an implementor of a trait with `#[objbus::interface]` is published as `<Trait>Object(value)`"
)]
pub trait Object: Send + Sync + 'static {
    /// The object's methods, each holding on to the object.
    fn table(self: Arc<Self>) -> MethodTable;
}

impl Object for MethodTable {
    fn table(self: Arc<Self>) -> MethodTable {
        MethodTable::clone(&self)
    }
}

/// The caller's side of an object: `#[objbus::object]` and `#[objbus::interface]` generate one.
pub trait Proxy: Sized {
    /// The methods that the proxy calls, in the order of their indices.
    fn interface() -> Interface;

    /// The same as the macro has it: the name of the type, and its methods.
    #[doc(hidden)]
    fn methods() -> (&'static str, &'static [MethodSpec]) {
        ("", &[])
    }

    /// A proxy that calls through `handle`.
    fn from_handle(handle: Handle) -> Self;

    /// The handle it calls through: the name, who the owner is, what the object can do.
    fn handle(&self) -> &Handle;

    /// The instances that share the name, as far as the proxy may call them, at present: their process ids, users and tags, and
    /// a proxy bound to each. Somebody who has the name for itself is the only one.
    ///
    /// ```
    /// # struct Counter(u64);
    /// # #[objbus::object] impl Counter { pub fn number(&self) -> u64 { self.0 } }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use objbus::{Bus, Instance};
    /// use objbus::Proxy;
    ///
    /// # let bus = Bus::in_memory();
    /// # let _one = bus.publish_as("counter", Counter(1), Instance::new().tag("eu"))?;
    /// # let _two = bus.publish_as("counter", Counter(2), Instance::new().tag("us"))?;
    /// let counter: CounterProxy = bus.proxy("counter").wait()?;
    /// let mut numbers = Vec::new();
    /// for instance in counter.instances().wait() {
    ///     numbers.push((instance.tag().map(str::to_owned), instance.proxy().number().wait()?));
    /// }
    /// numbers.sort();
    /// assert_eq!(numbers, [(Some("eu".to_owned()), 1), (Some("us".to_owned()), 2)]);
    /// # Ok(()) }
    /// ```
    fn instances(&self) -> Instances<Self> {
        Instances::new(self.handle())
    }

    /// Calls every instance of the name, all at once: which answered what, or why it did not.
    ///
    /// ```
    /// # struct Cache;
    /// # #[objbus::object] impl Cache { pub fn forget(&self, key: String) -> bool { key.is_empty() } }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use objbus::{Bus, Instance};
    /// use objbus::Proxy;
    ///
    /// # let bus = Bus::in_memory();
    /// # let _one = bus.publish_as("cache", Cache, Instance::new())?;
    /// # let _two = bus.publish_as("cache", Cache, Instance::new())?;
    /// let cache: CacheProxy = bus.proxy("cache").wait()?;
    /// let answers = cache.call_all(|one| one.forget("stale".to_owned())).wait(); // or .await
    /// assert_eq!(answers.len(), 2);
    /// for (instance, answer) in answers {
    ///     println!("process {}: {}", instance.pid(), answer?);
    /// }
    /// # Ok(()) }
    /// ```
    fn call_all<T, E, F>(&self, make: F) -> CallAll<Self, T, E, F>
    where
        T: DeserializeOwned + 'static,
        E: OwnError,
        F: Fn(&Self) -> Call<T, E>,
    {
        CallAll::new(self.handle(), make)
    }

    /// The same with another time-out for its calls. For the plain methods of an interface, which give no
    /// [`Call`](crate::Call) that could have one of its own.
    #[must_use]
    fn with_timeout(self, timeout: Duration) -> Self {
        Self::from_handle(self.handle().clone().with_timeout(timeout))
    }
}

/// The methods that a proxy was built to call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The name of the object's type or trait.
    pub type_name: &'static str,
    /// Name and key of each method, at the index by which the proxy calls it.
    pub methods: Vec<(&'static str, u64)>,
}

impl Interface {
    /// The interface with these methods.
    pub fn of(type_name: &'static str, methods: &[MethodSpec]) -> Interface {
        let mut types = Schemas::default();
        let methods = methods.iter().map(|method| (method.name, method.signature(&mut types).key)).collect();
        Interface { type_name, methods }
    }
}
