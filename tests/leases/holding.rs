//! A blob that is held while its lane ends, in every way that a lane can end: rows 36 and 42.

use crate::actor::*;
use crate::support::system::wait_for_release;
use crate::support::*;

/// Little enough that a lender can use all of it again while something is held.
const MEMORY: u64 = 8 << 20;
/// What is lent: number, pattern, length.
const LENT: [(u64, u8, usize); 3] = [(1, 17, 1 << 20), (2, 34, 70_000), (3, 51, 100)];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Owner,
    Caller,
}

/// An owner of a shelf and its caller.
struct Pair {
    place: Place,
    owner: Actor,
    caller: Actor,
    successor: Option<Actor>,
}

/// A pair of which `holder` holds what the other lent.
fn pair(holder: Side) -> Pair {
    let place = place();
    let (mut owner, mut caller) = (actor(&place, MEMORY), actor(&place, MEMORY));
    owner.order("publish shelf");
    caller.order("connect shelf");
    let mut pair = Pair { place, owner, caller, successor: None };
    for (id, seed, len) in LENT {
        pair.lender(holder).order(&format!("make {id} {seed} {len}"));
        let lend = if holder == Side::Owner { "give" } else { "take" };
        pair.caller.order(&format!("{lend} shelf {id} {id}"));
        pair.lender(holder).order(&format!("drop {id}"));
    }
    pair
}

impl Pair {
    fn holder(&mut self, holder: Side) -> &mut Actor {
        if holder == Side::Owner { &mut self.owner } else { &mut self.caller }
    }

    fn lender(&mut self, holder: Side) -> &mut Actor {
        if holder == Side::Owner { &mut self.caller } else { &mut self.owner }
    }
}

#[track_caller]
fn check_all(holder: &mut Actor, when: &str) {
    for (id, seed, len) in LENT {
        assert_eq!(holder.ask(&format!("check {id} {seed} 0 {len}")), "ok", "blob {id} {when}");
    }
}

fn drop_all(holder: &mut Actor) {
    LENT.iter().for_each(|(id, ..)| holder.order(&format!("drop {id}")));
}

/// Ends a lane.
type End = fn(&mut Pair);

/// Ends after which both processes live, with their buses.
const ENDS: [(&str, End); 9] = [
    ("no end", |_| {}),
    ("the proxy is dropped", |pair| pair.caller.order("disconnect shelf")),
    ("the caller's bus is closed", |pair| pair.caller.order("close")),
    ("the owner's bus is closed", |pair| pair.owner.order("close")),
    ("the guard is dropped", |pair| pair.owner.order("unpublish")),
    ("the object is shut down", |pair| pair.owner.order("shut down")),
    ("another publisher takes the name", |pair| {
        let mut successor = actor(&pair.place, MEMORY);
        successor.order("replace shelf");
        // The next call goes there.
        successor.order("make 9 1 10");
        wait_until("the caller calls the successor", || pair.caller.ask("take shelf 9 9") == "ok");
        pair.caller.order("drop 9");
        pair.successor = Some(successor);
    }),
    ("the caller breaks the protocol", |pair| {
        pair.caller.order("misbehave shelf");
        wait_until("it is found out", || pair.owner.ask("violations") == "1");
    }),
    ("the proxy is dropped and the object shut down", |pair| {
        pair.caller.order("disconnect shelf");
        pair.owner.order("shut down");
    }),
];

fn hold_across(holder: Side, what: &str, end: End) {
    let mut pair = pair(holder);
    let when = format!("held by the {holder:?}, when {what}");
    end(&mut pair);
    for _ in 0..3 {
        pair.lender(holder).order("fill");
        let filled = pair.lender(holder).number("filled");
        assert!(filled > MEMORY / 4, "only {filled} bytes were used again, {when}");
        check_all(pair.holder(holder), &when);
        pair.lender(holder).order("empty");
    }
    let memory = pair.lender(holder).ask("memory");
    assert!(memory.ends_with(" 3"), "in use, lent and leases are {memory}, {when}");
    check_all(pair.holder(holder), &when);
    drop_all(pair.holder(holder));
    pair.lender(holder).wait_for_memory(&when);
    pair.holder(holder).wait_for_memory(&when);
    pair.caller.order("drop bus");
    pair.owner.order("drop bus");
    for side in [&pair.owner, &pair.caller] {
        wait_until(&format!("nothing is mapped any more: {when}"), || held_by(side.0.pid()).mappings == 0);
    }
}

#[test]
fn row_42_what_the_owner_lent_stays_as_it_is_until_the_caller_lets_go() {
    ENDS.iter().for_each(|(what, end)| hold_across(Side::Caller, what, *end));
}

#[test]
fn row_42_what_the_caller_lent_stays_as_it_is_until_the_owner_lets_go() {
    ENDS.iter().for_each(|(what, end)| hold_across(Side::Owner, what, *end));
}

/// The bus goes on one side or both, the lender's or the holder's.
#[test]
fn row_42_a_held_blob_outlives_the_buses_of_both() {
    for holder in [Side::Owner, Side::Caller] {
        for [of_owner, of_caller] in [[true, false], [false, true], [true, true]] {
            let mut pair = pair(holder);
            let when = format!("held by the {holder:?}, buses dropped: {of_owner}, {of_caller}");
            let is_gone = if holder == Side::Owner { of_caller } else { of_owner };
            if of_owner {
                pair.owner.order("drop bus");
            }
            if of_caller {
                pair.caller.order("drop bus");
            }
            if !is_gone {
                pair.lender(holder).order("fill");
                check_all(pair.holder(holder), &when);
                pair.lender(holder).order("empty");
            }
            check_all(pair.holder(holder), &when);
            drop_all(pair.holder(holder));
            if !is_gone {
                pair.lender(holder).wait_for_memory(&when);
                pair.lender(holder).order("drop bus");
            } else if [of_owner, of_caller] != [true, true] {
                pair.holder(holder).order("drop bus");
            }
            for side in [&pair.owner, &pair.caller] {
                let unmapped = || held_by(side.0.pid()).mappings == 0;
                wait_until(&format!("nothing is mapped any more: {when}"), unmapped);
            }
        }
    }
}

#[test]
fn row_42_a_held_blob_outlives_its_lender() {
    for holder in [Side::Owner, Side::Caller] {
        let mut pair = pair(holder);
        pair.lender(holder).0.kill();
        check_all(pair.holder(holder), "after its lender");
        pair.holder(holder).order("fill");
        check_all(pair.holder(holder), "after its lender");
        pair.holder(holder).order("empty");
        drop_all(pair.holder(holder));
        pair.holder(holder).wait_for_memory("the holder has nothing of its own in use");
        pair.holder(holder).order("drop bus");
        let pid = pair.holder(holder).0.pid();
        wait_until("nothing is mapped any more", || held_by(pid).mappings == 0);
    }
}

#[test]
fn row_42_the_lender_has_its_memory_back_when_the_holder_dies() {
    for holder in [Side::Owner, Side::Caller] {
        let mut pair = pair(holder);
        pair.holder(holder).0.kill();
        pair.lender(holder).wait_for_memory("the holder is dead");
        pair.lender(holder).order("fill");
        let filled = pair.lender(holder).number("filled");
        assert!(filled > MEMORY * 9 / 10, "{filled} bytes could be used again");
    }
}

#[test]
fn row_36_what_a_dead_caller_lent_is_read_on_and_freed_when_it_is_dropped() {
    let place = place();
    let mut owner = actor(&place, MEMORY);
    owner.order("publish shelf");
    let lend = |owner: &mut Actor| {
        let mut caller = actor(&place, MEMORY);
        for (id, seed, len) in LENT {
            caller.order(&format!("make {id} {seed} {len}"));
            caller.order(&format!("give shelf {id} {id}"));
            caller.order(&format!("drop {id}"));
        }
        owner.order("slice 1 4 4096 8192");
        caller
    };
    // What stays in a process once it has had a caller.
    let mut first = lend(&mut owner);
    first.0.kill();
    drop_all(&mut owner);
    owner.order("drop 4");
    wait_until("the lane is gone", || owner.ask("callers") == "0");
    wait_until("its memory is unmapped", || held_by(owner.0.pid()).mappings == 0);
    let before = held_by(owner.0.pid());
    for round in 0..5 {
        let mut caller = lend(&mut owner);
        caller.0.kill();
        wait_until("the lane is gone", || owner.ask("callers") == "0");
        check_all(&mut owner, "after its lender");
        owner.order("fill");
        check_all(&mut owner, "after its lender");
        owner.order("empty");
        assert!(held_by(owner.0.pid()).mappings > before.mappings, "round {round}: it is still mapped");
        drop_all(&mut owner);
        assert_eq!(owner.ask("check 4 17 4096 4096"), "ok", "a part is as good as the whole");
        owner.order("drop 4");
        // The owner's own memory, which it filled, may be kept for later.
        let own = owner.number("segments") as usize;
        let kept = Held { fds: before.fds + own, mappings: before.mappings + own };
        wait_for_release(owner.0.pid(), kept);
    }
}
