//! The queue against a model: whatever comes in whatever order, nothing is lost that is not told.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// What lies between the queue and its subscriber, and what the subscriber got.
#[derive(Default)]
struct Channel {
    room: usize,
    /// Untaken, each with the number missed before it.
    ring: VecDeque<(u64, u64)>,
    is_closed: bool,
    latest_only: bool,
    most_ahead: usize,
}

impl Channel {
    fn push(&mut self, item: u64, missed: u64) -> Push {
        let room = if self.latest_only { 1 } else { self.room };
        match () {
            () if self.is_closed => Push::Closed,
            () if self.ring.len() >= room => Push::Full,
            () => {
                self.ring.push_back((item, missed));
                self.most_ahead = self.most_ahead.max(self.ring.len());
                Push::Sent
            }
        }
    }
}

struct Subscriber {
    lag: Lag,
    queue: Queue<u64>,
    channel: Channel,
    received: Vec<u64>,
    missed: u64,
}

impl Subscriber {
    fn new(lag: Lag, room: usize) -> Subscriber {
        let channel = Channel { room, latest_only: lag == Lag::Latest, ..Channel::default() };
        Subscriber { lag, queue: Queue::new(lag), channel, received: Vec::new(), missed: 0 }
    }

    fn offer(&mut self, item: u64, size: u64) -> Left {
        self.queue.offer(item, size, |item, missed| self.channel.push(*item, missed))
    }

    fn pump(&mut self) -> Left {
        self.queue.pump(|item, missed| self.channel.push(*item, missed))
    }

    /// Takes up to `most`; what was missed is told at its place, so that nothing else is between two numbers.
    fn take(&mut self, most: usize) {
        for (item, missed) in self.channel.ring.drain(..most.min(self.channel.ring.len())) {
            self.missed += missed;
            if self.lag != Lag::Latest {
                assert_eq!(item, self.received.len() as u64 + self.missed, "a gap that was not told");
            }
            assert!(self.received.last().is_none_or(|last| *last < item), "out of order");
            self.received.push(item);
        }
    }

    /// Takes until nothing more comes.
    fn drain(&mut self) {
        while self.pump() == Left::Waiting || !self.channel.ring.is_empty() {
            self.take(1);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Emit { size: u64 },
    Take { most: usize },
    Wake,
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0_u64..100).prop_map(|size| Step::Emit { size }),
        2 => Just(Step::Emit { size: MOST_BYTES / 3 }),
        1 => Just(Step::Emit { size: 2 * MOST_BYTES }),
        6 => (0_usize..6).prop_map(|most| Step::Take { most }),
        4 => Just(Step::Wake),
        1 => Just(Step::Kill),
    ];
    prop::collection::vec(step, 0..200)
}

fn lags() -> impl Strategy<Value = Lag> {
    prop_oneof![
        Just(Lag::Block),
        Just(Lag::Latest),
        (0_u32..8).prop_map(|keep| Lag::DropOldest { keep }),
        Just(Lag::DropOldest { keep: u32::MAX }),
    ]
}

/// Whatever happens in whatever order: what was received and what was missed is what was emitted, in its order.
fn check(lag: Lag, room: usize, steps: Vec<Step>) {
    let mut subscriber = Subscriber::new(lag, room);
    let mut emitted = 0;
    for step in steps {
        let left = match step {
            // An emitter waits for who blocks it.
            Step::Emit { .. } if subscriber.queue.blocks() => continue,
            Step::Emit { size } => {
                emitted += 1;
                subscriber.offer(emitted - 1, size)
            }
            Step::Take { most } => {
                subscriber.take(most);
                continue;
            }
            Step::Wake => subscriber.pump(),
            Step::Kill => {
                subscriber.channel.is_closed = true;
                continue;
            }
        };
        assert_eq!(left == Left::Waiting, !subscriber.queue.waiting.is_empty());
        let kept = match lag {
            Lag::Block | Lag::Latest => 1,
            Lag::DropOldest { keep } => keep.clamp(1, MOST_KEPT),
        };
        assert!(subscriber.queue.waiting.len() <= kept as usize);
        let sizes: u64 = subscriber.queue.waiting.iter().map(|(_, size)| size).sum();
        assert_eq!(subscriber.queue.bytes, sizes);
        assert!(sizes <= MOST_BYTES || subscriber.queue.waiting.len() == 1 || lag == Lag::Block);
    }
    if subscriber.channel.is_closed {
        subscriber.take(usize::MAX);
        assert!(subscriber.received.len() as u64 + subscriber.missed <= emitted);
        return;
    }
    subscriber.drain();
    match lag {
        Lag::Block => assert_eq!((subscriber.received.len() as u64, subscriber.missed), (emitted, 0)),
        Lag::DropOldest { .. } => {
            assert_eq!(subscriber.received.len() as u64 + subscriber.missed, emitted);
        }
        Lag::Latest => assert!(subscriber.missed == 0 && subscriber.channel.most_ahead <= 1),
    }
    assert_eq!(subscriber.received.last().copied(), emitted.checked_sub(1), "the last always arrives");
}

proptest! {
    #[test]
    fn received_and_missed_make_up_what_was_emitted(lag in lags(), room in 1_usize..8, steps in steps()) {
        check(lag, room, steps);
    }
}

#[test]
fn the_number_missed_is_told_with_the_next_item_and_once() {
    let mut subscriber = Subscriber::new(Lag::DropOldest { keep: 2 }, 1);
    for item in 0..10 {
        subscriber.offer(item, 1);
    }
    assert_eq!(subscriber.channel.ring, [(0, 0)]);
    subscriber.take(1);
    assert_eq!(subscriber.pump(), Left::Waiting);
    assert_eq!(subscriber.channel.ring, [(8, 7)]);
    subscriber.channel.room = 2;
    assert_eq!(subscriber.pump(), Left::Nothing);
    assert_eq!(subscriber.channel.ring, [(8, 7), (9, 0)]);
}

#[test]
fn what_waits_for_one_that_is_gone_is_dropped() {
    let mut subscriber = Subscriber::new(Lag::default(), 1);
    assert_eq!((subscriber.offer(0, 1), subscriber.offer(1, 1)), (Left::Nothing, Left::Waiting));
    subscriber.channel.is_closed = true;
    assert_eq!(subscriber.pump(), Left::Gone);
    assert!(subscriber.queue.waiting.is_empty() && !subscriber.queue.blocks());
}

#[test]
fn an_emitter_waits_for_one_item_of_a_blocking_subscriber() {
    let mut subscriber = Subscriber::new(Lag::Block, 1);
    assert!(!subscriber.queue.blocks());
    subscriber.offer(0, 1);
    assert!(!subscriber.queue.blocks());
    subscriber.offer(1, 1);
    assert!(subscriber.queue.blocks());
    subscriber.take(1);
    assert_eq!(subscriber.pump(), Left::Nothing);
    assert!(!subscriber.queue.blocks());
}
