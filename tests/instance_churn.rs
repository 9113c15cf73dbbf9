//! Instances that come, go, die and hand over while they are called: what that does to the calls.

#[path = "support/probe.rs"]
mod probe;
mod support;
use probe::*;
use support::*;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use objbus::{CallError, Executed, Proxy};

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    assert_eq!(name, "owner");
    own(&arguments)
}

/// What became of the calls of one kind: how many, and every failure.
#[derive(Default)]
struct Tally {
    ok: Vec<u64>,
    failed: Vec<(u64, CallError)>,
}

/// Calls `mark` with ever new numbers while `during` runs, from threads that block and threads that await.
fn under_load(probe: &ProbeProxy, during: impl FnOnce(&dyn Fn())) -> Tally {
    let (stop, next, done) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let call = |awaits: bool| {
        let mut tally = Tally::default();
        while !stop.load(Ordering::Relaxed) {
            let id = next.fetch_add(1, Ordering::Relaxed);
            let call = probe.mark(id);
            match if awaits { block_on(call) } else { call.wait() } {
                Ok(marked) => {
                    assert_eq!(marked, id);
                    tally.ok.push(id);
                }
                Err(error) => tally.failed.push((id, error)),
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
        tally
    };
    let let_calls_pass = || {
        let before = done.load(Ordering::Relaxed);
        wait_until("calls pass", || done.load(Ordering::Relaxed) > before + 300);
    };
    std::thread::scope(|scope| {
        let call = &call;
        let callers: Vec<_> = (0..6).map(|n| scope.spawn(move || call(n % 2 == 1))).collect();
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| during(&let_calls_pass)));
        stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for caller in callers {
            let Tally { ok, failed } = caller.join().expect("a caller");
            all.ok.extend(ok);
            all.failed.extend(failed);
        }
        ended.expect("what happens under load");
        all
    })
}

/// Withdraws an instance, and lets what it has begun end, before its process does.
fn leave(mut owner: Child) {
    owner.tell("shutdown");
    owner.expect("shut down");
}

#[test]
fn killed_under_load_instances_lose_no_call_that_had_not_begun() {
    let (place, logs) = (place(), place());
    std::fs::create_dir_all(logs.path()).unwrap();
    let mut log_paths = Vec::new();
    let mut start = || {
        let log = logs.path().join(log_paths.len().to_string());
        let owner = owner(&place, &["instance=", &format!("log={}", log.display())]);
        log_paths.push(log);
        owner
    };
    let mut owners: Vec<_> = (0..3).map(|_| start()).collect();
    let probe = connecting(&place.bus()).wait().unwrap();
    wait_for_instances(&probe, 3);
    let tally = under_load(&probe, |let_calls_pass| {
        for round in 0..12 {
            let_calls_pass();
            owners[round % 3].kill();
            let_calls_pass();
            owners[round % 3] = start();
        }
        let_calls_pass();
    });
    println!("{} calls, of which {} met a death", tally.ok.len(), tally.failed.len());
    let runs = runs_in(&log_paths);
    assert!(tally.ok.iter().all(|id| runs.get(id) == Some(&1)), "a call that succeeded ran once");
    assert!(runs.values().all(|times| *times == 1), "no call runs twice");
    for (id, error) in &tally.failed {
        // Begun, hence not to be sent to another.
        let is_death = matches!(error, CallError::OwnerDied { executed } if *executed != Executed::No);
        assert!(is_death, "call {id}: {error:?}");
    }
}

#[test]
fn instances_that_come_and_go_under_load_lose_no_call() {
    let place = place();
    let _stays = instance(&place, "");
    let probe = connecting(&place.bus()).wait().unwrap();
    let tally = under_load(&probe, |let_calls_pass| {
        for round in 0..10 {
            let comes = owner(&place, &["instance=second"]);
            wait_for_instances(&probe, 2);
            let_calls_pass();
            if round % 2 == 0 {
                leave(comes);
                wait_for_instances(&probe, 1);
            } else {
                let next = owner(&place, &["instance=second", "replace"]);
                wait_until("the successor is met", || {
                    probe.instances().wait().iter().any(|instance| instance.pid() == next.pid())
                });
                leave(comes);
                wait_for_instances(&probe, 2);
                let_calls_pass();
                leave(next);
                wait_for_instances(&probe, 1);
            }
            let_calls_pass();
        }
    });
    assert!(tally.failed.is_empty(), "of {} calls: {:?}", tally.ok.len(), tally.failed);
}

#[test]
fn handing_over_to_instances_and_back_loses_no_call() {
    let place = place();
    let mut alone = owner(&place, &[]);
    let probe = connecting(&place.bus()).wait().unwrap();
    let tally = under_load(&probe, |let_calls_pass| {
        for _ in 0..5 {
            let shared = [owner(&place, &["instance=a", "replace"]), instance(&place, "b")];
            let_calls_pass();
            leave(std::mem::replace(&mut alone, owner(&place, &["replace"])));
            shared.into_iter().for_each(leave);
            let_calls_pass();
        }
    });
    assert!(tally.failed.is_empty(), "of {} calls: {:?}", tally.ok.len(), tally.failed);
}
