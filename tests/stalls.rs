//! Rows 14, 15, 23, 24 and 39 of the table of faults: one side is full, slow, or stopped.

#[path = "support/probe.rs"]
mod probe;
mod support;
use probe::*;
use support::system::{expect_quick, of_threads, resident_kb};
use support::*;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use objbus::{Call, CallError, Executed, MethodTable, Proxy, Untyped};

/// Calls that one process can have in flight on one object.
const SLOTS: u64 = 64;
const DEADLINE: Duration = Duration::from_millis(200);
/// How far from a deadline the error of it may come.
const PRECISION: Duration = Duration::from_millis(10);

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "owner" => own(&arguments),
        "calls" => {
            let proxy = probe_at(&arguments);
            say("calling");
            for i in 0_u64.. {
                assert_eq!(proxy.add(i, 1).wait(), Ok(i + 1));
                if i.is_multiple_of(1000) {
                    say("still");
                }
            }
        }
        "sends and stays" => {
            let proxy = probe_at(&arguments);
            let calls: Vec<_> = (0..SLOTS).map(|_| proxy.echo(&[1; 10_000]).started()).collect();
            say("sent");
            hear();
            let sent = calls.len();
            let answered = calls.into_iter().map(block_on).filter(|answer| answer.is_ok()).count();
            say(format!("{answered} of {sent}"));
            stay()
        }
        other => panic!("no role `{other}`"),
    }
}

fn probe_at(arguments: &[String]) -> ProbeProxy {
    bus_at(&arguments[0]).proxy("probe").call_timeout(PATIENCE).wait().expect("the probe is there")
}

/// As many calls as can be in flight, all of them begun and waiting for the gate.
fn fill(proxy: &ProbeProxy) -> Vec<Call<u64>> {
    let mut calls: Vec<_> = (0..SLOTS).map(|id| proxy.held_quietly(id)).collect();
    for call in &mut calls {
        assert!(poll_once(call).is_pending());
    }
    assert_eq!(proxy.handle().in_flight() as u64, SLOTS);
    calls
}

#[test]
fn row_14_ring_full() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let (proxy, other) = (probe(&place), probe(&place));
    let calls = fill(&proxy);
    let no = Executed::No;
    assert_eq!(proxy.add(1, 1).try_wait(), Err(CallError::Overloaded { executed: no }));
    assert_eq!(block_on(proxy.add(1, 1).immediate()), Err(CallError::Overloaded { executed: no }));
    assert_eq!(proxy.mark(1).immediate().send(), Err(CallError::Overloaded { executed: no }));
    let exceeded = Err(CallError::DeadlineExceeded { executed: no });
    assert_eq!(proxy.mark(1).timeout(DEADLINE).wait(), exceeded);
    assert_eq!(block_on(proxy.mark(1).timeout(DEADLINE)), exceeded);
    assert_eq!(other.add(1, 1).wait(), Ok(2), "another caller is not held up");
    // Who waits for a slot, a thread and a task, gets one when one is free.
    let waiting: Vec<_> = [false, true]
        .map(|awaited| {
            let call = proxy.add(20, 22);
            std::thread::spawn(move || if awaited { block_on(call) } else { call.wait() })
        })
        .into_iter()
        .collect();
    owner.tell("open");
    for (id, call) in calls.into_iter().enumerate() {
        assert_eq!(block_on(call), Ok(id as u64));
    }
    waiting.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), Ok(42)));
    assert_eq!(other.runs().wait(), Ok(0), "what was refused did not run");
    wait_until("all slots are free", || proxy.handle().in_flight() == 0);
}

#[test]
fn row_15_caller_never_reads_responses() {
    let place = place();
    let owner = owner(&place, &[]);
    let proxy = probe(&place);
    let mut hoarder = start("sends and stays", &[place.text()]);
    hoarder.expect("sent");
    hoarder.stop();
    let call_all = || {
        for i in 0..2000 {
            assert_eq!(proxy.add(i, 1).timeout(Duration::from_secs(5)).wait(), Ok(i + 1));
            if i.is_multiple_of(20) {
                assert_eq!(proxy.echo(&[2; 10_000]).wait().map(|data| data.len()), Ok(10_000));
            }
        }
    };
    call_all();
    let before = resident_kb(owner.pid());
    call_all();
    let after = resident_kb(owner.pid());
    assert!(after < before + 4096, "the owner grew from {before} to {after} KiB");
    hoarder.signal(libc::SIGCONT);
    hoarder.tell("read");
    hoarder.expect(&format!("{SLOTS} of {SLOTS}"));
}

/// What 99 of 100 calls take at most.
fn p99(proxy: &ProbeProxy) -> Duration {
    let mut spans: Vec<_> = (0..1000)
        .map(|i| {
            let began = Instant::now();
            assert_eq!(proxy.add(i, 1).wait(), Ok(i + 1));
            began.elapsed()
        })
        .collect();
    spans.sort_unstable();
    spans[990]
}

#[test]
fn row_15_p99_of_others_is_what_it_was_before() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let proxy = probe(&place);
    p99(&proxy);
    let mut beside = || {
        let mut hoarder = start("sends and stays", &[place.text()]);
        hoarder.expect("sent");
        hoarder.stop();
        let beside = p99(&proxy);
        hoarder.kill();
        wait_for_callers(&mut owner, 1);
        beside
    };
    // Side by side, now one first and now the other, until one pair is equal: what a loaded machine adds comes and goes,
    // what the owner spends on the lane that is full would not.
    let mut ratios = Vec::new();
    while ratios.iter().all(|ratio| *ratio > 1.1) && ratios.len() < 50 {
        let (alone, beside) = if ratios.len().is_multiple_of(2) {
            let alone = p99(&proxy);
            (alone, beside())
        } else {
            let beside = beside();
            (p99(&proxy), beside)
        };
        println!("p99 alone {alone:?}, beside one that reads no answers {beside:?}");
        ratios.push(beside.as_secs_f64() / alone.as_secs_f64());
    }
    assert!(ratios.iter().any(|ratio| *ratio <= 1.1), "p99 is longer by {ratios:?}");
}

#[test]
fn row_23_owner_stopped() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let proxy = probe(&place);
    assert_eq!(proxy.add(1, 1).wait(), Ok(2));
    for awaited in [false, true] {
        let round = || time_out_of_a_stopped_owner(&owner, &proxy, awaited);
        expect_quick("after its deadline", 1, PRECISION, round);
    }
    begun_then_stopped(&mut owner, &proxy);
}

/// How long after its deadline a call to a stopped owner ends.
fn time_out_of_a_stopped_owner(owner: &Child, proxy: &ProbeProxy, awaited: bool) -> Duration {
    owner.stop();
    let began = Instant::now();
    let call = proxy.mark(1).timeout(DEADLINE);
    let result = if awaited { block_on(call) } else { call.wait() };
    let took = began.elapsed();
    assert_eq!(result, Err(CallError::DeadlineExceeded { executed: Executed::No }));
    assert!(took + PRECISION > DEADLINE, "{took:?}");
    owner.signal(libc::SIGCONT);
    // What was said not to have run does not run later either.
    assert_eq!(proxy.runs().wait(), Ok(0));
    took.saturating_sub(DEADLINE)
}

fn begun_then_stopped(owner: &mut Child, proxy: &ProbeProxy) {
    let result = time_out_begun(|span| {
        let call = proxy.held(5).timeout(span);
        let waiting = std::thread::spawn(move || call.wait());
        let began = owner.hear_within(span);
        owner.stop();
        let result = waiting.join().unwrap();
        owner.signal(libc::SIGCONT);
        let has_begun = result != Err(CallError::DeadlineExceeded { executed: Executed::No });
        assert_eq!(began.or_else(|| has_begun.then(|| owner.hear())).is_some(), has_begun, "{result:?}");
        result
    });
    assert_eq!(result, Err(CallError::DeadlineExceeded { executed: Executed::Unknown }));
    owner.tell("open");
    owner.expect("cancelled 5");
    assert_eq!(proxy.add(2, 2).wait(), Ok(4), "the same proxy works");
}

#[test]
fn row_23_waiters_for_a_slot_wake() {
    let place = place();
    let owner = owner(&place, &[]);
    for awaited in [false, true] {
        let proxy = probe(&place);
        assert_eq!(proxy.add(1, 1).wait(), Ok(2));
        owner.stop();
        let mut calls: Vec<_> = (0..SLOTS).map(|id| proxy.mark(id)).collect();
        calls.iter_mut().for_each(|call| assert!(poll_once(call).is_pending()));
        // Given up, and so said not to have run; their slots are locked until the owner goes on.
        drop(calls);
        assert_eq!(proxy.add(1, 1).try_wait(), Err(CallError::Overloaded { executed: Executed::No }));
        let call = proxy.add(20, 22);
        let wait = move || if awaited { block_on(call) } else { call.wait() };
        let waiting = std::thread::Builder::new().name("waits".to_owned()).spawn(wait).unwrap();
        wait_until("the other thread waits", || {
            let threads = of_threads(std::process::id(), "State");
            threads.iter().any(|(name, state)| name == "waits" && state.starts_with('S'))
        });
        owner.signal(libc::SIGCONT);
        assert_eq!(waiting.join().unwrap(), Ok(42), "long before its deadline");
        assert_eq!(proxy.runs().wait(), Ok(0));
    }
}

#[test]
fn row_24_caller_stopped_at_any_moment() {
    let place = place();
    let _owner = owner(&place, &[]);
    let mut random = Random::new();
    let caller = start("calls", &[place.text()]);
    caller.expect("calling");
    let proxy = probe(&place);
    for round in 0..40 {
        random.dally(Duration::from_millis(2));
        caller.stop();
        for i in 0..50 {
            let sum = proxy.add(i, 1).timeout(Duration::from_secs(10)).wait();
            assert_eq!(sum, Ok(i + 1), "round {round}, seed {}", random.seed);
        }
        caller.signal(libc::SIGCONT);
        while caller.hear_within(Duration::ZERO).is_some() {}
        caller.expect("still");
    }
}

#[test]
fn row_39_slow_methods_hide_nobody() {
    let place = place();
    let mut owner = owner(&place, &[]);
    // More slow ones than there are processors, each from a caller of its own.
    let slow: Vec<_> = (0..10)
        .map(|id| {
            let call = probe(&place).held(id);
            std::thread::spawn(move || call.wait())
        })
        .collect();
    for _ in 0..10 {
        assert!(owner.hear().starts_with("began"));
    }
    let others: Vec<_> = (0..4).map(|_| probe(&place)).collect();
    for i in 0..500 {
        for other in &others {
            assert_eq!(other.add(i, 1).timeout(Duration::from_secs(10)).wait(), Ok(i + 1));
        }
    }
    owner.tell("open");
    slow.into_iter().for_each(|thread| assert!(thread.join().unwrap().is_ok()));
}

/// A method known to be short that takes long for once hides nobody either.
#[test]
fn row_39_methods_that_are_slow_for_once_hide_nobody() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let watched = probe(&place);
    let slow: Vec<_> = (0..5).map(|_| probe(&place)).collect();
    let is_served = |caller: &ProbeProxy| assert_eq!(caller.held_for_once(false).wait(), Ok(()));
    for _ in 0..10 {
        shut_gate(&mut owner);
        // In the middle of many short ones, so that they come to workers that look at several callers by themselves.
        let go_slow = |caller: ProbeProxy| {
            std::thread::spawn(move || {
                (0..300).for_each(|_| is_served(&caller));
                caller.held_for_once(true).wait()
            })
        };
        let threads: Vec<_> = slow.iter().cloned().map(go_slow).collect();
        let mut begun = 0;
        wait_until("all slow ones have begun", || {
            is_served(&watched);
            begun += usize::from(owner.hear_within(Duration::ZERO).is_some());
            begun == slow.len()
        });
        (0..300).for_each(|_| is_served(&watched));
        owner.tell("open");
        threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), Ok(())));
    }
}

/// Nor does it hide the other calls of its own caller, whose lane the worker says that it looks at all the while.
#[test]
fn row_39_a_method_that_is_slow_for_once_hides_no_call_of_the_same_process() {
    let (gate, inside) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
    let (door, entered) = (Arc::clone(&gate), Arc::clone(&inside));
    let pass = move || {
        entered.fetch_add(1, Ordering::SeqCst);
        door.pass();
    };
    let place = place();
    let knocks = Arc::new(AtomicUsize::new(0));
    let knocked = Arc::clone(&knocks);
    let table = MethodTable::named("Door")
        .method("pass", pass)
        .method("knock", move || knocked.fetch_add(1, Ordering::SeqCst) as u64);
    let _published = place.bus().publish("door", table).unwrap();
    let proxy: Untyped = place.bus().proxy("door").call_timeout(PATIENCE).wait().unwrap();
    let knock = || proxy.call::<_, u64>("knock", &()).timeout(Duration::from_secs(5));
    for round in 0..15 {
        gate.open();
        (0..200).for_each(|_| assert_eq!(proxy.call("pass", &()).wait(), Ok(())));
        gate.shut();
        inside.store(0, Ordering::SeqCst);
        let slow = proxy.call::<_, ()>("pass", &()).started();
        wait_until("it is inside", || inside.load(Ordering::SeqCst) == 1);
        let answer = match round % 3 {
            0 => knock().wait(),
            1 => block_on(knock()),
            _ => {
                // Nobody looks for its answer, nor at anything else of the bus, until it has run.
                let call = knock().started();
                let has_run = || knocks.load(Ordering::SeqCst) > round;
                wait_until(&format!("the call of round {round} runs"), has_run);
                call.wait()
            }
        };
        assert_eq!(answer, Ok(round as u64), "round {round}");
        gate.open();
        assert_eq!(slow.wait(), Ok(()));
    }
}

/// Objects that serve one call at a time, whose next calls get their turn at the same moment, run them side by side.
#[test]
fn row_39_turns_that_come_at_once_are_taken_at_once() {
    const OBJECTS: usize = 6;
    let place = place();
    let gates = Arc::new([Gate::default(), Gate::default()]);
    let inside = Arc::new(AtomicUsize::new(0));
    let publish = |i| {
        let (gates, inside) = (Arc::clone(&gates), Arc::clone(&inside));
        let table = MethodTable::named("Turns").method("pass", move |gate: u64| {
            inside.fetch_add(1, Ordering::SeqCst);
            gates[gate as usize].pass();
        });
        place.bus().publication(&format!("turns-{i}"), table).workers(1).publish().unwrap()
    };
    let _published: Vec<_> = (0..OBJECTS).map(publish).collect();
    let connect = |i| place.bus().proxy(&format!("turns-{i}")).call_timeout(PATIENCE).wait().unwrap();
    let proxies: Vec<Untyped> = (0..OBJECTS).map(connect).collect();
    for round in 0..100 {
        let mut calls: Vec<_> = Vec::new();
        gates.iter().for_each(Gate::shut);
        inside.store(0, Ordering::SeqCst);
        for gate in [0_u64, 1] {
            calls.extend(proxies.iter().map(|proxy| proxy.call::<_, ()>("pass", &(gate,))));
            calls.iter_mut().skip(gate as usize * OBJECTS).for_each(|call| drop(poll_once(call)));
            if gate == 0 {
                wait_until("the first are inside", || inside.load(Ordering::SeqCst) == OBJECTS);
            }
        }
        gates[0].open();
        wait_until(&format!("all second ones are inside, round {round}"), || {
            inside.load(Ordering::SeqCst) == 2 * OBJECTS
        });
        gates[1].open();
        calls.into_iter().for_each(|call| assert_eq!(block_on(call), Ok(())));
    }
}
