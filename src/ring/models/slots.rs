//! Slots and what hangs on them: a lane is not used after it was taken out from behind its port, a living one is not
//! taken out, and who waits for a slot gets one.

use loom::cell::UnsafeCell;

use super::*;
use crate::ring::slots::SlotSet;
use crate::sync::{AtomicBool, AtomicU32, fence};

/// Mirrors `Port`, with a number for its lane.
struct Port {
    slots: SlotSet,
    lane: UnsafeCell<u32>,
    retired: AtomicBool,
    is_vacant: AtomicBool,
    waiting: AtomicU32,
    queue: Mutex<Vec<u32>>,
    /// Who waits for a slot, and is woken.
    woken: [Event; 2],
    /// Whether `vacate` looks once more when it holds all slots.
    looks_under_slots: bool,
}

// SAFETY: as for the real one; `lane` is checked by loom.
unsafe impl Sync for Port {}
// SAFETY: as above.
unsafe impl Send for Port {}

impl Port {
    fn new(lane: u32) -> Port {
        let slots = SlotSet::empty();
        slots.fill();
        Port {
            slots,
            lane: UnsafeCell::new(lane),
            retired: AtomicBool::new(false),
            is_vacant: AtomicBool::new(false),
            waiting: AtomicU32::new(0),
            queue: Mutex::new(Vec::new()),
            woken: [Event::new(), Event::new()],
            looks_under_slots: true,
        }
    }

    /// The lane's number. Mirrors `Port::lane`.
    fn lane(&self) -> u32 {
        // SAFETY: a slot is held; loom complains if somebody writes.
        self.lane.with(|lane| unsafe { *lane })
    }

    /// Mirrors `Port::try_occupy`.
    fn try_occupy(&self, number: u32) -> bool {
        if !self.is_vacant.swap(false, Ordering::Acquire) {
            return false;
        }
        // SAFETY: nobody holds a slot; loom complains otherwise.
        self.lane.with_mut(|lane| unsafe { *lane = number });
        self.retired.store(false, Ordering::SeqCst);
        self.slots.fill();
        true
    }

    /// Mirrors `Port::retire`.
    fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Mirrors `Port::release`.
    fn release(&self, slot: usize) -> bool {
        let all_free = self.slots.release(slot);
        fence(Ordering::SeqCst);
        self.wake_waiting(1);
        all_free && self.retired.load(Ordering::SeqCst)
    }

    fn wake_waiting(&self, most: usize) {
        if self.waiting.load(Ordering::SeqCst) != 0 {
            let woken: Vec<_> = {
                let mut queue = self.queue.lock().unwrap();
                let most = most.min(queue.len());
                queue.drain(..most).collect()
            };
            woken.into_iter().for_each(|who| self.woken[who as usize].happen());
        }
    }

    /// Mirrors `Port::vacate`: the number of the lane taken out.
    fn vacate(&self) -> Option<u32> {
        while self.retired.load(Ordering::SeqCst) && self.slots.take_all() {
            if !self.looks_under_slots || self.retired.load(Ordering::SeqCst) {
                // SAFETY: we hold all slots; loom complains otherwise.
                let number = self.lane.with_mut(|lane| unsafe { std::mem::take(&mut *lane) });
                self.is_vacant.store(true, Ordering::Release);
                return Some(number);
            }
            self.slots.fill();
            fence(Ordering::SeqCst);
            self.wake_waiting(2);
        }
        None
    }

    /// Waits for a slot. Mirrors `Flight::reserve_blocking` with `Link::queue_for_slot`.
    fn reserve(&self, who: u32) -> usize {
        loop {
            if let Some(slot) = self.slots.reserve() {
                return slot;
            }
            self.waiting.fetch_add(1, Ordering::SeqCst);
            self.queue.lock().unwrap().push(who);
            fence(Ordering::SeqCst);
            let reserved = self.slots.reserve();
            if reserved.is_none() {
                self.woken[who as usize].wait();
            }
            let reserved = reserved.or_else(|| self.slots.reserve());
            self.unqueue(who);
            if let Some(slot) = reserved {
                return slot;
            }
        }
    }

    /// Mirrors `Port::unqueue`.
    fn unqueue(&self, who: u32) {
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        let mut queue = self.queue.lock().unwrap();
        match queue.iter().position(|waiting| *waiting == who) {
            Some(position) => drop(queue.remove(position)),
            None => {
                let next = if queue.is_empty() { None } else { Some(queue.remove(0)) };
                drop(queue);
                next.into_iter().for_each(|next| self.woken[next as usize].happen());
            }
        }
    }
}

/// Two calls on lane 1 end when it was retired; the one that empties the port puts lane 2 there. The other, still on its
/// way out, must leave that alone.
fn retire(looks_under_slots: bool) {
    let port = Arc::new(Port { looks_under_slots, ..Port::new(1) });
    let end_call = |port: &Port, slot: usize| {
        assert_eq!(port.lane(), 1, "found: a call on another lane than its own");
        if port.release(slot)
            && let Some(number) = port.vacate()
        {
            assert_eq!(number, 1, "found: a living lane taken out");
            assert!(port.try_occupy(2));
        }
    };
    let slots = [port.slots.reserve().unwrap(), port.slots.reserve().unwrap()];
    let caller = {
        let port = Arc::clone(&port);
        thread::spawn(move || end_call(&port, slots[1]))
    };
    let watcher = {
        let port = Arc::clone(&port);
        thread::spawn(move || {
            port.retire();
            if let Some(number) = port.vacate() {
                assert_eq!(number, 1, "found: a living lane taken out");
                assert!(port.try_occupy(2));
            }
        })
    };
    end_call(&port, slots[0]);
    caller.join().unwrap();
    watcher.join().unwrap();
    assert_eq!(port.slots.reserve(), Some(0), "found: nobody emptied the port");
    assert_eq!(port.lane(), 2, "found: nobody emptied the port");
}

#[test]
fn a_port_is_emptied_once() {
    explore(3, || retire(true));
}

#[test]
#[should_panic(expected = "found: a living lane taken out")]
fn a_port_emptied_by_a_latecomer_loses_its_next_lane() {
    explore(3, || retire(false));
}

/// Two that wait for a slot while two are given back; `wakes`: releasing wakes who waits.
fn wait_for_a_slot() {
    let port = Arc::new(Port::new(1));
    let slots = [port.slots.reserve().unwrap(), port.slots.reserve().unwrap()];
    let other = {
        let port = Arc::clone(&port);
        thread::spawn(move || {
            let slot = port.reserve(1);
            port.release(slot);
        })
    };
    let holder = {
        let port = Arc::clone(&port);
        // The second slot stays taken: the one given back serves both in turn.
        thread::spawn(move || port.release(slots[0]))
    };
    let slot = port.reserve(0);
    port.release(slot);
    other.join().unwrap();
    holder.join().unwrap();
}

#[test]
fn who_waits_for_a_slot_gets_one() {
    explore(2, wait_for_a_slot);
}
