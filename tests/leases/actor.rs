//! A process that makes, lends, holds and passes on blobs as its parent says, in lines: [`act`] is the process, [`Actor`] the
//! parent's handle of it.

use std::collections::HashMap;
use std::sync::Arc;

use objbus::{AllocError, Blob, Bus, CallError, Published};
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize};

use crate::support::*;

/// What a process holds, by number. It outlives the object.
type Held = Arc<Mutex<HashMap<u64, Blob>>>;

/// Keeps what it is given, and gives what it has.
struct Shelf(Held);

#[objbus::object]
impl Shelf {
    pub fn keep(&self, id: u64, blob: Blob) {
        self.0.lock().insert(id, blob);
    }

    pub fn kept(&self, id: u64) -> Option<Blob> {
        self.0.lock().get(&id).cloned()
    }

    pub fn misread(&self, _odd: Odd) {}
}

/// What nobody can decode.
#[derive(Serialize, objbus::Type)]
pub struct Odd(pub Blob);

impl<'de> Deserialize<'de> for Odd {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Odd, D::Error> {
        Blob::deserialize(from)?;
        Err(serde::de::Error::custom("it is odd"))
    }
}

/// The byte at `at` of pattern `seed`.
fn byte(seed: u8, at: usize) -> u8 {
    (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed
}

pub fn pattern(bus: &Bus, seed: u8, len: usize) -> Result<Blob, AllocError> {
    let mut blob = bus.alloc(len)?;
    blob.iter_mut().enumerate().for_each(|(at, to)| *to = byte(seed, at));
    Ok(blob.freeze())
}

/// How a blob differs from `len` bytes of pattern `seed` from `start` on, if it does.
pub fn difference(blob: &[u8], seed: u8, start: usize, len: usize) -> Option<String> {
    if blob.len() != len {
        return Some(format!("{} bytes, not {len}", blob.len()));
    }
    let at = (0..len).find(|&at| blob[at] != byte(seed, start + at))?;
    Some(format!("byte {at} of {len} is {}, not {}", blob[at], byte(seed, start + at)))
}

/// Takes all memory there is, and fills it with something else.
fn fill(bus: &Bus) -> Vec<Blob> {
    let mut hoard = Vec::new();
    for len in [1 << 20, 64 << 10, 4 << 10, 64] {
        while let Ok(mut blob) = bus.alloc(len) {
            blob.fill(0xAA);
            hoard.push(blob.freeze());
        }
    }
    hoard
}

/// The process' state.
struct State {
    bus: Option<Bus>,
    published: Option<Published>,
    proxies: HashMap<String, ShelfProxy>,
    held: Held,
    hoard: Vec<Blob>,
}

/// Arguments: the directory, and the bytes of memory that the bus may have.
pub fn act(arguments: &[String]) -> ! {
    let memory = arguments[1].parse().expect("a number");
    let bus = Bus::builder().directory(&arguments[0]).memory(memory).timeout(PATIENCE).open();
    let mut state = State {
        bus: Some(bus.expect("a directory of the test's own can be used")),
        published: None,
        proxies: HashMap::new(),
        held: Held::default(),
        hoard: Vec::new(),
    };
    say("ready");
    loop {
        let line = hear();
        let words: Vec<&str> = line.split(' ').collect();
        say(state.obey(&words).unwrap_or_else(|error| format!("error: {error}")));
    }
}

impl State {
    fn bus(&self) -> &Bus {
        self.bus.as_ref().expect("the bus was not dropped")
    }

    fn blob(&self, id: &str) -> Blob {
        self.held.lock().get(&number(id)).cloned().expect("it is held")
    }

    fn hold(&self, id: &str, blob: Blob) {
        self.held.lock().insert(number(id), blob);
    }

    fn proxy(&mut self, name: &str) -> ShelfProxy {
        let connect = || self.bus.as_ref().expect("a bus").proxy(name).wait().expect("it is published");
        self.proxies.entry(name.to_owned()).or_insert_with(connect).clone()
    }

    fn obey(&mut self, words: &[&str]) -> Result<String, String> {
        let ok = Ok("ok".to_owned());
        match words {
            ["publish", name] => self.published = Some(self.publish(name, false)),
            ["replace", name] => self.published = Some(self.publish(name, true)),
            ["unpublish"] => drop(self.published.take()),
            ["shut", "down"] => block_on(self.published.take().expect("it is published").shutdown()),
            ["close"] => assert!(self.bus().close(PATIENCE)),
            ["drop", "bus"] => {
                self.proxies.clear();
                self.published = None;
                self.bus = None;
            }
            ["connect", name] => drop(self.proxy(name)),
            ["disconnect", name] => drop(self.proxies.remove(*name)),
            ["misbehave", name] => self.misbehave(name),
            ["give", name, id, theirs] => {
                let blob = self.blob(id);
                let given = self.proxy(name).keep(number(theirs), blob).wait();
                return given.map(|()| "ok".to_owned()).or_else(told);
            }
            ["take", name, theirs, id] => match self.proxy(name).kept(number(theirs)).wait() {
                Ok(Some(blob)) => self.hold(id, blob),
                Ok(None) => return Ok("nothing".to_owned()),
                Err(error) => return told(error),
            },
            _ => return self.obey_alone(words),
        }
        ok
    }

    /// What concerns no other process.
    fn obey_alone(&mut self, words: &[&str]) -> Result<String, String> {
        match words {
            ["make", id, seed, len] => match pattern(self.bus(), number(seed) as u8, number(len) as usize) {
                Ok(blob) => self.hold(id, blob),
                Err(AllocError::NoMemory) => return Ok("no memory".to_owned()),
                Err(error) => return Err(error.to_string()),
            },
            ["slice", id, new, start, end] => {
                self.hold(new, self.blob(id).slice(number(start) as usize..number(end) as usize));
            }
            ["drop", id] => drop(self.held.lock().remove(&number(id)).expect("it is held")),
            ["check", id, seed, start, len] => {
                let [seed, start, len] = [seed, start, len].map(|text| number(text) as usize);
                let blob = self.blob(id);
                return difference(&blob, seed as u8, start, len).map_or(Ok("ok".to_owned()), Err);
            }
            ["fill"] => self.hoard = fill(self.bus()),
            ["filled"] => return Ok(self.hoard.iter().map(|blob| blob.len()).sum::<usize>().to_string()),
            ["empty"] => self.hoard.clear(),
            ["memory"] => {
                let memory = self.bus().memory();
                let leases: u64 = memory.borrowers.iter().map(|borrower| borrower.leases).sum();
                return Ok(format!("{} {} {leases}", memory.in_use(), memory.lent()));
            }
            ["copied"] => return Ok(self.bus().memory().copied.count.to_string()),
            ["segments"] => {
                let segments = self.bus().memory().users.iter().map(|user| user.segments).sum::<usize>();
                return Ok(segments.to_string());
            }
            ["violations"] => {
                return Ok(self.published.as_ref().map_or(0, Published::violations).to_string());
            }
            ["callers"] => return Ok(self.published.as_ref().map_or(0, Published::callers).to_string()),
            other => panic!("told {other:?}"),
        }
        Ok("ok".to_owned())
    }

    fn publish(&self, name: &str, replaces: bool) -> Published {
        let publication = self.bus().publication(name, Shelf(Arc::clone(&self.held)));
        let publication = if replaces { publication.replace() } else { publication };
        publication.publish().expect("the name can be had")
    }

    /// Has the lane closed: ten bodies in a row that cannot be decoded are no accident.
    fn misbehave(&mut self, name: &str) {
        let proxy = self.proxy(name);
        for _ in 0..10 {
            let error = proxy.misread(Odd(Blob::from("odd"))).wait().unwrap_err();
            assert!(matches!(error, CallError::BadRequest { .. }), "{error:?}");
        }
    }
}

fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}

/// An answer that is none: a lack of memory is for the parent to judge.
fn told(error: CallError) -> Result<String, String> {
    match error {
        CallError::NoMemory { .. } => Ok("no memory".to_owned()),
        other => Err(other.to_string()),
    }
}

/// Such a process.
pub struct Actor(pub Child);

/// Starts one.
pub fn actor(place: &Place, memory: u64) -> Actor {
    let child = start("actor", &[place.text(), &memory.to_string()]);
    child.expect("ready");
    Actor(child)
}

impl Actor {
    /// Its answer to a command.
    pub fn ask(&mut self, command: &str) -> String {
        self.0.tell(command);
        self.0.hear()
    }

    /// Has it do what must succeed.
    #[track_caller]
    pub fn order(&mut self, command: &str) {
        assert_eq!(self.ask(command), "ok", "process {} was told `{command}`", self.0.pid());
    }

    pub fn number(&mut self, command: &str) -> u64 {
        number(&self.ask(command))
    }

    /// Waits until nothing of its memory is in use, nor lent.
    pub fn wait_for_memory(&mut self, why: &str) {
        let mut now = String::new();
        let began = std::time::Instant::now();
        while now != "0 0 0" {
            assert!(began.elapsed() < PATIENCE, "{why}: in use, lent and leases are {now}");
            now = self.ask("memory");
        }
    }
}
