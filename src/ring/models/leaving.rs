//! A slot whose caller has given it up goes to whoever comes by after its answer: nobody who comes by while it is given away
//! passes it for good, and who gave it away does not use the lane behind it any more.

use loom::cell::UnsafeCell;

use super::*;
use crate::sync::{AtomicBool, AtomicU32, fence};

/// What `Port::leave` looks at once more, after it has given the slot away.
#[derive(Clone, Copy)]
enum Looks {
    /// At all that may have passed it by, and not at the lane.
    AtAll,
    AtNothing,
    /// At the lane behind the port, which may be gone.
    AtTheLane,
}

/// Mirrors `Port` and `Lane`, as far as one abandoned slot is concerned, whose answer does not come.
struct Port {
    looks: Looks,
    /// A number for the lane; 0 once it was taken out.
    lane: UnsafeCell<u32>,
    abandoned: AtomicU32,
    waiting: AtomicU32,
    retired: AtomicBool,
    arm: AtomicU32,
    sleep: AtomicU32,
}

// SAFETY: `lane` is checked by loom.
unsafe impl Sync for Port {}
// SAFETY: as above.
unsafe impl Send for Port {}

impl Port {
    fn new(looks: Looks) -> Arc<Port> {
        Arc::new(Port {
            looks,
            lane: UnsafeCell::new(1),
            abandoned: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            retired: AtomicBool::new(false),
            arm: AtomicU32::new(FIRST_ARM),
            sleep: AtomicU32::new(AWAKE),
        })
    }

    fn lane(&self) -> u32 {
        // SAFETY: the slot is held; loom complains if somebody writes.
        self.lane.with(|lane| unsafe { *lane })
    }

    /// Mirrors `Port::abandon`.
    fn abandon(&self) {
        self.abandoned.fetch_or(1, Ordering::SeqCst);
        self.reap();
    }

    /// Mirrors `Port::reap_slot`, and `vacate` where the slot was the last one.
    fn reap(&self) {
        if self.abandoned.fetch_and(0, Ordering::SeqCst) == 0 {
            return;
        }
        assert_eq!(self.lane(), 1);
        if self.retired.load(Ordering::SeqCst) {
            // SAFETY: the slot is held; loom complains if somebody reads.
            self.lane.with_mut(|lane| unsafe { *lane = 0 });
        } else {
            self.leave();
        }
    }

    /// Mirrors `Port::leave`.
    fn leave(&self) {
        let arm = self.arm.load(Ordering::SeqCst);
        let is_news = self.waiting.load(Ordering::SeqCst) != 0;
        if is_news {
            self.sleep.store(arm, Ordering::SeqCst);
        }
        self.abandoned.fetch_or(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let was_passed_by = match self.looks {
            Looks::AtAll if is_news => self.arm.load(Ordering::SeqCst) != arm,
            Looks::AtAll => self.waiting.load(Ordering::SeqCst) != 0,
            Looks::AtNothing => return,
            Looks::AtTheLane => self.lane() != 1,
        };
        if was_passed_by || self.retired.load(Ordering::SeqCst) {
            self.reap();
        }
    }
}

/// One gives its slot away while another does `meanwhile` and comes by.
fn meet(looks: Looks, before: fn(&Port), meanwhile: fn(&Port), after: fn(&Port)) {
    let port = Port::new(looks);
    before(&port);
    let other = {
        let port = Arc::clone(&port);
        thread::spawn(move || {
            meanwhile(&port);
            fence(Ordering::SeqCst);
            port.reap();
        })
    };
    port.abandon();
    other.join().unwrap();
    after(&port);
}

/// Somebody begins to wait for a slot.
fn wait_for_a_slot(looks: Looks) {
    let queue = |port: &Port| port.waiting.store(1, Ordering::SeqCst);
    let armed = |port: &Port| assert_ne!(port.sleep.load(Ordering::SeqCst), AWAKE, "found: an unarmed slot");
    meet(looks, |_| {}, queue, armed);
}

/// The watcher hears a wake for another slot: the owner sends no second one for its number.
fn hear_a_wake(looks: Looks) {
    let wake = |port: &Port| port.arm.store(FIRST_ARM + 1, Ordering::SeqCst);
    let armed =
        |port: &Port| assert_eq!(port.sleep.load(Ordering::SeqCst), FIRST_ARM + 1, "found: a spent number");
    meet(looks, |port| port.waiting.store(1, Ordering::SeqCst), wake, armed);
}

/// The lane ends.
fn end(looks: Looks) {
    let retire = |port: &Port| port.retired.store(true, Ordering::SeqCst);
    meet(looks, |_| {}, retire, |port| assert_eq!(port.lane(), 0, "found: a slot left on an ended lane"));
}

#[test]
fn who_waits_finds_a_slot_given_away_or_is_found() {
    explore(None, || wait_for_a_slot(Looks::AtAll));
}

#[test]
#[should_panic(expected = "found: an unarmed slot")]
fn a_slot_given_away_without_another_look_forgets_who_waits() {
    explore(None, || wait_for_a_slot(Looks::AtNothing));
}

#[test]
fn a_slot_given_away_is_armed_with_the_present_number() {
    explore(None, || hear_a_wake(Looks::AtAll));
}

#[test]
#[should_panic(expected = "found: a spent number")]
fn a_slot_given_away_without_another_look_keeps_a_spent_number() {
    explore(None, || hear_a_wake(Looks::AtNothing));
}

#[test]
fn a_slot_given_away_leaves_no_ended_lane_behind() {
    explore(None, || end(Looks::AtAll));
}

#[test]
#[should_panic(expected = "found: a slot left on an ended lane")]
fn a_slot_given_away_without_another_look_keeps_an_ended_lane() {
    explore(None, || end(Looks::AtNothing));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_lane_looked_at_after_its_slot_was_given_away_may_be_gone() {
    explore(None, || end(Looks::AtTheLane));
}
