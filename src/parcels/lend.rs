//! The lender's side: chunks announced and lent, and what comes back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use smallvec::SmallVec;

use super::{DROPPED, MESSAGE_MAX, Parcels, SEGMENT};
use crate::blob::arena::{Arena, Chunk};
use crate::blob::limit::{Charge, NoMemory};
use crate::blob::shared::{Blob, Holder};
use crate::blob::supply::LentCharge;
use crate::ring::layout::{Loan, len_with_loans};
use crate::ring::leases::{self, NoLease, NotOut};
use crate::sys::{fork, socket};
use crate::wire::output::Spilled;

/// Alignment of a body, or of a copy that is lent: a cache line.
const ALIGN: usize = 64;

/// The loans of one message.
pub(crate) type LoanList = SmallVec<[Loan; 1]>;

/// Why something was not lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)] // as `Holder`
pub(crate) enum PackError {
    /// A limit of memory is reached, or of leases, or the peer does not read its socket.
    NoMemory,
    /// The peer is gone.
    Ended,
}

/// What is kept until its lease is back.
pub(super) struct Lent {
    kept: Arc<Chunk>,
    /// Counted as lent, to be given back to the arena.
    charge: LentCharge,
    /// Of a body, taken of what the peer may have in flight.
    in_flight: Option<Charge>,
}

/// How much was copied because it could not be lent: blobs of other users' processes, passed on, or from ordinary memory.
#[derive(Debug, Default)]
pub(crate) struct Copied {
    pub blobs: AtomicU64,
    pub bytes: AtomicU64,
}

impl Parcels {
    /// Lends a blob: as it lies, if it is of the arena for the peer's user, else as a copy.
    #[inline(always)]
    pub fn lend(&self, blob: Blob) -> Result<Loan, PackError> {
        let (bytes, holder) = blob.into_parts();
        match holder {
            Holder::Own(chunk) if chunk.is_of(&self.arena) => {
                let offset = chunk.offset_of(bytes.cast());
                self.lend_range(chunk, offset, bytes.len() as u64, None)
            }
            holder => self.lend_copy(&Blob::from_parts(bytes, holder)),
        }
    }

    #[cold]
    fn lend_copy(&self, blob: &[u8]) -> Result<Loan, PackError> {
        let mut chunk = self.arena.alloc(blob.len(), ALIGN).map_err(|NoMemory| PackError::NoMemory)?;
        chunk.as_mut_slice().copy_from_slice(blob);
        self.copied.blobs.fetch_add(1, Ordering::Relaxed);
        self.copied.bytes.fetch_add(blob.len() as u64, Ordering::Relaxed);
        let offset = chunk.offset();
        self.lend_range(Arc::new(chunk), offset, blob.len() as u64, None)
    }

    /// Lends blobs, all or none.
    pub fn lend_all(&self, blobs: impl Iterator<Item = Blob>) -> Result<LoanList, PackError> {
        let mut loans = LoanList::new();
        for blob in blobs {
            match self.lend(blob) {
                Ok(loan) => loans.push(loan),
                Err(error) => {
                    self.unlend(&loans);
                    return Err(error);
                }
            }
        }
        Ok(loans)
    }

    /// Lends a body, with `loans` behind it.
    pub fn lend_body(
        &self,
        body: &mut Spilled,
        loans: &[Loan],
        in_flight: Option<Charge>,
    ) -> Result<Loan, PackError> {
        body.append(loans, &self.arena).map_err(|NoMemory| PackError::NoMemory)?;
        let len = len_with_loans(body.len() as u64, loans.len() as u32);
        self.lend_range(Arc::clone(body.chunk()), body.chunk().offset(), len, in_flight)
    }

    /// A body in memory that can be lent, of one that fits a cell or slot.
    pub fn spill(&self, body: &[u8]) -> Result<Spilled, PackError> {
        Spilled::copy_of(body, &self.arena).map_err(|NoMemory| PackError::NoMemory)
    }

    /// The arena for what is lent here.
    #[inline(always)]
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    #[inline(always)]
    fn lend_range(
        &self,
        chunk: Arc<Chunk>,
        offset: u64,
        len: u64,
        in_flight: Option<Charge>,
    ) -> Result<Loan, PackError> {
        self.announce(&chunk)?;
        let charge = self.arena.charge_lent(len).map_err(|NoMemory| PackError::NoMemory)?;
        let segment = chunk.segment_id();
        let lease = self.lease(Lent { kept: chunk, charge, in_flight })?;
        Ok(Loan { lease, segment, offset, len })
    }

    #[inline(always)]
    fn lease(&self, lent: Lent) -> Result<u32, PackError> {
        self.has_lent.store(true, Ordering::Relaxed);
        let again = |(why, lent)| {
            if why == NoLease::Full {
                self.collect();
                return self.loans.lend(lent);
            }
            Err((why, lent))
        };
        self.loans.lend(lent).or_else(again).map_err(|(why, lent)| {
            self.regain(lent);
            if why == NoLease::Full { PackError::NoMemory } else { PackError::Ended }
        })
    }

    /// Something lent is back.
    pub(super) fn regain(&self, mut lent: Lent) {
        self.uncount(&mut lent);
        drop(lent.kept);
    }

    fn uncount(&self, lent: &mut Lent) {
        self.arena.return_lent(std::mem::take(&mut lent.charge));
        lent.in_flight = None;
    }

    /// Takes back what a message lent that was not sent.
    pub fn unlend(&self, loans: &[Loan]) {
        for loan in loans {
            if let Ok(Some(lent)) = self.loans.take_back(loan.lease) {
                self.regain(lent);
            }
        }
    }

    #[inline(always)]
    fn announce(&self, chunk: &Chunk) -> Result<(), PackError> {
        let now = self.arena.drops() << 32 | u64::from(chunk.segment_id());
        // Release and Acquire: who sees that it was announced publishes after that.
        if self.last_announced.load(Ordering::Acquire) == now {
            return Ok(());
        }
        self.announce_anew(chunk)?;
        self.last_announced.store(now, Ordering::Release);
        Ok(())
    }

    #[cold]
    fn announce_anew(&self, chunk: &Chunk) -> Result<(), PackError> {
        let mut announced = self.announced.lock();
        self.withdraw_dropped(&mut announced);
        if announced.contains(&chunk.segment_id()) {
            return Ok(());
        }
        let segment = chunk.segment().announce();
        let mut message = [0; MESSAGE_MAX];
        message[0] = SEGMENT;
        message[1..5].copy_from_slice(&segment.id.to_le_bytes());
        message[5..13].copy_from_slice(&segment.len.to_le_bytes());
        match socket::send(&self.socket, &message, &[segment.fd]) {
            Ok(()) => {
                announced.insert(segment.id);
                Ok(())
            }
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Err(PackError::Ended),
            Err(_) => Err(PackError::NoMemory),
        }
    }

    /// Tells the peer which segments are gone; one that cannot be told now is told before the next announcement.
    fn withdraw_dropped(&self, announced: &mut BTreeSet<u32>) {
        let drops = self.arena.drops();
        if self.drops_seen.swap(drops, Ordering::Relaxed) == drops {
            return;
        }
        for id in self.arena.forget_dropped(announced) {
            let mut message = [0; 5];
            message[0] = DROPPED;
            message[1..].copy_from_slice(&id.to_le_bytes());
            if socket::send(&self.socket, &message, &[]).is_err() {
                // The number is never used again, so keeping it costs the peer a mapping and nothing else.
                announced.insert(id);
                self.drops_seen.store(u64::MAX, Ordering::Relaxed);
            }
        }
    }

    /// Takes back what the peer has given back by its bits, if anything. Memory comes free by this.
    #[inline(always)]
    pub fn collect_if_lent(&self) {
        if self.has_lent.load(Ordering::Relaxed) && self.loans.has_returns(self.theirs()) {
            self.collect();
        }
    }

    /// Takes back what the peer has given back by its bits.
    #[cold]
    pub fn collect(&self) {
        if fork::forked_since(self.generation) || !self.loans.has_returns(self.theirs()) {
            return;
        }
        let mut back = Vec::new();
        let collected = self.loans.collect(self.theirs(), &mut back, |lent| self.uncount(lent));
        back.into_iter().for_each(|lent| self.regain(lent));
        self.check(collected);
    }

    /// Takes back what a request gives back.
    #[cold]
    pub fn take_back(&self, number: u32) {
        let taken = self.loans.take_back(number);
        self.check(taken.map(|lent| lent.into_iter().for_each(|lent| self.regain(lent))));
    }

    fn check(&self, returned: Result<(), NotOut>) {
        if let (Err(NotOut), Some(resident)) = (returned, self.resident()) {
            resident.violated();
        }
    }

    /// Tells the peer whether to say at once when it gives something back. Then [`collect`](Self::collect).
    pub fn want(&self, is_wanted: bool) {
        if !fork::forked_since(self.generation) {
            leases::want(self.ours(), is_wanted);
        }
    }

    /// What is out: leases, and bytes.
    pub fn lent(&self) -> (u64, u64) {
        let mut sums = (0, 0);
        self.loans.for_each(|lent| sums = (sums.0 + 1, sums.1 + lent.charge.bytes()));
        sums
    }
}
