//! One side of a comparison: something that can be called again and again, and how a round of it is sampled.

use std::time::Duration;

use super::clock::{duration_of, ns_per_tick, ticks, ticks_in};

/// Most samples in one round: bounds the memory, and no round of a few milliseconds reaches it.
const SAMPLES_MAX: usize = 1 << 16;

/// How long one round lasts, and how far its calls lie apart.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The round ends after this time...
    pub time: Duration,
    /// ... but not before this many samples.
    pub at_least: usize,
    /// Both processes have nothing to do for this long before each sample.
    pub gap: Option<Duration>,
}

impl Pace {
    /// Calls one after the other for 2 ms: far shorter than the minutes over which a machine changes its regime.
    pub const HOT: Pace = Pace { time: Duration::from_millis(2), at_least: 9, gap: None };

    /// Calls `gap` apart, at least nine, for 5 ms or longer.
    pub const fn apart(gap: Duration) -> Pace {
        Pace { time: Duration::from_millis(5), at_least: 9, gap: Some(gap) }
    }
}

/// One side of a comparison. Between two rounds neither of its processes may use a CPU.
pub trait Side {
    /// Adds the nanoseconds of each call of one round to `samples`.
    fn round(&mut self, pace: Pace, samples: &mut Vec<f64>);

    /// The time of `calls` calls, for criterion.
    fn time(&mut self, calls: u64) -> Duration;
}

/// A side made of a closure that does one call, each timed on its own.
pub struct Each<F>(pub F);

impl<F: FnMut()> Side for Each<F> {
    #[inline]
    fn round(&mut self, pace: Pace, samples: &mut Vec<f64>) {
        sample(pace, samples, 1, &mut self.0);
    }

    #[inline]
    fn time(&mut self, calls: u64) -> Duration {
        time(calls, &mut self.0)
    }
}

/// A side made of a closure that does `size` calls at once; a sample is the cost per call.
pub struct Batch<F> {
    /// How many calls are in flight together.
    pub size: u32,
    /// Does as many calls as it is told.
    pub run: F,
}

impl<F: FnMut(u32)> Side for Batch<F> {
    fn round(&mut self, pace: Pace, samples: &mut Vec<f64>) {
        let Batch { size, run } = self;
        sample(pace, samples, *size, || run(*size));
    }

    /// Whole batches: the time is scaled to `calls`.
    fn time(&mut self, calls: u64) -> Duration {
        let Batch { size, run } = self;
        let batches = calls.div_ceil(u64::from(*size));
        let whole = time(batches, || run(*size));
        whole.mul_f64(calls as f64 / (batches * u64::from(*size)) as f64)
    }
}

/// Runs `call` for one round at `pace`, adding the nanoseconds of each run divided by `calls_per_run`.
///
/// The first tenth, at least one, is left out: it wakes the peer and warms the caches that the other side of the comparison has just used.
#[inline]
pub fn sample(pace: Pace, samples: &mut Vec<f64>, calls_per_run: u32, mut call: impl FnMut()) {
    let scale = ns_per_tick() / f64::from(calls_per_run);
    let mut round = Round::start(pace, samples);
    while !round.is_over() {
        round.rest();
        let sent = ticks();
        call();
        let answered = ticks();
        round.add(sent, answered, scale);
    }
    round.end();
}

/// One round, as it goes on.
struct Round<'a> {
    pace: Pace,
    samples: &'a mut Vec<f64>,
    /// Samples of earlier rounds.
    before: usize,
    start: u64,
    budget: u64,
    last: u64,
}

impl Round<'_> {
    fn start(pace: Pace, samples: &mut Vec<f64>) -> Round<'_> {
        let (before, start) = (samples.len(), ticks());
        Round { pace, samples, before, start, budget: ticks_in(pace.time), last: start }
    }

    #[inline]
    fn is_over(&self) -> bool {
        let count = self.samples.len() - self.before;
        (self.last - self.start >= self.budget && count >= self.pace.at_least) || count == SAMPLES_MAX
    }

    #[inline]
    fn rest(&self) {
        if let Some(gap) = self.pace.gap {
            std::thread::sleep(gap);
        }
    }

    #[inline]
    fn add(&mut self, sent: u64, answered: u64, scale: f64) {
        self.samples.push(answered.saturating_sub(sent) as f64 * scale);
        self.last = answered;
    }

    fn end(self) {
        let count = self.samples.len() - self.before;
        let warm_up = if count > 1 { count.div_ceil(10) } else { 0 };
        self.samples.drain(self.before..self.before + warm_up);
    }
}

/// The same for a call that is awaited.
pub async fn sample_awaited(
    pace: Pace,
    samples: &mut Vec<f64>,
    calls_per_run: u32,
    mut call: impl AsyncFnMut(),
) {
    let scale = ns_per_tick() / f64::from(calls_per_run);
    let mut round = Round::start(pace, samples);
    while !round.is_over() {
        round.rest();
        let sent = ticks();
        call().await;
        let answered = ticks();
        round.add(sent, answered, scale);
    }
    round.end();
}

/// The time of `runs` runs of `call`.
#[inline]
pub fn time(runs: u64, mut call: impl FnMut()) -> Duration {
    let start = ticks();
    (0..runs).for_each(|_| call());
    duration_of(ticks().saturating_sub(start))
}
