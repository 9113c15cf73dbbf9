//! Requests that no honest caller publishes: faults 28, 29, 38 and 44.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use objbus::MethodTable;

use crate::caller::*;
use crate::raw::*;
use crate::support::*;
use crate::victim::{Victim, victim};

/// Spoils one request after a good one, and expects the lane to be closed and nobody else to notice.
#[track_caller]
fn expect_violation(victim: &Victim, what: &str, spoil: impl FnOnce(&mut Caller)) {
    let mut caller = Caller::connect(&victim.path());
    let good = caller.request("add", 5, &[1, 2]);
    assert_eq!(caller.call(&good).number(), 3);
    spoil(&mut caller);
    caller.expect_broken(what);
    // Closed means closed: nothing more is taken from it, however it rings.
    let before = victim.number("cpu_us");
    let counts: Vec<u32> = (0..SLOTS).map(|slot| caller.count(slot)).collect();
    (0..100).for_each(|_| caller.ring());
    let add = caller.request("add", 9, &[1, 2]);
    caller.publish(&add);
    victim.expect_unharmed();
    assert_eq!((0..SLOTS).map(|slot| caller.count(slot)).collect::<Vec<_>>(), counts, "{what}");
    println!("{what}: {} us", victim.number("cpu_us") - before);
}

#[test]
fn fault_28_a_cell_number_that_jumps_closes_the_lane() {
    let victim = victim();
    // The one expected is 2.
    for number in [1_u32, 3, 4, 66, 67, 0x8000_0002, u32::MAX] {
        expect_violation(&victim, &format!("number {number}"), |caller| {
            let add = caller.request("add", 0, &[1, 2]);
            caller.write(&add);
            caller.request.word(caller.cell(1)).store(number, Ordering::Release);
            caller.ring();
        });
    }
}

#[test]
fn fault_28_a_cell_number_that_goes_back_in_a_later_turn_closes_the_lane() {
    let victim = victim();
    for number in [0_u32, 1, 67, 129, 131] {
        let mut caller = Caller::connect(&victim.path());
        let add = caller.request("add", 0, &[1, 2]);
        (0..66).for_each(|_| assert_eq!(caller.call(&add).number(), 3));
        // Position 66 is in cell 2, where a turn ago 3 stood; 67 would be the request.
        if number == 67 {
            caller.publish(&add);
            assert_eq!(caller.answer(0, 67).number(), 3);
            continue;
        }
        caller.request.word(caller.cell(66)).store(number, Ordering::Release);
        caller.ring();
        caller.expect_broken("a number of no turn");
    }
    victim.expect_unharmed();
}

#[test]
fn fault_28_slots_lengths_and_flags_out_of_range_close_the_lane() {
    let victim = victim();
    type Spoil = fn(Request) -> Request;
    let spoiled: [(&str, Spoil); 14] = [
        ("slot 64", |r| Request { slot: 64, ..r }),
        ("slot 255", |r| Request { slot: 255, ..r }),
        ("length 225", |r| Request { len: 225, ..r }),
        ("length 2^32 - 1", |r| Request { len: u32::MAX, ..r }),
        ("an unknown flag", |r| Request { flags: 8, ..r }),
        ("all flags", |r| Request { flags: 0xff, ..r }),
        ("a body over its chain", |r| Request { flags: CHAIN, len: 161, ..r }),
        ("a spill that overlaps nothing announced", |r| Request {
            flags: SPILLED,
            len: 9,
            body: spill(77, 0, 9),
            ..r
        }),
        ("two lengths", |r| Request { flags: SPILLED, len: 9, body: spill(77, 0, 10), ..r }),
        ("a loan beyond the cell", |r| Request { len: 201, lent: 1, ..r }),
        ("loans without end", |r| Request { lent: u32::MAX, ..r }),
        ("loans without end in a spilled body", |r| Request {
            flags: SPILLED,
            len: 8,
            lent: u32::MAX,
            body: spill(77, 0, 8 + 24 * u64::from(u32::MAX)),
            ..r
        }),
        ("a lease that was never lent", |r| Request { returned: 1 << 13, ..r }),
        ("one way into nowhere", |r| Request {
            flags: SPILLED | ONE_WAY,
            len: 9,
            body: spill(77, 0, 9),
            ..r
        }),
    ];
    for (what, spoil) in spoiled {
        expect_violation(&victim, what, |caller| {
            let request = spoil(caller.request("add", 1, &[1, 2]));
            caller.publish(&request);
        });
    }
}

#[test]
fn fault_28_spills_beyond_their_segment_close_the_lane() {
    let victim = victim();
    let size = 8192_u64;
    for (offset, len) in [(size, 1), (size - 1, 2), (u64::MAX, 1), (u64::MAX - 7, 8), (0, size + 1)] {
        expect_violation(&victim, &format!("{len} bytes at {offset}"), |caller| {
            let (segment, _map) = memory(size as usize);
            caller.announce(3, &segment, size);
            let request = caller.request("bytes", 1, &spill(3, offset, len));
            caller.publish(&Request { flags: SPILLED, len: len as u32, ..request });
        });
    }
}

#[test]
fn fault_28_lane_messages_that_mean_nothing_close_the_lane() {
    let victim = victim();
    let (segment, _map) = memory(4096);
    let fds = std::slice::from_ref(&segment);
    let announce = |id: u32, len: u64| [&[2][..], &id.to_le_bytes(), &len.to_le_bytes()].concat();
    let messages: [(&str, Vec<u8>, bool); 9] = [
        ("an unknown message", vec![9], false),
        ("a long wake", vec![1, 0], false),
        ("a short announcement", announce(1, 4096)[..12].to_vec(), true),
        ("a long announcement", [announce(1, 4096), vec![0]].concat(), true),
        ("an announcement of nothing", announce(1, 4096), false),
        ("another length", announce(1, 8192), true),
        ("a length beyond all", announce(1, u64::MAX - 4096), true),
        ("a drop of nothing", vec![3, 1, 0, 0, 0], false),
        ("a kilobyte", vec![1; 1024], false),
    ];
    for (what, message, with_fd) in messages {
        if what == "a length beyond all" {
            continue; // a limit of the owner's, not a lie: see the bound on segments
        }
        expect_violation(&victim, what, |caller| {
            let fds: Vec<_> = fds.iter().filter(|_| with_fd).map(std::os::fd::AsFd::as_fd).collect();
            send(&caller.socket, &message, &fds).unwrap();
        });
    }
    expect_violation(&victim, "the same segment twice", |caller| {
        caller.announce(1, &segment, 4096);
        caller.announce(1, &segment, 4096);
    });
    expect_violation(&victim, "two descriptors", |caller| {
        let fds = [&segment, &segment].map(std::os::fd::AsFd::as_fd);
        send(&caller.socket, &announce(1, 4096), &fds).unwrap();
    });
}

#[test]
fn fault_44_one_slot_in_two_requests_closes_the_lane() {
    let victim = victim();
    let mut caller = Caller::connect(&victim.path());
    let block = caller.request("block", 7, &[]);
    caller.publish(&block);
    wait_until("the first runs", || caller.started(7) == 1);
    let again = caller.request("add", 7, &[1, 2]);
    caller.publish(&again);
    caller.expect_broken("a slot that is taken");
    assert_eq!(caller.count(7), 0, "the second was not run into the first's slot");
    victim.expect_unharmed();
    wait_until("the method runs", || victim.honest.call::<_, bool>("blocked", &()).wait() == Ok(true));
    victim.number_of_nothing("release");
    wait_until("it ends", || victim.honest.call::<_, bool>("blocked", &()).wait() == Ok(false));
    victim.expect_unharmed();
}

impl Victim {
    fn number_of_nothing(&self, method: &'static str) {
        self.honest.call::<_, ()>(method, &()).wait().expect("an honest call");
    }
}

/// While the owner looks at a request, another thread of its caller changes all of it.
#[test]
fn fault_29_the_owner_acts_on_one_snapshot_of_a_cell() {
    let victim = victim();
    let mut caller = Caller::connect(&victim.path());
    let stop = Arc::new(AtomicBool::new(false));
    let mut seen = [0_u32; 2];
    for round in 0..400_u32 {
        let honest =
            caller.request("examine", 0, &text(b"all of this is text, and it is long enough for a line"));
        let at = caller.cell(caller.position) + 32;
        let request = &caller.request;
        let want = caller.count(0).wrapping_add(1);
        std::thread::scope(|scope| {
            stop.store(false, Ordering::Relaxed);
            // Bytes that are no text, and a length that is none, come and go.
            let flipper = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    request.write(at + 9, &[0xff]);
                    request.write(at, &[0x7f]);
                    request.write(at, &[53]);
                    request.write(at + 9, b"f");
                }
            });
            caller_publish(&caller, &honest);
            let answer = caller.answer(0, want);
            stop.store(true, Ordering::Relaxed);
            flipper.join().unwrap();
            match answer.status {
                RETURNED => assert_eq!(answer.body, [1], "round {round}: what was checked is what was used"),
                _ => assert_eq!(answer.refusal(), Some(BAD_REQUEST), "{answer:?}"),
            }
            seen[usize::from(answer.status == RETURNED)] += 1;
        });
        caller.position += 1;
        // Ten bad ones in a row close the lane.
        let good = caller.request("add", 1, &[1, 2]);
        assert_eq!(caller.call(&good).number(), 3);
    }
    println!("{} bodies were refused, {} taken", seen[0], seen[1]);
    victim.expect_unharmed();
}

/// As `Caller::publish`, while others look at the request memory.
fn caller_publish(caller: &Caller, request: &Request) {
    caller.write(request);
    let number = caller.position + 1;
    caller.request.word(caller.cell(caller.position)).store(number, Ordering::Release);
    caller.ring();
}

#[test]
fn fault_29_the_owner_acts_on_one_snapshot_of_a_spilled_body() {
    let victim = victim();
    let mut caller = Caller::connect(&victim.path());
    let size = 1 << 16;
    let (segment, map) = memory(size);
    map.write(0, &text(&vec![b'x'; size - 3]));
    caller.announce(1, &segment, size as u64);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                map.write(size / 2, &[0xff]);
                map.write(size / 2, b"x");
            }
        });
        for _ in 0..300 {
            let words = spill(1, 0, size as u64);
            let request =
                Request { flags: SPILLED, len: size as u32, ..caller.request("examine", 0, &words) };
            let answer = caller.call(&request);
            match answer.status {
                RETURNED => assert_eq!(answer.body, [1]),
                _ => assert_eq!(answer.refusal(), Some(BAD_REQUEST), "{answer:?}"),
            }
            let good = caller.request("add", 1, &[1, 2]);
            assert_eq!(caller.call(&good).number(), 3);
        }
        stop.store(true, Ordering::Relaxed);
    });
    victim.expect_unharmed();
}

#[test]
fn fault_38_a_lane_shows_nothing_of_another_callers() {
    let victim = victim();
    let secret = "a secret of somebody else's, long enough to spread over lines ".repeat(3);
    for _ in 0..3 {
        let mut other = Caller::connect(&victim.path());
        for slot in 0..SLOTS {
            let mirror = other.request("mirror", slot, &text(secret.as_bytes()));
            assert_eq!(other.call(&mirror).status, RETURNED);
        }
    }
    let mut caller = Caller::connect(&victim.path());
    assert_eq!(caller.response.read(512, 16384), vec![0; 16384], "a fresh lane is empty");
    let add = caller.request("add", 0, &[1, 2]);
    assert_eq!(caller.call(&add).body, [3]);
    let bad = caller.request("mirror", 1, &[9]);
    assert_eq!(caller.call(&bad).refusal(), Some(BAD_REQUEST));
    for slot in 0..2 {
        let at = 512 + 256 * slot;
        let len = caller.response.word(at + 8).load(Ordering::Relaxed) as usize;
        assert_eq!(caller.response.word(at + 12).load(Ordering::Relaxed), 0);
        assert_eq!(caller.response.read(at + 16 + len, 240 - len), vec![0; 240 - len], "beyond the answer");
    }
    let beyond = caller.response.read(512 + 2 * 256, 62 * 256);
    assert_eq!(beyond, vec![0; 62 * 256], "slots that were not used");
}

#[test]
fn fault_30_an_object_is_not_idle_before_the_methods_of_a_caller_that_broke_the_protocol() {
    static IS_RUNNING: AtomicBool = AtomicBool::new(false);
    static MAY_END: AtomicBool = AtomicBool::new(false);
    let slow = || {
        IS_RUNNING.store(true, Ordering::SeqCst);
        while !MAY_END.load(Ordering::SeqCst) {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        IS_RUNNING.store(false, Ordering::SeqCst);
    };
    let place = place();
    let bus = place.bus();
    let published = bus.publish("slow", MethodTable::named("Slow").method("slow", slow)).unwrap();
    let mut caller = Caller::connect(&place.path().join("slow"));
    caller.publish(&caller.request("slow", 0, &[]));
    wait_until("the method runs", || IS_RUNNING.load(Ordering::SeqCst));
    caller.publish(&Request { slot: 64, ..caller.request("slow", 1, &[]) });
    caller.expect_broken("slot 64");
    let mut shutdown = published.shutdown();
    let polled = Pin::new(&mut shutdown).poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending(), "its method still runs");
    assert!(caller.is_broken(), "it is told no other reason");
    MAY_END.store(true, Ordering::SeqCst);
    assert!(shutdown.wait(PATIENCE));
    assert!(!IS_RUNNING.load(Ordering::SeqCst));
}
