//! What waits at the owner for one subscriber, and what becomes of it when the subscriber lags.
//!
//! It knows neither channels nor threads: handing an item over is a closure that says what came of it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::channel::Push;

/// What becomes of an event that a subscriber has no room for, because it has not yet taken earlier ones.
///
/// Each subscriber has its own, and room of its own: 16 KiB of events lie between it and the object in any case, unless it wants
/// the latest only. What is said here is about those that come after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lag {
    /// [`Event::emit`](crate::Event::emit) waits until there is room: every event arrives, and who does not take them holds the
    /// object up. For subscribers of the object's own user; others are refused.
    Block,
    /// The latest so many are kept for it, at least one and at most 1,024, and of those that are large no more than together
    /// take 16 MiB; older ones are dropped, and it is [told](crate::Gap::Missed) how many.
    DropOldest {
        /// How many.
        keep: u32,
    },
    /// Only the latest counts, and it is not told of others: at most one is on its way and one is kept.
    Latest,
}

impl Default for Lag {
    /// The latest 256 are kept.
    fn default() -> Lag {
        Lag::DropOldest { keep: 256 }
    }
}

/// The most items that are kept for one subscriber, whatever it asks for.
const MOST_KEPT: u32 = 1024;
/// And the most bytes, unless one item alone has more.
const MOST_BYTES: u64 = 16 << 20;

/// What is left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    /// Items wait for room.
    Waiting,
    /// The subscriber is gone, and what waited with it.
    Gone,
}

/// The items that wait for one subscriber, oldest first, each with its size.
#[derive(Debug)]
pub(crate) struct Queue<I> {
    lag: Lag,
    waiting: VecDeque<(I, u64)>,
    bytes: u64,
    /// Dropped since the last that was handed over: the next tells.
    missed: u64,
}

impl<I> Queue<I> {
    pub fn new(lag: Lag) -> Queue<I> {
        Queue { lag, waiting: VecDeque::new(), bytes: 0, missed: 0 }
    }

    /// Whether whoever offers the next item has to wait until what is here is handed over.
    pub fn blocks(&self) -> bool {
        self.lag == Lag::Block && !self.waiting.is_empty()
    }

    /// Takes one more item of `size` bytes, after those that wait. `push` hands one over, with the number of those missed before.
    pub fn offer(&mut self, item: I, size: u64, mut push: impl FnMut(&I, u64) -> Push) -> Left {
        if self.waiting.is_empty() {
            match push(&item, self.missed) {
                Push::Sent => {
                    self.missed = 0;
                    return Left::Nothing;
                }
                Push::Full => {}
                Push::Closed | Push::NoMemory => return self.end(),
            }
        }
        self.bytes += size;
        self.waiting.push_back((item, size));
        // There may have been room for some of them since.
        let left = if self.waiting.len() > 1 { self.pump(push) } else { Left::Waiting };
        while self.is_over() {
            self.drop_oldest();
        }
        left
    }

    /// Hands over what there is room for.
    pub fn pump(&mut self, mut push: impl FnMut(&I, u64) -> Push) -> Left {
        while let Some((item, size)) = self.waiting.front() {
            match push(item, self.missed) {
                Push::Sent => {
                    self.bytes -= size;
                    self.missed = 0;
                    self.waiting.pop_front();
                }
                Push::Full => return Left::Waiting,
                Push::Closed | Push::NoMemory => return self.end(),
            }
        }
        Left::Nothing
    }

    fn is_over(&self) -> bool {
        let len = self.waiting.len();
        match self.lag {
            Lag::Block => false,
            Lag::DropOldest { keep } => {
                len > keep.clamp(1, MOST_KEPT) as usize || len > 1 && self.bytes > MOST_BYTES
            }
            Lag::Latest => len > 1,
        }
    }

    fn drop_oldest(&mut self) {
        let Some((_, size)) = self.waiting.pop_front() else { return };
        self.bytes -= size;
        // Who wants the latest only misses nothing by this.
        self.missed += u64::from(self.lag != Lag::Latest);
    }

    fn end(&mut self) -> Left {
        self.waiting = VecDeque::new();
        self.bytes = 0;
        Left::Gone
    }
}

#[cfg(test)]
mod tests;
