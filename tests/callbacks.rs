//! Objects that callers give along with a call, called back by the owner's method: in other processes, and through deaths.

#[path = "support/errand.rs"]
mod errand;
mod support;
use errand::*;
use support::system::expect_quick;
use support::*;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use objbus::{Blob, Bus, CallContext, CallError, Executed, Proxy};

/// After a kill, the news of it; the rows say 100 ms, which the best of some rounds must keep.
const NEWS: Duration = Duration::from_millis(100);
const ROUNDS: usize = 5;

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "errand" => errand::run(&arguments),
        "caller" => {
            let errand = connect(&bus_at(&arguments[0]));
            let _ = errand.pester(Notes::default()).timeout(Duration::MAX).wait();
            stay()
        }
        "slow caller" => {
            let errand = connect(&bus_at(&arguments[0]));
            let _ = errand.pester(Stuck).timeout(Duration::MAX).wait();
            stay()
        }
        other => panic!("no role `{other}`"),
    }
}

/// Writes down what it is told.
#[derive(Clone, Default)]
struct Notes(Arc<Said>);

#[derive(Default)]
struct Said {
    numbers: Mutex<Vec<u32>>,
    /// Says no from here on, unless it is 0.
    enough: AtomicU32,
}

impl Notes {
    fn stopping_at(enough: u32) -> Notes {
        let notes = Notes::default();
        notes.0.enough.store(enough, Ordering::Relaxed);
        notes
    }

    fn numbers(&self) -> Vec<u32> {
        self.0.numbers.lock().unwrap().clone()
    }

    /// How many hold it beside the test.
    fn holders(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}

impl Progress for Notes {
    fn at(&self, done: u32) -> Result<bool, Lost> {
        self.0.numbers.lock().unwrap().push(done);
        let enough = self.0.enough.load(Ordering::Relaxed);
        Ok(enough == 0 || done < enough)
    }

    fn turn(&self, text: &str, blob: Blob) -> Result<(String, Blob), Lost> {
        let turned: Vec<u8> = blob.iter().rev().copied().collect();
        Ok((text.chars().rev().collect(), Blob::from(turned)))
    }

    fn context(&self) -> Result<(u32, bool), Lost> {
        let call = CallContext::current().ok_or_else(|| Lost("no call".to_owned()))?;
        Ok((call.pid(), call.remaining().is_some()))
    }
}

/// Panics.
struct Faulty;

impl Progress for Faulty {
    fn at(&self, done: u32) -> Result<bool, Lost> {
        panic!("cannot bear {done}")
    }

    fn turn(&self, _: &str, _: Blob) -> Result<(String, Blob), Lost> {
        Err(Lost("my own".to_owned()))
    }

    fn context(&self) -> Result<(u32, bool), Lost> {
        Ok((0, false))
    }
}

/// Never comes back.
struct Stuck;

impl Progress for Stuck {
    fn at(&self, _: u32) -> Result<bool, Lost> {
        say("stuck");
        stay()
    }

    fn turn(&self, _: &str, _: Blob) -> Result<(String, Blob), Lost> {
        stay()
    }

    fn context(&self) -> Result<(u32, bool), Lost> {
        stay()
    }
}

fn connect(bus: &Bus) -> ErrandProxy {
    bus.proxy("errand").call_timeout(PATIENCE).wait().expect("the errand is there")
}

fn owner(place: &Place) -> (Child, ErrandProxy) {
    let owner = start("errand", &[place.text()]);
    owner.expect("ready");
    (owner, connect(&place.bus()))
}

#[test]
fn a_method_calls_its_callers_object_in_another_process() {
    let place = place();
    let (_owner, errand) = owner(&place);
    let notes = Notes::default();
    assert_eq!(errand.run(5, notes.clone()).wait(), Ok(5));
    assert_eq!(notes.numbers(), [0, 1, 2, 3, 4]);
    assert_eq!(notes.holders(), 0, "it went with the call");

    let stops = Notes::stopping_at(2);
    assert_eq!(errand.run(5, stops.clone()).wait(), Ok(2));
    assert_eq!(block_on(errand.run(3, notes.clone())), Ok(3));
}

#[test]
fn several_and_optional_objects() {
    let place = place();
    let (_owner, errand) = owner(&place);
    let (first, second) = (Notes::default(), Notes::stopping_at(1));
    assert_eq!(errand.pair(first.clone(), 4, second.clone()).wait(), Ok((4, 1)));
    assert_eq!((first.numbers(), second.numbers()), (vec![0, 1, 2, 3], vec![0, 1]));
    assert_eq!(errand.perhaps(Some(first.clone())).wait(), Ok(Some(3)));
    assert_eq!(errand.perhaps(None::<Notes>).wait(), Ok(None));
}
