//! Subscriptions that end, and those that are made anew.

use super::*;

use std::time::Instant;

use objbus::CallError;
use support::system::{exit_code, expect_quick, fork};

const BAR: Duration = Duration::from_millis(100);

#[test]
fn a_killed_subscriber_is_gone_at_once() {
    let place = place();
    let news = News::default();
    let _published = place.bus().publish("news", news.clone()).unwrap();
    let mut other = subscriber(&place, "block");
    expect_quick("gone after a kill", 3, BAR, || {
        let mut child = subscriber(&place, "256");
        assert_eq!(news.told.subscribers(), 2);
        let at = child.kill();
        wait_until("it is gone", || news.told.subscribers() == 1);
        at.elapsed()
    });
    (0..10).for_each(|number| news.told.emit(&number).unwrap());
    assert_eq!(taken(&mut other, 9), (10, 0));
}

#[test]
fn a_dropped_subscription_is_gone_at_once() {
    let place = place();
    let news = News::default();
    let _published = place.bus().publish("news", news.clone()).unwrap();
    expect_quick("gone after a drop", 3, BAR, || {
        let mut child = subscriber(&place, "256");
        assert_eq!(news.told.subscribers(), 1);
        let at = Instant::now();
        child.tell("drop");
        wait_until("it is gone", || news.told.subscribers() == 0);
        child.expect("dropped");
        at.elapsed()
    });
}

#[test]
fn it_is_made_anew_after_a_restart() {
    let place = place();
    let mut first = owner(&place);
    let news = news(&place);
    let mut events = news.told().wait().unwrap();
    let mut silent = news.told().wait().unwrap();
    for restart in 0..3 {
        news.tell(0, 2).wait().unwrap();
        assert_eq!([next(&mut events), next(&mut events)], [0, 1], "restart {restart}");
        // What was sent before the death is received after it.
        news.tell(2, 4).wait().unwrap();
        first.kill();
        assert_eq!([next(&mut events), next(&mut events)], [2, 3]);
        assert!(is_silent(&mut events), "nobody publishes the name");
        first = owner(&place);
        assert_eq!(gap(&mut events), Gap::Resubscribed);
    }
    // One that nobody looked at meanwhile is made anew once.
    let sent: Vec<_> = (0..4).map(|_| next(&mut silent)).collect();
    assert_eq!(sent, [0, 1, 2, 3]);
    assert_eq!(gap(&mut silent), Gap::Resubscribed);
    news.tell(7, 8).wait().unwrap();
    assert_eq!([next(&mut silent), next(&mut events)], [7, 7]);
}

#[test]
fn a_task_hears_of_a_restart_as_well() {
    let place = place();
    let mut first = owner(&place);
    let news = news(&place);
    let mut events = block_on(async { news.told().await.unwrap() });
    first.kill();
    let waiting = std::thread::spawn(move || {
        let told = block_on(events.next());
        (told, events)
    });
    let _second = owner(&place);
    let (told, mut events) = waiting.join().unwrap();
    assert_eq!(told, Some(Err(Gap::Resubscribed)));
    news.tell(0, 1).wait().unwrap();
    assert_eq!(block_on(events.next()), Some(Ok(0)));
}

#[test]
fn it_follows_a_name_that_is_handed_over() {
    let place = place();
    let _first = owner(&place);
    let news = news(&place);
    let mut events = news.told().wait().unwrap();
    news.tell(0, 1).wait().unwrap();
    let second = start("successor", &[place.text()]);
    second.expect("ready");
    assert_eq!(next(&mut events), 0);
    assert_eq!(gap(&mut events), Gap::Resubscribed);
    assert_eq!(objbus::Proxy::handle(&news).owner_pid(), Some(second.pid()));
    news.tell(1, 2).wait().unwrap();
    assert_eq!(next(&mut events), 1);
}

#[test]
fn it_outlives_a_withdrawal() {
    let place = place();
    let mut owner = owner(&place);
    let news = news(&place);
    let mut events = news.told().wait().unwrap();
    news.tell(0, 1).wait().unwrap();
    owner.tell("withdraw");
    owner.expect("done");
    assert_eq!(next(&mut events), 0);
    assert!(is_silent(&mut events));
    owner.tell("publish");
    owner.expect("done");
    assert_eq!(gap(&mut events), Gap::Resubscribed);
    news.tell(1, 2).wait().unwrap();
    assert_eq!(next(&mut events), 1);
}

#[test]
fn an_event_of_another_type_ends_it() {
    let place = place();
    let mut first = owner(&place);
    let mut events = news(&place).told().wait().unwrap();
    first.kill();
    let other = start("other", &[place.text()]);
    other.expect("ready");
    let ended = gap(&mut events);
    assert!(matches!(ended, Gap::Ended(CallError::SchemaMismatch { .. })), "{ended:?}");
    assert_eq!(events.wait_next(PATIENCE), None);
    assert_eq!(block_on(events.next()), None);
}

#[test]
fn a_closed_bus_ends_it() {
    let place = place();
    let _owner = owner(&place);
    let bus = place.bus();
    let news: NewsProxy = bus.proxy("news").wait().unwrap();
    let mut events = news.told().wait().unwrap();
    news.tell(0, 1).wait().unwrap();
    assert!(bus.close(PATIENCE));
    let mut all = Vec::new();
    while let Some(told) = events.wait_next(PATIENCE) {
        all.push(told);
    }
    assert_eq!(events.wait_next(PATIENCE), None);
    assert!(matches!(all[..], [.., Err(Gap::Ended(_))]), "{all:?}");
}

#[test]
fn it_ends_with_its_event() {
    let bus = objbus::Bus::in_memory();
    let ticks = Event::<u64>::new();
    let table = objbus::MethodTable::named("Clock").event("ticks", &ticks);
    let published = bus.publish("clock", table).unwrap();
    let clock: objbus::Untyped = bus.proxy("clock").wait().unwrap();
    let mut events = clock.subscribe::<u64>("ticks").wait().unwrap();
    ticks.emit(&1).unwrap();
    drop(published);
    wait_until("the object lets go of it", || ticks.subscribers() == 0);
    assert_eq!(next(&mut events), 1);
    assert!(is_silent(&mut events));
}

#[test]
fn a_subscription_that_cannot_be_made_says_why() {
    let place = place();
    let proxy: NewsProxy = place.bus().proxy("news").lazy().unwrap();
    assert!(matches!(proxy.told().wait(), Err(CallError::NotFound { .. })));
    let owner = owner(&place);
    assert!(proxy.told().wait().is_ok());
    owner.stop();
    let began = Instant::now();
    let late = proxy.told().timeout(Duration::from_millis(100)).wait();
    assert!(matches!(late, Err(CallError::DeadlineExceeded { .. })), "{late:?}");
    assert!(began.elapsed() < PATIENCE / 2);
    owner.signal(libc::SIGCONT);
}

/// The role of a process that forks with events at both ends of it.
pub fn fork_between(directory: &str) -> ! {
    let bus = bus_at(directory);
    let news = News::default();
    let _published = bus.publish("news", news.clone()).unwrap();
    let proxy: NewsProxy = bus.proxy("news").wait().unwrap();
    let [mut looked_at, mut awaited, mut kept] = [(); 3].map(|()| proxy.told().wait().unwrap());
    let mut states = proxy.state().subscribe().wait().unwrap();
    assert_eq!(next(&mut states), 0);
    let code = exit_code(fork(|| {
        let forked = |gap: Option<Result<u64, Gap>>| {
            matches!(gap, Some(Err(Gap::Ended(CallError::ForkedHandle { .. }))))
        };
        let told = news.told.emit(&1).is_ok() && news.state.set(1).is_ok() && news.told.subscribers() == 0;
        let ended = forked(looked_at.wait_next(PATIENCE)) && looked_at.wait_next(PATIENCE).is_none();
        let ended = ended && forked(block_on(awaited.next())) && proxy.told().wait().is_err();
        drop((looked_at, awaited));
        i32::from(!told) + 2 * i32::from(!ended)
    }));
    assert_eq!(code, 0);
    news.told.emit(&2).unwrap();
    news.state.set(3).unwrap();
    assert_eq!((next(&mut kept), next(&mut states)), (2, 3));
    say("the parent goes on");
    stay()
}

#[test]
fn a_forked_child_has_neither_subscribers_nor_subscriptions() {
    let place = place();
    let child = start("forker", &[place.text()]);
    child.expect("the parent goes on");
}

#[test]
fn one_process_has_so_many_subscriptions_and_others_theirs() {
    let place = place();
    let news = News::default();
    let _published = place.bus().publish("news", news.clone()).unwrap();
    let proxy: NewsProxy = place.bus().proxy("news").wait().unwrap();
    let mut greedy = Vec::new();
    let refused = loop {
        match proxy.told().wait() {
            Ok(events) => greedy.push(events),
            Err(error) => break error,
        }
        assert!(greedy.len() < 10_000, "there is no limit");
    };
    assert!(matches!(refused, CallError::NoMemory { .. } | CallError::Overloaded { .. }), "{refused:?}");
    assert!(greedy.len() >= 1000, "{refused} after {}", greedy.len());
    let mut other = subscriber(&place, "block");
    (0..10).for_each(|number| news.told.emit(&number).unwrap());
    assert_eq!(taken(&mut other, 9), (10, 0));
    drop(greedy);
    wait_until("they are gone", || news.told.subscribers() == 1);
    let _again = proxy.told().wait().unwrap();
}
