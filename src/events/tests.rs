//! What emitting takes of the heap: nothing, where the event is small.

use crate::object::allocations::allocations;
use crate::{Bus, Event, Events, Lag, MethodTable, Untyped};

/// The event `ticks` of a clock on a bus inside this process, and as many subscribers as there are ways to lag.
fn ticks() -> (Bus, crate::Published, Event<u32>, [Events<u32>; 3]) {
    let (bus, ticks) = (Bus::in_memory(), Event::new());
    let published = bus.publish("clock", MethodTable::named("Clock").event("ticks", &ticks)).unwrap();
    let clock: Untyped = bus.proxy("clock").wait().unwrap();
    let subscribe = |lag| clock.subscribe("ticks").lag(lag).wait().unwrap();
    let all = [Lag::Block, Lag::default(), Lag::Latest].map(subscribe);
    (bus, published, ticks, all)
}

#[test]
fn a_small_event_allocates_nothing() {
    let (_bus, _published, ticks, mut all) = ticks();
    let mut round = |tick| {
        let emitting = allocations(|| ticks.emit(&tick).unwrap());
        let heard = all.iter_mut().map(|events| events.iter().next()).collect::<Vec<_>>();
        assert_eq!(heard, vec![Some(Ok(tick)); 3]);
        emitting
    };
    (0..10).for_each(|tick| _ = round(tick));
    assert_eq!((10..30).map(&mut round).sum::<usize>(), 0);
}

#[test]
fn nobody_is_nothing_to_do() {
    let ticks = Event::<u32>::new();
    assert_eq!(allocations(|| ticks.emit(&1).unwrap()), 0);
}
