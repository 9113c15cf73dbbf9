//! Calls sent together: their results, and that they cost one ring and one wake.

#[path = "support/probe.rs"]
mod probe;
mod support;

use probe::*;
use support::system::wait_for_rest;
use support::*;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use objbus::{Batch, Call, CallError, Executed, Proxy};

/// Calls that are sent together.
const BATCH: u64 = 64;
/// Rounds until one is not disturbed.
const ROUNDS: usize = 40;

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    assert_eq!(name, "owner");
    own(&arguments);
}

/// The numbers of a process' eventfds, and how often each was rung.
fn eventfds(pid: u32) -> BTreeMap<u64, u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let texts = entries.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    texts
        .filter_map(|text| {
            let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let rung = u64::from_str_radix(field("eventfd-count:")?, 16).ok()?;
            Some((field("eventfd-id:")?.parse().ok()?, rung))
        })
        .collect()
}

/// How often the doorbells between this process and `owner` were rung: nobody reads them. `None` where the kernel tells no numbers.
fn rings(owner: u32) -> Option<u64> {
    let theirs: BTreeSet<u64> = eventfds(owner).into_keys().collect();
    let shared: Vec<u64> = eventfds(std::process::id())
        .into_iter()
        .filter(|(id, _)| theirs.contains(id))
        .map(|(_, n)| n)
        .collect();
    (!shared.is_empty()).then(|| shared.iter().sum())
}

/// Counts wakes and passes them on.
struct Counted {
    wakes: AtomicUsize,
    thread: std::thread::Thread,
}

impl Wake for Counted {
    fn wake(self: Arc<Self>) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
        self.thread.unpark();
    }
}

/// Polls `all` once while the owner stands still, and on when it goes on: rings, and how often the task was polled.
fn rings_and_polls<F: Future + Unpin>(owner: &Child, mut all: F) -> (Option<u64>, usize, F::Output) {
    wait_for_rest(owner.pid());
    owner.stop();
    let before = rings(owner.pid());
    let counted = Arc::new(Counted { wakes: AtomicUsize::new(0), thread: std::thread::current() });
    let waker = Waker::from(Arc::clone(&counted));
    let mut cx = Context::from_waker(&waker);
    assert!(Pin::new(&mut all).poll(&mut cx).is_pending(), "answered by an owner that is stopped");
    let mut polls = 1;
    let began = std::time::Instant::now();
    owner.signal(libc::SIGCONT);
    loop {
        while counted.wakes.swap(0, Ordering::SeqCst) == 0 {
            assert!(began.elapsed() < PATIENCE, "never woken");
            std::thread::park_timeout(PATIENCE);
        }
        polls += 1;
        if let Poll::Ready(output) = Pin::new(&mut all).poll(&mut cx) {
            let rung = rings(owner.pid()).zip(before).map(|(after, before)| after - before);
            return (rung, polls, output);
        }
    }
}

/// Polls all of them whenever it is polled, as `try_join_all` does.
struct All(Vec<Option<Call<u64>>>);

impl Future for All {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        for (sum, one) in (0..).zip(&mut self.0) {
            if let Some(call) = one
                && let Poll::Ready(result) = Pin::new(call).poll(cx)
            {
                assert_eq!(result, Ok(sum));
                *one = None;
            }
        }
        if self.0.iter().any(Option::is_some) { Poll::Pending } else { Poll::Ready(()) }
    }
}

/// One ring each time, and one wake at least once: what else runs here can make a short method a long one for once.
fn expect_one_each_way(mut round: impl FnMut() -> (Option<u64>, usize)) {
    let mut polls = Vec::new();
    for _ in 0..ROUNDS {
        let (rung, polled) = round();
        match rung {
            Some(rung) => assert_eq!(rung, 1, "doorbells rung for {BATCH} calls"),
            None => println!("SKIPPED: this kernel does not number eventfds"),
        }
        polls.push(polled);
        if polled == 2 {
            return;
        }
    }
    panic!("the task was polled so many times in each round: {polls:?}");
}

#[test]
fn calls_that_are_joined_cost_one_ring_and_one_wake() {
    let place = place();
    let owner = owner(&place, &[]);
    let proxy = probe(&place);
    expect_one_each_way(|| {
        (0..200).for_each(|i| assert_eq!(proxy.add(i, 0).wait(), Ok(i)));
        let all = All((0..BATCH).map(|i| Some(proxy.add(i, 0))).collect());
        let (rung, polls, ()) = rings_and_polls(&owner, all);
        (rung, polls)
    });
}

#[test]
fn a_batch_costs_one_ring_and_one_wake() {
    let place = place();
    let owner = owner(&place, &[]);
    let proxy = probe(&place);
    let mut batch = Batch::new();
    expect_one_each_way(|| {
        (0..200).for_each(|i| assert_eq!(proxy.add(i, 0).wait(), Ok(i)));
        batch.extend((0..BATCH).map(|i| proxy.add(i, 0)));
        let (rung, polls, results) = rings_and_polls(&owner, batch.join());
        assert!((0..BATCH).map(Ok).eq(results), "in the order of the calls");
        (rung, polls)
    });
}

#[test]
fn a_batch_is_waited_for_or_awaited_again_and_again() {
    let place = place();
    let _owner = owner(&place, &[]);
    let proxy = probe(&place);
    let mut batch = Batch::new();
    // More than there are slots, too.
    for count in [0, 1, 2, 63, 64, 65, 500] {
        batch.extend((0..count).map(|i| proxy.add(i, 1)));
        assert_eq!((batch.len() as u64, batch.is_empty()), (count, count == 0));
        assert!((1..=count).map(Ok).eq(batch.wait()));
        batch.extend((0..count).map(|i| proxy.add_async(i, 1)));
        assert!((1..=count).map(Ok).eq(block_on(batch.join())));
        assert!(batch.is_empty());
    }
    assert_eq!(proxy.handle().in_flight(), 0);
}

#[test]
fn each_call_of_a_batch_has_its_own_end() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let proxy = probe(&place);
    for awaited in [false, true] {
        let short = Duration::from_millis(50);
        let mut batch: Batch<u64> = [
            proxy.held_quietly(1),
            proxy.held_quietly(2).timeout(short),
            proxy.add(3, 0),
            // Sent before.
            proxy.add(4, 0).started(),
        ]
        .into_iter()
        .collect();
        let opening = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::park_timeout(2 * short);
                owner.tell("open");
            });
            let results: Vec<_> =
                if awaited { block_on(batch.join()).collect() } else { batch.wait().collect() };
            results
        });
        assert_eq!(opening[0], Ok(1));
        assert!(matches!(opening[1], Err(CallError::DeadlineExceeded { .. }) | Ok(2)), "{:?}", opening[1]);
        assert_eq!(opening[2..], [Ok(3), Ok(4)]);
        owner.tell("shut");
    }
}

#[test]
fn a_dropped_batch_cancels_its_calls_and_a_dropped_join_does_not() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let proxy = probe(&place);
    let mut batch: Batch<u64> = (0..10).map(|id| proxy.held_quietly(id)).collect();
    let mut join = batch.join();
    assert!(Pin::new(&mut join).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(join);
    assert_eq!(proxy.handle().in_flight(), 10);
    owner.tell("open");
    assert!((0..10).map(Ok).eq(batch.wait()));
    owner.tell("shut");

    batch.extend((0..10).map(|id| proxy.held_quietly(id)));
    assert!(Pin::new(&mut batch.join()).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(batch);
    wait_until("they have ended", || proxy.handle().in_flight() == 0 || proxy.add(0, 0).wait().is_err());
}

#[test]
fn a_batch_ends_with_its_owner() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let proxy = probe(&place);
    let mut batch: Batch<u64> = (0..200).map(|id| proxy.held_quietly(id)).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            wait_until("they are sent", || proxy.handle().in_flight() == 64);
            owner.kill();
        });
        for result in batch.wait() {
            let error = result.expect_err("nobody answers");
            let is_expected = matches!(
                error,
                CallError::OwnerDied { .. }
                    | CallError::NotFound { executed: Executed::No, .. }
                    | CallError::Unreachable { executed: Executed::No, .. }
            );
            assert!(is_expected, "{error:?}");
        }
    });
}
