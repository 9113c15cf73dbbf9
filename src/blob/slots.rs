//! The pieces freed last, one of each class, to be had without the pool's lock: the warm path of allocating.
//!
//! Taking one and laying one down are one atomic operation each. A piece laid down replaces the one that lay there, which
//! then goes to the pool, so that what was freed last is used first.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::pool::{CLASSES, Need, Piece};

/// The segments of large chunks have a slot for each doubling, up to this length in bytes: a raw frame of four million
/// pixels. All of them together hold twice as much at most.
const LARGEST: usize = 16 << 20;

/// What all slots of large chunks hold at most, in bytes, and how many there are.
pub(super) const WHOLE_BYTES: usize = 2 * LARGEST;
pub(super) const WHOLE_SLOTS: usize = 5;

const SLOTS: usize = CLASSES + WHOLE_SLOTS;

/// Where a piece lies while no chunk has it, or where one for a need may lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotIndex(u8);

impl SlotIndex {
    #[inline]
    pub(super) fn of(need: Need) -> Option<SlotIndex> {
        let index = match need {
            Need::Part(size) => size.class,
            Need::Whole(bytes) if bytes <= LARGEST => CLASSES + whole_slot(bytes),
            Need::Whole(_) => return None,
        };
        Some(SlotIndex(index as u8))
    }
}

/// 0 for [`WHOLE`](super::pool::WHOLE) itself, then one for each doubling.
fn whole_slot(bytes: usize) -> usize {
    (bytes.next_power_of_two() / super::pool::WHOLE).trailing_zeros() as usize
}

/// Null: empty. [`closed`]: nothing is to be laid there any more. Else a piece, owned by the slot.
///
/// A cache line of its own, since threads that use different sizes should not meet.
#[repr(align(64))]
pub(super) struct Slot(AtomicPtr<Piece>);

/// An address that no piece has.
fn closed() -> *mut Piece {
    ptr::without_provenance_mut(align_of::<Piece>())
}

pub(super) struct Slots([Slot; SLOTS]);

impl Slots {
    pub(super) fn new() -> Slots {
        Slots([const { Slot(AtomicPtr::new(ptr::null_mut())) }; SLOTS])
    }

    #[inline]
    pub(super) fn at(&self, index: SlotIndex) -> &Slot {
        &self.0[usize::from(index.0)]
    }

    /// All pieces that lie here. Not to be called once the slots are closed.
    pub(super) fn take_all(&self) -> impl Iterator<Item = Box<Piece>> + '_ {
        // SeqCst for `take`'s reason: a waiter that finds nothing here must not have overlooked a piece.
        self.0.iter().filter(|slot| !slot.0.load(Ordering::SeqCst).is_null()).filter_map(Slot::take)
    }

    /// All pieces that lie here, and no others from now on.
    pub(super) fn close(&self) -> impl Iterator<Item = Box<Piece>> + '_ {
        self.0.iter().filter_map(|slot| slot.replace(closed()))
    }
}

impl Slot {
    /// Not to be called once the slots are closed.
    #[inline]
    pub(super) fn take(&self) -> Option<Box<Piece>> {
        self.replace(ptr::null_mut())
    }

    /// SeqCst: Acquire to see what the piece's last user wrote, and in one order with the count of waiters
    /// ([`returns`](super::returns)).
    #[inline]
    fn replace(&self, by: *mut Piece) -> Option<Box<Piece>> {
        let found = self.0.swap(by, Ordering::SeqCst);
        debug_assert_ne!(found, closed(), "the arena is gone");
        // SAFETY: what is neither null nor `closed` came from `Box::into_raw` in `put`, which gave it to the slot; the swap
        // took it out, so nobody else has it. A piece is Send (asserted below).
        (!found.is_null()).then(|| unsafe { Box::from_raw(found) })
    }

    /// Lays `piece` down and returns what is to go to the pool: the piece that lay there, or once the slots are closed,
    /// this one.
    ///
    /// # Safety
    ///
    /// `slot` is valid for as long as `piece` is not in it: afterwards another thread may take the piece out and free
    /// what it held, the memory of the slots included. Therefore a pointer, which is not touched after that.
    #[inline]
    pub(super) unsafe fn put(slot: *const Slot, piece: Box<Piece>) -> Option<Box<Piece>> {
        let piece = Box::into_raw(piece);
        // Mostly true, and the exchange tells at no further cost.
        let mut found = ptr::null_mut();
        while found != closed() {
            // SAFETY: the caller's promise, for as long as it fails. The reference is to an atomic, which may be freed during the
            // operation once it has succeeded.
            let exchanged =
                unsafe { (*slot).0.compare_exchange(found, piece, Ordering::SeqCst, Ordering::Relaxed) };
            match exchanged {
                // SAFETY: as in `replace`: the exchange took it out. That it may have been out and back in since the load
                // does not matter, since nothing was read through it.
                Ok(_) => return (!found.is_null()).then(|| unsafe { Box::from_raw(found) }),
                Err(other) => found = other,
            }
        }
        // SAFETY: it came from `into_raw` above and was given to nobody.
        Some(unsafe { Box::from_raw(piece) })
    }
}

/// An atomic pointer is Send whatever it points to; what lies in the slots changes threads.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Piece>();
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_chunks_have_a_slot_for_each_doubling() {
        const MIB: usize = 1 << 20;
        let slot = |bytes| SlotIndex::of(Need::of(bytes)).map(|index| usize::from(index.0));
        let slots = [MIB - 1, MIB, MIB + 1, 2 * MIB, 2 * MIB + 1, 16 * MIB, 16 * MIB + 1].map(slot);
        let [last_part, whole @ ..] = slots;
        assert_eq!(last_part, Some(CLASSES - 1));
        assert_eq!(
            whole.map(|slot| slot.map(|slot| slot - CLASSES)),
            [Some(0), Some(1), Some(1), Some(2), Some(4), None]
        );
    }
}
