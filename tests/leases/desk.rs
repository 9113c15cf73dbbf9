//! An object to which blobs are sent in calls that come to every end there is, and the process that publishes it.

use std::sync::Arc;

use objbus::{Access, Blob, Bus, Limits, Published};

use crate::actor::{Odd, pattern};
use crate::probe::Gate;
use crate::support::*;

/// What the bus of either side may have.
pub const MEMORY: u64 = 32 << 20;
/// The largest body that it takes or gives, beside blobs.
pub const BODY_MAX: u64 = 1 << 18;
/// Lengths of what is sent.
pub const LENGTHS: [usize; 3] = [100, 70_000, 4096];

/// `count` blobs of this process' memory.
pub fn blobs(bus: &Bus, count: usize) -> Vec<Blob> {
    let made = (0..count).map(|i| pattern(bus, i as u8, LENGTHS[i % LENGTHS.len()]));
    made.collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{error}: {:?}", bus.memory()))
}

pub struct Desk {
    bus: Bus,
    gate: Arc<Gate>,
}

impl Desk {
    /// What came, and as much of the owner's own.
    fn with_own(&self, came: Vec<Blob>) -> Vec<Blob> {
        let own = blobs(&self.bus, came.len());
        [came, own].concat()
    }
}

#[objbus::object]
impl Desk {
    pub fn echo(&self, blobs: Vec<Blob>) -> Vec<Blob> {
        self.with_own(blobs)
    }

    pub async fn echo_async(&self, blobs: Vec<Blob>) -> Vec<Blob> {
        self.with_own(blobs)
    }

    /// Begins, says so, and waits for the gate.
    pub fn held(&self, blobs: Vec<Blob>) -> Vec<Blob> {
        say("began");
        self.gate.pass();
        self.with_own(blobs)
    }

    /// As `held`.
    pub async fn held_async(&self, blobs: Vec<Blob>) -> Vec<Blob> {
        say("began");
        self.gate.passed().await;
        self.with_own(blobs)
    }

    /// As `held`, with bodies that do not fit a cell or slot and lend nothing beside.
    pub fn held_large(&self, data: &[u8], len: u64) -> Vec<u8> {
        say("began");
        self.gate.pass();
        vec![data.len() as u8; len as usize]
    }

    pub fn fail(&self, blobs: Vec<Blob>) -> Result<(), Vec<Blob>> {
        Err(self.with_own(blobs))
    }

    pub fn panic(&self, blobs: Vec<Blob>) -> Vec<Blob> {
        let all = self.with_own(blobs);
        panic!("with {} blobs in hand", all.len())
    }

    pub async fn panic_async(&self, blobs: Vec<Blob>) -> Vec<Blob> {
        let all = self.with_own(blobs);
        panic!("with {} blobs in hand", all.len())
    }

    /// Nobody can decode its argument.
    pub fn misread(&self, _odd: Odd, _blobs: Vec<Blob>) {}

    /// Nobody can decode its result.
    pub fn odd(&self, blobs: Vec<Blob>) -> (Odd, Vec<Blob>) {
        (Odd(blobs[0].clone()), self.with_own(blobs))
    }

    /// Nobody may call it.
    pub fn denied(&self, blobs: Vec<Blob>) -> Vec<Blob> {
        blobs
    }

    /// A result of `len` bytes beside blobs.
    pub fn large(&self, _data: &[u8], len: u64, blobs: Vec<Blob>) -> (Vec<u8>, Vec<Blob>) {
        (vec![0; len as usize], self.with_own(blobs))
    }

    /// Calls itself.
    pub fn reenter(&self, blobs: Vec<Blob>) -> String {
        let desk: DeskProxy = self.bus.proxy("desk").wait().expect("it is published");
        format!("{:?}", desk.echo(blobs).wait().map(|blobs| blobs.len()))
    }
}

/// Arguments: the directory, and how to publish (`workers=1`, `in_flight=1`).
pub fn own(arguments: &[String]) -> ! {
    let bus = bus_of(&arguments[0]);
    let gate = Arc::new(Gate::default());
    let desk = Desk { bus: bus.clone(), gate: Arc::clone(&gate) };
    let mut limits = Limits { body_bytes: BODY_MAX, ..Limits::default() };
    let mut publication = bus.publication("desk", desk).method_access("denied", Access::only());
    for option in &arguments[1..] {
        match option.split_once('=').expect("an option has a value") {
            ("workers", n) => publication = publication.workers(n.parse().expect("a number")),
            ("in_flight", n) => limits.in_flight = n.parse().expect("a number"),
            (other, _) => panic!("no option `{other}`"),
        }
    }
    let mut published = Some(publication.limits(limits).publish().expect("the name is free"));
    say("ready");
    loop {
        match hear().as_str() {
            "open" => gate.open(),
            "shut" => {
                gate.shut();
                say("is shut");
            }
            "withdraw" => drop(published.take()),
            "violations" => say(published.as_ref().map_or(0, Published::violations).to_string()),
            "memory" => say(memory_of(&bus)),
            other => panic!("told `{other}`"),
        }
    }
}

/// A bus with as much.
pub fn bus_of(directory: &str) -> Bus {
    let limits = Limits { body_bytes: 16 * BODY_MAX, ..Limits::default() };
    let builder = Bus::builder().directory(directory).memory(MEMORY).limits(limits).timeout(PATIENCE);
    builder.open().expect("a directory of the test's own can be used")
}

/// Bytes in use, bytes lent, and leases out.
pub fn memory_of(bus: &Bus) -> String {
    let memory = bus.memory();
    let leases: u64 = memory.borrowers.iter().map(|borrower| borrower.leases).sum();
    format!("{} {} {leases}", memory.in_use(), memory.lent())
}
