//! Rows 16 and 22: many callers that come and go, and descriptors that run out.

mod support;
use support::system::*;
use support::*;

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use objbus::{Bus, ConnectError, Limits, Untyped};

const SHORT_LIVED: u32 = 10_000;
const PROCESSES: u32 = 4;
const THREADS: u32 = 4;

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "owner" => owner(&arguments[0]),
        "crowd" => crowd(&arguments[0], arguments[1].parse().unwrap()),
        "one call" => assert_eq!(meet(&arguments[0]), Ok(())),
        "starved caller" => starved_caller(&arguments[0]),
        other => panic!("no role {other}"),
    }
}

/// Publishes, and starves itself of descriptors when told to.
fn owner(directory: &str) {
    let bus = bus_at(directory);
    let published = bus.publish("math", table()).unwrap();
    say("ready");
    let mut hoard = Vec::new();
    let mut limit = 0;
    loop {
        match hear().as_str() {
            "starve" => {
                limit = set_fd_limit(fds_end().max(64));
                hoard = hoard_fds(0);
                say("starved");
            }
            "feed" => {
                hoard.clear();
                set_fd_limit(limit);
                say("fed");
            }
            _ => say(published.callers().to_string()),
        }
    }
}

/// Opens the bus, connects, calls, and drops all of it.
fn meet(directory: &str) -> Result<(), ConnectError> {
    let math: Untyped = bus_at(directory).proxy("math").wait()?;
    assert_eq!(pow(&math).wait(), Ok(8.0));
    Ok(())
}

/// A process of many short-lived callers.
fn crowd(directory: &str, callers: u32) {
    let (served, refused) = (AtomicU32::new(0), AtomicU32::new(0));
    let left = AtomicU32::new(callers);
    let caller = || {
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            match meet(directory) {
                Ok(()) => served.fetch_add(1, Ordering::Relaxed),
                Err(ConnectError::TooManyCallers) => refused.fetch_add(1, Ordering::Relaxed),
                Err(error) => panic!("{error}"),
            };
        }
    };
    std::thread::scope(|scope| (0..THREADS).for_each(|_| drop(scope.spawn(caller))));
    say(format!("{} {}", served.into_inner(), refused.into_inner()));
    stay();
}

fn crowds(place: &Place, callers: u32) -> (u32, u32) {
    let each = (callers / PROCESSES).to_string();
    let crowds: Vec<_> = (0..PROCESSES).map(|_| start("crowd", &[place.text(), &each])).collect();
    let counts = crowds.iter().map(|crowd| {
        let line = crowd.hear();
        let (served, refused) = line.split_once(' ').unwrap();
        (served.parse::<u32>().unwrap(), refused.parse::<u32>().unwrap())
    });
    counts.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
}

#[test]
fn row_16_ten_thousand_short_lived_callers_leave_nothing_behind() {
    let place = place();
    let mut owner = math_owner(&place);
    // The first ones make what stays: workers, the arena.
    crowds(&place, 100);
    let wait_for_none = |owner: &mut Child| {
        wait_until("all callers are gone", || {
            owner.tell("callers?");
            owner.hear() == "0"
        });
    };
    wait_for_none(&mut owner);
    let before = held_by(owner.pid());
    let began = Instant::now();
    let (served, refused) = crowds(&place, SHORT_LIVED);
    let rate = f64::from(served) / began.elapsed().as_secs_f64();
    println!("{served} short-lived callers served, {refused} refused, {rate:.0} a second");
    assert_eq!(served + refused, SHORT_LIVED);
    let processes: Vec<_> = (0..50).map(|_| start("one call", &[place.text()])).collect();
    processes.into_iter().for_each(|process| assert!(process.finish().success()));
    wait_for_none(&mut owner);
    wait_for_release(owner.pid(), before);
    assert_eq!(place.files(), ["math"]);
}

#[test]
fn row_16_callers_beyond_the_limit_are_told_so() {
    let place = place();
    let owners = place.bus();
    let limits = Limits { lanes: 3, ..Limits::default() };
    let published = owners.publication("math", table()).limits(limits).publish().unwrap();
    let callers: Vec<Bus> = (0..4).map(|_| place.bus()).collect();
    let mut proxies: Vec<Untyped> =
        callers[..3].iter().map(|bus| bus.proxy("math").wait().unwrap()).collect();
    let refused = callers[3].proxy::<Untyped>("math").wait();
    assert!(matches!(refused, Err(ConnectError::TooManyCallers)), "{refused:?}");
    proxies.pop();
    wait_until("one leaves", || published.callers() == 2);
    proxies.push(callers[3].proxy("math").wait().unwrap());
    for math in &proxies {
        assert_eq!(pow(math).wait(), Ok(8.0));
    }
}

#[test]
fn row_16_the_limit_holds_for_callers_that_come_at_once() {
    let place = place();
    let limits = Limits { lanes: 3, ..Limits::default() };
    let published = place.bus().publication("math", table()).limits(limits).publish().unwrap();
    let callers: Vec<Bus> = (0..32).map(|_| place.bus()).collect();
    let start = Barrier::new(callers.len());
    let connect = |bus: &Bus| {
        start.wait();
        bus.proxy::<Untyped>("math").wait()
    };
    let met: Vec<_> = std::thread::scope(|scope| {
        let callers: Vec<_> = callers.iter().map(|bus| scope.spawn(|| connect(bus))).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    let refused = |met: &Result<Untyped, ConnectError>| matches!(met, Err(ConnectError::TooManyCallers));
    assert_eq!(met.iter().filter(|met| refused(met)).count(), callers.len() - 3, "{met:?}");
    assert_eq!(published.callers(), 3);
}

#[test]
fn row_22_a_starved_owner_recovers_within_100_ms_and_burns_nothing() {
    let place = place();
    let mut owner = math_owner(&place);
    let bus = place.bus();
    let math: Untyped = bus.proxy("math").wait().unwrap();
    assert_eq!(pow(&math).wait(), Ok(8.0));
    // Its watcher has opened what the meeting takes, and closed what it needs no more.
    wait_for_rest(owner.pid());
    let before = held_by(owner.pid());
    expect_quick("served again", 3, Duration::from_millis(100), || {
        // What it still has of the last round's caller it would close after it was starved, and so not be.
        wait_for_release(owner.pid(), before);
        owner.tell("starve");
        owner.expect("starved");
        let (cpu, began) = (cpu_time(owner.pid()), Instant::now());
        // Callers knock for a while; those that are connected do not notice.
        let mut refused = 0;
        while began.elapsed() < Duration::from_millis(700) {
            match place.bus().proxy::<Untyped>("math").wait() {
                Err(ConnectError::NoFds) => refused += 1,
                Err(ConnectError::HandshakeTimeout { .. }) => {}
                other => panic!("{other:?}"),
            }
            assert_eq!(pow(&math).wait(), Ok(8.0));
        }
        let (burnt, span) = (cpu_time(owner.pid()) - cpu, began.elapsed());
        println!("starved for {span:?}: {burnt:?} of processor time, {refused} callers refused");
        assert!(refused > 0, "nobody was told why");
        assert!(burnt < span / 4, "{burnt:?} of {span:?} burnt");
        owner.tell("feed");
        owner.expect("fed");
        let fed = Instant::now();
        while place.bus().proxy::<Untyped>("math").wait().is_err() {
            assert!(fed.elapsed() < PATIENCE, "the owner does not recover");
        }
        fed.elapsed()
    });
}

/// Connects with 0, 1, 2 .. descriptors left, until that works.
fn starved_caller(directory: &str) {
    let bus = bus_at(directory);
    let math: Untyped = bus.proxy("math").wait().unwrap();
    let other = bus_at(directory);
    let limit = set_fd_limit(fds_end().max(64));
    let before = held_by(std::process::id());
    let mut spare = 0;
    let needed = loop {
        let hoard = hoard_fds(spare);
        let connected = other.proxy::<Untyped>("math").wait();
        assert_eq!(pow(&math).wait(), Ok(8.0));
        drop(hoard);
        match connected {
            Ok(other) => {
                assert_eq!(pow(&other).wait(), Ok(8.0));
                break spare;
            }
            Err(ConnectError::NoFds) => {}
            Err(error) => panic!("with {spare} descriptors left: {error:?}"),
        }
        wait_for_release(std::process::id(), before);
        spare += 1;
    };
    set_fd_limit(limit);
    say(format!("connects with {needed} descriptors"));
    stay();
}

#[test]
fn row_22_a_starved_caller_is_told_and_recovers() {
    let place = place();
    let bus = place.bus();
    let published = bus.publish("math", table()).unwrap();
    let caller = start("starved caller", &[place.text()]);
    let said = caller.hear();
    println!("the caller {said}");
    assert!(said.starts_with("connects with "), "{said}");
    assert!(caller.finish().success());
    wait_until("its lanes end", || published.callers() == 0);
}
