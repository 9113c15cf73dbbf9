//! Leases: each comes back once, the lender touches nothing that is held, and who waits for memory is woken.

use super::*;
use crate::ring::leases::{Loans, NotOut, Riding, give_back, want};
use crate::sync::AtomicU32;

/// An owner that lends and a caller that borrows, with a lane between them. Mirrors `Parcels`, as far as these two go.
struct Ends {
    lane: Arc<Lane>,
    loans: Loans<Arc<Memory>>,
    owners: Returns,
    callers: Returns,
    riding: Riding,
    /// Alarms that were set and have not gone off.
    alarms: AtomicU32,
    /// What the owner took back.
    back: AtomicU32,
    /// What is out, as limits count it.
    counted: AtomicU32,
    /// The owner's memory comes free.
    freed: Event,
}

impl Ends {
    fn new() -> Arc<Ends> {
        Arc::new(Ends {
            lane: Lane::new(),
            loans: Loans::new(),
            owners: Returns::fresh(),
            callers: Returns::fresh(),
            riding: Riding::new(),
            alarms: AtomicU32::new(0),
            back: AtomicU32::new(0),
            counted: AtomicU32::new(0),
            freed: Event::new(),
        })
    }

    fn lend(&self) -> u32 {
        self.loans.lend(Memory::new()).unwrap_or_else(|_| panic!("nothing is out"))
    }

    fn free(&self, back: impl IntoIterator<Item = Arc<Memory>>) {
        for memory in back {
            memory.write();
            self.back.fetch_add(1, Ordering::Relaxed);
            self.freed.happen();
        }
    }

    /// Mirrors `Parcels::collect`.
    fn collect(&self) {
        if !self.loans.has_returns(&self.callers) {
            return;
        }
        let mut back = Vec::new();
        let uncount = |_: &mut _| drop(self.counted.fetch_sub(1, Ordering::Relaxed));
        let collected = self.loans.collect(&self.callers, &mut back, uncount);
        assert_eq!(collected, Ok(()), "found: a lease back twice");
        self.free(back);
    }

    /// Mirrors `Parcels::take_back`.
    fn take_back(&self, number: u32) {
        match self.loans.take_back(number) {
            Ok(back) => self.free(back),
            Err(NotOut) => panic!("found: a lease back twice"),
        }
    }

    /// What comes with the next request, if there is one. Mirrors the owner's worker.
    fn take_back_returned(&self) {
        if let Some(request) = self.lane.take()
            && request.returned.get() != 0
        {
            self.take_back(request.returned.get());
        }
    }

    /// Mirrors `Parcels::give_back`.
    fn give_back(&self, number: u32) {
        if self.owners.wanted.load(Ordering::Relaxed) == 0 && self.riding.board(number) {
            self.return_soon();
        } else {
            self.give_back_by_bit(number);
        }
    }

    /// Mirrors `Parcels::give_back_by_bit`; who reads the socket collects.
    fn give_back_by_bit(&self, number: u32) {
        if give_back(number, &self.callers, &self.owners) {
            self.collect();
        }
    }

    fn return_soon(&self) {
        if self.riding.needs_alarm() {
            self.alarms.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Mirrors `Parcels::return_now`.
    fn return_now(&self) {
        self.act_on(self.riding.on_alarm());
    }

    fn act_on(&self, (number, wakes): (u32, bool)) {
        if number != 0 {
            give_back(number, &self.callers, &self.owners);
        }
        if wakes {
            self.collect();
        }
    }

    /// All alarms go off.
    fn settle(&self) {
        while self.alarms.load(Ordering::Relaxed) != 0 {
            self.alarms.fetch_sub(1, Ordering::Relaxed);
            self.return_now();
        }
    }

    /// Nothing happens any more: `lent` leases are back, each once.
    fn assert_back(&self, lent: u32) {
        self.loans.for_each(|_| panic!("found: a lease that does not come back"));
        assert_eq!(self.back.load(Ordering::Relaxed), lent);
    }
}

/// Two leases come back: one on a request, unless its alarm goes off before; the other by its bit. Two threads of the lender
/// look for both.
fn come_back(take_along: fn(&Riding) -> u32) {
    let ends = Ends::new();
    let (first, second) = (ends.lend(), ends.lend());
    ends.give_back(first);
    let alarm = with(&ends, |ends| ends.settle());
    let bit = with(&ends, move |ends| {
        ends.give_back_by_bit(second);
        ends.collect();
    });
    let worker = with(&ends, |ends| {
        ends.take_back_returned();
        ends.collect();
    });
    ends.lane.publish_returning(0, 1, take_along(&ends.riding));
    [alarm, bit, worker].into_iter().for_each(|thread| thread.join().unwrap());
    ends.take_back_returned();
    ends.collect();
    ends.assert_back(2);
}

#[test]
fn each_lease_comes_back_once() {
    explore(2, || come_back(Riding::take_along));
}

#[test]
#[should_panic(expected = "found: a lease back twice")]
fn a_lease_taken_along_in_two_steps_comes_back_twice() {
    explore(2, || {
        come_back(|riding| {
            let number = riding.lease.load(Ordering::Acquire);
            riding.lease.store(0, Ordering::Relaxed);
            number
        });
    });
}

/// Who reads a lease gives it back by its bit, or leaves it to the next request.
fn read_and_return(rides: bool) -> Arc<Ends> {
    let ends = Ends::new();
    let memory = Memory::new();
    let number = ends.loans.lend(Arc::clone(&memory)).unwrap_or_else(|_| panic!("nothing is out"));
    let reader = with(&ends, move |ends| {
        memory.read();
        if rides { ends.give_back(number) } else { ends.give_back_by_bit(number) }
    });
    let caller = with(&ends, |ends| ends.lane.publish_returning(0, 1, ends.riding.take_along()));
    ends.collect();
    ends.take_back_returned();
    reader.join().unwrap();
    caller.join().unwrap();
    ends.take_back_returned();
    ends.settle();
    ends.collect();
    ends
}

#[test]
fn memory_given_back_by_its_bit_is_not_touched_before() {
    explore(None, || read_and_return(false).assert_back(1));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_bit_turned_without_release_frees_memory_that_is_read() {
    without_order_of("give_back");
    explore(None, || drop(read_and_return(false)));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_bit_seen_without_acquire_frees_memory_that_is_read() {
    without_order_of("collect");
    explore(None, || drop(read_and_return(false)));
}

#[test]
#[should_panic(expected = "found: a lease that does not come back")]
fn a_count_seen_before_its_bit_loses_a_lease() {
    without_order_of("give_back");
    explore(None, || read_and_return(false).assert_back(1));
}

#[test]
fn memory_given_back_with_a_request_is_not_touched_before() {
    explore(None, || read_and_return(true).assert_back(1));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_lease_left_to_a_request_without_release_frees_memory_that_is_read() {
    without_order_of("board");
    explore(None, || drop(read_and_return(true)));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_lease_taken_along_without_acquire_frees_memory_that_is_read() {
    without_order_of("take_along");
    explore(None, || drop(read_and_return(true)));
}

/// A lease is back by its bit, goes out again under the same index, and comes back by its number, while another thread looks at
/// the bits.
fn lend_anew(look: fn(&Ends, u32)) {
    let ends = Ends::new();
    let first = ends.lend();
    let next = first + LEASES as u32;
    let message = Arc::new(AtomicU32::new(0));
    let borrower = {
        let (ends, message) = (Arc::clone(&ends), Arc::clone(&message));
        thread::spawn(move || {
            ends.give_back_by_bit(first);
            let number = message.load(Ordering::Acquire);
            ends.lane.publish_returning(0, 1, number);
            number != 0
        })
    };
    let other = with(&ends, move |ends| look(ends, next));
    let lend = || {
        assert_eq!(ends.lend(), next, "found: a number of another index or generation");
        message.store(next, Ordering::Release);
    };
    ends.collect();
    let is_lent = ends.back.load(Ordering::Relaxed) == 1;
    if is_lent {
        lend();
        ends.take_back_returned();
    }
    let is_returned = borrower.join().unwrap();
    other.join().unwrap();
    ends.collect();
    ends.take_back_returned();
    if !is_lent {
        lend();
    }
    if !is_returned {
        ends.collect();
        assert_eq!(ends.back.load(Ordering::Relaxed), 1, "found: an old look ends a new lease");
        ends.take_back(next);
    }
    ends.assert_back(2);
}

#[test]
fn an_index_lent_anew_is_not_ended_by_its_last_bit() {
    explore(3, || lend_anew(|ends, _| ends.collect()));
}

#[test]
#[should_panic(expected = "found: an old look ends a new lease")]
fn a_look_at_the_bits_without_the_lock_ends_a_new_lease() {
    explore(3, || {
        lend_anew(|ends, next| {
            let is_turned = ends.callers.bits[0].load(Ordering::Acquire) != 0;
            // What is out under the index by now.
            assert!(!is_turned || ends.loans.take_back(next).is_err(), "found: an old look ends a new lease");
        });
    });
}

/// The lender waits for memory, and the borrower gives it back, in the way `give_back`; another of the lender's threads comes
/// by, and does `other`.
fn wait_for_memory(give_back: fn(&Ends, u32), other: fn(&Ends)) {
    let ends = Ends::new();
    let number = ends.lend();
    let borrower = with(&ends, move |ends| {
        give_back(ends, number);
        ends.settle();
    });
    let other = with(&ends, other);
    want(&ends.owners, true);
    ends.collect();
    // Mirrors the wait for the arena: who frees memory is seen, or tells.
    if ends.back.load(Ordering::Acquire) == 0 {
        ends.freed.wait();
    }
    want(&ends.owners, false);
    borrower.join().unwrap();
    other.join().unwrap();
    ends.assert_back(1);
}

#[test]
fn who_waits_for_memory_is_woken_by_a_bit() {
    explore(3, || wait_for_memory(Ends::give_back_by_bit, Ends::collect));
}

#[test]
fn who_waits_for_memory_is_woken_by_an_alarm() {
    explore(3, || wait_for_memory(Ends::give_back, Ends::collect));
}

#[test]
#[should_panic(expected = "deadlock")]
fn who_waits_for_memory_without_its_fence_is_lost() {
    without_fence_of("want");
    explore(3, || wait_for_memory(Ends::give_back_by_bit, Ends::collect));
}

#[test]
#[should_panic(expected = "deadlock")]
fn who_waits_for_memory_without_the_borrowers_fence_is_lost() {
    without_fence_of("give_back");
    explore(3, || wait_for_memory(Ends::give_back_by_bit, Ends::collect));
}

#[test]
#[should_panic(expected = "deadlock")]
fn who_waits_for_memory_that_another_thread_frees_in_silence_is_lost() {
    explore(3, || {
        wait_for_memory(Ends::give_back_by_bit, |ends| {
            let mut back = Vec::new();
            let _ = ends.loans.collect(&ends.callers, &mut back, |_| {});
            ends.back.fetch_add(back.len() as u32, Ordering::Release);
        });
    });
}

/// The lender counts what is out, over all that one process holds. Two of its threads find the count too high, and `collect`
/// what was given back by then.
fn count_beside(collect: fn(&Ends)) {
    let ends = Ends::new();
    ends.counted.store(1, Ordering::Relaxed);
    let number = ends.lend();
    ends.give_back_by_bit(number);
    let looks = [(); 2].map(|()| {
        with(&ends, move |ends| {
            collect(ends);
            assert_eq!(ends.counted.load(Ordering::Relaxed), 0, "found: what is back counts");
        })
    });
    looks.into_iter().for_each(|look| look.join().unwrap());
}

#[test]
fn what_is_back_does_not_count() {
    explore(None, || count_beside(Ends::collect));
}

#[test]
#[should_panic(expected = "found: what is back counts")]
fn what_is_back_counts_if_that_ends_without_the_lock() {
    explore(None, || {
        count_beside(|ends| {
            let mut back = Vec::new();
            if ends.loans.has_returns(&ends.callers) {
                let _ = ends.loans.collect(&ends.callers, &mut back, |_| {});
                ends.counted.fetch_sub(back.len() as u32, Ordering::Relaxed);
            }
        });
    });
}

/// While an alarm goes off, a request takes along what it is for, and two more leases and a wake are left.
fn leave_more(on_alarm: fn(&Riding) -> (u32, bool)) {
    let ends = Ends::new();
    let numbers = [(); 3].map(|()| ends.lend());
    ends.give_back(numbers[0]);
    let alarm = with(&ends, move |ends| {
        ends.alarms.fetch_sub(1, Ordering::Relaxed);
        ends.act_on(on_alarm(&ends.riding));
    });
    let other = with(&ends, move |ends| {
        ends.give_back(numbers[2]);
        ends.riding.owe_wake();
        ends.return_soon();
    });
    ends.lane.publish_returning(0, 1, ends.riding.take_along());
    ends.give_back(numbers[1]);
    alarm.join().unwrap();
    other.join().unwrap();
    ends.take_back_returned();
    ends.settle();
    ends.collect();
    assert!(!ends.riding.owes_wake.load(Ordering::Relaxed), "found: a wake that is owed for ever");
    ends.assert_back(3);
}

#[test]
fn what_is_left_behind_an_alarm_has_another() {
    explore(3, || leave_more(Riding::on_alarm));
}

#[test]
#[should_panic(expected = "found: ")]
fn an_alarm_over_only_after_its_looks_leaves_something_behind() {
    explore(3, || {
        leave_more(|riding| {
            let owes_wake = riding.owes_wake.swap(false, Ordering::AcqRel);
            let number = riding.lease.swap(0, Ordering::AcqRel);
            riding.has_alarm.swap(false, Ordering::AcqRel);
            (number, owes_wake || number != 0)
        });
    });
}

#[test]
#[should_panic(expected = "found: ")]
fn an_alarm_that_does_not_release_its_end_leaves_something_behind() {
    without_order_of("on_alarm");
    explore(3, || leave_more(Riding::on_alarm));
}
