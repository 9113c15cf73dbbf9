//! Memory that this process lends to the processes of one user.
//!
//! An arena is a list of sealed segments that peers map read-only. A [`Chunk`] is a range of one of them; it comes back
//! when dropped, and then its bytes are the next chunk's: a chunk's first contents are whatever lay there, and every
//! process that the segment was announced to can read them. Hence one arena per user.
//!
//! The chunk freed last is had again without a lock ([`Slots`]); all others by the [`Pool`]. Segments are made and let go
//! outside the lock, so that no thread waits for another's fresh pages.

use std::collections::BTreeSet;
use std::mem::{self, ManuallyDrop};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::sys::{clock, fork, memfd};

pub(crate) use super::limit::{MemoryLimit, NoMemory};
use super::memory::UserMemory;
pub(crate) use super::pool::ArenaStats;
use super::pool::{Need, Piece, Pool};
use super::returns::{self, Wait};
use super::segment::Segment;
use super::slots::{Slot, SlotIndex, Slots};
use super::supply::{Account, LentCharge, Supply, User};

/// The largest alignment to be had: mappings begin at a page of at least this size, here and at the reader.
pub(crate) const ALIGN_MAX: usize = 4096;

/// The longest chunk: an eighth more is still a length that the machine can address.
const LEN_MAX: usize = isize::MAX as usize / 2;

/// The outgoing memory of one process for one user's processes. What is still lent when it is dropped stays.
pub(crate) struct Arena {
    shared: Arc<Shared>,
}

/// An arena, for as long as one of its chunks lives.
pub(super) struct Shared {
    account: Account,
    /// The process it was made in; in a forked child the segments are not mapped and the lock may be held for ever.
    generation: u32,
    /// How many segments were let go. Stored (Release) after the pool has forgotten them and unlocked, so whoever reads a
    /// new number (Acquire) and then locks finds them gone.
    drops: AtomicU64,
    pool: Mutex<Pool>,
    slots: Slots,
}

/// Why waiting for memory ended without any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitError {
    /// It cannot be had, however long one waits.
    NoMemory,
    /// The deadline passed.
    TimedOut,
}

impl Arena {
    /// An arena that has its limit for itself.
    #[cfg(test)]
    pub(crate) fn new(limit: MemoryLimit) -> Arena {
        Arena::of(Arc::new(Supply::of(limit)), User::Own)
    }

    /// An arena for the processes of one user.
    pub(crate) fn of(supply: Arc<Supply>, user: User) -> Arena {
        let shared = Shared {
            account: Account::new(supply, user),
            generation: fork::generation(),
            drops: AtomicU64::new(0),
            pool: Mutex::new(Pool::new()),
            slots: Slots::new(),
        };
        Arena { shared: Arc::new(shared) }
    }

    /// A range of at least `len` bytes of unspecified contents, aligned to `align`, a power of two up to [`ALIGN_MAX`],
    /// and never to less than 256.
    ///
    /// `NoMemory` comes at once; it is also what a forked child gets, whose handles refuse before they come here.
    #[inline]
    pub(crate) fn alloc(&self, len: usize, align: usize) -> Result<Chunk, NoMemory> {
        let need = Self::need(len, align)?;
        if fork::forked_since(self.shared.generation) {
            return Err(NoMemory);
        }
        let found = SlotIndex::of(need).and_then(|slot| self.shared.slots.at(slot).take());
        let piece = match found {
            Some(piece) if piece.suits(need) => piece,
            other => self.shared.alloc(need, other)?,
        };
        Ok(Chunk { piece: ManuallyDrop::new(piece), len })
    }

    /// As [`alloc`](Self::alloc), but waits for memory to come back until `deadline_ns` (CLOCK_MONOTONIC).
    pub(crate) fn alloc_until(&self, len: usize, align: usize, deadline_ns: u64) -> Result<Chunk, WaitError> {
        if let Ok(chunk) = self.alloc(len, align) {
            return Ok(chunk);
        }
        let ever = Self::need(len, align).is_ok_and(|need| self.shared.could_have(need));
        if !ever || fork::forked_since(self.shared.generation) {
            return Err(WaitError::NoMemory);
        }
        let _wanting = self.shared.account.wait();
        let wait = Wait::begin();
        loop {
            let seen = wait.seen();
            if let Ok(chunk) = self.alloc(len, align) {
                return Ok(chunk);
            }
            if clock::now_ns() >= deadline_ns {
                return Err(WaitError::TimedOut);
            }
            wait.sleep(seen, deadline_ns);
        }
    }

    #[inline]
    fn need(len: usize, align: usize) -> Result<Need, NoMemory> {
        assert!(align.is_power_of_two() && align <= ALIGN_MAX, "alignment {align} cannot be had");
        // A class is aligned to the power of two at or above it, so a length of `align` gives the alignment.
        if len <= LEN_MAX { Ok(Need::of(len.max(align))) } else { Err(NoMemory) }
    }

    /// Gives all that is not in use back to the system, as far as whole segments are free.
    pub(crate) fn trim(&self) {
        self.shared.locked(Pool::trim);
    }

    /// Counts `bytes` as lent to the arena's user, until [`return_lent`](Self::return_lent).
    #[inline]
    pub(crate) fn charge_lent(&self, bytes: u64) -> Result<LentCharge, NoMemory> {
        self.shared.account.charge_lent(bytes)
    }

    #[inline]
    pub(crate) fn return_lent(&self, charge: LentCharge) {
        self.shared.account.return_lent(charge);
    }

    /// The bytes that are lent now, those lent several times counted as often.
    #[cfg(test)]
    pub(crate) fn lent(&self) -> u64 {
        self.shared.account.lent()
    }

    /// A number that grows with each segment let go: as long as it has not changed, no announcement is out of date.
    #[inline]
    pub(crate) fn drops(&self) -> u64 {
        self.shared.drops.load(Ordering::Acquire)
    }

    /// Removes from the ids announced on a lane those of segments that are gone, and returns them: the peer is to unmap
    /// them. No message on its way refers to one, since the chunk in it would have kept the segment.
    pub(crate) fn forget_dropped(&self, announced: &mut BTreeSet<u32>) -> BTreeSet<u32> {
        self.shared
            .locked(|pool, _| {
                let (live, gone) = mem::take(announced).into_iter().partition(|&id| pool.is_live(id));
                *announced = live;
                gone
            })
            .unwrap_or_default()
    }

    /// Exact, but for chunks that other threads take or drop meanwhile.
    pub(crate) fn stats(&self) -> ArenaStats {
        self.shared.locked(Pool::stats).unwrap_or_default()
    }

    /// As users are told; `uid` is the arena's user, `lent` what is lent to it.
    pub(crate) fn memory(&self, uid: u32, lent: u64) -> UserMemory {
        let ArenaStats { allocated, in_use, cached, peak, segments } = self.stats();
        let account = &self.shared.account;
        UserMemory { uid, limit: account.limit(), allocated, in_use, cached, peak, segments, lent }
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
        self.shared.locked(Pool::close);
    }
}

impl Shared {
    /// Runs `f` under the lock, then lets go of the segments that it has evicted: without the lock, since unmapping takes
    /// as long as the kernel likes. Does nothing in a forked child.
    fn locked<R>(&self, f: impl FnOnce(&mut Pool, &Slots) -> R) -> Option<R> {
        if fork::forked_since(self.generation) {
            return None;
        }
        let mut pool = self.pool.lock();
        let result = f(&mut pool, &self.slots);
        let evicted = pool.take_evicted();
        drop(pool);
        if !evicted.is_empty() {
            self.drops.fetch_add(evicted.len() as u64, Ordering::Release);
            drop(evicted);
            returns::announce();
        }
        Some(result)
    }

    /// Where no slot has what is needed; `unfit` is what one had instead.
    #[cold]
    fn alloc(self: &Arc<Self>, need: Need, unfit: Option<Box<Piece>>) -> Result<Box<Piece>, NoMemory> {
        if let Some(unfit) = unfit {
            self.give(unfit);
            // Who waits may have found neither the slot's piece nor the pool's.
            returns::announce();
        }
        let mut piece = self.take(need).or_else(|NoMemory| {
            if !self.could_have(need) {
                return Err(NoMemory);
            }
            self.account.reclaim();
            self.take(need)
        })?;
        piece.owner = Some(Arc::clone(self));
        Ok(piece)
    }

    fn take(&self, need: Need) -> Result<Box<Piece>, NoMemory> {
        match self.locked(|pool, slots| pool.take(need, slots)).ok_or(NoMemory)? {
            Some(piece) => Ok(piece),
            None => self.grow(need),
        }
    }

    fn grow(&self, need: Need) -> Result<Box<Piece>, NoMemory> {
        let divided = self.locked(|pool, _| pool.divided_bytes()).ok_or(NoMemory)?;
        let [preferred, least] = need.segment_lens(divided, memfd::page_size());
        let segment = self.make(preferred).or_else(|NoMemory| {
            self.locked(Pool::trim);
            self.make(preferred).or_else(|NoMemory| self.make(least))
        })?;
        self.locked(|pool, slots| pool.adopt(Arc::new(segment), need, slots)).ok_or(NoMemory)
    }

    fn make(&self, len: usize) -> Result<Segment, NoMemory> {
        Segment::create(len, self.account.charge(len as u64)?)
    }

    /// Whether the limits would allow it if all memory were free.
    fn could_have(&self, need: Need) -> bool {
        let [_, least] = need.segment_lens(0, memfd::page_size());
        least as u64 <= self.account.limit()
    }

    /// Takes back a piece that no slot keeps.
    #[cold]
    fn give(&self, piece: Box<Piece>) {
        self.locked(|pool, slots| pool.give(piece, slots));
    }
}

/// A range of shared memory that this process alone writes, and nobody else's until it is dropped.
///
/// Whoever lends it keeps it, unchanged, until the lease is back: a reader of the same user reads it in place.
pub(crate) struct Chunk {
    piece: ManuallyDrop<Box<Piece>>,
    /// At most the piece's.
    len: usize,
}

impl Piece {
    /// The arena of a piece that a chunk has.
    #[inline]
    fn owner(&self) -> &Arc<Shared> {
        self.owner.as_ref().expect("only the pool's own pieces have none")
    }
}

impl Chunk {
    /// Whether it is memory of `arena`.
    pub(crate) fn is_of(&self, arena: &Arena) -> bool {
        Arc::ptr_eq(self.piece.owner(), &arena.shared)
    }

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

    /// Where in the segment the byte at this address of the chunk's lies.
    #[inline]
    pub(crate) fn offset_of(&self, byte: NonNull<u8>) -> u64 {
        (byte.addr().get() - self.piece.segment.at(0).addr()) as u64
    }

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

    /// The bytes, unspecified where nobody wrote them.
    pub(crate) fn as_slice(&self) -> &[u8] {
        self.assert_mapped();
        // SAFETY: as in `as_mut_slice`; `&self` excludes writers in this process, and the seal all others.
        unsafe { slice::from_raw_parts(self.piece.segment.at(self.piece.offset()), self.len) }
    }

    /// Whether this process was forked from the one that allocated it.
    #[inline]
    pub(crate) fn is_inherited(&self) -> bool {
        fork::forked_since(self.piece.owner().generation)
    }

    fn assert_mapped(&self) {
        assert!(
            !self.is_inherited(),
            "this memory was lent before fork() and is not mapped in the child; open the bus again there"
        );
    }
}

impl Drop for Chunk {
    #[inline]
    fn drop(&mut self) {
        if self.is_inherited() {
            // The pool's lock may be held by a thread that does not exist here, and the bytes are the parent's.
            return;
        }
        // SAFETY: a value is dropped once, and nothing looks at the field after this.
        let piece = unsafe { ManuallyDrop::take(&mut self.piece) };
        let rest = match piece.slot {
            Some(index) => {
                let slot: *const Slot = piece.owner().slots.at(index);
                // SAFETY: the piece refers to the arena that the slot is a part of.
                unsafe { Slot::put(slot, piece) }
            }
            None => Some(piece),
        };
        if let Some(mut piece) = rest
            && let Some(owner) = piece.owner.take()
        {
            owner.give(piece);
        }
        returns::announce();
    }
}
