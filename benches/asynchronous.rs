//! What an awaited call costs on tokio, beside a blocking one, and what calls sent together cost.
//!
//! The owner is this binary again, pinned to the placement's other processor. The caller's runtime has one thread, which is pinned as
//! well. Rows: hot awaited calls and batches on two processors; on one, where both sides sleep, awaited calls beside the least that an
//! awaited answer from another process can cost.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use objbus::Batch;
use support::notified::{self, Notified};
use support::owner::{self, Owner};
use support::peer::Role;
use support::placement::Placement;
use support::report::verdict;
use support::side::{Batch as Together, Each, Pace, Side, sample_awaited};
use support::suite::Suite;
use tokio::runtime::{Builder, Runtime};

/// Calls sent together.
const BATCH: u32 = 64;
/// Batches between two looks at the count of allocations.
const COUNTED: u32 = 1_000;

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every request goes to the system's allocator unchanged, whose promises are then ours.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on, and `memory` came from the system's allocator.
        unsafe { System.dealloc(memory, layout) }
    }
}

struct Math;

#[objbus::object]
impl Math {
    /// x to the power of y.
    pub fn pow(&self, x: f64, y: f64) -> f64 {
        x.powf(y)
    }
}

fn main() {
    match Role::of_this_process() {
        Some(role) if role.name == notified::ROLE => notified::serve(&role),
        Some(role) => {
            return owner::own(&role, |bus, _| bus.publish("math", Math).expect("the name is free"));
        }
        None => {}
    }
    let mut suite = Suite::from_args("asynchronous");
    for placement in Placement::available() {
        let owner = Owner::start(placement, &[]);
        let floor = Notified::start(placement);
        placement.pin_caller();
        let runtime = Builder::new_current_thread().enable_io().build().expect("a runtime");
        let math = owner.bus().proxy("math").wait().expect("the owner has said that it is ready");
        match placement {
            Placement::TwoCpus => hot_rows(&mut suite, placement, &runtime, &math),
            Placement::OneCpu => parked_rows(&mut suite, placement, &runtime, (&math, &floor)),
        }
    }
    suite.finish();
}

/// A side made of an async closure, which runs within the runtime for a whole round.
struct Awaited<'a, F>(&'a Runtime, u32, F);

impl<F: AsyncFnMut()> Side for Awaited<'_, F> {
    fn round(&mut self, pace: Pace, samples: &mut Vec<f64>) {
        self.0.block_on(sample_awaited(pace, samples, self.1, &mut self.2));
    }

    fn time(&mut self, calls: u64) -> Duration {
        let mut samples = Vec::new();
        let pace = Pace { time: Duration::ZERO, at_least: calls as usize, gap: None };
        self.round(pace, &mut samples);
        Duration::from_nanos(samples.iter().sum::<f64>() as u64)
    }
}

fn pow(math: &MathProxy) {
    std::hint::black_box(math.pow(std::hint::black_box(1.5), 3.0).wait().expect("the owner answers"));
}

async fn pow_awaited(math: &MathProxy) {
    std::hint::black_box(math.pow(std::hint::black_box(1.5), 3.0).await.expect("the owner answers"));
}

fn fill(batch: &mut Batch<f64>, math: &MathProxy) {
    batch.extend((0..BATCH).map(|_| math.pow(std::hint::black_box(1.5), 3.0)));
}

async fn join(batch: &mut Batch<f64>, math: &MathProxy) {
    fill(batch, math);
    for result in batch.join().await {
        std::hint::black_box(result.expect("the owner answers"));
    }
}

fn hot_rows(suite: &mut Suite, placement: Placement, runtime: &Runtime, math: &MathProxy) {
    let awaited = || Awaited(runtime, 1, async || pow_awaited(math).await);
    let blocking = (placement, "hot call");
    suite.hold("awaited hot call", blocking, 1.5, Pace::HOT, (&mut awaited(), &mut Each(|| pow(math))));
    let (mut batch, at) = (Batch::new(), (placement, "awaited hot call"));
    let mut joined = Awaited(runtime, BATCH, async || join(&mut batch, math).await);
    suite.hold("batch of 64, awaited, per call", at, 0.4, Pace::HOT, (&mut joined, &mut awaited()));
    let mut batch = Batch::new();
    let mut waited = Together {
        size: BATCH,
        run: |_| {
            fill(&mut batch, math);
            batch.wait().for_each(|result| _ = std::hint::black_box(result.expect("the owner answers")));
        },
    };
    suite.compare("batch of 64, waited for, per call", at, Pace::HOT, (&mut waited, &mut awaited()));
    suite.record("awaited hot call", placement, &mut awaited());
    if suite.is_measuring("allocations") {
        let mut batch = Batch::new();
        let batches = runtime.block_on(allocations(async || join(&mut batch, math).await));
        let single = runtime.block_on(allocations(async || pow_awaited(math).await));
        let (calls, held) = (COUNTED * BATCH, verdict(batches + single == 0));
        suite.note(&format!(
            "allocations: {batches} in {calls} calls of batches, {single} in {COUNTED} awaited calls: {held}"
        ));
    }
}

/// Allocations of this process in so many runs, after a warm-up.
async fn allocations(mut run: impl AsyncFnMut()) -> u64 {
    for _ in 0..COUNTED {
        run().await;
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..COUNTED {
        run().await;
    }
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

fn parked_rows(
    suite: &mut Suite,
    placement: Placement,
    runtime: &Runtime,
    (math, floor): (&MathProxy, &Notified),
) {
    let awaited = || Awaited(runtime, 1, async || pow_awaited(math).await);
    let mut bare = floor.side(runtime);
    let at = (placement, "futex, socket, AsyncFd");
    suite.hold("awaited call", at, 1.15, Pace::HOT, (&mut awaited(), &mut bare));
    suite.compare("awaited call", (placement, "call"), Pace::HOT, (&mut awaited(), &mut Each(|| pow(math))));
    suite.record("awaited call", placement, &mut awaited());
}
