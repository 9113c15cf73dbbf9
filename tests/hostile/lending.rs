//! A caller that writes what it has lent, while a method reads it.

use crate::caller::*;
use crate::raw::*;
use crate::support::*;
use crate::victim::{COPIES, victim_for};

const LEN: usize = 100_000;

/// What a method finds of the bytes lent to it before and after they were changed, and whether they were given back by then.
fn change_between_looks(words: &[&str]) -> ((u64, u64), bool) {
    let victim = victim_for(words);
    let mut caller = Caller::connect(&victim.path());
    let (segment, map) = memory(LEN.next_multiple_of(4096));
    caller.announce(1, &segment, LEN.next_multiple_of(4096) as u64);
    map.write(0, &[b'a'; LEN]);
    // The first of the blobs that come with it, and that one behind it.
    let body = [vec![1; 1], vec![0; 7], loan(1, 1, 0, LEN as u64)].concat();
    let look = Request { len: 1, lent: 1, ..caller.request("look_twice", 0, &body) };
    caller.publish(&look);
    let is_blocked = || victim.honest.call::<_, bool>("blocked", &()).wait() == Ok(true);
    wait_until("the method has looked once", is_blocked);
    let is_back = caller.is_turned(1);
    map.write(0, &[b'b'; LEN]);
    victim.honest.call::<_, ()>("release", &()).wait().unwrap();
    let answer = caller.answer(0, 1);
    assert_eq!(answer.status, RETURNED, "{answer:?}");
    let mut looks = &answer.body[..];
    let seen = (take_varint(&mut looks), take_varint(&mut looks));
    wait_until("it is given back", || caller.is_turned(1));
    victim.expect_unharmed();
    (seen, is_back)
}

#[test]
fn what_is_copied_on_arrival_does_not_change_under_its_reader() {
    let all = LEN as u64;
    assert_eq!(change_between_looks(&[COPIES]), ((all, all), true));
}

/// That is what reading in place is, between processes of one user: the copy above is not for nothing.
#[test]
fn what_is_read_in_place_is_its_lenders_to_change() {
    assert_eq!(change_between_looks(&[]), ((LEN as u64, 0), false));
}
