//! The channels of one lane, at one of its ends: halves offered and not claimed, and ends in use.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Weak};
use std::task::Waker;

use parking_lot::Mutex;

use super::{Core, Ending, memory_len, wake_ended};
use crate::park::wake_all;
use crate::sys::closer::Foreign;
use crate::sys::memfd::{self, BadSegment, Mapping};

/// Halves that lie unclaimed on one lane; more are not taken in.
const OFFERS_MAX: usize = 256;
/// Channels of one lane.
const ENDS_MAX: usize = 4096;

/// Which half of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Half {
    Sender = 0,
    Receiver = 1,
}

/// Why a half that a request names cannot be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoHalf {
    /// Its caller has given it up, or never offered it; or the lane has ended.
    Gone,
    /// There was no memory for it, or a limit was reached.
    NoMemory,
}

#[derive(Default)]
pub(crate) struct Channels {
    table: Mutex<Table>,
    /// To be woken once nothing is locked any more.
    wakers: Mutex<Vec<Waker>>,
}

#[derive(Default)]
struct Table {
    ending: Ending,
    offers: HashMap<u32, (Half, Mapping)>,
    ends: HashMap<u32, Kept>,
    /// An offer was not taken in: a number that is not known is no proof of a lie then.
    has_lost: bool,
}

/// An end in use. A sender's is kept beyond its own end, until it is known what of it was taken.
enum Kept {
    Sender(Arc<Core>),
    Receiver(Weak<Core>),
}

impl Kept {
    fn core(&self) -> Option<Arc<Core>> {
        match self {
            Kept::Sender(core) => Some(Arc::clone(core)),
            Kept::Receiver(core) => core.upgrade(),
        }
    }
}

impl Channels {
    /// Enters an end. Why not, if the lane has ended or has too many.
    pub fn enter(&self, core: &Arc<Core>, half: Half) -> Result<(), NoHalf> {
        let mut table = self.table.lock();
        if table.ending != Ending::Open {
            return Err(NoHalf::Gone);
        }
        if table.ends.len() >= ENDS_MAX {
            return Err(NoHalf::NoMemory);
        }
        let kept = match half {
            Half::Sender => Kept::Sender(Arc::clone(core)),
            Half::Receiver => Kept::Receiver(Arc::downgrade(core)),
        };
        table.ends.insert(core.id, kept);
        Ok(())
    }

    /// Forgets an end.
    pub fn leave(&self, id: u32) {
        let left = self.table.lock().ends.remove(&id);
        drop(left);
    }

    /// Runs `f` while the peer's word that it has closed is not acted on.
    pub fn locked<R>(&self, f: impl FnOnce() -> R) -> R {
        let _table = self.table.lock();
        f()
    }

    /// Takes an offered half.
    pub fn claim(&self, id: u32, half: Half) -> Result<Mapping, NoHalf> {
        let mut table = self.table.lock();
        let has_lost = table.has_lost;
        match table.offers.entry(id) {
            Entry::Occupied(offer) if offer.get().0 == half => Ok(offer.remove().1),
            _ if has_lost => Err(NoHalf::NoMemory),
            _ => Err(NoHalf::Gone),
        }
    }

    /// Whether the half lies there to be claimed.
    pub fn is_offered(&self, id: u32) -> bool {
        self.table.lock().offers.contains_key(&id)
    }

    /// The peer offers a half. `None`: no honest one does.
    pub fn offered(&self, id: u32, half: u8, fd: Foreign) -> Option<()> {
        let half = [Half::Sender, Half::Receiver].into_iter().find(|known| *known as u8 == half)?;
        if !fd.is_memory() {
            return None;
        }
        let mut table = self.table.lock();
        if table.offers.contains_key(&id) || table.ends.contains_key(&id) {
            return None;
        }
        if table.ending != Ending::Open || table.offers.len() >= OFFERS_MAX {
            table.has_lost = true;
            return Some(());
        }
        match memfd::receive_sealed(fd, memory_len(half)) {
            Ok(mapping) => drop(table.offers.insert(id, (half, mapping))),
            Err(BadSegment::System(_)) => table.has_lost = true,
            Err(BadSegment::Untrusted(_)) => return None,
        }
        Some(())
    }

    /// The peer has claimed what we offered, and sends its half. `None`: no honest one does.
    pub fn accepted(&self, id: u32, fd: Foreign) -> Option<()> {
        if !fd.is_memory() {
            return None;
        }
        let (core, half) = {
            let table = self.table.lock();
            // Given up meanwhile.
            let Some(kept) = table.ends.get(&id) else { return Some(()) };
            let theirs = if matches!(kept, Kept::Sender(_)) { Half::Receiver } else { Half::Sender };
            (kept.core(), theirs)
        };
        let Some(core) = core else { return Some(()) };
        match memfd::receive_sealed(fd, memory_len(half)) {
            Ok(mapping) => core.theirs.set(mapping).ok()?,
            Err(BadSegment::System(_)) => self.to_wake(core.end(Ending::Lost)),
            Err(BadSegment::Untrusted(_)) => return None,
        }
        let waker = core.waker.lock().take();
        self.wakers.lock().extend(waker);
        Some(())
    }

    /// The peer wakes who waits.
    pub fn woken(&self, id: u32) {
        let core = self.table.lock().ends.get(&id).and_then(Kept::core);
        let waker = core.and_then(|core| core.waker.lock().take());
        self.wakers.lock().extend(waker);
    }

    /// The peer has let go of its half, or of one that it had offered.
    pub fn peer_ended(&self, id: u32) {
        let mut table = self.table.lock();
        let offer = table.offers.remove(&id);
        let core = table.ends.get(&id).and_then(Kept::core);
        let mut left = None;
        if let Some(core) = &core {
            self.to_wake(core.end(Ending::PeerClosed));
            left = core.left.lock().take();
        }
        let kept = if left.is_some() { table.ends.remove(&id) } else { None };
        drop(table);
        if let Some((core, left)) = core.as_ref().zip(left) {
            left.settle(core);
        }
        drop((offer, kept));
    }

    /// The lane has ended: so have all its channels, and there are no new ones.
    pub fn end(&self, ending: Ending) {
        let (ends, offers) = {
            let mut table = self.table.lock();
            if table.ending == Ending::Open {
                table.ending = ending;
            }
            (std::mem::take(&mut table.ends), std::mem::take(&mut table.offers))
        };
        for core in ends.values().filter_map(Kept::core) {
            wake_ended(core.end(ending));
        }
        drop((ends, offers));
    }

    fn to_wake(&self, wakers: [Option<Waker>; 2]) {
        self.wakers.lock().extend(wakers.into_iter().flatten());
    }

    /// Wakes who is to be; not to be called under a lock.
    pub fn wake(&self) {
        let wakers = std::mem::take(&mut *self.wakers.lock());
        wake_all(wakers);
    }
}
