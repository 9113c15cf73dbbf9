//! A bounded pool of frames: who waits for memory sleeps until a reader lets go of one, or dies.

#[path = "support/shelf.rs"]
mod shelf;
mod support;

use shelf::*;
use support::*;

use std::time::{Duration, Instant};

use objbus::{AllocError, Blob, Bus};

const FRAME: usize = 1 << 20;
/// Frames that the pool of these tests has.
const FRAMES: usize = 4;

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "shelf" => own_shelf(&arguments),
        other => panic!("no role {other}"),
    }
}

/// A bus with memory for so many frames and no more.
fn pool(place: &Place) -> Bus {
    let memory = format!("memory={}", FRAMES * FRAME);
    builder(place.text(), [&memory[..]]).open().unwrap()
}

fn frame(bus: &Bus, seed: u8) -> Blob {
    let mut frame = bus.alloc_wait(FRAME, PATIENCE).unwrap();
    fill(&mut frame, seed);
    frame.freeze()
}

/// Has all frames of the pool kept by a shelf, as 0, 1, ...
fn lend_all(bus: &Bus, shelf: &ShelfProxy) {
    for id in 0..FRAMES {
        shelf.keep(id as u64, frame(bus, id as u8)).wait().unwrap();
    }
    assert_eq!(bus.alloc(FRAME).unwrap_err(), AllocError::NoMemory);
}

/// What a thread has cost so far: processor time, and how often it went to sleep.
fn cost() -> (Duration, i64) {
    // SAFETY: a zeroed rusage is valid, and the kernel fills it.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage), 0);
        usage
    };
    let span = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    (span(usage.ru_utime) + span(usage.ru_stime), usage.ru_nvcsw)
}

/// Waits until `count` threads of this process called `waiter` sleep.
fn wait_for_sleepers(count: usize) {
    let sleeps = |(name, state): &(String, String)| name == "waiter" && state.starts_with('S');
    wait_until("they sleep", || {
        let states = support::system::of_threads(std::process::id(), "State");
        states.iter().filter(|thread| sleeps(thread)).count() == count
    });
}

/// Runs it on a thread of that name.
fn waiter<R: Send + 'static>(f: impl FnOnce() -> R + Send + 'static) -> std::thread::JoinHandle<R> {
    std::thread::Builder::new().name("waiter".to_owned()).spawn(f).unwrap()
}

#[test]
fn who_waits_sleeps_until_the_deadline_or_a_reader_lets_go() {
    let place = place();
    let _viewer = shelf(&place, "viewer", &[]);
    let bus = pool(&place);
    let viewer: ShelfProxy = bus.proxy("viewer").wait().unwrap();
    for round in 0..5 {
        lend_all(&bus, &viewer);
        let span = Duration::from_millis(300);
        let ((cpu, slept), began) = (cost(), Instant::now());
        assert_eq!(bus.alloc_wait(FRAME, span).unwrap_err(), AllocError::TimedOut);
        assert!(began.elapsed() >= span);
        let (cpu, slept) = (cost().0 - cpu, cost().1 - slept);
        println!("round {round}: {cpu:?} of processor time, asleep {slept} times in {span:?}");
        assert!(slept <= 10 && cpu < span / 10, "it looks again and again");

        let waiting = {
            let bus = bus.clone();
            waiter(move || {
                let before = cost();
                let frame = bus.alloc_wait(FRAME, PATIENCE).map(|frame| frame.len());
                (frame, cost().0 - before.0, cost().1 - before.1)
            })
        };
        wait_for_sleepers(1);
        assert!(viewer.forget(round % FRAMES as u64).wait().unwrap());
        let (waited, cpu, slept) = waiting.join().unwrap();
        assert_eq!(waited, Ok(FRAME));
        assert!(slept <= 10 && cpu < span / 10, "{cpu:?} of processor time, asleep {slept} times");
        (0..FRAMES as u64).for_each(|id| _ = viewer.forget(id).wait().unwrap());
    }
}

#[test]
fn more_than_could_ever_be_had_is_refused_at_once() {
    let place = place();
    let bus = pool(&place);
    let for_ever = Duration::MAX;
    assert_eq!(bus.alloc_wait(FRAMES * FRAME + 1, for_ever).unwrap_err(), AllocError::NoMemory);
    assert_eq!(bus.alloc_wait(usize::MAX, for_ever).unwrap_err(), AllocError::NoMemory);
    let all = bus.alloc_wait(FRAMES * FRAME, for_ever).unwrap();
    assert_eq!(bus.alloc_wait(1, Duration::ZERO).unwrap_err(), AllocError::TimedOut);
    drop(all);
    assert_eq!(bus.alloc_wait(1, Duration::ZERO).unwrap().len(), 1);
}

#[test]
fn many_waiters_share_what_comes_back() {
    let place = place();
    let _viewer = shelf(&place, "viewer", &[]);
    let bus = pool(&place);
    let viewer: ShelfProxy = bus.proxy("viewer").wait().unwrap();
    lend_all(&bus, &viewer);
    let waiters: Vec<_> = (0..12)
        .map(|seed| {
            let bus = bus.clone();
            waiter(move || is_pattern(&frame(&bus, seed), FRAME, seed))
        })
        .collect();
    wait_for_sleepers(12);
    // One frame serves them all, one after the other.
    assert!(viewer.forget(2).wait().unwrap());
    assert!(waiters.into_iter().all(|waiter| waiter.join().unwrap()));
    for id in [0, 1, 3] {
        assert!(viewer.holds_pattern(id, FRAME as u64, id as u8).wait().unwrap());
    }
}

#[test]
fn a_killed_reader_wakes_who_waits_for_its_frames() {
    let place = place();
    let bus = pool(&place);
    for _ in 0..5 {
        let mut process = shelf(&place, "viewer", &[]);
        let viewer: ShelfProxy = bus.proxy("viewer").wait().unwrap();
        lend_all(&bus, &viewer);
        let waiters: Vec<_> = (0..FRAMES as u8)
            .map(|seed| {
                let bus = bus.clone();
                waiter(move || frame(&bus, seed))
            })
            .collect();
        wait_for_sleepers(FRAMES);
        process.kill();
        let frames: Vec<Blob> = waiters.into_iter().map(|waiter| waiter.join().unwrap()).collect();
        assert!(frames.iter().all(|frame| frame.len() == FRAME));
        assert_eq!(borrowers(&bus.memory()), []);
    }
}

#[test]
fn a_producer_is_paced_by_its_reader() {
    let place = place();
    let _viewer = shelf(&place, "viewer", &[]);
    let bus = pool(&place);
    let viewer: ShelfProxy = bus.proxy("viewer").wait().unwrap();
    let before = cost();
    let shown = 100_u64;
    for number in 0..shown {
        // The viewer keeps three of the four, so each frame is had when an older one was replaced.
        let seed = number as u8;
        viewer.keep(number % 3, frame(&bus, seed)).wait().unwrap();
        assert!(viewer.holds_pattern(number % 3, FRAME as u64, seed).wait().unwrap());
    }
    println!("{shown} frames: asleep {} times", cost().1 - before.1);
    let memory = bus.memory();
    assert!(memory.allocated() <= (FRAMES * FRAME) as u64);
    assert_eq!((memory.copied.count, memory.lent()), (0, 3 << 20));
}
