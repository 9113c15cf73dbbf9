//! `polled` and the doorbell: no request is left unseen when everybody sleeps.

use super::*;

/// A lane, its doorbell, and how many of its calls were served.
struct Rung {
    lane: Arc<Lane>,
    bell: Event,
    served: AtomicUsize,
    all: usize,
    /// Whether a worker heeds that a request came while it let go.
    looks_again: bool,
    /// Whether callers do what they do before they sleep: ring for a call that is not begun.
    rings_again: bool,
    /// Rings made.
    rings: AtomicUsize,
    /// Whether one ring counts for good, and not only until somebody comes or leaves.
    rings_but_once: bool,
}

impl Rung {
    fn new(all: usize) -> Rung {
        let served = AtomicUsize::new(0);
        let (lane, bell, rings) = (Lane::new(), Event::new(), AtomicUsize::new(0));
        Rung { lane, bell, served, all, looks_again: true, rings_again: false, rings, rings_but_once: false }
    }

    fn is_over(&self) -> bool {
        self.served.load(Ordering::Relaxed) == self.all
    }

    /// One call by a thread that sleeps at once. Mirrors `Flight::wait` with `Lane::ring_if_asleep` and `Lane::park`.
    fn call(&self, slot: usize, key: u64) {
        let rang = self.send(slot, key);
        self.lane.caller.set_sleep(slot, ON_FUTEX);
        if self.rings_again && !rang && !self.lane.is_answered(slot) && !self.lane.caller.begun(slot) {
            self.ring_once();
        }
        self.lane.park(slot);
        self.lane.finish(slot, key);
    }

    /// Mirrors `Flight::publish`: whether the owner was asleep.
    fn send(&self, slot: usize, key: u64) -> bool {
        self.lane.publish(slot, key);
        let rang = self.lane.caller.must_ring();
        if rang {
            self.ring_once();
        }
        rang
    }

    fn ring_once(&self) {
        let ring = || {
            self.rings.fetch_add(1, Ordering::Relaxed);
            self.bell.happen();
        };
        if !self.rings_but_once {
            self.lane.caller.ring_once(ring);
        } else if self.rings.load(Ordering::Relaxed) == 0 {
            ring();
        }
    }

    /// A worker that sleeps first.
    fn come(&self, worker: u32) {
        self.bell.wait();
        self.work(worker);
    }

    /// A worker that has adopted the lane. Mirrors `Worker::run`, with no time to linger.
    fn work(&self, worker: u32) {
        let ring = &self.lane.owner;
        ring.take_over(worker);
        loop {
            self.look(worker);
            if self.is_over() {
                // For the other worker, if there is one.
                return self.bell.happen();
            }
            self.bell.wait();
            if self.is_over() {
                return self.bell.happen();
            }
            ring.take_over(worker);
        }
    }

    /// Serves what is there, until the lane is let go of. Mirrors `Worker::turn` and `Worker::let_go`.
    fn look(&self, worker: u32) {
        let ring = &self.lane.owner;
        loop {
            if ring.is_polled_by(worker) && ring.has_request() {
                if let Some(request) = self.lane.take() {
                    ring.begin(request.slot(), request.wanted);
                    self.served.fetch_add(1, Ordering::Relaxed);
                    self.lane.answer_and_wake(&request);
                    continue;
                }
                // Another worker takes it; this one sees it gone only once that one runs.
                thread::yield_now();
            }
            if ring.let_go(worker) || !self.looks_again {
                return;
            }
            ring.take_over(worker);
        }
    }
}

/// One worker that has the lane, and a caller.
fn one_worker(calls: usize, rung: impl FnOnce(Rung) -> Rung) {
    let rung = Arc::new(rung(Rung::new(calls)));
    let worker = {
        let rung = Arc::clone(&rung);
        thread::spawn(move || rung.work(1))
    };
    (0..calls).for_each(|call| rung.call(0, call as u64));
    worker.join().unwrap();
}

#[test]
fn a_request_is_seen_or_rings() {
    explore(3, || one_worker(1, |rung| rung));
}

#[test]
fn so_is_the_next() {
    explore(2, || one_worker(2, |rung| rung));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_request_without_the_callers_fence_is_lost() {
    without_fence_of("must_ring");
    explore(3, || one_worker(1, |rung| rung));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_request_without_the_owners_fence_is_lost() {
    without_fence_of("let_go");
    explore(3, || one_worker(1, |rung| rung));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_request_without_a_look_after_letting_go_is_lost() {
    explore(3, || one_worker(1, |rung| Rung { looks_again: false, ..rung }));
}

/// Two workers that both have the lane, as after a ring in the middle of a hand-over, and a caller that relies on what
/// `polled` says alone.
fn two_workers() {
    let rung = Arc::new(Rung::new(1));
    let handed_over = Arc::clone(&rung);
    let other = thread::spawn(move || {
        let ring = &handed_over.lane.owner;
        ring.take_over(2);
        // Mirrors `Worker::hand_over_lanes`: let go of without a look whether it is still this worker's.
        if !ring.let_go(2) {
            ring.take_over(2);
        }
        handed_over.look(2);
        if handed_over.is_over() {
            handed_over.bell.happen();
        }
    });
    let worker = {
        let rung = Arc::clone(&rung);
        thread::spawn(move || rung.work(1))
    };
    rung.call(0, 1);
    other.join().unwrap();
    worker.join().unwrap();
    assert!(rung.lane.caller.must_ring(), "found: polled by nobody");
}

/// What is left when two workers have let go: `polled` must be clear, or every later caller waits for nothing.
fn hand_over(let_go: fn(&OwnerRing, u32) -> bool) {
    let lane = Lane::new();
    let other = {
        let lane = Arc::clone(&lane);
        thread::spawn(move || {
            lane.owner.take_over(2);
            let_go(&lane.owner, 2);
        })
    };
    lane.owner.take_over(1);
    let_go(&lane.owner, 1);
    other.join().unwrap();
    assert!(lane.caller.must_ring(), "found: polled by nobody");
}

/// Lets go only of what is `worker`'s own.
fn let_go_of_own(ring: &OwnerRing, worker: u32) -> bool {
    !ring.is_polled_by(worker) || ring.let_go(worker)
}

#[test]
fn nobody_polls_after_two_workers_let_go() {
    explore(None, || hand_over(OwnerRing::let_go));
}

#[test]
#[should_panic(expected = "found: polled by nobody")]
fn a_worker_that_keeps_its_mark_after_another_let_go_hides_the_lane() {
    explore(None, || hand_over(let_go_of_own));
}

#[test]
fn a_request_is_seen_while_two_workers_hand_over() {
    explore(2, two_workers);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_hand_over_without_the_owners_fence_loses_a_request() {
    without_fence_of("let_go");
    explore(2, two_workers);
}

/// All calls of a lane sent before the first is waited for, to a worker that sleeps.
fn batch(rung: impl FnOnce(Rung) -> Rung) {
    let rung = Arc::new(rung(Rung::new(SLOTS)));
    let worker = with(&rung, |rung| rung.come(1));
    (0..SLOTS).for_each(|slot| _ = rung.send(slot, slot as u64));
    for slot in (0..SLOTS).rev() {
        rung.lane.park(slot);
        rung.lane.finish(slot, slot as u64);
    }
    worker.join().unwrap();
}

#[test]
fn one_ring_serves_what_is_sent_before_somebody_comes() {
    explore(3, || batch(|rung| rung));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_batch_without_the_callers_fence_loses_a_request() {
    without_fence_of("must_ring");
    explore(3, || batch(|rung| rung));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_batch_without_the_owners_fence_loses_a_request() {
    without_fence_of("let_go");
    explore(3, || batch(|rung| rung));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_ring_that_counts_for_good_loses_a_request() {
    explore(3, || one_worker(2, |rung| Rung { rings_but_once: true, ..rung }));
}

/// A worker that has the lane is in a method without end, known to be short; two callers that sleep, and a worker that they may
/// wake.
fn beside_a_slow_method() {
    let rung = Arc::new(Rung { rings_again: true, ..Rung::new(2) });
    rung.lane.owner.take_over(1);
    let worker = with(&rung, |rung| rung.come(2));
    let caller = with(&rung, |rung| rung.call(1, 1));
    rung.call(0, 0);
    caller.join().unwrap();
    worker.join().unwrap();
}

#[test]
fn one_ring_serves_all_whom_a_slow_method_hides() {
    explore(2, beside_a_slow_method);
}
