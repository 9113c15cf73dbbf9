//! Paired rounds: the way to compare two things on a machine that is never the same for a minute.
//!
//! A cloud host moves virtual CPUs about, and with them the price of a cache line: the same floor reads 60, 130 or 390 ns within a
//! minute. So two medians taken one after the other, divided, say little. Here both sides take part in each of many short rounds,
//! side by side, the order alternating; a round gives one ratio, and the result is the median of these ratios with its quartiles.

use super::side::{Pace, Side};

/// Rounds of a full comparison: enough for quartiles that mean something.
pub const ROUNDS: usize = 31;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The number of rounds; at least [`ROUNDS`] for a figure that is shown to anybody.
    pub rounds: usize,
    /// The pace of each round.
    pub pace: Pace,
}

impl Plan {
    /// The full number of rounds at `pace`.
    pub fn full(pace: Pace) -> Plan {
        Plan { rounds: ROUNDS, pace }
    }
}

/// The outcome: what both sides took, and ours relative to the floor.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The number of rounds that it rests on.
    pub rounds: usize,
    /// Nanoseconds per call of our side, over all rounds: for information, not for dividing.
    pub ours: Spread,
    /// Nanoseconds per call of the floor, over all rounds.
    pub floor: Spread,
    /// The ratio of the two p50, per round.
    pub ratio: Quartiles,
}

/// The distribution of single calls, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The mean of the middle half of the samples.
    pub p50: f64,
    /// Nine calls in ten are faster.
    pub p90: f64,
    /// All but one in a hundred are faster.
    pub p99: f64,
    /// All but one in a thousand are faster.
    pub p999: f64,
}

/// A median with its quartiles.
#[derive(Clone, Copy, Debug)]
pub struct Quartiles {
    /// A quarter of the values lies below.
    pub q1: f64,
    /// Half of the values lies below.
    pub median: f64,
    /// Three quarters of the values lie below.
    pub q3: f64,
}

/// Measures `ours` against `floor`. In each round both are measured, one right after the other.
pub fn paired(plan: Plan, ours: &mut impl Side, floor: &mut impl Side) -> Comparison {
    let mut ratios = Vec::with_capacity(plan.rounds);
    let (mut all_ours, mut all_floor) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        let (of_ours, of_floor) = if round % 2 == 0 {
            let first = one_round(ours, plan.pace, &mut all_ours);
            (first, one_round(floor, plan.pace, &mut all_floor))
        } else {
            let first = one_round(floor, plan.pace, &mut all_floor);
            (one_round(ours, plan.pace, &mut all_ours), first)
        };
        ratios.push(of_ours / of_floor);
    }
    Comparison {
        rounds: plan.rounds,
        ours: Spread::of(&mut all_ours),
        floor: Spread::of(&mut all_floor),
        ratio: Quartiles::of(&mut ratios),
    }
}

/// One round of one side: its samples join `all`, its p50 is returned.
fn one_round(side: &mut impl Side, pace: Pace, all: &mut Vec<f64>) -> f64 {
    let before = all.len();
    side.round(pace, all);
    let samples = &mut all[before..];
    samples.sort_by(f64::total_cmp);
    middle(samples)
}

/// The p50 of sorted samples, as the mean of their middle half: the counter may tick in steps of 10 ns and more.
fn middle(sorted: &[f64]) -> f64 {
    let count = sorted.len();
    assert!(count > 0, "a side must deliver at least one sample a round");
    let half = &sorted[count / 4..(count * 3 / 4).max(count / 4 + 1)];
    half.iter().sum::<f64>() / half.len() as f64
}

/// The sorted value below which `part` of all values lie.
fn at(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part).round() as usize]
}

impl Spread {
    fn of(samples: &mut [f64]) -> Spread {
        samples.sort_by(f64::total_cmp);
        Spread {
            p50: middle(samples),
            p90: at(samples, 0.90),
            p99: at(samples, 0.99),
            p999: at(samples, 0.999),
        }
    }
}

impl Quartiles {
    fn of(values: &mut [f64]) -> Quartiles {
        values.sort_by(f64::total_cmp);
        Quartiles { q1: at(values, 0.25), median: at(values, 0.5), q3: at(values, 0.75) }
    }
}
