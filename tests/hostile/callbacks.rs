//! Callbacks with one side hostile: the caller who gives objects along (faults 28 to 30 and 35), or the owner who calls them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use objbus::{Blob, CallError, Proxy};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::caller::*;
use crate::errand::*;
use crate::owner::{self, Owner};
use crate::raw::*;
use crate::support::*;

const CALLBACKS: u8 = 9;
const CALLBACK_DROPPED: u8 = 10;
const CALLBACK_KEPT: u8 = 12;
/// The number of a refusal.
const UNPUBLISHED: u8 = 8;

/// Counts what it is told.
#[derive(Clone, Default)]
struct Tally(Arc<AtomicU32>);

impl Progress for Tally {
    fn at(&self, done: u32) -> Result<bool, Lost> {
        self.0.fetch_add(done, Ordering::SeqCst);
        Ok(true)
    }

    fn turn(&self, text: &str, blob: Blob) -> Result<(String, Blob), Lost> {
        Ok((text.to_owned(), blob))
    }

    fn context(&self) -> Result<(u32, bool), Lost> {
        Ok((0, false))
    }
}

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

/// An honest owner whose methods call back, and an honest caller of it.
struct Honest {
    process: Child,
    errand: ErrandProxy,
    place: Place,
}

fn honest() -> Honest {
    let place = place();
    let process = start("errand", &[place.text()]);
    process.expect("ready");
    let errand = place.bus().proxy("errand").call_timeout(PATIENCE).wait().unwrap();
    Honest { process, errand, place }
}

impl Honest {
    fn caller(&self) -> Caller {
        Caller::connect(&self.place.path().join("errand"))
    }

    #[track_caller]
    fn expect_unharmed(&self) {
        let tally = Tally::default();
        assert_eq!(self.errand.run(4, tally.clone()).wait(), Ok(4));
        assert_eq!(tally.0.load(Ordering::SeqCst), 6);
    }
}

/// A call of `run` with one step and the object of this number.
fn run(caller: &Caller, number: u64) -> Request {
    caller.request("run", 0, &varints(&[1, number]))
}

fn offer(caller: &Caller, fds: &[&OwnedFd]) {
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    send(&caller.socket, &[CALLBACKS], &fds).unwrap();
}

#[test]
fn fault_29_an_object_that_was_never_given_is_a_bad_request() {
    let honest = honest();
    let mut caller = honest.caller();
    for number in [0, 7, u64::from(u32::MAX)] {
        let answer = caller.call(&run(&caller, number));
        assert_eq!(answer.refusal(), Some(BAD_REQUEST), "{number}: {answer:?}");
    }
    honest.expect_unharmed();
}

#[test]
fn fault_35_what_is_no_end_of_a_socket_breaks_the_lane() {
    let honest = honest();
    let (file, _map) = memory(4096);
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let stream = OwnedFd::from(stream);
    let (tcp, bell) = (OwnedFd::from(std::net::TcpListener::bind("127.0.0.1:0").unwrap()), owner::eventfd());
    for (what, fd) in [("a memory", &file), ("a stream", &stream), ("TCP", &tcp), ("a doorbell", &bell)] {
        let caller = honest.caller();
        offer(&caller, &[fd]);
        caller.expect_broken(what);
    }
    let (end, other) = pair();
    for (what, fds) in [("nothing", &[][..]), ("two", &[&end, &other][..])] {
        let caller = honest.caller();
        offer(&caller, fds);
        caller.expect_broken(what);
    }
    honest.expect_unharmed();
}

#[test]
fn fault_28_messages_that_no_caller_sends_break_the_lane() {
    let honest = honest();
    let twice = honest.caller();
    let (end, _ours) = pair();
    offer(&twice, &[&end]);
    offer(&twice, &[&end]);
    twice.expect_broken("offered twice");
    for what in [CALLBACK_DROPPED, CALLBACK_KEPT] {
        let caller = honest.caller();
        send(&caller.socket, &[what, 1, 0, 0, 0], &[]).unwrap();
        caller.expect_broken("an owner's word");
    }
    honest.expect_unharmed();
}

#[test]
fn fault_35_a_socket_without_an_honest_welcome_is_a_bad_request_at_once() {
    let honest = honest();
    let (short, _map) = memory(4096);
    let (response, _map) = memory(RESPONSE_SIZE);
    let bell = owner::eventfd();
    let welcome = owner::welcome(&[]);
    type Said<'a> = (&'a str, Option<(&'a [u8], Vec<&'a OwnedFd>)>);
    let said: [Said<'_>; 6] = [
        ("nothing", None),
        ("garbage", Some((b"garbage", vec![]))),
        ("no descriptors", Some((&welcome, vec![]))),
        ("a short memory", Some((&welcome, vec![&short, &bell]))),
        ("a doorbell that is none", Some((&welcome, vec![&response, &response]))),
        ("too many", Some((&welcome, vec![&response, &bell, &bell]))),
    ];
    for (what, said) in said {
        let mut caller = honest.caller();
        let (ours, theirs) = pair();
        if let Some((message, fds)) = &said {
            let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
            send(&ours, message, &fds).unwrap();
        }
        offer(&caller, &[&theirs]);
        let answer = caller.call(&run(&caller, 1));
        assert_eq!(answer.refusal(), Some(BAD_REQUEST), "{what}: {answer:?}");
        // A socket that was spoilt is no other's, and what comes with it later is as well in vain.
        assert_eq!(caller.call(&run(&caller, 1)).refusal(), Some(BAD_REQUEST), "{what}");
    }
    let mut unconnected = honest.caller();
    offer(&unconnected, &[&socket()]);
    let answer = unconnected.call(&run(&unconnected, 1));
    assert_eq!(answer.refusal(), Some(BAD_REQUEST), "{answer:?}");
    honest.expect_unharmed();
}

/// The caller's half by hand, as an owner that serves what is called back.
fn give(caller: &Caller) -> Owner {
    let (ours, theirs) = pair();
    let (response_fd, response) = memory(RESPONSE_SIZE);
    let bell = owner::eventfd();
    send(&ours, &owner::welcome(&[]), &[response_fd.as_fd(), bell.as_fd()]).unwrap();
    offer(caller, &[&theirs]);
    Owner::over(ours, response, bell)
}

#[test]
fn fault_30_a_callback_that_is_answered_by_hand() {
    let honest = honest();
    let mut caller = honest.caller();
    let mut back = give(&caller);
    let spoilt = |answer: &Answer| String::from_utf8_lossy(&answer.body).contains("ProtocolViolation");
    // Once honestly, and once with a count that jumps.
    caller.publish(&run(&caller, 1));
    back.hear_hello();
    let taken = back.take();
    assert_eq!(taken.body, [0]);
    back.answer_honestly(&taken, &[1]);
    assert_eq!(caller.answer(0, 1).number(), 1);
    caller.publish(&run(&caller, 2));
    let taken = back.take();
    back.answer(taken.slot, taken.wanted.wrapping_add(5), 1, 1, &[1]);
    let answer = caller.answer(0, 2);
    assert!(spoilt(&answer), "{answer:?}");
    // Its connection ends with that for callbacks only.
    let add = caller.request("process", 1, &[]);
    assert_eq!(caller.call(&add).number(), u64::from(honest.process.pid()));
    honest.expect_unharmed();
}

/// An honest caller of a hostile owner, whose call with an object is under way.
struct Given {
    owner: Owner,
    socket: OwnedFd,
    call: JoinHandle<Result<u32, CallError<Lost>>>,
    tally: Tally,
    number: u32,
    errand: ErrandProxy,
    _place: Place,
}

fn given() -> Given {
    let place = place();
    let bus = place.bus();
    let listener = owner::listen(&place, "errand");
    let connecting = std::thread::spawn(move || bus.proxy::<ErrandProxy>("errand").wait());
    let mut owner = Owner::meet(&listener);
    let errand = connecting.join().unwrap().expect("the welcome was honest");
    let tally = Tally::default();
    let (with, given) = (errand.clone(), tally.clone());
    let call = std::thread::spawn(move || with.run(1, given).timeout(PATIENCE).wait());
    let (message, mut fds) = receive(&owner.socket).expect("the object is given");
    assert_eq!((&message[..], fds.len()), (&[CALLBACKS][..], 1));
    let taken = owner.take();
    let mut body = &taken.body[..];
    let [_, number] = [take_varint(&mut body), take_varint(&mut body)];
    Given { owner, socket: fds.remove(0), call, tally, number: number as u32, errand, _place: place }
}

/// The key of `at` of the object of this number.
fn key(number: u32) -> u64 {
    let methods = ProgressProxy::interface().methods;
    let (_, key) = methods.iter().find(|(name, _)| *name == "at").unwrap();
    key ^ u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Given {
    /// Takes the lane for callbacks, as an honest owner does.
    fn take(&self) -> Caller {
        let (welcome, fds) = receive(&self.socket).expect("it lies there");
        let mut body = &welcome[8..];
        let mut next = || take_varint(&mut body);
        assert_eq!([next(), next(), next(), next()], [1, 0, 0, 0], "a welcome, without keys");
        let [response, bell] = <[OwnedFd; 2]>::try_from(fds).unwrap();
        let response = Map::of(&response, RESPONSE_SIZE, false).unwrap();
        let (request_fd, request) = memory(REQUEST_SIZE);
        send(&self.socket, &message(1, &hello(LAYOUT)), &[request_fd.as_fd()]).unwrap();
        let socket = self.socket.try_clone().unwrap();
        Caller { socket, request, response, bell, keys: Default::default(), position: 0, request_fd }
    }

    fn end(self) -> (Owner, ErrandProxy, Tally) {
        self.owner.answer(0, 1, 1, 1, &[1]);
        assert_eq!(self.call.join().unwrap(), Ok(1));
        (self.owner, self.errand, self.tally)
    }
}

fn at(number: u32) -> Request {
    Request { slot: 0, flags: 0, key: key(number), len: 1, lent: 0, returned: 0, body: vec![5] }
}

#[test]
fn fault_29_an_owner_calls_what_it_was_given_and_nothing_else_and_not_after_the_call() {
    let given = given();
    let mut back = given.take();
    assert_eq!(back.call(&at(given.number)).number(), 1);
    let others = [given.number.wrapping_add(1), given.number.wrapping_sub(1), u32::MAX];
    for number in others {
        assert_eq!(back.call(&at(number)).refusal(), Some(UNPUBLISHED), "{number}");
    }
    let number = given.number;
    let (_owner, _errand, tally) = given.end();
    wait_until("the object has gone with its call", || Arc::strong_count(&tally.0) == 1);
    assert_eq!(back.call(&at(number)).refusal(), Some(UNPUBLISHED));
    assert_eq!(tally.0.load(Ordering::SeqCst), 5);
}

#[test]
fn fault_28_an_owner_that_says_hello_wrongly_gets_no_lane_and_the_call_goes_on() {
    let spoil: [fn(&Given); 4] = [
        |given| send(&given.socket, b"garbage", &[]).unwrap(),
        |given| send(&given.socket, &message(1, &hello(LAYOUT)), &[]).unwrap(),
        |given| send(&given.socket, &message(1, &hello(3)), &[memory(REQUEST_SIZE).0.as_fd()]).unwrap(),
        |given| send(&given.socket, &message(1, &hello(LAYOUT)), &[memory(64).0.as_fd()]).unwrap(),
    ];
    for spoil in spoil {
        let given = given();
        spoil(&given);
        wait_until("the lane is refused", || has_ended(&given.socket));
        let (_owner, _errand, tally) = given.end();
        assert_eq!(tally.0.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn fault_28_an_owner_that_keeps_or_drops_what_it_likes_harms_nobody() {
    let given = given();
    let mut back = given.take();
    for number in (0..3000_u32).filter(|number| *number != given.number) {
        for what in [CALLBACK_KEPT, CALLBACK_DROPPED] {
            let message = [&[what][..], &number.to_le_bytes()].concat();
            wait_until("the caller reads", || send(&given.owner.socket, &message, &[]).is_ok());
        }
    }
    assert_eq!(back.call(&at(given.number)).number(), 1);
    // It says that it keeps it, and so has it when the call is over, until it drops it or goes.
    let word = |what: u8, number: u32| [&[what][..], &number.to_le_bytes()].concat();
    send(&given.owner.socket, &word(CALLBACK_KEPT, given.number), &[]).unwrap();
    let number = given.number;
    let (owner, _errand, tally) = given.end();
    assert_eq!(back.call(&at(number)).number(), 1);
    send(&owner.socket, &word(CALLBACK_DROPPED, number), &[]).unwrap();
    wait_until("it is let go", || Arc::strong_count(&tally.0) == 1);
    assert_eq!(back.call(&at(number)).refusal(), Some(UNPUBLISHED));
}

#[test]
fn fault_28_an_owner_that_breaks_the_protocol_calling_back_loses_that_lane() {
    let given = given();
    let mut back = given.take();
    back.publish(&Request { slot: 99, ..at(given.number) });
    back.expect_broken("a slot that there is none of");
    let (_owner, _errand, tally) = given.end();
    assert_eq!(tally.0.load(Ordering::SeqCst), 0);
}

#[test]
fn fault_28_an_owner_gives_its_caller_no_objects() {
    let given = given();
    let (end, _ours) = pair();
    send(&given.owner.socket, &[CALLBACKS], &[end.as_fd()]).unwrap();
    let ended = given.call.join().unwrap();
    assert!(matches!(ended, Err(CallError::ProtocolViolation { .. })), "{ended:?}");
    wait_until("the object goes", || Arc::strong_count(&given.tally.0) == 1);
}

#[test]
fn an_owner_that_floods_is_told_to_come_later_and_no_more_runs_than_may() {
    let given = given();
    let mut back = given.take();
    for round in 1..=50 {
        for slot in 0..SLOTS {
            back.publish_silently(&Request { slot, ..at(given.number) });
        }
        back.ring();
        (0..SLOTS).for_each(|slot| assert_eq!(back.answer(slot, round).number(), 1));
    }
    let (_owner, _errand, tally) = given.end();
    assert_eq!(tally.0.load(Ordering::SeqCst), 5 * 50 * SLOTS);
}

/// Does not go before it may.
struct Reluctant {
    tally: Tally,
    goes: Sender<()>,
    may_go: Mutex<Receiver<()>>,
}

impl Progress for Reluctant {
    fn at(&self, done: u32) -> Result<bool, Lost> {
        self.tally.at(done)
    }

    fn turn(&self, text: &str, blob: Blob) -> Result<(String, Blob), Lost> {
        self.tally.turn(text, blob)
    }

    fn context(&self) -> Result<(u32, bool), Lost> {
        self.tally.context()
    }
}

impl Drop for Reluctant {
    fn drop(&mut self) {
        let _ = self.goes.send(());
        let _ = self.may_go.lock().unwrap().recv();
    }
}

/// An owner says when it drops what it was given: the news of others are heard while that takes its time to go.
#[test]
fn row_26_an_object_that_blocks_when_dropped_holds_nobody_else_up() {
    let place = place();
    let owner = start("errand", &[place.text()]);
    owner.expect("ready");
    let bus = place.bus();
    let connect = || -> ErrandProxy { bus.proxy("errand").call_timeout(PATIENCE).wait().unwrap() };
    let reluctant = || {
        let ((goes, going), (let_go, may_go)) = (channel(), channel());
        (Reluctant { tally: Tally::default(), goes, may_go: Mutex::new(may_go) }, going, let_go)
    };
    let errand = connect();
    let (dropped, going, let_go) = reluctant();
    assert_eq!(errand.keep(dropped).wait(), Ok(1));
    errand.drop_kept().wait().unwrap();
    going.recv_timeout(PATIENCE).expect("the owner has dropped it");
    let (ended, ending, let_end) = reluctant();
    assert_eq!(errand.keep(ended).wait(), Ok(1));
    drop((owner, errand));
    ending.recv_timeout(PATIENCE).expect("the connection has ended");
    drop((let_go, let_end));
}
