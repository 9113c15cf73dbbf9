//! However a call is given up, it ends exactly once: what its caller was told and what its owner did agree, and nothing is left behind.

#[path = "support/probe.rs"]
mod probe;
mod support;

use probe::Gate;
use support::*;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use objbus::{Blob, Bus, Call, CallContext, CallError, Executed, Proxy};

/// Interleavings tried, each with the number it is made from.
const SEEDS: u64 = 24;
/// Steps of one.
const STEPS: usize = 120;
/// Bytes lent with some calls.
const LENT: usize = 20_000;

/// An object that writes down what becomes of each call, in a file that outlives it.
struct Ward {
    journal: Journal,
    gate: Arc<Gate>,
    is_open: Arc<AtomicBool>,
}

#[derive(Clone)]
struct Journal(Arc<File>);

impl Journal {
    fn note(&self, what: u8, id: u64) {
        let mut entry = [what; 16];
        entry[8..].copy_from_slice(&id.to_le_bytes());
        // Whole, since it is short and appended.
        (&*self.0).write_all(&entry).expect("the journal can be written");
    }
}

/// Notes how an async method ends.
struct End(Journal, u64, u8);

impl Drop for End {
    fn drop(&mut self) {
        self.0.note(self.2, self.1);
    }
}

#[objbus::object]
impl Ward {
    /// Ends at once.
    pub fn quick(&self, id: u64) -> u64 {
        self.journal.note(b'b', id);
        self.journal.note(b'e', id);
        id
    }

    /// Waits for the gate.
    pub async fn held(&self, id: u64, data: Option<Blob>) -> u64 {
        self.journal.note(b'b', id);
        let mut end = End(self.journal.clone(), id, b'd');
        self.gate.passed().await;
        drop(data);
        end.2 = b'e';
        id
    }

    /// Waits for the gate, or until it is given up.
    pub fn stubborn(&self, id: u64) -> u64 {
        self.journal.note(b'b', id);
        let call = CallContext::current().expect("a method has a call");
        while !self.is_open.load(Ordering::SeqCst) {
            if call.cancelled() {
                self.journal.note(b'c', id);
                break;
            }
            std::thread::yield_now();
        }
        self.journal.note(b'e', id);
        id
    }
}

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "ward" => own(&arguments),
        "visitor" => visit(&arguments),
        other => panic!("no role `{other}`"),
    }
}

fn own(arguments: &[String]) -> ! {
    let file = File::options().create(true).append(true).open(&arguments[1]).expect("it can be opened");
    let (gate, is_open) = (Arc::new(Gate::default()), Arc::new(AtomicBool::new(false)));
    let ward =
        Ward { journal: Journal(Arc::new(file)), gate: Arc::clone(&gate), is_open: Arc::clone(&is_open) };
    let published = bus_at(&arguments[0]).publish("ward", ward).expect("the name is free");
    say("ready");
    loop {
        match hear().as_str() {
            "open" => {
                is_open.store(true, Ordering::SeqCst);
                gate.open();
            }
            _ => say(published.callers().to_string()),
        }
    }
}

/// Sends calls and waits to be killed.
fn visit(arguments: &[String]) -> ! {
    let bus = bus_at(&arguments[0]);
    let ward: WardProxy = bus.proxy("ward").wait().expect("it is published");
    let first: u64 = arguments[1].parse().expect("a number");
    let lent = || bus.alloc(LENT).expect("there is memory").freeze();
    let calls: Vec<_> = (first..first + 10)
        .map(|id| ward.held(id, Some(lent())).timeout(Duration::from_millis(300)).started())
        .collect();
    say("sent");
    let _calls = calls;
    stay()
}

/// What a caller was told of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Answer,
    Error(Executed),
    /// Nothing: it has dropped the call.
    Nothing,
}

/// By the call's id, how often the journal has each of its entries.
fn read_journal(path: &std::path::Path) -> BTreeMap<u64, BTreeMap<u8, usize>> {
    let bytes = std::fs::read(path).unwrap_or_default();
    let mut entries: BTreeMap<u64, BTreeMap<u8, usize>> = BTreeMap::new();
    for entry in bytes.chunks_exact(16) {
        let id = u64::from_le_bytes(entry[8..].try_into().expect("8 bytes"));
        *entries.entry(id).or_default().entry(entry[0]).or_default() += 1;
    }
    entries
}

/// Numbers from a seed: splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }
}

/// One interleaving.
struct Run {
    seed: u64,
    random: Random,
    place: Place,
    bus: Bus,
    owner: Child,
    ward: WardProxy,
    visitor: Option<Child>,
    out: Vec<(u64, Call<u64>)>,
    told: BTreeMap<u64, Told>,
    next_id: u64,
    has_killed: bool,
}

fn start_ward(place: &Place) -> Child {
    let journal = place.path().with_extension("journal");
    let owner = start("ward", &[place.text(), journal.to_str().expect("a text path")]);
    owner.expect("ready");
    owner
}

impl Run {
    fn new(seed: u64) -> Run {
        let place = place();
        let _ = std::fs::remove_file(place.path().with_extension("journal"));
        let (bus, owner) = (place.bus(), start_ward(&place));
        let ward = bus.proxy("ward").call_timeout(PATIENCE).wait().expect("it is published");
        let (random, out, told) = (Random(seed), Vec::new(), BTreeMap::new());
        Run { seed, random, place, bus, owner, ward, visitor: None, out, told, next_id: 0, has_killed: false }
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..=8 => self.send(),
            9..=13 => self.poll(),
            14..=16 if !self.out.is_empty() => {
                let (id, call) = self.pick();
                drop(call);
                self.told.insert(id, Told::Nothing);
            }
            // As a select does: the first that is ready wins, the other is dropped.
            17 if self.out.len() > 1 => {
                let ((one, mut first), (other, second)) = (self.pick(), self.pick());
                match poll_once(&mut first) {
                    Poll::Ready(result) => self.note(one, &result),
                    Poll::Pending => _ = self.told.insert(one, Told::Nothing),
                }
                drop((first, second));
                self.told.insert(other, Told::Nothing);
            }
            18 if self.visitor.is_none() => {
                let first = (1 + self.next_id) * 1_000_000;
                let visitor = start("visitor", &[self.place.text(), &first.to_string()]);
                visitor.expect("sent");
                self.visitor = Some(visitor);
            }
            19 if self.random.below(4) == 0 => self.kill(),
            _ => {}
        }
    }

    fn pick(&mut self) -> (u64, Call<u64>) {
        let at = self.random.below(self.out.len() as u64) as usize;
        self.out.swap_remove(at)
    }

    fn send(&mut self) {
        let id = self.next_id;
        self.next_id += 1;
        let mut call = match self.random.below(8) {
            0..=3 => self.ward.quick(id),
            4 => self.ward.stubborn(id),
            5 => self.ward.held(id, Some(self.bus.alloc(LENT).expect("there is memory").freeze())),
            _ => self.ward.held(id, None),
        };
        if self.random.below(3) == 0 {
            call = call.timeout(Duration::from_millis(self.random.below(30)));
        }
        match self.random.below(3) {
            0 if self.out.len() < 40 => self.out.push((id, call.started())),
            1 if self.out.len() < 40 => {
                let polled = poll_once(&mut call);
                self.keep(id, call, polled);
            }
            // Never sent, unless it is polled later.
            _ => self.out.push((id, call)),
        }
    }

    fn poll(&mut self) {
        if !self.out.is_empty() {
            let (id, mut call) = self.pick();
            let polled = poll_once(&mut call);
            self.keep(id, call, polled);
        }
    }

    fn keep(&mut self, id: u64, call: Call<u64>, polled: Poll<Result<u64, CallError>>) {
        match polled {
            Poll::Ready(result) => self.note(id, &result),
            Poll::Pending => self.out.push((id, call)),
        }
    }

    fn note(&mut self, id: u64, result: &Result<u64, CallError>) {
        let told = match result {
            Ok(answer) => {
                assert_eq!(*answer, id, "seed {}: another call's answer", self.seed);
                Told::Answer
            }
            Err(error) => Told::Error(error.executed()),
        };
        let before = self.told.insert(id, told);
        assert_eq!(before, None, "seed {}: call {id} ended twice", self.seed);
    }

    fn kill(&mut self) {
        self.owner.kill();
        self.has_killed = true;
        self.visitor = None;
        self.owner = start_ward(&self.place);
    }

    /// Ends all that is out, and looks at what is left and at the journal.
    fn finish(mut self) {
        let seed = self.seed;
        if let Some(mut visitor) = self.visitor.take() {
            visitor.kill();
        }
        self.owner.tell("open");
        let began = std::time::Instant::now();
        while !self.out.is_empty() {
            assert!(began.elapsed() < PATIENCE, "seed {seed}: never told: {:?}", self.out);
            self.poll();
        }
        wait_until(&format!("seed {seed}: no slot is in flight"), || self.ward.handle().in_flight() == 0);
        wait_until(&format!("seed {seed}: no lease is out"), || self.bus.memory().lent() == 0);
        wait_until(&format!("seed {seed}: one caller is left"), || {
            let _connected = self.ward.quick(u64::MAX).wait();
            self.owner.tell("callers");
            self.owner.hear() == "1"
        });
        let journal = read_journal(&self.place.path().with_extension("journal"));
        for (id, entries) in journal.iter().filter(|(id, _)| **id != u64::MAX) {
            let count = |what: u8| entries.get(&what).copied().unwrap_or(0);
            let (begun, ends) = (count(b'b'), count(b'e') + count(b'd'));
            assert!(begun == 1 && ends <= 1, "seed {seed}: call {id} in the journal: {entries:?}");
            assert!(self.has_killed || ends == 1, "seed {seed}: call {id} never ended: {entries:?}");
        }
        for (id, told) in &self.told {
            let count = |what: u8| journal.get(id).and_then(|of| of.get(&what)).copied().unwrap_or(0);
            let agrees = match told {
                Told::Answer | Told::Error(Executed::Yes) => count(b'b') == 1 && count(b'e') == 1,
                Told::Error(Executed::No) => count(b'b') == 0,
                Told::Error(_) | Told::Nothing => true,
            };
            assert!(agrees, "seed {seed}: call {id} was told {told:?}; the journal: {:?}", journal.get(id));
        }
        let _ = std::fs::remove_file(self.place.path().with_extension("journal"));
    }
}

fn poll_once(call: &mut Call<u64>) -> Poll<Result<u64, CallError>> {
    Pin::new(call).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn every_call_ends_exactly_once_however_it_is_given_up() {
    for seed in 0..SEEDS {
        let mut run = Run::new(seed);
        (0..STEPS).for_each(|_| run.step());
        run.finish();
    }
}

/// What the journal has of call `id`, once it has `expected`.
fn wait_for_entry(place: &Place, id: u64, expected: u8) {
    wait_until(&format!("the journal has {} of call {id}", char::from(expected)), || {
        let journal = read_journal(&place.path().with_extension("journal"));
        journal.get(&id).is_some_and(|entries| entries.contains_key(&expected))
    });
}

/// Gives both kinds of a call up, by `give_up`, once they have begun.
fn gives_up(give_up: impl Fn(Pin<&mut dyn Future<Output = ()>>)) {
    let place = place();
    let _owner = start_ward(&place);
    let ward: WardProxy = place.bus().proxy("ward").call_timeout(PATIENCE).wait().expect("it is published");
    let mut held = Box::pin(async { drop(ward.held(1, None).await) });
    let mut stubborn = Box::pin(async { drop(ward.stubborn(2).await) });
    for call in [held.as_mut() as Pin<&mut dyn Future<Output = ()>>, stubborn.as_mut()] {
        give_up(call);
    }
    for id in [1, 2] {
        wait_for_entry(&place, id, b'b');
    }
    drop((held, stubborn));
    // The async method is dropped at its next await, the plain one sees it.
    wait_for_entry(&place, 1, b'd');
    wait_for_entry(&place, 2, b'c');
    wait_until("no slot is in flight", || ward.handle().in_flight() == 0);
    let _ = std::fs::remove_file(place.path().with_extension("journal"));
}

#[test]
fn dropping_a_call_cancels_it() {
    gives_up(|call| assert!(call.poll(&mut Context::from_waker(Waker::noop())).is_pending()));
}

#[cfg(feature = "tokio")]
#[test]
fn a_time_out_or_a_select_of_tokios_cancels_it() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    gives_up(|call| {
        let outcome = runtime.block_on(async { tokio::time::timeout(Duration::from_millis(50), call).await });
        assert!(outcome.is_err(), "it is held");
    });
    gives_up(|mut call| {
        runtime.block_on(async {
            let mut sleep = std::pin::pin!(tokio::time::sleep(Duration::from_millis(50)));
            std::future::poll_fn(|cx| match call.as_mut().poll(cx) {
                Poll::Ready(()) => panic!("it is held"),
                Poll::Pending => sleep.as_mut().poll(cx),
            })
            .await;
        });
    });
}
