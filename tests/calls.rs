//! What can be done with a call: wait for it, await it, limit it, send it one way, drop it; and what its method sees.

#[path = "support/probe.rs"]
mod probe;
mod support;
use probe::*;
use support::*;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use objbus::{Call, CallContext, CallError, Executed, MethodTable, Proxy, Untyped};

/// What [`Probe::caller`] gives.
type Caller = (u32, u32, u32, Option<u64>, String);

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "owner" => own(&arguments),
        "relay" => own_relay(&arguments),
        "sender" => send_and_exit(&arguments),
        other => panic!("no role `{other}`"),
    }
}

/// Sends one-way calls and exits without a look back.
fn send_and_exit(arguments: &[String]) -> ! {
    let proxy: Untyped = bus_at(&arguments[0]).proxy("probe").wait().expect("the probe is there");
    for id in 0..20_u64 {
        proxy.call::<_, u64>("mark", &(id,)).send().expect("it is sent");
    }
    // Beyond a cell: through shared memory that this process made.
    proxy.call::<_, Vec<u8>>("echo", &(vec![1_u8; 50_000],)).send().expect("it is sent");
    proxy.call::<_, u64>("mark", &(20_u64,)).send().expect("it is sent");
    std::process::exit(0)
}

/// Publishes `relay`, whose methods call the probe.
fn own_relay(arguments: &[String]) -> ! {
    let bus = bus_at(&arguments[0]);
    let probe: Untyped = bus.proxy("probe").call_timeout(PATIENCE).wait().expect("the probe is there");
    let (to_caller, to_held) = (probe.clone(), probe);
    let table = MethodTable::named("Relay")
        .method("caller", move || to_caller.call::<(), Caller>("caller", &()).wait().expect("it is served"))
        .method("held", move |patient: bool| {
            let call = to_held.call::<_, u64>("held_quietly", &(1_u64,));
            let call = if patient { call.timeout(PATIENCE) } else { call };
            matches!(call.wait(), Err(CallError::DeadlineExceeded { .. }))
        });
    let _published = bus.publish("relay", table).expect("the name is free");
    say("ready");
    stay()
}

#[test]
fn calls_are_awaited_on_any_executor() {
    let place = place();
    let _owner = owner(&place, &[]);
    let proxy = probe(&place);
    let big = vec![3; 200_000];
    block_on(async {
        for i in 0..3000 {
            assert_eq!(proxy.add(i, 1).await, Ok(i + 1));
            assert_eq!(proxy.add_async(i, 2).await, Ok(i + 2));
        }
        assert_eq!(proxy.echo(&big).await.as_ref(), Ok(&big));
    });
}

/// Polls all, until all are done.
struct All<F: Future>(Vec<Result<Pin<Box<F>>, F::Output>>);

impl<F: Future> Unpin for All<F> {}

impl<F: Future> Future for All<F> {
    type Output = Vec<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Vec<F::Output>> {
        for one in &mut self.0 {
            if let Ok(future) = one
                && let Poll::Ready(output) = future.as_mut().poll(cx)
            {
                *one = Err(output);
            }
        }
        if self.0.iter().any(Result::is_ok) {
            return Poll::Pending;
        }
        Poll::Ready(std::mem::take(&mut self.0).into_iter().filter_map(Result::err).collect())
    }
}

#[test]
fn more_calls_are_awaited_at_once_than_can_be_in_flight() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let proxy = probe(&place);
    let calls = (0..1000).map(|id| if id % 2 == 0 { proxy.held_quietly(id) } else { proxy.add(id, 0) });
    let mut all = All(calls.map(|call| Ok(Box::pin(call))).collect());
    let mut started = false;
    let answers = block_on(std::future::poll_fn(|cx| {
        let polled = Pin::new(&mut all).poll(cx);
        if !std::mem::replace(&mut started, true) {
            owner.tell("open");
        }
        polled
    }));
    for (id, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer, Ok(id as u64));
    }
    assert_eq!(proxy.handle().in_flight(), 0);
}

#[test]
fn many_threads_share_one_proxy() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let proxy = probe(&place);
    let threads: Vec<_> = (0..96_u64)
        .map(|thread| {
            let proxy = proxy.clone();
            std::thread::spawn(move || {
                for i in 0..300 {
                    let sum = match i % 3 {
                        0 => block_on(proxy.add_async(thread, i)),
                        1 => block_on(proxy.add(thread, i)),
                        _ => proxy.add(thread, i).wait(),
                    };
                    assert_eq!(sum, Ok(thread + i), "thread {thread}, call {i}");
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    owner.tell("callers");
    owner.expect("1");
}

#[test]
fn a_call_started_twice_is_sent_once() {
    let place = place();
    let _owner = owner(&place, &[]);
    let proxy = probe(&place);
    assert_eq!(proxy.mark(1).started().started().wait(), Ok(1));
    assert_eq!(proxy.mark(2).started().send(), Ok(()));
    wait_until("the slots are free", || proxy.handle().in_flight() == 0);
    assert_eq!(proxy.runs().wait(), Ok(2));
}

/// A task's waker that notes that it was used.
#[derive(Default)]
struct Noted(AtomicBool);

impl Wake for Noted {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Noted {
    fn poll<T: serde::de::DeserializeOwned + 'static>(
        self: &Arc<Self>,
        call: &mut Call<T>,
    ) -> Poll<Result<T, CallError>> {
        Pin::new(call).poll(&mut Context::from_waker(&Waker::from(Arc::clone(self))))
    }

    fn is_woken(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

#[test]
fn a_call_polled_and_then_waited_for_leaves_no_task_in_its_slot() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let proxy = probe(&place);
    let mut polled = proxy.held_quietly(1);
    assert!(poll_once(&mut polled).is_pending());
    owner.tell("open");
    assert_eq!(polled.wait(), Ok(1));
    shut_gate(&mut owner);
    // The next in that slot sleeps, beside a task that is woken.
    let next = proxy.held_quietly(2);
    let waiting = std::thread::spawn(move || next.wait());
    wait_until("the call is out", || proxy.handle().in_flight() == 1);
    let (mut beside, task) = (proxy.dawdle(100), Arc::new(Noted::default()));
    assert!(task.poll(&mut beside).is_pending());
    wait_until("the task is woken", || task.is_woken());
    owner.tell("open");
    let took = wait_until("the call has ended", || waiting.is_finished());
    assert!(took < PATIENCE / 2, "it was not woken: {took:?}");
    assert_eq!(waiting.join().unwrap(), Ok(2));
}

#[test]
fn a_call_that_went_to_another_task_tells_that_one_of_its_deadline() {
    let place = place();
    let _owner = owner(&place, &[]);
    let mut call = probe(&place).held_quietly(1).timeout(Duration::from_millis(100));
    let (first, second) = (Arc::new(Noted::default()), Arc::new(Noted::default()));
    assert!(first.poll(&mut call).is_pending());
    assert!(second.poll(&mut call).is_pending());
    wait_until("the second task is woken", || second.is_woken());
    let ended = second.poll(&mut call);
    assert_eq!(ended, Poll::Ready(Err(CallError::DeadlineExceeded { executed: Executed::Unknown })));
}

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a panic in a waker");
    }
}

#[test]
fn a_waker_that_panics_keeps_no_other_task_asleep() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let proxy = probe(&place);
    let (mut bad, mut good) = (proxy.held_quietly(1), proxy.held_quietly(2));
    let task = Arc::new(Noted::default());
    assert!(Pin::new(&mut bad).poll(&mut Context::from_waker(&Waker::from(Arc::new(Panics)))).is_pending());
    assert!(task.poll(&mut good).is_pending());
    owner.tell("open");
    wait_until("the other task is woken", || task.is_woken());
    assert_eq!(block_on(good), Ok(2));
    assert_eq!(block_on(bad), Ok(1));
}

#[test]
fn a_call_never_sent_does_nothing() {
    let place = place();
    let _owner = owner(&place, &[]);
    let proxy = probe(&place);
    #[allow(unused_must_use)]
    for id in 0..100 {
        proxy.mark(id);
    }
    assert_eq!(proxy.runs().wait(), Ok(0));
}

#[test]
fn a_call_that_was_ready_is_not_sent_again() {
    let place = place();
    let _owner = owner(&place, &[]);
    let proxy = probe(&place);
    fn again<T: serde::de::DeserializeOwned + 'static>(mut call: objbus::Call<T>) -> Result<T, CallError> {
        let given = block_on(&mut call);
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(poll_once(&mut call))));
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(call.wait())));
        for panic in [polled.unwrap_err(), waited.unwrap_err()] {
            let sentence = panic.downcast_ref::<&str>().expect("a sentence");
            assert!(sentence.contains("polled after completion"), "{sentence}");
        }
        given
    }
    assert!(again(proxy.mark(1)).is_ok());
    let large = vec![0; (256 << 20) + 1];
    assert!(matches!(again(proxy.echo(&large)), Err(CallError::TooLarge { executed: Executed::No, .. })));
    assert_eq!(proxy.runs().wait(), Ok(1));
}

#[test]
fn a_dropped_call_is_cancelled() {
    let place = place();
    let owner = owner(&place, &[]);
    let proxy = probe(&place);
    let mut plain = proxy.until_cancelled();
    assert!(poll_once(&mut plain).is_pending());
    owner.expect("began");
    drop(plain);
    owner.expect("cancelled");
    let mut awaited = proxy.held_async(1);
    assert!(poll_once(&mut awaited).is_pending());
    owner.expect("began 1");
    drop(awaited);
    // Its future is dropped, at the point where it waited.
    owner.expect("left 1");
    wait_until("the slots are free", || proxy.handle().in_flight() == 0);
}

#[test]
fn a_call_past_its_time_out_is_cancelled() {
    let place = place();
    let owner = owner(&place, &[]);
    let proxy = probe(&place);
    let begun = Err(CallError::DeadlineExceeded { executed: Executed::Unknown });
    assert_eq!(time_out_begun(|span| proxy.until_cancelled().timeout(span).wait()), begun);
    owner.expect("began");
    owner.expect("cancelled");
    assert_eq!(time_out_begun(|span| block_on(proxy.held_async(2).timeout(span))), begun);
    owner.expect("began 2");
    owner.expect("left 2");
    assert_eq!(proxy.add(1, 1).timeout(Duration::MAX).wait(), Ok(2));
    let none = proxy.add(1, 1).timeout(Duration::ZERO).wait();
    assert!(matches!(none, Ok(2) | Err(CallError::DeadlineExceeded { .. })), "{none:?}");
}

/// A lane has one alarm for the calls that wait there: set for a later deadline it is set for an earlier one instead, and then for
/// those that are left.
#[test]
fn each_awaited_call_ends_at_its_own_deadline() {
    let place = place();
    let _owner = owner(&place, &[]);
    let proxy = probe(&place);
    let began = Instant::now();
    let mut waiting: Vec<_> = [20_000, 300, 100]
        .map(Duration::from_millis)
        .map(|span| (proxy.held_quietly(0).timeout(span), span))
        .into();
    block_on(std::future::poll_fn(|cx| {
        waiting.retain_mut(|(call, span)| match Pin::new(call).poll(cx) {
            Poll::Pending => true,
            Poll::Ready(result) => {
                assert!(matches!(result, Err(CallError::DeadlineExceeded { .. })), "{result:?}");
                assert!(began.elapsed() >= *span);
                false
            }
        });
        if waiting.len() == 1 { Poll::Ready(()) } else { Poll::Pending }
    }));
    assert_eq!(waiting[0].1, Duration::from_secs(20), "it has waited with the others");
    assert!(began.elapsed() < Duration::from_secs(20), "the others have waited with it");
}

#[test]
fn a_one_way_call_runs_though_its_sender_is_gone() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let proxy = probe(&place);
    for round in 1..=5 {
        let sender = start("sender", &[place.text()]);
        assert!(sender.finish().success());
        wait_until("all one-way calls have run", || proxy.runs().wait() == Ok(21 * round));
    }
    drop(proxy);
    wait_for_callers(&mut owner, 0);
}

#[test]
fn a_one_way_call_outlives_its_proxy() {
    let place = place();
    let mut owner = owner(&place, &[]);
    let watching = probe(&place);
    for round in 1..=20 {
        let bus = place.bus();
        let proxy: ProbeProxy = bus.proxy("probe").wait().unwrap();
        if round == 20 {
            owner.stop();
        }
        (0..64).for_each(|id| proxy.mark(id).send().unwrap());
        drop((proxy, bus));
        if round == 20 {
            owner.signal(libc::SIGCONT);
        }
        wait_until("all one-way calls have run", || watching.runs().wait() == Ok(64 * round));
        // And the connection with it, no longer than that.
        wait_for_callers(&mut owner, 1);
    }
}

#[test]
fn more_one_way_calls_are_sent_than_can_be_in_flight() {
    let place = place();
    let owner = owner(&place, &[]);
    let proxy = probe(&place);
    (0..1000).for_each(|id| proxy.mark(id).send().unwrap());
    wait_until("all have run", || proxy.runs().wait() == Ok(1000));
    owner.stop();
    (0..64).for_each(|id| proxy.mark(id).send().unwrap());
    let refused = proxy.mark(64).immediate().send();
    assert_eq!(refused, Err(CallError::Overloaded { executed: Executed::No }));
    owner.signal(libc::SIGCONT);
    wait_until("what was sent has run, and no more", || proxy.runs().wait() == Ok(1064));
    wait_until("every slot is back", || proxy.handle().in_flight() == 0);
}

#[test]
fn a_method_knows_its_call() {
    let place = place();
    let _owner = owner(&place, &[]);
    let proxy = probe(&place);
    // SAFETY: neither touches memory.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let ((pid, its_uid, its_gid, left, name), took_ms) = timed(proxy.caller());
    assert_eq!((pid, its_uid, its_gid, name.as_str()), (std::process::id(), uid, gid, "probe"));
    assert_left(left, took_ms);
    assert_eq!(proxy.caller().timeout(Duration::MAX).wait().unwrap().3, None);
    assert!(CallContext::current().is_none(), "outside of methods there is no call");
}

/// Another time-out than any proxy's here, in milliseconds.
const TIMEOUT_MS: u64 = 20_000;

/// Who called within [`TIMEOUT_MS`], and after how many milliseconds that was answered.
fn timed(call: Call<Caller>) -> (Caller, u64) {
    let began = Instant::now();
    let caller = call.timeout(Duration::from_millis(TIMEOUT_MS)).wait().expect("it is served");
    (caller, began.elapsed().as_millis() as u64)
}

/// The method saw what was left of the time-out at some moment of its call, but for the ticks of two clocks.
fn assert_left(left: Option<u64>, took_ms: u64) {
    let possible = TIMEOUT_MS.saturating_sub(took_ms + 50)..=TIMEOUT_MS + 50;
    assert!(left.is_some_and(|ms| possible.contains(&ms)), "{left:?} ms, and not {possible:?}");
}

#[test]
fn nested_calls_inherit_the_deadline() {
    let place = place();
    let _owner = owner(&place, &[]);
    let relay_owner = start("relay", &[place.text()]);
    relay_owner.expect("ready");
    let relay: Untyped = place.bus().proxy("relay").wait().unwrap();
    let ((pid, .., left, _), took_ms) = timed(relay.call("caller", &()));
    assert_eq!(pid, relay_owner.pid(), "the relay calls for itself");
    assert_left(left, took_ms);
    for patient in [false, true] {
        // The inner call ends with the outer one, whatever time-out it has of its own.
        let result = time_out_begun(|span| relay.call("held", &(patient,)).timeout(span).wait());
        // Both end at the same time: the outer one by its deadline, or with the news that the inner one did.
        let exceeded = Err(CallError::DeadlineExceeded { executed: Executed::Unknown });
        assert!(result == exceeded || result == Ok(true), "{result:?}");
        wait_until("the relay is free", || relay.handle().in_flight() == 0);
    }
}

#[test]
fn bodies_of_any_size_go_and_come() {
    let place = place();
    let _owner = owner(&place, &[]);
    let proxy = probe(&place);
    let mut sizes: Vec<usize> = (0..300).collect();
    sizes.extend([4095, 4096, 4097, 65_535, 1 << 20, (1 << 20) + 1, 16 << 20, 64 << 20]);
    for size in sizes {
        let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        // Unoptimised code on a loaded machine takes its time for the largest.
        let answer = proxy.echo(&data).timeout(Duration::MAX).wait();
        let answer = answer.unwrap_or_else(|error| panic!("{size} bytes: {error}"));
        assert!(answer == data, "{size} bytes");
    }
    // The memory of big ones comes back.
    let data = vec![5; 1 << 20];
    for i in 0..100 {
        assert_eq!(proxy.echo(&data).wait().map(|answer| answer.len()), Ok(data.len()), "call {i}");
    }
}

#[test]
fn big_bodies_are_awaited_at_once() {
    let place = place();
    let _owner = owner(&place, &[]);
    let proxy = probe(&place);
    let bytes = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..4_u8)
        .map(|thread| {
            let (proxy, bytes) = (proxy.clone(), Arc::clone(&bytes));
            std::thread::spawn(move || {
                let data = vec![thread; 300_000];
                let calls = (0..40).map(|_| Ok(Box::pin(proxy.echo(&data))));
                for answer in block_on(All(calls.collect())) {
                    assert!(answer.as_ref() == Ok(&data), "another call's bytes, or none");
                    bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(bytes.load(Ordering::Relaxed), 4 * 40 * 300_000);
}

#[test]
fn calls_are_awaited_on_tokio() {
    let place = place();
    let _owner = owner(&place, &[]);
    for threads in [0, 2] {
        let runtime = match threads {
            0 => tokio::runtime::Builder::new_current_thread().build(),
            n => tokio::runtime::Builder::new_multi_thread().worker_threads(n).build(),
        };
        runtime.expect("a runtime starts").block_on(async {
            let connecting = place.bus().proxy("probe").call_timeout(PATIENCE);
            let proxy: ProbeProxy = connecting.await.expect("the probe is there");
            let tasks: Vec<_> = (0..200_u64).map(|i| tokio::spawn(proxy.add_async(i, 1))).collect();
            for (i, task) in tasks.into_iter().enumerate() {
                assert_eq!(task.await.expect("no panic"), Ok(i as u64 + 1));
            }
        });
    }
}
