//! What a call costs, as a ratio to the machine's own floor in the same rounds.
//!
//! The owner is this binary again, pinned to the placement's other processor, with one published object. Rows:
//! hot calls, calls with pauses between them, 64 calls in flight from one thread, hot calls beside idle callers, and what an
//! idle lane costs.

mod support;

use std::time::Duration;

use objbus::Proxy;
use support::counters::{Counters, Memory};
use support::floor::{self, Floor, Floors};
use support::owner::{self, Owner};
use support::peer::Role;
use support::placement::Placement;
use support::side::{Batch, Each, Pace};
use support::suite::Suite;

/// The time that both processes idle before each call of a parked row.
const GAPS: [Duration; 3] = [Duration::from_micros(100), Duration::from_millis(1), Duration::from_millis(10)];
/// Calls in flight in a batch.
const BATCH: u32 = 64;
/// Idle callers beside the hot one.
const IDLE: usize = 1_000;
/// How long a hundred idle callers are watched.
const REST: Duration = Duration::from_secs(10);

struct Math;

#[objbus::object]
impl Math {
    /// x to the power of y.
    pub fn pow(&self, x: f64, y: f64) -> f64 {
        x.powf(y)
    }

    /// The same, from an async method that is ready at once.
    pub async fn pow_async(&self, x: f64, y: f64) -> f64 {
        x.powf(y)
    }

    /// Nothing.
    pub fn nop(&self) {}
}

fn main() {
    match Role::of_this_process() {
        Some(role) if role.name == floor::ROLE => floor::serve(&role),
        Some(role) => return own(&role),
        None => {}
    }
    raise_descriptor_limit();
    let mut suite = Suite::from_args("call");
    for placement in Placement::available() {
        let floors = Floors::start(placement);
        let owner = Owner::start(placement, &[]);
        placement.pin_caller();
        let math = connect(&owner);
        match placement {
            Placement::TwoCpus => hot_rows(&mut suite, placement, &floors, &math),
            Placement::OneCpu => one_cpu_rows(&mut suite, placement, &floors, &math),
        }
        parked_rows(&mut suite, placement, &floors, &math);
        if placement == Placement::TwoCpus {
            idle_rows(&mut suite, placement, &owner, &math);
        }
    }
    suite.finish();
}

fn connect(owner: &Owner) -> MathProxy {
    owner.bus().proxy("math").wait().expect("the owner has said that it is ready")
}

fn own(role: &Role) {
    raise_descriptor_limit();
    owner::own(role, |bus, _| bus.publish("math", Math).expect("the name is free"));
}

fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

fn pow(math: &MathProxy) {
    std::hint::black_box(math.pow(std::hint::black_box(1.5), 3.0).wait().expect("the owner answers"));
}

fn hot_rows(suite: &mut Suite, placement: Placement, floors: &Floors, math: &MathProxy) {
    let at = (placement, Floor::Line.name());
    suite.compare("hot call", at, Pace::HOT, (&mut Each(|| pow(math)), &mut floors.side(Floor::Line)));
    let pow_async = || {
        std::hint::black_box(math.pow_async(1.5, 3.0).wait().expect("the owner answers"));
    };
    suite.compare(
        "hot call, async method",
        at,
        Pace::HOT,
        (&mut Each(pow_async), &mut floors.side(Floor::Line)),
    );
    let nop = || math.nop().wait().expect("the owner answers");
    suite.compare("hot call, empty", at, Pace::HOT, (&mut Each(nop), &mut floors.side(Floor::Line)));
    let one_way = || math.nop().send().expect("the owner lives");
    suite.compare("one way", at, Pace::HOT, (&mut Each(one_way), &mut floors.side(Floor::Line)));
    let mut in_flight = Batch { size: BATCH, run: |size| batch(math, size) };
    let against = (placement, "hot call");
    suite.compare("64 in flight, per call", against, Pace::HOT, (&mut in_flight, &mut Each(|| pow(math))));
    let over_socket = (placement, Floor::Socket.name());
    suite.compare(
        "hot call",
        over_socket,
        Pace::HOT,
        (&mut Each(|| pow(math)), &mut floors.side(Floor::Socket)),
    );
    suite.record("hot call", placement, &mut Each(|| pow(math)));
}

/// Sends all, then collects all: on one thread, without an executor's own cost.
fn batch(math: &MathProxy, size: u32) {
    let mut calls: [Option<objbus::Call<f64>>; BATCH as usize] = [const { None }; BATCH as usize];
    for call in &mut calls[..size as usize] {
        *call = Some(math.pow(1.5, 3.0).started());
    }
    for call in calls.into_iter().flatten() {
        std::hint::black_box(call.wait().expect("the owner answers"));
    }
}

fn one_cpu_rows(suite: &mut Suite, placement: Placement, floors: &Floors, math: &MathProxy) {
    let at = (placement, Floor::TimedFutex.name());
    suite.compare("call", at, Pace::HOT, (&mut Each(|| pow(math)), &mut floors.side(Floor::TimedFutex)));
    let over_socket = (placement, Floor::Socket.name());
    suite.compare("call", over_socket, Pace::HOT, (&mut Each(|| pow(math)), &mut floors.side(Floor::Socket)));
    suite.record("call", placement, &mut Each(|| pow(math)));
}

fn parked_rows(suite: &mut Suite, placement: Placement, floors: &Floors, math: &MathProxy) {
    for gap in GAPS {
        let name = format!("call, {gap:?} apart");
        let sides = (&mut Each(|| pow(math)), &mut floors.side(Floor::TimedFutex));
        suite.compare(&name, (placement, Floor::TimedFutex.name()), Pace::apart(gap), sides);
    }
}

/// What many idle callers cost: nothing while they rest, little memory, and no time of who calls.
fn idle_rows(suite: &mut Suite, placement: Placement, owner: &Owner, math: &MathProxy) {
    if !suite.is_measuring("idle") {
        return;
    }
    let pids = [std::process::id(), owner.pid()];
    let quiet = Owner::start(placement, &[]);
    let first = connect(&quiet);
    let hundred: Vec<MathProxy> = (0..100).map(|_| connect(owner)).collect();
    hundred.iter().for_each(pow);
    std::thread::sleep(Duration::from_millis(100));
    let used = |pid| Counters::of(pid).expect("it lives");
    let before = pids.map(used);
    std::thread::sleep(REST);
    let after = pids.map(used);
    let switches: Vec<_> =
        after.iter().zip(before).map(|(after, before)| after.since(before).voluntary_switches).collect();
    // One of them is this thread's own sleep.
    suite.note(&format!(
        "100 idle callers, {REST:?}: voluntary context switches {switches:?} (caller, owner)"
    ));
    let memory = Memory::of(&pids).expect("both live");
    let idle: Vec<MathProxy> = (0..IDLE).map(|_| connect(owner)).collect();
    idle.iter().for_each(pow);
    let growth = Memory::of(&pids).expect("both live").growth_since(memory);
    suite.note(&format!(
        "{IDLE} idle lanes: {growth} KiB more, {:.1} KiB a lane",
        growth as f64 / IDLE as f64
    ));
    let beside = (&mut Each(|| pow(math)), &mut Each(|| pow(&first)));
    suite.compare("hot call beside 1,000 idle lanes", (placement, "hot call"), Pace::HOT, beside);
    assert!(idle.iter().all(|proxy| proxy.handle().is_connected()));
}
