//! The borrower's side: ranges of the peer's segments, read in place or copied, and given back.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Parcels;
use crate::blob::limit::{Charge, NoMemory};
use crate::blob::segments::{CopyError, Mapped};
use crate::blob::shared::Blob;
use crate::ring::layout::{LEASES, LOAN_LEN, Loan, len_with_loans};
use crate::ring::leases::give_back;
use crate::sys::{clock, fork};
use crate::wire::blob::{Blobs, Lent};

/// How long a lease may wait for a request to take it back along.
const RETURN_NS: u64 = 2_000_000;

/// Why something lent could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)] // as `Holder`
pub(crate) enum UnpackError {
    /// The peer broke the protocol.
    Violation,
    /// No memory or no descriptors here.
    NoMemory,
    /// It would be copied, and is more than may be.
    Limit,
}

/// How blobs that a message lends go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Back {
    /// With the caller's next request, if that comes soon: what came with an answer.
    Riding,
    /// By its bit, at once: what came with an item of a channel. No request need follow, and the sender, which looks before it
    /// makes the next value, writes that into memory that is warm.
    AtOnce,
}

/// What a message carries beside an encoded body in its cell or slot.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    /// The encoded body, if it lay elsewhere: a copy, so that what is checked is what is used.
    pub body: Option<Blob>,
    pub blobs: Blobs,
}

impl Opened {
    /// What decoding is to know of it.
    #[inline(always)]
    pub fn lent(&self) -> Lent<'_> {
        Lent { blobs: &self.blobs, backing: self.body.as_ref() }
    }
}

/// Where the loans behind a spilled body lie. `None`: no honest peer says so of its body.
fn table_of(body: Loan, len: u64, lent: u32) -> Option<Loan> {
    let table_len = u64::from(lent) * LOAN_LEN as u64;
    let is_honest = body.len == len_with_loans(len, lent) && lent as usize <= LEASES;
    let offset = body.offset.checked_add(body.len)?.checked_sub(table_len)?;
    is_honest.then_some(Loan { offset, len: table_len, ..body })
}

/// The loans in a copied table.
fn loans_in(table: &[u8]) -> impl Iterator<Item = Loan> + '_ {
    table.chunks_exact(LOAN_LEN).map(|bytes| {
        let word = |i: usize| u64::from_ne_bytes(std::array::from_fn(|byte| bytes[i * 8 + byte]));
        Loan::from_words([word(0), word(1), word(2)])
    })
}

impl Parcels {
    /// Borrows what a message lends: its body if that is `spilled`, and the `lent` loans behind its `len` encoded bytes, which
    /// stand in the body, or are `inline`. What cannot be borrowed is given back, each once. Where blobs are copied, `charge` is
    /// asked before for the bytes of all.
    pub fn open(
        &self,
        spilled: Option<Loan>,
        len: u64,
        lent: u32,
        inline: impl Iterator<Item = Loan>,
        back: Back,
        charge: impl FnOnce(u64) -> Result<Charge, NoMemory>,
    ) -> Result<Opened, UnpackError> {
        match spilled {
            None => Ok(Opened { body: None, blobs: self.borrow_all(inline, back, charge)? }),
            Some(loan) => self.open_spilled(loan, len, lent, back, charge),
        }
    }

    #[cold]
    fn open_spilled(
        &self,
        loan: Loan,
        len: u64,
        lent: u32,
        back: Back,
        charge: impl FnOnce(u64) -> Result<Charge, NoMemory>,
    ) -> Result<Opened, UnpackError> {
        if table_of(loan, len, lent).is_none() {
            self.give_back(loan);
            return Err(UnpackError::Violation);
        }
        let body =
            self.read(loan).inspect_err(|_| self.discard(Some(loan), len, lent, std::iter::empty()))?;
        // At once: what the peer may have in flight is counted by it, over all its lanes.
        self.give_back(loan);
        let (_, table) = body.split_at(body.len() - lent as usize * LOAN_LEN);
        let blobs = self.borrow_all(loans_in(table), back, charge)?;
        Ok(Opened { body: Some(Blob::from(body).slice(..len as usize)), blobs })
    }

    /// Gives back what a message lends that nobody reads. Of a spilled body only its loans are looked at; where they cannot be
    /// read, what they lend is not known.
    #[cold]
    pub fn discard(&self, spilled: Option<Loan>, len: u64, lent: u32, inline: impl Iterator<Item = Loan>) {
        let Some(loan) = spilled else { return inline.for_each(|loan| self.give_back(loan)) };
        let table = table_of(loan, len, lent).filter(|table| table.len != 0);
        let table = table.and_then(|table| self.read(table).ok());
        self.give_back(loan);
        loans_in(&table.unwrap_or_default()).for_each(|loan| self.give_back(loan));
    }

    fn borrow_all(
        &self,
        mut loans: impl Iterator<Item = Loan>,
        back: Back,
        charge: impl FnOnce(u64) -> Result<Charge, NoMemory>,
    ) -> Result<Blobs, UnpackError> {
        if self.copies {
            let loans: Vec<_> = loans.collect();
            let copied = self.copy_all(&loans, charge);
            loans.into_iter().for_each(|loan| self.give_back(loan));
            return copied;
        }
        let mut blobs = Blobs::new();
        while let Some(loan) = loans.next() {
            match self.borrow(loan, back) {
                Ok(blob) => blobs.push(blob),
                Err(error) => {
                    loans.for_each(|loan| self.give_back(loan));
                    return Err(error);
                }
            }
        }
        Ok(blobs)
    }

    /// Whether what arrives is copied, see [`CopyOnArrival`](crate::CopyOnArrival).
    #[inline(always)]
    pub fn copies(&self) -> bool {
        self.copies
    }

    /// Borrows one range; gives it back if it cannot. Where arrivals are [copied](Self::copies), not to be called.
    #[inline(always)]
    pub fn borrow(&self, loan: Loan, back: Back) -> Result<Blob, UnpackError> {
        let view = self.view(loan.segment).inspect_err(|_| self.give_back(loan))?;
        // Whatever comes of it, its drop gives the range back.
        Received::new(view, loan, back).map(Blob::lent).ok_or(UnpackError::Violation)
    }

    /// Copies ranges, one that is lent several times once, after `charge` has allowed for all of them: a message may lend the
    /// largest of segments thousands of times. What was charged for a copy lives as long as it.
    #[cold]
    fn copy_all(
        &self,
        loans: &[Loan],
        charge: impl FnOnce(u64) -> Result<Charge, NoMemory>,
    ) -> Result<Blobs, UnpackError> {
        let range = |loan: &Loan| (loan.segment, loan.offset, loan.len);
        let ranges: BTreeSet<_> = loans.iter().map(range).collect();
        let sum = ranges.iter().fold(0, |sum: u64, (_, _, len)| sum.saturating_add(*len));
        let mut charge = charge(sum).map_err(|NoMemory| UnpackError::Limit)?;
        let mut copies = BTreeMap::<_, Blob>::new();
        let mut blobs = Blobs::with_capacity(loans.len());
        for loan in loans {
            let blob = match copies.entry(range(loan)) {
                Entry::Occupied(known) => known.get().clone(),
                Entry::Vacant(new) => {
                    new.insert(Blob::copied(self.read(*loan)?, charge.split(loan.len))).clone()
                }
            };
            blobs.push(blob);
        }
        Ok(blobs)
    }

    /// Copies one range, which is held meanwhile by its view.
    fn read(&self, loan: Loan) -> Result<Vec<u8>, UnpackError> {
        let view = self.view(loan.segment)?;
        view.mapped.copy_to_vec(loan.offset, loan.len).map_err(|error| match error {
            CopyError::OutOfRange => UnpackError::Violation,
            CopyError::NoMemory => UnpackError::NoMemory,
        })
    }

    fn find(&self, segment: u32) -> Result<Arc<Mapped>, UnpackError> {
        self.incoming.get(segment).map_or_else(|| self.find_announced(segment), Ok)
    }

    #[cold]
    fn find_announced(&self, segment: u32) -> Result<Arc<Mapped>, UnpackError> {
        self.hear();
        let lost =
            || if self.lost.load(Ordering::Relaxed) { UnpackError::NoMemory } else { UnpackError::Violation };
        self.incoming.get(segment).ok_or_else(lost)
    }

    /// The view of an announced segment.
    #[inline(always)]
    fn view(&self, segment: u32) -> Result<Arc<View>, UnpackError> {
        let known = self.views.read().by_segment.get(&segment).cloned();
        known.map_or_else(|| self.view_anew(segment), Ok)
    }

    #[cold]
    fn view_anew(&self, segment: u32) -> Result<Arc<View>, UnpackError> {
        let mapped = self.find(segment)?;
        let mut views = self.views.write();
        if let Some(view) = views.by_segment.get(&segment) {
            return Ok(Arc::clone(view));
        }
        // Not once our direction of the socket is closed, which says that nothing is held any more.
        let parcels = self.this.upgrade().filter(|_| self.held.hold()).ok_or(UnpackError::NoMemory)?;
        let view = Arc::new(View { parcels: ManuallyDrop::new(parcels), mapped });
        // One dropped by its owner meanwhile is not kept for the next; what lies in it stays.
        if !views.is_closed && self.incoming.get(segment).is_some() {
            views.by_segment.insert(segment, Arc::clone(&view));
        }
        Ok(view)
    }

    /// Forgets the views of all segments, so that only what is held keeps any.
    pub(super) fn close_views(&self) {
        let closed = {
            let mut views = self.views.write();
            views.is_closed = true;
            std::mem::take(&mut views.by_segment)
        };
        drop(closed);
    }

    /// Forgets the view of a segment that its owner has dropped.
    pub(super) fn close_view(&self, segment: u32) {
        let closed = self.views.write().by_segment.remove(&segment);
        drop(closed);
    }

    /// Tells the lender with the next request that its memory is not read any more, if that can be.
    fn give_back_riding(&self, loan: Loan) {
        let rides = self.is_caller
            && self.theirs().wanted.load(Ordering::Relaxed) == 0
            && self.riding.board(loan.lease);
        if rides {
            return self.return_soon();
        }
        self.give_back(loan);
    }

    /// Tells the lender at once.
    fn give_back(&self, loan: Loan) {
        if give_back(loan.lease, self.ours(), self.theirs()) {
            self.send_wake();
        } else {
            // It may not look for long, and what it has little of may be small.
            self.riding.owe_wake();
            self.return_soon();
        }
    }

    /// A lease for the next request to take back along; 0: none.
    #[inline(always)]
    pub fn take_pending(&self) -> u32 {
        self.riding.take_along()
    }

    /// If no request takes it along, gives back what waits for one; and wakes the lender, if it is owed that.
    #[inline]
    fn return_soon(&self) {
        if self.riding.needs_alarm() {
            let parcels = self.this.clone();
            self.engine.alarm(clock::now_ns() + RETURN_NS, move |_| {
                if let Some(parcels) = parcels.upgrade() {
                    parcels.return_now();
                }
            });
        }
    }

    fn return_now(&self) {
        let (number, wakes) = self.riding.on_alarm();
        if number != 0 {
            give_back(number, self.ours(), self.theirs());
        }
        if wakes {
            self.send_wake();
        }
    }
}

/// A segment of the peer's, for what lies in it: it holds the connection open.
pub(crate) struct View {
    parcels: ManuallyDrop<Arc<Parcels>>,
    mapped: Arc<Mapped>,
}

/// The views of announced segments, while there are calls.
#[derive(Default)]
pub(super) struct Views {
    by_segment: BTreeMap<u32, Arc<View>>,
    is_closed: bool,
}

impl Drop for View {
    fn drop(&mut self) {
        if fork::forked_since(self.parcels.generation) {
            return;
        }
        // SAFETY: a value is dropped once, and nothing looks at the field after this.
        let parcels = unsafe { ManuallyDrop::take(&mut self.parcels) };
        parcels.release();
    }
}

/// A range of another process' segment, lent to this one: mapped, and not written by its honest lender, until this is
/// dropped, which gives it back.
pub(crate) struct Received {
    view: ManuallyDrop<Arc<View>>,
    loan: Loan,
    back: Back,
}

impl Received {
    /// `None` if the range does not lie in the segment; it is given back then.
    #[inline(always)]
    fn new(view: Arc<View>, loan: Loan, back: Back) -> Option<Received> {
        let is_sound = view.mapped.read(loan.offset, loan.len).is_some();
        let received = Received { view: ManuallyDrop::new(view), loan, back };
        is_sound.then_some(received)
    }

    /// Where it lies; not mapped in a forked child, see [`is_inherited`](Self::is_inherited).
    #[inline(always)]
    pub(crate) fn bytes(&self) -> NonNull<[u8]> {
        // Both numbers are at most the mapping's length, a usize.
        NonNull::slice_from_raw_parts(self.view.mapped.at(self.loan.offset as usize), self.loan.len as usize)
    }

    /// Whether this process was forked from the one that borrowed it.
    #[inline]
    pub(crate) fn is_inherited(&self) -> bool {
        fork::forked_since(self.view.parcels.generation)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if self.is_inherited() {
            // It is the parent's to give back, and the memory to say so in is not here.
            return;
        }
        // Before the view goes: with the last view our direction of the socket may close.
        match self.back {
            Back::Riding => self.view.parcels.give_back_riding(self.loan),
            Back::AtOnce => self.view.parcels.give_back(self.loan),
        }
        // SAFETY: a value is dropped once, and nothing looks at the field after this.
        drop(unsafe { ManuallyDrop::take(&mut self.view) });
    }
}
