//! The project's own commands: `cargo xtask <command>`. The standard library only, so that it builds in a second.

mod bench;
mod demo;
mod suite;
mod tools;

use std::path::Path;
use std::process::ExitCode;

const HELP: &str = "\
The project's own commands.

cargo xtask demo                  take pictures of pages with real Chromium; say who did what, which way the bytes went, how fast
cargo xtask demo --serve          the same, and then serve pictures at http://127.0.0.1:5511 until Ctrl-C
cargo xtask demo --examples       run each of the small examples as two processes, say what a call takes here
cargo xtask test                  run the whole suite; stop at the first step that fails
cargo xtask test --list           name the steps
cargo xtask test --only STEP      run one step (may be repeated)
cargo xtask bench                 run every bench: pinned processes, paired rounds, plots (see CONTRIBUTING.md)
cargo xtask bench [--quick] NAME  run one bench, or with --quick fewer rounds and no plots
cargo xtask --help                print this";

/// Why a command did not succeed.
enum Failure {
    /// The command line cannot be understood: a sentence, and exit code 2.
    Usage(String),
    /// Something that was run failed: a sentence, and exit code 1.
    Step(String),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    std::env::set_current_dir(root()).expect("the directory that xtask was built from is still there");
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(sentence)) => {
            eprintln!("xtask: {sentence} (`cargo xtask --help` lists what there is)");
            ExitCode::from(2)
        }
        Err(Failure::Step(sentence)) => {
            eprintln!("xtask: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<(), Failure> {
    match words {
        [] | ["help"] => print_help(),
        _ if words.contains(&"--help") || words.contains(&"-h") => print_help(),
        ["test", rest @ ..] => suite::run(rest),
        ["demo", rest @ ..] => demo::run(rest),
        ["bench", rest @ ..] => bench::run(rest),
        [other, ..] => Err(Failure::Usage(format!("there is no command `{other}`"))),
    }
}

fn print_help() -> Result<(), Failure> {
    println!("{HELP}");
    Ok(())
}

/// The workspace's root: the directory above this package's.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in a directory of the workspace")
}
