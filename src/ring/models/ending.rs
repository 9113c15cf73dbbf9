//! The withdrawal of an object: its lanes end, none too early and none never.

use super::*;
use crate::sync::{AtomicBool, fence};

/// Mirrors what `OwnerLane` and its object hold.
struct Ending {
    lane: Arc<Lane>,
    closing: AtomicBool,
    is_closed: AtomicBool,
    /// The caller has been told: mirrors the end of the socket.
    told: AtomicBool,
    how: Settling,
}

#[derive(Clone, Copy)]
struct Settling {
    under_lock: bool,
    looks_again: bool,
}

const RIGHT: Settling = Settling { under_lock: true, looks_again: true };

impl Ending {
    fn new(how: Settling) -> Arc<Ending> {
        let word = || AtomicBool::new(false);
        Arc::new(Ending { lane: Lane::new(), closing: word(), is_closed: word(), told: word(), how })
    }

    /// Mirrors `Hosted::close` for one lane.
    fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.lane.owner.close(CLOSING);
    }

    fn is_over(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
            && !self.lane.owner.is_busy()
            && !(!self.is_closed.load(Ordering::Relaxed) && self.lane.owner.has_request())
    }

    /// Mirrors `OwnerLane::settle`.
    fn settle(&self) {
        while !self.how.looks_again || self.is_over() {
            let taker = self.lane.owner.try_lock();
            if taker.is_none() && self.how.under_lock {
                return;
            }
            if self.is_over() {
                self.is_closed.store(true, Ordering::Release);
                drop(taker);
                self.told.store(true, Ordering::Release);
                return;
            }
            drop(taker);
            fence(Ordering::SeqCst);
            if !self.how.looks_again {
                return;
            }
        }
    }

    /// Takes what is there, under the lock. Mirrors `Worker::turn`.
    fn take(&self) -> Option<Request> {
        let mut request = Request::blank();
        let mut taker = self.lane.owner.try_lock()?;
        let take =
            if self.is_closed.load(Ordering::Relaxed) { Take::Empty } else { taker.take(&mut request) };
        drop(taker);
        (take == Take::Taken).then_some(request)
    }

    /// Mirrors the end of `Worker::turn`: `OwnerLane::after_answers`.
    fn after_answers(&self) {
        self.lane.owner.after_answers(0, |_, _| {});
        if self.closing.load(Ordering::Relaxed) {
            self.settle();
        }
    }
}

/// A call that comes while the object is withdrawn, and runs or does not.
fn withdraw_object(how: Settling) {
    let ending = Ending::new(how);
    let worker = {
        let ending = Arc::clone(&ending);
        thread::spawn(move || {
            let request = ending.take();
            if let Some(request) = &request {
                ending.lane.owner.begin(request.slot(), request.wanted);
                ending.lane.answer(request);
            }
            ending.after_answers();
            request.is_some()
        })
    };
    let owner = {
        let ending = Arc::clone(&ending);
        thread::spawn(move || {
            ending.close();
            ending.settle();
        })
    };
    ending.lane.publish(0, 1);
    // Mirrors `Lane::socket_ended`, `Lane::last_look` and `Flight::ended`, but for the withdrawal that makes it doubly sure.
    let is_told = ending.told.load(Ordering::Acquire);
    let not_begun = is_told && !ending.lane.is_answered(0) && !ending.lane.caller.begun(0);
    let ran = worker.join().unwrap();
    owner.join().unwrap();
    assert!(!(not_begun && ran), "found: No for a call that ran");
}

#[test]
fn a_call_left_over_by_a_withdrawal_never_runs() {
    explore(3, || withdraw_object(RIGHT));
}

#[test]
#[should_panic(expected = "found: No for a call that ran")]
fn settling_without_the_lock_lets_it_run() {
    explore(3, || withdraw_object(Settling { under_lock: false, ..RIGHT }));
}

/// Two workers that answer the last two calls at once: one of them ends the lane.
fn answer_last(how: Settling) {
    let ending = Ending::new(how);
    ending.lane.publish(0, 1);
    ending.lane.publish(1, 2);
    let requests = [ending.take().unwrap(), ending.take().unwrap()];
    ending.close();
    let answer = |ending: &Ending, request: &Request| {
        ending.lane.answer(request);
        ending.after_answers();
    };
    let [first, second] = requests;
    let other = {
        let ending = Arc::clone(&ending);
        thread::spawn(move || answer(&ending, &second))
    };
    answer(&ending, &first);
    other.join().unwrap();
    assert!(ending.told.load(Ordering::Relaxed), "found: a lane that never ends");
}

#[test]
fn the_last_answer_ends_the_lane() {
    explore(None, || answer_last(RIGHT));
}

#[test]
#[should_panic(expected = "found: a lane that never ends")]
fn settling_without_another_look_may_never_end_the_lane() {
    explore(None, || answer_last(Settling { looks_again: false, ..RIGHT }));
}
