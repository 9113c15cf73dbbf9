//! A bench binary as a whole: what its command line asks for, its paired table, and criterion's history beside it.

use std::time::Duration;

use criterion::Criterion;

use super::paired::{Plan, Quartiles, paired};
use super::placement::Placement;
use super::report::Report;
use super::side::{Pace, Side};

/// How thorough this run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effort {
    /// `cargo bench`: full rounds, plots and history.
    Full,
    /// `cargo bench -- --quick`: a few rounds, to see that nothing is badly off.
    Quick,
    /// `cargo test --benches`: everything once, to see that it works. Its figures mean nothing.
    Once,
    /// `--list`: names only.
    List,
}

/// The run of one bench binary.
pub struct Suite {
    effort: Effort,
    criterion: Criterion,
    report: Option<Report>,
    filter: Option<String>,
}

impl Suite {
    /// Reads the command line, in the way cargo and criterion write it.
    pub fn from_args(bench: &'static str) -> Suite {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let given = |flag: &str| arguments.iter().any(|argument| argument == flag);
        let effort = match () {
            () if given("--list") => Effort::List,
            () if given("--test") || !given("--bench") => Effort::Once,
            () if given("--quick") => Effort::Quick,
            () => Effort::Full,
        };
        let criterion = Criterion::default()
            .sample_size(20)
            .nresamples(20_000)
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_millis(600))
            .configure_from_args();
        let report = matches!(effort, Effort::Full | Effort::Quick).then(|| Report::start(bench));
        let filter = arguments.into_iter().find(|argument| !argument.starts_with('-'));
        Suite { effort, criterion, report, filter }
    }

    /// One row: `ours` against `floor`. The rows whose name lacks the word on the command line are left out.
    pub fn compare(
        &mut self,
        name: &str,
        at: (Placement, &str),
        pace: Pace,
        sides: (&mut impl Side, &mut impl Side),
    ) {
        self.row(name, at, None, pace, sides);
    }

    /// One row whose ratio is to be `bar` at most: the row says whether it is.
    pub fn hold(
        &mut self,
        name: &str,
        at: (Placement, &str),
        bar: f64,
        pace: Pace,
        sides: (&mut impl Side, &mut impl Side),
    ) {
        self.row(name, at, Some(bar), pace, sides);
    }

    /// One row, and its ratio if it was measured.
    pub fn row(
        &mut self,
        name: &str,
        at: (Placement, &str),
        bar: Option<f64>,
        pace: Pace,
        sides: (&mut impl Side, &mut impl Side),
    ) -> Option<Quartiles> {
        if self.effort == Effort::List
            || self.filter.as_ref().is_some_and(|word| !name.contains(word.as_str()))
        {
            return None;
        }
        let found = paired(self.plan(pace), sides.0, sides.1);
        let report = self.report.as_mut()?;
        report.add(name, at, bar, &found);
        Some(found.ratio)
    }

    /// Whether figures of `name` are wanted, not only a run to see that all works.
    pub fn is_measuring(&self, name: &str) -> bool {
        self.report.is_some() && self.filter.as_ref().is_none_or(|word| name.contains(word.as_str()))
    }

    /// A line for the reader beside the table.
    pub fn note(&self, line: &str) {
        if self.report.is_some() {
            println!("{line}");
        }
    }

    /// A picture of ratios beside the table, if there are any.
    pub fn plot(&self, title: &str, bars: &[(String, Quartiles)]) {
        if let (Some(report), false) = (&self.report, bars.is_empty()) {
            report.plot(title, bars);
        }
    }

    /// Records `side` under `group` in criterion's history, with plots in `target/criterion`.
    pub fn record(&mut self, group: &str, placement: Placement, side: &mut impl Side) {
        if self.effort == Effort::Quick {
            return;
        }
        let id = format!("{group} ({placement})");
        self.criterion.bench_function(&id, |bencher| bencher.iter_custom(|calls| side.time(calls)));
    }

    /// Ends the table and lets criterion write its summary.
    pub fn finish(mut self) {
        if let Some(report) = self.report.take() {
            report.finish();
        }
        self.criterion.final_summary();
    }

    fn plan(&self, pace: Pace) -> Plan {
        match self.effort {
            Effort::Full => Plan::full(pace),
            Effort::Quick => Plan { rounds: 7, pace },
            Effort::Once | Effort::List => {
                Plan { rounds: 1, pace: Pace { at_least: 2, time: Duration::ZERO, ..pace } }
            }
        }
    }
}
