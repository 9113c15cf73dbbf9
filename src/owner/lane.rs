//! The owner's end of one lane: one caller process and one published object.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering, fence};

use super::hosted::Hosted;
use crate::blob::limit::{Charge, NoMemory};
use crate::blob::supply::Reclaim;
use crate::channel::Ending;
use crate::engine::Engine;
use crate::parcels::{Parcels, Resident};
use crate::peer::Peer;
use crate::proxy::WayBack;
use crate::ring::layout::{AWAKE, BY_NOTIFY, CLOSING, ON_FUTEX, OPEN, REPLACED, ResponseMeta, SLOTS};
use crate::ring::owner::{OwnerRing, Request, Take};
use crate::sys::clock;
use crate::sys::closer::Foreign;
use crate::sys::eventfd::Doorbell;

/// The caller is there.
const LIVE: u8 = 0;
/// The caller is gone: what it published is still run, nothing new comes.
const GONE: u8 = 1;
/// The caller broke the protocol, or all is over: nothing is taken any more.
const CLOSED: u8 = 2;

/// How long a method known to be short may hide what else there is in a burst of requests.
const BURST_NS: u64 = 1_000_000;

/// Bodies in a row that did not decode, after which a caller is taken for broken.
const BAD_REQUESTS_MAX: u32 = 10;

pub(crate) struct OwnerLane {
    pub ring: OwnerRing,
    /// It holds the memory under the ring's pointers; dropped after it.
    pub parcels: Arc<Parcels>,
    pub object: Arc<Hosted>,
    pub peer: Arc<Peer>,
    pub doorbell: Doorbell,
    /// Per method, whether this caller may not call it; `None`: it may call all.
    pub denied: Option<Box<[bool]>>,
    /// Where the caller's own objects are called back.
    pub way_back: WayBack,
    /// The last answer had to wake its caller, who needs a while to come back.
    pub woke_caller: AtomicBool,
    /// Rings in a row without a request.
    pub empty_rings: AtomicU32,
    /// An alarm is set that looks whether a burst of requests goes on.
    is_watched: AtomicBool,
    /// Names the lane in the pool's epoll set.
    pub bell_token: u64,
    state: AtomicU8,
    /// The last arm number that a wake was sent for.
    woken_arm: AtomicU32,
    /// The same for tasks that want to be woken by another socket.
    notified_arm: AtomicU32,
    bad_requests: AtomicU32,
}

/// What a lane is made of, after the handshake.
pub(crate) struct Parts {
    pub ring: OwnerRing,
    pub parcels: Arc<Parcels>,
    pub object: Arc<Hosted>,
    pub peer: Arc<Peer>,
    pub doorbell: Doorbell,
    pub denied: Option<Box<[bool]>>,
    pub bell_token: u64,
}

impl OwnerLane {
    pub fn new(parts: Parts) -> OwnerLane {
        OwnerLane {
            ring: parts.ring,
            parcels: parts.parcels,
            object: parts.object,
            peer: parts.peer,
            doorbell: parts.doorbell,
            denied: parts.denied,
            way_back: WayBack::default(),
            woke_caller: AtomicBool::new(false),
            empty_rings: AtomicU32::new(0),
            is_watched: AtomicBool::new(false),
            bell_token: parts.bell_token,
            state: AtomicU8::new(LIVE),
            woken_arm: AtomicU32::new(AWAKE),
            notified_arm: AtomicU32::new(AWAKE),
            bad_requests: AtomicU32::new(0),
        }
    }

    /// Starts to watch the caller's end and its process.
    pub fn watch(self: &Arc<Self>) -> Result<(), rustix::io::Errno> {
        self.parcels.watch(Arc::downgrade(self))
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
    pub fn answer(&self, slot: usize, wanted: u32, meta: ResponseMeta, len: u32, lent: u32) {
        self.ring.answer(slot, wanted, meta, len, lent);
        self.ring.sleepers(1 << slot, |slot, who| _ = self.wake_early(slot, who));
    }

    /// One fence for the answers given since the last in the slots of `answered` (bits), and what must follow it.
    #[inline(always)]
    pub fn after_answers(&self, answered: u64) {
        self.parcels.collect_if_lent();
        self.ring.after_answers(answered, |slot, who| self.wake(slot, who));
        if self.is_ending() {
            self.settle();
        }
    }

    /// The same for answers that a call was begun after, by the fence of that; but the slots whose tasks are left for later.
    #[inline(always)]
    pub fn after_beginning(&self, answered: u64) -> u64 {
        let mut left = 0;
        self.ring.sleepers(answered, |slot, who| left |= u64::from(!self.wake_early(slot, who)) << slot);
        left
    }

    /// As [`wake`](Self::wake), but no task while there are other requests: one word, behind their answers, is for the tasks of
    /// all. Whether `who` was woken.
    #[cold]
    fn wake_early(&self, slot: usize, who: u32) -> bool {
        let wakes = who == ON_FUTEX || !self.ring.has_request();
        if wakes {
            self.wake(slot, who);
        }
        wakes
    }

    /// Looks in a while whether a method known to be short takes long for once, before requests that were rung for and answers
    /// that nobody was told of.
    #[cold]
    pub fn watch_burst(self: &Arc<Self>) {
        if !self.is_watched.swap(true, Ordering::AcqRel) {
            let (lane, position) = (Arc::downgrade(self), self.ring.position());
            self.object.engine.alarm(clock::now_ns() + BURST_NS, move |engine| {
                if let Some(lane) = lane.upgrade() {
                    lane.look_at_burst(engine, position);
                }
            });
        }
    }

    /// `position` is how far it was a while ago.
    fn look_at_burst(self: &Arc<Self>, engine: &'static Engine, position: u32) {
        // A swap, and one there: who has left a task to be woken, and finds that somebody will look, is seen here.
        self.is_watched.swap(false, Ordering::AcqRel);
        self.ring.after_answers(self.ring.idle_slots(), |slot, who| self.wake(slot, who));
        if !self.is_open() || !self.ring.has_request() {
            return;
        }
        if self.ring.position() == position {
            engine.pool.enqueue(Arc::clone(self));
        } else {
            self.watch_burst();
        }
    }

    /// Wakes `who` sleeps on the answer in `slot`, by its sleep word.
    #[cold]
    #[inline(never)]
    fn wake(&self, slot: usize, who: u32) {
        self.woke_caller.store(true, Ordering::Relaxed);
        match who {
            ON_FUTEX => self.ring.wake(slot),
            // One word for all tasks that armed themselves with this number.
            arm if arm & BY_NOTIFY == 0 => {
                if self.woken_arm.swap(arm, Ordering::AcqRel) != arm {
                    self.parcels.send_wake();
                }
            }
            arm => {
                if self.notified_arm.swap(arm, Ordering::AcqRel) != arm {
                    self.parcels.send_notified_wake();
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

    /// Takes back what a request gives back, unless that was done.
    #[inline(always)]
    pub fn take_back_returned(&self, request: &Request) {
        if request.returned.get() != 0 {
            self.parcels.take_back(request.returned.take());
        }
    }

    /// Takes `bytes` of what the caller's process may have in flight here.
    pub fn charge(&self, bytes: u64) -> Result<Charge, NoMemory> {
        let limit = self.object.rules.limits.in_flight_bytes;
        let charge = || self.peer.holdings.in_flight.charge_within(bytes, limit);
        charge().or_else(|NoMemory| {
            // It may have taken answers, of any object, that nobody has collected since.
            if let Some(bus) = self.object.bus.upgrade() {
                bus.collect();
            }
            charge()
        })
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
        if self.state.swap(CLOSED, Ordering::AcqRel) == CLOSED {
            return;
        }
        self.object.count_violation();
        self.ring.close(crate::ring::layout::BROKEN);
        self.discard_unread();
        self.object.end_abandoned(self);
        self.disconnect(self.object.engine);
        // Closed before the fence of `OwnerRing::close`: either the last answer is seen here, or who gives it settles.
        self.settle();
    }

    /// Gives back what the requests in the ring lend, which nobody takes any more. Their caller may be an honest one whose
    /// arguments do not decode here. They are not answered: that the lane is broken says that they did not run.
    fn discard_unread(&self) {
        // Whoever holds the lock takes one request, of before.
        let mut taker = loop {
            match self.ring.try_lock() {
                Some(taker) => break taker,
                None => std::thread::yield_now(),
            }
        };
        let mut request = Request::blank();
        for _ in 0..SLOTS {
            if taker.take(&mut request) != Take::Taken {
                return;
            }
            taker.untake(&request);
            self.take_back_returned(&request);
            if !request.is_plain() {
                self.parcels.discard(request.spill(), request.len.into(), request.lent, request.loans());
            }
        }
    }

    /// Tells the caller that no new calls are taken, in the way `how` ([`CLOSING`] or [`REPLACED`]).
    pub fn announce_closing(&self, how: u32) {
        debug_assert!(how == CLOSING || how == REPLACED);
        debug_assert_ne!(how, OPEN);
        self.ring.close(how);
    }

    /// Frees what the pool holds of the lane, and ends its calls; what is lent stays so.
    pub fn disconnect(&self, engine: &'static Engine) {
        self.state.store(CLOSED, Ordering::Release);
        engine.pool.remove_lane(self);
        self.way_back.end();
        self.parcels.end_calls();
    }

    /// The caller's end is closed or its process is dead: drains what it published, then ends.
    fn caller_is_gone(self: &Arc<Self>, engine: &'static Engine) {
        if self.state.compare_exchange(LIVE, GONE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.object.end_abandoned(self);
            self.parcels.channels().end(Ending::Lost);
            // A worker drains the ring and settles the lane, whether there is something in it or not.
            engine.pool.enqueue(Arc::clone(self));
        }
    }
}

impl Resident for OwnerLane {
    fn woken(&self) {}

    fn violated(&self) {
        self.violate();
    }

    fn callbacks(&self, socket: Foreign) -> bool {
        self.way_back.offer(socket)
    }

    fn peer_left(self: Arc<Self>, engine: &'static Engine) {
        self.caller_is_gone(engine);
    }

    fn peer_died(self: Arc<Self>, engine: &'static Engine) {
        self.caller_is_gone(engine);
    }
}
