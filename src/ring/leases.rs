//! What one side of a lane has lent to the other, and how it hears that it can have it back.
//!
//! A lease goes out with a message under a number: an index, and a generation that tells its uses apart. All that the
//! lender keeps of it ([`Loans`]) is private memory. Who borrowed gives back in one of two ways:
//! - the number rides in the first line of its next request, which costs no cache line of its own; or
//! - it turns the index's bit over in its [`Returns`] and counts that up. The lender compares the bits with what it saw
//!   last. Unlike a ring of numbers, 8,192 bits take a kibibyte, never fill up, and need no room for a generation:
//!   an index is lent anew only after the lender has seen it back.
//!
//! So each lease comes back once, and a hostile borrower can at worst give its own leases back too soon or never: a
//! number or a bit of a lease that is not out is found out.

use crate::sync::{AtomicBool, AtomicU32, AtomicUsize, Mutex, Ordering, fence};

use super::layout::{LEASES, Returns};

/// Bits of a lease number that are its index.
const INDEX_BITS: u32 = LEASES.trailing_zeros();

/// Why nothing can be lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoLease {
    /// All leases are out.
    Full,
    /// The borrower is gone.
    Over,
}

/// The borrower gave back what is not out: it broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotOut;

/// The lender's side: what is out, each with the `T` that keeps it.
pub(crate) struct Loans<T> {
    table: Mutex<Table<T>>,
    /// The borrower's count when its bits were last looked at.
    seen_count: AtomicU32,
}

struct Table<T> {
    /// By index; as long as the most that were ever out.
    entries: Vec<Entry<T>>,
    free: Vec<u16>,
    /// The borrower's bits as last seen; empty while none was turned, as on most lanes.
    seen: Vec<u64>,
    is_over: bool,
}

struct Entry<T> {
    /// Of the present lease, or the last one.
    generation: u32,
    lent: Option<T>,
}

impl<T> Loans<T> {
    pub fn new() -> Loans<T> {
        let table = Table { entries: Vec::new(), free: Vec::new(), seen: Vec::new(), is_over: false };
        Loans { table: Mutex::new(table), seen_count: AtomicU32::new(0) }
    }

    /// Lends, keeping `lent` until the lease is back; the lease's number, never 0.
    #[inline(always)]
    pub fn lend(&self, lent: T) -> Result<u32, (NoLease, T)> {
        let mut table = self.table.lock();
        if table.is_over {
            return Err((NoLease::Over, lent));
        }
        let index = match table.free.pop() {
            Some(index) => usize::from(index),
            None if table.entries.len() < LEASES => {
                table.entries.push(Entry { generation: 0, lent: None });
                table.entries.len() - 1
            }
            None => return Err((NoLease::Full, lent)),
        };
        let entry = &mut table.entries[index];
        // Of a generation that wraps around, 0 is left out, so that no number is 0.
        entry.generation = (entry.generation + 1) % (1 << (32 - INDEX_BITS));
        entry.generation = entry.generation.max(1);
        entry.lent = Some(lent);
        Ok(entry.generation << INDEX_BITS | index as u32)
    }

    /// Ends the lease that a request gives back. What was lent is dropped by the caller, without the lock. `None`: all leases
    /// had ended.
    pub fn take_back(&self, number: u32) -> Result<Option<T>, NotOut> {
        let mut table = self.table.lock();
        let index = number as usize % LEASES;
        let is_current = |entry: &&mut Entry<T>| entry.generation == number >> INDEX_BITS;
        if table.is_over {
            return Ok(None);
        }
        let lent = table.entries.get_mut(index).filter(is_current).and_then(|entry| entry.lent.take());
        let lent = lent.ok_or(NotOut)?;
        table.free.push(index as u16);
        Ok(Some(lent))
    }

    /// Whether the borrower has turned bits since the last [`collect`](Self::collect).
    #[inline(always)]
    pub fn has_returns(&self, theirs: &Returns) -> bool {
        // Acquire: where another thread has collected them, they are back for us, too.
        theirs.count.load(Ordering::Relaxed) != self.seen_count.load(Ordering::Acquire)
    }

    /// Ends the leases whose bits were turned over, into `back`, to be dropped without the lock. What each counts for is ended
    /// by `uncount`, under the lock: who finds nothing to collect any more must not find it counted.
    pub fn collect(
        &self,
        theirs: &Returns,
        back: &mut Vec<T>,
        mut uncount: impl FnMut(&mut T),
    ) -> Result<(), NotOut> {
        let mut table = self.table.lock();
        let Table { entries, free, seen, is_over } = &mut *table;
        // Read before the bits: one that is turned meanwhile may be seen now, and is looked for in vain once more.
        // Acquire, as below: who sees a bit turned comes after all that the borrower has read.
        let count = theirs.count.load(Ordering::Acquire);
        let mut honest = Ok(());
        seen.resize(theirs.bits.len(), 0);
        for (word, (theirs, seen)) in theirs.bits.iter().zip(seen).enumerate() {
            let now = theirs.load(Ordering::Acquire);
            let mut turned = now ^ *seen;
            *seen = now;
            while turned != 0 {
                let index = word * 64 + turned.trailing_zeros() as usize;
                turned &= turned - 1;
                match entries.get_mut(index).and_then(|entry| entry.lent.take()) {
                    Some(mut lent) => {
                        uncount(&mut lent);
                        back.push(lent);
                        free.push(index as u16);
                    }
                    None if *is_over => {}
                    // The others that were turned are back all the same, and will not be seen turned again.
                    None => honest = Err(NotOut),
                }
            }
        }
        // Release, and last: pairs with `has_returns`.
        self.seen_count.store(count, Ordering::Release);
        honest
    }

    /// Ends all leases, and lends nothing any more: the borrower holds none, or is dead.
    pub fn end(&self) -> Vec<T> {
        let mut table = self.table.lock();
        table.is_over = true;
        table.entries.iter_mut().filter_map(|entry| entry.lent.take()).collect()
    }

    /// Calls `f` with each that is out.
    pub fn for_each(&self, f: impl FnMut(&T)) {
        self.table.lock().entries.iter().filter_map(|entry| entry.lent.as_ref()).for_each(f);
    }

    /// If nothing is out, lends nothing any more; whether that is so.
    pub fn end_if_empty(&self) -> bool {
        let mut table = self.table.lock();
        table.is_over |= table.entries.iter().all(|entry| entry.lent.is_none());
        table.is_over
    }
}

/// Says in `own` that the lease `number` of the other side's is given back. `true`: it waits for that, wake it.
pub(crate) fn give_back(number: u32, own: &Returns, theirs: &Returns) -> bool {
    let index = number as usize % LEASES;
    // Release: all that this process has read of the buffer comes before.
    own.bits[index / 64].fetch_xor(1 << (index % 64), Ordering::Release);
    own.count.fetch_add(1, Ordering::Release);
    // Pairs with the fence of `want`: either the lender sees the bit, or we see that it waits.
    fence(Ordering::SeqCst);
    theirs.wanted.load(Ordering::Relaxed) != 0
}

/// Says in `own` whether this side waits for what it lent. After `true`, [`collect`](Loans::collect) once more before waiting.
pub(crate) fn want(own: &Returns, is_wanted: bool) {
    own.wanted.store(u32::from(is_wanted), Ordering::Relaxed);
    // Pairs with the fence of `give_back`.
    fence(Ordering::SeqCst);
}

/// What the borrower has yet to say to the lender: a lease that waits for a request to ride on, and a wake that it owes. An
/// alarm sees to what no request has taken along.
pub(crate) struct Riding {
    /// The number of the lease; 0: none.
    pub(super) lease: AtomicU32,
    pub(super) owes_wake: AtomicBool,
    pub(super) has_alarm: AtomicBool,
}

impl Riding {
    pub fn new() -> Riding {
        Riding {
            lease: AtomicU32::new(0),
            owes_wake: AtomicBool::new(false),
            has_alarm: AtomicBool::new(false),
        }
    }

    /// Leaves a lease for the next request; `false`: another waits already. After `true`, see to the
    /// [alarm](Self::needs_alarm).
    pub fn board(&self, number: u32) -> bool {
        // Release: all that was read of the buffer comes before. Acquire: what is left behind an alarm's look finds that alarm's
        // flag cleared.
        self.lease.compare_exchange(0, number, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Has the lender woken soon, but not at once. After this, see to the [alarm](Self::needs_alarm).
    pub fn owe_wake(&self) {
        // A swap for its Acquire, as above.
        self.owes_wake.swap(true, Ordering::AcqRel);
    }

    /// Whether to set an alarm that acts [so](Self::on_alarm): none is set.
    #[inline]
    pub fn needs_alarm(&self) -> bool {
        !self.has_alarm.load(Ordering::Relaxed) && !self.has_alarm.swap(true, Ordering::Relaxed)
    }

    /// The lease that a request takes along now; 0: none.
    #[inline(always)]
    pub fn take_along(&self) -> u32 {
        if self.lease.load(Ordering::Relaxed) == 0 { 0 } else { self.lease.swap(0, Ordering::Acquire) }
    }

    /// What is left to be said: a lease to be given back, or 0, and whether to wake the lender.
    pub fn on_alarm(&self) -> (u32, bool) {
        // Cleared before the looks, and they release that: who leaves something after them sets another alarm.
        self.has_alarm.swap(false, Ordering::Relaxed);
        let owes_wake = self.owes_wake.swap(false, Ordering::AcqRel);
        let number = self.lease.swap(0, Ordering::AcqRel);
        (number, owes_wake || number != 0)
    }
}

/// How much the borrower holds. Once it makes (or takes) no calls any more and holds nothing, it holds nothing for good.
pub(crate) struct Held(pub(super) AtomicUsize);

/// In [`Held`]: there are no calls any more, so what is held now is the last. Alone: nothing is held, for good.
pub(super) const LEAVING: usize = 1 << (usize::BITS - 1);

impl Held {
    pub fn new() -> Held {
        Held(AtomicUsize::new(0))
    }

    /// Counts one more; `false`: too late.
    pub fn hold(&self) -> bool {
        // Looked at and counted in one step: of two that come too late, one counted for a moment would let the other in.
        let count = |held| (held != LEAVING).then(|| held + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).is_ok()
    }

    /// Counts one off; `true`: that was the last.
    pub fn release(&self) -> bool {
        // Release, and Acquire for who counts the last off: what was done with any of it comes before what follows.
        self.0.fetch_sub(1, Ordering::AcqRel) == LEAVING | 1
    }

    /// There are no calls any more: how much is held still. `None`: that was known.
    pub fn leave(&self) -> Option<usize> {
        let held = self.0.fetch_or(LEAVING, Ordering::AcqRel);
        (held & LEAVING == 0).then_some(held)
    }

    #[cfg(all(test, loom))]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed) & !LEAVING
    }

    /// Whether nothing is held, for good.
    pub fn is_over(&self) -> bool {
        self.0.load(Ordering::Acquire) == LEAVING
    }
}
