//! Channels: each item comes once, whole and in order; neither side sleeps with something to do; a side that stops anywhere has
//! done a step or not.

use super::*;
use crate::ring::channel::*;

/// A channel with what stands for its lane's socket in either direction.
struct Channel {
    sender: UnsafeCell<SendEnd>,
    receiver: UnsafeCell<TakeEnd>,
    to_sender: Event,
    to_receiver: Event,
    /// The last arm number of either side.
    arms: [std::sync::atomic::AtomicU32; 2],
    // Under the ends' pointers; dropped after them.
    _memories: (Box<SenderMemory>, Box<ReceiverMemory>),
}

// SAFETY: each cell is used by one thread, which loom checks.
unsafe impl Sync for Channel {}
// SAFETY: as above.
unsafe impl Send for Channel {}

const WORDS: usize = 2;

impl Channel {
    fn new() -> Arc<Channel> {
        let memories = (Box::new(SenderMemory::fresh()), Box::new(ReceiverMemory::fresh()));
        let (at, theirs) = ((&*memories.0).into(), (&*memories.1).into());
        // SAFETY: the boxes live as long as the ends, in the same value.
        let (sender, receiver) = unsafe { (SendEnd::new(at, theirs), TakeEnd::new(theirs, at)) };
        Arc::new(Channel {
            sender: UnsafeCell::new(sender),
            receiver: UnsafeCell::new(receiver),
            to_sender: Event::new(),
            to_receiver: Event::new(),
            arms: Default::default(),
            _memories: memories,
        })
    }

    fn sender<R>(&self, f: impl FnOnce(&mut SendEnd) -> R) -> R {
        // SAFETY: of the sender's thread alone; loom complains otherwise.
        self.sender.with_mut(|sender| f(unsafe { &mut *sender }))
    }

    fn receiver<R>(&self, f: impl FnOnce(&mut TakeEnd) -> R) -> R {
        // SAFETY: of the receiver's thread alone; loom complains otherwise.
        self.receiver.with_mut(|receiver| f(unsafe { &mut *receiver }))
    }

    /// Mirrors `ItemSender::try_push`.
    fn try_push(&self, value: u64) -> bool {
        self.sender(|sender| {
            if !sender.has_room(WORDS).expect("found: impossible credit") {
                return false;
            }
            sender.push(ItemHeader { len: 8, lent: 0, flags: 0 }, [&[value], &[], &[]]);
            if sender.must_wake() {
                self.to_receiver.happen();
            }
            true
        })
    }

    /// Sends, waiting for room: mirrors the pump.
    fn push(&self, value: u64) {
        while !self.try_push(value) {
            let arm = self.next_arm(0);
            self.sender(|sender| sender.arm(arm, Wanted::Room(WORDS)));
            if self.try_push(value) {
                return;
            }
            self.to_sender.wait();
        }
    }

    fn next_arm(&self, side: usize) -> u32 {
        self.arms[side].fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Mirrors `ItemReceiver::take`.
    fn try_take(&self) -> Option<u64> {
        let value = self.take_untold()?;
        self.receiver(|receiver| {
            if receiver.owes() && receiver.tell() {
                self.to_sender.happen();
            }
        });
        Some(value)
    }

    fn take_untold(&self) -> Option<u64> {
        self.receiver(|receiver| {
            let header = receiver.look().expect("found: an impossible item")?;
            assert_eq!(
                header,
                ItemHeader { len: 8, lent: 0, flags: ItemHeader::PRESENT },
                "found: a torn item"
            );
            let mut words = [0; ITEM_WORDS];
            receiver.read(header, &mut words);
            receiver.advance(header);
            Some(words[0])
        })
    }

    /// Mirrors `ItemReceiver::poll`.
    fn take(&self) -> u64 {
        loop {
            if let Some(value) = self.try_take() {
                return value;
            }
            let arm = self.next_arm(1);
            self.receiver(|receiver| {
                if receiver.tell() {
                    self.to_sender.happen();
                }
                receiver.arm(arm);
            });
            if let Some(value) = self.try_take() {
                return value;
            }
            self.to_receiver.wait();
        }
    }
}

/// So many items through a ring that holds three.
fn pass(items: u64) {
    let channel = Channel::new();
    let sender = with(&channel, move |channel| (1..=items).for_each(|value| channel.push(value)));
    (1..=items).for_each(|value| assert_eq!(channel.take(), value, "found: another item"));
    sender.join().unwrap();
}

#[test]
fn items_come_in_order_and_nobody_sleeps_on() {
    explore(3, || pass(2));
}

#[test]
fn items_wrap_around_within_the_credit() {
    explore(2, || pass(5));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_receiver_without_its_fence_sleeps_on() {
    without_fence_in("impl TakeEnd", "arm");
    explore(3, || pass(1));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_receiver_without_the_senders_fence_sleeps_on() {
    without_fence_of("must_wake");
    explore(3, || pass(1));
}

#[test]
#[should_panic(expected = "found")]
fn an_item_published_without_order_is_torn() {
    without_order_of("push");
    explore(3, || pass(1));
}

/// A full ring, whose sender waits for half of it.
fn wait_for_room() {
    let channel = Channel::new();
    (1..=3).for_each(|value| assert!(channel.try_push(value)));
    let sender = with(&channel, |channel| channel.push(4));
    (1..=3).for_each(|value| assert_eq!(channel.try_take(), Some(value)));
    channel.receiver(|receiver| {
        if receiver.tell() {
            channel.to_sender.happen();
        }
    });
    sender.join().unwrap();
}

#[test]
fn a_sender_that_waits_for_room_is_woken() {
    explore(None, wait_for_room);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_sender_without_its_fence_waits_on() {
    without_fence_in("impl SendEnd", "arm");
    explore(None, wait_for_room);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_sender_without_the_receivers_fence_waits_on() {
    without_fence_of("tell");
    explore(None, wait_for_room);
}

/// A receiver takes one of two items and closes; the sender learns it, and which of them it may have back.
fn close() {
    let channel = Channel::new();
    channel.push(1);
    channel.push(2);
    let receiver = with(&channel, |channel| {
        assert_eq!(channel.take_untold(), Some(1));
        channel.receiver(|receiver| receiver.close());
        channel.to_sender.happen();
    });
    let look = || {
        channel.sender(|sender| {
            let closed = sender.is_closed();
            sender.look().expect("found: impossible credit");
            assert!(!sender.has_taken(4), "found: an item taken that was not");
            assert!(!closed || sender.has_taken(2), "found: an item back that was taken");
            closed
        })
    };
    if !look() {
        channel.to_sender.wait();
        assert!(look(), "found: a close that is not seen");
    }
    receiver.join().unwrap();
}

#[test]
fn who_closes_tells_what_was_taken() {
    explore(None, close);
}

#[test]
#[should_panic(expected = "found: an item back that was taken")]
fn closing_without_order_lends_twice() {
    without_order_of("close");
    explore(None, close);
}

/// A sender killed at any instruction: `items` stand for what it had time for, and loom for the instruction.
fn sender_dies(items: u64) {
    let channel = Channel::new();
    let dead = with(&channel, move |channel| (1..=items).for_each(|value| assert!(channel.try_push(value))));
    // While it dies: what is seen is whole and in order.
    let mut seen = 0;
    while let Some(value) = channel.try_take() {
        seen += 1;
        assert_eq!(value, seen, "found: another item");
    }
    dead.join().unwrap();
    // Its end is known: what it had sent is there, and nothing more.
    while let Some(value) = channel.try_take() {
        seen += 1;
        assert_eq!(value, seen, "found: another item");
    }
    assert_eq!(seen, items, "found: an item lost");
}

#[test]
fn what_a_dead_sender_had_sent_is_whole() {
    explore(None, || sender_dies(2));
}

/// A receiver killed after so many items: its last word on what it took is one that it may have given.
fn receiver_dies(items: u64) {
    let channel = Channel::new();
    (1..=3).for_each(|value| channel.push(value));
    let dead = with(&channel, move |channel| {
        (0..items).for_each(|_| assert!(channel.try_take().is_some()));
        channel.receiver(TakeEnd::tell);
    });
    channel.sender(|sender| sender.look().expect("found: impossible credit"));
    dead.join().unwrap();
    channel.sender(|sender| {
        sender.look().expect("found: impossible credit");
        assert!(sender.has_taken(items as u32 * WORDS as u32) && !sender.has_taken(6 + 1));
    });
}

#[test]
fn a_dead_receivers_credit_stays_possible() {
    explore(None, || (1..=2).for_each(receiver_dies));
}
