//! The caller's end of a lane: requests go in, responses come out.
//!
//! A slot belongs to one call from its reservation to its release, so everything here that takes a slot is called by
//! that call alone; only claiming a cell is shared among the threads of the process.

use std::mem::MaybeUninit;
use std::ptr::NonNull;

use crossbeam_utils::CachePadded;

use super::layout::*;
use crate::sync::{AtomicU32, Ordering, fence, prefetch_for_write};

/// What a call says beside its body.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    pub key: u64,
    pub flags: u8,
    pub cpu: u16,
    pub deadline_ms: u32,
    /// Bytes of the encoded body.
    pub len: u32,
    /// Loans behind it.
    pub lent: u32,
    /// A lease given back herewith; 0: none.
    pub returned: u32,
}

/// A request's body as words, the last of them padded.
pub(crate) type RequestWords = [MaybeUninit<u64>; REQUEST_BODY / 8];
/// A response's body as words.
pub(crate) type ResponseWords = [MaybeUninit<u64>; RESPONSE_BODY / 8];

/// What a look at a slot shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Not answered yet.
    Waiting,
    /// Answered.
    Answered,
    /// A number that no honest owner writes.
    Violation,
}

/// The caller's end of a lane.
pub(crate) struct CallerRing {
    /// Read-write here, read-only at the owner.
    request: NonNull<RequestMemory>,
    /// Read-only here.
    response: NonNull<ResponseMemory>,
    /// The next position of the request ring; claimed by `fetch_add`.
    next: CachePadded<AtomicU32>,
    /// What `polled` said when the owner was rung last.
    rung_at: AtomicU32,
    /// Per slot, how many answers were seen. Written by the slot's holder only.
    answers: [AtomicU32; SLOTS],
}

// SAFETY: both memories are only touched through atomics, which any thread may use at any time, and the owner of this
// value keeps them mapped (see `new`).
unsafe impl Send for CallerRing {}
// SAFETY: as above; the methods that need a slot's holder say so, and break nothing but that lane's protocol.
unsafe impl Sync for CallerRing {}

impl CallerRing {
    /// Over two fresh (zeroed) memories.
    ///
    /// # Safety
    ///
    /// Both stay mapped as long as this value lives: `request` readable and writable, `response` readable.
    pub unsafe fn new(request: NonNull<RequestMemory>, response: NonNull<ResponseMemory>) -> CallerRing {
        CallerRing {
            request,
            response,
            next: CachePadded::new(AtomicU32::new(0)),
            // What no fresh memory says.
            rung_at: AtomicU32::new(u32::MAX),
            answers: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// As if so many requests had gone in, and so many answers been seen in each slot.
    #[cfg(test)]
    pub fn skip_to(&self, position: u32, answers: u32) {
        self.next.store(position, Ordering::Relaxed);
        self.answers.iter().for_each(|seen| seen.store(answers, Ordering::Relaxed));
    }

    #[inline(always)]
    fn request(&self) -> &RequestMemory {
        // SAFETY: mapped for as long as `self` (see `new`), and made of atomics only, so that a reference to it claims
        // nothing about values that change.
        unsafe { self.request.as_ref() }
    }

    #[inline(always)]
    fn response(&self) -> &ResponseMemory {
        // SAFETY: as for `request`; the mapping is read-only and nothing here stores to it.
        unsafe { self.response.as_ref() }
    }

    /// The number of the answer that the next call in `slot` waits for.
    #[inline(always)]
    pub fn wanted(&self, slot: usize) -> u32 {
        self.answers[slot].load(Ordering::Relaxed).wrapping_add(1)
    }

    /// Puts a request into the ring.
    ///
    /// # Safety
    ///
    /// Initialised must be: the words of the first line whatever the length, those that `header.len` bytes and the loans behind
    /// them take (or one loan, if flagged as spilled), and the chain's if flagged.
    ///
    /// A cell is always free here. The calls out never outnumber the slots; the owner takes cells in order; and it
    /// answers a call only after taking its cell. So the cell `SLOTS` positions back was taken before the call that held
    /// our slot was answered, which we, or who claimed a cell in between, have seen.
    #[inline(always)]
    pub unsafe fn publish(&self, slot: usize, header: Header, body: &RequestWords) {
        // AcqRel: what an earlier claimer has seen taken, and so the freedom of our cell, is behind us too.
        let position = self.next.fetch_add(1, Ordering::AcqRel);
        let cell = &self.request().cells[position as usize % SLOTS];
        // The first line is copied whole, without a look at the length: cheaper than the branch. What lies beyond the
        // length was zero or our own older bytes, so it tells the owner nothing new.
        // SAFETY: the caller of this function initialised the first line's words.
        unsafe { copy_words(cell, body, 0..REQUEST_FIRST_WORDS) };
        if header.len as usize > REQUEST_FIRST_WORDS * 8
            || header.flags & RequestMeta::CHAIN != 0
            || header.lent != 0
        {
            // SAFETY: and those that the length and the flags ask for.
            unsafe { copy_rest(cell, header, body) };
        }
        let meta = RequestMeta { slot: slot as u8, flags: header.flags, cpu: header.cpu };
        cell.key.store(header.key, Ordering::Relaxed);
        cell.deadline_ms.store(header.deadline_ms, Ordering::Relaxed);
        cell.len.store(header.len, Ordering::Relaxed);
        cell.lent.store(header.lent, Ordering::Relaxed);
        cell.returned.store(header.returned, Ordering::Relaxed);
        cell.meta.store(meta.pack(), Ordering::Relaxed);
        // Release: an owner that sees the number sees the whole cell.
        cell.number.store(position.wrapping_add(1), Ordering::Release);
        // The owner read that line a turn ago, so the store to it waits until it has come over. In a series of calls it comes
        // ahead of them. Not the next cell's: the owner looks at that one, and would take it back.
        prefetch_for_write(&self.request().cells[(position as usize + 2) % SLOTS]);
    }

    /// Whether the owner must be rung to see what was just published.
    #[inline(always)]
    pub fn must_ring(&self) -> bool {
        // Pairs with the fence of `OwnerRing::let_go`: either we see there that nobody looks, or its last look sees our cell.
        fence(Ordering::SeqCst);
        self.response().polled.load(Ordering::Relaxed) & POLLED == 0
    }

    /// Rings by `ring`, unless that was done since a thread of the owner came to this lane or left it last: then one is still to
    /// come, and will see what was published before the caller's last fence.
    #[cold]
    pub fn ring_once(&self, ring: impl FnOnce()) {
        // Behind a fence, of `must_ring` or `set_sleep`, which pairs with that of `OwnerRing::take_over`: either we see that
        // somebody came, or its look, which is still to come, sees our cell.
        let told = self.response().polled.load(Ordering::Relaxed);
        // Acquire, and Release below: who sees the number comes after the ring.
        if self.rung_at.load(Ordering::Acquire) != told {
            ring();
            self.rung_at.store(told, Ordering::Release);
        }
    }

    /// Whether the owner takes no new calls: [`OPEN`], [`CLOSING`] or [`REPLACED`].
    #[inline(always)]
    pub fn closing(&self) -> u32 {
        self.response().closing.load(Ordering::Acquire)
    }

    /// Looks for the answer of the call in `slot`.
    #[inline(always)]
    pub fn look(&self, slot: usize) -> Look {
        let before = self.answers[slot].load(Ordering::Relaxed);
        // Acquire: who sees the count sees the response.
        let count = self.response().slots[slot].count.load(Ordering::Acquire);
        if count == before.wrapping_add(1) {
            Look::Answered
        } else if count == before {
            Look::Waiting
        } else {
            Look::Violation
        }
    }

    /// The answered response's meta word, the length of its encoded body, and how many loans follow that. Only after
    /// [`Look::Answered`].
    #[inline(always)]
    pub fn response_head(&self, slot: usize) -> (ResponseMeta, usize, u32) {
        let response = &self.response().slots[slot];
        let meta = ResponseMeta::unpack(response.meta.load(Ordering::Relaxed));
        let lent = response.lent.load(Ordering::Relaxed);
        (meta, response.len.load(Ordering::Relaxed) as usize, lent)
    }

    /// Copies `len` bytes of the answered response's body out, `len <= RESPONSE_BODY`. The first line's words are
    /// initialised whatever the length.
    #[inline(always)]
    pub fn response_body(&self, slot: usize, len: usize, words: &mut ResponseWords) {
        debug_assert!(len <= RESPONSE_BODY);
        let body = &self.response().slots[slot].body;
        for (word, shared) in words.iter_mut().zip(body).take(RESPONSE_FIRST_WORDS) {
            word.write(shared.load(Ordering::Relaxed));
        }
        if len > RESPONSE_FIRST_WORDS * 8 {
            for (word, shared) in words.iter_mut().zip(body).take(len.div_ceil(8)).skip(RESPONSE_FIRST_WORDS)
            {
                word.write(shared.load(Ordering::Relaxed));
            }
        }
    }

    /// What the answered response in `slot` with this [head](Self::response_head) lends: its body, if that is spilled, else the
    /// loans behind it; with the body's words in `words`. `None`: no honest owner wrote it.
    pub fn response_loans<'a>(
        &self,
        slot: usize,
        (meta, len, lent): (ResponseMeta, usize, u32),
        words: &'a mut ResponseWords,
    ) -> Option<(Option<Loan>, impl Iterator<Item = Loan> + use<'a>)> {
        let is_spilled = meta.flags & ResponseMeta::SPILLED != 0;
        let whole = if is_spilled { LOAN_LEN as u64 } else { len_with_loans(len as u64, lent) };
        if whole > RESPONSE_BODY as u64 {
            return None;
        }
        self.response_body(slot, whole as usize, words);
        let words: &'a ResponseWords = words;
        let loan_at = move |at: usize| {
            // SAFETY: the words of `whole` bytes were just initialised, and those of no loan beyond them are asked for.
            Loan::from_words(std::array::from_fn(|i| unsafe { words[at + i].assume_init() }))
        };
        let (first, inline) = (len.div_ceil(8), if is_spilled { 0 } else { lent as usize });
        Some((is_spilled.then(|| loan_at(0)), (0..inline).map(move |i| loan_at(first + i * LOAN_WORDS))))
    }

    /// The only loan of the answered response in `slot`, behind the `len` bytes of its body, with the body's words in `words`. The
    /// body and the loan fit the slot.
    #[inline(always)]
    pub fn response_loan(&self, slot: usize, len: usize, words: &mut ResponseWords) -> Loan {
        let first = len.div_ceil(8);
        let body = &self.response().slots[slot].body[..first + LOAN_WORDS];
        for (word, shared) in words.iter_mut().zip(&body[..first]) {
            word.write(shared.load(Ordering::Relaxed));
        }
        Loan::from_words(std::array::from_fn(|i| body[first + i].load(Ordering::Relaxed)))
    }

    /// Says that the call in `slot` is over and its response read: the slot can be given to the next call.
    #[inline(always)]
    pub fn finish(&self, slot: usize) {
        self.answers[slot].store(self.wanted(slot), Ordering::Relaxed);
    }

    /// Says who waits for the answer in `slot`, then fences, so that a look after this call cannot miss an answer whose
    /// owner missed the word.
    pub fn set_sleep(&self, slot: usize, who: u32) {
        self.request().control[slot].sleep.store(who, Ordering::Relaxed);
        // Pairs with the fence of `OwnerRing::after_answers`.
        fence(Ordering::SeqCst);
    }

    /// Says that nobody waits any more; no fence, since a needless wake harms nobody.
    pub fn clear_sleep(&self, slot: usize) {
        self.request().control[slot].sleep.store(AWAKE, Ordering::Relaxed);
    }

    /// Sleeps until the answer in `slot` may be there. Every return means: look again.
    pub fn sleep(&self, slot: usize, deadline_ns: Option<u64>) {
        let before = self.answers[slot].load(Ordering::Relaxed);
        self.response().slots[slot].count.sleep(before, deadline_ns);
    }

    /// Wakes this process' own sleepers on `slot`, for the news of a death.
    pub fn wake(&self, slot: usize) {
        self.response().slots[slot].count.wake();
    }

    /// Whether the owner has begun the call in `slot`.
    pub fn begun(&self, slot: usize) -> bool {
        self.response().started.0[slot].load(Ordering::Acquire) == self.wanted(slot)
    }

    /// Gives up the call in `slot`. `false`: the owner has not begun it and never will; `true`: it may have.
    ///
    /// The one call in four billion whose answer number is 0, which means "none" in the word, counts as begun.
    pub fn withdraw(&self, slot: usize) -> bool {
        let wanted = self.wanted(slot);
        self.request().control[slot].withdrawn.store(wanted, Ordering::Relaxed);
        // Pairs with the fence of `OwnerRing::begin`: either the owner sees the withdrawal, or we see that it began.
        fence(Ordering::SeqCst);
        wanted == 0 || self.begun(slot)
    }

    /// Takes a withdrawal back once its call is answered, so that it cannot meet a call of the same number 2^32 later.
    pub fn clear_withdrawn(&self, slot: usize) {
        self.request().control[slot].withdrawn.store(0, Ordering::Relaxed);
    }

    /// Whether the next call is expected at once ([`HOT`]) or not ([`COLD`]).
    pub fn set_hint(&self, hint: u32) {
        self.request().control[0].hint.store(hint, Ordering::Relaxed);
    }
}

/// Copies a body's words beyond the first line, and the chain.
///
/// # Safety
///
/// As for [`CallerRing::publish`].
#[inline(never)]
unsafe fn copy_rest(cell: &RequestCell, header: Header, body: &RequestWords) {
    let spilled = header.flags & RequestMeta::SPILLED != 0;
    let whole = len_with_loans(u64::from(header.len), header.lent) as usize;
    let len = if spilled { LOAN_LEN } else { whole };
    let words = len.div_ceil(8).min(body.len());
    if words > REQUEST_FIRST_WORDS {
        // SAFETY: within the length, so initialised.
        unsafe { copy_words(cell, body, REQUEST_FIRST_WORDS..words) };
    }
    if header.flags & RequestMeta::CHAIN != 0 {
        // SAFETY: the flag says that they are.
        unsafe { copy_words(cell, body, CHAIN_AT..CHAIN_AT + CHAIN_WORDS) };
    }
}

/// # Safety
///
/// The words of `range` are initialised.
#[inline(always)]
unsafe fn copy_words(cell: &RequestCell, body: &RequestWords, range: std::ops::Range<usize>) {
    for (shared, word) in cell.body[range.clone()].iter().zip(&body[range]) {
        // SAFETY: asked of the caller.
        shared.store(unsafe { word.assume_init() }, Ordering::Relaxed);
    }
}
