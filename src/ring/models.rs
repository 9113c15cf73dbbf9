//! loom models of the lane: the ring's own code under every interleaving, and under every value that a weakly ordered
//! machine may let a load see.
//!
//! Each model has negative ones beside it: the same with a fence, a second look or a lock left out, which must fail;
//! else the model would show nothing. The ring's fences are left out by the name of their function, and orders likewise, so
//! that what runs is the ring's code less that. What the proxy and the pool do around the ring is mirrored here, step by step.
//!
//! What loom (0.7) cannot do, and what is made of it:
//!
//! - It takes the SeqCst of a load or store for AcqRel, so where a mirrored step relies on it, a fence stands for it.
//! - It runs two threads that both spin in turns for ever. So at most one thread of a model spins, and says so with
//!   `yield_now`; the others wait for an event, or look a few times and leave the rest for after the joins.
//! - It does not know that a plain store comes after a read-modify-write which has read an older value, nor that no two of
//!   them read the same store. A lock that is taken with a swap and opened with a store then stays shut after a failed
//!   attempt, and a worker that adds 0 to a mark can see one that was taken away before: no machine does either. What is
//!   right in loom is a word whose writers exclude one another, or write with read-modify-writes only; the ring's are that.
//! - It keeps the last seven stores of a word.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::{Condvar, Mutex};
use loom::thread;

use super::caller::{CallerRing, Header, Look, RequestWords, ResponseWords};
use super::layout::*;
use super::owner::{OwnerRing, Request, Take, Taker};
use crate::sync::Ordering;
use crate::sync::left_out::{self, Part};

mod calls;
mod channel;
mod death;
mod ending;
mod holding;
mod leases;
mod leaving;
mod naming;
mod polling;
mod slots;
mod tasks;
mod waiting;

/// Runs `model` under every interleaving with at most `preemptions` of them, and says how many that were.
fn explore(preemptions: impl Into<Option<usize>>, model: impl Fn() + Send + Sync + 'static) {
    use std::io::Write;
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let mut builder = Builder::new();
    builder.preemption_bound = preemptions.into();
    builder.max_branches = 5_000;
    let start = Instant::now();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    // To the stream itself: the harness shows nothing of what a passing test prints.
    let _ = writeln!(
        std::io::stderr(),
        "{name}: {} interleavings in {:.1} s",
        runs.load(Ordering::Relaxed),
        start.elapsed().as_secs_f64()
    );
}

/// Leaves the fence of `function` out, in this test.
fn without_fence_of(function: &str) {
    leave_out(Part::Fence, function);
}

/// Makes all accesses of `function` relaxed, in this test.
fn without_order_of(function: &str) {
    leave_out(Part::Order, function);
}

/// As [`without_fence_of`], where several types have a function of that name.
fn without_fence_in(block: &str, function: &str) {
    leave_out_in(Part::Fence, block, function);
}

fn leave_out(part: Part, function: &str) {
    leave_out_in(part, "", function);
}

fn leave_out_in(part: Part, block: &str, function: &str) {
    let files = [
        ("ring/caller.rs", include_str!("caller.rs")),
        ("ring/channel.rs", include_str!("channel.rs")),
        ("ring/owner.rs", include_str!("owner.rs")),
        ("ring/leases.rs", include_str!("leases.rs")),
    ];
    for (file, text) in files {
        let mut lines = text.lines().enumerate().skip_while(|(_, line)| !line.starts_with(block));
        let Some((start, first)) = lines.find(|(_, line)| line.contains(&format!("fn {function}("))) else {
            continue;
        };
        let end = format!("{}}}", &first[..first.len() - first.trim_start().len()]);
        let end = lines.find(|(_, line)| *line == end).map_or(start, |(end, _)| end);
        return left_out::set(part, file, start as u32 + 1..end as u32 + 1);
    }
    panic!("the ring has no function `{function}`");
}

/// A lane with both of its ends.
struct Lane {
    caller: CallerRing,
    owner: OwnerRing,
    // Under the rings' pointers; dropped after them.
    _request: Box<RequestMemory>,
    _response: Box<ResponseMemory>,
}

impl Lane {
    fn new() -> Arc<Lane> {
        let (request, response) = (Box::new(RequestMemory::fresh()), Box::new(ResponseMemory::fresh()));
        let (at, answers) = ((&*request).into(), (&*response).into());
        // SAFETY: the boxes live as long as the rings, in the same value.
        let (caller, owner) = unsafe { (CallerRing::new(at, answers), OwnerRing::new(at, answers)) };
        Arc::new(Lane { caller, owner, _request: request, _response: response })
    }

    /// Sends the call `key` in `slot`, with itself as its body.
    fn publish(&self, slot: usize, key: u64) {
        self.publish_returning(slot, key, 0);
    }

    /// The same, giving a lease back with it.
    fn publish_returning(&self, slot: usize, key: u64, returned: u32) {
        let mut body: RequestWords = [std::mem::MaybeUninit::uninit(); REQUEST_BODY / 8];
        body[0].write(key);
        let header = Header { key, flags: 0, cpu: NO_CPU, deadline_ms: 0, len: 8, lent: 0, returned };
        // SAFETY: 8 bytes are the first line's word, and initialised.
        unsafe { self.caller.publish(slot, header, &body) };
    }

    /// Whether the call in `slot` is answered.
    fn is_answered(&self, slot: usize) -> bool {
        match self.caller.look(slot) {
            Look::Answered => true,
            Look::Waiting => false,
            Look::Violation => panic!("found: a caller sees an impossible count"),
        }
    }

    /// Reads the answer to the call `key` in `slot`, and is done with it.
    fn finish(&self, slot: usize, key: u64) {
        let (_, len, _) = self.caller.response_head(slot);
        let mut words: ResponseWords = [std::mem::MaybeUninit::uninit(); RESPONSE_BODY / 8];
        self.caller.response_body(slot, len, &mut words);
        // SAFETY: the first line's word is always initialised.
        let word = unsafe { words[0].assume_init() };
        assert_eq!((len, word), (8, answer_to(key)), "found: another call's answer");
        self.caller.finish(slot);
    }

    /// Takes a request under the lock, as `Worker::turn` does.
    fn take(&self) -> Option<Request> {
        self.take_as(self.owner.try_lock()?)
    }

    fn take_as(&self, mut taker: Taker<'_>) -> Option<Request> {
        let mut request = Request::blank();
        let take = taker.take(&mut request);
        drop(taker);
        match take {
            Take::Taken => Some(request),
            Take::Empty => None,
            Take::Violation => panic!("found: the owner sees a violation"),
        }
    }

    /// Answers a request without looking for a sleeper.
    fn answer(&self, request: &Request) {
        assert_eq!(request.body(), request.key.to_ne_bytes(), "found: a torn request");
        self.owner.write_response_bytes(request.slot(), &answer_to(request.key).to_ne_bytes());
        let meta = ResponseMeta { status: 0, flags: 0, cpu: NO_CPU };
        self.owner.answer(request.slot(), request.wanted, meta, 8, 0);
    }

    /// Wakes who sleeps on `slot`. Mirrors `OwnerLane::wake`, without tasks.
    fn wake(&self, slot: usize, who: u32) {
        if who == ON_FUTEX {
            self.owner.wake(slot);
        }
    }

    /// Answers, and looks once without a fence: mirrors `OwnerLane::answer`.
    fn answer_and_look(&self, request: &Request) {
        self.answer(request);
        self.owner.sleepers(1 << request.slot(), |slot, who| self.wake(slot, who));
    }

    /// Answers and wakes: mirrors `OwnerLane::answer` and `after_answers`.
    fn answer_and_wake(&self, request: &Request) {
        self.answer_and_look(request);
        self.owner.after_answers(1 << request.slot(), |slot, who| self.wake(slot, who));
    }

    /// Sleeps until the call in `slot` is answered. Mirrors `Lane::park`, with no end of the lane.
    fn park(&self, slot: usize) {
        self.caller.set_sleep(slot, ON_FUTEX);
        while !self.is_answered(slot) {
            self.caller.sleep(slot, None);
        }
        self.caller.clear_sleep(slot);
    }
}

fn answer_to(key: u64) -> u64 {
    key + 100
}

/// Something that happens and is not forgotten until it was waited for: a doorbell's edge, a word on a socket, the wake of
/// a task.
struct Event {
    happened: Mutex<bool>,
    waiting: Condvar,
}

impl Event {
    fn new() -> Event {
        Event { happened: Mutex::new(false), waiting: Condvar::new() }
    }

    fn happen(&self) {
        *self.happened.lock().unwrap() = true;
        self.waiting.notify_all();
    }

    fn wait(&self) {
        let mut happened = self.happened.lock().unwrap();
        while !*happened {
            happened = self.waiting.wait(happened).unwrap();
        }
        *happened = false;
    }
}

/// Runs `f` in a thread.
fn with<T: Send + Sync + 'static>(
    value: &Arc<T>,
    f: impl FnOnce(&T) + Send + 'static,
) -> thread::JoinHandle<()> {
    let value = Arc::clone(value);
    thread::spawn(move || f(&value))
}

/// Memory that is lent, and written anew once it is back: loom complains if that is while, or not after, it is read.
struct Memory(UnsafeCell<u32>);

// SAFETY: the cell is checked by loom.
unsafe impl Sync for Memory {}
// SAFETY: as above.
unsafe impl Send for Memory {}

impl Memory {
    fn new() -> Arc<Memory> {
        Arc::new(Memory(UnsafeCell::new(1)))
    }

    fn read(&self) {
        // SAFETY: it is lent; loom complains if somebody writes.
        assert_eq!(self.0.with(|word| unsafe { *word }), 1, "found: memory written under its holder");
    }

    fn write(&self) {
        // SAFETY: it is not lent; loom complains if somebody reads.
        self.0.with_mut(|word| unsafe { *word = 2 });
    }
}
