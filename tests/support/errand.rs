//! An object whose methods call back, for tests of callbacks.
#![allow(dead_code)] // each test binary uses its part

use std::sync::Mutex;
use std::sync::mpsc::channel;

use objbus::futures_core::Stream;
use objbus::{Blob, Bus, BusError, CallContext, stream_of};
use serde::{Deserialize, Serialize};

use super::{bus_at, hear, say};

/// Why a callback had no result, as the owner saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, objbus::Type)]
pub struct Lost(pub String);

impl From<BusError> for Lost {
    fn from(error: BusError) -> Lost {
        Lost(format!("{error:?}"))
    }
}

/// What a caller may give along.
#[objbus::interface]
pub trait Progress {
    /// So much is done; whether to go on.
    fn at(&self, done: u32) -> Result<bool, Lost>;
    /// A text and a blob, back to front.
    fn turn(&self, text: &str, blob: Blob) -> Result<(String, Blob), Lost>;
    /// The objects that a call made here would come through, and whether it has a deadline.
    fn context(&self) -> Result<(u32, bool), Lost>;
}

/// The same for callers that await.
#[objbus::interface]
pub trait Steps {
    async fn step(&self, number: u32) -> Result<u32, Lost>;
}

/// Which is shown the way and shows it on.
#[objbus::interface]
pub trait Guide {
    fn walk(&self, steps: u32, progress: impl Progress + Send + Sync + 'static) -> Result<u32, Lost>;
}

/// Counts on until somebody stops it.
pub struct Errand {
    pub bus: Bus,
    kept: Mutex<Vec<Box<dyn Progress + Send + Sync>>>,
}

impl Errand {
    pub fn new(bus: Bus) -> Errand {
        Errand { bus, kept: Mutex::default() }
    }
}

fn count(steps: u32, progress: &dyn Progress) -> Result<u32, Lost> {
    for done in 0..steps {
        if !progress.at(done)? {
            return Ok(done);
        }
    }
    Ok(steps)
}

#[objbus::object]
impl Errand {
    pub fn run(&self, steps: u32, progress: &dyn Progress) -> Result<u32, Lost> {
        count(steps, progress)
    }

    pub fn pair(
        &self,
        first: &dyn Progress,
        number: u32,
        second: &impl Progress,
    ) -> Result<(u32, u32), Lost> {
        Ok((count(number, first)?, count(number + 1, second)?))
    }

    pub fn perhaps(&self, progress: Option<&(dyn Progress + Sync)>) -> Result<Option<u32>, Lost> {
        progress.map(|progress| count(3, progress)).transpose()
    }

    /// Asks them in turn, as long as somebody takes what they say.
    pub fn asked(
        &self,
        first: &(dyn Progress + Sync),
        second: Option<&(dyn Progress + Sync)>,
    ) -> impl Stream<Item = Result<bool, Lost>> {
        stream_of((0..).map(move |done| second.filter(|_| done % 2 == 1).unwrap_or(first).at(done)))
    }

    pub fn turn(&self, progress: &dyn Progress, text: &str, blob: Blob) -> Result<(String, Blob), Lost> {
        progress.turn(text, blob)
    }

    pub fn context(&self, progress: &dyn Progress) -> Result<(u32, bool), Lost> {
        progress.context()
    }

    /// From so many threads at once.
    pub fn at_once(&self, threads: u32, steps: u32, progress: impl Progress + Sync) -> Result<u32, Lost> {
        let progress = &progress;
        std::thread::scope(|scope| {
            let counting: Vec<_> =
                (0..threads).map(|_| scope.spawn(move || count(steps, progress))).collect();
            counting.into_iter().map(|thread| thread.join().expect("it counts")).sum()
        })
    }

    pub async fn follow(&self, steps: u32, each: impl Steps + Send + Sync) -> Result<u32, Lost> {
        let mut sum = 0;
        for number in 0..steps {
            sum += each.step(number).await?;
        }
        Ok(sum)
    }

    /// Keeps it; how many are kept.
    pub fn keep(&self, progress: impl Progress + Send + Sync + 'static) -> u64 {
        let mut kept = self.kept.lock().unwrap();
        kept.push(Box::new(progress));
        kept.len() as u64
    }

    /// What those that are kept say.
    pub fn ask_kept(&self, done: u32) -> Vec<Result<bool, Lost>> {
        self.kept.lock().unwrap().iter().map(|progress| progress.at(done)).collect()
    }

    pub fn drop_kept(&self) {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap());
        drop(kept);
    }

    /// Has the errand of this name do it.
    pub fn pass_on(
        &self,
        to: String,
        steps: u32,
        progress: impl Progress + Send + Sync + 'static,
    ) -> Result<u32, Lost> {
        let other: ErrandProxy = self.bus.proxy(&to).wait().map_err(|error| Lost(error.to_string()))?;
        other.run(steps, progress).wait().map_err(|error| Lost(format!("{error:?}")))
    }

    /// Tells when the caller has given it up, and what a callback gives then.
    pub fn outlive(&self, progress: &dyn Progress) -> bool {
        say("running");
        while !CallContext::current().is_some_and(|call| call.cancelled()) {
            std::thread::yield_now();
        }
        let said = progress.at(7);
        say(format!("cancelled: {said:?}"));
        true
    }

    /// Calls back until that fails.
    pub fn pester(&self, progress: &dyn Progress) -> Lost {
        loop {
            if let Err(lost) = progress.at(0) {
                say(format!("lost: {}", lost.0));
                return lost;
            }
        }
    }

    /// Calls from a thread of no call's.
    pub fn aside(&self, progress: impl Progress + Send + Sync + 'static) -> Result<bool, Lost> {
        let (told, hears) = channel();
        std::thread::spawn(move || told.send(progress.at(1)));
        hears.recv().expect("the thread tells")
    }

    pub fn process(&self) -> u32 {
        std::process::id()
    }
}

impl Guide for Errand {
    fn walk(&self, steps: u32, progress: impl Progress + Send + Sync + 'static) -> Result<u32, Lost> {
        count(steps, &progress)
    }
}

/// Publishes one in the directory and under the name that it is told.
pub fn run(arguments: &[String]) -> ! {
    let bus = bus_at(&arguments[0]);
    let name = arguments.get(1).map_or("errand", String::as_str);
    let mut published = Some(bus.publish(name, Errand::new(bus.clone())).expect("the name is free"));
    let _guide = bus.publish(&format!("{name}.guide"), GuideObject(Errand::new(bus.clone())));
    say("ready");
    loop {
        match hear().as_str() {
            "callers" => say(published.as_ref().map_or(0, |published| published.callers()).to_string()),
            "violations" => say(published.as_ref().map_or(0, |published| published.violations()).to_string()),
            "withdraw" => drop(published.take()),
            other => panic!("nobody knows how to {other}"),
        }
    }
}
