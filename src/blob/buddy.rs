//! Which granules of one shared segment are free: a binary buddy allocator kept in private memory.
//!
//! Free blocks are powers of two in size, aligned to it, linked per order, last freed first. A piece of any other
//! length is cut from the next larger block and the rest of that block is free again at once; coming back, the piece
//! is cut into aligned blocks that merge with their buddies. So the classes of [`Size`] cost an eighth at most,
//! where plain powers of two would cost half. (Knuth, The Art of Computer Programming 1, 2.5.)

use std::ops::Range;

/// The unit of all lengths and offsets in a shared segment, in bytes: four cache lines, so that neighbouring chunks
/// never share one, nor the pair that the prefetcher fetches, and five bytes of bookkeeping for each are 2 %.
pub(super) const GRANULE: usize = 256;

/// The longest segment that a buddy allocator divides, in granules (4 MiB): its numbers fit 16 bits.
pub(super) const GRANULES_MAX: usize = 1 << 14;

/// Orders 0 to 14: a free block has `1 << order` granules.
const ORDERS: usize = 15;

/// The end of a list; no granule has this number.
const NONE: u16 = u16::MAX;

/// A length in granules, rounded up to its class: multiples of one granule up to sixteen, then eight classes to each
/// doubling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// The class, from 0, without gaps, in order of size.
    pub(super) class: usize,
    /// The length of the class in granules, at least 1.
    pub(super) granules: usize,
}

impl Size {
    /// The smallest class of at least `bytes`.
    #[inline]
    pub(super) fn of(bytes: usize) -> Size {
        let last = bytes.div_ceil(GRANULE).saturating_sub(1);
        if last < 16 {
            // What follows gives the same, in twice the time.
            return Size { class: last, granules: last + 1 };
        }
        let shift = last.ilog2() - 3;
        let step = last >> shift;
        Size { class: shift as usize * 8 + step, granules: (step + 1) << shift }
    }

    pub(super) fn bytes(self) -> usize {
        self.granules * GRANULE
    }
}

/// What is known of one granule.
#[derive(Clone, Copy)]
struct Granule {
    /// `order + 1` if a free block of that order starts here, else 0; the links are valid only then.
    free: u8,
    next: u16,
    previous: u16,
}

pub(super) struct Buddy {
    granules: Box<[Granule]>,
    /// The first free block of each order.
    heads: [u16; ORDERS],
    /// Bit `n` is set when `heads[n]` is a block.
    orders: u32,
    /// How many granules are handed out.
    used: usize,
}

impl Buddy {
    /// All of `granules` free; at most [`GRANULES_MAX`].
    pub(super) fn new(granules: usize) -> Buddy {
        assert!(granules <= GRANULES_MAX, "a segment of {granules} granules is not one to divide");
        let empty = Granule { free: 0, next: NONE, previous: NONE };
        let mut buddy = Buddy {
            granules: vec![empty; granules].into_boxed_slice(),
            heads: [NONE; ORDERS],
            orders: 0,
            used: 0,
        };
        buddy.give_range(0..granules);
        buddy
    }

    /// The first granule of a free piece of `granules`, aligned to the power of two at or above its length.
    pub(super) fn take(&mut self, granules: usize) -> Option<usize> {
        let order = granules.next_power_of_two().ilog2() as usize;
        let start = self.take_block(order)?;
        self.give_range(start + granules..start + (1 << order));
        self.used += granules;
        Some(start)
    }

    /// Takes back what [`take`](Buddy::take) gave.
    pub(super) fn give(&mut self, start: usize, granules: usize) {
        debug_assert!(self.used >= granules, "more came back than was given");
        self.used -= granules;
        self.give_range(start..start + granules);
    }

    pub(super) fn is_unused(&self) -> bool {
        self.used == 0
    }

    fn take_block(&mut self, order: usize) -> Option<usize> {
        let enough = self.orders.checked_shr(order as u32).filter(|&orders| orders != 0)?;
        let found = order + enough.trailing_zeros() as usize;
        let start = usize::from(self.heads[found]);
        self.unlink(start, found);
        for smaller in (order..found).rev() {
            self.link(start + (1 << smaller), smaller);
        }
        Some(start)
    }

    /// Frees a range in the largest aligned blocks that it holds.
    fn give_range(&mut self, mut range: Range<usize>) {
        while !range.is_empty() {
            let order = range.start.trailing_zeros().min(range.len().ilog2()) as usize;
            self.give_block(range.start, order);
            range.start += 1 << order;
        }
    }

    fn give_block(&mut self, mut start: usize, mut order: usize) {
        debug_assert!(self.granules[start].free == 0, "a block came back twice");
        while let Some(buddy) = self.free_buddy(start, order) {
            self.unlink(buddy, order);
            start = start.min(buddy);
            order += 1;
        }
        self.link(start, order);
    }

    /// The other half of the block twice as large, if it is wholly free; the last one may lie beyond the end.
    fn free_buddy(&self, start: usize, order: usize) -> Option<usize> {
        let buddy = start ^ (1 << order);
        let granule = self.granules.get(buddy)?;
        (usize::from(granule.free) == order + 1).then_some(buddy)
    }

    fn link(&mut self, start: usize, order: usize) {
        let next = self.heads[order];
        self.granules[start] = Granule { free: order as u8 + 1, next, previous: NONE };
        if next != NONE {
            self.granules[usize::from(next)].previous = start as u16;
        }
        self.heads[order] = start as u16;
        self.orders |= 1 << order;
    }

    fn unlink(&mut self, start: usize, order: usize) {
        let Granule { next, previous, .. } = self.granules[start];
        self.granules[start].free = 0;
        if next != NONE {
            self.granules[usize::from(next)].previous = previous;
        }
        if previous != NONE {
            self.granules[usize::from(previous)].next = next;
            return;
        }
        self.heads[order] = next;
        if next == NONE {
            self.orders &= !(1 << order);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn classes_are_dense_ordered_and_waste_an_eighth_at_most() {
        let mut last = Size { class: 0, granules: 1 };
        for granules in 1..=GRANULES_MAX {
            let size = Size::of(granules * GRANULE);
            assert!(
                size.granules >= granules && size.granules * 8 <= granules * 9 + 8,
                "{granules}: {size:?}"
            );
            assert!(size == last || size.class == last.class + 1, "{granules}: {size:?} after {last:?}");
            assert_eq!(Size::of(size.bytes()), size);
            last = size;
        }
        assert_eq!(Size::of(0), Size::of(1));
    }

    #[test]
    fn the_block_freed_last_is_taken_first() {
        let mut buddy = Buddy::new(64);
        let pieces: Vec<_> = (0..8).map(|_| buddy.take(8).unwrap()).collect();
        buddy.give(pieces[2], 8);
        buddy.give(pieces[5], 8);
        assert_eq!(buddy.take(8), Some(pieces[5]));
        assert_eq!(buddy.take(8), Some(pieces[2]));
        assert_eq!(buddy.take(1), None);
    }

    /// Takes a piece of so many granules, or gives back the piece at this index of those out.
    #[derive(Clone, Debug)]
    enum Step {
        Take(usize),
        Give(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let take = prop_oneof![1..20_usize, 1..700_usize].prop_map(Step::Take);
        prop::collection::vec(prop_oneof![take, any::<prop::sample::Index>().prop_map(Step::Give)], 0..300)
    }

    proptest! {
        #[test]
        fn pieces_never_overlap_and_all_come_back(total in 1..1500_usize, steps in steps()) {
            let mut buddy = Buddy::new(total);
            let mut taken = vec![false; total];
            let mut out: Vec<(usize, usize)> = Vec::new();
            for step in steps {
                match step {
                    Step::Take(granules) => {
                        let Some(start) = buddy.take(granules) else { continue };
                        prop_assert_eq!(start % granules.next_power_of_two(), 0);
                        for granule in &mut taken[start..start + granules] {
                            prop_assert!(!std::mem::replace(granule, true));
                        }
                        out.push((start, granules));
                    }
                    Step::Give(index) if !out.is_empty() => {
                        let (start, granules) = out.swap_remove(index.index(out.len()));
                        taken[start..start + granules].fill(false);
                        buddy.give(start, granules);
                    }
                    Step::Give(_) => {}
                }
            }
            for (start, granules) in out.drain(..) {
                buddy.give(start, granules);
            }
            prop_assert!(buddy.is_unused());
            let largest = 1 << total.ilog2();
            prop_assert!(buddy.take(largest).is_some(), "blocks have not merged");
        }
    }
}
