//! How a lane ends: what its socket and its owner's process say, and who must hear of it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use rustix::event::epoll::EventFlags;

use super::{EVENTS, Fate, Lane};
use crate::engine::{Engine, Source};
use crate::parcels::{News, REST_NS};
use crate::peer::Mourner;
use crate::ring::caller::Look;
use crate::ring::layout::{BROKEN, CLOSING, REPLACED, SLOTS};
use crate::sys::{clock, socket};

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
        self.retell();
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

    /// Ends this side: frees what the engine holds, and ends the socket for every process that has it.
    pub fn disconnect(&self) {
        self.unwatch();
        socket::shutdown(&self.parcels.socket);
        self.end(Fate::Closed);
    }

    fn unwatch(&self) {
        if let Some(token) = self.token.lock().take() {
            self.engine.remove(token, &self.parcels.socket);
        }
    }

    /// Does not listen to the socket for a while: its owner sends more than it needs to. Its death is heard all the same.
    #[cold]
    fn rest(&self) {
        self.engine.mute(&self.parcels.socket);
        let lane = Weak::clone(&self.this);
        self.engine.alarm(clock::now_ns() + REST_NS, move |engine| {
            let Some(lane) = lane.upgrade() else { return };
            // Locked, so that an end of the lane comes before or after, not between.
            if let Some(token) = *lane.token.lock() {
                let _ = engine.unmute(token, &lane.parcels.socket, EVENTS);
            }
        });
    }

    /// The link is gone. Calls of it that nobody waits for may still be in the ring: the lane, and what was lent with
    /// them, stays until the owner has taken them.
    pub fn outlive_link(&self, unanswered: u64) {
        *self.orphans.lock() = Some(unanswered);
        self.reap_orphans();
    }

    /// Disconnects once the link is gone and its last call is answered.
    pub(super) fn reap_orphans(&self) {
        // Locked from reading the arm number on: who read an older one is not to write it over a newer.
        let mut orphans = self.orphans.lock();
        let Some(unanswered) = *orphans else { return };
        let slots = || (0..SLOTS).filter(|slot| unanswered & 1 << slot != 0);
        // Armed first, and anew with each wake, so that an answer after the look below wakes us again.
        for slot in slots() {
            self.arm_for_reaping(slot);
        }
        let left = slots().filter(|slot| self.ring.look(*slot) == Look::Waiting);
        let left = left.fold(0, |bits, slot| bits | 1_u64 << slot);
        *orphans = (left != 0).then_some(left);
        drop(orphans);
        if left == 0 {
            self.disconnect();
        }
    }

    /// Acts on what the socket brought, for who read it.
    pub fn take_news(&self, news: News) {
        if news.violated {
            self.end(Fate::Broken);
        } else if news.woken {
            self.wake_tasks();
        }
    }
}

impl Source for Lane {
    fn ready(self: Arc<Self>, _engine: &'static Engine, events: EventFlags) {
        let news = self.parcels.read_socket();
        self.take_news(news);
        if news.more {
            self.rest();
        } else if news.ended || news.violated || events.intersects(EventFlags::HUP | EventFlags::ERR) {
            self.unwatch();
            self.socket_ended();
        }
    }
}

impl Mourner for Lane {
    fn peer_died(self: Arc<Self>, _engine: &'static Engine) {
        // What it sent before it died is read first: a response may refer to it.
        while !self.fate().is_final() {
            let news = self.parcels.read_socket();
            self.take_news(news);
            if !news.more {
                break;
            }
        }
        self.end(Fate::OwnerDied);
    }
}
