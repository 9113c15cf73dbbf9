//! A published service of a process that runs several times: its name is shared, and neither a reload nor a death takes it away.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use objbus::{Bus, CallError, Executed, Proxy};
use rustix::process::Signal;

use crate::apps::ActorProxy;
use crate::harness::{PATIENCE, Running, kill};

crate::tests!(
    each_of_a_scaled_process_publishes_an_instance,
    no_call_fails_while_a_scaled_process_is_reloaded,
    an_instance_that_is_killed_is_replaced_by_one_with_its_tag,
);

const SCALE: u32 = 2;

fn actor(bus: &Bus, name: &str) -> ActorProxy {
    bus.proxy(name).call_timeout(PATIENCE).wait_for(PATIENCE).unwrap()
}

/// The tags and process ids of who shares a name, sorted.
fn instances(proxy: &ActorProxy) -> Vec<(String, u32)> {
    let instances = proxy.instances().wait();
    let mut instances: Vec<_> = instances
        .iter()
        .map(|instance| (instance.tag().unwrap_or_default().to_owned(), instance.pid()))
        .collect();
    instances.sort();
    instances
}

/// What they are to be.
fn expected(app: &Running) -> Vec<(String, u32)> {
    (0..SCALE).map(|index| (index.to_string(), app.pid_of("worker", index))).collect()
}

fn wait_until(what: &str, mut state: impl FnMut() -> bool) {
    let began = Instant::now();
    while !state() {
        assert!(began.elapsed() < PATIENCE, "still not so: {what}");
        thread::yield_now();
    }
}

fn each_of_a_scaled_process_publishes_an_instance() {
    let app = Running::up("scaled");
    let bus = app.bus();
    let proxy = actor(&bus, "first");
    assert_eq!(instances(&proxy), expected(&app));
    let pids: BTreeSet<_> = (0..30).map(|_| proxy.pid().wait().unwrap()).collect();
    assert_eq!(pids.len() as u32, SCALE, "calls are spread");
    let last: ActorProxy = bus.proxy("first").tag("1").wait().unwrap();
    assert_eq!(last.pid().wait().unwrap(), app.pid_of("worker", 1));
}

/// Calls from three threads while `during` runs, which is told how many calls are done; every failure.
fn under_load(bus: &Bus, during: impl FnOnce(&AtomicU32)) -> Vec<CallError> {
    let (is_over, done) = (AtomicBool::new(false), AtomicU32::new(0));
    let call = |ms: Option<u64>| {
        let (proxy, mut failures) = (actor(bus, "first"), Vec::new());
        while !is_over.load(Ordering::Relaxed) {
            let answer = match ms {
                None => proxy.pid().wait(),
                Some(ms) => proxy.pid_later(ms).wait(),
            };
            failures.extend(answer.err());
            done.fetch_add(1, Ordering::Relaxed);
        }
        failures
    };
    thread::scope(|threads| {
        let callers = [None, None, Some(5)].map(|ms| threads.spawn(move || call(ms)));
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| during(&done)));
        is_over.store(true, Ordering::Relaxed);
        let failures = callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect();
        ended.unwrap();
        failures
    })
}

fn no_call_fails_while_a_scaled_process_is_reloaded() {
    let app = Running::up("scaled");
    let (control, bus) = (app.control(), app.bus());
    let before = expected(&app);
    let failures = under_load(&bus, |_| {
        for _ in 0..3 {
            control.reload("worker").wait().unwrap();
        }
    });
    assert!(failures.is_empty(), "{failures:?}");
    let after = expected(&app);
    assert!(before.iter().all(|old| !after.contains(old)), "{before:?}, {after:?}");
    assert_eq!(instances(&actor(&bus, "first")), after);
}

fn an_instance_that_is_killed_is_replaced_by_one_with_its_tag() {
    let app = Running::up("scaled");
    let bus = app.bus();
    let proxy = actor(&bus, "first");
    let failures = under_load(&bus, |done| {
        for index in 0..SCALE {
            let old = app.pid_of("worker", index);
            kill(old, Signal::KILL);
            let tag = index.to_string();
            wait_until("its successor is there", || {
                instances(&proxy).iter().any(|(other, pid)| *other == tag && *pid != old)
            });
            let before = done.load(Ordering::Relaxed);
            wait_until("calls go on", || done.load(Ordering::Relaxed) > before + 20);
        }
    });
    for failure in failures {
        let had_begun = failure.executed() != Executed::No;
        assert!(matches!(failure, CallError::OwnerDied { .. }) && had_begun, "{failure:?}");
    }
}
