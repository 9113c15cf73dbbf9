//! The owner's end of a lane: requests come out in order, responses go in by slot.
//!
//! Taking is for one thread at a time ([`OwnerRing::try_lock`]), from reading a cell until its body is copied out: so
//! an answered call implies that all earlier cells are free. Running and answering hold no lock.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use crossbeam_utils::CachePadded;

use super::caller::RequestWords;
use super::layout::*;
use crate::sync::{AtomicBool, AtomicU32, Ordering, fence};

/// What taking gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// No request is there.
    Empty,
    /// One was copied out.
    Taken,
    /// The cell holds what no honest caller writes: close the lane.
    Violation,
}

/// A request, copied out of the ring: what is checked is what is used.
#[derive(Clone)]
pub(crate) struct Request {
    pub meta: RequestMeta,
    /// The number of the answer that this call waits for.
    pub wanted: u32,
    pub key: u64,
    pub deadline_ms: u32,
    /// Bytes of the encoded body.
    pub len: u32,
    /// Loans behind it.
    pub lent: u32,
    /// A lease of ours that is given back herewith; 0: none, or taken back.
    pub returned: Cell<u32>,
    /// More calls of the lane were out when this was taken than its object allows.
    pub is_excess: bool,
    /// The first line's words and those of the body, the loans and the chain, as far as the header says there are any.
    words: RequestWords,
}

impl Request {
    /// To be filled by [`Taker::take`].
    #[inline(always)]
    pub fn blank() -> Request {
        Request {
            meta: RequestMeta { slot: 0, flags: 0, cpu: NO_CPU },
            wanted: 0,
            key: 0,
            deadline_ms: 0,
            len: 0,
            lent: 0,
            returned: Cell::new(0),
            is_excess: false,
            words: [MaybeUninit::uninit(); REQUEST_BODY / 8],
        }
    }

    #[inline(always)]
    pub fn slot(&self) -> usize {
        usize::from(self.meta.slot)
    }

    /// The body, if it came in the cell.
    #[inline(always)]
    pub fn body(&self) -> &[u8] {
        let len = if self.meta.has(RequestMeta::SPILLED) { 0 } else { self.len as usize };
        // SAFETY: `take` refuses a length beyond the cell's room and initialises all words that it takes; a Request that
        // nothing was taken into has length 0.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), len) }
    }

    /// What it takes beside an encoded body in the cell: nothing, for most calls.
    #[inline(always)]
    pub fn is_plain(&self) -> bool {
        !self.meta.has(RequestMeta::SPILLED) && self.lent == 0
    }

    /// Where the body lies, with the loans behind it, if it did not fit.
    pub fn spill(&self) -> Option<Loan> {
        self.meta.has(RequestMeta::SPILLED).then(|| self.loan_at(0))
    }

    /// The loans behind a body that came in the cell.
    pub fn loans(&self) -> impl Iterator<Item = Loan> {
        let lent = if self.meta.has(RequestMeta::SPILLED) { 0 } else { self.lent as usize };
        let first = (self.len as usize).div_ceil(8);
        (0..lent).map(move |i| self.loan_at(first + i * LOAN_WORDS))
    }

    /// For words that `take` has seen to be there.
    fn loan_at(&self, word: usize) -> Loan {
        // SAFETY: `take` copied the words of all loans in the cell: of the body's if it is flagged as spilled, else of `lent`
        // behind the body.
        Loan::from_words(std::array::from_fn(|i| unsafe { self.words[word + i].assume_init() }))
    }

    /// The objects that this call came through, oldest first, 0 where there is none.
    pub fn chain(&self) -> [u64; CHAIN_WORDS] {
        if !self.meta.has(RequestMeta::CHAIN) {
            return [0; CHAIN_WORDS];
        }
        // SAFETY: the flag made `take` copy them.
        std::array::from_fn(|i| unsafe { self.words[CHAIN_AT + i].assume_init() })
    }
}

/// The owner's end of a lane.
pub(crate) struct OwnerRing {
    /// Read-only here.
    request: NonNull<RequestMemory>,
    /// Read-write here, read-only at the caller.
    response: NonNull<ResponseMemory>,
    /// Held by the one thread that takes.
    taking: CachePadded<AtomicBool>,
    /// The next position to take. Only under `taking`.
    next: AtomicU32,
    /// The worker that looks at this lane by itself; 0: none.
    poller: AtomicU32,
    /// Per slot, how many requests were taken: one more than its `count` says while a call is out in it. Only written under
    /// `taking`.
    taken: [AtomicU32; SLOTS],
}

// SAFETY: both memories are only touched through atomics, and stay mapped (see `new`); `next` is guarded by `taking`.
unsafe impl Send for OwnerRing {}
// SAFETY: as above.
unsafe impl Sync for OwnerRing {}

impl OwnerRing {
    /// Over two fresh (zeroed) memories.
    ///
    /// # Safety
    ///
    /// Both stay mapped as long as this value lives: `request` readable, `response` readable and writable.
    pub unsafe fn new(request: NonNull<RequestMemory>, response: NonNull<ResponseMemory>) -> OwnerRing {
        OwnerRing {
            request,
            response,
            taking: CachePadded::new(AtomicBool::new(false)),
            next: AtomicU32::new(0),
            poller: AtomicU32::new(0),
            taken: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// As if so many requests had been taken, and so many answers given in each slot.
    #[cfg(test)]
    pub fn skip_to(&self, position: u32, answers: u32) {
        self.next.store(position, Ordering::Relaxed);
        self.taken.iter().for_each(|taken| taken.store(answers, Ordering::Relaxed));
    }

    #[inline(always)]
    fn request(&self) -> &RequestMemory {
        // SAFETY: mapped as long as `self`, atomics only; nothing here stores to it.
        unsafe { self.request.as_ref() }
    }

    #[inline(always)]
    fn response(&self) -> &ResponseMemory {
        // SAFETY: mapped as long as `self`, atomics only.
        unsafe { self.response.as_ref() }
    }

    /// Whether a call is taken and not answered. Exact for who has stopped the taking of new ones.
    pub fn is_busy(&self) -> bool {
        (0..SLOTS).any(|slot| self.is_out(slot))
    }

    /// The slots in which no call is out, a bit each.
    pub fn idle_slots(&self) -> u64 {
        (0..SLOTS).filter(|&slot| !self.is_out(slot)).fold(0, |bits, slot| bits | 1 << slot)
    }

    /// How many requests were taken, modulo 2^32.
    pub fn position(&self) -> u32 {
        self.next.load(Ordering::Relaxed)
    }

    /// Whether a call is out in `slot`.
    #[inline(always)]
    fn is_out(&self, slot: usize) -> bool {
        // Acquire: the count is the last that the answer's giver writes, so who sees the slot free has it to itself.
        let answered = self.response().slots[slot].count.load(Ordering::Acquire);
        answered != self.taken[slot].load(Ordering::Relaxed)
    }

    /// Becomes the one thread that takes from this lane, unless another is.
    #[inline(always)]
    pub fn try_lock(&self) -> Option<Taker<'_>> {
        // Acquire pairs with the drop of the last Taker: its `next` and `taken` are ours now.
        // A compare-and-swap: a failed attempt writes nothing, so nobody writes a lock but who holds it.
        // Lazily made: a Taker that is not ours must not exist even for a moment, since its drop unlocks.
        let taking = &self.taking;
        (!taking.load(Ordering::Relaxed)
            && taking.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok())
        .then(|| Taker { ring: self })
    }

    /// Takes without being the only one, for the model that shows what then goes wrong.
    #[cfg(all(test, loom))]
    pub fn unlocked(&self) -> Taker<'_> {
        Taker { ring: self }
    }

    /// Whether a request waits at this moment; for who does not hold the lock a hint.
    #[inline(always)]
    pub fn has_request(&self) -> bool {
        let next = self.next.load(Ordering::Relaxed);
        let number = self.request().cells[next as usize % SLOTS].number.load(Ordering::Acquire);
        number != next.wrapping_sub(SLOTS as u32 - 1) && !(number == 0 && next < SLOTS as u32)
    }

    /// Whether it is `worker` that looks at this lane by itself.
    #[inline(always)]
    pub fn is_polled_by(&self, worker: u32) -> bool {
        self.poller.load(Ordering::Relaxed) == worker
    }

    /// Whether no worker looks at this lane by itself.
    #[inline(always)]
    pub fn is_unpolled(&self) -> bool {
        self.is_polled_by(0)
    }

    /// Makes `worker` the one that looks at this lane by itself, and says that one does.
    pub fn take_over(&self, worker: u32) {
        // A swap, though nobody asks what was there: so every write of the word is a read-modify-write and follows on the last,
        // and what another's `let_go` adds reaches whoever lets go after it.
        self.poller.swap(worker, Ordering::AcqRel);
        self.say(|before| before.wrapping_add(1) | POLLED);
        // Before this thread looks: who published, and did not ring because of a ring before this, has done so before that. And
        // whether the lane is still its own: that another lets go later is never overtaken.
        fence(Ordering::SeqCst);
    }

    /// Changes what the caller is told of who looks. It is told another number than before, always.
    fn say(&self, next: impl Fn(u32) -> u32) {
        let _told =
            self.response().polled.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some(next(now)));
    }

    /// Says that `worker` looks no more, unless another does. `false`: a request came meanwhile, for the caller to see to.
    pub fn let_go(&self, worker: u32) -> bool {
        let is_ours = self.poller.compare_exchange(worker, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        // If another let go of it, our own POLLED may have come after that. Adding nothing, unlike a load, either sees that it
        // did or is seen by it before it takes POLLED away.
        if !is_ours && self.poller.fetch_add(0, Ordering::AcqRel) != 0 {
            return true;
        }
        self.say(|before| (before | POLLED).wrapping_add(1));
        // Pairs with the fence of `CallerRing::must_ring`: who published without ringing did so before the look below.
        fence(Ordering::SeqCst);
        !self.has_request()
    }

    /// Says that no new calls are taken: [`CLOSING`], [`REPLACED`], or [`BROKEN`], which neither of the others takes back.
    pub fn close(&self, how: u32) {
        let closing = &self.response().closing;
        if how == BROKEN {
            closing.store(how, Ordering::Release);
        } else {
            let _ = closing.compare_exchange(OPEN, how, Ordering::Release, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// Whether the caller expects to call again at once.
    #[inline(always)]
    pub fn hint_is_hot(&self) -> bool {
        self.request().control[0].hint.load(Ordering::Relaxed) == HOT
    }

    /// Says that the call in `slot` is about to run. `false`: its caller has given it up, it must not run.
    #[inline(always)]
    pub fn begin(&self, slot: usize, wanted: u32) -> bool {
        // Release, so that on a weakly ordered machine no effect of the method is seen before the word.
        self.response().started.0[slot].store(wanted, Ordering::Release);
        // Pairs with the fence of `CallerRing::withdraw`; and, for the answers before it, of `CallerRing::set_sleep`.
        fence(Ordering::SeqCst);
        !self.is_withdrawn(slot, wanted)
    }

    /// Whether the caller of the call in `slot` has given it up.
    #[inline(always)]
    pub fn is_withdrawn(&self, slot: usize, wanted: u32) -> bool {
        let withdrawn = self.request().control[slot].withdrawn.load(Ordering::Relaxed);
        withdrawn == wanted && withdrawn != 0
    }

    /// Where the response body of the call in `slot` is written, [`RESPONSE_BODY`] bytes. For who answers it only.
    #[inline(always)]
    pub fn response_body(&self, slot: usize) -> NonNull<u8> {
        // SAFETY: within the mapped memory; the projection makes no reference.
        unsafe {
            NonNull::new_unchecked((&raw const (*self.response.as_ptr()).slots[slot].body).cast_mut().cast())
        }
    }

    /// Writes loans into the response body of the call in `slot`, from its word `first` on. For who answers it only.
    #[inline(always)]
    pub fn write_loans(&self, slot: usize, first: usize, loans: &[Loan]) {
        let places = self.response().slots[slot].body[first..].chunks_exact(LOAN_WORDS);
        for (place, loan) in places.zip(loans) {
            for (shared, word) in place.iter().zip(loan.to_words()) {
                shared.store(word, Ordering::Relaxed);
            }
        }
    }

    /// Writes at most [`RESPONSE_BODY`] bytes into the response body of the call in `slot`. For who answers it only.
    #[inline(always)]
    pub fn write_response_bytes(&self, slot: usize, bytes: &[u8]) {
        assert!(bytes.len() <= RESPONSE_BODY, "a body of {} bytes does not fit a slot", bytes.len());
        let body = &self.response().slots[slot].body;
        let (words, rest) = bytes.as_chunks();
        for (shared, word) in body.iter().zip(words) {
            shared.store(u64::from_ne_bytes(*word), Ordering::Relaxed);
        }
        if !rest.is_empty() {
            // Byte by byte: most bodies that come here have one or two, and a copy of a length not known is a call.
            let last = rest.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
            body[words.len()].store(last.to_le(), Ordering::Relaxed);
        }
    }

    /// Publishes the response that stands in the slot's body. Then look at [`sleeper`](Self::sleeper), and once more
    /// by [`after_answers`](Self::after_answers).
    #[inline(always)]
    pub fn answer(&self, slot: usize, wanted: u32, meta: ResponseMeta, len: u32, lent: u32) {
        let response = &self.response().slots[slot];
        response.meta.store(meta.pack(), Ordering::Relaxed);
        response.len.store(len, Ordering::Relaxed);
        response.lent.store(lent, Ordering::Relaxed);
        // Release: who sees the count sees the response. It is what makes the slot free, for our own takers too: so it comes
        // last, and a caller that names the slot a moment before has named one that is not free.
        response.count.store(wanted, Ordering::Release);
    }

    /// One fence for the answers given since the last in the slots of `answered` (bits), and the [`sleepers`](Self::sleepers)
    /// that it shows.
    #[inline(always)]
    pub fn after_answers(&self, answered: u64, wake: impl FnMut(usize, u32)) {
        // Pairs with the fence of `CallerRing::set_sleep`.
        fence(Ordering::SeqCst);
        self.sleepers(answered, wake);
    }

    /// Gives `wake` each slot of `answered` (bits) whose caller sleeps, and its sleep word. Misses nobody once this thread has
    /// fenced after the answers, as [`begin`](Self::begin) does too.
    #[inline(always)]
    pub fn sleepers(&self, mut answered: u64, mut wake: impl FnMut(usize, u32)) {
        while answered != 0 {
            let slot = answered.trailing_zeros() as usize;
            let who = self.sleeper(slot);
            if who != AWAKE {
                wake(slot, who);
            }
            answered &= answered - 1;
        }
    }

    /// Who waits for the answer in `slot`: [`AWAKE`], [`ON_FUTEX`], or an arm number.
    #[inline(always)]
    pub fn sleeper(&self, slot: usize) -> u32 {
        self.request().control[slot].sleep.load(Ordering::Relaxed)
    }

    /// Wakes the thread that sleeps on `slot`.
    pub fn wake(&self, slot: usize) {
        self.response().slots[slot].count.wake();
    }
}

/// The right to take from a lane; dropping it gives it up.
pub(crate) struct Taker<'a> {
    ring: &'a OwnerRing,
}

impl Drop for Taker<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.ring.taking.store(false, Ordering::Release);
    }
}

impl Taker<'_> {
    /// Copies the next request out of the ring into `request`.
    #[inline(always)]
    pub fn take(&mut self, request: &mut Request) -> Take {
        let ring = self.ring;
        let position = ring.next.load(Ordering::Relaxed);
        let cell = &ring.request().cells[position as usize % SLOTS];
        // Acquire: who sees the number sees the cell.
        let number = cell.number.load(Ordering::Acquire);
        if number != position.wrapping_add(1) {
            return absent(number, position);
        }
        let Some(meta) = RequestMeta::unpack(cell.meta.load(Ordering::Relaxed)) else {
            return Take::Violation;
        };
        request.meta = meta;
        request.len = cell.len.load(Ordering::Relaxed);
        request.lent = cell.lent.load(Ordering::Relaxed);
        request.returned.set(cell.returned.load(Ordering::Relaxed));
        request.key = cell.key.load(Ordering::Relaxed);
        request.deadline_ms = cell.deadline_ms.load(Ordering::Relaxed);
        for (word, shared) in request.words.iter_mut().zip(&cell.body).take(REQUEST_FIRST_WORDS) {
            word.write(shared.load(Ordering::Relaxed));
        }
        let has_more = request.len as usize > REQUEST_FIRST_WORDS * 8 || meta.flags != 0 || request.lent != 0;
        if has_more && !take_rest(cell, request) {
            (request.len, request.lent) = (0, 0);
            return Take::Violation;
        }
        let slot = request.slot();
        if ring.is_out(slot) {
            return Take::Violation;
        }
        request.wanted = ring.taken[slot].load(Ordering::Relaxed).wrapping_add(1);
        ring.taken[slot].store(request.wanted, Ordering::Relaxed);
        ring.next.store(position.wrapping_add(1), Ordering::Relaxed);
        Take::Taken
    }

    /// Forgets that a request was taken, which is not to be answered: its slot does not count as out.
    pub fn untake(&mut self, request: &Request) {
        self.ring.taken[request.slot()].store(request.wanted.wrapping_sub(1), Ordering::Relaxed);
    }

    /// How many calls are taken and not answered. Whoever holds the lock counts none that came after its own.
    pub fn busy(&self) -> u32 {
        (0..SLOTS).map(|slot| u32::from(self.ring.is_out(slot))).sum()
    }
}

/// A cell that does not hold the next request must hold the one of a turn ago, or nothing if there was none.
#[inline(always)]
fn absent(number: u32, position: u32) -> Take {
    let turn_ago = position.wrapping_add(1).wrapping_sub(SLOTS as u32);
    if number == turn_ago || (number == 0 && position < SLOTS as u32) { Take::Empty } else { Take::Violation }
}

/// Copies what lies beyond the first line; `false` for a length that no honest caller writes.
#[inline(never)]
fn take_rest(cell: &RequestCell, request: &mut Request) -> bool {
    let spilled = request.meta.has(RequestMeta::SPILLED);
    let whole = len_with_loans(u64::from(request.len), request.lent);
    let len = if spilled { LOAN_LEN as u64 } else { whole };
    if len > request.meta.room() as u64 || request.lent as usize > LEASES {
        return false;
    }
    let len = len as usize;
    for (word, shared) in
        request.words.iter_mut().zip(&cell.body).take(len.div_ceil(8)).skip(REQUEST_FIRST_WORDS)
    {
        word.write(shared.load(Ordering::Relaxed));
    }
    if request.meta.has(RequestMeta::CHAIN) {
        for (word, shared) in request.words.iter_mut().zip(&cell.body).skip(CHAIN_AT) {
            word.write(shared.load(Ordering::Relaxed));
        }
    }
    true
}
