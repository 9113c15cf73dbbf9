//! One of two processes that lend to each other is killed at any moment: the other is left with nothing of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use objbus::{Blob, Bus, CallError};
use parking_lot::Mutex;

use crate::actor::{difference, pattern};
use crate::desk::{bus_of, memory_of};
use crate::probe::Random;
use crate::support::system::{is_within, of_threads};
use crate::support::*;

const ROUNDS: usize = 30;
/// The longest that two trade before one is killed.
const TRADING: Duration = Duration::from_millis(80);
/// Lengths of what goes back and forth.
const LENGTHS: [usize; 7] = [0, 100, 300, 5_000, 20_000, 70_000, 300_000];

/// What is held, each with its pattern.
type Stock = Mutex<VecDeque<(u8, Blob)>>;

/// Holds some more, and lets go of the oldest.
fn hold(stock: &Stock, seed: u8, blob: Blob) {
    let mut stock = stock.lock();
    stock.push_back((seed, blob));
    let gone = if stock.len() > 12 { stock.pop_front() } else { None };
    drop(stock);
    gone.iter().for_each(check);
}

#[track_caller]
fn check((seed, blob): &(u8, Blob)) {
    assert_eq!(difference(blob, *seed, 0, blob.len()), None);
}

struct Market {
    bus: Bus,
    stock: Arc<Stock>,
}

#[objbus::object]
impl Market {
    pub fn sell(&self, seed: u8, blob: Blob) {
        hold(&self.stock, seed, blob);
    }

    pub fn make(&self, seed: u8, len: u64) -> Option<Blob> {
        pattern(&self.bus, seed, len as usize).ok()
    }

    /// What somebody sold.
    pub fn buy(&self) -> Option<(u8, Blob)> {
        self.stock.lock().back().cloned()
    }

    /// All of it.
    pub async fn buy_all(&self) -> Vec<(u8, Blob)> {
        self.stock.lock().iter().cloned().collect()
    }
}

/// A process that trades. Arguments: the directory, and `owner` for the one that publishes the market.
pub fn run(arguments: &[String]) -> ! {
    let bus = bus_of(&arguments[0]);
    let stock = Arc::new(Stock::default());
    let market = Market { bus: bus.clone(), stock: Arc::clone(&stock) };
    let is_owner = arguments.get(1).is_some_and(|side| side == "owner");
    let published = is_owner.then(|| bus.publish("market", market).expect("the name is free"));
    say("ready");
    loop {
        let line = hear();
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("trade", seed) => {
                say("trading");
                trade(&bus, &stock, Random::of(seed.parse().expect("a number")));
                say("over");
            }
            ("settle", _) => {
                let all = std::mem::take(&mut *stock.lock());
                all.iter().for_each(check);
                say(all.len().to_string());
            }
            ("memory", _) => say(memory_of(&bus)),
            ("segments", _) => {
                say(bus.memory().users.iter().map(|user| user.segments).sum::<usize>().to_string());
            }
            ("callers", _) => say(published.as_ref().map_or(0, objbus::Published::callers).to_string()),
            (other, _) => panic!("told `{other}`"),
        }
    }
}

/// Lends, borrows, holds and lets go until there is no market any more.
fn trade(bus: &Bus, stock: &Stock, mut random: Random) {
    let Ok(market) = bus.proxy::<MarketProxy>("market").wait() else { return };
    loop {
        let len = LENGTHS[random.below(LENGTHS.len() as u64) as usize];
        let seed = random.below(256) as u8;
        let traded: Result<(), CallError> = match random.below(6) {
            0 | 1 => match pattern(bus, seed, len) {
                Ok(blob) => market.sell(seed, blob).wait(),
                Err(_) => Ok(()),
            },
            2 => market.make(seed, len as u64).wait().map(|made| {
                made.into_iter().for_each(|blob| hold(stock, seed, blob));
            }),
            3 => market.buy().wait().map(|bought| {
                bought.into_iter().for_each(|(seed, blob)| hold(stock, seed, blob));
            }),
            4 => block_on(market.buy_all()).map(|all| all.iter().for_each(check)),
            _ => {
                drop(market.buy_all().started());
                Ok(())
            }
        };
        match traded {
            Ok(()) | Err(CallError::NoMemory { .. }) => {}
            Err(_) => return,
        }
    }
}

fn trader(place: &Place, side: &str) -> Child {
    let trader = start("trader", &[place.text(), side]);
    trader.expect("ready");
    // A thread has its maker's name until it takes its own.
    let is_named = |(name, _): &(String, String)| name == "objbus-watcher";
    wait_until("its watcher is named", || of_threads(trader.pid(), "Name").iter().any(is_named));
    trader
}

fn ask(child: &mut Child, what: &str) -> String {
    child.tell(what);
    child.hear()
}

/// What a process has of the system, beside segments of its own that it keeps for later, and the names of its threads.
type Left = (Held, Vec<String>);

fn left(survivor: &mut Child) -> Left {
    let own: usize = ask(survivor, "segments").parse().expect("a number");
    let Held { fds, mappings } = held_by(survivor.pid());
    let mut threads: Vec<_> = of_threads(survivor.pid(), "Name").into_iter().map(|(name, _)| name).collect();
    // Those that run methods do not end, and are more or fewer as it comes.
    threads.retain(|name| name != "objbus-worker");
    threads.sort();
    (Held { fds: fds.saturating_sub(own), mappings: mappings.saturating_sub(own) }, threads)
}

/// Has the survivor let go of all it holds, and waits until it has all that it lent, and no more than before. How much it held.
fn expect_nothing_left(survivor: &mut Child, before: &Left, when: &str) -> usize {
    let held = ask(survivor, "settle").parse().expect("a number");
    let began = Instant::now();
    loop {
        let (memory, now) = (ask(survivor, "memory"), left(survivor));
        if memory == "0 0 0" && is_within(now.0, before.0) && now.1 == before.1 {
            return held;
        }
        let late = began.elapsed() > PATIENCE;
        assert!(!late, "{when}: in use, lent, leases {memory}; {now:?} is left, {before:?} was before");
    }
}

#[test]
fn row_36_callers_killed_at_any_moment_leave_nothing_at_the_owner() {
    let mut random = Random::new();
    let place = place();
    let mut owner = trader(&place, "owner");
    let before = left(&mut owner);
    let mut held = 0;
    for round in 0..ROUNDS {
        let mut callers = [trader(&place, "caller"), trader(&place, "caller")];
        for caller in &mut callers {
            caller.tell(&format!("trade {}", random.below(u64::MAX)));
        }
        callers.iter().for_each(|caller| caller.expect("trading"));
        random.dally(TRADING);
        callers.iter_mut().for_each(|caller| _ = caller.kill());
        wait_until("the lanes are gone", || ask(&mut owner, "callers") == "0");
        let when = format!("round {round}, seed {}", random.seed);
        held += expect_nothing_left(&mut owner, &before, &when);
    }
    assert!(held > ROUNDS, "only {held} blobs were held at the kills; seed {}", random.seed);
    println!("{held} blobs were held");
}

#[test]
fn row_36_owners_killed_at_any_moment_leave_nothing_at_their_caller() {
    let mut random = Random::new();
    let place = place();
    let mut caller = trader(&place, "caller");
    let before = left(&mut caller);
    let mut held = 0;
    for round in 0..ROUNDS {
        let mut owner = trader(&place, "owner");
        caller.tell(&format!("trade {}", random.below(u64::MAX)));
        caller.expect("trading");
        random.dally(TRADING);
        owner.kill();
        caller.expect("over");
        let when = format!("round {round}, seed {}", random.seed);
        held += expect_nothing_left(&mut caller, &before, &when);
    }
    assert!(held > ROUNDS, "only {held} blobs were held at the kills; seed {}", random.seed);
    println!("{held} blobs were held");
}
