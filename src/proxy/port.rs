//! Where calls get their slots: it outlives the lanes that come and go behind it.
//!
//! A call that holds a slot of a port may use the port's lane; the lane is changed only by who holds all slots. So a
//! reserved slot is the only reference count that a call needs, and the memory of a port itself lives as long as its link.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;

use parking_lot::Mutex;

use super::lane::Lane;
use super::link::Link;
use crate::park::wake_all;
use crate::ring::caller::Look;
use crate::ring::layout::ResponseMeta;
use crate::ring::slots::SlotSet;

pub(crate) struct Port {
    slots: SlotSet,
    /// `None` while the port is vacant; then no slot can be reserved.
    lane: UnsafeCell<Option<Arc<Lane>>>,
    /// The address of the lane, 0 without one, for who only wants to know which it is.
    lane_address: AtomicUsize,
    /// The lane has ended: the port empties itself with the last call.
    retired: AtomicBool,
    /// It has no lane and nobody is about to put one there.
    is_vacant: AtomicBool,
    /// Slots whose calls were given up, or one-way, and are not answered yet: a bit each.
    abandoned: AtomicU64,
    /// How many wait for a slot.
    waiting: AtomicUsize,
    queue: Mutex<VecDeque<Waker>>,
}

// SAFETY: `lane` is read by holders of a slot only and written by a holder of all, and the slot set's atomics order
// the two (release with `fill`/`release`, acquire with `reserve`/`take_all`). Everything else is Sync by itself.
unsafe impl Sync for Port {}
// SAFETY: it contains nothing that is bound to a thread.
unsafe impl Send for Port {}

impl Port {
    /// Without a lane.
    pub fn vacant() -> Port {
        Port {
            slots: SlotSet::empty(),
            lane: UnsafeCell::new(None),
            lane_address: AtomicUsize::new(0),
            retired: AtomicBool::new(true),
            is_vacant: AtomicBool::new(true),
            abandoned: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            queue: Mutex::default(),
        }
    }

    /// Puts a lane behind the port and opens it; gives it back if the port is not vacant.
    pub fn try_occupy(&self, lane: Arc<Lane>) -> Result<(), Arc<Lane>> {
        if !self.is_vacant.swap(false, Ordering::Acquire) {
            return Err(lane);
        }
        self.lane_address.store(Arc::as_ptr(&lane).addr(), Ordering::Release);
        // SAFETY: a vacant port has no free slot and no call holds one, so nobody reads before `fill`; and the swap made
        // us the only one who writes.
        unsafe { *self.lane.get() = Some(lane) };
        self.retired.store(false, Ordering::Relaxed);
        self.slots.fill();
        Ok(())
    }

    /// Whether `lane` is the one behind the port.
    pub fn is_of(&self, lane: &Lane) -> bool {
        self.lane_address.load(Ordering::Acquire) == std::ptr::from_ref(lane).addr()
    }

    /// Takes a slot, if one is free.
    #[inline(always)]
    pub fn reserve(&self) -> Option<usize> {
        self.slots.reserve()
    }

    /// The lane behind the port. Only while holding a slot.
    ///
    /// # Safety
    ///
    /// The caller holds a slot of this port for as long as it uses the reference.
    #[inline(always)]
    pub unsafe fn lane(&self) -> &Arc<Lane> {
        // SAFETY: a slot is held, so nobody writes; and a port with a slot to hold is not vacant.
        unsafe { (*self.lane.get()).as_ref().unwrap_unchecked() }
    }

    /// Gives a slot back that was not used, or whose call is over and settled. `true`: try to [`vacate`](Self::vacate).
    #[inline(always)]
    pub fn release(&self, slot: usize) -> bool {
        let all_free = self.slots.release(slot);
        if self.waiting.load(Ordering::SeqCst) != 0 {
            self.wake_waiting();
        }
        all_free && self.retired.load(Ordering::SeqCst)
    }

    /// Stops giving slots to new calls, as far as that is up to the port.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
    }

    /// Takes the lane out if it has ended and no call holds a slot; the port is vacant then.
    pub fn vacate(&self) -> Option<Arc<Lane>> {
        while self.retired.load(Ordering::SeqCst) && self.slots.take_all() {
            // Looked at again with all slots held: another may have vacated the port meanwhile, and the lane behind it be
            // the next, which lives.
            if self.retired.load(Ordering::SeqCst) {
                // SAFETY: we hold all slots.
                let lane = unsafe { (*self.lane.get()).take() };
                self.lane_address.store(0, Ordering::Relaxed);
                self.is_vacant.store(true, Ordering::Release);
                return lane;
            }
            self.slots.fill();
            // Who came meanwhile found no slot, and nobody releases the ones it waits for.
            self.wake_all_waiting();
        }
        None
    }

    /// Leaves the slot of a call that nobody waits for to whoever comes by after its answer.
    ///
    /// # Safety
    ///
    /// The caller holds `slot`, and does not use it after this call.
    pub unsafe fn abandon(&self, slot: usize) -> bool {
        self.abandoned.fetch_or(1 << slot, Ordering::SeqCst);
        self.reap_slot(slot)
    }

    /// Frees the slots of abandoned calls that are answered, or never will be. `true`: try to [`vacate`](Self::vacate).
    pub fn reap(&self) -> bool {
        let mut vacate = false;
        let mut abandoned = self.abandoned.load(Ordering::SeqCst);
        while abandoned != 0 {
            vacate |= self.reap_slot(abandoned.trailing_zeros() as usize);
            abandoned &= abandoned - 1;
        }
        vacate
    }

    fn reap_slot(&self, slot: usize) -> bool {
        let bit = 1 << slot;
        // Who clears the bit holds the slot; a second reaper finds it cleared.
        if self.abandoned.fetch_and(!bit, Ordering::SeqCst) & bit == 0 {
            return false;
        }
        // SAFETY: we hold the slot now.
        let lane = unsafe { self.lane() };
        match lane.ring.look(slot) {
            Look::Waiting if !lane.fate().is_final() => return self.leave(slot, lane),
            Look::Answered => {
                lane.ring.clear_sleep(slot);
                lane.ring.clear_withdrawn(slot);
                let (meta, _, lent) = lane.ring.response_head(slot);
                if meta.flags & ResponseMeta::SPILLED != 0 || lent != 0 {
                    lane.discard_answer(slot);
                }
                lane.ring.finish(slot);
            }
            Look::Waiting | Look::Violation => {}
        }
        self.release(slot)
    }

    /// Leaves a slot that we hold, and whose call is not answered, to whoever comes by after its answer.
    fn leave(&self, slot: usize, lane: &Arc<Lane>) -> bool {
        let is_news = self.waiting.load(Ordering::SeqCst) != 0;
        // Anew each time: the owner wakes once per arm number.
        let armed = is_news.then(|| (Arc::clone(lane), lane.arm_for_reaping(slot)));
        self.abandoned.fetch_or(1 << slot, Ordering::SeqCst);
        // From here on another may free the slot, and the lane with it: only a lane of our own is looked at. And whoever came
        // between our looks and the bit passed the slot by: with the wake for the answer, the end of the lane, or a wait for
        // a slot.
        let was_passed_by = match armed {
            Some((lane, arm)) => lane.ring.look(slot) != Look::Waiting || lane.arm_number() != arm,
            None => self.waiting.load(Ordering::SeqCst) != 0,
        };
        (was_passed_by || self.retired.load(Ordering::SeqCst)) && self.reap_slot(slot)
    }

    /// Takes the lane out with its abandoned calls still unanswered: the lane, and their slots. For the link's end, when
    /// no other call is left.
    pub fn orphan(&self) -> Option<(Arc<Lane>, u64)> {
        let abandoned = self.abandoned.swap(0, Ordering::SeqCst);
        // SAFETY: no call holds a slot but the abandoned ones, whose bits we took.
        let lane = unsafe { (*self.lane.get()).take() }?;
        Some((lane, abandoned))
    }

    /// Registers who waits for a slot. Undone by [`unqueue`](Self::unqueue).
    ///
    /// The reaping arms the abandoned slots that it does not free, since somebody waits now: their own calls told the owner
    /// that nobody does.
    fn queue(&self, waker: &Waker) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.queue.lock().push_back(waker.clone());
    }

    /// Whether `waker` is in the queue.
    fn is_queued(&self, waker: &Waker) -> bool {
        self.queue.lock().iter().any(|waiting| waiting.will_wake(waker))
    }

    /// Undoes [`queue`](Self::queue).
    fn unqueue(&self, waker: &Waker) {
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        let mut queue = self.queue.lock();
        match queue.iter().position(|waiting| waiting.will_wake(waker)) {
            Some(position) => drop(queue.remove(position)),
            // It was woken: if it got no slot by that, the wake belongs to the next.
            None => {
                let next = queue.pop_front();
                drop(queue);
                wake_all(next);
            }
        }
    }

    #[cold]
    fn wake_waiting(&self) {
        let next = self.queue.lock().pop_front();
        wake_all(next);
    }

    /// Wakes all who wait for a slot, for the news that none will come from here.
    pub fn wake_all_waiting(&self) {
        let queue = std::mem::take(&mut *self.queue.lock());
        wake_all(queue);
    }

    /// The slots that calls hold, a bit each.
    pub fn taken(&self) -> u64 {
        self.slots.taken()
    }

    /// How many slots calls hold.
    pub fn in_flight(&self) -> usize {
        self.taken().count_ones() as usize
    }
}

/// A place in the queue for a slot.
pub(crate) struct Queued {
    port: Arc<Port>,
    waker: Waker,
}

impl Queued {
    /// Registers `waker` for a slot that becomes free, as long as the result lives; then reap and try to reserve once more.
    pub fn new(port: Arc<Port>, waker: &Waker) -> Queued {
        port.queue(waker);
        Queued { port, waker: waker.clone() }
    }

    /// Whether the wake is still to come.
    pub fn is_waiting(&self) -> bool {
        self.port.is_queued(&self.waker)
    }

    /// Whether it is `waker` that will be woken.
    pub fn is_for(&self, waker: &Waker) -> bool {
        self.waker.will_wake(waker)
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.port.unqueue(&self.waker);
    }
}

/// A slot, with the link that keeps its port.
pub(crate) struct Reserved {
    pub link: Arc<Link>,
    pub port: NonNull<Port>,
    pub slot: usize,
}

impl Reserved {
    pub fn give_back(self) {
        // SAFETY: the port is one of the link's, and lives as long as that.
        self.link.give_back(unsafe { self.port.as_ref() }, self.slot);
    }
}
