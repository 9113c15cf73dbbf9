//! What the loom models do not reach: numbers that wrap, and numbers that no honest peer writes.

use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;

use super::caller::{CallerRing, Header, Look, RequestWords, ResponseWords};
use super::layout::*;
use super::leases;
use super::owner::{OwnerRing, Request, Take};

/// A lane with both ends, and its memories to spoil.
struct Lane {
    caller: CallerRing,
    owner: OwnerRing,
    request: Box<RequestMemory>,
    response: Box<ResponseMemory>,
}

impl Lane {
    fn new() -> Lane {
        // SAFETY: made of atomics, for which zeroes are values.
        let request: Box<RequestMemory> = Box::new(unsafe { std::mem::zeroed() });
        // SAFETY: as above.
        let response: Box<ResponseMemory> = Box::new(unsafe { std::mem::zeroed() });
        let (at, answers) = (NonNull::from(&*request), NonNull::from(&*response));
        // SAFETY: the boxes live as long as the rings, in the same value.
        let (caller, owner) = unsafe { (CallerRing::new(at, answers), OwnerRing::new(at, answers)) };
        Lane { caller, owner, request, response }
    }

    /// As if `position` requests had gone through, and `answers` answers in each slot, both modulo 2^32.
    fn after(position: u32, answers: u32) -> Lane {
        let lane = Lane::new();
        lane.caller.skip_to(position, answers);
        lane.owner.skip_to(position, answers);
        for back in 1..=SLOTS as u32 {
            let past = position.wrapping_sub(back);
            lane.cell(past).number.store(past.wrapping_add(1), Relaxed);
        }
        lane.response.slots.iter().for_each(|slot| slot.count.store(answers, Relaxed));
        lane
    }

    fn cell(&self, position: u32) -> &RequestCell {
        &self.request.cells[position as usize % SLOTS]
    }

    fn publish(&self, slot: usize, key: u64) {
        let mut body: RequestWords = [MaybeUninit::new(0); REQUEST_BODY / 8];
        body[0].write(key);
        let header = Header { key, flags: 0, cpu: NO_CPU, deadline_ms: 0, len: 8, lent: 0, returned: 0 };
        // SAFETY: all words are initialised.
        unsafe { self.caller.publish(slot, header, &body) };
    }

    fn take(&self) -> (Take, Request) {
        let mut request = Request::blank();
        let take = self.owner.try_lock().expect("nobody takes").take(&mut request);
        (take, request)
    }

    fn answer(&self, request: &Request) {
        self.owner.write_response_bytes(request.slot(), &(!request.key).to_ne_bytes());
        let meta = ResponseMeta { status: 1, flags: 0, cpu: NO_CPU };
        self.owner.answer(request.slot(), request.wanted, meta, 8, 0);
    }

    /// Whether the answer in `slot` is that to `key`; then it is done with.
    fn finish(&self, slot: usize, key: u64) -> bool {
        let mut words: ResponseWords = [MaybeUninit::uninit(); RESPONSE_BODY / 8];
        let (_, len, _) = self.caller.response_head(slot);
        self.caller.response_body(slot, len, &mut words);
        self.caller.finish(slot);
        // SAFETY: the words of the first line are initialised whatever the length.
        len == 8 && unsafe { words[0].assume_init() } == !key
    }
}

/// Positions and answer numbers around which something wraps.
const EDGES: [u32; 8] = [0, 1, 63, 64, u32::MAX - 64, u32::MAX - 63, u32::MAX - 1, u32::MAX];

#[test]
fn a_failed_attempt_to_take_leaves_the_lock_alone() {
    let lane = Lane::new();
    let ring = &lane.owner;
    let taker = ring.try_lock().expect("nobody has it");
    assert!(ring.try_lock().is_none());
    assert!(ring.try_lock().is_none(), "the first failed attempt let go of another's lock");
    drop(taker);
    assert!(ring.try_lock().is_some());
}

#[test]
fn calls_go_on_where_positions_and_answer_numbers_wrap() {
    let lane = Lane::after(u32::MAX - 100, u32::MAX - 1);
    let mut key = 0;
    for round in 0..6 {
        // As many as there are slots, in another order of them each time.
        let slots = (0..SLOTS).map(|i| (i * 7 + round) % SLOTS);
        for slot in slots.clone() {
            assert_eq!(lane.caller.look(slot), Look::Waiting);
            lane.publish(slot, key + slot as u64);
        }
        for slot in slots.clone() {
            assert!(lane.owner.has_request(), "round {round}, slot {slot}");
            let (take, request) = lane.take();
            assert_eq!((take, request.slot(), request.key), (Take::Taken, slot, key + slot as u64));
            assert!(lane.owner.begin(slot, request.wanted) && lane.caller.begun(slot));
            lane.answer(&request);
        }
        assert!(!lane.owner.has_request() && !lane.owner.is_busy());
        assert_eq!(lane.take().0, Take::Empty);
        for slot in slots {
            assert_eq!(lane.caller.look(slot), Look::Answered);
            assert!(
                lane.finish(slot, key + slot as u64),
                "round {round}, slot {slot}: another call's answer"
            );
        }
        key += SLOTS as u64;
    }
}

#[test]
fn a_request_that_is_taken_for_nobody_leaves_its_slot_free() {
    let lane = Lane::new();
    lane.publish(3, 1);
    let mut request = Request::blank();
    let mut taker = lane.owner.try_lock().expect("nobody takes");
    assert_eq!(taker.take(&mut request), Take::Taken);
    taker.untake(&request);
    assert_eq!((taker.take(&mut request), taker.busy()), (Take::Empty, 0));
    drop(taker);
    assert!(!lane.owner.is_busy() && lane.caller.look(3) == Look::Waiting && !lane.caller.withdraw(3));
}

#[test]
fn a_bit_turned_for_nothing_does_not_hide_those_behind_it() {
    let (loans, lane) = (leases::Loans::new(), Lane::new());
    let [first, second] = [b'a', b'b'].map(|lent| loans.lend(lent).unwrap());
    loans.take_back(first).unwrap();
    for number in [first, second] {
        leases::give_back(number, &lane.request.returns, &lane.response.returns);
    }
    let mut back = Vec::new();
    assert_eq!(loans.collect(&lane.request.returns, &mut back, |_| {}), Err(leases::NotOut));
    assert_eq!(back, [b'b']);
}

#[test]
fn a_call_whose_answer_number_is_0_counts_as_begun_when_given_up() {
    let lane = Lane::after(5, u32::MAX);
    lane.publish(3, 1);
    assert_eq!(lane.caller.wanted(3), 0);
    assert!(lane.caller.withdraw(3), "0 in the word means that none is given up");
    let (_, request) = lane.take();
    assert!(lane.owner.begin(3, request.wanted), "it runs");
    lane.answer(&request);
    assert!(lane.caller.look(3) == Look::Answered && lane.finish(3, 1));
}

#[test]
fn a_call_given_up_is_met_by_no_other_answer_number() {
    for answers in EDGES.into_iter().filter(|&answers| answers != u32::MAX) {
        let lane = Lane::after(0, answers);
        lane.publish(0, 1);
        assert!(!lane.caller.withdraw(0), "it was not begun");
        let wanted = lane.take().1.wanted;
        assert!(!lane.owner.begin(0, wanted));
        assert!(lane.owner.begin(0, wanted.wrapping_add(1)) && lane.owner.begin(0, wanted.wrapping_sub(1)));
    }
}

#[test]
fn fault_30_a_cell_number_that_is_neither_next_nor_a_turn_old_is_a_violation() {
    for position in EDGES {
        let lane = Lane::after(position, 0);
        let turn_ago = position.wrapping_sub(63);
        let near = (0..130).map(|distance| turn_ago.wrapping_sub(32).wrapping_add(distance));
        for number in near.chain(EDGES).chain([1 << 31, 0xdead_beef]) {
            lane.cell(position).number.store(number, Relaxed);
            // A memory never written to holds 0.
            let is_old = number == turn_ago || number == 0 && position < 64;
            let expected = match number {
                _ if is_old => Take::Empty,
                next if next == position.wrapping_add(1) => continue,
                _ => Take::Violation,
            };
            assert_eq!(lane.take().0, expected, "{number} at position {position}");
            assert_eq!(lane.owner.has_request(), !is_old, "{number} at position {position}");
        }
        assert!(!lane.owner.is_busy(), "something was taken at position {position}");
        lane.publish(0, 7);
        assert_eq!(lane.take().0, Take::Taken, "what is there at last, at position {position}");
    }
}

#[test]
fn fault_30_a_slot_that_is_out_already_is_a_violation() {
    let lane = Lane::new();
    lane.publish(9, 1);
    lane.publish(9, 2);
    let (take, first) = lane.take();
    assert_eq!((take, lane.take().0), (Take::Taken, Take::Violation));
    lane.answer(&first);
    assert_eq!(lane.take().0, Take::Taken, "free again once it is answered");
}

#[test]
fn fault_30_a_count_that_is_neither_the_last_nor_the_next_is_a_violation() {
    for answers in EDGES {
        let lane = Lane::after(0, answers);
        let near = (0..7).map(|distance| answers.wrapping_sub(3).wrapping_add(distance));
        for count in near.chain(EDGES).chain([1 << 31, answers ^ 1 << 31]) {
            lane.response.slots[5].count.store(count, Relaxed);
            let expected = match count.wrapping_sub(answers) {
                0 => Look::Waiting,
                1 => Look::Answered,
                _ => Look::Violation,
            };
            assert_eq!(lane.caller.look(5), expected, "{count} after {answers}");
        }
    }
}

#[test]
fn fault_30_any_value_of_a_word_that_only_hints_is_borne() {
    let lane = Lane::new();
    lane.publish(0, 1);
    let (_, request) = lane.take();
    for value in EDGES.into_iter().chain([2, 1 << 31]) {
        let control = &lane.request.control[0];
        control.hint.store(value, Relaxed);
        assert_eq!(lane.owner.hint_is_hot(), value == HOT);
        control.sleep.store(value, Relaxed);
        assert_eq!(lane.owner.sleeper(0), value);
        control.withdrawn.store(value, Relaxed);
        assert_eq!(lane.owner.is_withdrawn(0, request.wanted), value == request.wanted);
        lane.response.polled.store(value, Relaxed);
        assert_eq!(lane.caller.must_ring(), value & POLLED == 0);
        lane.response.started.0[0].store(value, Relaxed);
        assert_eq!(lane.caller.begun(0), value == 1);
    }
}

proptest! {
    /// Whatever a cell holds is refused, or taken with nothing that leads out of the lane.
    #[test]
    fn fault_30_a_cell_of_garbage_is_refused_or_stays_in_bounds(
        meta: u32,
        // Small numbers, so that what is nearly right comes up too.
        (slot, flags, len) in (0u32..80, 0u32..10, prop_oneof![0u32..300, any::<u32>()]),
        is_near: bool,
        body in prop::collection::vec(any::<u64>(), REQUEST_BODY / 8),
    ) {
        let meta = if is_near { slot | flags << 8 } else { meta };
        let lane = Lane::new();
        let cell = lane.cell(0);
        cell.meta.store(meta, Relaxed);
        cell.len.store(len, Relaxed);
        cell.body.iter().zip(&body).for_each(|(word, value)| word.store(*value, Relaxed));
        cell.number.store(1, Relaxed);
        let (take, request) = lane.take();

        let [slot, flags, ..] = meta.to_le_bytes();
        let (is_spilled, has_chain) = (flags & RequestMeta::SPILLED != 0, flags & RequestMeta::CHAIN != 0);
        let room = if has_chain { 160 } else { 224 };
        let is_possible = slot < 64 && flags < 8 && (is_spilled || len <= room);
        prop_assert_eq!(take, if is_possible { Take::Taken } else { Take::Violation });
        prop_assert_eq!(lane.owner.is_busy(), is_possible);
        let len = if is_possible && !is_spilled { len as usize } else { 0 };
        let bytes: Vec<u8> = body.iter().flat_map(|word| word.to_ne_bytes()).collect();
        prop_assert_eq!(request.body(), &bytes[..len]);
        if is_possible {
            let chain = if has_chain { &body[CHAIN_AT..] } else { &[0; CHAIN_WORDS] };
            prop_assert_eq!(&request.chain()[..], chain);
            prop_assert_eq!(request.spill().is_some(), is_spilled);
            if let Some(spill) = request.spill() {
                prop_assert_eq!(&spill.to_words()[..], &body[..3]);
            }
        }
    }
}
