//! Channels: items that go one way beside a lane's calls. What streams, uploads and events are made of.
//!
//! The caller of a method makes its half and announces it on the lane's socket (OFFER) before the request whose body names it
//! by a number; the owner claims it while it decodes the arguments, makes the other half and sends that (ACCEPT). Then the two
//! rings of [`ring::channel`](crate::ring::channel) are all that is needed; over the socket go the wakes of who sleeps, and one
//! word when a side ends that the other may not hear of otherwise (CHANNEL_END).
//!
//! Blobs and large bodies are leases of the lane's, as a call's are. Those of items that were sent and never taken go back to
//! the sender once the receiver has closed: its last word on how much it took tells which.

mod item;
mod offer;
mod pump;
mod receiver;
mod sender;
mod table;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use parking_lot::Mutex;

use crate::blob::limit::{Charge, NoMemory};
use crate::error::{BusError, CallError, Executed};
use crate::parcels::{PackError, Parcels};
use crate::park::wake_all;
use crate::ring::channel::{ReceiverMemory, SenderMemory};
use crate::sys::fd::Fd;
use crate::sys::memfd::Mapping;
use crate::wire::budget::Budget;

pub(crate) use item::EncodedItem;
pub use offer::ChannelId;
pub(crate) use offer::{Homed, Place, ReceiveExtra, SendExtra, Upload, claim_receiver, claim_sender};
pub(crate) use pump::{Pump, StreamUpload};
pub(crate) use receiver::{Item, ItemReceiver};
pub(crate) use sender::{ItemSender, Push};
pub(crate) use table::{Channels, Half};

/// A number for a channel that no other of this process has had, as far as 32 bits tell.
pub(crate) fn fresh_id() -> u32 {
    static IDS: AtomicU32 = AtomicU32::new(1);
    IDS.fetch_add(1, Ordering::Relaxed)
}

/// Why a channel has ended, as one end knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Ending {
    /// It has not.
    #[default]
    Open = 0,
    /// The peer has let go of its end.
    PeerClosed = 1,
    /// The peer's process is dead.
    Died = 2,
    Unpublished = 3,
    Broken = 4,
    /// The connection has ended, for no reason known.
    Lost = 5,
    /// It was closed on this side.
    Closed = 6,
}

impl Ending {
    fn from_byte(byte: u8) -> Ending {
        use Ending::*;
        [Open, PeerClosed, Died, Unpublished, Broken, Lost, Closed][byte as usize % 7]
    }

    /// What a receiver is told of it.
    #[cold]
    pub fn error(self) -> BusError {
        let executed = Executed::Unknown;
        match self {
            Ending::Died => CallError::OwnerDied { executed },
            Ending::Unpublished => CallError::Unpublished { executed },
            Ending::Broken => CallError::ProtocolViolation { executed },
            Ending::Lost => CallError::Disconnected { executed },
            Ending::Open | Ending::PeerClosed | Ending::Closed => CallError::Cancelled { executed },
        }
    }
}

/// What keeps the lane of a channel, and what it allows.
pub(crate) trait Home: Send + Sync {
    fn parcels(&self) -> &Arc<Parcels>;
    fn budget(&self) -> &Budget;
    fn body_limit(&self) -> u64;
    /// Takes so much of what may be copied here.
    fn charge(&self, bytes: u64) -> Result<Charge, NoMemory>;
    /// Whether this process may look for its peer without sleeping.
    fn spins(&self) -> bool;
}

/// What the two users of one end share: the end itself, on a thread or a task, and who hears of the peer.
pub(crate) struct Core {
    pub id: u32,
    pub parcels: Arc<Parcels>,
    /// A [`SenderMemory`] or a [`ReceiverMemory`], and the other once the peer has sent it.
    mine: Mapping,
    theirs: OnceLock<Mapping>,
    /// The peer has heard of the channel.
    is_told: AtomicBool,
    ending: AtomicU8,
    arm: AtomicU32,
    /// Woken when there is something to take, or room.
    waker: Mutex<Option<Waker>>,
    /// Woken when the channel ends.
    at_end: Mutex<Option<Waker>>,
    /// What a sender that is gone had sent and lent; see [`sender`].
    left: Mutex<Option<sender::Left>>,
}

impl Core {
    /// `None`: the lane's end is too near to hold anything on it.
    fn new(parcels: &Arc<Parcels>, id: u32, mine: Mapping, theirs: Option<Mapping>) -> Option<Core> {
        if !parcels.hold() {
            return None;
        }
        Some(Core {
            id,
            parcels: Arc::clone(parcels),
            mine,
            is_told: AtomicBool::new(theirs.is_some()),
            theirs: theirs.map_or_else(OnceLock::new, OnceLock::from),
            ending: AtomicU8::new(Ending::Open as u8),
            arm: AtomicU32::new(0),
            waker: Mutex::new(None),
            at_end: Mutex::new(None),
            left: Mutex::new(None),
        })
    }

    pub fn ending(&self) -> Ending {
        Ending::from_byte(self.ending.load(Ordering::SeqCst))
    }

    /// Ends this side, if it has not; who is to hear of it.
    #[must_use]
    fn end(&self, ending: Ending) -> [Option<Waker>; 2] {
        let open = Ending::Open as u8;
        let _known = self.ending.compare_exchange(open, ending as u8, Ordering::SeqCst, Ordering::SeqCst);
        [self.waker.lock().take(), self.at_end.lock().take()]
    }

    /// Ends this side if the peer has not sent its half.
    pub fn end_unaccepted(&self) {
        if self.theirs.get().is_none() {
            wake_ended(self.end(Ending::Closed));
        }
    }

    fn next_arm(&self) -> u32 {
        // 0 stands for nobody.
        match self.arm.fetch_add(1, Ordering::Relaxed).wrapping_add(1) {
            0 => self.next_arm(),
            arm => arm,
        }
    }

    /// Wakes this waker from now on; then look again, at [`ending`](Self::ending) too.
    fn set_waker(&self, waker: &Waker) {
        set(&self.waker, waker);
    }

    /// Wakes this waker when the channel ends; then look whether it has.
    pub fn set_at_end(&self, waker: &Waker) {
        set(&self.at_end, waker);
    }

    /// Forgets who is to be woken.
    fn clear_wakers(&self) {
        let forgotten = [self.waker.lock().take(), self.at_end.lock().take()];
        // Without the locks: with it may go the last of a task.
        drop(forgotten);
    }

    /// Offers our half, `memory`, to the owner.
    fn offer(&self, half: Half, memory: &Fd) -> Result<(), PackError> {
        self.parcels.offer(self.id, half, memory)?;
        self.is_told.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Tells the peer, if it has heard of the channel, that we have let go of our end.
    fn tell_end(&self) {
        if self.is_told.load(Ordering::Relaxed) {
            self.parcels.send_channel_end(self.id);
        }
    }

    fn wake_peer(&self) {
        self.parcels.send_channel_wake(self.id);
    }
}

fn set(place: &Mutex<Option<Waker>>, waker: &Waker) {
    let mut place = place.lock();
    if place.as_ref().is_none_or(|old| !old.will_wake(waker)) {
        let former = place.replace(waker.clone());
        drop(place);
        drop(former);
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.parcels.release();
    }
}

/// The size of a half's memory.
fn memory_len(half: Half) -> usize {
    match half {
        Half::Sender => size_of::<SenderMemory>(),
        Half::Receiver => size_of::<ReceiverMemory>(),
    }
}

fn wake_ended(wakers: [Option<Waker>; 2]) {
    wake_all(wakers.into_iter().flatten());
}
