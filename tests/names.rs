//! Names between processes: taken once, found at once, given back, and nothing left behind.

mod support;
use support::system::*;
use support::*;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use objbus::{Bus, CallError, ConnectError, OpenError, PublishError, Untyped};

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    let bus = bus_at(&arguments[0]);
    match name.as_str() {
        "owner" => own_math(&arguments[0]),
        "starter" => {
            say("ready");
            hear();
            let published = bus.publish("math", table());
            say(match &published {
                Ok(_) => "won".to_owned(),
                Err(PublishError::AlreadyPublished { pid }) => format!("taken by {pid}"),
                Err(error) => error.to_string(),
            });
            stay();
        }
        "late owner" => {
            say("ready");
            loop {
                hear();
                let _published = bus.publish("math", table()).expect("the name is free");
                say("published");
                hear();
            }
        }
        "waiter" => wait_for_names(&bus),
        "caller" => {
            let math: Untyped = bus.proxy("math").wait().unwrap();
            assert_eq!(pow(&math).wait(), Ok(8.0));
            say("called");
            stay();
        }
        other => panic!("no role {other}"),
    }
}

#[test]
fn row_18_a_taken_name_is_refused_within_10_ms_and_its_owner_undisturbed() {
    let place = place();
    let owner = math_owner(&place);
    let bus = place.bus();
    let math: Untyped = bus.proxy("math").wait().unwrap();
    expect_quick("AlreadyPublished and a call", 10, Duration::from_millis(10), || {
        let began = Instant::now();
        match bus.publish("math", table()) {
            Err(PublishError::AlreadyPublished { pid }) => assert_eq!(pid, owner.pid()),
            other => panic!("{other:?}"),
        }
        assert_eq!(math.call::<_, u32>("pid", &()).wait(), Ok(owner.pid()));
        began.elapsed()
    });
    assert_eq!(bus.names(), [("math".to_owned(), owner.pid())]);
    assert_eq!(place.files(), ["math"]);
}

#[test]
fn row_19_of_a_hundred_starters_over_a_stale_socket_one_wins() {
    let place = place();
    let mut old = math_owner(&place);
    old.kill();
    assert_eq!(place.files(), ["math"], "the dead owner's socket");
    let mut starters: Vec<_> = (0..100).map(|_| start("starter", &[place.text()])).collect();
    starters.iter().for_each(|starter| starter.expect("ready"));
    let bus = place.bus();
    let lazy: Untyped = bus.proxy("math").call_timeout(PATIENCE).lazy().unwrap();
    // While they fight for the name, a caller sees nobody or the winner, never a dead socket.
    let pids: Vec<_> = starters.iter().map(Child::pid).collect();
    let seen = std::thread::spawn(move || {
        loop {
            match lazy.call::<_, u32>("pid", &()).wait() {
                Ok(pid) if pids.contains(&pid) => return pid,
                Err(CallError::NotFound { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    });
    starters.iter_mut().for_each(|starter| starter.tell("go"));
    let said: Vec<_> = starters.iter().map(Child::hear).collect();
    let winner = said.iter().position(|line| line == "won").expect("one wins");
    let taken = format!("taken by {}", starters[winner].pid());
    assert_eq!(said.iter().filter(|line| **line == taken).count(), 99, "{said:?}");
    assert_eq!(seen.join().unwrap(), starters[winner].pid());
    assert_eq!(place.files(), ["math"]);
}

#[test]
fn row_19_a_kill_of_owner_and_caller_leaves_one_dead_socket_at_most() {
    let place = place();
    for next in ["publisher", "lister"] {
        let mut owner = math_owner(&place);
        let mut caller = start("caller", &[place.text()]);
        caller.expect("called");
        owner.kill();
        caller.kill();
        assert_eq!(place.files(), ["math"]);
        let bus = place.bus();
        if next == "lister" {
            assert_eq!(bus.names(), []);
        } else {
            drop(bus.publish("math", table()).unwrap());
        }
        assert_eq!(place.files(), [""; 0], "after a {next}");
    }
}

/// For each line heard: waits for the name, from now on.
fn wait_for_names(bus: &Bus) {
    loop {
        let kind = hear();
        say("waiting");
        let connect = bus.proxy::<Untyped>("math");
        let found =
            if kind == "await" { block_on(connect.patience(PATIENCE)) } else { connect.wait_for(PATIENCE) };
        let at = Instant::now();
        let math = found.expect("the name appears");
        assert_eq!(pow(&math).wait(), Ok(8.0));
        drop(math);
        // CLOCK_MONOTONIC is the same for both processes.
        say(format!("{}", now_ns() - at.elapsed().as_nanos() as u64));
    }
}

fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills `now`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A process that waits for a name has found it soon after it was published.
fn expect_found(kind: &str, disabled: &str, soon: Duration) {
    let place = place();
    let bus = place.bus();
    let mut waiter = start_with("waiter", &[place.text()], |command| {
        command.env("OBJBUS_TEST_DISABLE", disabled);
    });
    expect_quick(kind, 8, soon, || {
        waiter.tell(kind);
        waiter.expect("waiting");
        // It is at its watch, or between two looks.
        wait_for_rest(waiter.pid());
        let published = bus.publish("math", table()).unwrap();
        let at = now_ns();
        let found: u64 = waiter.hear().parse().unwrap();
        drop(published);
        Duration::from_nanos(found.saturating_sub(at))
    });
}

#[test]
fn a_name_that_appears_is_found_within_5_ms() {
    for kind in ["wait", "await"] {
        expect_found(kind, "", Duration::from_millis(5));
    }
}

#[test]
fn a_name_that_appears_is_found_by_looking_where_nobody_tells() {
    for kind in ["wait", "await"] {
        expect_found(kind, "inotify", Duration::from_millis(150));
    }
}

#[test]
fn a_name_that_does_not_appear_is_not_found_and_not_before_the_patience_ends() {
    let place = place();
    for bus in [place.bus(), Bus::in_memory()] {
        let began = Instant::now();
        let patience = Duration::from_millis(40);
        let at_once = bus.proxy::<Untyped>("math").wait().unwrap_err();
        assert!(matches!(at_once, ConnectError::NotFound { waited: Duration::ZERO, .. }), "{at_once:?}");
        assert!(at_once.to_string().contains("wait for it"), "{at_once}");
        let connect = || bus.proxy::<Untyped>("math");
        let given_up = [connect().wait_for(patience), block_on(connect().patience(patience))];
        for error in given_up.map(Result::unwrap_err) {
            assert!(
                matches!(error, ConnectError::NotFound { waited, .. } if waited >= patience),
                "{error:?}"
            );
            // Who has waited is not told to wait.
            assert!(!error.to_string().contains("wait for"), "{error}");
        }
        assert!(began.elapsed() >= Duration::from_millis(80));
    }
}

#[test]
fn a_withdrawn_name_is_gone_and_a_running_call_is_answered() {
    let place = place();
    let bus = place.bus();
    let published = bus.publish("math", table()).unwrap();
    let _other = bus.publish("other", table()).unwrap();
    let math: Untyped = bus.proxy("math").wait().unwrap();
    let slow = math.call::<_, ()>("nap", &(100_u64,));
    let waiting = std::thread::spawn(move || slow.wait());
    wait_until("the call is out", || objbus::Proxy::handle(&math).in_flight() == 1);
    let us = std::process::id();
    assert_eq!(bus.names(), [("math".to_owned(), us), ("other".to_owned(), us)]);
    let shutdown = published.shutdown();
    assert_eq!(bus.names(), [("other".to_owned(), us)]);
    assert_eq!(place.files(), ["other"]);
    let gone = pow(&math).wait();
    assert!(matches!(gone, Err(CallError::NotFound { .. } | CallError::Unpublished { .. })), "{gone:?}");
    let ended = waiting.join().unwrap();
    assert!(matches!(ended, Ok(()) | Err(CallError::Unpublished { .. })), "{ended:?}");
    assert!(shutdown.wait(PATIENCE));
    let again = bus.publish("math", table()).unwrap();
    assert_eq!(pow(&math).wait(), Ok(8.0));
    block_on(again.shutdown());
}

#[test]
fn two_buses_of_one_process_are_two_callers() {
    let place = place();
    let (first, second) = (place.bus(), place.bus());
    let published = first.publish("math", table()).unwrap();
    let taken = second.publish("math", table());
    assert!(matches!(taken, Err(PublishError::AlreadyPublished { pid }) if pid == std::process::id()));
    let proxies: Vec<Untyped> =
        [&first, &second, &first].map(|bus| bus.proxy("math").wait().unwrap()).into_iter().collect();
    for math in &proxies {
        assert_eq!(pow(math).wait(), Ok(8.0));
    }
    assert_eq!(published.callers(), 2);
    drop(proxies);
    wait_until("their lanes end", || published.callers() == 0);
}

#[test]
fn unsafe_directories_are_refused_with_a_sentence() {
    let place = place();
    std::fs::create_dir(place.path()).unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let link = place.path().join("link");
    std::os::unix::fs::symlink(place.path(), &link).unwrap();
    let refusals = [
        (Bus::builder().directory(place.path()), "chmod 700"),
        (Bus::builder().directory(place.path()).admit(12_345), "chmod 711"),
        (Bus::builder().directory(&link), "symbolic link"),
        (Bus::builder().admit(12_345), "needs a directory"),
    ];
    for (builder, says) in refusals {
        match builder.open() {
            Err(error @ OpenError::RuntimeDirUnsafe { .. }) => {
                assert!(error.to_string().contains(says), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
}
