//! Who waits for memory to come back, and is told.
//!
//! One place for all arenas of the process: whoever lays down a piece of memory may not touch the arena afterwards, which
//! may be gone by then. Waits are rare, so that being woken for another bus' memory does no harm.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys::futex;

/// Away from what changes more often: it is read at each chunk's end.
#[repr(align(64))]
struct Returns {
    /// How many threads wait, or look once more before they do.
    waiting: AtomicU32,
    /// Counted up when memory has come back while somebody waited; the word they sleep on.
    count: AtomicU32,
}

static RETURNS: Returns = Returns { waiting: AtomicU32::new(0), count: AtomicU32::new(0) };

/// Tells whoever waits that memory came back. To be called after it can be had.
///
/// SeqCst, here and in [`Wait::begin`]: either this reads the waiter's count, or the waiter, who looks for memory after
/// counting itself, finds what came back: by a SeqCst operation, or under a lock.
///
/// In a child forked while a thread waited the count stays above zero, which costs it a needless system call each time.
#[inline]
pub(super) fn announce() {
    if RETURNS.waiting.load(Ordering::SeqCst) != 0 {
        wake();
    }
}

#[cold]
fn wake() {
    // Release, to pair with `seen`: whoever reads the new number finds the memory.
    RETURNS.count.fetch_add(1, Ordering::Release);
    futex::wake(&RETURNS.count, i32::MAX as u32);
}

/// A thread that waits, counted until it is dropped.
pub(super) struct Wait(());

impl Wait {
    pub(super) fn begin() -> Wait {
        RETURNS.waiting.fetch_add(1, Ordering::SeqCst);
        Wait(())
    }

    /// To be read before looking for memory, and given to [`sleep`](Self::sleep) if there was none.
    pub(super) fn seen(&self) -> u32 {
        // Acquire: the look at the memory comes after it, and finds what was announced by then.
        RETURNS.count.load(Ordering::Acquire)
    }

    /// Sleeps until memory has come back since `seen` was read, or until `deadline_ns`; at times for no reason.
    pub(super) fn sleep(&self, seen: u32, deadline_ns: u64) {
        futex::wait(&RETURNS.count, seen, Some(deadline_ns));
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        RETURNS.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
