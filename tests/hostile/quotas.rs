//! Callers that make the owner hold all they can, beside honest ones: faults 15 and 21.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use crate::caller::*;
use crate::raw::*;
use crate::support::*;
use crate::victim::{IN_FLIGHT_MAX, connected, victim};

/// What a caller is told for whom no room is left: the refusal `NoMemory`, not executed.
const NO_MEMORY: [u8; 2] = [13, 0];
/// A quota is reached.
const OVERLOADED: u8 = 11;
/// No room for the result: executed.
const NO_MEMORY_AFTERWARDS: [u8; 2] = [13, 2];

/// Segments that the owner knows at most, and one peer's share while nobody else has any.
const SEGMENTS: usize = 16_384;
const SHARE: usize = SEGMENTS / 2;
/// Segments on one lane.
const OF_LANE: usize = 4_096;

/// Sends a big body whenever it is told to; in a process of its own, since what one process may have is counted together.
/// Argument: the directory.
pub fn run_sender(arguments: &[String]) {
    let bus = objbus::Bus::builder().directory(&arguments[0]).timeout(PATIENCE).open();
    let victim = connected(&bus.expect("the directory is ours")).expect("it is published");
    say("ready");
    loop {
        hear();
        let sent = victim.call::<_, u64>("bytes", &(vec![7_u8; 100_000],)).wait();
        say(format!("{sent:?}"));
    }
}

#[track_caller]
fn expect_served(sender: &mut Child) {
    sender.tell("send");
    sender.expect("Ok(100000)");
}

/// Announces, however slowly the owner reads.
fn announce(caller: &Caller, id: u32, segment: &OwnedFd) {
    let message = [&[2][..], &id.to_le_bytes(), &4096_u64.to_le_bytes()].concat();
    wait_until("the owner reads its socket", || match send(&caller.socket, &message, &[segment.as_fd()]) {
        Ok(()) => true,
        Err(Errno::AGAIN | Errno::TOOMANYREFS) => false,
        Err(error) => panic!("announcing {id}: {error}"),
    });
}

/// A call whose body is the first byte of a segment: no bytes at all.
fn from_segment(caller: &mut Caller, id: u32) -> Answer {
    let empty = caller.request("bytes", 0, &spill(id, 0, 1));
    caller.call(&Request { flags: SPILLED, len: 1, ..empty })
}

fn expect_no_room(caller: &mut Caller, id: u32) {
    let answer = from_segment(caller, id);
    assert_eq!((answer.status, &answer.body[..]), (REFUSED, &NO_MEMORY[..]), "segment {id}");
}

#[test]
fn fault_21_a_caller_that_announces_all_it_can_leaves_the_others_room() {
    let victim = victim();
    let mut sender = start("sender", &[victim.place.text()]);
    sender.expect("ready");
    let pid = victim.process.pid();
    let before = held_by(pid).mappings;
    let mut lanes: Vec<_> = (0..3).map(|_| Caller::connect(&victim.path())).collect();
    for lane in &lanes {
        for id in 0..OF_LANE as u32 {
            announce(lane, id, &memory(4096).0);
        }
    }
    // A body in a segment has the owner read all that was announced before it.
    let last = OF_LANE as u32 - 1;
    assert_eq!(from_segment(&mut lanes[0], last).number(), 0);
    expect_no_room(&mut lanes[2], last);
    let known = held_by(pid).mappings - before;
    println!("{known} segments of one caller are mapped");
    assert!(known <= SHARE + 3 * 2, "{known} of its segments and lanes are mapped");

    expect_served(&mut sender);
    victim.expect_unharmed();
    let add = lanes[2].request("add", 1, &[1, 2]);
    assert_eq!(lanes[2].call(&add).number(), 3, "what needs no segment is served");

    drop(lanes);
    wait_until("its segments are gone", || held_by(pid).mappings <= before + 4);
    let mut again = Caller::connect(&victim.path());
    announce(&again, 1, &memory(4096).0);
    assert_eq!(from_segment(&mut again, 1).number(), 0);
    expect_served(&mut sender);
}

#[test]
fn fault_21_one_segment_announced_again_and_again_counts_each_time() {
    let victim = victim();
    let (segment, _map) = memory(4096);
    let mut lanes: Vec<_> = (0..3).map(|_| Caller::connect(&victim.path())).collect();
    let before = victim.honest.call::<_, i64>("heap", &()).wait().expect("an honest call");
    for lane in &lanes {
        for id in 0..OF_LANE as u32 {
            announce(lane, id, &segment);
        }
    }
    let last = OF_LANE as u32 - 1;
    assert_eq!(from_segment(&mut lanes[0], last).number(), 0);
    expect_no_room(&mut lanes[2], last);
    let grown = victim.honest.call::<_, i64>("heap", &()).wait().expect("an honest call") - before;
    println!("{grown} bytes for {SHARE} announcements");
    assert!(grown < 256 * SHARE as i64, "the heap grew by {grown} bytes");
    victim.expect_unharmed();
}

#[test]
fn fault_15_answers_that_one_process_does_not_take_are_counted_over_all_its_lanes() {
    let victim = victim();
    let mut sender = start("sender", &[victim.place.text()]);
    sender.expect("ready");
    let len = 32 << 10;
    let mut lanes: Vec<_> = (0..3).map(|_| Caller::connect(&victim.path())).collect();
    let mut kept = 0;
    for lane in &mut lanes {
        for slot in 0..SLOTS {
            let zeros = lane.request("zeros", slot, &varints(&[len]));
            let answer = lane.call(&zeros);
            match answer.status {
                RETURNED => kept += len,
                _ => assert_eq!((answer.status, &answer.body[..]), (REFUSED, &NO_MEMORY_AFTERWARDS[..])),
            }
        }
    }
    println!("{kept} bytes of answers are kept for a process that takes none");
    assert!(kept <= IN_FLIGHT_MAX && kept > IN_FLIGHT_MAX - 2 * len, "{kept} bytes are kept");

    let (segment, _map) = memory(len as usize);
    lanes[2].announce(1, &segment, len);
    let zeros = lanes[2].request("bytes", 0, &spill(1, 0, len));
    let answer = lanes[2].call(&Request { flags: SPILLED, len: len as u32, ..zeros });
    assert_eq!(answer.refusal(), Some(OVERLOADED), "a request counts as well");
    assert_eq!(from_segment(&mut lanes[2], 1).number(), 0, "a byte is left for one that is short");
    expect_served(&mut sender);

    lanes[0].give_back(lanes[0].lease(0));
    let zeros = lanes[2].request("zeros", 1, &varints(&[len]));
    assert_eq!(lanes[2].call(&zeros).status, RETURNED, "what was given back makes room at once");
    assert_eq!(lanes[2].call(&Request { slot: 2, ..zeros.clone() }).status, REFUSED);
    let with_return = Request { returned: lanes[0].lease(1), ..lanes[0].request("add", 1, &[1, 2]) };
    assert_eq!(lanes[0].call(&with_return).number(), 3);
    assert_eq!(lanes[2].call(&Request { slot: 2, ..zeros.clone() }).status, RETURNED, "so does a request");
    assert_eq!(lanes[2].call(&Request { slot: 3, ..zeros }).status, REFUSED);
    drop(lanes);
    expect_served(&mut sender);
    victim.expect_unharmed();
}
