//! Memory that this process lends to the processes of one user.
//!
//! An arena is a list of sealed segments that peers map read-only. A [`Chunk`] is a range of one of them; it comes back
//! when dropped, and then its bytes are the next chunk's: a chunk's first contents are whatever lay there, and every
//! process that the segment was announced to can read them. Hence one arena per user.
//!
//! Segments are made and let go outside the lock, so that no thread waits for another's fresh pages.

use std::collections::BTreeSet;
use std::mem::{self, ManuallyDrop};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::sys::{fork, memfd};

pub(crate) use super::limit::{MemoryLimit, NoMemory};
#[cfg(test)]
pub(crate) use super::pool::ArenaStats;
use super::pool::{Evicted, Need, Piece, Pool};
use super::segment::Segment;

/// The largest alignment to be had: mappings begin at a page of at least this size, here and at the reader.
pub(crate) const ALIGN_MAX: usize = 4096;

/// The longest chunk: an eighth more is still a length that the machine can address.
const LEN_MAX: usize = isize::MAX as usize / 2;

/// The outgoing memory of one process for one user's processes. What is still lent when it is dropped stays.
pub(crate) struct Arena {
    shared: Arc<Shared>,
}

struct Shared {
    limit: MemoryLimit,
    /// The process it was made in; in a forked child the segments are not mapped and the lock may be held for ever.
    generation: u32,
    /// The id of the last segment made.
    last_id: AtomicU32,
    /// How many segments were let go. Stored (Release) after the pool has forgotten them and unlocked, so whoever reads a
    /// new number (Acquire) and then locks finds them gone.
    drops: AtomicU64,
    pool: Mutex<Pool>,
}

impl Arena {
    pub(crate) fn new(limit: MemoryLimit) -> Arena {
        let shared = Shared {
            limit,
            generation: fork::generation(),
            last_id: AtomicU32::new(0),
            drops: AtomicU64::new(0),
            pool: Mutex::new(Pool::new()),
        };
        Arena { shared: Arc::new(shared) }
    }

    /// A range of at least `len` bytes of unspecified contents, aligned to `align`, a power of two up to [`ALIGN_MAX`],
    /// and never to less than 256.
    ///
    /// `NoMemory` comes at once; it is also what a forked child gets, whose handles refuse before they come here.
    pub(crate) fn alloc(&self, len: usize, align: usize) -> Result<Chunk, NoMemory> {
        assert!(align.is_power_of_two() && align <= ALIGN_MAX, "alignment {align} cannot be had");
        if len > LEN_MAX {
            return Err(NoMemory);
        }
        // A class is aligned to the power of two at or above it, so a length of `align` gives the alignment.
        let need = Need::of(len.max(align));
        let taken = self.shared.pool().ok_or(NoMemory)?.take(need);
        let piece = match taken {
            Some(piece) => piece,
            None => self.shared.grow(need)?,
        };
        let shared = ManuallyDrop::new(Arc::clone(&self.shared));
        Ok(Chunk { shared, piece: ManuallyDrop::new(piece), len })
    }

    /// Gives all that is not in use back to the system, as far as whole segments are free.
    pub(crate) fn trim(&self) {
        self.shared.trim();
    }

    /// A number that grows with each segment let go: as long as it has not changed, no announcement is out of date.
    #[inline]
    pub(crate) fn drops(&self) -> u64 {
        self.shared.drops.load(Ordering::Acquire)
    }

    /// Removes from the ids announced on a lane those of segments that are gone, and returns them: the peer is to unmap
    /// them. No message on its way refers to one, since the chunk in it would have kept the segment.
    pub(crate) fn forget_dropped(&self, announced: &mut BTreeSet<u32>) -> BTreeSet<u32> {
        let Some(pool) = self.shared.pool() else { return BTreeSet::new() };
        let (live, gone) = mem::take(announced).into_iter().partition(|&id| pool.is_live(id));
        *announced = live;
        gone
    }

    #[cfg(test)]
    pub(crate) fn stats(&self) -> ArenaStats {
        self.shared.pool().map_or_else(ArenaStats::default, |pool| pool.stats())
    }
}

#[cfg(test)]
impl Arena {
    /// Checks what must hold whenever the pool is not locked.
    pub(super) fn assert_invariants(&self) {
        self.shared.pool.lock().assert_invariants();
    }

    /// What a fork finds that happens while another thread allocates.
    pub(super) fn while_locked<R>(&self, f: impl FnOnce() -> R) -> R {
        let _locked = self.shared.pool.lock();
        f()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let evicted = self.shared.pool().map(|mut pool| pool.close());
        self.shared.let_go(evicted.unwrap_or_default());
    }
}

impl Shared {
    /// The lock, except in a forked child.
    #[inline]
    fn pool(&self) -> Option<MutexGuard<'_, Pool>> {
        (!fork::forked_since(self.generation)).then(|| self.pool.lock())
    }

    #[cold]
    fn grow(&self, need: Need) -> Result<Piece, NoMemory> {
        let divided = self.pool().ok_or(NoMemory)?.divided_bytes();
        let [preferred, least] = need.segment_lens(divided, memfd::page_size());
        let segment = self.make(preferred).or_else(|NoMemory| {
            self.trim();
            self.make(preferred).or_else(|NoMemory| self.make(least))
        })?;
        Ok(self.pool().ok_or(NoMemory)?.adopt(Arc::new(segment), need))
    }

    fn make(&self, len: usize) -> Result<Segment, NoMemory> {
        Segment::create(&self.last_id, len, &self.limit)
    }

    fn trim(&self) {
        let evicted = self.pool().map(|mut pool| pool.trim());
        self.let_go(evicted.unwrap_or_default());
    }

    /// Unmaps and closes; the pool must not be locked, since this may take as long as the kernel likes.
    fn let_go(&self, evicted: Evicted) {
        if !evicted.is_empty() {
            self.drops.fetch_add(evicted.len() as u64, Ordering::Release);
        }
    }
}

/// A range of shared memory that this process alone writes, and nobody else's until it is dropped.
///
/// Whoever lends it keeps it, unchanged, until the lease is back: a reader of the same user reads it in place.
pub(crate) struct Chunk {
    shared: ManuallyDrop<Arc<Shared>>,
    piece: ManuallyDrop<Piece>,
    /// At most the piece's.
    len: usize,
}

impl Chunk {
    /// To be announced on a lane before a message there refers to it.
    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.piece.segment
    }

    pub(crate) fn segment_id(&self) -> u32 {
        self.piece.segment.id()
    }

    /// Where in the segment it begins, in bytes.
    pub(crate) fn offset(&self) -> u64 {
        self.piece.offset() as u64
    }

    #[cfg(test)]
    /// What was asked for, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[cfg(test)]
    /// Where it begins in this process; mapped as long as the chunk lives, but not in a forked child.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.piece.segment.at(self.piece.offset())
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.assert_mapped();
        // SAFETY: the piece lies in the segment, is at least `len` bytes long and mapped for as long as `self` holds
        // the segment (which `assert_mapped` has seen not to be in a forked child). Its bytes are initialised: fresh
        // pages are zero. No other chunk overlaps it (the pool's invariant), other processes can only read it (the
        // seal), and `&mut self` excludes all other references in this one.
        unsafe { slice::from_raw_parts_mut(self.piece.segment.at(self.piece.offset()), self.len) }
    }

    #[cfg(test)]
    pub(crate) fn as_slice(&self) -> &[u8] {
        self.assert_mapped();
        // SAFETY: as in `as_mut_slice`; `&self` excludes writers in this process, and the seal all others.
        unsafe { slice::from_raw_parts(self.piece.segment.at(self.piece.offset()), self.len) }
    }

    fn assert_mapped(&self) {
        let here = !fork::forked_since(self.shared.generation);
        assert!(
            here,
            "this memory was lent before fork() and is not mapped in the child; open the bus again there"
        );
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if fork::forked_since(self.shared.generation) {
            // The pool's lock may be held by a thread that does not exist here.
            return;
        }
        // SAFETY: a value is dropped once, and nothing looks at the two fields after this.
        let (shared, piece) =
            unsafe { (ManuallyDrop::take(&mut self.shared), ManuallyDrop::take(&mut self.piece)) };
        let evicted = shared.pool.lock().give(piece);
        shared.let_go(evicted);
    }
}
