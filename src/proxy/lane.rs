//! The caller's end of one lane: waiting for answers on a thread; [`tasks`] is how tasks wait, [`end`] how it hears of the
//! owner's end.

mod end;
#[cfg(feature = "tokio")]
mod notify;
mod tasks;

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use self::tasks::Waiting;
use super::link::Link;
use crate::bus::BusInner;
use crate::engine::{Engine, Token};
use crate::owner::exports::Exports;
use crate::parcels::Parcels;
use crate::peer::Peer;
use crate::ring::caller::{CallerRing, Look};
use crate::ring::layout::{COLD, FIRST_ARM, HOT, NO_CPU, ON_FUTEX, OPEN, RESPONSE_BODY, SLOTS};
use crate::sync::{fence, spin_hint};
use crate::sys::eventfd::Doorbell;
use crate::sys::{clock, cpu, signals};
use parking_lot::Mutex;

/// How long a caller that expects its answer at once looks for it before it sleeps.
const SPIN_NS: u64 = 50_000;
/// Looks before the first reading of the clock.
const LOOKS_WITHOUT_CLOCK: u32 = 32;
/// Looks between two readings.
const LOOKS_PER_CLOCK: u32 = 8;
/// A call that comes no later after the last slow answer than this is expected to be followed by others.
const HOT_GAP_NS: u64 = 20_000;
/// How long a call that nobody looks for may lie in the ring before the owner is rung.
const HIDDEN_NS: u64 = 1_000_000;
/// How long a caller sleeps before it rings an owner that polls, and runs on the caller's own processor.
const TRUST_NS: u64 = 1_000_000;

/// What has become of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Fate {
    Open = 0,
    /// The socket ended without a word; the owner is dying, or has done something strange.
    Dying = 1,
    /// The owner process is dead: what it wrote is final.
    OwnerDied = 2,
    /// The object was withdrawn: what was not begun never will be.
    Unpublished = 3,
    /// Another process has taken the name over: what was not begun here never will be, and can be sent there.
    Replaced = 4,
    /// One side broke the protocol.
    Broken = 5,
    /// The socket ended, but the process lives: nothing can be said of what it did.
    Lost = 6,
    /// Closed here.
    Closed = 7,
}

impl Fate {
    fn from_word(word: u32) -> Fate {
        use Fate::*;
        [Open, Dying, OwnerDied, Unpublished, Replaced, Broken, Lost, Closed][word as usize % 8]
    }

    /// Whether no answer will come any more that is not there already.
    pub fn is_final(self) -> bool {
        !matches!(self, Fate::Open | Fate::Dying)
    }
}

pub(crate) struct Lane {
    pub ring: CallerRing,
    /// It holds the memory under the ring's pointers; dropped after it.
    pub parcels: Arc<Parcels>,
    doorbell: Doorbell,
    pub peer: Arc<Peer>,
    pub engine: &'static Engine,
    /// The owner's methods: the hash of the name, and the key.
    pub keys: HashMap<u64, u64>,
    /// Milliseconds to add to our clock for the owner's.
    pub owner_ahead_ms: u32,
    fate: AtomicU32,
    /// Threads that sleep on a slot, or are about to.
    sleepers: AtomicU32,
    /// Per slot the task that waits for its answer. Made with the first: most lanes have threads that wait, if any.
    waiting: OnceLock<Box<[Mutex<Option<Waiting>>; SLOTS]>>,
    /// Wakes the tasks of a tokio runtime.
    #[cfg(feature = "tokio")]
    notify: notify::Notify,
    /// Wakes tasks whose time is up: no later than the first of those times.
    alarm: Mutex<Option<(u64, Token)>>,
    /// What tasks that wait write into their sleep word; one more with each wake.
    arm: AtomicU32,
    /// Looks of tasks in a row that were for nothing.
    fruitless: AtomicU32,
    owner_cpu: AtomicU16,
    /// Whether the owner was told that we are in a hurry.
    is_hot: AtomicU32,
    /// An alarm is set that looks for calls that have not begun.
    is_checking: AtomicBool,
    /// A thread rings for [`check`](Self::check).
    is_ringing: AtomicBool,
    /// When the last slow answer came (CLOCK_MONOTONIC, ns); 0: the last was quick.
    last_slow_ns: AtomicU64,
    link: Weak<Link>,
    /// What this process has given the owner to call back.
    pub exports: Exports,
    /// Once the link is gone, until all its calls are answered.
    orphans: Mutex<Option<Orphans>>,
    /// Whether this process may spin at all.
    spins: bool,
    this: Weak<Lane>,
}

/// Calls that nobody waits for, of a link that is gone.
struct Orphans {
    /// Those that are not answered, a bit each.
    slots: u64,
    /// Nobody else keeps the lane.
    _lane: Arc<Lane>,
}

/// What a lane is made of, after the handshake.
pub(crate) struct Parts {
    pub ring: CallerRing,
    pub parcels: Arc<Parcels>,
    pub doorbell: Doorbell,
    pub peer: Arc<Peer>,
    pub engine: &'static Engine,
    pub keys: HashMap<u64, u64>,
    pub owner_ahead_ms: u32,
    pub link: Weak<Link>,
    pub spins: bool,
}

/// How a call was published.
#[derive(Clone, Copy)]
pub(crate) struct Sent {
    /// The owner had to be woken for it: the doorbell was rung, just now or since it fell asleep.
    pub rang: bool,
}

impl Lane {
    pub fn new(parts: Parts) -> Arc<Lane> {
        Arc::new_cyclic(|this| Lane {
            ring: parts.ring,
            parcels: parts.parcels,
            doorbell: parts.doorbell,
            peer: parts.peer,
            engine: parts.engine,
            keys: parts.keys,
            owner_ahead_ms: parts.owner_ahead_ms,
            fate: AtomicU32::new(Fate::Open as u32),
            sleepers: AtomicU32::new(0),
            waiting: OnceLock::new(),
            #[cfg(feature = "tokio")]
            notify: notify::Notify::default(),
            alarm: Mutex::new(None),
            arm: AtomicU32::new(FIRST_ARM),
            fruitless: AtomicU32::new(0),
            owner_cpu: AtomicU16::new(NO_CPU),
            is_hot: AtomicU32::new(0),
            is_checking: AtomicBool::new(false),
            is_ringing: AtomicBool::new(false),
            last_slow_ns: AtomicU64::new(0),
            link: parts.link,
            exports: Exports::default(),
            orphans: Mutex::new(None),
            spins: parts.spins,
            this: Weak::clone(this),
        })
    }

    /// Starts to watch the owner's end and its process.
    pub fn watch(self: &Arc<Self>) -> Result<(), rustix::io::Errno> {
        self.parcels.watch(Arc::downgrade(self))
    }

    /// The bus that the lane was made through; `None` once its last proxy is gone.
    pub fn bus(&self) -> Option<Arc<BusInner>> {
        self.link.upgrade().map(|link| Arc::clone(&link.bus))
    }

    #[inline(always)]
    pub fn fate(&self) -> Fate {
        Fate::from_word(self.fate.load(Ordering::Acquire))
    }

    /// Whether a new call may go here: the owner is there, as far as we know, and has not said that it closes.
    #[inline(always)]
    pub fn takes_calls(&self) -> bool {
        self.fate() == Fate::Open && self.ring.closing() == OPEN
    }

    /// The link whose lane it is, while anybody uses that.
    pub fn link(&self) -> Option<Arc<Link>> {
        self.link.upgrade()
    }

    /// Rings if the owner does not poll the lane.
    #[inline(always)]
    pub fn ring_if_asleep(&self) -> Sent {
        let rang = self.ring.must_ring();
        if rang {
            self.ring_after_gap();
        }
        Sent { rang }
    }

    /// Rings a sleeping owner, after telling it whether it is worth to linger: is this call one of a series?
    #[cold]
    #[inline(never)]
    fn ring_after_gap(&self) {
        self.ring.ring_once(|| self.ring_with_hint());
    }

    fn ring_with_hint(&self) {
        let last_ns = self.last_slow_ns.load(Ordering::Relaxed);
        let is_hot = if last_ns != 0 && clock::now_ns() - last_ns < HOT_GAP_NS { HOT } else { COLD };
        if self.is_hot.swap(is_hot, Ordering::Relaxed) != is_hot {
            self.ring.set_hint(is_hot);
        }
        self.doorbell.ring();
    }

    /// Rings, whatever the owner says of who looks at the lane; after a fence.
    #[cold]
    pub fn ring_again(&self) {
        self.ring.ring_once(|| self.doorbell.ring());
    }

    /// Rings, though somebody may be on the way.
    pub fn ring_bell(&self) {
        self.doorbell.ring();
    }

    /// Notes where the owner ran, and, after a slow call, when it ended.
    #[inline(always)]
    pub fn note_answer(&self, owner_cpu: u16, rang: bool) {
        if self.owner_cpu.load(Ordering::Relaxed) != owner_cpu {
            self.owner_cpu.store(owner_cpu, Ordering::Relaxed);
        }
        if rang {
            self.last_slow_ns.store(clock::now_ns(), Ordering::Relaxed);
        } else if self.last_slow_ns.load(Ordering::Relaxed) != 0 {
            self.last_slow_ns.store(0, Ordering::Relaxed);
        }
    }

    /// Whether looking for the answer can be quicker than sleeping: the owner runs on another processor, and is awake or
    /// was told to hurry.
    #[inline(always)]
    fn may_spin(&self, sent: Sent) -> bool {
        let owner_cpu = self.owner_cpu.load(Ordering::Relaxed);
        owner_cpu != cpu::current() && self.spins && !(sent.rang && self.is_hot.load(Ordering::Relaxed) == 0)
    }

    /// Waits for the answer in `slot` until `deadline_ns`. What the slot shows, or why nothing more will come.
    #[inline(always)]
    pub fn wait(&self, slot: usize, sent: Sent, deadline_ns: u64) -> Result<(), Ended> {
        match self.ring.look(slot) {
            Look::Answered => Ok(()),
            Look::Waiting => self.wait_longer(slot, sent, deadline_ns),
            Look::Violation => Err(self.violated()),
        }
    }

    #[inline(never)]
    fn wait_longer(&self, slot: usize, sent: Sent, deadline_ns: u64) -> Result<(), Ended> {
        if self.may_spin(sent) && self.spin(slot, SPIN_NS) {
            return self.look(slot).map(drop);
        }
        self.park(slot, sent, deadline_ns)
    }

    /// Whether there is something else than `Waiting` to see, now or after looking for as long as that can help a thread.
    pub fn look_for_thread(&self, slot: usize, sent: Sent) -> bool {
        self.ring.look(slot) != Look::Waiting || self.may_spin(sent) && self.spin(slot, SPIN_NS)
    }

    /// Sleeps until there may be something to see in `slot`.
    pub fn stand_by(&self, slot: usize, sent: Sent, until_ns: u64) {
        let _seen = self.park(slot, sent, until_ns);
    }

    /// Looks for some time; whether there is something else than `Waiting` to see.
    fn spin(&self, slot: usize, for_ns: u64) -> bool {
        let mut until_ns = u64::MAX;
        for looks in 1_u32.. {
            if self.ring.look(slot) != Look::Waiting {
                return true;
            }
            spin_hint();
            if looks >= LOOKS_WITHOUT_CLOCK && looks.is_multiple_of(LOOKS_PER_CLOCK) {
                let now_ns = clock::now_ns();
                if until_ns == u64::MAX {
                    until_ns = now_ns + for_ns;
                } else if now_ns >= until_ns {
                    return false;
                }
            }
        }
        false
    }

    /// Sleeps on the slot until it is answered or will never be.
    #[cold]
    fn park(&self, slot: usize, sent: Sent, deadline_ns: u64) -> Result<(), Ended> {
        self.ring.set_sleep(slot, ON_FUTEX);
        let ended = self.park_armed(slot, sent, deadline_ns);
        self.ring.clear_sleep(slot);
        ended
    }

    fn park_armed(&self, slot: usize, sent: Sent, deadline_ns: u64) -> Result<(), Ended> {
        // The owner said that it looks here, but it may be in a slow method by now: a ring brings another of its threads. One
        // that is to run on this very processor gets the chance to look first, which is when this thread sleeps.
        let mut ring_at_ns = match self.may_be_hidden(slot, sent)? {
            true if self.owner_cpu.load(Ordering::Relaxed) == cpu::current() => clock::now_ns() + TRUST_NS,
            true => 0,
            false => u64::MAX,
        };
        loop {
            if ring_at_ns != u64::MAX && clock::now_ns() >= ring_at_ns {
                ring_at_ns = u64::MAX;
                if self.may_be_hidden(slot, sent)? {
                    self.ring_again();
                }
            }
            if self.look(slot)? {
                return Ok(());
            }
            // Counted before the fate is read: who changes it wakes the slots until nobody is counted any more.
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            let fate = Fate::from_word(self.fate.load(Ordering::SeqCst));
            if !fate.is_final() {
                self.ring.sleep(slot, Some(deadline_ns.min(ring_at_ns)));
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
            if fate.is_final() {
                return self.last_look(slot, fate);
            }
            if clock::now_ns() >= deadline_ns && !self.look(slot)? {
                return Err(Ended::TimedOut);
            }
        }
    }

    /// Whether the owner may not know of the call in `slot`: it was not rung for it and has not begun it.
    fn may_be_hidden(&self, slot: usize, sent: Sent) -> Result<bool, Ended> {
        Ok(!sent.rang && !self.look(slot)? && !self.ring.begun(slot))
    }

    /// Rings in a while if a call has not begun by then: for who sends one and does not look for its answer, beside an owner
    /// that said it looks here, but may be in a slow method.
    #[inline]
    pub fn ring_soon_if_hidden(&self) {
        // After the fence of `must_ring`: if a check is to come, it sees what was published before.
        if !self.is_checking.load(Ordering::Relaxed) && !self.is_checking.swap(true, Ordering::SeqCst) {
            self.check_soon(self.hidden());
        }
    }

    /// Looks in a while whether the calls of `before` (slot, answer number) have begun.
    #[cold]
    fn check_soon(&self, before: Vec<(usize, u32)>) {
        let lane = Weak::clone(&self.this);
        self.engine.alarm(clock::now_ns() + HIDDEN_NS, move |_| {
            if let Some(lane) = lane.upgrade() {
                lane.check(&before);
            }
        });
    }

    fn check(&self, before: &[(usize, u32)]) {
        // Cleared before the look: who sends after it has another check made.
        self.is_checking.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        // An owner that serves its callers in turn has begun those of before meanwhile, and needs no ring; one ring does for one
        // that has not.
        let (late, others): (Vec<_>, Vec<_>) =
            self.hidden().into_iter().partition(|call| before.contains(call));
        if !late.is_empty() {
            self.ring_aside();
        }
        if !others.is_empty() && !self.is_checking.swap(true, Ordering::SeqCst) {
            self.check_soon(others);
        }
    }

    /// The calls in the ring that have not begun.
    fn hidden(&self) -> Vec<(usize, u32)> {
        let Some(link) = self.link.upgrade() else { return Vec::new() };
        let out = link.taken(self);
        let is_hidden = |slot: &usize| self.ring.look(*slot) == Look::Waiting && !self.ring.begun(*slot);
        let slots = (0..SLOTS).filter(|slot| out & 1 << slot != 0).filter(is_hidden);
        slots.map(|slot| (slot, self.ring.wanted(slot))).collect()
    }

    /// Rings on a thread of its own: a hostile owner can have its doorbell block who rings it, and this is the watcher's.
    #[cold]
    fn ring_aside(&self) {
        let Some(lane) = self.this.upgrade() else { return };
        if self.is_ringing.swap(true, Ordering::SeqCst) {
            return;
        }
        let ring = move || {
            lane.doorbell.ring();
            lane.is_ringing.store(false, Ordering::SeqCst);
        };
        // Without a thread the next check tries again.
        if signals::spawn("objbus-ring", ring).is_err() {
            self.is_ringing.store(false, Ordering::SeqCst);
        }
    }

    /// Whether the slot is answered.
    pub fn look(&self, slot: usize) -> Result<bool, Ended> {
        match self.ring.look(slot) {
            Look::Answered => Ok(true),
            Look::Waiting => Ok(false),
            Look::Violation => Err(self.violated()),
        }
    }

    /// After the end of the lane: an answer that came before it counts.
    pub fn last_look(&self, slot: usize, fate: Fate) -> Result<(), Ended> {
        if self.look(slot)? { Ok(()) } else { Err(Ended::Fate(fate)) }
    }

    /// Gives back what the answer in `slot` lends; nobody reads it.
    #[cold]
    pub fn discard_answer(&self, slot: usize) {
        let (meta, len, lent) = self.ring.response_head(slot);
        let mut words = [MaybeUninit::uninit(); RESPONSE_BODY / 8];
        if let Some((spilled, inline)) = self.ring.response_loans(slot, (meta, len, lent), &mut words) {
            self.parcels.discard(spilled, len as u64, lent, inline);
        }
    }

    /// The owner wrote what no honest one does.
    #[cold]
    fn violated(&self) -> Ended {
        self.end(Fate::Broken);
        Ended::Fate(Fate::Broken)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(alarm) = self.alarm.get_mut().take()
            && !self.engine.is_foreign()
        {
            self.engine.cancel_alarm(alarm);
        }
    }
}

/// Why waiting ended without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    TimedOut,
    Fate(Fate),
}
