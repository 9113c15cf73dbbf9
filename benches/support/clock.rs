//! Time stamps cheap enough to put around one call of 100 ns.
//!
//! On x86-64 the time-stamp counter, calibrated once against the monotonic clock (every CPU of the last fifteen years keeps it
//! constant and synchronous); elsewhere the monotonic clock itself.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long the calibration looks at both clocks: an error of 100 ns in reading them is then 5 ppm.
const CALIBRATION: Duration = Duration::from_millis(20);

/// The counter now, in ticks.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn ticks() -> u64 {
    // SAFETY: the instruction has no precondition but that user space may execute it, which Linux grants.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The counter now, in ticks, which are nanoseconds here.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub fn ticks() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// Nanoseconds per tick; the first use takes [`CALIBRATION`].
pub fn ns_per_tick() -> f64 {
    static SCALE: OnceLock<f64> = OnceLock::new();
    *SCALE.get_or_init(|| {
        let (start, first) = (Instant::now(), ticks());
        while start.elapsed() < CALIBRATION {
            std::hint::spin_loop();
        }
        let (last, elapsed) = (ticks(), start.elapsed());
        elapsed.as_nanos() as f64 / (last - first) as f64
    })
}

/// As many ticks as `time` takes.
pub fn ticks_in(time: Duration) -> u64 {
    (time.as_nanos() as f64 / ns_per_tick()) as u64
}

/// The time that `ticks` take.
pub fn duration_of(ticks: u64) -> Duration {
    Duration::from_nanos((ticks as f64 * ns_per_tick()) as u64)
}
