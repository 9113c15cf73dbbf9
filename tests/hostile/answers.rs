//! Answers that no honest owner gives, to an honest caller: faults 30, 35 and 43.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use objbus::{CallError, ConnectError, Executed, Untyped};

use crate::owner::*;
use crate::raw::*;
use crate::support::*;

type Called = Result<u32, CallError>;

/// An honest caller and its hostile owner.
fn meet() -> (Place, Untyped, Owner) {
    let place = place();
    let bus = place.bus();
    let listener = listen(&place, "math");
    let connecting = std::thread::spawn(move || bus.proxy::<Untyped>("math").wait());
    let owner = Owner::meet(&listener);
    let math = connecting.join().unwrap().expect("the welcome was honest");
    (place, math, owner)
}

fn call(math: &Untyped) -> std::thread::JoinHandle<Called> {
    let call = math.call::<_, u32>("add", &(1_u32, 2_u32));
    std::thread::spawn(move || call.wait())
}

/// What the caller makes of one answer.
fn answered(spoil: impl FnOnce(&Owner, &Taken)) -> (Called, bool) {
    let (_place, math, mut owner) = meet();
    let calling = call(&math);
    let taken = owner.take();
    assert_eq!(taken.body, [1, 2]);
    spoil(&owner, &taken);
    let called = calling.join().unwrap();
    let lives = math.call::<_, u32>("add", &(1_u32, 2_u32)).timeout(Duration::ZERO).wait()
        != Err(CallError::NotFound { name: "math".to_owned(), executed: Executed::No });
    (called, lives && !has_ended(&owner.socket))
}

#[test]
fn fault_30_an_honest_answer_by_hand_is_understood() {
    let (called, lives) = answered(|owner, taken| owner.answer_honestly(taken, &[3]));
    assert_eq!((called, lives), (Ok(3), true));
}

/// The end of a socket alone is no death: a process that lives may still run what it has not begun.
#[test]
fn fault_43_no_is_not_said_where_a_living_owner_hangs_up() {
    let (_place, math, mut owner) = meet();
    let calling = call(&math);
    owner.take();
    drop(owner.socket);
    assert_eq!(calling.join().unwrap(), Err(CallError::Disconnected { executed: Executed::Unknown }));
}

#[test]
fn fault_30_counts_that_jump_end_the_lane() {
    for jump in [1_u32, 2, 1000, 0x8000_0000, u32::MAX - 1] {
        let (called, lives) =
            answered(|owner, taken| owner.answer(taken.slot, taken.wanted.wrapping_add(jump), 1, 1, &[3]));
        let error = called.expect_err("nothing was answered");
        assert!(matches!(error, CallError::ProtocolViolation { .. }), "{jump}: {error:?}");
        assert!(!lives);
    }
}

#[test]
fn fault_30_impossible_statuses_and_lengths_end_the_lane() {
    let impossible = [
        ("status 0", 0_u32, 1_u32),
        ("status 5", 5, 1),
        ("status 255", 0xff, 1),
        ("a length beyond the slot", 1, 241),
        ("a length beyond all", 1, u32::MAX),
        ("a spill that says nothing", 1 | 1 << 8, 5),
    ];
    for (what, meta, len) in impossible {
        let (called, lives) =
            answered(|owner, taken| owner.answer(taken.slot, taken.wanted, meta, len, &[3; 24]));
        let error = called.expect_err(what);
        assert!(matches!(error, CallError::ProtocolViolation { .. }), "{what}: {error:?}");
        assert!(!lives, "{what}");
    }
}

#[test]
fn fault_30_spills_into_nowhere_end_the_lane() {
    let cases = [[7_u64 << 32, 0, 5], [1, 0, 5], [1 << 32, 4092, 5], [1 << 32, u64::MAX, 5], [1 << 32, 0, 6]];
    for words in cases {
        let (called, lives) = answered(|owner, taken| {
            let (segment, _map) = memory(4096);
            let announcement = [&[2][..], &1_u32.to_le_bytes(), &4096_u64.to_le_bytes()].concat();
            send(&owner.socket, &announcement, &[segment.as_fd()]).unwrap();
            let body = words.map(u64::to_ne_bytes).concat();
            owner.answer(taken.slot, taken.wanted, 1 | 1 << 8, 5, &body);
        });
        let error = called.expect_err("it lies nowhere");
        assert!(matches!(error, CallError::ProtocolViolation { .. }), "{words:?}: {error:?}");
        assert!(!lives);
    }
}

#[test]
fn fault_30_bodies_that_are_none_fail_their_call_alone() {
    let cases: [(&str, u32, &[u8]); 7] = [
        ("no result", 1, &[]),
        ("two results", 1, &[3, 3]),
        ("a number beyond its type", 1, &[0xff; 9]),
        ("an error of a method that has none", 2, &[1]),
        ("no refusal", 3, &[99]),
        ("half a refusal", 3, &[0, 5, b'a']),
        ("taken, though it was asked for a result", 4, &[]),
    ];
    for (what, meta, body) in cases {
        let (called, lives) = answered(|owner, taken| {
            owner.answer(taken.slot, taken.wanted, meta, body.len() as u32, body);
        });
        let error = called.expect_err(what);
        assert!(matches!(error, CallError::BadResponse { .. }), "{what}: {error:?}");
        assert!(lives, "{what}");
    }
}

#[test]
fn fault_30_a_late_answer_is_nobody_elses() {
    let (_place, math, mut owner) = meet();
    let late = math.call::<_, u32>("add", &(1_u32, 2_u32)).timeout(Duration::from_millis(1)).wait();
    assert!(matches!(late, Err(CallError::DeadlineExceeded { .. })), "{late:?}");
    let first = owner.take();
    let calling = call(&math);
    let second = owner.take();
    assert_ne!(first.slot, second.slot, "the slot of a call that is not answered is nobody else's");
    owner.answer_honestly(&first, &[77]);
    owner.answer_honestly(&second, &[3]);
    assert_eq!(calling.join().unwrap(), Ok(3));
    // The slot is free again after the late answer, and counts on from it.
    for _ in 0..4 {
        let calling = call(&math);
        let next = owner.take();
        owner.answer_honestly(&next, &[4]);
        assert_eq!(calling.join().unwrap(), Ok(4));
    }
}

#[test]
fn fault_30_an_answer_given_twice_or_to_no_call_is_never_delivered() {
    let (_place, math, mut owner) = meet();
    let calling = call(&math);
    let taken = owner.take();
    owner.answer_honestly(&taken, &[3]);
    assert_eq!(calling.join().unwrap(), Ok(3));
    // The slot's next answer, before there is a call for it: that call must not take 99 and then also be run.
    owner.answer(taken.slot, taken.wanted + 1, 1, 1, &[99]);
    owner.answer(taken.slot, taken.wanted + 2, 1, 1, &[98]);
    let error = call(&math).join().unwrap().expect_err("two answers ahead");
    assert!(matches!(error, CallError::ProtocolViolation { .. }), "{error:?}");
}

#[test]
fn fault_30_messages_that_mean_nothing_end_the_lane() {
    for message in [&[9_u8][..], &[1, 1], &[3, 0, 0, 0, 0], &[2; 13]] {
        let (_place, math, mut owner) = meet();
        let calling = call(&math);
        owner.take();
        send(&owner.socket, message, &[]).unwrap();
        let error = calling.join().unwrap().expect_err("the lane ended");
        assert!(matches!(error, CallError::ProtocolViolation { .. }), "{message:?}: {error:?}");
    }
}

#[test]
fn fault_30_wakes_without_a_reason_change_nothing() {
    let (_place, math, mut owner) = meet();
    let calling = call(&math);
    let taken = owner.take();
    for _ in 0..2_000 {
        let _ = send(&owner.socket, &[1], &[]);
        futex_wake(owner.slot(taken.slot, 0));
    }
    owner.answer_honestly(&taken, &[3]);
    assert_eq!(calling.join().unwrap(), Ok(3));
    // Words that say nothing an honest owner would.
    owner.response.word(0).store(77, Ordering::Relaxed);
    (0..64).for_each(|slot| owner.response.word(128 + 4 * slot).store(u32::MAX, Ordering::Relaxed));
    let calling = call(&math);
    let taken = owner.take();
    owner.answer_honestly(&taken, &[4]);
    assert_eq!(calling.join().unwrap(), Ok(4));
}

/// What connecting makes of a welcome with these two descriptors.
fn welcomed_with(descriptors: &[&OwnedFd]) -> Result<(), ConnectError> {
    let place = place();
    let bus = place.bus();
    let listener = listen(&place, "math");
    let connecting = std::thread::spawn(move || bus.proxy::<Untyped>("math").wait().map(drop));
    let (socket, _fds) = accept(&listener);
    let descriptors: Vec<_> = descriptors.iter().map(|fd| fd.as_fd()).collect();
    send(&socket, &welcome(&[]), &descriptors).unwrap();
    connecting.join().unwrap()
}

#[track_caller]
fn expect_bad(what: &str, result: Result<(), ConnectError>) {
    assert!(matches!(result, Err(ConnectError::BadSegment { .. })), "{what}: {result:?}");
}

#[test]
fn fault_35_a_doorbell_that_could_block_or_is_none_is_refused() {
    let (response, _map) = memory(RESPONSE_SIZE);
    let (_reader, pipe) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
    let blocking = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
    rustix::fs::fcntl_setfl(&epoll, rustix::fs::OFlags::NONBLOCK).unwrap();
    // SAFETY: the descriptor is fresh.
    let timer =
        unsafe { OwnedFd::from_raw_fd(libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK)) };
    let (memory, _map) = memory(4096);
    let bells = [
        ("a pipe", pipe),
        ("a blocking eventfd", blocking),
        ("an epoll", epoll),
        ("a timer", timer),
        ("a memory", memory),
        ("a socket", socket()),
    ];
    for (what, bell) in &bells {
        expect_bad(what, welcomed_with(&[&response, bell]));
    }
    assert_eq!(welcomed_with(&[&response, &eventfd()]), Ok(()));
    expect_bad("one descriptor", welcomed_with(&[&response]));
    expect_bad("three", welcomed_with(&[&response, &eventfd(), &eventfd()]));
    expect_bad("none", welcomed_with(&[]));
}

#[test]
fn fault_08_a_response_memory_that_would_hurt_is_refused() {
    let honest = Recipe::honest(RESPONSE_SIZE);
    let bad = [
        ("sparse", Recipe { allocated: 0, ..honest }),
        ("short", Recipe { size: 4096, allocated: 4096, ..honest }),
        ("writable for all", Recipe { seals: SEALS & !libc::F_SEAL_FUTURE_WRITE, ..honest }),
        ("shrinkable", Recipe { seals: SEALS & !libc::F_SEAL_SHRINK, ..honest }),
    ];
    for (what, recipe) in bad {
        let (response, _map) = recipe.make().unwrap();
        expect_bad(what, welcomed_with(&[&response, &eventfd()]));
    }
    let (pipe, _writer) = rustix::pipe::pipe().unwrap();
    expect_bad("a pipe", welcomed_with(&[&pipe, &eventfd()]));
}

#[test]
fn fault_17_an_owner_that_stalls_is_a_time_out() {
    let place = place();
    let bus = place.bus();
    let listener = listen(&place, "math");
    let connecting = std::thread::spawn(move || bus.proxy::<Untyped>("math").wait().map(drop));
    let (_socket, _fds) = accept(&listener);
    let error = connecting.join().unwrap().expect_err("nobody welcomed it");
    assert!(matches!(error, ConnectError::HandshakeTimeout { .. }), "{error:?}");
}
