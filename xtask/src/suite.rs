//! `cargo xtask test`: every check of the project, in the order in which a mistake is found soonest.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::tools::{cargo, has_cargo, need_component, offer_programs};

/// One check: its name, what it is for, and how it is run.
struct Step {
    name: &'static str,
    about: &'static str,
    run: fn() -> Result<(), String>,
}

const STEPS: [Step; 9] = [
    Step { name: "tools", about: "programs that some tests use", run: tools },
    Step { name: "fmt", about: "the formatter would change nothing", run: fmt },
    Step { name: "clippy", about: "no warning in any target, with every feature", run: clippy },
    Step { name: "examples", about: "the examples build; tests run them", run: examples },
    Step { name: "tests", about: "unit tests, two-process tests, compile errors, tidiness", run: tests },
    Step { name: "doctests", about: "the examples in the documentation", run: doctests },
    Step { name: "docs", about: "the documentation builds without a warning", run: docs },
    Step { name: "loom", about: "the ring under every interleaving (see src/ring/models.rs)", run: loom },
    Step { name: "benches", about: "the benches compile", run: benches },
];

/// Runs the steps that `words` ask for, until one fails.
pub fn run(words: &[&str]) -> Result<(), Failure> {
    let steps = match words {
        ["--list"] => return list(),
        _ => chosen(words)?,
    };
    let mut times = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        println!("\n=== {} of {}: {} ({})", index + 1, steps.len(), step.name, step.about);
        let start = Instant::now();
        let outcome = (step.run)();
        times.push((step.name, start.elapsed()));
        if let Err(sentence) = outcome {
            summary(&times, 1);
            let name = step.name;
            return Err(Failure::Step(format!(
                "step `{name}` failed: {sentence}; again: cargo xtask test --only {name}"
            )));
        }
    }
    summary(&times, 0);
    Ok(())
}

fn list() -> Result<(), Failure> {
    STEPS.iter().for_each(|step| println!("{:10} {}", step.name, step.about));
    Ok(())
}

/// The steps named by `--only`, or all.
fn chosen(mut words: &[&str]) -> Result<Vec<&'static Step>, Failure> {
    let mut steps = Vec::new();
    loop {
        match words {
            [] if steps.is_empty() => return Ok(STEPS.iter().collect()),
            [] => return Ok(steps),
            ["--only", name, rest @ ..] => {
                let found = STEPS.iter().find(|step| step.name == *name);
                steps.push(found.ok_or_else(|| Failure::Usage(format!("there is no step `{name}`")))?);
                words = rest;
            }
            ["--only"] => return Err(Failure::Usage("--only needs the name of a step".into())),
            [other, ..] => return Err(Failure::Usage(format!("`test` does not know `{other}`"))),
        }
    }
}

/// The times of the steps that ran, and last the line that continuous integration reads.
fn summary(times: &[(&str, Duration)], failed: usize) {
    println!("\n=== steps");
    for (index, (name, time)) in times.iter().enumerate() {
        let bad = failed > 0 && index + 1 == times.len();
        println!("{name:10} {:6.1} s  {}", time.as_secs_f64(), if bad { "FAILED" } else { "ok" });
    }
    println!("{} passed, {failed} failed", times.len() - failed);
}

fn tools() -> Result<(), String> {
    offer_programs();
    Ok(())
}

fn fmt() -> Result<(), String> {
    need_component("fmt", "rustfmt")?;
    execute(cargo(&["fmt", "--all", "--check"]))
}

fn clippy() -> Result<(), String> {
    need_component("clippy", "clippy")?;
    let everything = ["--workspace", "--all-targets", "--all-features"];
    execute(cargo(&[&["clippy"], &everything[..], &["--", "-D", "warnings"]].concat()))
}

fn examples() -> Result<(), String> {
    execute(cargo(&["build", "--examples", "--all-features"]))
}

/// With cargo-nextest where it is installed, since it runs and times every test by itself; else with cargo alone.
fn tests() -> Result<(), String> {
    let mut words = if has_cargo("nextest") { vec!["nextest", "run"] } else { vec!["test"] };
    words.extend(["--workspace", "--all-features"]);
    if words[0] == "test" {
        words.extend(["--lib", "--bins", "--tests"]);
    }
    execute(cargo(&words))
}

fn doctests() -> Result<(), String> {
    execute(cargo(&["test", "--doc", "--workspace", "--all-features"]))
}

fn docs() -> Result<(), String> {
    let mut command = cargo(&["doc", "--no-deps", "--workspace", "--all-features"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    execute(command)
}

/// In a target directory of its own: the flag changes how every crate is built.
fn loom() -> Result<(), String> {
    let models = || {
        let words = "test --package objbus --lib --profile loom --target-dir target/loom ring::models";
        let mut command = cargo(&words.split(' ').collect::<Vec<_>>());
        command.env("RUSTFLAGS", "--cfg loom");
        command
    };
    // A filter that matches nothing would pass, and prove nothing.
    let listed = models().args(["--", "--list"]).stderr(Stdio::inherit()).output();
    let names = listed.map_err(|error| format!("cargo could not be started: {error}"))?.stdout;
    let any = String::from_utf8_lossy(&names).lines().any(|line| line.ends_with(": test"));
    match any {
        true => execute(models()),
        false if Path::new("src/ring").exists() => {
            Err("the ring has no model, or does not compile under loom".into())
        }
        false => {
            println!("SKIPPED: there is no ring yet, hence no model of it");
            Ok(())
        }
    }
}

fn benches() -> Result<(), String> {
    execute(cargo(&["bench", "--package", "objbus", "--no-run"]))
}

/// Runs `command`, saying what it is; its output goes straight to ours.
fn execute(mut command: Command) -> Result<(), String> {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    let line = format!("cargo {}", words.join(" "));
    println!("$ {line}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{line}` ended with {status}")),
        Err(error) => Err(format!("`{line}` could not be started: {error}")),
    }
}
