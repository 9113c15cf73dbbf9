//! Events and watched properties between processes: who is told what, in which order, and what becomes of who lags, dies or restarts.

#[path = "../support/mod.rs"]
mod support;

mod basics;
mod ends;
mod lag;
mod mixed;
mod users;
mod watched;

use support::*;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use objbus::{Blob, Bus, BusError, EmitError, Event, Events, Gap, Lag, Proxy, Published, Type, Watched};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "owner" => own(&arguments[0], false),
        "successor" => own(&arguments[0], true),
        "other" => own_another(&arguments[0]),
        "subscriber" => subscribe(&arguments),
        "hundred" => subscribe_often(&arguments),
        "readers" => read_pages(&arguments),
        "stranger" => users::subscribe_as_stranger(&arguments[0]),
        "liar" => lag::lie(&arguments),
        "forker" => ends::fork_between(&arguments[0]),
        other => panic!("no role `{other}`"),
    }
}

/// A page of the news: something large, in both ways.
#[derive(Serialize, Deserialize, Type, Clone, Debug, PartialEq)]
struct Page {
    number: u64,
    text: Vec<u8>,
    picture: Option<Blob>,
}

/// What counts how often it is encoded.
#[derive(Type)]
#[objbus(opaque = "counted/1")]
struct Counted(u64);

static ENCODED: AtomicUsize = AtomicUsize::new(0);

impl Serialize for Counted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ENCODED.fetch_add(1, Ordering::Relaxed);
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Counted, D::Error> {
        u64::deserialize(deserializer).map(Counted)
    }
}

/// The object of most tests.
#[derive(Clone, Default)]
struct News {
    told: Event<u64>,
    counted: Event<Counted>,
    pages: Event<Page>,
    state: Watched<u64>,
}

#[objbus::object]
impl News {
    /// Numbers, in their order.
    pub fn told(&self) -> &Event<u64> {
        &self.told
    }

    pub fn counted(&self) -> &Event<Counted> {
        &self.counted
    }

    pub fn pages(&self) -> &Event<Page> {
        &self.pages
    }

    /// The same as `told`; a word before who asks is there.
    pub fn greeted(&self) -> Event<u64> {
        self.told.emit(&0).expect("a number can be encoded");
        self.told.clone()
    }

    pub fn state(&self) -> &Watched<u64> {
        &self.state
    }

    /// Emits the numbers `from..to`.
    pub fn tell(&self, from: u64, to: u64) -> Result<(), EmitError> {
        (from..to).try_for_each(|number| self.told.emit(&number))
    }

    pub async fn tell_async(&self, from: u64, to: u64) -> Result<(), EmitError> {
        for number in from..to {
            self.told.emit_async(&number).await?;
        }
        Ok(())
    }

    pub fn set(&self, state: u64) -> Result<(), EmitError> {
        self.state.set(state)
    }

    pub fn subscribers(&self) -> u64 {
        self.told.subscribers() as u64
    }
}

/// The role of an owner: publishes the news, and withdraws or publishes them anew when told to.
fn own(directory: &str, replaces: bool) -> ! {
    let bus = bus_at(directory);
    let publish = || -> Published {
        let publication = bus.publication("news", News::default());
        let publication = if replaces { publication.replace() } else { publication };
        publication.publish().expect("the name is free, or given")
    };
    let mut published = Some(publish());
    say("ready");
    loop {
        match hear().as_str() {
            "withdraw" => drop(published.take()),
            _ => published = Some(publish()),
        }
        say("done");
    }
}

/// An object of the same name whose event is of another type.
fn own_another(directory: &str) -> ! {
    #[derive(Default)]
    struct Others(Event<String>);

    #[objbus::object]
    impl Others {
        pub fn told(&self) -> &Event<String> {
            &self.0
        }
    }

    let _published = bus_at(directory).publish("news", Others::default()).expect("the name is free");
    say("ready");
    stay()
}

/// The news of a process of their own.
fn owner(place: &Place) -> Child {
    let owner = start("owner", &[place.text()]);
    owner.expect("ready");
    owner
}

fn news(place: &Place) -> NewsProxy {
    place.bus().proxy("news").wait_for(PATIENCE).expect("the news are published")
}

fn lag_of(text: &str) -> Lag {
    match text.parse() {
        Ok(keep) => Lag::DropOldest { keep },
        Err(_) if text == "latest" => Lag::Latest,
        Err(_) => Lag::Block,
    }
}

/// What a subscriber got of numbers from 0 on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Got {
    received: u64,
    missed: u64,
    last: Option<u64>,
}

/// Takes numbers until `last` has come, each beside its predecessor but for those it was told are missing.
fn take_to(events: &mut Events<u64>, lag: Lag, last: u64, got: &mut Got) {
    while got.last != Some(last) {
        match events.wait_next(PATIENCE) {
            Some(Ok(number)) => {
                assert!(got.last.is_none_or(|before| before < number), "{number} after {got:?}");
                got.received += 1;
                got.last = Some(number);
                if lag != Lag::Latest {
                    assert_eq!(number + 1, got.received + got.missed, "a gap that was not told: {got:?}");
                }
            }
            Some(Err(Gap::Missed(count))) => got.missed += count,
            other => panic!("{other:?} after {got:?}, waiting for {last}"),
        }
    }
}

/// The role of a subscriber: takes up to the number that it is told, and says how many that were, and how many it missed.
fn subscribe(arguments: &[String]) -> ! {
    let news: NewsProxy = bus_at(&arguments[0]).proxy("news").wait_for(PATIENCE).unwrap();
    let lag = lag_of(&arguments[1]);
    let mut events = Some(news.told().lag(lag).wait().unwrap());
    let mut got = Got::default();
    say("ready");
    loop {
        let line = hear();
        match line.parse() {
            Ok(last) => {
                let events = events.as_mut().expect("they are not dropped");
                take_to(events, lag, last, &mut got);
                say(format!("{} {}", got.received, got.missed));
            }
            Err(_) => {
                drop(events.take());
                say("dropped");
            }
        }
    }
}

fn subscriber(place: &Place, lag: &str) -> Child {
    let child = start("subscriber", &[place.text(), lag]);
    child.expect("ready");
    child
}

/// What the subscriber has received and missed when `last` has come to it.
fn taken(child: &mut Child, last: u64) -> (u64, u64) {
    child.tell(&last.to_string());
    said_numbers(child)
}

fn said_numbers(child: &Child) -> (u64, u64) {
    let line = child.hear();
    let (received, missed) = line.split_once(' ').unwrap_or_else(|| panic!("it says {line}"));
    (received.parse().unwrap(), missed.parse().unwrap())
}

/// The role of many subscribers in one: each takes one event for each line.
fn subscribe_often(arguments: &[String]) -> ! {
    let news: NewsProxy = bus_at(&arguments[0]).proxy("news").wait_for(PATIENCE).unwrap();
    let count: usize = arguments[1].parse().unwrap();
    let mut all: Vec<_> = (0..count).map(|_| news.counted().wait().unwrap()).collect();
    say("ready");
    loop {
        let expected: u64 = hear().parse().unwrap();
        for events in &mut all {
            let next = events.wait_next(PATIENCE).unwrap().unwrap();
            assert_eq!(next.0, expected);
        }
        say("taken");
    }
}

/// The role of many readers of pages: each takes one, and all are held until the next line.
fn read_pages(arguments: &[String]) -> ! {
    let news: NewsProxy = bus_at(&arguments[0]).proxy("news").wait_for(PATIENCE).unwrap();
    let count: usize = arguments[1].parse().unwrap();
    let mut all: Vec<_> = (0..count).map(|_| news.pages().wait().unwrap()).collect();
    say("ready");
    loop {
        let pages: Vec<Page> =
            all.iter_mut().map(|events| events.wait_next(PATIENCE).unwrap().unwrap()).collect();
        assert!(pages.iter().all(|page| page == &pages[0]));
        let sum: u64 = pages[0].text.iter().map(|&byte| u64::from(byte)).sum();
        say(format!("{} {sum}", pages[0].number));
        hear();
        drop(pages);
        say("dropped");
    }
}

/// The next of a subscription, which must be an event.
fn next<T: std::fmt::Debug + serde::de::DeserializeOwned + 'static>(events: &mut Events<T>) -> T {
    match events.wait_next(PATIENCE) {
        Some(Ok(event)) => event,
        other => panic!("{other:?} instead of an event"),
    }
}

/// The next of a subscription, which must be none.
fn gap<T: std::fmt::Debug + serde::de::DeserializeOwned + 'static>(events: &mut Events<T>) -> Gap {
    match events.wait_next(PATIENCE) {
        Some(Err(gap)) => gap,
        other => panic!("{other:?} instead of a gap"),
    }
}

/// Whether nothing comes for a moment.
fn is_silent<T: serde::de::DeserializeOwned + 'static>(events: &mut Events<T>) -> bool {
    matches!(events.wait_next(Duration::from_millis(50)), Some(Err(Gap::TimedOut)))
}

/// Bytes of shared memory that the bus' process uses.
fn in_use(bus: &Bus) -> u64 {
    bus.memory().users.iter().map(|user| user.in_use).sum()
}

/// How many buffers it has lent.
fn lent(bus: &Bus) -> u64 {
    bus.memory().borrowers.iter().map(|borrower| borrower.leases).sum()
}

fn executed_denied(error: &BusError) -> bool {
    matches!(error, BusError::PermissionDenied { .. })
}
