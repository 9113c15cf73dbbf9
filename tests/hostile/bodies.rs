//! Bodies that are none, or too much: faults 10, 11 and 13.

use objbus::{CallError, Executed};

use crate::caller::*;
use crate::raw::*;
use crate::support::*;
use crate::victim::{BODY_MAX, Victim, victim};

/// Bodies that are no arguments of their method.
fn garbage() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    vec![
        ("nothing", "add", vec![]),
        ("half of it", "add", vec![1]),
        ("a byte more", "add", vec![1, 2, 3]),
        ("a number beyond its type", "add", varints(&[1 << 32, 1])),
        ("a number without end", "add", vec![0xff; 20]),
        ("no text", "mirror", text(b"\xff\xfe")),
        ("half a letter", "mirror", text(b"\xe2\x82")),
        ("a surrogate", "mirror", text(b"\xed\xa0\x80")),
        ("a text longer than the body", "mirror", [varints(&[100]), b"short".to_vec()].concat()),
        ("no bool", "flag", vec![2]),
        ("no option", "maybe", vec![2, 1]),
        ("no letter", "letter", text(b"ab")),
        ("no variant", "shape", vec![3]),
        ("a variant's half", "shape", [vec![2], text(b"box")].concat()),
    ]
}

#[test]
fn fault_10_garbage_is_a_bad_request_and_ten_in_a_row_close_the_lane() {
    let victim = victim();
    for (what, method, body) in garbage() {
        let mut caller = Caller::connect(&victim.path());
        let bad = caller.request(method, 0, &body);
        for _ in 0..9 {
            let answer = caller.call(&bad);
            assert_eq!(answer.refusal(), Some(BAD_REQUEST), "{what}: {answer:?}");
        }
        let good = caller.request("add", 1, &[1, 2]);
        assert_eq!(caller.call(&good).number(), 3, "nine were forgiven: {what}");
        for _ in 0..9 {
            assert_eq!(caller.call(&bad).refusal(), Some(BAD_REQUEST));
        }
        assert!(!caller.is_broken());
        assert_eq!(caller.call(&bad).refusal(), Some(BAD_REQUEST), "the tenth is answered, too");
        caller.expect_broken(what);
        victim.expect_unharmed();
    }
}

#[test]
fn fault_10_what_lies_behind_the_request_that_closes_the_lane_is_given_back() {
    let victim = victim();
    let mut caller = Caller::connect(&victim.path());
    let (segment, _map) = memory(4096);
    caller.announce(1, &segment, 4096);
    let (_, method, body) = garbage().swap_remove(0);
    for slot in 0..10 {
        let bad = caller.request(method, slot, &body);
        caller.publish_silently(&bad);
    }
    // More than other workers take before the tenth has ended.
    let leases = 1..=50;
    for lease in leases.clone() {
        let words = loan(lease, 1, 0, 4096);
        let behind = Request { flags: SPILLED, len: 4096, ..caller.request("note", 9 + lease, &words) };
        caller.publish_silently(&behind);
    }
    caller.ring();
    caller.expect_broken("ten in a row");
    wait_until("all memory is given back", || leases.clone().all(|lease| caller.is_turned(lease)));
    victim.expect_unharmed();
}

/// Bodies whose decoding would cost far more than they do.
fn bombs(caller: &Caller) -> Vec<(&'static str, Request)> {
    let bomb = |what, method: &str, body: Vec<u8>| (what, caller.request(method, 0, &body));
    vec![
        bomb("2^60 of nothing", "units", varints(&[1 << 60])),
        bomb("2^64 of nothing", "units", varints(&[u64::MAX])),
        bomb("2^60 numbers", "numbers", varints(&[1 << 60])),
        bomb("2^60 bytes", "bytes", varints(&[1 << 60])),
        bomb("2^60 letters", "mirror", varints(&[1 << 60])),
        bomb("200 levels", "nested", vec![1; 200]),
        bomb("2^60 sides", "shape", [vec![2], text(b"x"), varints(&[1 << 60])].concat()),
    ]
}

/// A caller with a segment full of `body`, and a request for it.
fn spilled(caller: &Caller, id: u32, method: &str, body: &[u8]) -> Request {
    let (segment, map) = memory(body.len().next_multiple_of(4096));
    map.write(0, body);
    caller.announce(id, &segment, body.len().next_multiple_of(4096) as u64);
    let words = spill(id, 0, body.len() as u64);
    Request { flags: SPILLED, len: body.len() as u32, ..caller.request(method, 0, &words) }
}

#[track_caller]
fn expect_cheap(victim: &Victim, caller: &mut Caller, what: &str, bomb: &Request, body: u64) {
    victim.number("heap_peak");
    let before = victim.number("cpu_us");
    let answer = caller.call(bomb);
    let cpu_us = victim.number("cpu_us") - before;
    let heap = victim.number("heap_peak");
    println!("{what}: {cpu_us} us, {heap} bytes");
    assert_eq!(answer.refusal(), Some(BAD_REQUEST), "{what}: {answer:?}");
    // The copy of the body itself, the budget, and the owner's own small change.
    assert!(heap <= (16 << 20) + 65 * body + (1 << 20), "{what} took {heap} bytes");
    // Unoptimised code on a loaded machine; a bomb that went off would take minutes.
    assert!(cpu_us < 500_000, "{what} took {cpu_us} us");
}

#[test]
fn fault_11_bombs_cost_little_time_and_little_memory() {
    let victim = victim();
    let mut caller = Caller::connect(&victim.path());
    for (what, bomb) in bombs(&caller) {
        expect_cheap(&victim, &mut caller, what, &bomb, 224);
        let good = caller.request("add", 0, &[1, 2]);
        assert_eq!(caller.call(&good).number(), 3);
    }
    let deep = vec![1; 100_000];
    let bomb = spilled(&caller, 1, "nested", &deep);
    expect_cheap(&victim, &mut caller, "100,000 levels", &bomb, deep.len() as u64);
    // Each empty list takes 24 bytes where it had one.
    let many = [varints(&[200_000]), vec![0; 200_000]].concat();
    let lists = spilled(&caller, 2, "lists", &many);
    let before = victim.number("heap_peak");
    let answer = caller.call(&lists);
    println!("200,000 empty lists: {:?}, {before} then {} bytes", answer.status, victim.number("heap_peak"));
    assert_eq!(answer.number(), 200_000, "24 bytes for one are within the budget");
    victim.expect_unharmed();
}

#[test]
fn fault_13_what_is_too_large_is_refused_with_its_size() {
    let victim = victim();
    let mut caller = Caller::connect(&victim.path());
    let body = text(&vec![7; BODY_MAX as usize]);
    let large = spilled(&caller, 1, "bytes", &body);
    let answer = caller.call(&large);
    assert_eq!(answer.body, varints(&[2, BODY_MAX, body.len() as u64]), "{answer:?}");
    let exact = text(&vec![7; BODY_MAX as usize - 3]);
    assert_eq!(exact.len() as u64, BODY_MAX);
    let largest = spilled(&caller, 2, "bytes", &exact);
    assert_eq!(caller.call(&largest).number(), BODY_MAX - 3);

    let result = victim.honest.call::<_, u64>("bytes", &(vec![7_u8; BODY_MAX as usize],)).wait();
    let size = BODY_MAX + 3;
    assert_eq!(result, Err(CallError::TooLarge { limit: BODY_MAX, size, executed: Executed::No }));
    let result = victim.honest.call::<_, Vec<u8>>("zeros", &(BODY_MAX,)).wait();
    assert!(
        matches!(result, Err(CallError::TooLarge { limit: BODY_MAX, executed: Executed::Yes, .. })),
        "{result:?}"
    );
    let result = victim.honest.call::<_, Vec<u8>>("zeros", &(BODY_MAX - 3,)).wait();
    assert_eq!(result.map(|zeros| zeros.len() as u64), Ok(BODY_MAX - 3));
    victim.expect_unharmed();
}

#[test]
fn fault_13_an_oversize_length_alone_costs_nothing() {
    let victim = victim();
    let mut caller = Caller::connect(&victim.path());
    // Says 4 GiB and has no memory for it: refused by its size, before any look at the segment.
    let words = spill(9, 0, u32::MAX.into());
    let lie = Request { flags: SPILLED, len: u32::MAX, ..caller.request("bytes", 0, &words) };
    victim.number("heap_peak");
    let answer = caller.call(&lie);
    assert_eq!(answer.body, varints(&[2, BODY_MAX, u32::MAX.into()]));
    assert!(victim.number("heap_peak") < 1 << 20);
    wait_until("the owner still serves it", || {
        let add = caller.request("add", 2, &[1, 1]);
        caller.call(&add).number() == 2
    });
}

/// A one-way call is answered when it is taken, but its memory comes back, and is used for the next, only when it is copied out.
#[test]
fn fault_29_a_large_one_way_body_is_read_before_its_memory_is_used_again() {
    let victim = victim();
    let mut caller = Caller::connect(&victim.path());
    let len = BODY_MAX as usize;
    let (segment, map) = memory(len);
    caller.announce(1, &segment, len as u64);
    let calls = 20;
    for call in 0..calls {
        map.write(0, &text(&vec![b'a'; len - 3]));
        let words = spill(1, 0, len as u64);
        let note = Request { flags: SPILLED | ONE_WAY, len: len as u32, ..caller.request("note", 0, &words) };
        caller.publish(&note);
        wait_until("it is taken", || caller.count(0) == call + 1);
        wait_until("its memory is given back", || caller.is_turned(1) == call.is_multiple_of(2));
        map.write(len / 2, b"0123456789");
    }
    let number = |method| victim.honest.call::<_, i64>(method, &()).wait().expect("an honest call");
    wait_until("all have run", || number("noted") == i64::from(calls));
    assert_eq!(number("torn"), 0, "bodies of one letter had others in them");
}
