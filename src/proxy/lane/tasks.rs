//! Tasks that wait for answers: each looks for about a round trip, then leaves its waker in its slot. One message of the owner's
//! wakes all whose answers are there.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::task::Waker;

use parking_lot::Mutex;

use super::{Lane, Sent};
use crate::park::wake_all;
use crate::ring::caller::Look;
use crate::ring::layout::{BY_NOTIFY, FIRST_ARM};
use crate::sync::{fence, spin_hint};
use crate::sys::clock;

/// How long a task looks for its answer after its first looks: with them a round trip, where the machine is slow.
const ROUND_TRIP_NS: u64 = 1_500;
/// After so many looks in a row for nothing, most tasks do not look: the methods called here take longer.
const FRUITLESS_MAX: u32 = 4;
/// One in so many looks nevertheless.
const LOOKS_AGAIN: u32 = 16;

/// A task that waits for an answer.
pub(super) struct Waiting {
    waker: Waker,
    /// Its runtime wakes it, not the watcher.
    by_notify: bool,
    /// When it is woken without an answer; `u64::MAX`: never.
    until_ns: u64,
}

impl Lane {
    /// Whether there is something else than `Waiting` to see, now or in about a round trip, if looking for so long can help: the
    /// owner runs elsewhere, need not be woken, and its methods have been that quick.
    #[inline(always)]
    pub fn look_for_task(&self, slot: usize, sent: Sent) -> bool {
        self.ring.look(slot) != Look::Waiting || !sent.rang && self.may_spin(sent) && self.look_longer(slot)
    }

    #[inline(never)]
    fn look_longer(&self, slot: usize) -> bool {
        let fruitless = self.fruitless.load(Ordering::Relaxed);
        let looks = fruitless < FRUITLESS_MAX || fruitless.is_multiple_of(LOOKS_AGAIN);
        let is_there = looks && self.spin(slot, ROUND_TRIP_NS);
        let now = if is_there { 0 } else { fruitless.wrapping_add(1) };
        if now != fruitless {
            self.fruitless.store(now, Ordering::Relaxed);
        }
        is_there
    }

    /// Whether there is something else than `Waiting` to see, now or, if looking can help, within so many looks.
    #[inline(always)]
    pub fn glance(&self, slot: usize, sent: Sent, looks: u32) -> bool {
        let is_answered = || self.ring.look(slot) != Look::Waiting;
        is_answered()
            || self.may_spin(sent)
                && (0..looks).any(|_| {
                    spin_hint();
                    is_answered()
                })
    }

    /// Registers a task for the answer in `slot`, or to be woken at `until_ns`, ringing where it must. `true`: look again, it may be
    /// there.
    pub fn arm(&self, slot: usize, waker: &Waker, sent: Sent, until_ns: u64) -> bool {
        let by_notify = self.notifies_this_thread();
        {
            let all = self.waiting.get_or_init(|| Box::new(std::array::from_fn(|_| Mutex::default())));
            // Pairs with the fence of `wake_tasks`: either that finds what was just made, or its new number is read below.
            fence(Ordering::SeqCst);
            let mut waiting = all[slot].lock();
            match &mut *waiting {
                Some(old) if old.waker.will_wake(waker) => old.by_notify = by_notify,
                _ => *waiting = Some(Waiting { waker: waker.clone(), by_notify, until_ns }),
            }
            // Under the lock, so that who arms anew under it is never overtaken with an old number.
            self.ring.set_sleep(slot, self.arm_word(by_notify));
        }
        // Its runtime may have been shut down before the watcher, told of that, could find this task.
        if by_notify && !self.is_notified() {
            self.wake_tasks();
            return true;
        }
        if self.ring.look(slot) != Look::Waiting || self.fate().is_final() {
            return true;
        }
        if !sent.rang && !self.ring.begun(slot) {
            self.ring_again();
        }
        self.set_alarm(until_ns);
        false
    }

    /// Has the tasks that wait looked at by `at_ns`. One alarm serves all calls of a lane, and stays when those that it was set for
    /// are answered: a call that waits neither sets nor cancels one where an earlier one's is to come.
    fn set_alarm(&self, at_ns: u64) {
        let mut alarm = self.alarm.lock();
        if at_ns == u64::MAX || alarm.is_some_and(|(set_ns, _)| set_ns <= at_ns) {
            return;
        }
        let lane = Weak::clone(&self.this);
        let ring = move |_| _ = lane.upgrade().inspect(|lane| lane.wake_late());
        let former = alarm.replace(self.engine.alarm(at_ns, ring));
        drop(alarm);
        former.into_iter().for_each(|former| self.engine.cancel_alarm(former));
    }

    /// Wakes the tasks whose time is up. On the watcher thread.
    fn wake_late(&self) {
        let now_ns = clock::now_ns();
        // Before the looks: who registers after them finds no alarm. A later one that was set instead stays.
        let _rung = self.alarm.lock().take_if(|(at_ns, _)| *at_ns <= now_ns);
        let mut next_ns = u64::MAX;
        for waiting in self.waiting.get().into_iter().flat_map(|all| all.iter()) {
            let late = match &*waiting.lock() {
                Some(task) if task.until_ns <= now_ns => Some(task.waker.clone()),
                Some(task) => {
                    next_ns = next_ns.min(task.until_ns);
                    None
                }
                None => None,
            };
            wake_all(late);
        }
        self.set_alarm(next_ns);
    }

    /// Whether a task that is polled on this thread is woken by its runtime.
    fn notifies_this_thread(&self) -> bool {
        #[cfg(feature = "tokio")]
        return self.notify.serves_this_thread(self);
        #[cfg(not(feature = "tokio"))]
        false
    }

    /// Whether some runtime wakes tasks.
    fn is_notified(&self) -> bool {
        #[cfg(feature = "tokio")]
        return self.notify.is_watched();
        #[cfg(not(feature = "tokio"))]
        false
    }

    /// What a task that waits writes into its slot's sleep word.
    fn arm_word(&self, by_notify: bool) -> u32 {
        self.arm_number() | if by_notify { BY_NOTIFY } else { 0 }
    }

    /// Undoes [`arm`](Self::arm).
    pub fn disarm(&self, slot: usize) {
        let waiting = self.waiting.get().and_then(|all| all[slot].lock().take());
        self.ring.clear_sleep(slot);
        // Without the lock: with it may go the last of a task.
        drop(waiting);
    }

    /// Wakes the tasks whose answers are there, and arms the others anew. On the watcher thread, or that of a runtime's driver.
    pub(super) fn wake_tasks(&self) {
        // The owner wakes once per number: who waits on needs a new one, and must look after it is set.
        let arm = self.arm.fetch_add(1, Ordering::SeqCst).wrapping_add(1);
        if arm & !BY_NOTIFY < FIRST_ARM {
            self.arm.store(FIRST_ARM, Ordering::SeqCst);
        }
        let is_notified = self.is_notified();
        fence(Ordering::SeqCst);
        for (slot, waiting) in self.waiting.get().into_iter().flat_map(|all| all.iter()).enumerate() {
            let mut waiting = waiting.lock();
            let Some(task) = &mut *waiting else { continue };
            task.by_notify &= is_notified;
            self.ring.set_sleep(slot, self.arm_word(task.by_notify));
            if self.ring.look(slot) != Look::Waiting || self.fate().is_final() {
                let task = waiting.take();
                // An owner that looks once more, as it does at the end of a burst, is to find nobody to wake.
                self.ring.clear_sleep(slot);
                drop(waiting);
                wake_all(task.map(|task| task.waker));
            }
        }
        match self.link.upgrade() {
            Some(link) => link.reap(self),
            None => self.reap_orphans(),
        }
    }

    /// Has the owner send a wake for the answer in `slot`, for nobody in particular. The arm number: once it is another, the
    /// wake may be spent.
    pub fn arm_for_reaping(&self, slot: usize) -> u32 {
        let arm = self.arm_number();
        self.ring.set_sleep(slot, arm);
        arm
    }

    /// What who waits for a wake is armed with at present.
    pub fn arm_number(&self) -> u32 {
        self.arm.load(Ordering::SeqCst) & !BY_NOTIFY
    }
}
