//! A channel: items from one process to another, one way.
//!
//! The sender writes items into a ring of words in its memory, one behind the other; the receiver says in its own how much it
//! has taken, which is the sender's credit. An item is a header and its words. The header's release store publishes it, and
//! before that the word behind the item is cleared, where the next header will stand: so a look at one word tells whether there
//! is an item, and a sender that stops at any instruction has sent it whole or not at all.
//!
//! Either side that finds nothing to do says so in its `sleep` word by an arm number, fences, and looks once more; the other
//! wakes it once for each number. The sender adds how much must be taken until waking it is worth it.

use std::ptr::NonNull;

use super::layout::{LOAN_WORDS, len_with_loans};
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// Words of the ring.
pub(crate) const CHANNEL_WORDS: usize = if cfg!(loom) { 8 } else { 2048 };
/// Words that an item takes at most, its header included; what is larger lies in the arena.
pub(crate) const ITEM_WORDS: usize = CHANNEL_WORDS / 4;
/// Words left free behind an item: the cleared one, and the header of the channel's end.
const RESERVED: usize = 2;
/// So much is taken before the sender is told, unless nothing is left to take.
const TELL_WORDS: u32 = CHANNEL_WORDS as u32 / 8;

/// Written by the sender, mapped read-only by the receiver.
#[repr(C)]
pub(crate) struct SenderMemory {
    /// Low half: 0, or the arm number of a sender that waits for room. High half: how much must be taken, by then, to wake it.
    pub sleep: AtomicU64,
    /// The sender's processor plus one; 0: not told.
    pub cpu: AtomicU32,
    pub ring: ItemRing,
}

/// The items, on lines of their own.
#[repr(C, align(128))]
pub(crate) struct ItemRing(pub [AtomicU64; CHANNEL_WORDS]);

/// Written by the receiver, mapped read-only by the sender, who looks at the first line after each item.
#[repr(C)]
pub(crate) struct ReceiverMemory {
    /// 0, or the arm number of a receiver that waits for an item.
    pub sleep: AtomicU32,
    /// Not 0: nothing more is taken.
    pub closed: AtomicU32,
    /// The receiver's processor plus one; 0: not told.
    pub cpu: AtomicU32,
    pub taken: Taken,
}

/// How many words were taken since the beginning, modulo 2^32; on a line of its own.
#[repr(C, align(128))]
pub(crate) struct Taken(pub AtomicU32);

/// Memories for the models, which cannot be zeroed pages.
#[cfg(loom)]
impl SenderMemory {
    pub fn fresh() -> SenderMemory {
        let ring = ItemRing(std::array::from_fn(|_| AtomicU64::new(0)));
        SenderMemory { sleep: AtomicU64::new(0), cpu: AtomicU32::new(0), ring }
    }
}

#[cfg(loom)]
impl ReceiverMemory {
    pub fn fresh() -> ReceiverMemory {
        let word = || AtomicU32::new(0);
        ReceiverMemory { sleep: word(), closed: word(), cpu: word(), taken: Taken(word()) }
    }
}

/// The first word of an item: the encoded body's length (32 bits), the number of loans (16), flags (16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ItemHeader {
    pub len: u32,
    pub lent: u16,
    pub flags: u16,
}

impl ItemHeader {
    /// Of every header, so that none is 0.
    pub const PRESENT: u16 = 1;
    /// The body lies in an arena segment, and its loans with it; a [`Loan`](super::layout::Loan) stands in its place.
    pub const SPILLED: u16 = 2;
    /// A word before the body tells how many items were left out before this one.
    pub const MISSED: u16 = 4;
    /// The channel ends here. A body is a refusal of the bus; without one the items came to their end.
    pub const END: u16 = 8;
    /// With `END`: there was more to come, or to say, and no room to say why.
    pub const CUT: u16 = 16;
    const KNOWN: u16 = 31;

    pub fn pack(self) -> u64 {
        u64::from(self.len) | u64::from(self.lent) << 32 | u64::from(self.flags | Self::PRESENT) << 48
    }

    /// `None` where no honest sender writes such a word.
    pub fn unpack(word: u64) -> Option<ItemHeader> {
        let header = ItemHeader { len: word as u32, lent: (word >> 32) as u16, flags: (word >> 48) as u16 };
        let is_known = header.flags & !Self::KNOWN == 0 && header.has(Self::PRESENT);
        // The end is no item: what it says stands behind its header, and is nothing else.
        let is_plain = header.lent == 0 && !header.has(Self::SPILLED | Self::MISSED);
        let is_sound = is_known && (is_plain || !header.has(Self::END));
        (is_sound && header.words() <= ITEM_WORDS as u64).then_some(header)
    }

    #[inline(always)]
    pub fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Words of the whole item.
    #[inline(always)]
    pub fn words(self) -> u64 {
        let body = if self.has(Self::SPILLED) {
            LOAN_WORDS as u64
        } else {
            len_with_loans(self.len.into(), self.lent.into()).div_ceil(8)
        };
        1 + u64::from(self.has(Self::MISSED)) + body
    }
}

/// The peer wrote what no honest one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Impossible;

/// The sender's end.
pub(crate) struct SendEnd {
    mine: NonNull<SenderMemory>,
    theirs: NonNull<ReceiverMemory>,
    /// Words written, modulo 2^32.
    sent: u32,
    /// As last read.
    taken: u32,
    /// The last arm number that a wake was sent for.
    woken: u32,
}

// SAFETY: both memories are only touched through atomics, and stay mapped as long as the end (see `new`).
unsafe impl Send for SendEnd {}
// SAFETY: as above; a shared reference reads and stores atomics only.
unsafe impl Sync for SendEnd {}

impl SendEnd {
    /// Over two fresh (zeroed) memories.
    ///
    /// # Safety
    ///
    /// Both must be mapped, `mine` for writing, as long as this value is used; nobody else in this process writes `mine`.
    pub unsafe fn new(mine: NonNull<SenderMemory>, theirs: NonNull<ReceiverMemory>) -> SendEnd {
        SendEnd { mine, theirs, sent: 0, taken: 0, woken: 0 }
    }

    #[inline(always)]
    fn mine(&self) -> &SenderMemory {
        // SAFETY: mapped (see `new`), atomics only.
        unsafe { self.mine.as_ref() }
    }

    #[inline(always)]
    fn theirs(&self) -> &ReceiverMemory {
        // SAFETY: as above.
        unsafe { self.theirs.as_ref() }
    }

    /// Where the next item begins, in words since the beginning.
    pub fn position(&self) -> u32 {
        self.sent
    }

    /// Whether what ends at `position` was taken, as last read.
    pub fn has_taken(&self, position: u32) -> bool {
        self.taken.wrapping_sub(position) as i32 >= 0
    }

    #[inline(always)]
    fn room(&self) -> usize {
        CHANNEL_WORDS - self.sent.wrapping_sub(self.taken) as usize
    }

    /// Whether an item of so many words finds room.
    #[inline(always)]
    pub fn has_room(&mut self, words: usize) -> Result<bool, Impossible> {
        if self.room() >= words + RESERVED {
            return Ok(true);
        }
        self.look()?;
        Ok(self.room() >= words + RESERVED)
    }

    /// Reads how much was taken.
    pub fn look(&mut self) -> Result<(), Impossible> {
        // Acquire: the receiver has read all that was taken, which may be written over.
        let taken = self.theirs().taken.0.load(Ordering::Acquire);
        // It never goes back, nor beyond what was sent.
        if taken.wrapping_sub(self.taken) > self.sent.wrapping_sub(self.taken) {
            return Err(Impossible);
        }
        self.taken = taken;
        Ok(())
    }

    /// Writes an item and publishes it. There must be [room](Self::has_room), which there always is for the header of the end.
    #[inline(always)]
    pub fn push(&mut self, header: ItemHeader, parts: [&[u64]; 3]) {
        let ring = &self.mine().ring.0;
        let at = |words: u32| self.sent.wrapping_add(words) as usize % CHANNEL_WORDS;
        let mut words = 1;
        for word in parts.into_iter().flatten() {
            ring[at(words)].store(*word, Ordering::Relaxed);
            words += 1;
        }
        debug_assert_eq!(u64::from(words), header.words());
        ring[at(words)].store(0, Ordering::Relaxed);
        // Release: the item, and the end behind it, come before.
        ring[at(0)].store(header.pack(), Ordering::Release);
        self.sent = self.sent.wrapping_add(words);
    }

    /// After [`push`](Self::push): whether the receiver must be woken.
    #[inline(always)]
    pub fn must_wake(&mut self) -> bool {
        // Pairs with the fence of `TakeEnd::arm`: either the receiver sees the item, or we see that it sleeps.
        fence(Ordering::SeqCst);
        let arm = self.theirs().sleep.load(Ordering::Relaxed);
        let wakes = arm != 0 && arm != self.woken;
        if wakes {
            self.woken = arm;
        }
        wakes
    }

    /// Whether the receiver takes nothing more; what [`look`](Self::look) then reads is its last word.
    #[inline(always)]
    pub fn is_closed(&self) -> bool {
        // Acquire: pairs with `TakeEnd::close`.
        self.theirs().closed.load(Ordering::Acquire) != 0
    }

    /// Says that the sender waits, until what ends at `position` is taken, or there is room for so many words. Then look again.
    pub fn arm(&self, arm: u32, wanted: Wanted) {
        let until = match wanted {
            Wanted::Taken(position) => position,
            // For half of the ring at least, so that a wake is worth its while.
            Wanted::Room(words) => {
                let room = (words + RESERVED).max(CHANNEL_WORDS / 2) as u32;
                self.sent.wrapping_sub(CHANNEL_WORDS as u32 - room)
            }
        };
        self.mine().sleep.store(u64::from(arm) | u64::from(until) << 32, Ordering::Relaxed);
        // Pairs with the fence of `TakeEnd::tell`: either we see what was taken, or the receiver sees that we wait.
        fence(Ordering::SeqCst);
    }

    /// Tells where this side runs.
    pub fn note_cpu(&self, cpu: u16) {
        note_cpu(&self.mine().cpu, cpu);
    }
}

/// What a sender waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// That what ends at this position is taken.
    Taken(u32),
    /// Room for so many words.
    Room(usize),
}

fn note_cpu(word: &AtomicU32, cpu: u16) {
    let cpu = u32::from(cpu) + 1;
    if word.load(Ordering::Relaxed) != cpu {
        word.store(cpu, Ordering::Relaxed);
    }
}

fn peer_cpu(word: &AtomicU32) -> Option<u16> {
    word.load(Ordering::Relaxed).checked_sub(1).map(|cpu| cpu as u16)
}

/// The receiver's end.
pub(crate) struct TakeEnd {
    mine: NonNull<ReceiverMemory>,
    theirs: NonNull<SenderMemory>,
    /// Words taken, modulo 2^32.
    taken: u32,
    /// As the sender was told last.
    told: u32,
    /// The last arm number that a wake was sent for.
    woken: u32,
}

// SAFETY: as for `SendEnd`.
unsafe impl Send for TakeEnd {}
// SAFETY: as for `SendEnd`.
unsafe impl Sync for TakeEnd {}

impl TakeEnd {
    /// Over two memories, `mine` fresh (zeroed).
    ///
    /// # Safety
    ///
    /// As for [`SendEnd::new`].
    pub unsafe fn new(mine: NonNull<ReceiverMemory>, theirs: NonNull<SenderMemory>) -> TakeEnd {
        TakeEnd { mine, theirs, taken: 0, told: 0, woken: 0 }
    }

    #[inline(always)]
    fn mine(&self) -> &ReceiverMemory {
        // SAFETY: mapped (see `new`), atomics only.
        unsafe { self.mine.as_ref() }
    }

    #[inline(always)]
    fn theirs(&self) -> &SenderMemory {
        // SAFETY: as above.
        unsafe { self.theirs.as_ref() }
    }

    #[inline(always)]
    fn word(&self, at: u32) -> &AtomicU64 {
        &self.theirs().ring.0[self.taken.wrapping_add(at) as usize % CHANNEL_WORDS]
    }

    /// Whether there is an item.
    #[inline(always)]
    pub fn has_item(&self) -> bool {
        self.word(0).load(Ordering::Relaxed) != 0
    }

    /// The header of the next item, if there is one.
    #[inline(always)]
    pub fn look(&self) -> Result<Option<ItemHeader>, Impossible> {
        // Acquire: pairs with the release store that publishes.
        match self.word(0).load(Ordering::Acquire) {
            0 => Ok(None),
            word => ItemHeader::unpack(word).map(Some).ok_or(Impossible),
        }
    }

    /// Copies the words behind the header of the item looked at: each is read once.
    #[inline(always)]
    pub fn read(&self, header: ItemHeader, words: &mut [u64; ITEM_WORDS]) {
        for at in 1..header.words() as u32 {
            words[at as usize - 1] = self.word(at).load(Ordering::Relaxed);
        }
    }

    /// Done with the item looked at; it may be written over once the sender is [told](Self::tell).
    #[inline(always)]
    pub fn advance(&mut self, header: ItemHeader) {
        self.taken = self.taken.wrapping_add(header.words() as u32);
    }

    /// Whether so much was taken that the sender should be told.
    #[inline(always)]
    pub fn owes(&self) -> bool {
        self.taken.wrapping_sub(self.told) >= TELL_WORDS
    }

    /// Tells the sender what was taken; whether it must be woken.
    pub fn tell(&mut self) -> bool {
        if self.told == self.taken {
            return false;
        }
        self.told = self.taken;
        // Release: what was read comes before.
        self.mine().taken.0.store(self.taken, Ordering::Release);
        // Pairs with the fence of `SendEnd::arm`.
        fence(Ordering::SeqCst);
        let sleep = self.theirs().sleep.load(Ordering::Relaxed);
        let (arm, until) = (sleep as u32, (sleep >> 32) as u32);
        let wakes = arm != 0 && arm != self.woken && self.taken.wrapping_sub(until) as i32 >= 0;
        if wakes {
            self.woken = arm;
        }
        wakes
    }

    /// Says that the receiver waits for an item. Then look again.
    pub fn arm(&self, arm: u32) {
        self.mine().sleep.store(arm, Ordering::Relaxed);
        // Pairs with the fence of `SendEnd::must_wake`.
        fence(Ordering::SeqCst);
    }

    /// Undoes [`arm`](Self::arm).
    pub fn disarm(&self) {
        if self.mine().sleep.load(Ordering::Relaxed) != 0 {
            self.mine().sleep.store(0, Ordering::Relaxed);
        }
    }

    /// Takes nothing more. What was not taken by now, the sender may have back.
    pub fn close(&self) {
        self.mine().taken.0.store(self.taken, Ordering::Release);
        // Release: with the last word on what was taken before it.
        self.mine().closed.store(1, Ordering::Release);
    }

    /// Tells where this side runs.
    pub fn note_cpu(&self, cpu: u16) {
        note_cpu(&self.mine().cpu, cpu);
    }

    /// Where the sender runs, if it has told.
    pub fn peer_cpu(&self) -> Option<u16> {
        peer_cpu(&self.theirs().cpu)
    }
}
