//! How a channel comes about: what the caller offers along with a call, and the owner claims.

use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;
use serde::{Serialize, Serializer};

use super::table::NoHalf;
use super::{Half, Home, ItemReceiver, ItemSender, fresh_id};
use crate::blob::limit::{Charge, NoMemory};
use crate::error::{BusError, CallError, Executed};
use crate::object::Refusal;
use crate::owner::context;
use crate::owner::lane::OwnerLane;
use crate::parcels::{PackError, Parcels};
use crate::proxy::{Extra, Lane, Link};
use crate::ring::channel::{ReceiverMemory, SenderMemory};
use crate::sys::fd::Fd;
use crate::sys::memfd::{self, Mapping};
use crate::wire::budget::Budget;

/// The caller's lane, kept with its link.
pub(crate) struct CallersHome {
    lane: Arc<Lane>,
    link: Arc<Link>,
}

impl Home for CallersHome {
    fn parcels(&self) -> &Arc<Parcels> {
        &self.lane.parcels
    }

    fn budget(&self) -> &Budget {
        self.link.bus.budget()
    }

    fn body_limit(&self) -> u64 {
        self.link.bus.body_limit()
    }

    fn charge(&self, bytes: u64) -> Result<Charge, NoMemory> {
        self.link.bus.copies_held.charge(bytes)
    }

    fn spins(&self) -> bool {
        self.link.bus.spins()
    }
}

impl Home for OwnerLane {
    fn parcels(&self) -> &Arc<Parcels> {
        &self.parcels
    }

    fn budget(&self) -> &Budget {
        &self.object.budget
    }

    fn body_limit(&self) -> u64 {
        self.object.rules.limits.body_bytes
    }

    fn charge(&self, bytes: u64) -> Result<Charge, NoMemory> {
        self.charge(bytes)
    }

    fn spins(&self) -> bool {
        self.object.bus.upgrade().is_some_and(|bus| bus.spins())
    }
}

/// An end with what keeps its lane.
pub(crate) struct Homed<E> {
    pub end: E,
    pub home: Arc<dyn Home>,
}

/// Where a call's caller finds its end of the channel that goes along with it.
pub(crate) type Place<E> = Arc<Mutex<Option<Homed<E>>>>;

/// Stands for a channel in the body of a request.
#[derive(Clone, Copy, Debug)]
pub struct ChannelId(pub(crate) u32);

impl Serialize for ChannelId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}

/// A call's caller takes what the owner sends.
pub(crate) struct ReceiveExtra {
    id: u32,
    place: Place<ItemReceiver>,
}

impl ReceiveExtra {
    pub fn new() -> (ReceiveExtra, ChannelId, Place<ItemReceiver>) {
        let (id, place) = (fresh_id(), Place::default());
        (ReceiveExtra { id, place: Arc::clone(&place) }, ChannelId(id), place)
    }
}

impl Extra for ReceiveExtra {
    fn attach(&mut self, lane: &Arc<Lane>) -> Result<(), BusError> {
        let former = self.place.lock().take();
        // First: on the same lane it would take the new one with it.
        drop(former);
        let home = home_of(lane)?;
        let (mine, fd) = make(size_of::<ReceiverMemory>()).map_err(unsent)?;
        let end = ItemReceiver::new(&lane.parcels, self.id, mine, None).map_err(unentered)?;
        end.offer(&fd).map_err(unsent)?;
        *self.place.lock() = Some(Homed { end, home });
        Ok(())
    }
}

/// What a call's caller does with the end that sends, once the call is on its way.
pub(crate) trait Upload: Send + Sync + 'static {
    /// The call goes out on a lane; what was begun on a former one is to stop.
    fn begin(&mut self, sender: Homed<ItemSender>);
}

/// A call's caller sends what the owner takes.
pub(crate) struct SendExtra<U> {
    id: u32,
    upload: U,
}

impl<U: Upload> SendExtra<U> {
    pub fn new(upload: U) -> (SendExtra<U>, ChannelId) {
        let id = fresh_id();
        (SendExtra { id, upload }, ChannelId(id))
    }
}

impl<U: Upload> Extra for SendExtra<U> {
    fn attach(&mut self, lane: &Arc<Lane>) -> Result<(), BusError> {
        let home = home_of(lane)?;
        let (mine, fd) = make(size_of::<SenderMemory>()).map_err(unsent)?;
        let end = ItemSender::new(&lane.parcels, self.id, mine, None).map_err(unentered)?;
        end.offer(&fd).map_err(unsent)?;
        self.upload.begin(Homed { end, home });
        Ok(())
    }
}

fn home_of(lane: &Arc<Lane>) -> Result<Arc<dyn Home>, BusError> {
    let link = lane.link().ok_or(CallError::Disconnected { executed: Executed::No })?;
    Ok(Arc::new(CallersHome { lane: Arc::clone(lane), link }))
}

fn make(len: usize) -> Result<(Mapping, Fd), PackError> {
    memfd::create_sealed("objbus-channel", len).map_err(|_: Errno| PackError::NoMemory)
}

#[cold]
fn unsent(error: PackError) -> BusError {
    match error {
        PackError::NoMemory => CallError::NoMemory { executed: Executed::No },
        PackError::Ended => CallError::Disconnected { executed: Executed::No },
    }
}

#[cold]
fn unentered(error: NoHalf) -> BusError {
    unsent(match error {
        NoHalf::NoMemory => PackError::NoMemory,
        NoHalf::Gone => PackError::Ended,
    })
}

/// Claims the channel `id` of the call being served, to send to its caller.
pub(crate) fn claim_sender(id: u32) -> Result<Homed<ItemSender>, Refusal> {
    let lane = context::current_lane().ok_or(Refusal::Cancelled)?;
    let claimed = claim(&lane, id, Half::Receiver, |mine, theirs| {
        ItemSender::new(&lane.parcels, id, mine, Some(theirs))
    });
    claimed.map(|end| Homed { end, home: lane }).map_err(unclaimed)
}

/// Claims the channel `id` of the call being served, to take what its caller sends.
pub(crate) fn claim_receiver(id: u32) -> Result<Homed<ItemReceiver>, Refusal> {
    let lane = context::current_lane().ok_or(Refusal::Cancelled)?;
    let claimed = claim(&lane, id, Half::Sender, |mine, theirs| {
        ItemReceiver::new(&lane.parcels, id, mine, Some(theirs))
    });
    claimed.map(|end| Homed { end, home: lane }).map_err(unclaimed)
}

fn claim<E>(
    lane: &OwnerLane,
    id: u32,
    theirs: Half,
    make_end: impl FnOnce(Mapping, Mapping) -> Result<E, NoHalf>,
) -> Result<E, NoHalf> {
    let (parcels, channels) = (&lane.parcels, lane.parcels.channels());
    // Offered before the request was published; another thread may hold the message in its hands.
    if !channels.is_offered(id) {
        parcels.hear();
    }
    let memory = channels.claim(id, theirs)?;
    let len = match theirs {
        Half::Receiver => size_of::<SenderMemory>(),
        Half::Sender => size_of::<ReceiverMemory>(),
    };
    let (mine, fd) = make(len).map_err(|_| NoHalf::NoMemory)?;
    let end = make_end(mine, memory)?;
    match parcels.accept(id, &fd) {
        Ok(()) => Ok(end),
        Err(PackError::Ended) => Err(NoHalf::Gone),
        Err(PackError::NoMemory) => Err(NoHalf::NoMemory),
    }
}

/// A caller that gave the call up takes its offer back, which may come first; nobody waits for the answer then.
fn unclaimed(error: NoHalf) -> Refusal {
    match error {
        NoHalf::Gone => Refusal::Cancelled,
        NoHalf::NoMemory => Refusal::NoRoom,
    }
}
