//! How a lane ends: what its socket and its owner's process say, and who must hear of it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::{Fate, Lane, Orphans};
use crate::channel::Ending;
use crate::engine::Engine;
use crate::parcels::Resident;
use crate::ring::caller::Look;
use crate::ring::layout::{BROKEN, CLOSING, REPLACED, SLOTS};
use crate::sys::clock;

/// How long the socket's end may come before the news of its process's death.
const DYING_NS: u64 = 50_000_000;
/// How often sleepers are told of an end until the last of them has heard.
const RETELL_NS: u64 = 200_000;

impl Lane {
    /// Ends the lane with `fate`, unless it has a final one, and tells everybody who waits.
    #[cold]
    pub fn end(&self, fate: Fate) {
        let changed = self.fate.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| {
            (!Fate::from_word(now).is_final() && Fate::from_word(now) != fate).then_some(fate as u32)
        });
        if changed.is_err() || !fate.is_final() {
            return;
        }
        self.wake_tasks();
        self.parcels.channels().end(match fate {
            Fate::OwnerDied => Ending::Died,
            Fate::Unpublished | Fate::Replaced => Ending::Unpublished,
            Fate::Broken => Ending::Broken,
            Fate::Closed => Ending::Closed,
            Fate::Lost | Fate::Open | Fate::Dying => Ending::Lost,
        });
        self.retell();
        self.exports.end();
        if let Some(link) = self.link.upgrade() {
            link.retire(self);
        }
    }

    /// A wake may fall between a sleeper's look at the fate and its sleep, so it is repeated until nobody is left.
    fn retell(&self) {
        (0..SLOTS).for_each(|slot| self.ring.wake(slot));
        if self.sleepers.load(Ordering::SeqCst) == 0 {
            return;
        }
        let lane = Weak::clone(&self.this);
        self.engine.alarm(clock::now_ns() + RETELL_NS, move |_| {
            if let Some(lane) = lane.upgrade() {
                lane.retell();
            }
        });
    }

    /// What the end of the socket means, for who met it before the watcher did.
    #[cold]
    pub fn heard_end(self: &Arc<Self>) -> Fate {
        if !self.fate().is_final() {
            self.socket_ended();
        }
        self.fate()
    }

    /// What the end of the socket means.
    fn socket_ended(self: &Arc<Self>) {
        match self.ring.closing() {
            CLOSING => self.end(Fate::Unpublished),
            REPLACED => self.end(Fate::Replaced),
            BROKEN => self.end(Fate::Broken),
            _ => match self.peer.is_dead() {
                Some(true) | None => self.end(Fate::OwnerDied),
                Some(false) => {
                    self.end(Fate::Dying);
                    let lane = Arc::downgrade(self);
                    // The socket ends a little before the process does. One that lives on has lost its lane otherwise.
                    self.engine.alarm(clock::now_ns() + DYING_NS, move |_| {
                        if let Some(lane) = lane.upgrade() {
                            lane.end(Fate::Lost);
                        }
                    });
                }
            },
        }
    }

    /// Ends this side's calls; what is lent stays so.
    pub fn disconnect(&self) {
        self.end(Fate::Closed);
        self.parcels.end_calls();
    }

    /// The link is gone. Calls of it that nobody waits for may still be in the ring: the lane, and what was lent with
    /// them, stays until the owner has taken them.
    pub fn outlive_link(self: &Arc<Self>, unanswered: u64) {
        *self.orphans.lock() = Some(Orphans { slots: unanswered, _lane: Arc::clone(self) });
        self.reap_orphans();
    }

    /// Disconnects once the link is gone and its last call is answered, or never will be.
    pub(super) fn reap_orphans(&self) {
        // Locked from reading the arm number on: who read an older one is not to write it over a newer.
        let mut orphans = self.orphans.lock();
        let Some(unanswered) = orphans.as_mut().map(|orphans| &mut orphans.slots) else { return };
        let slots: Vec<_> = (0..SLOTS).filter(|slot| *unanswered & 1 << slot != 0).collect();
        // Armed first, and anew with each wake, so that an answer after the look below wakes us again.
        for slot in &slots {
            self.arm_for_reaping(*slot);
        }
        let is_final = self.fate().is_final();
        let mut answered = Vec::new();
        for slot in slots {
            let look = self.ring.look(slot);
            if look != Look::Waiting || is_final {
                *unanswered &= !(1 << slot);
            }
            if look == Look::Answered {
                answered.push(slot);
            }
        }
        let last = orphans.take_if(|orphans| orphans.slots == 0);
        drop(orphans);
        // Not left to the end of the connection: something else that was lent may hold it open.
        answered.into_iter().for_each(|slot| self.discard_answer(slot));
        if last.is_some() {
            self.disconnect();
        }
    }
}

impl Resident for Lane {
    fn woken(&self) {
        self.wake_tasks();
        // What the owner has dropped goes here, where no lock is held.
        if let Some(home) = self.exports.present() {
            home.exports.iter().for_each(|exports| exports.sweep(self.engine));
        }
    }

    fn callback_told(&self, number: u32, is_kept: bool) -> bool {
        let home = self.exports.present();
        let exports = home.as_ref().and_then(|home| home.exports.as_ref());
        exports.iter().for_each(|exports| exports.told(number, is_kept));
        true
    }

    fn violated(&self) {
        self.end(Fate::Broken);
    }

    fn peer_left(self: Arc<Self>, _engine: &'static Engine) {
        self.socket_ended();
    }

    fn peer_died(self: Arc<Self>, _engine: &'static Engine) {
        self.end(Fate::OwnerDied);
    }
}
