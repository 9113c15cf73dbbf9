//! The set of free response slots: one word, private to the caller's process.

use crate::ring::layout::SLOTS;
use crate::sync::{AtomicU64, Ordering};

/// Every slot's bit.
const ALL: u64 = if SLOTS == 64 { u64::MAX } else { (1 << SLOTS) - 1 };

/// Which slots no call holds. A bit set means free.
pub(crate) struct SlotSet(AtomicU64);

impl SlotSet {
    /// With no slot in it; [`fill`](SlotSet::fill) opens it.
    pub fn empty() -> SlotSet {
        SlotSet(AtomicU64::new(0))
    }

    /// Makes every slot free. Only for who holds them all.
    pub fn fill(&self) {
        // Release: who reserves a slot sees everything that was set up before. SeqCst: as in `release`.
        self.0.store(ALL, Ordering::SeqCst);
    }

    /// Takes a free slot, lowest first (its lines are the warmest); `None` when all are taken.
    #[inline(always)]
    pub fn reserve(&self) -> Option<usize> {
        let mut free = self.0.load(Ordering::SeqCst);
        while free != 0 {
            // Acquire pairs with `release`: what the slot's last holder wrote, and the owner's reads that it saw end, are
            // behind us.
            match self.0.compare_exchange_weak(free, free & (free - 1), Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => return Some(free.trailing_zeros() as usize),
                Err(now) => free = now,
            }
        }
        None
    }

    /// Gives a slot back; `true` when that made all of them free.
    #[inline(always)]
    pub fn release(&self, slot: usize) -> bool {
        let bit = 1 << slot;
        // SeqCst, as the loads of a port's words after this: who gives a slot back sees who waits, or that one sees the slot.
        // Adding sets the bit, which was clear, in one instruction; an "or" that tells what was there is a loop.
        let before = self.0.fetch_add(bit, Ordering::SeqCst);
        debug_assert!(before & bit == 0, "slot {slot} was released twice");
        before | bit == ALL
    }

    /// Takes all slots at once if all are free.
    pub fn take_all(&self) -> bool {
        self.0.compare_exchange(ALL, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// The slots that calls hold at this moment, a bit each.
    pub fn taken(&self) -> u64 {
        !self.0.load(Ordering::Relaxed) & ALL
    }
}
