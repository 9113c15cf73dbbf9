//! What an event costs who emits it, for each subscriber, as a ratio to a hot call in the same rounds.
//!
//! The object is this process'; the subscribers are in this binary again, pinned to the placement's other processor. They take what
//! comes and block who emits where they are slower, so what is measured is what arrives.

mod support;

use std::cell::Cell;
use std::hint::black_box;
use std::thread;

use objbus::{Bus, BusError, Event, Events, Lag};
use support::owner::{self, Owner};
use support::peer::Role;
use support::placement::Placement;
use support::side::{Batch, Each, Pace};
use support::suite::Suite;

/// Events between two readings of the clock.
const ROUND: u32 = 64;
const MANY: u32 = 100;

struct News(Event<u64>);

#[objbus::object]
impl News {
    pub fn told(&self) -> &Event<u64> {
        &self.0
    }
}

/// Where the subscribers are.
struct Listeners(Bus);

#[objbus::object]
impl Listeners {
    /// Subscribes so often to the news published under `name`.
    pub fn listen(&self, name: &str, count: u32) -> Result<(), BusError> {
        let news: NewsProxy = self.0.proxy(name).lazy().expect("the name is one");
        let all = (0..count).map(|_| news.told().lag(Lag::Block).wait()).collect::<Result<Vec<_>, _>>()?;
        thread::spawn(move || take(all));
        Ok(())
    }

    pub fn nop(&self) {}
}

/// Takes one event from each in turn, until the news end.
fn take(mut all: Vec<Events<u64>>) {
    while all.iter_mut().all(|events| black_box(events.iter().next()).is_some_and(|told| told.is_ok())) {}
}

fn main() {
    if let Some(role) = Role::of_this_process() {
        return owner::own(&role, |bus, _| {
            bus.publish("listeners", Listeners(bus.clone())).expect("the name is free")
        });
    }
    let mut suite = Suite::from_args("events");
    for placement in Placement::available() {
        for count in [1, MANY] {
            let owner = Owner::start(placement, &[]);
            placement.pin_caller();
            let bus = owner.bus();
            let event = Event::new();
            let _published = bus.publish("news", News(event.clone())).expect("the name is free");
            let listeners: ListenersProxy = bus.proxy("listeners").wait().expect("the owner is ready");
            listeners.listen("news", count).wait().expect("the news are published");
            let last = Cell::new(0);
            let emit = |deliveries: u32| {
                for _ in 0..deliveries / count {
                    last.set(last.get() + 1);
                    event.emit(&last.get()).expect("a number can be encoded");
                }
            };
            let name = format!("event to {count}, each");
            let call = || listeners.nop().wait().expect("the owner answers");
            let sides = (&mut Batch { size: ROUND * count, run: emit }, &mut Each(call));
            suite.compare(&name, (placement, "hot call, empty"), Pace::HOT, sides);
        }
    }
    suite.finish();
}
