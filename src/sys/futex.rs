//! Sleeping on a word of shared memory, and waking who sleeps there.
//!
//! Always the shared kind: the two sides are different processes. Both operations work on a read-only mapping. A wait is
//! FUTEX_WAIT_BITSET, whose time-out is a point on CLOCK_MONOTONIC: it costs the kernel what FUTEX_WAIT does, but needs no
//! look at the clock to turn a deadline into a duration, and being interrupted does not stretch it.

use std::num::NonZeroU32;
use std::sync::atomic::AtomicU32;

use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Timespec};

/// Why a wait ended. Each of them means "look at the word again"; only the clock tells whether the deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Somebody woke the word, or the kernel did for no reason.
    Woken,
    /// The word was no longer the expected one; nothing slept.
    Changed,
    /// The deadline passed.
    TimedOut,
    /// A signal came.
    Interrupted,
}

/// Every waiter, whatever its bits.
const ANY: NonZeroU32 = NonZeroU32::MAX;

const NS_PER_S: u64 = 1_000_000_000;

/// Sleeps while `word` is `expected`, until woken or until `deadline_ns` on CLOCK_MONOTONIC.
///
/// `word` may lie in a read-only mapping: the kernel only reads it.
pub(crate) fn wait(word: &AtomicU32, expected: u32, deadline_ns: Option<u64>) -> Wait {
    let deadline =
        deadline_ns.map(|ns| Timespec { tv_sec: (ns / NS_PER_S) as i64, tv_nsec: (ns % NS_PER_S) as _ });
    match futex::wait_bitset(word, Flags::empty(), expected, deadline.as_ref(), ANY) {
        Ok(()) => Wait::Woken,
        Err(Errno::AGAIN) => Wait::Changed,
        Err(Errno::TIMEDOUT) => Wait::TimedOut,
        Err(Errno::INTR) => Wait::Interrupted,
        // A mapped, aligned word and a valid time leave no other error to report.
        Err(error) => unreachable!("waiting on a mapped word: {error}"),
    }
}

/// Wakes up to `count` sleepers on `word`, in any process; returns how many slept there.
///
/// `word` may lie in a read-only mapping. It is a full barrier in the kernel only if somebody sleeps.
pub(crate) fn wake(word: &AtomicU32, count: u32) -> usize {
    futex::wake(word, Flags::empty(), count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::sys::testing::{child_status, fork, wait_until};
    use crate::sys::{clock, memfd};

    #[test]
    fn a_changed_word_does_not_sleep() {
        assert_eq!(wait(&AtomicU32::new(1), 0, None), Wait::Changed);
    }

    #[test]
    fn a_deadline_ends_the_wait_and_not_sooner() {
        let end = clock::now_ns() + 2_000_000;
        assert_eq!(wait(&AtomicU32::new(0), 0, Some(end)), Wait::TimedOut);
        assert!(clock::now_ns() >= end);
        assert_eq!(wait(&AtomicU32::new(0), 0, Some(0)), Wait::TimedOut);
    }

    #[test]
    fn a_process_is_woken_on_a_read_only_mapping() {
        let (ours, fd) = memfd::create_sealed("test", 4096).unwrap();
        let sent = rustix::io::fcntl_dupfd_cloexec(&fd, 0).unwrap();
        // SAFETY: page-aligned, mapped until the end of the test, and written only by atomic stores.
        let written = unsafe { ours.ptr().cast::<AtomicU32>().as_ref() };
        let child = fork(move || {
            let theirs = memfd::receive_sealed(sent, 4096).unwrap();
            // SAFETY: as for `written`; nothing is stored through a read-only mapping.
            let read = unsafe { theirs.ptr().cast::<AtomicU32>().as_ref() };
            while read.load(Ordering::Relaxed) == 0 {
                wait(read, 0, None);
            }
            0
        });
        wait_until("the child sleeps", || wake(written, 1) == 1);
        written.store(1, Ordering::Relaxed);
        wake(written, 1);
        assert_eq!(child_status(child), 0);
    }
}
