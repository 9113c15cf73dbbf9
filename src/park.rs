//! A thread that waits like a task does: asleep until its waker is used or its time is up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use crate::panics::contain;
use crate::sys::clock;

/// Wakes all of them, even if one panics; not to be called under a lock.
pub(crate) fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    for waker in wakers {
        contain(|| waker.wake());
    }
}

struct Token {
    thread: Thread,
    notified: AtomicBool,
}

impl Wake for Token {
    fn wake(self: Arc<Self>) {
        self.notified.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// Parks the thread that made it.
pub(crate) struct Parker {
    token: Arc<Token>,
    waker: Waker,
}

impl Parker {
    pub fn new() -> Parker {
        let token = Arc::new(Token { thread: thread::current(), notified: AtomicBool::new(false) });
        Parker { waker: Waker::from(Arc::clone(&token)), token }
    }

    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Sleeps until woken or until `deadline_ns` (CLOCK_MONOTONIC). A wake that came before counts.
    pub fn park(&self, deadline_ns: u64) {
        while !self.token.notified.swap(false, Ordering::Acquire) {
            let left = deadline_ns.saturating_sub(clock::now_ns());
            if left == 0 {
                return;
            }
            thread::park_timeout(Duration::from_nanos(left));
        }
    }
}
