//! A side that goes closes its direction of the socket when it holds nothing for good, and not before: what it holds is the
//! other's memory.

use super::*;
use crate::ring::leases::{Held, LEAVING, Loans};
use crate::sync::AtomicBool;

/// An end that goes. Mirrors `Parcels`, as far as its end goes.
struct Leaver {
    held: Held,
    /// The peer's, held here.
    memory: Arc<Memory>,
    /// What the peer holds of ours.
    loans: Loans<()>,
    is_over: AtomicBool,
    /// Our direction of the socket is closed, so that the peer writes its memory anew.
    is_closed: AtomicBool,
    /// Both are.
    is_gone: AtomicBool,
}

impl Leaver {
    /// Which holds one.
    fn new() -> Arc<Leaver> {
        let word = || AtomicBool::new(false);
        let (held, loans) = (Held::new(), Loans::new());
        assert!(held.hold() && loans.lend(()).is_ok());
        let (is_over, is_closed, is_gone) = (word(), word(), word());
        Arc::new(Leaver { held, memory: Memory::new(), loans, is_over, is_closed, is_gone })
    }

    /// Mirrors `Parcels::hold`.
    fn hold(&self) {
        if self.held.hold() {
            self.read_and_release();
        }
    }

    /// Mirrors the drop of a lease.
    fn read_and_release(&self) {
        self.memory.read();
        if self.held.release() {
            self.settle();
        }
    }

    /// Mirrors `Parcels::end_calls`.
    fn end_calls(&self) {
        if self.held.leave().is_some() {
            self.settle();
        }
    }

    /// Mirrors `Parcels::settle`.
    fn settle(&self) {
        if !self.held.is_over() {
            return;
        }
        if !self.is_closed.swap(true, Ordering::Relaxed) {
            self.memory.write();
        }
        if self.is_over.load(Ordering::Relaxed) || self.loans.end_if_empty() {
            self.is_gone.store(true, Ordering::Relaxed);
        }
    }

    /// Mirrors `Parcels::peer_ended`.
    fn peer_ended(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        drop(self.loans.end());
        self.settle();
    }

    fn assert_closed(&self) {
        assert!(self.is_closed.load(Ordering::Relaxed), "found: a direction that is not closed");
    }
}

/// The last call ends and the last lease is released, while two come late.
fn leave(hold: fn(&Leaver)) {
    let leaver = Leaver::new();
    let holder = with(&leaver, |leaver| leaver.read_and_release());
    let late = [with(&leaver, hold), with(&leaver, hold)];
    leaver.end_calls();
    holder.join().unwrap();
    late.into_iter().for_each(|late| late.join().unwrap());
    leaver.assert_closed();
    assert_eq!(leaver.held.count(), 0);
    assert!(!leaver.held.hold(), "found: held behind a closed direction");
}

#[test]
fn a_direction_is_closed_when_nothing_is_held_for_good() {
    explore(2, || leave(Leaver::hold));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_direction_closed_by_a_release_without_order_frees_memory_that_is_read() {
    without_order_of("release");
    explore(2, || leave(Leaver::hold));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn of_two_that_come_late_one_counted_for_a_moment_lets_the_other_in() {
    explore(2, || {
        leave(|leaver| {
            if leaver.held.0.fetch_add(1, Ordering::AcqRel) != LEAVING {
                leaver.memory.read();
            }
            if leaver.held.release() {
                leaver.settle();
            }
        });
    });
}

/// The last lease is released while the peer goes as well.
fn leave_together(peer_ended: fn(&Leaver)) {
    let leaver = Leaver::new();
    let holder = with(&leaver, |leaver| leaver.read_and_release());
    let watcher = with(&leaver, peer_ended);
    leaver.end_calls();
    holder.join().unwrap();
    watcher.join().unwrap();
    leaver.assert_closed();
    assert!(leaver.is_gone.load(Ordering::Relaxed), "found: a connection that is kept for ever");
}

#[test]
fn a_connection_that_both_leave_ends() {
    explore(3, || leave_together(Leaver::peer_ended));
}

#[test]
#[should_panic(expected = "found: a connection that is kept for ever")]
fn a_connection_whose_leases_end_before_the_peer_is_gone_is_kept() {
    explore(3, || {
        leave_together(|leaver| {
            leaver.settle();
            leaver.is_over.store(true, Ordering::Relaxed);
            drop(leaver.loans.end());
        });
    });
}
