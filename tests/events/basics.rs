//! Who is told, when, and at which cost to the object.

use super::*;

use std::sync::Barrier;

use objbus::{Access, Bus, CallError, MethodKind, MethodTable, Untyped};

#[test]
fn what_a_call_after_the_subscription_emits_is_heard() {
    let place = place();
    let _owner = owner(&place);
    let news = news(&place);
    let mut events = news.told().wait().unwrap();
    assert_eq!(news.subscribers().wait(), Ok(1));
    // Emitted before anybody looks for the first time, by a plain method and by an async one.
    news.tell(0, 10).wait().unwrap();
    news.tell_async(10, 20).wait().unwrap();
    let heard: Vec<_> = events.iter().take(20).map(Result::unwrap).collect();
    assert_eq!(heard, (0..20).collect::<Vec<_>>());
    assert!(is_silent(&mut events));
}

#[test]
fn it_is_awaited_as_well() {
    let place = place();
    let _owner = owner(&place);
    let news = news(&place);
    let heard = block_on(async {
        let mut events = news.told().await.unwrap();
        news.tell(0, 3).await.unwrap();
        let mut heard = Vec::new();
        while heard.len() < 3 {
            heard.push(events.next().await.unwrap().unwrap());
        }
        heard
    });
    assert_eq!(heard, [0, 1, 2]);
}

#[test]
fn each_subscriber_gets_what_is_emitted_after_it_came() {
    let place = place();
    let _owner = owner(&place);
    let news = news(&place);
    let mut first = news.told().wait().unwrap();
    news.tell(0, 1).wait().unwrap();
    // This one emits before it gives the event: those that are there hear it, the one that comes does not.
    let mut second = news.greeted().wait().unwrap();
    news.tell(1, 2).wait().unwrap();
    assert_eq!([next(&mut first), next(&mut first), next(&mut first)], [0, 0, 1]);
    assert_eq!(next(&mut second), 1);
}

#[test]
fn one_encoding_for_a_hundred_subscribers() {
    let place = place();
    let news = News::default();
    let _published = place.bus().publish("news", news.clone()).unwrap();
    news.counted.emit(&Counted(0)).unwrap();
    assert_eq!(ENCODED.load(Ordering::Relaxed), 0, "nobody is there");
    let mut children: Vec<_> = (0..4).map(|_| start("hundred", &[place.text(), "25"])).collect();
    children.iter().for_each(|child| child.expect("ready"));
    assert_eq!(news.counted.subscribers(), 100);
    for number in 1..=3 {
        news.counted.emit(&Counted(number)).unwrap();
        assert_eq!(ENCODED.load(Ordering::Relaxed), number as usize);
        children.iter_mut().for_each(|child| child.tell(&number.to_string()));
        children.iter().for_each(|child| child.expect("taken"));
    }
}

#[test]
fn a_large_event_lies_in_memory_once_and_is_lent_to_each() {
    let place = place();
    let bus = place.bus();
    let news = News::default();
    let _published = bus.publish("news", news.clone()).unwrap();
    let mut children: Vec<_> = (0..2).map(|_| start("readers", &[place.text(), "10"])).collect();
    children.iter().for_each(|child| child.expect("ready"));
    const LEN: usize = 4 << 20;
    let used = in_use(&bus);
    // Who takes a body gives it back at once.
    children.iter().for_each(Child::stop);
    news.pages.emit(&Page { number: 1, text: vec![1; LEN], picture: None }).unwrap();
    assert_eq!(lent(&bus), 20);
    assert!(in_use(&bus) - used < 2 * LEN as u64, "{:?}", bus.memory());
    children.iter().for_each(|child| child.signal(libc::SIGCONT));
    children.iter().for_each(|child| child.expect(&format!("1 {LEN}")));
    children.iter_mut().for_each(|child| child.tell("drop"));
    children.iter().for_each(|child| child.expect("dropped"));
    wait_until("the memory is back", || in_use(&bus) == used);
    // A blob is lent, too, and goes with its last reader.
    let picture = bus.alloc(LEN).unwrap().freeze();
    news.pages.emit(&Page { number: 2, text: vec![2; 7], picture: Some(picture) }).unwrap();
    children.iter().for_each(|child| child.expect("2 14"));
    assert!(in_use(&bus) >= used + LEN as u64);
    children.iter_mut().for_each(|child| child.tell("drop"));
    children.iter().for_each(|child| child.expect("dropped"));
    wait_until("the memory is back", || in_use(&bus) == used);
}

#[test]
fn all_hear_the_same_order_whichever_threads_emit() {
    let place = place();
    let news = News::default();
    let _published = place.bus().publish("news", news.clone()).unwrap();
    let proxy: NewsProxy = place.bus().proxy("news").wait().unwrap();
    let mut all: Vec<_> = (0..3).map(|_| proxy.told().lag(Lag::Block).wait().unwrap()).collect();
    const EACH: u64 = 2000;
    let begin = Barrier::new(4);
    let heard: Vec<Vec<u64>> = std::thread::scope(|scope| {
        for thread in 0..4 {
            let (news, begin) = (&news, &begin);
            scope.spawn(move || {
                begin.wait();
                (0..EACH).for_each(|number| news.told.emit(&(thread * EACH + number)).unwrap());
            });
        }
        let readers: Vec<_> = all
            .iter_mut()
            .map(|events| scope.spawn(|| events.iter().take(4 * EACH as usize).map(Result::unwrap).collect()))
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    assert!(heard[0] == heard[1] && heard[1] == heard[2]);
    for thread in 0..4 {
        let of_thread: Vec<_> = heard[0].iter().filter(|number| **number / EACH == thread).collect();
        assert!(of_thread.len() as u64 == EACH && of_thread.is_sorted());
    }
}

#[test]
fn subscribing_and_emitting_at_once_ends() {
    let place = place();
    let news = News::default();
    let _published = place.bus().publish("news", news.clone()).unwrap();
    let proxy: NewsProxy = place.bus().proxy("news").wait().unwrap();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0;
            while !is_over.load(Ordering::Relaxed) {
                news.told.emit(&number).unwrap();
                number += 1;
            }
        });
        let subscribers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let mut events = proxy.greeted().wait().unwrap();
                        next(&mut events);
                    }
                })
            })
            .collect();
        subscribers.into_iter().for_each(|thread| thread.join().unwrap());
        is_over.store(true, Ordering::Relaxed);
    });
    wait_until("all are gone", || news.told.subscribers() == 0);
}

#[test]
fn tables_and_tools_have_events_without_types_of_their_own() {
    let bus = Bus::in_memory();
    let (ticks, level) = (Event::<u32>::new(), Watched::new(7_u8));
    let table =
        MethodTable::named("Clock").event("ticks", &ticks).docs("Each second.").watched("level", &level);
    let _published = bus.publish("clock", table).unwrap();
    let clock: Untyped = bus.proxy("clock").wait().unwrap();
    let description = clock.handle().describe().wait().unwrap();
    let kinds: Vec<_> = description.methods.iter().map(|method| method.kind()).collect();
    assert_eq!(kinds, [MethodKind::Event, MethodKind::Watched]);
    let text = description.to_string();
    assert!(
        text.contains("/// Each second.\n    event ticks() -> u32;\n    watched level() -> u8;"),
        "{text}"
    );
    let mut events = clock.subscribe::<u32>("ticks").wait().unwrap();
    ticks.emit(&1).unwrap();
    assert_eq!(next(&mut events), 1);
    assert_eq!(clock.watch::<u8>("level").get().wait(), Ok(7));
    assert_eq!(next(&mut clock.watch::<u8>("level").subscribe().wait().unwrap()), 7);
    // What is of one kind is not taken for another, nor for another type.
    let mismatch = |error| matches!(error, CallError::SchemaMismatch { .. });
    assert!(mismatch(clock.subscribe::<u8>("ticks").wait().unwrap_err()));
    assert!(mismatch(clock.subscribe::<u8>("level").wait().unwrap_err()));
    assert!(mismatch(clock.call::<(), u8>("level", &()).wait().unwrap_err()));
    let unknown = clock.subscribe::<u8>("tocks").wait().unwrap_err();
    assert!(matches!(unknown, CallError::UnknownMethod { .. }), "{unknown}");
}

#[test]
fn rules_for_methods_hold_for_events_by_name() {
    let place = place();
    let nobody = Access::only().uid(4_000_000_000);
    let publication = place.bus().publication("news", News::default());
    let _published =
        publication.method_access("told", nobody.clone()).method_access("state", nobody).publish().unwrap();
    let news = news(&place);
    assert!(executed_denied(&news.told().wait().unwrap_err()));
    assert!(executed_denied(&news.state().subscribe().wait().unwrap_err()));
    assert!(executed_denied(&news.state().get().wait().unwrap_err()));
    let _allowed = news.pages().wait().unwrap();
}
