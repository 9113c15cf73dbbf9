//! Calls through the ring: every call gets its own answer, and no cell is overwritten before it is copied.
//!
//! Nobody waits here: a thread calls again only if it finds its call answered, and a worker looks a few times. What is left
//! over is served once all threads have ended. Waiting has models of its own.

use std::ops::Range;

use super::*;
use crate::ring::slots::SlotSet;

/// Who shares a lane, and how.
#[derive(Clone, Copy)]
struct Sharing {
    /// Per calling thread, how many calls it makes at most.
    calls: &'static [u64],
    /// Per worker, how many times it looks.
    looks: &'static [usize],
    take: fn(&Lane) -> Option<Request>,
    /// Whether a slot is given back only after its answer was read.
    reads_first: bool,
}

impl Sharing {
    const fn of(calls: &'static [u64], looks: &'static [usize]) -> Sharing {
        Sharing { calls, looks, take: Lane::take, reads_first: true }
    }
}

/// A lane under calls.
struct Calls {
    lane: Arc<Lane>,
    slots: SlotSet,
    sharing: Sharing,
}

impl Calls {
    fn new(sharing: Sharing) -> Arc<Calls> {
        let slots = SlotSet::empty();
        slots.fill();
        Arc::new(Calls { lane: Lane::new(), slots, sharing })
    }

    /// Calls until a call is not answered yet: its slot and key.
    fn call(&self, keys: Range<u64>) -> Option<(usize, u64)> {
        for key in keys {
            let slot = self.slots.reserve().expect("there are as many slots as calling threads");
            self.lane.publish(slot, key);
            if !self.lane.is_answered(slot) {
                return Some((slot, key));
            }
            self.end(slot, key);
        }
        None
    }

    /// Reads the answer, and gives the slot back.
    fn end(&self, slot: usize, key: u64) {
        if self.sharing.reads_first {
            self.lane.finish(slot, key);
            self.slots.release(slot);
        } else {
            self.slots.release(slot);
            self.lane.finish(slot, key);
        }
    }

    /// Takes and answers; whether a request was there.
    fn serve(&self) -> bool {
        let request = (self.sharing.take)(&self.lane);
        request.inspect(|request| self.lane.answer(request)).is_some()
    }
}

fn share(sharing: Sharing) {
    let all = Calls::new(sharing);
    // One before the others, so that theirs go past the end of the ring.
    let first = all.call(0..1);
    assert!(all.serve());
    first.into_iter().for_each(|(slot, key)| all.end(slot, key));
    let workers = sharing.looks.iter().map(|&looks| {
        let all = Arc::clone(&all);
        thread::spawn(move || (0..looks).filter(|_| all.serve()).count())
    });
    let workers: Vec<_> = workers.collect();
    let keys = (1..).step_by(10).zip(sharing.calls).map(|(key, calls)| key..key + calls);
    let callers = keys.clone().skip(1).map(|keys| {
        let all = Arc::clone(&all);
        thread::spawn(move || all.call(keys))
    });
    let callers: Vec<_> = callers.collect();
    let mut left: Vec<_> = keys.take(1).map(|keys| all.call(keys)).collect();
    left.extend(callers.into_iter().map(|caller| caller.join().unwrap()));
    for worker in workers {
        worker.join().unwrap();
    }
    while all.serve() {}
    for (slot, key) in left.into_iter().flatten() {
        assert!(all.lane.is_answered(slot), "found: a call that nobody took");
        all.end(slot, key);
    }
}

#[test]
fn cells_and_slots_are_reused_past_a_wrap() {
    explore(None, || share(Sharing::of(&[4], &[4])));
}

#[test]
fn two_threads_share_a_lane() {
    explore(3, || share(Sharing::of(&[3, 2], &[4])));
}

/// One thread reads its answer and gives its slot back while another takes a slot and calls.
fn take_a_slot_that_comes_back(reads_first: bool) {
    let all = Calls::new(Sharing { reads_first, ..Sharing::of(&[], &[]) });
    let first = all.call(0..1);
    assert!(all.serve());
    let other = {
        let all = Arc::clone(&all);
        thread::spawn(move || all.call(1..2))
    };
    first.into_iter().for_each(|(slot, key)| all.end(slot, key));
    let left = other.join().unwrap();
    assert!(all.serve());
    left.into_iter().for_each(|(slot, key)| all.end(slot, key));
}

#[test]
fn a_slot_given_back_is_clean() {
    explore(None, || take_a_slot_that_comes_back(true));
}

#[test]
#[should_panic(expected = "found: another call's answer")]
fn a_slot_given_back_before_its_answer_is_read_gives_another_calls() {
    explore(None, || take_a_slot_that_comes_back(false));
}

#[test]
fn two_workers_share_a_lane() {
    explore(3, || share(Sharing::of(&[3], &[2, 2])));
}

/// Takes with nothing that keeps a second worker out.
fn take_unlocked(lane: &Lane) -> Option<Request> {
    lane.take_as(lane.owner.unlocked())
}

#[test]
#[should_panic(expected = "found")]
fn two_workers_without_the_lock_take_one_request_twice() {
    explore(3, || share(Sharing { take: take_unlocked, ..Sharing::of(&[3], &[2, 2]) }));
}

#[test]
fn two_threads_and_two_workers_share_a_lane() {
    explore(2, || share(Sharing::of(&[2, 1], &[2, 1])));
}

/// Opens a lock that another holds.
fn take_or_unlock(lane: &Lane) -> Option<Request> {
    match lane.owner.try_lock() {
        Some(taker) => lane.take_as(taker),
        None => {
            drop(lane.owner.unlocked());
            None
        }
    }
}

#[test]
#[should_panic(expected = "found")]
fn a_failed_attempt_that_opens_the_lock_lets_two_workers_in() {
    explore(3, || share(Sharing { take: take_or_unlock, ..Sharing::of(&[2, 1], &[2, 1]) }));
}
