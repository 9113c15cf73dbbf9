//! Calls awaited on tokio: their runtime wakes them, whatever becomes of it.
#![cfg(feature = "tokio")]

#[path = "support/probe.rs"]
mod probe;
mod support;

use probe::*;
use support::system::{exit_code, fork, of_threads};
use support::*;

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use objbus::{CallError, Executed, Proxy};
use tokio::runtime::{Builder, Runtime};

/// Calls in a row that have to wait.
const CALLS: u64 = 50;

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "owner" => own(&arguments),
        "awaiter" => await_calls(&arguments),
        "forker" => fork_beside_a_runtime(&arguments),
        other => panic!("no role `{other}`"),
    }
}

fn runtime(flavor: &str) -> Runtime {
    match flavor {
        "current" => Builder::new_current_thread().enable_all().build(),
        "multi" => Builder::new_multi_thread().worker_threads(2).enable_all().build(),
        "without" => Builder::new_current_thread().build(),
        other => panic!("no flavor `{other}`"),
    }
    .expect("a runtime starts")
}

fn probe_at(directory: &str) -> ProbeProxy {
    bus_at(directory).proxy("probe").call_timeout(PATIENCE).wait().expect("the probe is published")
}

/// How often the watcher of this process has gone to sleep.
fn watchers_sleeps() -> u64 {
    let switches = of_threads(std::process::id(), "voluntary_ctxt_switches");
    let watcher = switches.iter().find(|(name, _)| name == "objbus-watcher").expect("a bus is open");
    watcher.1.parse().expect("a number")
}

/// Awaits calls that have to wait, and says how often that woke the watcher.
fn await_calls(arguments: &[String]) -> ! {
    let proxy = probe_at(&arguments[0]);
    let calls = async move {
        // So that the watcher has come to its name.
        assert_eq!(proxy.dawdle(10).await, Ok(10));
        let mut least = u64::MAX;
        for _ in 0..5 {
            let before = watchers_sleeps();
            for _ in 0..CALLS {
                assert_eq!(proxy.dawdle(1).await, Ok(1));
            }
            least = least.min(watchers_sleeps() - before);
        }
        say(format!("{least}"));
    };
    let runtime = runtime(&arguments[1]);
    match arguments[2].as_str() {
        "spawned" => runtime.block_on(runtime.spawn(calls)).expect("it does not panic"),
        _ => runtime.block_on(calls),
    }
    stay()
}

#[test]
fn a_call_that_waits_on_tokio_wakes_no_watcher() {
    let place = place();
    let _owner = owner(&place, &[]);
    for flavor in ["current", "multi"] {
        for how in ["spawned", "blocked_on"] {
            let awaiter = start("awaiter", &[place.text(), flavor, how]);
            let sleeps: u64 = awaiter.hear().parse().expect("a number");
            println!("{flavor}, {how}: the watcher slept {sleeps} times in {CALLS} calls");
            assert!(sleeps <= 3, "{flavor}, {how}: the watcher slept {sleeps} times in {CALLS} calls");
        }
    }
}

#[test]
fn a_runtime_without_a_driver_leaves_it_to_the_watcher() {
    let place = place();
    let _owner = owner(&place, &[]);
    let proxy = probe(&place);
    for flavor in ["without", "current", "without"] {
        let runtime = runtime(flavor);
        for _ in 0..5 {
            assert_eq!(runtime.block_on(proxy.dawdle(1)), Ok(1), "{flavor}");
        }
    }
}

#[test]
fn two_runtimes_wait_on_one_connection() {
    let place = place();
    let _owner = owner(&place, &[]);
    let proxy = probe(&place);
    std::thread::scope(|scope| {
        for flavor in ["current", "multi", "current", "without"] {
            let proxy = &proxy;
            scope.spawn(move || {
                let runtime = runtime(flavor);
                for i in 0..100 {
                    let (dawdled, sum) = runtime.block_on(async {
                        let other = tokio::spawn(proxy.add_async(i, 1));
                        (proxy.dawdle(1).await, other.await.expect("it does not panic"))
                    });
                    assert_eq!((dawdled, sum), (Ok(1), Ok(i + 1)));
                }
            });
        }
    });
    assert_eq!(proxy.handle().in_flight(), 0);
}

#[test]
fn a_runtime_that_is_shut_down_takes_its_calls_with_it_and_leaves_the_others() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let proxy = probe(&place);
    for flavor in ["current", "multi"] {
        let first = runtime(flavor);
        let spawned = first.spawn(proxy.held_async(1));
        // Waits within the first runtime, but belongs to an executor that outlives it.
        let mut outlives = Box::pin(proxy.held_async(2));
        let mut poll = |cx: &mut Context<'_>| {
            let _entered = first.enter();
            outlives.as_mut().poll(cx)
        };
        first.block_on(async { tokio::task::yield_now().await });
        let thread = std::thread::current();
        let waker = Waker::from(std::sync::Arc::new(Unparks(thread)));
        let mut cx = Context::from_waker(&waker);
        assert!(poll(&mut cx).is_pending());
        let mut begun = [owner.hear(), owner.hear()];
        begun.sort();
        assert_eq!(begun, ["began 1", "began 2"]);
        drop(first);
        owner.expect("left 1");
        drop(spawned);
        owner.tell("open");
        let began = Instant::now();
        while outlives.as_mut().poll(&mut cx).map(|sum| assert_eq!(sum, Ok(2))).is_pending() {
            std::thread::park_timeout(PATIENCE);
            assert!(began.elapsed() < PATIENCE, "{flavor}: never woken");
        }
        owner.expect("left 2");
        // Another runtime takes its place.
        assert_eq!(runtime(flavor).block_on(proxy.dawdle(1)), Ok(1));
        owner.tell("shut");
        owner.expect("is shut");
    }
}

struct Unparks(std::thread::Thread);

impl std::task::Wake for Unparks {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.unpark();
    }
}

#[test]
fn calls_end_with_their_owner() {
    let place = place();
    for flavor in ["current", "multi"] {
        let mut owner = owner(&place, &[]);
        let proxy = probe(&place);
        let error = runtime(flavor).block_on(async {
            let call = tokio::spawn(proxy.held_async(1));
            let owner = tokio::task::spawn_blocking(move || {
                owner.expect("began 1");
                (owner.kill(), owner)
            });
            let error = call.await.expect("it does not panic").expect_err("nobody answers");
            let (killed, _owner) = owner.await.expect("it does not panic");
            assert!(
                killed.elapsed() < Duration::from_secs(5),
                "{flavor}: heard after {:?}",
                killed.elapsed()
            );
            error
        });
        assert!(matches!(error, CallError::OwnerDied { executed: Executed::Unknown }), "{error:?}");
    }
}

/// Forks where a runtime watches the connection, and goes on calling.
fn fork_beside_a_runtime(arguments: &[String]) -> ! {
    let proxy = probe_at(&arguments[0]);
    let runtime = runtime("current");
    assert_eq!(runtime.block_on(proxy.dawdle(1)), Ok(1));
    let mut waiting = Box::pin(proxy.held_quietly(7));
    runtime.block_on(async {
        std::future::poll_fn(|cx| {
            assert!(waiting.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
    });
    let child = fork(|| {
        let mut cx = Context::from_waker(Waker::noop());
        let polled = Pin::new(&mut waiting).poll(&mut cx);
        let is_foreign = matches!(polled, Poll::Ready(Err(CallError::ForkedHandle { .. })));
        drop(proxy);
        i32::from(!is_foreign)
    });
    say(format!("child {}", exit_code(child)));
    hear();
    assert_eq!(runtime.block_on(waiting), Ok(7));
    say("answered");
    stay()
}

#[test]
fn a_forked_child_leaves_the_runtime_of_its_parent_alone() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let mut forker = start("forker", &[place.text()]);
    forker.expect("child 0");
    forker.tell("go on");
    owner.tell("open");
    forker.expect("answered");
}
