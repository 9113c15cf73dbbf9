//! How many calls of one object run at once, and what waits when it is that many.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::lane::OwnerLane;
use crate::ring::owner::Request;

/// A request that was taken while its object was at its limit.
pub(crate) struct Queued {
    pub lane: Arc<OwnerLane>,
    pub request: Box<Request>,
}

/// The right of `limit` calls to run at once. At most one lane's slots are queued per lane, so the queue is bounded.
pub(crate) struct Permits {
    limit: usize,
    running: AtomicUsize,
    /// The queue's length, for who would rather not lock.
    waiting: AtomicUsize,
    queue: Mutex<VecDeque<Queued>>,
}

impl Permits {
    pub fn new(limit: usize) -> Permits {
        Permits { limit, running: AtomicUsize::new(0), waiting: AtomicUsize::new(0), queue: Mutex::default() }
    }

    /// Whether the object serves one call at a time.
    pub fn is_exclusive(&self) -> bool {
        self.limit == 1
    }

    /// Whether there is a limit at all; without one nothing is counted.
    #[inline(always)]
    pub fn is_limited(&self) -> bool {
        self.limit != usize::MAX
    }

    /// Takes the right to run one call, unless all are taken. SeqCst for the look that finds them taken, too: see `queue`.
    pub fn try_take(&self) -> bool {
        self.running
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < self.limit).then_some(n + 1))
            .is_ok()
    }

    /// Puts a request in the queue; what comes back is to run now, since a right became free meanwhile.
    pub fn queue(&self, queued: Queued) -> Option<Queued> {
        let mut queue = self.queue.lock();
        queue.push_back(queued);
        // SeqCst on both sides: either `give_back` sees that somebody waits, or we see the right it gave back.
        self.waiting.store(queue.len(), Ordering::SeqCst);
        self.next(&mut queue)
    }

    /// Gives a right back; what comes back of the queue is to run now, under the same right.
    #[inline]
    pub fn give_back(&self) -> Option<Queued> {
        self.running.fetch_sub(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) == 0 { None } else { self.next(&mut self.queue.lock()) }
    }

    fn next(&self, queue: &mut VecDeque<Queued>) -> Option<Queued> {
        if queue.is_empty() || !self.try_take() {
            return None;
        }
        let next = queue.pop_front();
        self.waiting.store(queue.len(), Ordering::SeqCst);
        next
    }

    /// Empties the queue, for who withdraws the object.
    pub fn drain(&self) -> Vec<Queued> {
        let mut queue = self.queue.lock();
        self.waiting.store(0, Ordering::SeqCst);
        queue.drain(..).collect()
    }
}
