//! Two ends of a connection within one process.

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::blob::arena::MemoryLimit;
use crate::blob::limit::{Charge, Holdings, NoMemory};
use crate::blob::segments::{LaneLimits, Mappings};
use crate::blob::shared::Blob;
use crate::engine::engine;
use crate::ring::layout::Loan;
use crate::sys::memfd::receive_sealed;

/// Counts what it hears.
#[derive(Default)]
struct Ear {
    woken: AtomicUsize,
    violated: AtomicUsize,
    left: AtomicUsize,
}

impl Resident for Ear {
    fn woken(&self) {
        self.woken.fetch_add(1, Ordering::SeqCst);
    }

    fn violated(&self) {
        self.violated.fetch_add(1, Ordering::SeqCst);
    }

    fn peer_left(self: Arc<Self>, _engine: &'static Engine) {
        self.left.fetch_add(1, Ordering::SeqCst);
    }

    fn peer_died(self: Arc<Self>, _engine: &'static Engine) {}
}

/// A caller's end and an owner's.
fn ends() -> [Arc<Parcels>; 2] {
    ends_that(false)
}

/// The same, where blobs are copied on arrival or not.
fn ends_that(copies: bool) -> [Arc<Parcels>; 2] {
    let engine = engine().unwrap();
    let (request, request_fd) = memfd::create_sealed("request", size_of::<RequestMemory>()).unwrap();
    let (response, response_fd) = memfd::create_sealed("response", size_of::<ResponseMemory>()).unwrap();
    let seen_request = receive_sealed(&request_fd, size_of::<RequestMemory>()).unwrap();
    let seen_response = receive_sealed(&response_fd, size_of::<ResponseMemory>()).unwrap();
    let (ours, theirs) = socket::pair().unwrap();
    let end = |socket: Fd, side, request, response| {
        let mappings = Arc::new(Mappings::new(MemoryLimit::new(8), MemoryLimit::new(1 << 30)));
        let limits = LaneLimits { segments: 8, bytes: 1 << 30 };
        Parcels::new(Parts {
            peer: engine.peers.of_socket(engine, &socket).unwrap(),
            socket,
            engine,
            side,
            request,
            response,
            incoming: Segments::new(limits, mappings, Holdings::none()),
            copies,
            arena: Arc::new(Arena::new(MemoryLimit::new(1 << 30))),
            copied: Arc::default(),
        })
    };
    [end(ours, Side::Caller, request, seen_response), end(theirs, Side::Owner, seen_request, response)]
}

/// The bytes of a blob, as a process to which they were lent has them.
pub(crate) fn borrowed(blob: &Blob) -> Blob {
    let [caller, owner] = ends();
    open(&caller, owner.lend(blob.clone()).unwrap()).unwrap()
}

fn lend(end: &Parcels, bytes: &[u8]) -> Result<Loan, PackError> {
    end.lend(Blob::from(bytes))
}

/// Any number of bytes may be copied.
fn freely(bytes: u64) -> Result<Charge, NoMemory> {
    MemoryLimit::new(u64::MAX).charge(bytes)
}

fn open(end: &Parcels, loan: Loan) -> Result<Blob, UnpackError> {
    open_for(end, loan, Back::Riding)
}

fn open_for(end: &Parcels, loan: Loan, back: Back) -> Result<Blob, UnpackError> {
    end.open(None, 0, 1, [loan].into_iter(), back, freely).map(|mut opened| opened.blobs.remove(0))
}

#[test]
fn an_announcement_wakes_as_well() {
    let [caller, owner] = ends();
    assert_eq!(owner.read_socket(), News::default());
    let _loan = lend(&caller, b"a body").unwrap();
    assert_eq!(owner.read_socket(), News { woken: true, ..News::default() });
}

#[test]
fn what_is_lent_comes_back_when_the_last_holder_drops_it() {
    for borrower_calls in [false, true] {
        let [mut lender, mut borrower] = ends();
        if !borrower_calls {
            std::mem::swap(&mut lender, &mut borrower);
        }
        let loan = lend(&lender, b"a body").unwrap();
        let blob = open(&borrower, loan).unwrap();
        let part = blob.slice(2..);
        drop(blob);
        lender.collect();
        assert_eq!((lender.lent(), &part[..]), ((1, 6), &b"body"[..]));
        drop(part);
        match borrower.take_pending() {
            0 => lender.collect(),
            number => lender.take_back(number),
        }
        assert_eq!(lender.lent(), (0, 0));
    }
}

#[test]
fn a_lease_that_no_request_takes_along_comes_back_all_the_same() {
    let [caller, owner] = ends();
    let ear = Arc::new(Ear::default());
    owner.watch(Arc::downgrade(&ear)).unwrap();
    drop(open(&caller, lend(&owner, b"a body").unwrap()).unwrap());
    crate::sys::testing::wait_until("it is back", || owner.lent() == (0, 0));
    assert_eq!(ear.violated.load(Ordering::SeqCst), 0);
}

#[test]
fn what_came_with_an_item_waits_for_no_request() {
    let [caller, owner] = ends();
    drop(open_for(&caller, lend(&owner, b"an item").unwrap(), Back::AtOnce).unwrap());
    assert_eq!(caller.take_pending(), 0);
    owner.collect_if_lent();
    assert_eq!(owner.lent(), (0, 0));
}

#[test]
fn an_end_that_holds_something_says_only_that_it_leaves() {
    let [caller, owner] = ends();
    let ear = Arc::new(Ear::default());
    owner.watch(Arc::downgrade(&ear)).unwrap();
    let blob = open(&caller, lend(&owner, b"a body").unwrap()).unwrap();
    caller.end_calls();
    crate::sys::testing::wait_until("it is heard", || ear.left.load(Ordering::SeqCst) == 1);
    assert_eq!((owner.lent(), &blob[..]), ((1, 6), &b"a body"[..]));
    assert_eq!(
        open(&caller, Loan { lease: 9, segment: 9, offset: 0, len: 0 }).unwrap_err(),
        UnpackError::Violation
    );
    drop(blob);
    crate::sys::testing::wait_until("its end is heard", || owner.lent() == (0, 0));
    assert!(owner.is_over.load(Ordering::SeqCst));
    assert_eq!(lend(&owner, b"more"), Err(PackError::Ended));
    assert_eq!(
        open(&caller, Loan { lease: 9, segment: 1, offset: 0, len: 1 }).unwrap_err(),
        UnpackError::NoMemory
    );
}

#[test]
fn a_lease_given_back_that_is_not_out_is_a_violation() {
    let [caller, owner] = ends();
    let ear = Arc::new(Ear::default());
    owner.watch(Arc::downgrade(&ear)).unwrap();
    let loan = lend(&owner, b"a body").unwrap();
    let violations = || ear.violated.load(Ordering::SeqCst);
    owner.take_back(loan.lease ^ 1);
    assert_eq!(violations(), 1, "another index");
    owner.take_back(loan.lease ^ 1 << 31);
    assert_eq!(violations(), 2, "another generation");
    owner.take_back(loan.lease);
    assert_eq!((violations(), owner.lent()), (2, (0, 0)));
    owner.take_back(loan.lease);
    assert_eq!(violations(), 3, "twice");
    crate::ring::leases::give_back(loan.lease, caller.ours(), caller.theirs());
    owner.collect();
    assert_eq!(violations(), 4, "once more, by its bit");
}

#[test]
fn leases_run_out_and_come_back() {
    let [caller, owner] = ends();
    let loans: Vec<_> = std::iter::from_fn(|| lend(&owner, b"x").ok()).collect();
    assert_eq!(loans.len(), crate::ring::layout::LEASES);
    let blobs: Vec<_> = loans.iter().map(|loan| open(&caller, *loan).unwrap()).collect();
    drop(blobs);
    owner.take_back(caller.take_pending());
    // The others are looked for when there is none left.
    let again: Vec<_> = std::iter::from_fn(|| lend(&owner, b"x").ok()).collect();
    assert_eq!(again.len(), crate::ring::layout::LEASES);
}

/// A body in memory of its own, with `blobs` behind it, lent by `lender`: where, its encoded length, and what is lent with it.
fn lend_body(lender: &Parcels, body: &[u8], blobs: &[&[u8]]) -> (Loan, u64, u32) {
    let loans = lender.lend_all(blobs.iter().map(|bytes| Blob::from(*bytes))).unwrap();
    let loan = lender.lend_body(&mut lender.spill(body).unwrap(), &loans, None).unwrap();
    (loan, body.len() as u64, loans.len() as u32)
}

#[test]
fn once_it_said_that_it_holds_nothing_an_end_reads_nothing_any_more() {
    let [caller, owner] = ends();
    let (loan, (body, len, lent)) = (lend(&caller, b"a blob").unwrap(), lend_body(&caller, b"a body", &[]));
    owner.end_calls();
    assert_eq!(
        owner.open(Some(body), len, lent, std::iter::empty(), Back::Riding, freely).unwrap_err(),
        UnpackError::NoMemory
    );
    assert_eq!(open(&owner, loan).unwrap_err(), UnpackError::NoMemory);
}

#[test]
fn all_that_an_unread_message_lends_comes_back() {
    let [caller, owner] = ends();
    let (body, len, lent) = lend_body(&caller, &[7; 1001], &[b"a blob", b"another"]);
    assert_eq!(caller.lent(), (3, 1008 + 2 * 24 + 13));
    owner.discard(Some(body), len, lent, std::iter::empty());
    caller.collect();
    assert_eq!(caller.lent(), (0, 0));
    // Of one that lies about its body nothing is known but the body.
    let (body, len, lent) = lend_body(&caller, &[7; 1001], &[b"a blob"]);
    owner.discard(Some(body), len, lent + 1, std::iter::empty());
    caller.collect();
    assert_eq!(caller.lent(), (1, 6));
}

#[test]
fn what_is_copied_on_arrival_is_charged_before_and_as_long_as_it_is_held() {
    let [caller, owner] = ends_that(true);
    let held = MemoryLimit::new(16);
    let lend_two = || [lend(&caller, b"a blob").unwrap(), lend(&caller, b"another").unwrap()];
    let mut opened =
        owner.open(None, 0, 2, lend_two().into_iter(), Back::Riding, |sum| held.charge(sum)).unwrap();
    assert_eq!(
        (held.charged(), &opened.blobs[0][..], &opened.blobs[1][..]),
        (13, &b"a blob"[..], &b"another"[..])
    );
    let part = opened.blobs.pop().unwrap().slice(1..2);
    drop(opened);
    assert_eq!((held.charged(), &part[..]), (7, &b"n"[..]));
    let refused = owner.open(None, 0, 2, lend_two().into_iter(), Back::Riding, |sum| held.charge(sum));
    assert_eq!(refused.unwrap_err(), UnpackError::Limit);
    drop(part);
    caller.collect();
    assert_eq!((held.charged(), caller.lent()), (0, (0, 0)), "copied or not, all is given back");
}

#[test]
fn a_range_lent_many_times_in_a_message_is_copied_once() {
    let [caller, owner] = ends_that(true);
    let held = MemoryLimit::new(6);
    let chunk = lend(&caller, b"a blob").unwrap();
    let loans = (0..crate::ring::layout::LEASES as u32).map(|i| Loan { lease: chunk.lease + i, ..chunk });
    let opened =
        owner.open(None, 0, loans.len() as u32, loans.clone(), Back::Riding, |sum| held.charge(sum)).unwrap();
    assert_eq!((opened.blobs.len(), held.charged()), (loans.len(), 6));
    assert!(opened.blobs.iter().all(|blob| blob.as_ptr() == opened.blobs[0].as_ptr()));
    // Of ranges that differ all count, and their sum does not wrap.
    let long = [u64::MAX, u64::MAX - 1].map(|len| Loan { len, ..chunk });
    let refused = owner.open(None, 0, 2, long.into_iter(), Back::Riding, |sum| {
        held.charge(sum).inspect(|_| panic!("{sum}"))
    });
    assert_eq!(refused.unwrap_err(), UnpackError::Limit);
}

#[test]
fn a_lender_that_does_not_look_hears_of_the_smallest_lease_that_is_back() {
    let [caller, owner] = ends();
    let ear = Arc::new(Ear::default());
    caller.watch(Arc::downgrade(&ear)).unwrap();
    drop(open(&owner, lend(&caller, b"x").unwrap()).unwrap());
    crate::sys::testing::wait_until("it is back", || caller.lent() == (0, 0));
}
