//! Rows 40 and 46 of the table of faults: what becomes of calls when their object, bus or runtime is shut down.

#[path = "support/probe.rs"]
mod probe;
mod support;
use probe::*;
use support::*;

use std::time::Duration;

use objbus::{Call, CallError, Executed, Proxy};

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "owner" => own(&arguments),
        "runtime" => own_in_runtime(&arguments),
        other => panic!("no role `{other}`"),
    }
}

/// Publishes a probe from within a tokio runtime, which is shut down when the parent says so.
fn own_in_runtime(arguments: &[String]) -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("it starts");
    let published = runtime.block_on(async { bus_at(&arguments[0]).publish("probe", Probe::default()) });
    let _published = published.expect("the name is free");
    say("ready");
    assert_eq!(hear(), "shut down");
    match arguments[1].as_str() {
        "background" => runtime.shutdown_background(),
        _ => drop(runtime),
    }
    say("shut down");
    stay()
}

fn sent(call: Call<u64>) -> Call<u64> {
    let mut call = call;
    assert!(poll_once(&mut call).is_pending());
    call
}

#[test]
fn row_40_owner_drops_the_object_with_calls_pending() {
    let place = place();
    for round in 0..3 {
        let mut owner = owner(&place, &["workers=1"]);
        let proxy = probe(&place);
        let running = sent(proxy.held(1));
        owner.expect("began 1");
        let queued: Vec<_> = (0..20).map(|id| sent(proxy.mark(id))).collect();
        let other = probe(&place);
        let queued_too = sent(other.mark(20));
        owner.tell("withdraw");
        let unpublished = Err(CallError::Unpublished { executed: Executed::No });
        for call in queued.into_iter().chain([queued_too]) {
            assert_eq!(block_on(call), unpublished, "round {round}");
        }
        let new = proxy.add(1, 1).wait().unwrap_err();
        assert!(matches!(new, CallError::NotFound { .. } | CallError::Unpublished { .. }), "{new:?}");
        assert_eq!(new.executed(), Executed::No);
        owner.tell("open");
        assert_eq!(block_on(running), Ok(1), "what runs is finished");
        wait_until("the lane has ended", || !proxy.handle().is_connected());
        assert!(matches!(proxy.add(1, 1).wait(), Err(CallError::NotFound { executed: Executed::No, .. })));
    }
}

#[test]
fn row_40_withdrawn_under_load_nobody_hangs() {
    let mut random = Random::new();
    for round in 0..15 {
        let place = place();
        let mut owner = owner(&place, &[]);
        let proxy = probe(&place);
        let threads: Vec<_> = (0..6_u64)
            .map(|thread| {
                let proxy = proxy.clone();
                std::thread::spawn(move || {
                    let mut done = 0;
                    loop {
                        let result = match thread % 3 {
                            0 => block_on(proxy.mark(0)),
                            1 => proxy.mark(0).wait(),
                            _ => proxy.add_async(0, 0).wait().map(|_| 0),
                        };
                        match result {
                            Ok(_) => done += u64::from(thread % 3 != 2),
                            Err(error) => return (done, error),
                        }
                    }
                })
            })
            .collect();
        random.dally(Duration::from_millis(5));
        owner.tell("withdraw");
        for thread in threads {
            let (_, error) = thread.join().unwrap();
            let is_right = matches!(error, CallError::Unpublished { .. } | CallError::NotFound { .. });
            assert!(is_right, "{error:?}, round {round}, seed {}", random.seed);
            assert_eq!(error.executed(), Executed::No, "round {round}, seed {}", random.seed);
        }
    }
}

#[test]
fn shutdown_waits_for_what_runs() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let proxy = probe(&place);
    let running = [sent(proxy.held(1)), sent(proxy.held_async(2))];
    let mut began = [owner.hear(), owner.hear()];
    began.sort();
    assert_eq!(began, ["began 1", "began 2"]);
    let one_way = proxy.held(3);
    one_way.send().unwrap();
    owner.expect("began 3");
    owner.tell("shutdown");
    wait_until("the name is gone", || place.bus().names().is_empty());
    assert_eq!(owner.hear_within(Duration::from_millis(50)), None, "it waits");
    owner.tell("open");
    for (call, id) in running.into_iter().zip(1..) {
        assert_eq!(block_on(call), Ok(id));
    }
    let mut rest = [owner.hear(), owner.hear(), owner.hear(), owner.hear()];
    assert_eq!(rest[3], "shut down", "the last of all: {rest:?}");
    rest.sort();
    assert_eq!(rest, ["ended 1", "ended 3", "left 2", "shut down"]);
}

#[test]
fn a_closed_bus_serves_and_calls_no_more() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let bus = place.bus();
    let proxy: ProbeProxy = bus.proxy("probe").call_timeout(PATIENCE).wait().unwrap();
    owner.stop();
    (0..10).for_each(|id| proxy.mark(id).send().unwrap());
    assert!(!bus.close(Duration::from_millis(50)), "one-way calls are not taken");
    owner.signal(libc::SIGCONT);
    let after = proxy.add(1, 1).wait().unwrap_err();
    assert_eq!(after.executed(), Executed::No, "{after:?}");
    let again = place.bus();
    let proxy: ProbeProxy = again.proxy("probe").call_timeout(PATIENCE).wait().unwrap();
    (0..10).for_each(|id| proxy.mark(id).send().unwrap());
    assert!(again.close(PATIENCE), "all are taken");
    let watching = probe(&place);
    wait_until("all have run", || watching.runs().wait().is_ok_and(|runs| runs >= 10));

    let held = sent(watching.held(1));
    owner.expect("began 1");
    owner.tell("close 50");
    owner.expect("closed false");
    assert!(place.bus().names().is_empty(), "what was published is withdrawn");
    owner.tell("open");
    assert_eq!(block_on(held), Ok(1));
    owner.expect("ended 1");
    owner.tell("close 10000");
    owner.expect("closed true");
}

#[test]
fn row_46_futures_of_the_built_in_executor_are_answered_once() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let proxy = probe(&place);
    for _ in 0..20 {
        shut_gate(&mut owner);
        let mut calls: Vec<_> = (0..60).map(|id| sent(proxy.held_quietly(id))).collect();
        // Some are given up, the rest answered; each slot comes back once.
        for id in (0..60).rev().step_by(3) {
            drop(calls.swap_remove(id));
        }
        owner.tell("open");
        calls.into_iter().for_each(|call| assert!(block_on(call).is_ok()));
        wait_until("all slots are free", || proxy.handle().in_flight() == 0);
    }
}

#[test]
fn row_46_futures_of_the_built_in_executor_outlive_their_publication() {
    let place = place();
    for _ in 0..5 {
        let mut owner = owner(&place, &[]);
        let proxy = probe(&place);
        let calls: Vec<_> = (0..60).map(|id| sent(proxy.held_quietly(id))).collect();
        // Workers begin calls out of order, so the last one's beginning would say nothing of the others'.
        wait_until("all have begun", || proxy.begun_quietly().wait() == Ok(60));
        owner.tell("withdraw");
        owner.tell("open");
        for (id, call) in calls.into_iter().enumerate() {
            assert_eq!(block_on(call), Ok(id as u64), "what had begun is finished");
        }
    }
}

/// Without the feature the runtime has no part in it: the calls wait for their gate and end with their owner.
#[test]
fn row_46_runtime_shut_down_with_methods_pending() {
    for how in ["background", "drop"] {
        let place = place();
        let mut owner = start("runtime", &[place.text(), how]);
        owner.expect("ready");
        let proxy = probe(&place);
        let pending: Vec<_> = (0..40).map(|id| sent(proxy.held_async(id))).collect();
        (0..40).for_each(|_| assert!(owner.hear().starts_with("began")));
        proxy.held_async(40).send().unwrap();
        owner.expect("began 40");
        owner.tell("shut down");
        if cfg!(feature = "tokio") {
            for call in pending {
                let cancelled = Err(CallError::Cancelled { executed: Executed::Unknown });
                assert_eq!(block_on(call), cancelled, "{how}");
            }
            // Asynchronous methods that come after it have nowhere to wait, those that do not wait are served.
            let after = proxy.held_quietly(1).wait();
            assert_eq!(after, Err(CallError::Cancelled { executed: Executed::Unknown }), "{how}");
        }
        assert_eq!(proxy.add_async(1, 1).wait(), Ok(2), "{how}");
        assert_eq!(proxy.add(1, 1).wait(), Ok(2), "{how}");
    }
}
