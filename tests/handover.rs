//! Handing a name over while it is called: no call fails, the old owner drains, and a successor that dies on the way
//! changes nothing.

mod support;
use support::system::*;
use support::*;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use objbus::{Access, Blob, Bus, ConnectError, Limits, PublishError, Published, Untyped};

const CALLERS: usize = 4;
const HANDOVERS: usize = 20;

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "owner" => owner(&bus_at(&arguments[0])),
        "undisturbed" => {
            let published = bus_at(&arguments[0]).publish("math", table()).unwrap();
            say("ready");
            loop {
                hear();
                say(published.is_withdrawn().to_string());
            }
        }
        "half successor" => half_successor(&arguments[0]),
        other => panic!("no role {other}"),
    }
}

/// Takes the name over, and ends when the next one has.
fn owner(bus: &Bus) {
    let published =
        bus.publication("math", table()).replace().publish().expect("the present owner hands over");
    say("published");
    wait_until("the name is handed over", || published.is_withdrawn());
    say(format!("drained {}", published.shutdown().wait(PATIENCE)));
}

/// Calls from [`CALLERS`] threads as fast as they can while `during` runs; how many succeeded, and every failure.
fn under_load(bus: &Bus, during: impl FnOnce(&AtomicU64)) -> (u64, Vec<String>) {
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let call = || {
        let math: Untyped = bus.proxy("math").wait().expect("somebody publishes the name");
        let mut failures = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            match math.call::<_, f64>("pow", &(3.0, 2.0)).wait() {
                Ok(nine) => assert_eq!(nine, 9.0),
                Err(error) => failures.push(error.to_string()),
            }
            // One that lends: it may meet the owner's end before it is sent.
            match math.call::<_, u64>("size", &(Blob::from([7; 5000].as_slice()),)).wait() {
                Ok(size) => assert_eq!(size, 5000),
                Err(error) => failures.push(error.to_string()),
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
        failures
    };
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(call)).collect();
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| during(&done)));
        stop.store(true, Ordering::Relaxed);
        let failures = callers.into_iter().flat_map(|caller| caller.join().expect("a caller")).collect();
        ended.expect("the hand-overs");
        (done.load(Ordering::Relaxed), failures)
    })
}

/// Lets some calls pass, so that each owner serves.
fn let_calls_pass(done: &AtomicU64) {
    let before = done.load(Ordering::Relaxed);
    wait_until("calls pass", || done.load(Ordering::Relaxed) > before + 200);
}

#[test]
fn hand_over_between_processes_loses_no_call() {
    let place = place();
    let mut present = start("owner", &[place.text()]);
    present.expect("published");
    let (calls, failures) = under_load(&place.bus(), |done| {
        for _ in 0..HANDOVERS {
            let_calls_pass(done);
            let next = start("owner", &[place.text()]);
            next.expect("published");
            let old = std::mem::replace(&mut present, next);
            old.expect("drained true");
            assert!(old.finish().success());
        }
        let_calls_pass(done);
    });
    println!("{calls} calls over {HANDOVERS} hand-overs between processes");
    assert_eq!(failures, [""; 0], "of {calls} calls");
    assert_eq!(place.files(), ["math"]);
}

/// Hands over again and again within this process.
fn hand_over_within(bus: &Bus) {
    let mut present = bus.publish("math", table()).unwrap();
    let (calls, failures) = under_load(bus, |done| {
        for _ in 0..HANDOVERS {
            let_calls_pass(done);
            let next = bus.publication("math", table()).replace().publish().unwrap();
            let old = std::mem::replace(&mut present, next);
            wait_until("the old owner is told", || old.is_withdrawn());
            assert!(old.shutdown().wait(PATIENCE), "the old owner does not drain");
        }
        let_calls_pass(done);
    });
    println!("{calls} calls over {HANDOVERS} hand-overs within a process");
    assert_eq!(failures, [""; 0], "of {calls} calls");
    assert_eq!(bus.names(), [("math".to_owned(), std::process::id())]);
}

#[test]
fn hand_over_within_one_process_loses_no_call() {
    let place = place();
    hand_over_within(&place.bus());
}

#[test]
fn hand_over_in_memory_loses_no_call() {
    hand_over_within(&Bus::in_memory());
}

#[test]
fn a_call_being_run_is_answered_by_the_old_owner() {
    let place = place();
    let bus = place.bus();
    let old = bus.publish("math", table()).unwrap();
    let math: Untyped = bus.proxy("math").wait().unwrap();
    let slow = math.call::<_, ()>("nap", &(200_u64,));
    let waiting = std::thread::spawn(move || slow.wait());
    wait_until("the call is out", || objbus::Proxy::handle(&math).in_flight() == 1);
    let new = bus.publication("math", table()).replace().publish().unwrap();
    wait_until("the old owner is told", || old.is_withdrawn());
    assert_eq!(pow(&math).wait(), Ok(8.0));
    assert_eq!(waiting.join().unwrap(), Ok(()));
    assert!(old.shutdown().wait(PATIENCE));
    assert!(!new.is_withdrawn());
}

#[test]
fn replacing_nobody_is_publishing() {
    let place = place();
    for bus in [place.bus(), Bus::in_memory()] {
        let published = bus.publication("math", table()).replace().publish().unwrap();
        let math: Untyped = bus.proxy("math").wait().unwrap();
        assert_eq!(pow(&math).wait(), Ok(8.0));
        assert!(!published.is_withdrawn());
    }
}

#[test]
fn of_many_that_publish_in_memory_at_once_one_wins() {
    for _ in 0..200 {
        let bus = Bus::in_memory();
        let publish = || bus.publish("math", table());
        let results: Vec<Result<Published, PublishError>> = std::thread::scope(|scope| {
            let starters: Vec<_> = (0..4).map(|_| scope.spawn(publish)).collect();
            starters.into_iter().map(|starter| starter.join().unwrap()).collect()
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    }
}

/// A successor calls nothing: what holds for callers must not keep a new build from taking the name over.
#[test]
fn rules_for_callers_do_not_keep_a_successor_out() {
    let place = place();
    let bus = place.bus();
    let full = Limits { lanes: 0, ..Limits::default() };
    let closed = || bus.publication("math", table()).access(Access::only()).limits(full.clone()).replace();
    let first = closed().publish().unwrap();
    assert!(matches!(bus.proxy::<Untyped>("math").wait(), Err(ConnectError::PermissionDenied)));
    let second = closed().publish().unwrap();
    wait_until("the old owner is told", || first.is_withdrawn());
    let third = bus.publication("math", table()).replace().publish().unwrap();
    wait_until("the old owner is told", || second.is_withdrawn());
    let math: Untyped = bus.proxy("math").wait().unwrap();
    assert_eq!(math.call::<_, f64>("pow", &(2.0, 2.0)).wait(), Ok(4.0));
    assert!(!third.is_withdrawn());
}

#[test]
fn a_stopped_owner_is_not_succeeded_and_the_sentence_says_why() {
    let place = place();
    let mut owner = start("undisturbed", &[place.text()]);
    owner.expect("ready");
    owner.stop();
    let refused = place.bus().publication("math", table()).replace().publish().map(drop);
    owner.signal(libc::SIGCONT);
    let sentence = refused.expect_err("nobody granted it").to_string();
    assert!(sentence.contains("did not answer: it may be stopped"), "{sentence}");
    owner.tell("are you replaced?");
    owner.expect("false");
}

/// Asks for the name as a successor does, and goes no further than the permission.
fn half_successor(directory: &str) {
    let socket = connect_raw(&Path::new(directory).join("math"));
    let replace = [b"objb".as_slice(), &1_u32.to_le_bytes(), &[3]].concat();
    let granted = [b"objb".as_slice(), &1_u32.to_le_bytes(), &[4]].concat();
    let mut answer = [0_u8; 64];
    // SAFETY: both buffers outlive the calls that use them, with their lengths.
    let got = unsafe {
        let sent = libc::send(socket.as_raw_fd(), replace.as_ptr().cast(), replace.len(), 0);
        assert_eq!(sent, replace.len() as isize);
        libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0)
    };
    assert_eq!(answer[..got as usize], granted);
    say("granted");
    stay();
}

fn connect_raw(path: &Path) -> OwnedFd {
    let mut address = libc::sockaddr_un { sun_family: libc::AF_UNIX as u16, sun_path: [0; 108] };
    let bytes = path.as_os_str().as_bytes();
    assert!(bytes.len() < address.sun_path.len());
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    // SAFETY: the address is whole and outlives the call; the descriptor is new and owned by nobody else.
    unsafe {
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0);
        let size = size_of::<libc::sockaddr_un>() as u32;
        assert_eq!(libc::connect(fd, (&raw const address).cast(), size), 0, "connecting to {path:?}");
        OwnedFd::from_raw_fd(fd)
    }
}

#[test]
fn a_successor_that_dies_before_it_takes_the_name_changes_nothing() {
    let place = place();
    let bus = place.bus();
    let mut owner = start("undisturbed", &[place.text()]);
    owner.expect("ready");
    let math: Untyped = bus.proxy("math").wait().unwrap();
    assert_eq!(math.call::<_, u32>("pid", &()).wait(), Ok(owner.pid()));
    let before = held_by(owner.pid());
    for _ in 0..3 {
        let mut successor = start("half successor", &[place.text()]);
        successor.expect("granted");
        successor.kill();
        wait_for_release(owner.pid(), before);
        owner.tell("are you replaced?");
        owner.expect("false");
        assert_eq!(math.call::<_, u32>("pid", &()).wait(), Ok(owner.pid()));
        assert_eq!(bus.names(), [("math".to_owned(), owner.pid())]);
    }
    let others = place.bus();
    let other: Untyped = others.proxy("math").wait_for(Duration::from_secs(5)).unwrap();
    assert_eq!(pow(&other).wait(), Ok(8.0));
}
