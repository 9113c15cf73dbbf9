//! What goes along with a call beside its arguments: halves of channels, and objects that the owner may call back.
//!
//! In the request's body each stands as a number, unique in this process, so that the body does not depend on the lane; what the
//! number means is told over the lane's socket before the request is published.

use std::fmt;
use std::sync::Arc;

use futures_core::Stream;
use serde::Serialize;

use super::callback::Exported;
use super::lane::Lane;
use crate::channel::{ChannelId, ItemReceiver, Place, ReceiveExtra, SendExtra, StreamUpload};
use crate::error::BusError;
use crate::object::Object;

/// One thing that goes along with a call. Dropped with it.
pub(crate) trait Extra: Send + Sync {
    /// Tells the owner at the other end of `lane`. Called before the request is published there: once more where it is sent to a
    /// successor instead, since the former owner did not begin it.
    fn attach(&mut self, lane: &Arc<Lane>) -> Result<(), BusError>;

    /// Whether it is there only until the call is answered, so that nobody could use it of one that is sent one way.
    fn ends_with_answer(&self) -> bool {
        false
    }
}

/// What goes along with one call; nothing, for most. For generated code.
#[derive(Default)]
pub struct Extras(Vec<Box<dyn Extra>>);

impl Extras {
    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives the owner an object to call back; the number that stands for it in the request.
    pub fn export(&mut self, object: impl Object) -> u32 {
        let exported = Exported::new(Arc::new(object).table());
        let number = exported.number();
        self.push(exported);
        number
    }

    pub(super) fn end_with_answer(&self) -> bool {
        self.0.iter().any(|extra| extra.ends_with_answer())
    }

    pub(crate) fn push(&mut self, extra: impl Extra + 'static) {
        self.0.push(Box::new(extra));
    }

    /// The owner is to send what its method gives one by one. For generated code.
    pub fn receive(&mut self) -> Receiving {
        let (extra, id, place) = ReceiveExtra::new();
        self.push(extra);
        Receiving { id, place }
    }

    /// The owner's method takes what `stream` gives. For generated code.
    pub fn send<S>(&mut self, stream: S) -> ChannelId
    where
        S: Stream + Send + 'static,
        S::Item: Serialize,
    {
        let (extra, id) = SendExtra::new(StreamUpload::new(stream));
        self.push(extra);
        id
    }

    #[cold]
    pub(super) fn attach(&mut self, lane: &Arc<Lane>) -> Result<(), BusError> {
        self.0.iter_mut().try_for_each(|extra| extra.attach(lane))
    }

    #[cold]
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Where the caller of a method finds what that gives one by one. For generated code.
pub struct Receiving {
    id: ChannelId,
    pub(super) place: Place<ItemReceiver>,
}

impl Receiving {
    /// What stands for it behind the arguments.
    pub fn id(&self) -> ChannelId {
        self.id
    }
}

impl fmt::Debug for Receiving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receiving({:?})", self.id)
    }
}

impl fmt::Debug for Extras {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Extras({})", self.0.len())
    }
}
