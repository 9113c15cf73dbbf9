//! The bytes of a lane: what each side writes and the other reads.
//!
//! `docs/layout.md` is the same in prose, precise enough for another language; a test ties the two. Every word has
//! exactly one writing process. A zeroed memory is a valid, empty one, so a fresh memfd needs no initialisation.

use crate::sync::{AtomicU32, AtomicU64, Word};

/// Calls that one lane can have in flight: its response slots, and the cells of its request ring.
///
/// 64 because one word holds the set of free slots; with 256-byte cells both memories of a lane stay at 44 KiB.
pub(crate) const SLOTS: usize = if cfg!(loom) { 2 } else { 64 };
/// Bytes of a request body that fit its cell.
pub(crate) const REQUEST_BODY: usize = if cfg!(loom) { 16 } else { 224 };
/// Bytes of a response body that fit its slot.
pub(crate) const RESPONSE_BODY: usize = if cfg!(loom) { 8 } else { 240 };
/// Words of a request body in the cell's first cache line; they are copied without looking at the length.
pub(crate) const REQUEST_FIRST_WORDS: usize = if cfg!(loom) { 1 } else { 4 };
/// Words of a response body in the slot's first cache line.
pub(crate) const RESPONSE_FIRST_WORDS: usize = if cfg!(loom) { 1 } else { 6 };

/// One request. Written whole by the caller, then published by `number`.
#[repr(C, align(256))]
pub(crate) struct RequestCell {
    /// Position in the ring's endless sequence, plus one. The release store of it publishes the cell.
    pub number: AtomicU32,
    /// Packed [`RequestMeta`].
    pub meta: AtomicU32,
    /// The method's key.
    pub key: AtomicU64,
    /// Milliseconds of the owner's CLOCK_MONOTONIC, modulo 2^32, after which the call need not begin; 0: none.
    pub deadline_ms: AtomicU32,
    /// Length of the encoded body in bytes; of the whole of it also where it is spilled.
    pub len: AtomicU32,
    /// Buffers lent with the request: so many [`Loan`]s follow its body.
    pub lent: AtomicU32,
    /// The number of a lease of the owner's that is given back herewith; 0: none.
    pub returned: AtomicU32,
    pub body: [AtomicU64; REQUEST_BODY / 8],
}

/// What the caller says about one slot while a call is out. On a line of its own, so that it moves between the
/// processors only when the caller goes to sleep or gives up, never in a hot call.
#[repr(C, align(64))]
pub(crate) struct SlotControl {
    /// Who waits for the answer: [`AWAKE`], [`ON_FUTEX`], or the lane's arm number (>= [`FIRST_ARM`]).
    pub sleep: AtomicU32,
    /// The answer number of the call that its caller has given up; 0: none.
    pub withdrawn: AtomicU32,
    /// [`COLD`] or [`HOT`]: whether the next call is likely to follow at once. Of slot 0 only, for the whole lane: in a line of
    /// its own it would cost the lane another page.
    pub hint: AtomicU32,
}

/// Written by the caller, mapped read-only by the owner.
#[repr(C)]
pub(crate) struct RequestMemory {
    pub control: [SlotControl; SLOTS],
    pub cells: [RequestCell; SLOTS],
    /// Of what the owner lent.
    pub returns: Returns,
}

/// One response. Written whole by the owner, then published by `count`.
#[repr(C, align(256))]
pub(crate) struct ResponseSlot {
    /// How many answers were given in this slot. One call per slot is out, so its caller waits for one more.
    pub count: Word,
    /// Packed [`ResponseMeta`].
    pub meta: AtomicU32,
    /// Length of the encoded body in bytes; of the whole of it also where it is spilled.
    pub len: AtomicU32,
    /// Buffers lent with the response: so many [`Loan`]s follow its body.
    pub lent: AtomicU32,
    pub body: [AtomicU64; RESPONSE_BODY / 8],
}

/// Written by the owner, mapped read-only by the caller.
#[repr(C)]
pub(crate) struct ResponseMemory {
    /// With [`POLLED`] some thread of the owner looks at this lane by itself. Another number each time that one comes or leaves.
    pub polled: AtomicU32,
    /// [`OPEN`], [`CLOSING`] or [`REPLACED`].
    pub closing: AtomicU32,
    /// Per slot the answer number of the last call begun in it. Apart from everything that anyone spins on.
    pub started: StartedWords,
    pub slots: [ResponseSlot; SLOTS],
    /// Of what the caller lent.
    pub returns: Returns,
}

/// `started`, moved off the line of `polled`.
#[repr(C, align(128))]
pub(crate) struct StartedWords(pub [AtomicU32; SLOTS]);

/// `SlotControl::sleep`: nobody needs waking.
pub(crate) const AWAKE: u32 = 0;
/// `SlotControl::sleep`: a thread sleeps on the slot's count.
pub(crate) const ON_FUTEX: u32 = 1;
/// `SlotControl::sleep`: the smallest arm number; a task waits for a word on the lane's socket.
pub(crate) const FIRST_ARM: u32 = 2;
/// Bit of an arm number: the word goes over the socket that the caller sent for that, if the owner has it.
pub(crate) const BY_NOTIFY: u32 = 1 << 31;

/// `SlotControl::hint`: the next call is not expected soon; do not wait for it.
pub(crate) const COLD: u32 = 0;
/// `SlotControl::hint`: the next call is expected within microseconds.
pub(crate) const HOT: u32 = 1;

/// Bit of `ResponseMemory::polled`: a publication will be seen without a ring, as long as its caller spins. Without it: ring.
pub(crate) const POLLED: u32 = 1;

/// `ResponseMemory::closing`: calls are taken.
pub(crate) const OPEN: u32 = 0;
/// `ResponseMemory::closing`: the object is being withdrawn; calls not begun are answered with that.
pub(crate) const CLOSING: u32 = 1;
/// `ResponseMemory::closing`: another process has taken the name over; calls in the ring are still run.
pub(crate) const REPLACED: u32 = 2;
/// `ResponseMemory::closing`: the caller broke the protocol; nothing is taken from it any more.
pub(crate) const BROKEN: u32 = 3;

/// The CPU number of a side that does not know or tell where it runs.
pub(crate) const NO_CPU: u16 = u16::MAX;

/// A request's `meta` word: slot (8 bits), flags (8), the caller's CPU (16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestMeta {
    pub slot: u8,
    pub flags: u8,
    pub cpu: u16,
}

impl RequestMeta {
    /// The body lies in an arena segment; the cell holds a [`Loan`] in its place.
    pub const SPILLED: u8 = 1;
    /// Nobody waits for a result: the answer is empty and given when the call is taken.
    pub const ONE_WAY: u8 = 2;
    /// The last [`CHAIN_WORDS`] words of the cell name the objects that this call came through.
    pub const CHAIN: u8 = 4;
    const KNOWN: u8 = 7;

    #[inline(always)]
    pub fn pack(self) -> u32 {
        u32::from(self.slot) | u32::from(self.flags) << 8 | u32::from(self.cpu) << 16
    }

    /// `None` where no honest caller writes such a word.
    #[inline(always)]
    pub fn unpack(word: u32) -> Option<RequestMeta> {
        let meta = RequestMeta { slot: word as u8, flags: (word >> 8) as u8, cpu: (word >> 16) as u16 };
        (usize::from(meta.slot) < SLOTS && meta.flags & !Self::KNOWN == 0).then_some(meta)
    }

    #[inline(always)]
    pub fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Bytes of the cell that the body may take.
    #[inline(always)]
    pub fn room(self) -> usize {
        if self.has(Self::CHAIN) { REQUEST_BODY - CHAIN_WORDS * 8 } else { REQUEST_BODY }
    }
}

/// Objects that a call chain can name; of a longer one the oldest are forgotten.
pub(crate) const CHAIN_WORDS: usize = if cfg!(loom) { 1 } else { 8 };
/// Index of the chain's first word in a cell's body.
pub(crate) const CHAIN_AT: usize = REQUEST_BODY / 8 - CHAIN_WORDS;

/// A response's `meta` word: status (8 bits), flags (8), the owner's CPU (16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResponseMeta {
    pub status: u8,
    pub flags: u8,
    pub cpu: u16,
}

impl ResponseMeta {
    /// The body lies in an arena segment; the slot holds a [`Loan`] in its place.
    pub const SPILLED: u8 = 1;

    #[inline(always)]
    pub fn pack(self) -> u32 {
        u32::from(self.status) | u32::from(self.flags) << 8 | u32::from(self.cpu) << 16
    }

    #[inline(always)]
    pub fn unpack(word: u32) -> ResponseMeta {
        ResponseMeta { status: word as u8, flags: (word >> 8) as u8, cpu: (word >> 16) as u16 }
    }
}

/// A buffer that its writer lends, as three words: where it lies, and under which number it is given back. They stand in
/// place of a body that did not fit, and, one after the other, behind a body that names buffers (from the next multiple of 8
/// bytes on).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loan {
    /// See [`Loans`](super::leases::Loans).
    pub lease: u32,
    /// The writer's number of the segment.
    pub segment: u32,
    /// Bytes from the segment's start.
    pub offset: u64,
    /// Bytes lent.
    pub len: u64,
}

/// Words of a [`Loan`].
pub(crate) const LOAN_WORDS: usize = 3;
/// Bytes of a [`Loan`].
pub(crate) const LOAN_LEN: usize = LOAN_WORDS * 8;

impl Loan {
    pub fn to_words(self) -> [u64; LOAN_WORDS] {
        [u64::from(self.lease) | u64::from(self.segment) << 32, self.offset, self.len]
    }

    pub fn from_words(words: [u64; LOAN_WORDS]) -> Loan {
        Loan { lease: words[0] as u32, segment: (words[0] >> 32) as u32, offset: words[1], len: words[2] }
    }
}

/// Bytes of a body of `len` encoded bytes with `lent` loans behind it.
#[inline(always)]
pub(crate) fn len_with_loans(len: u64, lent: u32) -> u64 {
    if lent == 0 { len } else { len.next_multiple_of(8) + u64::from(lent) * LOAN_LEN as u64 }
}

/// Leases that can be out at once in one direction of a lane.
pub(crate) const LEASES: usize = if cfg!(loom) { 64 } else { 8192 };

/// How one side says which of the other's leases it has given back, and whether it wants its own: see
/// [`leases`](super::leases).
#[repr(C, align(64))]
pub(crate) struct Returns {
    /// One more with each lease given back by its bit.
    pub count: AtomicU32,
    /// Not 0: this side waits for memory; who gives back wakes it.
    pub wanted: AtomicU32,
    /// A bit per lease, turned over each time that it is given back.
    pub bits: [AtomicU64; LEASES / 64],
}

/// Memories for the models, which cannot be zeroed pages.
#[cfg(loom)]
mod fresh {
    use super::*;
    use std::array::from_fn;

    fn word() -> AtomicU32 {
        AtomicU32::new(0)
    }

    impl Returns {
        pub fn fresh() -> Returns {
            Returns { count: word(), wanted: word(), bits: from_fn(|_| AtomicU64::new(0)) }
        }
    }

    impl RequestMemory {
        pub fn fresh() -> RequestMemory {
            RequestMemory {
                control: from_fn(|_| SlotControl { sleep: word(), withdrawn: word(), hint: word() }),
                cells: from_fn(|_| RequestCell {
                    number: word(),
                    meta: word(),
                    key: AtomicU64::new(0),
                    deadline_ms: word(),
                    len: word(),
                    lent: word(),
                    returned: word(),
                    body: from_fn(|_| AtomicU64::new(0)),
                }),
                returns: Returns::fresh(),
            }
        }
    }

    impl ResponseMemory {
        pub fn fresh() -> ResponseMemory {
            ResponseMemory {
                polled: word(),
                closing: word(),
                started: StartedWords(from_fn(|_| word())),
                slots: from_fn(|_| ResponseSlot {
                    count: Word::new(0),
                    meta: word(),
                    len: word(),
                    lent: word(),
                    body: from_fn(|_| AtomicU64::new(0)),
                }),
                returns: Returns::fresh(),
            }
        }
    }
}

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<RequestCell>() == 256 && size_of::<ResponseSlot>() == 256);
    assert!(size_of::<SlotControl>() == 64);
    assert!(size_of::<Returns>() == 64 + LEASES / 8);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_words_survive_packing() {
        for slot in [0, 1, 63] {
            for flags in 0..=7 {
                let meta = RequestMeta { slot, flags, cpu: 0xfffe };
                assert_eq!(RequestMeta::unpack(meta.pack()), Some(meta));
            }
        }
        let meta = ResponseMeta { status: 9, flags: 1, cpu: 3 };
        assert_eq!(ResponseMeta::unpack(meta.pack()), meta);
    }

    #[test]
    fn impossible_meta_words_are_refused() {
        assert_eq!(RequestMeta::unpack(64), None, "a slot beyond the last");
        assert_eq!(RequestMeta::unpack(8 << 8), None, "an unknown flag");
    }
}
