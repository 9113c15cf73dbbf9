//! The owner's end of one lane: one caller process and one published object.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering, fence};

use parking_lot::Mutex;
use rustix::event::epoll::EventFlags;

use super::hosted::Hosted;
use crate::blob::arena::Chunk;
use crate::blob::limit::{Charge, NoMemory};
use crate::engine::{Engine, Source, Token};
use crate::parcels::{News, Parcels, REST_NS};
use crate::peer::{Mourner, Peer};
use crate::ring::layout::{AWAKE, CLOSING, ON_FUTEX, OPEN, REPLACED, ResponseMeta};
use crate::ring::owner::OwnerRing;
use crate::sys::eventfd::Doorbell;
use crate::sys::memfd::Mapping;
use crate::sys::{clock, socket};

/// What is waited for at the socket.
const EVENTS: EventFlags = EventFlags::IN.union(EventFlags::RDHUP);

/// The caller is there.
const LIVE: u8 = 0;
/// The caller is gone: what it published is still run, nothing new comes.
const GONE: u8 = 1;
/// The caller broke the protocol, or all is over: nothing is taken any more.
const CLOSED: u8 = 2;

/// Bodies in a row that did not decode, after which a caller is taken for broken.
const BAD_REQUESTS_MAX: u32 = 10;

pub(crate) struct OwnerLane {
    pub ring: OwnerRing,
    /// Under the ring's pointers; dropped after it.
    _memory: [Mapping; 2],
    pub object: Arc<Hosted>,
    pub peer: Arc<Peer>,
    pub parcels: Parcels,
    pub doorbell: Doorbell,
    /// Per method, whether this caller may not call it; `None`: it may call all.
    pub denied: Option<Box<[bool]>>,
    /// The last answer had to wake its caller, who needs a while to come back.
    pub woke_caller: AtomicBool,
    /// Rings in a row without a request.
    pub empty_rings: AtomicU32,
    /// Names the lane in the pool's epoll set.
    pub bell_token: u64,
    state: AtomicU8,
    /// The last arm number that a wake was sent for.
    woken_arm: AtomicU32,
    bad_requests: AtomicU32,
    /// Per slot its last spilled answer, until the caller has copied it.
    spilled: Mutex<HashMap<usize, Spilled>>,
    /// Whether there ever was one.
    has_spilled: AtomicBool,
    socket_token: Mutex<Option<Token>>,
}

/// An answer in the arena.
struct Spilled {
    wanted: u32,
    _chunk: Chunk,
    /// Taken of what the caller may have in flight.
    _charge: Charge,
}

/// What a lane is made of, after the handshake.
pub(crate) struct Parts {
    pub ring: OwnerRing,
    pub memory: [Mapping; 2],
    pub object: Arc<Hosted>,
    pub peer: Arc<Peer>,
    pub parcels: Parcels,
    pub doorbell: Doorbell,
    pub denied: Option<Box<[bool]>>,
    pub bell_token: u64,
}

impl OwnerLane {
    pub fn new(parts: Parts) -> OwnerLane {
        OwnerLane {
            ring: parts.ring,
            _memory: parts.memory,
            object: parts.object,
            peer: parts.peer,
            parcels: parts.parcels,
            doorbell: parts.doorbell,
            denied: parts.denied,
            woke_caller: AtomicBool::new(false),
            empty_rings: AtomicU32::new(0),
            bell_token: parts.bell_token,
            state: AtomicU8::new(LIVE),
            woken_arm: AtomicU32::new(AWAKE),
            bad_requests: AtomicU32::new(0),
            spilled: Mutex::default(),
            has_spilled: AtomicBool::new(false),
            socket_token: Mutex::new(None),
        }
    }

    /// Starts to watch the caller's end and its process.
    pub fn watch(self: &Arc<Self>, engine: &'static Engine) -> Result<(), rustix::io::Errno> {
        *self.socket_token.lock() = Some(engine.add(&self.parcels.socket, EVENTS, self.clone())?);
        self.peer.on_death(engine, self);
        Ok(())
    }

    /// Whether requests may be taken: the caller is there, or what it left is to be drained.
    #[inline(always)]
    pub fn is_open(&self) -> bool {
        self.state.load(Ordering::Relaxed) != CLOSED
    }

    /// Whether nobody reads answers any more.
    pub fn is_abandoned(&self) -> bool {
        self.state.load(Ordering::Acquire) != LIVE
    }

    /// Whether nobody waits for the answer of this call any more.
    pub fn is_given_up(&self, slot: usize, wanted: u32) -> bool {
        self.is_abandoned() || self.ring.is_withdrawn(slot, wanted)
    }

    /// Publishes the response in the slot's body and wakes who waits, as far as seen without a fence. Then
    /// [`after_answers`](Self::after_answers).
    #[inline(always)]
    pub fn answer(&self, slot: usize, wanted: u32, meta: ResponseMeta, len: u32) {
        self.ring.answer(slot, wanted, meta, len);
        self.ring.sleepers(1 << slot, |slot, who| self.wake(slot, who));
    }

    /// One fence for the answers given since the last in the slots of `answered` (bits), and what must follow it.
    #[inline(always)]
    pub fn after_answers(&self, answered: u64) {
        self.ring.after_answers(answered, |slot, who| self.wake(slot, who));
        if self.is_ending() {
            self.settle();
        }
    }

    /// The same for answers that a call was begun after, by the fence of that.
    #[inline(always)]
    pub fn after_beginning(&self, answered: u64) {
        self.ring.sleepers(answered, |slot, who| self.wake(slot, who));
    }

    /// Wakes `who` sleeps on the answer in `slot`, by its sleep word.
    #[cold]
    #[inline(never)]
    fn wake(&self, slot: usize, who: u32) {
        match who {
            ON_FUTEX => {
                self.woke_caller.store(true, Ordering::Relaxed);
                self.ring.wake(slot);
            }
            // One word for all tasks that armed themselves with this number.
            arm => {
                if self.woken_arm.swap(arm, Ordering::AcqRel) != arm {
                    self.parcels.send_wake();
                }
            }
        }
    }

    /// Ends the lane if there is nothing left to do on it.
    ///
    /// It closes under the ring's lock, so that no other worker can begin a call whose caller has seen the lane end and
    /// was told that the call did not run. Whoever holds the lock looks again once it has let go of it.
    #[cold]
    pub fn settle(&self) {
        while self.is_over() {
            let Some(taker) = self.ring.try_lock() else { return };
            if self.is_over() {
                self.state.store(CLOSED, Ordering::Release);
                drop(taker);
                return self.object.lane_is_idle(self);
            }
            drop(taker);
            // Pairs with the fence after an answer: either we see the last one, or who gave it found the lock free.
            fence(Ordering::SeqCst);
        }
    }

    /// Whether the lane is to end and there is nothing left to do on it.
    fn is_over(&self) -> bool {
        self.is_ending() && !self.ring.is_busy() && !(self.is_open() && self.ring.has_request())
    }

    /// Whether the lane may have to be settled: its caller or its object goes.
    #[inline(always)]
    pub fn is_ending(&self) -> bool {
        self.state.load(Ordering::Relaxed) != LIVE || self.object.is_closing()
    }

    /// Takes `bytes` of what the caller's process may have in flight here.
    pub fn charge(&self, bytes: u64) -> Result<Charge, NoMemory> {
        let limit = self.object.rules.limits.in_flight_bytes;
        let charge = || self.peer.holdings.in_flight.charge_within(bytes, limit);
        charge().or_else(|NoMemory| {
            // It may have taken answers, of any object, that nobody has collected since.
            if let Some(bus) = self.object.bus.upgrade() {
                bus.sweep_spilled();
            }
            charge()
        })
    }

    /// Keeps a spilled answer until the caller has copied it out.
    pub fn keep_spilled(&self, slot: usize, wanted: u32, chunk: Chunk, charge: Charge) {
        self.has_spilled.store(true, Ordering::Relaxed);
        let mut spilled = self.spilled.lock();
        self.drop_taken(&mut spilled);
        spilled.insert(slot, Spilled { wanted, _chunk: chunk, _charge: charge });
    }

    /// Frees the chunks that the caller is done with.
    pub fn sweep_spilled(&self) {
        if !self.has_spilled.load(Ordering::Relaxed) {
            return;
        }
        self.drop_taken(&mut self.spilled.lock());
    }

    fn drop_taken(&self, spilled: &mut HashMap<usize, Spilled>) {
        spilled.retain(|slot, answer| self.ring.released(*slot) != answer.wanted);
    }

    /// Counts a body that did not decode; `true` when there were too many in a row.
    pub fn count_bad_request(&self) -> bool {
        self.bad_requests.fetch_add(1, Ordering::Relaxed) + 1 >= BAD_REQUESTS_MAX
    }

    #[inline(always)]
    pub fn count_good_request(&self) {
        if self.bad_requests.load(Ordering::Relaxed) != 0 {
            self.bad_requests.store(0, Ordering::Relaxed);
        }
    }

    /// The caller broke the protocol: takes nothing more from it and tells it so, as far as it can be told. The lane counts
    /// as one of the object's until its last method has ended.
    #[cold]
    pub fn violate(&self) {
        self.object.count_violation();
        self.state.store(CLOSED, Ordering::Release);
        self.ring.close(crate::ring::layout::BROKEN);
        self.object.end_abandoned(self);
        self.disconnect(self.object.engine);
        // Closed before the fence of `OwnerRing::close`: either the last answer is seen here, or who gives it settles.
        self.settle();
    }

    /// Tells the caller that no new calls are taken, in the way `how` ([`CLOSING`] or [`REPLACED`]).
    pub fn announce_closing(&self, how: u32) {
        debug_assert!(how == CLOSING || how == REPLACED);
        debug_assert_ne!(how, OPEN);
        self.ring.close(how);
    }

    /// Frees what the engine holds of the lane and ends the socket for every process that has it.
    pub fn disconnect(&self, engine: &'static Engine) {
        self.state.store(CLOSED, Ordering::Release);
        if let Some(token) = self.socket_token.lock().take() {
            engine.remove(token, &self.parcels.socket);
        }
        engine.pool.remove_lane(self);
        socket::shutdown(&self.parcels.socket);
    }

    /// Does not listen to the socket for a while: its caller sends more than it needs to. Its death is heard all the same.
    #[cold]
    fn rest(self: &Arc<Self>, engine: &'static Engine) {
        engine.mute(&self.parcels.socket);
        let lane = Arc::downgrade(self);
        engine.alarm(clock::now_ns() + REST_NS, move |engine| {
            let Some(lane) = lane.upgrade() else { return };
            // Locked, so that an end of the lane comes before or after, not between.
            if let Some(token) = *lane.socket_token.lock() {
                let _ = engine.unmute(token, &lane.parcels.socket, EVENTS);
            }
        });
    }

    /// The caller's end is closed or its process is dead: drains what it published, then ends.
    fn caller_is_gone(self: &Arc<Self>, engine: &'static Engine) {
        if let Some(token) = self.socket_token.lock().take() {
            engine.remove(token, &self.parcels.socket);
        }
        if self.state.compare_exchange(LIVE, GONE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.object.end_abandoned(self);
            // A worker drains the ring and settles the lane, whether there is something in it or not.
            engine.pool.enqueue(Arc::clone(self));
        }
    }
}

impl Source for OwnerLane {
    fn ready(self: Arc<Self>, engine: &'static Engine, events: EventFlags) {
        let News { ended, violated, more, .. } = self.parcels.read_socket();
        if violated {
            self.violate();
        } else if more {
            self.rest(engine);
        } else if ended || events.intersects(EventFlags::HUP | EventFlags::ERR) {
            self.caller_is_gone(engine);
        }
    }
}

impl Mourner for OwnerLane {
    fn peer_died(self: Arc<Self>, engine: &'static Engine) {
        // Nobody reads them now. Not sooner: a process that closed its socket may be copying one out.
        self.spilled.lock().clear();
        self.caller_is_gone(engine);
    }
}
