//! The honest owner that the hostile ones work on, in a process of its own, and what it can tell about itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use objbus::{Blob, Bus, BusBuilder, ConnectError, CopyOnArrival, Limits, MethodTable, Untyped};
use serde::{Deserialize, Serialize};

use crate::support::*;

/// Counts the heap of this process: bytes in use, and the most since it was last asked.
pub struct Counting;

static LIVE: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size() as i64, Ordering::Relaxed) + layout.size() as i64;
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: asked of the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: asked of the caller.
        unsafe { System.dealloc(block, layout) }
    }
}

/// The most heap used at once since the last time, above what was in use then.
fn heap_peak() -> u64 {
    let live = LIVE.load(Ordering::Relaxed);
    let before = PEAK.swap(live, Ordering::Relaxed);
    u64::try_from(before - FLOOR.swap(live, Ordering::Relaxed)).unwrap_or(0)
}

static FLOOR: AtomicI64 = AtomicI64::new(0);

/// Processor time of this process, in microseconds.
pub fn cpu_us() -> u64 {
    // SAFETY: a zeroed rusage is valid, and the kernel fills it.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let us = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    us(usage.ru_utime) + us(usage.ru_stime)
}

/// Nests as deep as its sender likes.
#[derive(Serialize, Deserialize, objbus::Type)]
pub struct Nested(Option<Box<Nested>>);

/// Has a thousand ways to be wrong.
#[derive(Serialize, Deserialize, objbus::Type)]
pub enum Shape {
    Dot,
    Line(u64),
    Box { name: String, sides: Vec<u64> },
}

static RELEASED: AtomicBool = AtomicBool::new(false);
static BLOCKED: AtomicBool = AtomicBool::new(false);

/// A method that runs until `release` is called.
fn block() {
    BLOCKED.store(true, Ordering::SeqCst);
    while !RELEASED.load(Ordering::SeqCst) {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    RELEASED.store(false, Ordering::SeqCst);
    BLOCKED.store(false, Ordering::SeqCst);
}

/// Says that the text is text, by looking at it twice, a while apart.
fn examine(text: &str) -> bool {
    let sum = |text: &str| text.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte));
    let before = sum(text);
    (0..200).for_each(|_| std::hint::spin_loop());
    std::str::from_utf8(text.as_bytes()).is_ok() && sum(text) == before
}

static NOTED: AtomicI64 = AtomicI64::new(0);
static TORN: AtomicI64 = AtomicI64::new(0);

/// Notes a text, which should be one letter again and again.
fn note(text: &str) {
    let torn = text.bytes().any(|byte| byte != text.as_bytes()[0]);
    TORN.fetch_add(i64::from(torn), Ordering::SeqCst);
    NOTED.fetch_add(1, Ordering::SeqCst);
}

/// How many of a blob's bytes are `a`: before `release` is called, and after it.
fn look_twice(blob: Blob) -> (u64, u64) {
    // SAFETY: within the blob. Volatile, since a hostile lender changes what no honest one does.
    let byte = |at: usize| unsafe { blob.as_ptr().add(at).read_volatile() };
    let look = || (0..blob.len()).filter(|&at| byte(at) == b'a').count() as u64;
    let first = look();
    block();
    (first, look())
}

fn table() -> MethodTable {
    MethodTable::named("Victim")
        .method("add", |a: u32, b: u32| a.wrapping_add(b))
        .method("mirror", |text: String| text)
        .method("examine", |text: String| examine(&text))
        .method("note", |text: String| note(&text))
        .method("noted", || NOTED.load(Ordering::SeqCst))
        .method("torn", || TORN.load(Ordering::SeqCst))
        .method("flag", |flag: bool| u32::from(flag))
        .method("letter", |letter: char| letter as u32)
        .method("maybe", |maybe: Option<u8>| u32::from(maybe.unwrap_or(7)))
        .method("units", |units: Vec<()>| units.len() as u64)
        .method("numbers", |numbers: Vec<u64>| numbers.len() as u64)
        .method("lists", |lists: Vec<Vec<String>>| lists.len() as u64)
        .method("nested", |_: Nested| ())
        .method("shape", |_: Shape| ())
        .method("bytes", |bytes: Vec<u8>| bytes.len() as u64)
        .method("zeros", |len: u64| vec![0_u8; len as usize])
        .method("look_twice", look_twice)
        .method("block", block)
        .method("blocked", || BLOCKED.load(Ordering::SeqCst))
        .method("release", || RELEASED.store(true, Ordering::SeqCst))
        .method("heap_peak", heap_peak)
        .method("heap", || LIVE.load(Ordering::Relaxed))
        .method("cpu_us", cpu_us)
}

/// The largest body that the victim takes or gives.
pub const BODY_MAX: u64 = 1 << 18;
/// The bytes that one process may have in flight there.
pub const IN_FLIGHT_MAX: u64 = 4 << 20;

/// The argument of a victim that copies what is lent to it.
pub const COPIES: &str = "copies";

/// Arguments: the directory, and the users admitted or [`COPIES`].
pub fn run(arguments: &[String]) {
    let limits = Limits { body_bytes: BODY_MAX, in_flight_bytes: IN_FLIGHT_MAX, ..Limits::default() };
    let builder = Bus::builder().directory(&arguments[0]).limits(limits);
    let with = |builder: BusBuilder, word: &String| match &word[..] {
        COPIES => builder.copy_on_arrival(CopyOnArrival::Always),
        uid => builder.admit(uid.parse().expect("a uid")),
    };
    let Ok(bus) = arguments[1..].iter().fold(builder, with).open() else {
        return say("the bus does not open");
    };
    let _published = bus.publish("victim", table()).expect("the name is free");
    say("ready");
    stay();
}

/// A victim, and an honest caller of it.
pub struct Victim {
    pub process: Child,
    pub honest: Untyped,
    pub place: Place,
}

pub fn victim() -> Victim {
    victim_for(&[])
}

/// One that admits other users as well, or copies what is lent to it.
pub fn victim_for(words: &[&str]) -> Victim {
    let place = place();
    let process = start("victim", &[&[place.text()], words].concat());
    process.expect("ready");
    let builder = Bus::builder().directory(place.path()).timeout(PATIENCE).limits(Limits {
        // More than the victim allows, so that the refusal is the victim's.
        body_bytes: 16 * BODY_MAX,
        ..Limits::default()
    });
    let is_private = words.iter().all(|word| *word == COPIES);
    let builder = if is_private { builder } else { builder.owner(0) };
    let honest = connected(&builder.open().unwrap()).expect("an honest caller connects");
    Victim { process, honest, place }
}

/// Connects to the victim, once more where a loaded machine takes longer than a handshake may.
pub fn connected(bus: &Bus) -> Result<Untyped, ConnectError> {
    let began = Instant::now();
    loop {
        match bus.proxy("victim").wait() {
            Err(ConnectError::HandshakeTimeout { .. }) if began.elapsed() < PATIENCE => {}
            other => return other,
        }
    }
}

impl Victim {
    pub fn path(&self) -> std::path::PathBuf {
        self.place.path().join("victim")
    }

    /// The honest caller is served as ever.
    #[track_caller]
    pub fn expect_unharmed(&self) {
        for i in 0..20_u32 {
            assert_eq!(self.honest.call::<_, u32>("add", &(i, 1_u32)).wait(), Ok(i + 1));
        }
    }

    #[track_caller]
    pub fn number(&self, method: &'static str) -> u64 {
        self.honest.call::<_, u64>(method, &()).wait().expect("an honest call")
    }
}
