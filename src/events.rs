//! Events and watched properties: what an object tells its subscribers by itself.
//!
//! [`event`] is what an object keeps, [`subscribers`] who is told, [`queue`] what waits for one that lags; [`subscribe`] is the
//! other end. A subscription is a stream whose producer is the event: the method's call takes one argument that no user sees, how the
//! subscriber may lag.

mod event;
mod gap;
mod pause;
mod queue;
mod subscribe;
mod subscribers;

#[cfg(test)]
mod tests;

use crate::object::{Concluded, Invocation};
use crate::wire::schema::{Schemas, Type, TypeRef};

pub use event::{Event, Watched};
pub use gap::{EmitError, Gap};
pub use queue::Lag;
pub use subscribe::{Events, Subscribe, Watch};

/// What a method returns that is subscribed to instead of called. For generated code.
pub trait Told {
    /// Of the method's result.
    fn schema(types: &mut Schemas) -> TypeRef;

    /// Serves one subscription.
    fn serve(&self, call: Invocation<'_>) -> Concluded;
}

fn event_schema<T: Type>(types: &mut Schemas) -> TypeRef {
    TypeRef::Event(Box::new(T::schema(types)))
}

fn watched_schema<T: Type>(types: &mut Schemas) -> TypeRef {
    TypeRef::Watched(Box::new(T::schema(types)))
}
