//! Sleeping until an answer: its wake is never lost. And giving up: a call said not to have run never runs.

use super::*;

/// One call that sleeps, and its answer.
fn sleep_and_answer() {
    let lane = Lane::new();
    lane.publish(0, 1);
    let owner = Arc::clone(&lane);
    let worker = thread::spawn(move || owner.answer_and_wake(&owner.take().unwrap()));
    lane.park(0);
    lane.finish(0, 1);
    worker.join().unwrap();
}

#[test]
fn a_sleeper_is_woken() {
    explore(None, sleep_and_answer);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_sleeper_without_its_fence_is_lost() {
    without_fence_of("set_sleep");
    explore(None, sleep_and_answer);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_sleeper_without_the_owners_fence_is_lost() {
    without_fence_of("after_answers");
    explore(None, sleep_and_answer);
}

/// Two answers with one fence, while `sleepers` of the calls sleep. Mirrors `Worker::turn` over two short methods.
fn sleep_and_answer_two(sleepers: usize, second_look: bool) {
    let lane = Lane::new();
    lane.publish(0, 1);
    lane.publish(1, 2);
    let owner = Arc::clone(&lane);
    let worker = thread::spawn(move || {
        for _ in 0..2 {
            let request = owner.take().unwrap();
            owner.answer_and_look(&request);
        }
        let answered = if second_look { 0b11 } else { 0 };
        owner.owner.after_answers(answered, |slot, who| owner.wake(slot, who));
    });
    let other = (sleepers == 2).then(|| {
        let lane = Arc::clone(&lane);
        thread::spawn(move || lane.park(0))
    });
    lane.park(1);
    lane.finish(1, 2);
    worker.join().unwrap();
    other.into_iter().for_each(|other| other.join().unwrap());
    lane.finish(0, 1);
}

#[test]
fn one_fence_serves_two_answers() {
    explore(None, || sleep_and_answer_two(1, true));
}

#[test]
fn one_fence_serves_two_sleepers() {
    explore(2, || sleep_and_answer_two(2, true));
}

#[test]
#[should_panic(expected = "deadlock")]
fn one_fence_without_a_look_after_it_loses_a_sleeper() {
    explore(3, || sleep_and_answer_two(1, false));
}

#[test]
#[should_panic(expected = "deadlock")]
fn two_answers_without_the_fence_lose_a_sleeper() {
    without_fence_of("after_answers");
    explore(3, || sleep_and_answer_two(1, true));
}

/// A caller sleeps on an answer whose worker begins the next call, which never ends. Mirrors `dispatch::run`.
fn sleep_beside_a_slow_method() {
    let lane = Lane::new();
    lane.publish(0, 1);
    lane.publish(1, 2);
    let owner = Arc::clone(&lane);
    let worker = thread::spawn(move || {
        owner.answer_and_look(&owner.take().unwrap());
        let next = owner.take().unwrap();
        assert!(owner.owner.begin(next.slot(), next.wanted));
        owner.owner.sleepers(0b01, |slot, who| owner.wake(slot, who));
    });
    lane.park(0);
    lane.finish(0, 1);
    worker.join().unwrap();
}

#[test]
fn beginning_the_next_call_wakes_who_sleeps_on_the_last_answer() {
    explore(None, sleep_beside_a_slow_method);
}

#[test]
#[should_panic(expected = "deadlock")]
fn beginning_the_next_call_without_its_fence_loses_a_sleeper() {
    without_fence_of("begin");
    explore(None, sleep_beside_a_slow_method);
}

/// A caller gives up while a worker begins. Mirrors `dispatch::run`.
fn give_up() {
    let lane = Lane::new();
    lane.publish(0, 1);
    let owner = Arc::clone(&lane);
    let worker = thread::spawn(move || {
        let request = owner.take().unwrap();
        let ran = owner.owner.begin(request.slot(), request.wanted);
        owner.answer_and_wake(&request);
        ran
    });
    let may_have_run = lane.caller.withdraw(0);
    let ran = worker.join().unwrap();
    assert!(may_have_run || !ran, "found: No for a call that ran");
    // Mirrors `Port::reap_slot`; the next call of the slot is not taken for the one given up.
    lane.caller.clear_withdrawn(0);
    lane.finish(0, 1);
    lane.publish(0, 2);
    let next = lane.take().unwrap();
    assert!(lane.owner.begin(next.slot(), next.wanted), "found: a call that nobody gave up is refused");
}

#[test]
fn a_call_that_is_said_not_to_have_run_never_runs() {
    explore(None, give_up);
}

#[test]
#[should_panic(expected = "found: No for a call that ran")]
fn giving_up_without_a_fence_tells_a_lie() {
    without_fence_of("withdraw");
    explore(None, give_up);
}

#[test]
#[should_panic(expected = "found: No for a call that ran")]
fn beginning_without_a_fence_makes_it_a_lie() {
    without_fence_of("begin");
    explore(None, give_up);
}
