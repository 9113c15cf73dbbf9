//! Row 34: owners that come and go under the same proxies, and callers that wait for them, each as long as it said.

mod support;
use support::system::*;
use support::*;

use std::time::{Duration, Instant};

use objbus::{Absent, CallError, ConnectError, Executed, Proxy, Untyped};

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    assert_eq!(name, "owner");
    own_math(&arguments[0])
}

#[test]
fn row_34_the_same_proxy_works_again_after_a_restart() {
    let place = place();
    let mut first = math_owner(&place);
    let math: Untyped = place.bus().proxy("math").wait().unwrap();
    assert_eq!(pow(&math).wait(), Ok(8.0));
    // Each of the three is to take 100 ms at most, which the best of some rounds must keep on a loaded machine.
    let mut best = [Duration::MAX; 3];
    for restart in 0..5 {
        let slow = math.call::<_, ()>("nap", &(20_000_u64,));
        let waiting = std::thread::spawn(move || slow.wait());
        wait_until("the call is out", || math.handle().in_flight() == 1);
        let at = first.kill();
        let ended = waiting.join().unwrap();
        best[0] = best[0].min(at.elapsed());
        assert!(matches!(ended, Err(CallError::OwnerDied { .. })), "restart {restart}: {ended:?}");
        let absent = Instant::now();
        assert!(matches!(pow(&math).wait(), Err(CallError::NotFound { executed: Executed::No, .. })));
        best[1] = best[1].min(absent.elapsed());
        assert!(matches!(block_on(pow(&math)), Err(CallError::NotFound { executed: Executed::No, .. })));
        first = math_owner(&place);
        let back = Instant::now();
        assert_eq!(pow(&math).wait(), Ok(8.0));
        best[2] = best[2].min(back.elapsed());
        assert_eq!(math.handle().owner_pid(), Some(first.pid()));
        assert_eq!(block_on(pow(&math)), Ok(8.0));
    }
    let is_quick = best.iter().all(|took| *took < Duration::from_millis(100));
    assert!(is_quick, "OwnerDied, NotFound, and served again after {best:?}");
}

#[test]
fn row_34_who_waits_for_an_absent_owner_is_served_when_it_comes() {
    let place = place();
    let mut first = math_owner(&place);
    let bus = place.bus();
    let math: Untyped = bus.proxy("math").absent(Absent::Wait).call_timeout(PATIENCE).wait().unwrap();
    assert_eq!(pow(&math).wait(), Ok(8.0));
    first.kill();
    wait_until("the death is known", || !math.handle().is_connected());
    let begin = || {
        let math = math.clone();
        std::thread::spawn(move || (pow(&math).wait(), block_on(pow(&math)), Instant::now()))
    };
    let waiting: Vec<_> = (0..4).map(|_| begin()).collect();
    let short = Instant::now();
    let none = pow(&math).timeout(Duration::from_millis(30)).wait();
    assert_eq!(none, Err(CallError::DeadlineExceeded { executed: Executed::No }));
    assert!(short.elapsed() >= Duration::from_millis(30));
    let _second = math_owner(&place);
    for thread in waiting {
        let (waited, awaited, _when) = thread.join().unwrap();
        assert_eq!((waited, awaited), (Ok(8.0), Ok(8.0)));
    }
}

#[test]
fn row_34_tasks_that_wait_together_each_keep_their_own_deadline() {
    let place = place();
    let bus = place.bus();
    let lazy = |policy| bus.proxy::<Untyped>("math").absent(policy).call_timeout(PATIENCE).lazy().unwrap();
    let (patient, impatient) = (lazy(Absent::Wait), lazy(Absent::Fail));
    let connect = bus.proxy::<Untyped>("math").patience(PATIENCE);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let mut long = Box::pin(pow(&patient));
    assert!(long.as_mut().poll(&mut cx).is_pending());
    let mut connecting = Box::pin(connect);
    assert!(connecting.as_mut().poll(&mut cx).is_pending());
    // Those that came later and may wait less, or not at all, are not held up by the first.
    let began = Instant::now();
    assert!(matches!(block_on(pow(&impatient)), Err(CallError::NotFound { .. })));
    let none = block_on(bus.proxy::<Untyped>("math"));
    assert!(matches!(none, Err(ConnectError::NotFound { .. })), "{none:?}");
    let short = block_on(pow(&patient).timeout(Duration::from_millis(50)));
    assert_eq!(short, Err(CallError::DeadlineExceeded { executed: Executed::No }));
    let none = block_on(bus.proxy::<Untyped>("math").patience(Duration::from_millis(50)));
    assert!(matches!(none, Err(ConnectError::NotFound { .. })), "{none:?}");
    assert!(began.elapsed() < PATIENCE / 2, "held up for {:?}", began.elapsed());
    // And the first is not cut short by them.
    let _owner = math_owner(&place);
    assert_eq!(block_on(long), Ok(8.0));
    assert_eq!(block_on(pow(&block_on(connecting).unwrap())), Ok(8.0));
}

#[test]
fn a_stopped_owner_holds_up_nobody_beyond_the_deadline() {
    let place = place();
    let owner = math_owner(&place);
    owner.stop();
    let bus = place.bus();
    let math: Untyped = bus.proxy("math").call_timeout(Duration::from_millis(100)).lazy().unwrap();
    let call = || {
        let began = Instant::now();
        assert_eq!(pow(&math).wait(), Err(CallError::DeadlineExceeded { executed: Executed::No }));
        began.elapsed()
    };
    expect_quick("held up", 3, Duration::from_millis(500), || {
        std::thread::scope(|scope| {
            let callers: Vec<_> = (0..8).map(|_| scope.spawn(call)).collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).max().expect("there are eight")
        })
    });
    owner.signal(libc::SIGCONT);
    assert_eq!(pow(&math).timeout(PATIENCE).wait(), Ok(8.0));
}

#[test]
fn a_lazy_proxy_connects_with_its_first_call() {
    let place = place();
    let bus = place.bus();
    let math: Untyped = bus.proxy("math").lazy().unwrap();
    assert!(!math.handle().is_connected());
    assert!(matches!(pow(&math).wait(), Err(CallError::NotFound { .. })));
    let owner = math_owner(&place);
    assert_eq!(pow(&math).wait(), Ok(8.0));
    assert_eq!(math.handle().owner_pid(), Some(owner.pid()));
    assert!(matches!(bus.proxy::<Untyped>("no/name").lazy(), Err(ConnectError::NameInvalid { .. })));
}
