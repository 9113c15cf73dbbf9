//! The machine's own floors: what a round trip between two processes costs here before any bus does its work.
//!
//! Every other figure of this project is a ratio to one of these, taken in the same rounds. Here they are set against each other,
//! which also shows how far two equal things may differ on this machine: a floor against itself should read 1.00.

mod support;

use std::time::Duration;

use support::counters::Counters;
use support::floor::{self, Floor, Floors};
use support::peer::Role;
use support::placement::Placement;
use support::side::{Each, Pace};
use support::suite::Suite;

/// The time that both processes idle before each call of a parked row.
const GAPS: [Duration; 3] = [Duration::from_micros(100), Duration::from_millis(1), Duration::from_millis(10)];

/// How long a resting peer is looked at.
const REST: Duration = Duration::from_millis(100);

fn main() {
    if let Some(role) = Role::of_this_process() {
        assert_eq!(role.name, floor::ROLE, "this bench knows no other peer");
        floor::serve(&role);
    }
    let mut suite = Suite::from_args("floor");
    let placements = Placement::available();
    let floors: Vec<Floors> = placements.iter().map(|placement| Floors::start(*placement)).collect();
    for (placement, floors) in placements.iter().zip(&floors) {
        placement.pin_caller();
        compare_hot(&mut suite, *placement, floors);
        compare_parked(&mut suite, *placement, floors);
    }
    floors.iter().for_each(|floors| note_rest(&suite, floors));
    for (placement, floors) in placements.iter().zip(&floors) {
        placement.pin_caller();
        for floor in Floor::ALL.into_iter().filter(|floor| sensible(*placement, *floor)) {
            suite.record(floor.name(), *placement, &mut floors.side(floor));
        }
    }
    suite.finish();
}

/// Calls one after the other: each floor against the one that the bus is held to in this placement.
fn compare_hot(suite: &mut Suite, placement: Placement, floors: &Floors) {
    let base = if placement == Placement::TwoCpus { Floor::Line } else { Floor::TimedFutex };
    let nothing = (&mut Each(|| ()), &mut floors.side(base));
    suite.compare("nothing: two time stamps", (placement, base.name()), Pace::HOT, nothing);
    for floor in Floor::ALL.into_iter().filter(|floor| sensible(placement, *floor)) {
        let sides = (&mut floors.side(floor), &mut floors.side(base));
        suite.compare(floor.name(), (placement, base.name()), Pace::HOT, sides);
    }
}

/// Calls with nothing to do between them: what it takes to wake a process, and what a time-out adds.
fn compare_parked(suite: &mut Suite, placement: Placement, floors: &Floors) {
    let timed = GAPS.map(|gap| (Floor::TimedFutex, gap));
    for (floor, gap) in timed.into_iter().chain([(Floor::Socket, GAPS[1])]) {
        let name = format!("{}, {gap:?} apart", floor.name());
        let sides = (&mut floors.side(floor), &mut floors.side(Floor::Futex));
        suite.compare(&name, (placement, Floor::Futex.name()), Pace::apart(gap), sides);
    }
}

/// What a peer uses between its turns: the paired rounds rest on this being nothing.
fn note_rest(suite: &Suite, floors: &Floors) {
    let used = || Counters::of(floors.peer_pid()).expect("the peer lives");
    let before = used();
    std::thread::sleep(REST);
    let Counters { voluntary_switches, cpu, .. } = used().since(before);
    suite.note(&format!(
        "a peer at rest for {REST:?}: {voluntary_switches} context switches, {cpu:?} of CPU time"
    ));
}

/// Whether the floor means anything at this placement.
fn sensible(placement: Placement, floor: Floor) -> bool {
    placement == Placement::TwoCpus || !floor.spins()
}
