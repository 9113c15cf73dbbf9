//! Leases given back twice or never lent, and loans of what is not there: fault 44.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use objbus::{Blob, Bus, CallError, MethodTable, Proxy, Published, Untyped};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags};

use crate::caller::*;
use crate::owner::{Owner, Taken, listen};
use crate::raw::*;
use crate::support::*;

const LEN: usize = 100_000;

fn picture(bus: &Bus, byte: u8) -> Blob {
    let mut blob = bus.alloc(LEN).expect("there is memory");
    blob.fill(byte);
    blob.freeze()
}

fn is_whole(blob: &Blob, byte: u8) -> bool {
    blob.len() == LEN && blob.iter().all(|found| *found == byte)
}

/// Bytes in use, and leases out.
fn memory_of(bus: &Bus) -> (u64, u64) {
    let memory = bus.memory();
    (memory.in_use(), memory.borrowers.iter().map(|borrower| borrower.leases).sum())
}

/// An owner here, and an honest caller in a process of its own, of which each holds a picture of the other's.
struct Gallery {
    bus: Bus,
    published: Published,
    kept: Arc<Mutex<Vec<Blob>>>,
    honest: Child,
    place: Place,
}

/// The role of that caller.
pub fn run_visitor(arguments: &[String]) {
    let bus = bus_at(&arguments[0]);
    let gallery: Untyped = bus.proxy("gallery").call_timeout(PATIENCE).wait().unwrap();
    let ours = picture(&bus, 7);
    let theirs: Blob = gallery.call("picture", &()).wait().unwrap();
    gallery.call::<_, ()>("keep", &(ours.clone(),)).wait().unwrap();
    say("ready");
    while hear() == "look" {
        let (more, is_served) = (picture(&bus, 9), gallery.call("add", &(1_u32, 2_u32)).wait() == Ok(3_u32));
        say(format!("{}", is_whole(&ours, 7) && is_whole(&theirs, 5) && is_whole(&more, 9) && is_served));
    }
    drop((ours, theirs));
    say("done");
    stay();
}

impl Gallery {
    fn new() -> Gallery {
        let place = place();
        let bus = Bus::builder().directory(place.path()).memory(4 << 20).open().unwrap();
        let kept = Arc::new(Mutex::new(Vec::new()));
        let (maker, keeper) = (bus.clone(), Arc::clone(&kept));
        let table = MethodTable::named("Gallery")
            .method("add", |a: u32, b: u32| a + b)
            .method("picture", move || picture(&maker, 5))
            .method("keep", move |blob: Blob| keeper.lock().push(blob))
            .method("pair", |one: Blob, two: Blob| one == two);
        let published = bus.publish("gallery", table).unwrap();
        let honest = start("visitor", &[place.text()]);
        honest.expect("ready");
        Gallery { bus, published, kept, honest, place }
    }

    fn connect(&self) -> Caller {
        Caller::connect(&self.place.path().join("gallery"))
    }

    /// All memory is used again, and what the honest caller holds and has lent is as it was.
    #[track_caller]
    fn expect_unharmed(&mut self, what: &str) {
        let hoard: Vec<_> = std::iter::from_fn(|| {
            let mut blob = self.bus.alloc(LEN).ok()?;
            blob.fill(0xAA);
            Some(blob)
        })
        .collect();
        assert!(hoard.len() > 10, "{what}");
        self.honest.tell("look");
        assert_eq!(self.honest.hear(), "true", "{what}: what the honest caller holds");
        assert!(is_whole(&self.kept.lock()[0], 7), "{what}: what it lent");
    }

    /// Everything comes back once all have let go.
    fn end(mut self) {
        self.honest.tell("done");
        self.honest.expect("done");
        self.kept.lock().clear();
        wait_until("the owner's memory is back", || memory_of(&self.bus) == (0, 0));
    }

    /// Lets a caller spoil a lane on which it was lent a picture; the lane is closed, and nobody else notices.
    #[track_caller]
    fn expect_violation(&mut self, what: &str, spoil: impl FnOnce(&mut Caller, &Bus, u32)) {
        let before = (memory_of(&self.bus), self.published.violations());
        let mut caller = self.connect();
        let lease = borrow(&mut caller, 3);
        spoil(&mut caller, &self.bus, lease);
        wait_until(what, || is_closed(&caller));
        assert_eq!(self.published.violations(), before.1 + 1, "{what}");
        self.expect_unharmed(what);
        drop(caller);
        wait_until("what it was lent is back", || memory_of(&self.bus) == before.0);
    }
}

/// Whether the owner takes nothing more from the lane. What it has lent there stays so, and with it the connection.
fn is_closed(caller: &Caller) -> bool {
    let mut fds = [PollFd::new(&caller.socket, PollFlags::RDHUP)];
    let _ = rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }));
    caller.response.word(4).load(Ordering::Acquire) == BROKEN && fds[0].revents().contains(PollFlags::RDHUP)
}

/// Has a picture lent in the answer in `slot`: the lease's number.
#[track_caller]
fn borrow(caller: &mut Caller, slot: u32) -> u32 {
    let answer = caller.call(&caller.request("picture", slot, &[]));
    let at = 512 + 256 * slot as usize;
    assert_eq!((answer.status, answer.body), (RETURNED, vec![1]), "the first of what is lent");
    assert_eq!(caller.response.word(at + 12).load(Ordering::Relaxed), 1, "one is lent");
    assert_eq!(caller.response.wide(at + 16 + 24).load(Ordering::Relaxed), LEN as u64);
    caller.response.word(at + 16 + 8).load(Ordering::Relaxed)
}

/// A request that gives a lease back.
fn returning(caller: &mut Caller, lease: u32) {
    let request = Request { returned: lease, ..caller.request("add", 9, &[1, 2]) };
    caller.publish(&request);
}

/// Gives a lease back by its bit, and says so.
fn turn(caller: &Caller, lease: u32) {
    caller.give_back(lease);
    send(&caller.socket, &[1], &[]).unwrap();
}

#[test]
fn fault_44_a_lease_given_back_once_is_back_and_no_violation() {
    let gallery = Gallery::new();
    let before = memory_of(&gallery.bus);
    let mut caller = gallery.connect();
    for round in 0..100 {
        let lease = borrow(&mut caller, round % SLOTS);
        assert_eq!(memory_of(&gallery.bus).1, before.1 + 1);
        match round % 3 {
            0 => {
                let request = Request { returned: lease, ..caller.request("add", 9, &[1, 2]) };
                assert_eq!(caller.call(&request).number(), 3);
            }
            1 => turn(&caller, lease),
            _ => caller.give_back(lease),
        }
        wait_until("it is back", || memory_of(&gallery.bus) == before);
    }
    assert_eq!(gallery.published.violations(), 0);
    gallery.end();
}

#[test]
fn fault_44_a_lease_given_back_twice_or_never_lent_closes_the_lane() {
    let mut gallery = Gallery::new();
    type Spoil = fn(&mut Caller, &Bus, u32);
    let spoiled: [(&str, Spoil); 11] = [
        ("twice by number", |caller, _, lease| {
            returning(caller, lease);
            returning(caller, lease);
        }),
        ("by number and by bit", |caller, bus, lease| {
            let before = memory_of(bus).1;
            returning(caller, lease);
            wait_until("it is back", || memory_of(bus).1 == before - 1);
            turn(caller, lease);
        }),
        ("by bit and by number", |caller, bus, lease| {
            let before = memory_of(bus).1;
            turn(caller, lease);
            wait_until("it is back", || memory_of(bus).1 == before - 1);
            returning(caller, lease);
        }),
        ("twice by bit", |caller, bus, lease| {
            let before = memory_of(bus).1;
            turn(caller, lease);
            wait_until("it is back", || memory_of(bus).1 == before - 1);
            turn(caller, lease);
        }),
        ("a number of an earlier lease", |caller, bus, lease| {
            let before = memory_of(bus).1;
            turn(caller, lease);
            wait_until("it is back", || memory_of(bus).1 == before - 1);
            let next = borrow(caller, 4);
            assert_eq!(next % 8192, lease % 8192, "the index is used again");
            returning(caller, lease);
        }),
        ("another generation", |caller, _, lease| returning(caller, lease + 8192)),
        ("no generation", |caller, _, lease| returning(caller, lease % 8192 + 8192 * 7)),
        ("a number beyond what was ever out", |caller, _, lease| returning(caller, lease + 1)),
        ("the last index", |caller, _, _| returning(caller, u32::MAX)),
        ("the last bit", |caller, _, _| turn(caller, 8191)),
        ("all bits", |caller, _, _| {
            (0..128).for_each(|word| {
                caller.request.wide(20480 + 8 + 8 * word).store(u64::MAX, Ordering::Release)
            });
            turn(caller, 0);
        }),
    ];
    for (what, spoil) in spoiled {
        gallery.expect_violation(what, spoil);
    }
    gallery.end();
}

/// Nothing is told: who looks for its memory finds it out.
#[test]
fn fault_44_a_bit_that_is_turned_in_silence_is_found_when_memory_is_looked_for() {
    let mut gallery = Gallery::new();
    gallery.expect_violation("a bit of nothing", |caller, bus, lease| {
        caller.give_back(lease + 1);
        bus.memory();
    });
    gallery.expect_violation("a bit of nothing, and a call", |caller, _, lease| {
        caller.give_back(lease + 1);
        let picture = caller.request("picture", 9, &[]);
        caller.publish(&picture);
    });
    gallery.end();
}

/// A caller's own segment, and a request that lends ranges of it.
fn lending(caller: &Caller, method: &str, body: &[u8], loans: &[Vec<u8>]) -> Request {
    let padded = body.len().next_multiple_of(8);
    let words = [body.to_vec(), vec![0; padded - body.len()], loans.concat()].concat();
    let request = caller.request(method, 1, &words);
    Request { len: body.len() as u32, lent: loans.len() as u32, ..request }
}

#[test]
fn fault_44_loans_of_what_is_not_there_close_the_lane() {
    let mut gallery = Gallery::new();
    let size = 8192_u64;
    let bad = [
        ("an unknown segment", 4, 0, 10),
        ("one byte beyond", 3, size, 1),
        ("over the end", 3, size - 1, 2),
        ("far beyond", 3, u64::MAX, 1),
        ("around", 3, u64::MAX - 7, 8),
        ("longer than all", 3, 0, size + 1),
        ("as long as can be", 3, 1, u64::MAX),
    ];
    for (what, segment, offset, len) in bad {
        gallery.expect_violation(what, |caller, _, _| {
            let (memory, _map) = memory(size as usize);
            caller.announce(3, &memory, size);
            let (before, behind) = (loan(8192, 3, 0, 10), loan(8194, 3, 10, 10));
            let loans = [before, loan(8193, segment, offset, len), behind];
            let request = lending(caller, "pair", &[1, 2], &loans);
            caller.publish(&request);
            wait_until("all is given back", || (8192..=8194).all(|lease| caller.is_turned(lease)));
        });
    }
    gallery.end();
}

#[test]
fn fault_44_a_body_that_names_more_than_is_lent_is_refused_and_all_is_given_back() {
    let mut gallery = Gallery::new();
    let mut caller = gallery.connect();
    let (memory, map) = memory(8192);
    map.write(0, &[5; 8192]);
    caller.announce(3, &memory, 8192);
    let mut expected = [false; 2];
    let loans = [loan(8192, 3, 0, 10), loan(8193, 3, 8182, 10)];
    let bodies: [(&str, &[u8], bool); 7] = [
        ("both", &[1, 2], true),
        ("the same twice", &[2, 2], true),
        ("neither, and no bytes", &[0, 0, 0, 0], true),
        ("a third", &[1, 3], false),
        ("one far beyond", &[1, 0xff, 0xff, 0xff, 0xff, 0x0f], false),
        ("the first only", &[1], false),
        ("one too many", &[1, 2, 1], false),
    ];
    for (what, body, is_good) in bodies {
        let answer = caller.call(&lending(&caller, "pair", body, &loans));
        match is_good {
            true => assert_eq!((answer.status, answer.body), (RETURNED, vec![1]), "{what}"),
            false => assert_eq!(answer.refusal(), Some(BAD_REQUEST), "{what}: {answer:?}"),
        }
        expected = expected.map(|turned| !turned);
        wait_until(what, || [8192, 8193].map(|lease| caller.is_turned(lease)) == expected);
        assert_eq!(caller.call(&caller.request("add", 2, &[1, 2])).number(), 3);
    }
    // Both in one: nothing is lent.
    let answer = caller.call(&lending(&caller, "pair", &[1, 2], &[]));
    assert_eq!(answer.refusal(), Some(BAD_REQUEST));
    assert!(!caller.is_broken());
    gallery.expect_unharmed("bodies that name what is not there");
    drop(caller);
    gallery.end();
}

/// A caller's proxy, and the hostile owner that it reached.
fn meet() -> (Place, Bus, Untyped, Owner) {
    let place = place();
    let bus = place.bus();
    let listener = listen(&place, "gallery");
    let connecting = {
        let bus = bus.clone();
        std::thread::spawn(move || bus.proxy::<Untyped>("gallery").call_timeout(PATIENCE).wait())
    };
    let owner = Owner::meet(&listener);
    let gallery = connecting.join().unwrap().expect("the welcome was honest");
    (place, bus, gallery, owner)
}

/// Answers with `lent` loans behind a body.
fn answer_lending(owner: &Owner, taken: &Taken, body: &[u8], lent: u32, loans: &[Vec<u8>]) {
    let padded = body.len().next_multiple_of(8);
    let words = [body.to_vec(), vec![0; padded - body.len()], loans.concat()].concat();
    owner.slot(taken.slot, 12).store(lent, Ordering::Relaxed);
    owner.answer(taken.slot, taken.wanted, 1, body.len() as u32, &words);
}

/// A segment of the owner's with this number.
fn announce(owner: &Owner, id: u32, size: u64) -> Map {
    let (segment, map) = memory(size as usize);
    let message = [&[2][..], &id.to_le_bytes(), &size.to_le_bytes()].concat();
    send(&owner.socket, &message, &[segment.as_fd()]).unwrap();
    map
}

/// Whether the caller has turned the bit of the owner's lease.
fn is_turned(owner: &Owner, lease: u32) -> bool {
    let index = lease as usize % 8192;
    owner.request.wide(20480 + 8 + 8 * (index / 64)).load(Ordering::Acquire) & 1 << (index % 64) != 0
}

/// Turns the bit of a lease of the caller's, and says so.
fn turn_callers(owner: &Owner, lease: u32) {
    let index = lease as usize % 8192;
    owner.response.wide(16896 + 8 + 8 * (index / 64)).fetch_xor(1 << (index % 64), Ordering::Release);
    owner.response.word(16896).fetch_add(1, Ordering::Release);
    let _ = send(&owner.socket, &[1], &[]);
}

fn call(gallery: &Untyped) -> std::thread::JoinHandle<Result<Blob, CallError>> {
    let call = gallery.call::<_, Blob>("picture", &());
    std::thread::spawn(move || call.wait())
}

#[test]
fn fault_44_an_owners_loans_of_what_is_not_there_end_the_lane() {
    let size = 8192_u64;
    let bad = [
        ("an unknown segment", 1_u32, vec![loan(8192, 4, 0, 10)]),
        ("one byte beyond", 1, vec![loan(8192, 3, size, 1)]),
        ("over the end", 1, vec![loan(8192, 3, size - 1, 2)]),
        ("around", 1, vec![loan(8192, 3, u64::MAX - 7, 8)]),
        ("longer than all", 1, vec![loan(8192, 3, 0, u64::MAX)]),
        ("the second", 2, vec![loan(8192, 3, 0, 10), loan(8193, 3, 0, size + 1)]),
        ("more than a slot holds", 10, vec![loan(8192, 3, 0, 10)]),
        ("loans without end", u32::MAX, vec![loan(8192, 3, 0, 10)]),
    ];
    for (what, lent, loans) in bad {
        let (_place, bus, gallery, mut owner) = meet();
        let calling = call(&gallery);
        let taken = owner.take();
        let _map = announce(&owner, 3, size);
        answer_lending(&owner, &taken, &[1], lent, &loans);
        let error = calling.join().unwrap().expect_err(what);
        assert!(matches!(error, CallError::ProtocolViolation { .. }), "{what}: {error:?}");
        wait_until("the lane has ended", || !gallery.handle().is_connected());
        assert_eq!(memory_of(&bus), (0, 0), "{what}");
    }
}

#[test]
fn fault_44_an_answer_that_names_more_than_is_lent_fails_its_call_alone() {
    let (_place, _bus, gallery, mut owner) = meet();
    let map = announce(&owner, 3, 8192);
    map.write(0, &[5; 8192]);
    let bodies: [(&str, &[u8], u32, Option<usize>); 5] = [
        ("what is lent", &[1], 1, Some(10)),
        ("a second", &[2], 1, None),
        ("one far beyond", &[0xff, 0xff, 0xff, 0xff, 0x0f], 1, None),
        ("what is not lent", &[1], 0, None),
        ("none of what is lent", &[0, 0], 1, Some(0)),
    ];
    let mut turned = false;
    for (what, body, lent, len) in bodies {
        let calling = call(&gallery);
        let taken = owner.take();
        answer_lending(&owner, &taken, body, lent, &[loan(8192, 3, 100, 10)]);
        match (calling.join().unwrap(), len) {
            (Ok(blob), Some(len)) => assert_eq!(&blob[..], &[5; 10][..len], "{what}"),
            (Err(CallError::BadResponse { .. }), None) => {}
            (other, _) => panic!("{what}: {other:?}"),
        }
        turned ^= lent == 1;
        wait_until(&format!("its lease is given back: {what}"), || is_turned(&owner, 8192) == turned);
    }
    assert!(gallery.handle().is_connected());
}

#[test]
fn fault_44_an_owner_that_gives_back_twice_or_what_it_was_never_lent_is_left() {
    for (what, again) in [("twice", true), ("never lent", false)] {
        let (_place, bus, gallery, mut owner) = meet();
        // Lent to another, who is honest.
        let published =
            bus.publish("honest", MethodTable::named("Keeper").method("same", |b: Blob| b)).unwrap();
        let honest: Untyped = bus.proxy("honest").wait().unwrap();
        let held: Blob = honest.call("same", &(picture(&bus, 5),)).wait().unwrap();
        let before = memory_of(&bus);
        let sending = gallery.call::<_, u32>("keep", &(picture(&bus, 6),));
        let sending = std::thread::spawn(move || sending.wait());
        let taken = owner.take();
        let lease = owner.request.word(4096 + 32 + 8).load(Ordering::Relaxed);
        assert_eq!(memory_of(&bus).1, before.1 + 1);
        turn_callers(&owner, lease);
        owner.answer_honestly(&taken, &[3]);
        assert_eq!(sending.join().unwrap(), Ok(3));
        wait_until("it is back", || memory_of(&bus) == before);
        let calling = call(&gallery);
        owner.take();
        turn_callers(&owner, if again { lease } else { lease + 1 });
        let error = calling.join().unwrap().expect_err(what);
        assert!(matches!(error, CallError::ProtocolViolation { .. }), "{what}: {error:?}");
        wait_until("the lane has ended", || !gallery.handle().is_connected());
        assert!(is_whole(&held, 5), "{what}");
        let same: Blob = honest.call("same", &(held.clone(),)).wait().unwrap();
        assert!(is_whole(&same, 5), "{what}");
        assert_eq!(published.violations(), 0);
        drop((held, same));
        wait_until("all is back", || memory_of(&bus) == (0, 0));
    }
}
