//! The object that most two-process tests call, and the process that publishes it.
//!
//! [`own`] is the role of an owner: it publishes a [`Probe`] and does what its parent says in lines. A method that
//! is to be met at a certain point says that it is there (`began 7`) and goes on when the gate is opened.
#![allow(dead_code)] // each test binary uses its part

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use objbus::{
    Access, Bus, Call, CallContext, CallError, Connect, Instance, Limits, PanicPolicy, Proxy, Published,
};
use serde::de::DeserializeOwned;

use super::{Child, block_on, bus_at, hear, held_by, say, start};

/// Holds methods back until it is opened.
#[derive(Default)]
pub struct Gate {
    state: Mutex<(bool, Vec<Waker>)>,
    changed: Condvar,
}

impl Gate {
    pub fn open(&self) {
        let wakers = {
            let mut state = self.state.lock().unwrap();
            state.0 = true;
            std::mem::take(&mut state.1)
        };
        self.changed.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    pub fn shut(&self) {
        self.state.lock().unwrap().0 = false;
    }

    /// Blocks until it is open.
    pub fn pass(&self) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| !state.0).unwrap());
    }

    /// As [`pass`](Self::pass), for async methods.
    pub fn passed(&self) -> Passed<'_> {
        Passed(self)
    }
}

pub struct Passed<'a>(&'a Gate);

impl Future for Passed<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.state.lock().unwrap();
        if state.0 {
            return Poll::Ready(());
        }
        state.1.push(cx.waker().clone());
        Poll::Pending
    }
}

/// Says that it goes.
struct Farewell(String);

impl Drop for Farewell {
    fn drop(&mut self) {
        say(&self.0);
    }
}

#[derive(Default)]
pub struct Probe {
    pub gate: Arc<Gate>,
    runs: AtomicU64,
    begun_quietly: AtomicU64,
    log: Option<File>,
}

#[objbus::object]
impl Probe {
    /// Which process this is.
    pub fn process(&self) -> u32 {
        std::process::id()
    }

    pub fn add(&self, a: u64, b: u64) -> u64 {
        a + b
    }

    pub async fn add_async(&self, a: u64, b: u64) -> u64 {
        a + b
    }

    pub fn echo(&self, data: &[u8]) -> Vec<u8> {
        data.to_vec()
    }

    /// Counts its runs, and writes each into the log before anything else.
    pub fn mark(&self, id: u64) -> u64 {
        if let Some(mut log) = self.log.as_ref() {
            log.write_all(&id.to_le_bytes()).expect("the log can be written");
        }
        self.runs.fetch_add(1, Ordering::SeqCst);
        id
    }

    pub fn runs(&self) -> u64 {
        self.runs.load(Ordering::SeqCst)
    }

    /// Begins, waits for the gate, and says how it ends.
    pub fn held(&self, id: u64) -> u64 {
        say(format!("began {id}"));
        self.gate.pass();
        let call = CallContext::current().expect("a method has a call");
        let end = if call.cancelled() { "cancelled" } else { "ended" };
        say(format!("{end} {id}"));
        id
    }

    /// As `held`; says `left` when its future goes, however that comes about.
    pub async fn held_async(&self, id: u64) -> u64 {
        let _farewell = Farewell(format!("left {id}"));
        say(format!("began {id}"));
        self.gate.passed().await;
        id
    }

    /// As `held_async`, and then counts as a run.
    pub async fn held_then_run(&self, id: u64) -> u64 {
        let _farewell = Farewell(format!("left {id}"));
        say(format!("began {id}"));
        self.gate.passed().await;
        self.runs.fetch_add(1, Ordering::SeqCst);
        id
    }

    /// As `held_async`, in silence, and counted as it begins.
    pub async fn held_quietly(&self, id: u64) -> u64 {
        self.begun_quietly.fetch_add(1, Ordering::SeqCst);
        self.gate.passed().await;
        id
    }

    /// How many calls of `held_quietly` have begun.
    pub fn begun_quietly(&self) -> u64 {
        self.begun_quietly.load(Ordering::SeqCst)
    }

    /// As `held_async`, with something to hold.
    pub async fn held_with(&self, id: u64, data: &[u8]) -> u64 {
        say(format!("began {id}"));
        self.gate.passed().await;
        data.len() as u64
    }

    /// As `held`, with an answer of so many bytes.
    pub fn held_bytes(&self, id: u64, len: u64) -> Vec<u8> {
        say(format!("began {id}"));
        self.gate.pass();
        vec![id as u8; len as usize]
    }

    /// Takes so many milliseconds.
    pub fn dawdle(&self, ms: u64) -> u64 {
        let until = Instant::now() + Duration::from_millis(ms);
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(left);
        }
        ms
    }

    /// Runs until its caller has given up.
    pub fn until_cancelled(&self) -> u64 {
        say("began");
        let call = CallContext::current().expect("a method has a call");
        let mut looks = 0;
        while !call.cancelled() {
            looks += 1;
            std::thread::yield_now();
        }
        say("cancelled");
        looks
    }

    /// Who calls: pid, uid, gid, milliseconds that are left, the object's name.
    pub fn caller(&self) -> (u32, u32, u32, Option<u64>, String) {
        let call = CallContext::current().expect("a method has a call");
        let left = call.remaining().map(|left| left.as_millis() as u64);
        (call.pid(), call.uid(), call.gid(), left, call.object_name().to_owned())
    }

    /// Short, but for the calls that are held.
    pub fn held_for_once(&self, is_held: bool) {
        if is_held {
            say("began");
            self.gate.pass();
        }
    }
}

/// The role of an owner: the directory, the name, and how to publish (`workers=1`, `log=<path>`, …).
pub fn own(arguments: &[String]) -> ! {
    let memory = arguments.iter().find_map(|option| option.strip_prefix("memory="));
    let bus = memory.map_or_else(
        || bus_at(&arguments[0]),
        |bytes| {
            let builder = Bus::builder().directory(&arguments[0]).memory(bytes.parse().expect("a number"));
            builder.open().expect("a directory of the test's own can be used")
        },
    );
    let mut probe = Probe::default();
    let gate = Arc::clone(&probe.gate);
    if let Some(path) = arguments.iter().find_map(|option| option.strip_prefix("log=")) {
        let log = File::options().create(true).append(true).open(path);
        probe.log = Some(log.expect("the log can be opened"));
    }
    let mut publication = bus.publication(&arguments[1], probe);
    for option in &arguments[2..] {
        publication =
            match option.split_once('=').unwrap_or((option, "")) {
                ("workers", n) => publication.workers(n.parse().expect("a number")),
                ("in_flight", n) => publication
                    .limits(Limits { in_flight: n.parse().expect("a number"), ..Limits::default() }),
                ("body", n) => publication
                    .limits(Limits { body_bytes: n.parse().expect("a number"), ..Limits::default() }),
                ("bytes", n) => publication
                    .limits(Limits { in_flight_bytes: n.parse().expect("a number"), ..Limits::default() }),
                ("lanes", n) => {
                    let lanes_per_process = n.parse().expect("a number");
                    publication.limits(Limits { lanes_per_process, ..Limits::default() })
                }
                ("deny", "") => publication.access(Access::only().uid(u32::MAX - 9)),
                ("deny", method) => publication.method_access(method, Access::only().uid(u32::MAX - 9)),
                ("instance", "") => publication.instance(Instance::new()),
                ("instance", tag) => publication.instance(Instance::new().tag(tag)),
                ("replace", _) => publication.replace(),
                ("poison", _) => publication.on_panic(PanicPolicy::Poison),
                _ => publication,
            };
    }
    let published = publication.publish().expect("the name is free");
    say("ready");
    obey(&bus, Some(published), &gate)
}

/// Does what the parent says, until it says nothing more.
fn obey(bus: &Bus, mut published: Option<Published>, gate: &Gate) -> ! {
    loop {
        match hear().as_str() {
            "open" => gate.open(),
            "shut" => {
                gate.shut();
                say("is shut");
            }
            "withdraw" => drop(published.take()),
            // On a thread of its own, so that the gate can be opened meanwhile.
            "shutdown" => {
                let shutdown = published.take().expect("it is published").shutdown();
                std::thread::spawn(move || {
                    block_on(shutdown);
                    say("shut down");
                });
            }
            "callers" => say(published.as_ref().map_or(0, Published::callers).to_string()),
            command => match command.strip_prefix("close ") {
                Some(ms) => {
                    let deadline = Duration::from_millis(ms.parse().expect("a number"));
                    say(format!("closed {}", bus.close(deadline)));
                }
                None => panic!("told `{command}`"),
            },
        }
    }
}

/// Starts an owner of a [`Probe`] named `probe` and waits until it is published.
pub fn owner(place: &super::Place, options: &[&str]) -> Child {
    owner_of(place, "probe", options)
}

pub fn owner_of(place: &super::Place, name: &str, options: &[&str]) -> Child {
    let mut arguments = vec![place.text(), name];
    arguments.extend(options);
    let owner = start("owner", &arguments);
    owner.expect("ready");
    owner
}

/// A proxy of it over a bus, and so a lane, of its own, with a time-out no test comes near.
pub fn probe(place: &super::Place) -> ProbeProxy {
    let connecting = place.bus().proxy("probe").call_timeout(super::PATIENCE);
    connecting.wait().expect("the probe is published")
}

/// One more instance of `probe`.
pub fn instance(place: &super::Place, tag: &str) -> Child {
    owner(place, &[&format!("instance={tag}")])
}

pub fn instances<const N: usize>(place: &super::Place) -> [Child; N] {
    std::array::from_fn(|_| instance(place, ""))
}

/// A connection with all of them, that no test's time-out ends.
pub fn connecting(bus: &Bus) -> Connect<ProbeProxy> {
    bus.proxy("probe").call_timeout(super::PATIENCE)
}

/// Waits until the proxy knows as many instances.
pub fn wait_for_instances(probe: &ProbeProxy, count: usize) -> Duration {
    super::wait_until(&format!("{count} instances"), || probe.instances().wait().len() == count)
}

/// How often each number stands in the logs.
pub fn runs_in(logs: &[impl AsRef<Path>]) -> HashMap<u64, u32> {
    let mut runs = HashMap::new();
    for log in logs {
        for id in std::fs::read(log).unwrap_or_default().chunks_exact(8) {
            *runs.entry(u64::from_le_bytes(id.try_into().unwrap())).or_default() += 1;
        }
    }
    runs
}

/// Shuts the owner's gate.
pub fn shut_gate(owner: &mut Child) {
    owner.tell("shut");
    owner.expect("is shut");
}

/// Waits until the owner has as many callers.
pub fn wait_for_callers(owner: &mut Child, expected: usize) {
    super::wait_until(&format!("{expected} callers are left"), || {
        owner.tell("callers");
        owner.hear() == expected.to_string()
    });
}

/// Waits until the process holds what it held before.
pub fn wait_for_held(pid: u32, before: super::Held) {
    super::wait_until(&format!("{pid} holds {before:?} again, now {:?}", held_by(pid)), || {
        held_by(pid) == before
    });
}

/// Polls a call once: sends it.
pub fn poll_once<T: DeserializeOwned + 'static>(call: &mut Call<T>) -> Poll<Result<T, CallError>> {
    Pin::new(call).poll(&mut Context::from_waker(Waker::noop()))
}

/// Random numbers; say [`seed`](Self::seed) in every failure.
pub struct Random {
    pub seed: u64,
    state: u64,
}

impl Random {
    /// From the environment's OBJBUS_TEST_SEED, else from the clock.
    pub fn new() -> Random {
        let clock = || std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64);
        let given = std::env::var("OBJBUS_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(clock);
        Random::of(seed)
    }

    pub fn of(seed: u64) -> Random {
        Random { seed, state: seed | 1 }
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }

    /// Spends between nothing and `most` without sleeping.
    pub fn dally(&mut self, most: Duration) {
        let until = Instant::now() + Duration::from_nanos(self.below(most.as_nanos() as u64));
        while Instant::now() < until {
            std::thread::yield_now();
        }
    }
}
