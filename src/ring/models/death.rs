//! The end of a lane: every sleeper hears of it.

use super::*;
use crate::sync::{AtomicBool, AtomicU32, fence};

/// Mirrors `Lane::park_armed` against `Lane::end` and `Lane::retell`.
fn end(tells_again: bool, counts_first: bool) {
    struct Ending {
        lane: Arc<Lane>,
        ended: AtomicBool,
        sleepers: AtomicU32,
    }
    let ending =
        Arc::new(Ending { lane: Lane::new(), ended: AtomicBool::new(false), sleepers: AtomicU32::new(0) });
    let watcher = {
        let ending = Arc::clone(&ending);
        thread::spawn(move || {
            ending.ended.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            ending.lane.caller.wake(0);
            while tells_again && ending.sleepers.load(Ordering::SeqCst) != 0 {
                thread::yield_now();
                ending.lane.caller.wake(0);
            }
        })
    };
    ending.lane.caller.set_sleep(0, ON_FUTEX);
    loop {
        if counts_first {
            ending.sleepers.fetch_add(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
        }
        let ended = ending.ended.load(Ordering::SeqCst);
        if !counts_first {
            ending.sleepers.fetch_add(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
        }
        if !ended {
            ending.lane.caller.sleep(0, None);
        }
        ending.sleepers.fetch_sub(1, Ordering::SeqCst);
        if ended {
            break;
        }
    }
    watcher.join().unwrap();
}

#[test]
fn a_sleeper_hears_of_the_end() {
    explore(3, || end(true, true));
}

#[test]
#[should_panic(expected = "deadlock")]
fn told_once_a_sleeper_may_not_hear() {
    explore(3, || end(false, true));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_sleeper_that_counts_itself_too_late_may_not_hear() {
    explore(3, || end(true, false));
}
