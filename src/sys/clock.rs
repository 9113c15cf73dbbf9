//! CLOCK_MONOTONIC, in nanoseconds.

use std::sync::LazyLock;
use std::time::Duration;

use rustix::time::Timespec;

/// The step of [`coarse_ns`], in nanoseconds: how far it may lie behind [`now_ns`]. 1 to 10 ms, by the kernel's build.
pub(crate) static COARSE_TICK_NS: LazyLock<u64> =
    LazyLock::new(|| read(libc::clock_getres, libc::CLOCK_MONOTONIC_COARSE));

/// The time now, to the nanosecond; some 30 ns on a virtual machine, so never on the path of a hot call.
#[inline]
pub(crate) fn now_ns() -> u64 {
    read(libc::clock_gettime, libc::CLOCK_MONOTONIC)
}

/// The time at the last timer tick: never ahead of [`now_ns`], and a few nanoseconds to read.
#[inline]
pub(crate) fn coarse_ns() -> u64 {
    read(libc::clock_gettime, libc::CLOCK_MONOTONIC_COARSE)
}

/// Milliseconds of the coarse clock, modulo 2^32: a day's worth of deadlines in four bytes.
pub(crate) fn now_ms() -> u32 {
    (coarse_ns() / 1_000_000) as u32
}

/// A span in nanoseconds; `u64::MAX` for one of more than 584 years.
pub(crate) fn span_ns(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// A span of nanoseconds as the kernel takes it.
pub(crate) fn timespec(span_ns: u64) -> Timespec {
    Timespec { tv_sec: (span_ns / 1_000_000_000) as _, tv_nsec: (span_ns % 1_000_000_000) as _ }
}

/// Reads by libc, as the standard library does: rustix looks the vDSO up in a way that faults under valgrind.
#[inline(always)]
fn read(
    function: unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> libc::c_int,
    clock: libc::clockid_t,
) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes `time` and nothing else. It cannot fail for a clock that every kernel has.
    unsafe { function(clock, &raw mut time) };
    // A monotonic time is never negative, and 64 bits of nanoseconds last 584 years.
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coarse_clock_is_behind_by_a_tick_at_most() {
        let tick = *COARSE_TICK_NS;
        assert!((100_000..=10_000_000).contains(&tick), "a tick of {tick} ns");
        let (coarse, now) = (coarse_ns(), now_ns());
        assert!(coarse <= now);
    }
}
