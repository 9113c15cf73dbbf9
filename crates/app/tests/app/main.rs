//! An application as a user has it: the guard, the supervisor and the processes are real, and so are the signals. This binary is
//! the application when it is started with `OBJBUS_TEST_APP`, and the tests otherwise.

mod apps;
mod control;
mod harness;
mod instances;
mod kills;
mod reload;
mod start;
mod stop;
mod systemd;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(harness::APP_VARIABLE) {
        return apps::run(&name);
    }
    let modules = [
        control::TESTS,
        instances::TESTS,
        kills::TESTS,
        reload::TESTS,
        start::TESTS,
        stop::TESTS,
        systemd::TESTS,
    ];
    let trial = |(name, test): &(&str, fn())| {
        let test = *test;
        Trial::test(*name, move || {
            test();
            Ok(())
        })
    };
    let trials = modules.into_iter().flatten().map(trial).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A module's tests, by their names.
type Tests = &'static [(&'static str, fn())];

/// Lists tests for [`Tests`].
macro_rules! tests {
    ($($test:ident),* $(,)?) => {
        pub(crate) const TESTS: crate::Tests = &[$((concat!(module_path!(), "::", stringify!($test)), $test)),*];
    };
}
pub(crate) use tests;
