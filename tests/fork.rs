//! Row 25: forks in callers and in owners. The child is told, the parent goes on, and a child that holds descriptors open
//! keeps nobody alive.

mod support;
use support::system::*;
use support::*;

use std::time::Duration;

use objbus::{Absent, Bus, CallError, ConnectError, Executed, PublishError, Published, Untyped};

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    let bus = bus_at(&arguments[0]);
    match name.as_str() {
        "owner" => own_math(&arguments[0]),
        "forking caller" => forking_caller(bus, &arguments[0]),
        "forking owner" => forking_owner(bus, &arguments[0]),
        "caller with an orphan" => {
            let math: Untyped = bus.proxy("math").wait().unwrap();
            assert_eq!(pow(&math).wait(), Ok(8.0));
            leave_an_orphan(&arguments[1]);
        }
        "owner with an orphan" => {
            let _published = bus.publish("math", table()).unwrap();
            leave_an_orphan(&arguments[1]);
        }
        other => panic!("no role {other}"),
    }
}

/// Leaves a child behind that holds every descriptor: made by `fork`, or by the bare system call.
fn leave_an_orphan(kind: &str) {
    let orphan = match kind {
        "fork" => fork(|| pause_for_ever()),
        _ => raw_clone(|| pause_for_ever()),
    };
    say(orphan.to_string());
    stay();
}

/// Runs `checks` in a child and says which failed; 0 if none did.
fn failures(checks: &[(&str, &dyn Fn() -> bool)]) -> i32 {
    let failed = checks.iter().filter(|(_, check)| !check());
    let failed: Vec<_> = failed.map(|(what, _)| *what).collect();
    failed.iter().for_each(|what| say(format!("in the child: {what}")));
    failed.len() as i32
}

fn forking_caller(bus: Bus, directory: &str) {
    let math: Untyped = bus.proxy("math").wait().unwrap();
    let patient: Untyped = bus.proxy("math").absent(Absent::Wait).wait().unwrap();
    assert_eq!(pow(&math).wait(), Ok(8.0));
    let made_before = std::cell::Cell::new(Some(pow(&math)));
    let started_before = std::cell::Cell::new(Some(math.call::<_, ()>("nap", &(300_u64,)).started()));
    let mut sent_before = Box::pin(math.call::<_, ()>("nap", &(300_u64,)));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(sent_before.as_mut().poll(&mut cx).is_pending());
    let held = std::cell::Cell::new(Some((math.clone(), patient.clone(), bus.clone())));
    let forked = Err(CallError::ForkedHandle { executed: Executed::No });
    let sent = std::cell::RefCell::new(sent_before);
    let child = || {
        failures(&[
            ("wait", &|| pow(&math).wait() == forked),
            ("await", &|| block_on(pow(&math)) == forked),
            ("wait, patiently", &|| pow(&patient).timeout(Duration::from_secs(5)).wait() == forked),
            ("await, patiently", &|| block_on(pow(&patient).timeout(Duration::from_secs(5))) == forked),
            ("try", &|| pow(&math).try_wait() == forked),
            ("send", &|| pow(&math).send() == Err(CallError::ForkedHandle { executed: Executed::No })),
            ("made before", &|| made_before.take().unwrap().wait() == forked),
            ("started before", &|| {
                started_before.take().unwrap().wait()
                    == Err(CallError::ForkedHandle { executed: Executed::Unknown })
            }),
            ("sent before", &|| {
                let ended = block_on(sent.borrow_mut().as_mut());
                matches!(ended, Err(CallError::ForkedHandle { executed: Executed::Unknown }))
            }),
            ("connect", &|| {
                let other = bus.proxy::<Untyped>("other");
                matches!(other.wait(), Err(ConnectError::ForkedHandle))
            }),
            ("connect, patiently", &|| {
                let other = bus.proxy::<Untyped>("other").wait_for(Duration::from_secs(5));
                matches!(other, Err(ConnectError::ForkedHandle))
            }),
            ("connect, awaited", &|| {
                let other = bus.proxy::<Untyped>("other").patience(Duration::from_secs(5));
                matches!(block_on(other), Err(ConnectError::ForkedHandle))
            }),
            ("publish", &|| matches!(bus.publish("mine", table()), Err(PublishError::ForkedHandle))),
            ("look", &|| !objbus::Proxy::handle(&math).is_connected() && !format!("{math:?}").is_empty()),
            ("close", &|| bus.close(Duration::from_secs(5))),
            ("names", &|| bus.names().is_empty()),
            ("drop", &|| held.take().is_some()),
            ("a bus of its own", &|| {
                let own = bus_at(directory);
                let math: Untyped = own.proxy("math").wait().unwrap();
                let _published = own.publish("childs", table()).unwrap();
                let childs: Untyped = own.proxy("childs").wait().unwrap();
                pow(&math).wait() == Ok(8.0) && pow(&childs).wait() == Ok(8.0)
            }),
        ])
    };
    let codes: Vec<_> = (0..3).map(|_| exit_code(fork(child))).collect();
    say(format!("children {codes:?}"));
    assert_eq!(pow(&math).wait(), Ok(8.0));
    assert_eq!(pow(&patient).wait(), Ok(8.0));
    assert_eq!(made_before.take().unwrap().wait(), Ok(8.0));
    assert_eq!(started_before.take().unwrap().wait(), Ok(()));
    let slow = sent.into_inner();
    assert_eq!(block_on(slow), Ok(()));
    drop((math, patient, held.take()));
    say("the parent goes on");
    stay();
}

#[test]
fn row_25_a_forked_callers_child_is_told_and_the_parent_goes_on() {
    let place = place();
    let _owner = math_owner(&place);
    let caller = start("forking caller", &[place.text()]);
    caller.expect("children [0, 0, 0]");
    caller.expect("the parent goes on");
    assert!(caller.finish().success());
    assert_eq!(place.files(), ["math"]);
}

fn forking_owner(bus: Bus, directory: &str) {
    let published = bus.publish("math", table()).unwrap();
    say("ready");
    hear();
    let published = std::cell::Cell::new(Some(published));
    let held = std::cell::Cell::new(Some(bus));
    let child = || {
        failures(&[
            ("drop", &|| {
                let guard: Published = published.take().unwrap();
                let _ = (guard.callers(), guard.violations(), format!("{guard:?}"));
                drop(guard);
                drop(held.take());
                true
            }),
            ("a bus of its own", &|| {
                let own = bus_at(directory);
                let taken = own.publish("math", table());
                let _published = own.publish("childs", table()).unwrap();
                let math: Untyped = own.proxy("math").wait().unwrap();
                matches!(taken, Err(PublishError::AlreadyPublished { .. }))
                    && math.call::<_, u32>("pid", &()).wait() != Ok(std::process::id())
            }),
        ])
    };
    let codes: Vec<_> = (0..3).map(|_| exit_code(fork(child))).collect();
    say(format!("children {codes:?}"));
    stay();
}

#[test]
fn row_25_a_forked_owners_child_leaves_the_object_alone() {
    let place = place();
    let mut owner = start("forking owner", &[place.text()]);
    owner.expect("ready");
    let math: Untyped = place.bus().proxy("math").wait().unwrap();
    assert_eq!(math.call::<_, u32>("pid", &()).wait(), Ok(owner.pid()));
    owner.tell("fork");
    owner.expect("children [0, 0, 0]");
    assert_eq!(math.call::<_, u32>("pid", &()).wait(), Ok(owner.pid()));
    assert_eq!(place.files(), ["math"]);
}

#[test]
fn row_25_a_dead_callers_child_keeps_nothing_alive() {
    for kind in ["fork", "clone"] {
        let place = place();
        let bus = place.bus();
        let published = bus.publish("math", table()).unwrap();
        let mut caller = start("caller with an orphan", &[place.text(), kind]);
        let _orphan = Orphan(caller.hear().parse().unwrap());
        assert_eq!(published.callers(), 1);
        caller.kill();
        wait_until(&format!("the lane of a {kind}ing caller ends"), || published.callers() == 0);
    }
}

#[test]
fn row_25_a_dead_owners_child_holds_neither_calls_nor_the_name() {
    for kind in ["fork", "clone"] {
        let place = place();
        let bus = place.bus();
        let mut owner = start("owner with an orphan", &[place.text(), kind]);
        let _orphan = Orphan(owner.hear().parse().unwrap());
        let math: Untyped = bus.proxy("math").wait().unwrap();
        let call = math.call::<_, ()>("nap", &(20_000_u64,));
        let waiting = std::thread::spawn(move || call.wait());
        wait_until("the call is out", || objbus::Proxy::handle(&math).in_flight() == 1);
        owner.kill();
        let ended = waiting.join().unwrap();
        assert!(matches!(ended, Err(CallError::OwnerDied { .. })), "{kind}: {ended:?}");
        let absent = pow(&math).wait();
        assert!(matches!(absent, Err(CallError::NotFound { .. })), "{kind}: {absent:?}");
        assert!(bus.names().is_empty());
        let _published = bus.publish("math", table()).expect("the name is free");
        assert_eq!(math.call::<_, u32>("pid", &()).wait(), Ok(std::process::id()));
    }
}
