//! What a worker allocates for a picture: the application with an allocator that counts, and the test of it, in one binary.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use libtest_mimic::{Arguments, Failed, Trial};
use objbus::Proxy;
use objbus_app::{Service, ServiceContext, ServiceError};
use rustix::process::{Pid, Signal, kill_process};
use support::app::Setup;
use support::site::{Content, Site};
use support::{has_chromium, shot};

/// No allocation of a worker's may be larger, in bytes, whatever the size of the picture.
const ALLOCATION_MAX: usize = 64 << 10;
/// How large the picture must be for the test to prove anything, in bytes.
const PICTURE_MIN: usize = 4 << 20;
const WORKERS: u32 = 2;
/// Set where this binary is the application.
const APPLICATION: &str = "PAGE_SNAPSHOT_COUNTED";

/// The largest allocation since it was last asked for.
static LARGEST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it came; what is counted is an atomic, which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the promises of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the promises of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: the caller keeps the promises of `realloc`.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the promises of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Says on the bus what the worker that it is in has allocated, as `allocations.0`, `allocations.1` and so on.
struct Allocations;

struct Largest;

#[objbus::object]
impl Largest {
    /// The largest allocation since the last call, in bytes.
    pub fn take(&self) -> u64 {
        LARGEST.swap(0, Ordering::Relaxed) as u64
    }
}

impl Service for Allocations {
    type Config = ();

    async fn new(ctx: ServiceContext<()>) -> Result<Allocations, ServiceError> {
        ctx.publish(&format!("allocations.{}", ctx.index()), Largest)?;
        Ok(Allocations)
    }
}

fn main() -> ExitCode {
    if std::env::var_os(APPLICATION).is_some() {
        return page_snapshot::app().service::<Allocations>("allocations", |s| s.process("worker")).run();
    }
    let trial = || a_picture_makes_no_large_allocation_in_a_worker().map_err(Failed::from);
    let trials = vec![Trial::test("a_picture_makes_no_large_allocation_in_a_worker", trial)];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn a_picture_makes_no_large_allocation_in_a_worker() -> Result<(), Box<dyn std::error::Error>> {
    if !has_chromium() {
        return Ok(());
    }
    let site = Site::serve([("/noise", noise())]);
    let mut setup = Setup { workers: WORKERS, ..Setup::default() };
    setup.program = std::env::current_exe()?;
    setup.env.push((APPLICATION, "1"));
    let app = setup.start();
    let bus = app.bus();
    let workers: Vec<LargestProxy> = (0..WORKERS)
        .map(|index| bus.proxy(&format!("allocations.{index}")).wait_for(support::PATIENCE))
        .collect::<Result<_, _>>()?;
    let target = shot(&site.url("/noise"), "&width=2200&height=1400&quality=100");

    let pid = |worker: &LargestProxy| Pid::from_raw(worker.handle().owner_pid()? as i32);
    let pids: Vec<Pid> = workers.iter().map(|worker| pid(worker).expect("it is connected")).collect();
    for (index, worker) in workers.iter().enumerate() {
        // The others stand still: this one serves.
        let others = || pids.iter().enumerate().filter(|&(other, _)| other != index).map(|(_, &pid)| pid);
        others().try_for_each(|pid| kill_process(pid, Signal::STOP))?;
        worker.take().wait()?;
        let answer = app.get(&target);
        let picture = answer.picture();
        assert_eq!((picture.width, picture.height), (2200, 1400));
        assert!(answer.body.len() >= PICTURE_MIN, "the picture has {} bytes only", answer.body.len());
        let largest = worker.take().wait()? as usize;
        println!("worker {index}: {largest} bytes at most, {}", answer.header("server-timing"));
        assert!(
            (1..=ALLOCATION_MAX).contains(&largest),
            "worker {index} has allocated {largest} bytes at once"
        );
        others().try_for_each(|pid| kill_process(pid, Signal::CONT))?;
    }
    Ok(())
}

/// A page of noise, which makes JPEGs large.
fn noise() -> Content {
    Content::Html(
        "<!doctype html><body style='margin:0'><canvas width=2200 height=1400></canvas><script>
        const context = document.querySelector('canvas').getContext('2d');
        const image = context.createImageData(2200, 1400);
        let state = 1;
        for (let at = 0; at < image.data.length; at++) {
            state = (Math.imul(state, 1664525) + 1013904223) | 0;
            image.data[at] = at % 4 == 3 ? 255 : state >>> 24;
        }
        context.putImageData(image, 0, 0);
        </script>"
            .to_owned(),
    )
}
