//! Peers that misuse channels: impossible counters, headers and loans, halves that are none, offers without end. All of them end
//! their own lane only, and cost nothing that lasts.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use objbus::futures_core::Stream;
use objbus::{Bus, CallError, Published, Untyped, stream_of};

use crate::caller::*;
use crate::owner::{Owner, listen};
use crate::raw::*;
use crate::support::*;

const SENDER: usize = 16_512;
const RECEIVER: usize = 256;
const RING: usize = 128;
const CANCELLED: u8 = 10;
const NO_MEMORY: u8 = 13;

struct Honest {
    /// Values that came in, and errors.
    taken: Arc<[AtomicU64; 2]>,
}

#[objbus::object]
impl Honest {
    pub fn endless(&self) -> impl Stream<Item = u64> + use<> {
        stream_of(0..)
    }

    pub fn count(&self, mut values: objbus::Stream<Vec<u8>>) {
        for value in values.iter() {
            self.taken[usize::from(value.is_err())].fetch_add(1, Ordering::SeqCst);
        }
    }

    pub fn one(&self) -> u64 {
        1
    }
}

struct Owned {
    place: Place,
    taken: Arc<[AtomicU64; 2]>,
    honest: Untyped,
    _published: Published,
    _bus: Bus,
}

fn owned() -> Owned {
    let place = place();
    let (bus, taken) = (place.bus(), Arc::<[AtomicU64; 2]>::default());
    let published = bus.publish("honest", Honest { taken: Arc::clone(&taken) }).unwrap();
    let honest = bus.proxy("honest").wait().unwrap();
    Owned { place, taken, honest, _published: published, _bus: bus }
}

impl Owned {
    fn caller(&self) -> Caller {
        Caller::connect(&self.place.path().join("honest"))
    }

    /// The next caller is served as ever.
    fn expect_unharmed(&self) {
        assert_eq!(self.honest.call::<(), u64>("one", &()).wait(), Ok(1));
        let mut stream = self.honest.stream::<(), u64>("endless", &()).wait().unwrap();
        assert!(stream.iter().take(3_000).map(Result::unwrap).eq(0..3_000));
    }
}

fn about(number: u8, id: u32) -> Vec<u8> {
    [&[number][..], &id.to_le_bytes()].concat()
}

fn offer(caller: &Caller, id: u32, half: u8, fd: &OwnedFd) {
    let message = [about(5, id), vec![half]].concat();
    send(&caller.socket, &message, &[fd.as_fd()]).expect("the owner reads its socket");
}

/// Opens `endless` on channel 1: our memory and the owner's.
fn open(caller: &mut Caller) -> (Map, Map) {
    let (fd, mine) = memory(RECEIVER);
    offer(caller, 1, 1, &fd);
    let answer = caller.call(&caller.request("endless", 0, &varints(&[1])));
    assert_eq!(answer.status, RETURNED, "{answer:?}");
    let (accept, fds) = receive(&caller.socket).expect("the owner accepts");
    assert_eq!(accept, about(6, 1));
    let theirs = Map::of(&fds[0], SENDER, false).unwrap();
    wait_until("the ring is full", || theirs.word(0).load(Ordering::Acquire) != 0);
    (mine, theirs)
}

#[test]
fn row_28_a_receiver_that_takes_what_was_not_sent_is_cut_off() {
    let owned = owned();
    for taken in [[5_000, 0], [u32::MAX, 0], [1_500, 1_000]] {
        let mut caller = owned.caller();
        let (mine, theirs) = open(&mut caller);
        for taken in taken.into_iter().filter(|taken| *taken != 0) {
            let arm = theirs.word(0).load(Ordering::Acquire);
            mine.word(128).store(taken, Ordering::Release);
            send(&caller.socket, &about(7, 1), &[]).unwrap();
            wait_until("it looks", || theirs.word(0).load(Ordering::Acquire) != arm || caller.is_broken());
        }
        caller.expect_broken("impossible credit");
    }
    owned.expect_unharmed();
}

#[test]
fn row_28_a_sender_of_impossible_items_is_cut_off() {
    let owned = owned();
    let header = |len: u64, lent: u64, flags: u64| len | lent << 32 | flags << 48;
    let far = loan(1, 77, 0, 8);
    let impossible: [(u64, &[u8]); 11] = [
        (header(8, 0, 0), &[]),
        (header(8, 0, 1 | 32), &[]),
        (header(4_096, 0, 1), &[]),
        (header(u32::MAX.into(), 0, 1), &[]),
        (header(8, 0xffff, 1), &[]),
        (header(0, 1, 1), &far),
        (header(8, 0, 3), &far),
        (header(9, 0, 3), &far),
        (header(u32::MAX.into(), 0, 1 | 2 | 8), &far),
        (header(8, 0, 1 | 4 | 8), &[]),
        (header(8, 1, 1 | 8), &far),
    ];
    for (number, (header, rest)) in impossible.into_iter().enumerate() {
        let mut caller = owned.caller();
        let (fd, mine) = memory(SENDER);
        offer(&caller, 1, 0, &fd);
        mine.write(RING + 8, rest);
        mine.wide(RING).store(header, Ordering::Release);
        caller.publish(&caller.request("count", 0, &varints(&[1])));
        caller.expect_broken("an impossible item");
        wait_until("the method has heard", || owned.taken[1].load(Ordering::SeqCst) == number as u64 + 1);
    }
    assert_eq!(owned.taken[0].load(Ordering::SeqCst), 0);
    owned.expect_unharmed();
}

#[test]
fn row_10_a_body_that_does_not_decode_ends_the_stream_only() {
    let owned = owned();
    let mut caller = owned.caller();
    let (fd, mine) = memory(SENDER);
    offer(&caller, 1, 0, &fd);
    // Two empty vectors, then one of 200 bytes that are not there.
    mine.wide(RING + 8).store(0, Ordering::Relaxed);
    mine.wide(RING).store(1 | 1 << 48, Ordering::Relaxed);
    mine.wide(RING + 24).store(200, Ordering::Relaxed);
    mine.wide(RING + 16).store(1 | 1 << 48, Ordering::Release);
    let answer = caller.call(&caller.request("count", 0, &varints(&[1])));
    assert_eq!(answer.status, RETURNED, "{answer:?}");
    assert_eq!(owned.taken.each_ref().map(|count| count.load(Ordering::SeqCst)), [1, 1]);
    owned.expect_unharmed();
}

#[test]
fn row_35_halves_that_are_none_are_violations() {
    let owned = owned();
    let (receiver, _map) = memory(RECEIVER);
    let (sender, _map) = memory(SENDER);
    let unsealed = Recipe { seals: 0, ..Recipe::honest(RECEIVER) }.make().unwrap().0;
    let sparse = Recipe { allocated: 0, ..Recipe::honest(SENDER) }.make().unwrap().0;
    let offers: [(u8, &OwnedFd); 6] =
        [(2, &receiver), (0, &receiver), (1, &sender), (1, &unsealed), (0, &sparse), (1, &socket())];
    for (half, fd) in offers {
        let caller = owned.caller();
        offer(&caller, 1, half, fd);
        caller.expect_broken("no half");
    }
    for messages in [vec![about(6, 1)], vec![about(5, 1)], vec![about(7, 1)[..4].to_vec()]] {
        let caller = owned.caller();
        messages.iter().for_each(|message| send(&caller.socket, message, &[]).unwrap());
        caller.expect_broken("no message");
    }
    let caller = owned.caller();
    (0..2).for_each(|_| offer(&caller, 1, 1, &receiver));
    caller.expect_broken("an offer twice");
    owned.expect_unharmed();
}

#[test]
fn row_28_numbers_that_nobody_offered_harm_nobody() {
    let owned = owned();
    let mut caller = owned.caller();
    for id in 0..30 {
        send(&caller.socket, &about(7, id), &[]).unwrap();
        send(&caller.socket, &about(8, id), &[]).unwrap();
        let answer = caller.call(&caller.request("endless", 0, &varints(&[id.into()])));
        assert_eq!(answer.refusal(), Some(CANCELLED), "{answer:?}");
    }
    let answer = caller.call(&caller.request("count", 0, &varints(&[7])));
    assert_eq!(answer.status, RETURNED, "a stream that has failed already");
    owned.expect_unharmed();
}

#[test]
fn row_32_offers_without_end_are_not_kept() {
    let owned = owned();
    let mut caller = owned.caller();
    let before = held_by(std::process::id());
    let (fd, _map) = memory(RECEIVER);
    for id in 0..5_000 {
        let message = [about(5, id), vec![1]].concat();
        wait_until("there is room in the socket", || send(&caller.socket, &message, &[fd.as_fd()]).is_ok());
    }
    let answer = caller.call(&caller.request("endless", 0, &varints(&[4_999])));
    assert_eq!(answer.refusal(), Some(NO_MEMORY), "{answer:?}");
    let now = held_by(std::process::id());
    // Its own mapping is one of them.
    assert!(now.fds <= before.fds + 2 && now.mappings <= before.mappings + 260, "{now:?}, before {before:?}");
    drop(caller);
    wait_until("all is let go", || held_by(std::process::id()).mappings <= before.mappings);
    owned.expect_unharmed();
}

/// What a caller of an owner gets that does `misuse` with the offer's number before it answers.
fn opened_by(misuse: impl FnOnce(&Owner, u32) + Send) -> Result<Vec<Result<u64, CallError>>, CallError> {
    let place = place();
    // The bus makes the directory.
    let bus = place.bus();
    let listener = listen(&place, "honest");
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            let honest: Untyped = bus.proxy("honest").wait().unwrap();
            let mut stream = honest.stream::<(), u64>("endless", &()).timeout(PATIENCE).wait()?;
            Ok(stream.iter().take(10).collect())
        });
        let mut owner = Owner::meet(&listener);
        let taken = owner.take();
        let (offered, fds) = receive(&owner.socket).expect("an offer");
        assert_eq!((offered[0], offered.len(), fds.len()), (5, 6, 1));
        misuse(&owner, u32::from_le_bytes(offered[1..5].try_into().unwrap()));
        owner.answer_honestly(&taken, &[]);
        caller.join().unwrap()
    })
}

fn accept(owner: &Owner, id: u32, fd: &OwnedFd) {
    send(&owner.socket, &about(6, id), &[fd.as_fd()]).unwrap();
}

#[test]
fn row_35_an_owner_that_accepts_with_something_else_is_cut_off() {
    assert!(matches!(opened_by(|_, _| {}), Err(CallError::Disconnected { .. })), "it never accepted");
    let small = opened_by(|owner, id| accept(owner, id, &memory(RECEIVER).0));
    assert!(
        small.as_ref().is_err() || small.as_ref().is_ok_and(|items| items.iter().all(Result::is_err)),
        "{small:?}"
    );
    let twice = opened_by(|owner, id| (0..2).for_each(|_| accept(owner, id, &memory(SENDER).0)));
    let is_violation = |error: &CallError| matches!(error, CallError::ProtocolViolation { .. });
    let is_cut_off = match &twice {
        Err(error) => is_violation(error),
        Ok(items) => items.len() == 1 && items[0].as_ref().is_err_and(is_violation),
    };
    assert!(is_cut_off, "{twice:?}");
}

#[test]
fn row_28_an_owner_that_sends_impossible_items_is_cut_off() {
    let items = opened_by(|owner, id| {
        let (fd, map) = memory(SENDER);
        // A 5, and what no sender writes.
        map.wide(RING + 8).store(5, Ordering::Relaxed);
        map.wide(RING).store(1 | 1 << 48, Ordering::Relaxed);
        map.wide(RING + 16).store(u64::MAX, Ordering::Relaxed);
        accept(owner, id, &fd);
    });
    let items = items.expect("it opens");
    assert!(matches!(items[..], [Ok(5), Err(CallError::ProtocolViolation { .. })]), "{items:?}");
}

#[test]
fn row_32_a_receiver_that_is_woken_without_end_and_does_not_read_is_cut_off() {
    let owned = owned();
    let mut caller = owned.caller();
    let (mine, theirs) = open(&mut caller);
    let (mut arm, mut taken) = (0, 0_u32);
    wait_until("the owner keeps no more of what is not read", || {
        // It says that it sleeps, takes a few items, has the owner send as many, and reads none of the wakes for them.
        for _ in 0..64 {
            arm += 1;
            mine.word(0).store(arm, Ordering::SeqCst);
            let filled = theirs.wide(RING + (taken as usize + 2) % 2048 * 8).load(Ordering::Acquire) != 0;
            if filled {
                taken += 2;
                mine.word(128).store(taken, Ordering::SeqCst);
                // Full where it is read no more; then the channel's own memory tells.
                let _ = send(&caller.socket, &about(7, 1), &[]);
            }
        }
        caller.is_broken()
    });
    owned.expect_unharmed();
}
