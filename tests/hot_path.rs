//! A hot call with small arguments allocates nothing and makes no system call, in either process, whether its method is
//! plain or async; one whose task has to wait allocates nothing either. Nor does memory that is allocated and dropped again, or lent
//! with an answer, but to give it back in time.
//!
//! Other processes take the processors away at any time, and whoever is woken after that has made a system call. So calls
//! are made in small windows, and one window without anything is the proof: what a call does by itself is in all of them.

mod support;
use support::system::of_threads;
use support::*;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Read;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use objbus::{Blob, Bus, MethodTable, Untyped};

/// Calls between two looks at the counts.
const WINDOW: u64 = 200;
const WINDOWS: usize = 5;
const ATTEMPTS: usize = 40;
/// Bytes of a blob.
const BLOB: usize = 300_000;

/// The system's allocator, counting for all threads of the process.
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

struct Hot {
    bus: Bus,
}

#[objbus::object]
impl Hot {
    /// A plain method.
    pub fn plain(&self, x: f64, y: f64, name: &str) -> f64 {
        x.powf(y) + name.len() as f64
    }

    /// One that takes longer than a task looks for its answer.
    pub fn long(&self) {
        let began = Instant::now();
        while began.elapsed() < Duration::from_micros(50) {}
    }

    /// An async one.
    pub async fn awaited(&self, x: f64, y: f64, name: &str) -> f64 {
        x.powf(y) + name.len() as f64
    }

    /// A blob of memory that was used before.
    pub fn blob(&self) -> Blob {
        self.bus.alloc(BLOB).expect("there is memory").freeze()
    }
}

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    let bus = bus_at(&arguments[0]);
    if name == "owner" {
        let _hot = bus.publish("hot", Hot { bus: bus.clone() }).expect("the name is free");
        let count = MethodTable::named("Count").method("allocations", || ALLOCATIONS.load(Ordering::Relaxed));
        let _count = bus.publish("count", count).expect("the name is free");
        say("ready");
        stay()
    }
    let hot: HotProxy = bus.proxy("hot").call_timeout(PATIENCE).wait().expect("it is published");
    let count: Untyped = bus.proxy("count").call_timeout(PATIENCE).wait().expect("it is published");
    let allocations = || {
        let owners = count.call::<(), u64>("allocations", &()).wait().expect("it is served");
        ALLOCATIONS.load(Ordering::Relaxed) + owners
    };
    loop {
        let kind = hear();
        (0..5).for_each(|_| window(&bus, &hot, &kind));
        let mut best = u64::MAX;
        for _ in 0..WINDOWS {
            let before = allocations();
            // Back to the object that is measured, which its owner then looks at by itself again.
            window(&bus, &hot, &kind);
            mark();
            window(&bus, &hot, &kind);
            mark();
            best = best.min(allocations() - before);
        }
        say(best.to_string());
    }
}

fn window(bus: &Bus, hot: &HotProxy, kind: &str) {
    for _ in 0..WINDOW {
        match kind {
            "plain" => assert_eq!(hot.plain(2.0, 10.0, "four").wait(), Ok(1028.0)),
            "async" => assert_eq!(hot.awaited(2.0, 10.0, "four").wait(), Ok(1028.0)),
            "waits" => assert_eq!(awaited(hot.long()), Ok(())),
            "blob" => assert_eq!(hot.blob().wait().map(|blob| blob.len()), Ok(BLOB)),
            // 10,000 in a window.
            "alloc" => (0..50).for_each(|_| assert_eq!(bus.alloc(BLOB).map(|blob| blob.len()), Ok(BLOB))),
            other => panic!("no kind {other}"),
        }
    }
}

/// Awaits on the one thread that does, by a waker made once.
fn awaited<F: Future>(future: F) -> F::Output {
    static WAKER: LazyLock<Waker> = LazyLock::new(|| Waker::from(Arc::new(Unpark(thread::current()))));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&WAKER)) {
            return output;
        }
        thread::park_timeout(PATIENCE);
    }
}

/// A system call that stands out in a trace.
fn mark() {
    // SAFETY: it touches no memory.
    unsafe { libc::getppid() };
}

fn both(place: &Place) -> (Child, Child) {
    let owner = start("owner", &[place.text()]);
    owner.expect("ready");
    (owner, start("caller", &[place.text()]))
}

#[test]
fn a_call_allocates_nothing() {
    let place = place();
    let (_owner, mut caller) = both(&place);
    for kind in ["plain", "async", "waits"] {
        let mut attempt = || {
            caller.tell(kind);
            caller.hear().parse::<u64>().expect("a number")
        };
        let found: Vec<u64> =
            (0..ATTEMPTS).scan(true, |go, _| go.then(&mut attempt).inspect(|n| *go = *n > 0)).collect();
        assert_eq!(found.last(), Some(&0), "{kind}: allocations of both in {} calls: {found:?}", 2 * WINDOW);
    }
}

#[test]
fn a_hot_call_makes_no_system_call() {
    if std::thread::available_parallelism().is_ok_and(|processors| processors.get() < 2) {
        return skip("one processor only: both sides must sleep there");
    }
    let place = place();
    let (owner, mut caller) = both(&place);
    // Before the trace, so that connecting is not in it.
    caller.tell("plain");
    caller.hear();
    for kind in ["plain", "async"] {
        expect_fewest(&owner, &mut caller, kind, 0);
    }
}

#[test]
fn memory_allocated_and_dropped_makes_no_system_call() {
    let place = place();
    let (owner, mut caller) = both(&place);
    expect_fewest(&owner, &mut caller, "alloc", 0);
}

/// What no request takes along is given back by an alarm 2 ms later. So there is one for many calls, whichever those are.
#[test]
fn a_blob_lent_with_an_answer_makes_no_system_call_of_its_own() {
    if std::thread::available_parallelism().is_ok_and(|processors| processors.get() < 2) {
        return skip("one processor only: both sides must sleep there");
    }
    let place = place();
    let (owner, mut caller) = both(&place);
    caller.tell("blob");
    caller.hear();
    expect_fewest(&owner, &mut caller, "blob", 10);
}

/// Traces windows of this kind until one has no more than so many system calls.
fn expect_fewest(owner: &Child, caller: &mut Child, kind: &str, most: usize) {
    let mut all = Vec::new();
    for _ in 0..ATTEMPTS {
        let log = std::env::temp_dir().join(format!("objbus-trace-{}-{kind}", std::process::id()));
        let Some(mut strace) = trace(&[owner.pid(), caller.pid()], &log) else {
            return skip("strace is missing or may not attach");
        };
        caller.tell(kind);
        caller.hear();
        // SAFETY: it touches no memory; the process is our child and not reaped.
        unsafe { libc::kill(strace.id() as i32, libc::SIGINT) };
        strace.wait().expect("strace ends");
        let text = std::fs::read_to_string(&log).expect("strace has written");
        let _ = std::fs::remove_file(&log);
        all.extend(windows(&text));
        if all.iter().any(|made| *made <= most) {
            break;
        }
    }
    let total: usize = all.iter().sum();
    let rounds = all.len() as u64 * WINDOW;
    let fewest = all.iter().min().copied().unwrap_or(usize::MAX);
    println!("{kind}: {total} system calls of both sides in {rounds} rounds, fewest in {WINDOW}: {fewest}");
    assert!(fewest <= most, "{kind}: system calls of both sides in {WINDOW} rounds each: {all:?}");
}

/// System calls between the two marks of each pair.
fn windows(trace: &str) -> Vec<usize> {
    let lines: Vec<&str> = trace.lines().collect();
    let marks: Vec<usize> = (0..lines.len()).filter(|&at| lines[at].contains("getppid(")).collect();
    let made = |from: usize, to: usize| lines[from + 1..to].iter().filter(|line| is_call(line)).count();
    marks.chunks_exact(2).map(|pair| made(pair[0], pair[1])).collect()
}

/// Whether a line of a trace is a call, not a signal nor the news of a thread.
fn is_call(line: &str) -> bool {
    line.contains('(') && !line.contains("---") && !line.contains("strace:")
}

/// Attaches strace to all threads of the processes; `None` if that cannot be done.
fn trace(pids: &[u32], log: &std::path::Path) -> Option<std::process::Child> {
    let mut command = Command::new("strace");
    command.args(["-f", "-o"]).arg(log);
    for pid in pids {
        command.arg("-p").arg(pid.to_string());
    }
    let mut strace = command.stderr(Stdio::piped()).spawn().ok()?;
    let began = std::time::Instant::now();
    while !pids.iter().all(|pid| is_traced(*pid)) {
        if strace.try_wait().ok()?.is_some() || began.elapsed() > PATIENCE {
            let mut why = String::new();
            let _ = strace.kill();
            let _ = strace.stderr.take().map(|mut text| text.read_to_string(&mut why));
            println!("strace: {why}");
            return None;
        }
        std::thread::yield_now();
    }
    Some(strace)
}

/// Whether all threads of a process are being traced.
fn is_traced(pid: u32) -> bool {
    of_threads(pid, "TracerPid").iter().all(|(_, tracer)| tracer != "0")
}

fn skip(why: &str) {
    println!("SKIPPED: system calls of a hot call are not counted: {why}");
    eprintln!("SKIPPED: system calls of a hot call are not counted: {why}");
}
