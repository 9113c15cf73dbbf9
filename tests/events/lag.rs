//! Subscribers that do not take their events: what they are told, and that nobody else waits for them.

use super::*;

use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Instant;

/// More than any ring and queue hold.
const MANY: u64 = 50_000;

fn emit_all(news: &News, numbers: std::ops::Range<u64>) {
    numbers.for_each(|number| news.told.emit(&number).unwrap());
}

#[test]
fn a_stopped_subscriber_holds_up_nobody_and_is_told_how_many_it_missed() {
    let place = place();
    let news = News::default();
    let _published = place.bus().publish("news", news.clone()).unwrap();
    let mut honest = subscriber(&place, "block");
    let mut stopped = [subscriber(&place, "1"), subscriber(&place, "1000"), subscriber(&place, "4000000000")];
    stopped.iter().for_each(Child::stop);
    honest.tell(&(MANY - 1).to_string());
    let began = Instant::now();
    emit_all(&news, 0..MANY);
    assert_eq!(said_numbers(&honest), (MANY, 0));
    assert!(began.elapsed() < PATIENCE / 2, "held up for {:?}", began.elapsed());
    for child in &mut stopped {
        child.signal(libc::SIGCONT);
        let (received, missed) = taken(child, MANY - 1);
        assert_eq!(received + missed, MANY);
        assert!(missed > MANY / 2, "a stopped process has kept {received} of {MANY}");
        // And goes on as if nothing had been.
    }
    emit_all(&news, MANY..MANY + 10);
    for child in &mut stopped {
        let (received, missed) = taken(child, MANY + 9);
        assert_eq!(received + missed, MANY + 10);
    }
}

#[test]
fn the_latest_only_is_one_on_its_way_and_one_kept() {
    let place = place();
    let news = News::default();
    let _published = place.bus().publish("news", news.clone()).unwrap();
    let mut child = subscriber(&place, "latest");
    child.stop();
    emit_all(&news, 0..1000);
    child.signal(libc::SIGCONT);
    assert_eq!(taken(&mut child, 999), (2, 0));
    for number in 1000..1100 {
        emit_all(&news, number..number + 1);
        let (received, missed) = taken(&mut child, number);
        assert_eq!((received, missed), (number - 997, 0));
    }
}

#[test]
fn who_blocks_holds_up_who_emits_until_it_takes() {
    let place = place();
    let news = News::default();
    let _published = place.bus().publish("news", news.clone()).unwrap();
    let mut child = subscriber(&place, "block");
    child.stop();
    let emitted = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let emitter = scope.spawn(|| {
            for number in 0..MANY {
                news.told.emit(&number).unwrap();
                emitted.store(number as usize, Ordering::Relaxed);
            }
        });
        let mut before = usize::MAX;
        wait_until("the emitter waits", || {
            let now = emitted.load(Ordering::Relaxed);
            let waits = now == before && now > 0;
            before = now;
            std::thread::park_timeout(Duration::from_millis(20));
            waits
        });
        assert!(!emitter.is_finished() && before < MANY as usize / 2);
        child.signal(libc::SIGCONT);
        assert_eq!(taken(&mut child, MANY - 1), (MANY, 0));
    });
}

#[test]
fn a_task_waits_for_who_blocks_and_one_that_gave_up_has_told_nobody() {
    let place = place();
    let news = News::default();
    let _published = place.bus().publish("news", news.clone()).unwrap();
    let mut child = subscriber(&place, "block");
    child.stop();
    let mut cx = Context::from_waker(Waker::noop());
    let mut emitted = 0;
    loop {
        let mut emit = pin!(news.told.emit_async(&emitted));
        if emit.as_mut().poll(&mut cx).is_pending() {
            break;
        }
        emitted += 1;
    }
    assert!(emitted > 100, "{emitted} fit the ring");
    // The one given up was not told; another takes its number.
    child.signal(libc::SIGCONT);
    child.tell(&emitted.to_string());
    block_on(news.told.emit_async(&emitted)).unwrap();
    assert_eq!(said_numbers(&child), (emitted + 1, 0));
}

#[test]
fn who_blocked_and_dies_blocks_no_more() {
    let place = place();
    let news = News::default();
    let _published = place.bus().publish("news", news.clone()).unwrap();
    let mut child = subscriber(&place, "block");
    child.stop();
    std::thread::scope(|scope| {
        let emitter = scope.spawn(|| emit_all(&news, 0..MANY));
        child.kill();
        emitter.join().unwrap();
    });
    wait_until("it is gone", || news.told.subscribers() == 0);
}

#[test]
fn large_events_that_nobody_takes_do_not_fill_the_memory() {
    let place = place();
    let bus = place.bus();
    let news = News::default();
    let _published = bus.publish("news", news.clone()).unwrap();
    let mut child = start("readers", &[place.text(), "1"]);
    child.expect("ready");
    child.stop();
    let page = |number| Page { number, text: vec![0; 1 << 20], picture: None };
    (0..200).for_each(|number| news.pages.emit(&page(number)).unwrap());
    let used = in_use(&bus);
    assert!(used < 64 << 20, "{used} bytes are kept for one that takes nothing");
    child.signal(libc::SIGCONT);
    child.expect("0 0");
    child.kill();
    wait_until("nothing is kept for the dead", || in_use(&bus) == 0);
}

/// The role of a subscriber that claims to have taken what was never sent.
pub fn lie(arguments: &[String]) -> ! {
    /// Where a receiver's memory says how much it has taken; see `docs/layout.md`.
    const TAKEN: usize = 128;
    let news: NewsProxy = bus_at(&arguments[0]).proxy("news").wait_for(PATIENCE).unwrap();
    let _events = news.told().lag(lag_of(&arguments[1])).wait().unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut mine = maps.lines().filter(|line| line.contains("objbus-channel") && line.contains(" rw-s "));
    let mine = mine.next().and_then(|line| line.split('-').next()).expect("a receiver writes to its memory");
    let taken = usize::from_str_radix(mine, 16).unwrap() + TAKEN;
    say("ready");
    hear();
    // SAFETY: the mapping lives as long as the subscription, and is longer than this; others in this process only use
    // atomics there.
    unsafe { (*(taken as *const std::sync::atomic::AtomicU32)).store(1 << 30, Ordering::SeqCst) };
    say("lied");
    stay()
}

#[test]
fn a_subscriber_that_lies_is_cut_off_and_holds_up_nobody() {
    for lag in ["block", "latest", "16"] {
        let place = place();
        let news = News::default();
        let published = place.bus().publish("news", news.clone()).unwrap();
        let mut honest = subscriber(&place, "block");
        let mut liar = start("liar", &[place.text(), lag]);
        liar.expect("ready");
        assert_eq!(news.told.subscribers(), 2);
        liar.tell("lie");
        liar.expect("lied");
        honest.tell(&(MANY - 1).to_string());
        emit_all(&news, 0..MANY);
        assert_eq!(said_numbers(&honest), (MANY, 0));
        wait_until("the liar is cut off", || news.told.subscribers() == 1);
        assert_eq!(published.violations(), 1);
    }
}
