//! Rows 1 to 7 and 43 of the table of faults: one of the two processes is killed, at every stage of a call.

#[path = "support/probe.rs"]
mod probe;
mod support;
use probe::*;
use support::system::expect_quick;
use support::*;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use objbus::{Call, CallError, Executed, Proxy, Type};
use serde::{Deserialize, Serialize, Serializer};

/// After a kill, the news of it; the rows say 100 ms, which the best of some rounds must keep.
const NEWS: Duration = Duration::from_millis(100);
/// What no round may take, on whatever machine: far below every time-out of the calls.
const LATE: Duration = Duration::from_secs(10);
const ROUNDS: usize = 5;

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "owner" => own(&arguments),
        "writer" => own_writer(&arguments),
        "connected" => {
            let _proxy = caller(&arguments);
            say("connected");
            stay()
        }
        "encoding" => {
            let proxy: objbus::Untyped = bus_at(&arguments[0]).proxy("probe").wait().unwrap();
            let _ = proxy.call::<_, u64>("held", &(Slow,)).wait();
            unreachable!("the arguments are never encoded");
        }
        "holder" => {
            let _ = caller(&arguments).held(7).wait();
            stay()
        }
        "async holder" => {
            let call = caller(&arguments).held_then_run(7);
            let _ = match arguments.get(1) {
                Some(ms) => call.timeout(Duration::from_millis(ms.parse().expect("a number"))).wait(),
                None => call.timeout(Duration::MAX).wait(),
            };
            stay()
        }
        "watcher" => {
            let _ = caller(&arguments).until_cancelled().wait();
            stay()
        }
        "caller" => call_for_ever(&arguments),
        other => panic!("no role `{other}`"),
    }
}

fn caller(arguments: &[String]) -> ProbeProxy {
    bus_at(&arguments[0]).proxy("probe").call_timeout(PATIENCE).wait().expect("the probe is there")
}

fn call_for_ever(arguments: &[String]) -> ! {
    let proxy = caller(arguments);
    say("calling");
    let big = vec![7; 100_000];
    for i in 0_u64.. {
        match i % 16 {
            15 => drop(proxy.echo(&big).wait()),
            14 => drop(proxy.mark(i).send()),
            _ => drop(proxy.add(i, i).wait()),
        }
    }
    stay()
}

/// Says that it is being written, and never is.
#[derive(Type, Deserialize)]
struct Slow;

impl Serialize for Slow {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        say("writing");
        probe::Gate::default().pass();
        to.serialize_unit()
    }
}

/// Publishes a method whose result takes for ever to encode.
fn own_writer(arguments: &[String]) -> ! {
    let table = objbus::MethodTable::named("Writer").method("slow", || Slow);
    let _published = bus_at(&arguments[0]).publish("writer", table).unwrap();
    say("ready");
    stay()
}

/// Sees to it that the owner has made what it keeps, so that only lanes come and go after this. What it holds then.
fn warm_up(owner: &mut Child, place: &Place) -> Held {
    let bare = held_by(owner.pid());
    let proxy = probe(place);
    assert_eq!(proxy.echo(&[1; 100_000]).wait().unwrap().len(), 100_000);
    drop(proxy);
    wait_for_callers(owner, 0);
    // The first segment of its arena stays.
    let kept = Held { fds: bare.fds + 1, mappings: bare.mappings + 1 };
    wait_for_held(owner.pid(), kept);
    kept
}

/// Kills a child that said `line`; its lane goes, with all that the owner held for it.
fn kill_callers(owner: &mut Child, place: &Place, before: Held, role: &str, line: &str) {
    expect_quick("the lane of a dead caller is gone", ROUNDS, NEWS, || {
        let mut caller = start(role, &[place.text()]);
        caller.expect(line);
        let at = caller.kill();
        wait_for_callers(owner, 0);
        let took = at.elapsed();
        wait_for_held(owner.pid(), before);
        took
    });
}

#[test]
fn row_01_caller_killed_before_publishing() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let before = warm_up(&mut owner, &place);
    kill_callers(&mut owner, &place, before, "connected", "connected");
}

#[test]
fn row_02_caller_killed_while_encoding() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let before = warm_up(&mut owner, &place);
    kill_callers(&mut owner, &place, before, "encoding", "writing");
}

#[test]
fn row_02_caller_killed_at_any_moment() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let before = warm_up(&mut owner, &place);
    let other = probe(&place);
    let mut random = Random::new();
    for round in 0..60 {
        let mut caller = start("caller", &[place.text()]);
        caller.expect("calling");
        random.dally(Duration::from_millis(3));
        caller.kill();
        let seed = random.seed;
        let sum = other.add(round, 1).timeout(LATE).wait();
        assert_eq!(sum, Ok(round + 1), "another caller, round {round}, seed {seed}");
    }
    wait_for_callers(&mut owner, 1);
    drop(other);
    wait_for_callers(&mut owner, 0);
    // One more arena segment of its own may have come into use since; no more than that, and no lane's.
    wait_until("what 60 dead callers left", || {
        let after = held_by(owner.pid());
        after.fds <= before.fds + 1 && after.mappings <= before.mappings + 1
    });
}

#[test]
fn row_03_caller_killed_after_publishing() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let before = warm_up(&mut owner, &place);
    for _ in 0..ROUNDS {
        shut_gate(&mut owner);
        let mut caller = start("holder", &[place.text()]);
        owner.expect("began 7");
        caller.kill();
        // The method still runs, so its lane is still there.
        owner.tell("callers");
        owner.expect("1");
        owner.tell("open");
        let end = owner.hear();
        assert!(end == "cancelled 7" || end == "ended 7", "{end}");
        wait_for_callers(&mut owner, 0);
        wait_for_held(owner.pid(), before);
        assert_eq!(owner.hear_within(Duration::from_millis(1)), None, "it ran once");
    }
}

#[test]
fn row_03_method_sees_that_its_caller_is_gone() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let before = warm_up(&mut owner, &place);
    let mut caller = start("watcher", &[place.text()]);
    owner.expect("began");
    caller.kill();
    owner.expect("cancelled");
    wait_for_callers(&mut owner, 0);
    wait_for_held(owner.pid(), before);
}

#[test]
fn row_03_async_method_of_a_dead_caller_runs_to_the_end() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let before = warm_up(&mut owner, &place);
    for (round, timeout) in [None, Some("30000")].into_iter().enumerate() {
        shut_gate(&mut owner);
        let mut caller = start("async holder", &[&[place.text()], timeout.as_slice()].concat());
        owner.expect("began 7");
        caller.kill();
        owner.tell("callers");
        owner.expect("1");
        owner.tell("open");
        owner.expect("left 7");
        wait_for_callers(&mut owner, 0);
        wait_for_held(owner.pid(), before);
        assert_eq!(probe(&place).runs().wait(), Ok(round as u64 + 1), "it came to its end, once");
        wait_for_callers(&mut owner, 0);
    }
}

#[test]
fn row_03_async_method_of_a_dead_caller_goes_on_no_longer_than_the_caller_would_have_waited() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let before = warm_up(&mut owner, &place);
    let began = Instant::now();
    let mut caller = start("async holder", &[place.text(), "1000"]);
    owner.expect("began 7");
    caller.kill();
    owner.expect("left 7");
    assert!(began.elapsed() >= Duration::from_secs(1), "dropped after {:?}", began.elapsed());
    wait_for_callers(&mut owner, 0);
    wait_for_held(owner.pid(), before);
    assert_eq!(probe(&place).runs().wait(), Ok(0));
}

/// Sends a call, kills the owner when `ready` says so, and gives what the call got, and when.
fn kill_owner<T: serde::de::DeserializeOwned + Send + 'static>(
    owner: &mut Child,
    call: Call<T>,
    ready: impl FnOnce(&mut Child),
) -> (CallError, Duration) {
    let waiting = std::thread::spawn(move || {
        let result = call.wait();
        (result, Instant::now())
    });
    ready(owner);
    let at = owner.kill();
    let (result, told) = waiting.join().expect("a call does not panic");
    let error = result.err().expect("nobody answered");
    (error, told.saturating_duration_since(at))
}

/// The best of some rounds keeps the bound, each is far from a time-out.
fn expect_news(mut round: impl FnMut() -> Duration) {
    expect_quick("news of a death", ROUNDS, NEWS, || {
        let took = round();
        assert!(took < LATE, "heard of the death after {took:?}");
        took
    });
}

#[test]
fn row_04_owner_killed_request_not_begun() {
    expect_news(|| {
        let place = place();
        let mut owner = owner(&place, &[]);
        let proxy = probe(&place);
        assert_eq!(proxy.add(1, 2).wait(), Ok(3));
        owner.stop();
        let handle = proxy.handle().clone();
        let (error, after) = kill_owner(&mut owner, proxy.mark(1), |_| {
            wait_until("the call is out", || handle.in_flight() == 1);
        });
        assert_eq!(error, CallError::OwnerDied { executed: Executed::No });
        assert!(matches!(proxy.add(1, 2).wait(), Err(CallError::NotFound { .. })));
        after
    });
}

#[test]
fn row_05_owner_killed_while_computing() {
    for awaited in [false, true] {
        expect_news(|| {
            let place = place();
            let mut owner = owner(&place, &[]);
            let proxy = probe(&place);
            let call = if awaited { proxy.held_async(1) } else { proxy.held(1) };
            let (error, after) = kill_owner(&mut owner, call, |owner| owner.expect("began 1"));
            assert_eq!(error, CallError::OwnerDied { executed: Executed::Unknown });
            after
        });
    }
}

#[test]
fn row_06_owner_killed_while_writing_the_response() {
    expect_news(|| {
        let place = place();
        let mut owner = start("writer", &[place.text()]);
        owner.expect("ready");
        let writer: objbus::Untyped = place.bus().proxy("writer").call_timeout(PATIENCE).wait().unwrap();
        let call = writer.call::<(), Slow>("slow", &());
        let (error, after) = kill_owner(&mut owner, call, |owner| owner.expect("writing"));
        assert_eq!(error, CallError::OwnerDied { executed: Executed::Unknown });
        after
    });
}

#[test]
fn row_07_owner_killed_after_publishing_the_response() {
    for len in [8_u64, 1 << 20] {
        let place = place();
        let mut owner = owner(&place, &["workers=1"]);
        let proxy = probe(&place);
        let mut call = proxy.held_bytes(9, len);
        assert!(poll_once(&mut call).is_pending());
        owner.expect("began 9");
        owner.tell("open");
        // One at a time: when this is served, the other is answered.
        assert_eq!(proxy.add(1, 2).wait(), Ok(3));
        owner.kill();
        wait_until("the death is known", || !proxy.handle().is_connected());
        let answer = block_on(call).expect("what was answered before the death is delivered");
        assert_eq!(answer, vec![9; len as usize]);
        let next = proxy.add(1, 2).wait().unwrap_err();
        assert_eq!(next.executed(), Executed::No, "{next:?}");
    }
}

#[test]
fn row_43_no_is_never_said_of_a_call_that_ran() {
    let mut random = Random::new();
    let mut said_no = 0;
    for round in 0..25 {
        let place = place();
        let log = std::env::temp_dir().join(format!("objbus-log-{}-{round}", std::process::id()));
        let _ = std::fs::remove_file(&log);
        let option = format!("log={}", log.display());
        let mut owner = owner(&place, &["workers=2", &option]);
        let failed = call_and_kill(&mut owner, &place, &mut random);
        let bytes = std::fs::read(&log).expect("the owner made the log");
        let _ = std::fs::remove_file(&log);
        let ids = bytes.chunks_exact(8).map(|id| u64::from_le_bytes(id.try_into().unwrap()));
        let ran: HashSet<u64> = ids.collect();
        for (id, error) in failed {
            if error.executed() == Executed::No {
                said_no += 1;
                assert!(!ran.contains(&id), "{id} ran, and got {error:?}; seed {}", random.seed);
            }
        }
    }
    println!("{said_no} calls were said not to have run");
}

/// Many threads call; the owner is killed meanwhile. The calls that failed.
fn call_and_kill(owner: &mut Child, place: &Place, random: &mut Random) -> Vec<(u64, CallError)> {
    let proxy = probe(place);
    let threads: Vec<_> = (0..8_u64)
        .map(|thread| {
            let proxy = proxy.clone();
            std::thread::spawn(move || {
                let ids = (0..).map(|i| thread << 32 | i);
                ids.map(|id| (id, proxy.mark(id).wait()))
                    .find_map(|(id, result)| result.err().map(|error| (id, error)))
            })
        })
        .collect();
    random.dally(Duration::from_millis(5));
    owner.kill();
    threads.into_iter().filter_map(|thread| thread.join().expect("a call does not panic")).collect()
}
