//! What `cargo xtask demo` runs: starts the application, has it take pictures of pages that are served here, and says which process did
//! what, which way the bytes went, and how long that took beside the same bytes as text over a socket.
//!
//! The demo is two processes beside those of the application. Whatever ends it, it takes with it all that it has started and made, except
//! the pictures.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::App;
use crate::place::Place;
use crate::site::Site;

mod app;
mod http;
mod other;
mod page;
mod picture;
mod place;
mod show;
mod site;
mod table;

const HELP: &str = "\
Usage: page-snapshot-demo [--serve] [--to DIR]

  --serve   keep the application running at http://127.0.0.1:5511 until Ctrl-C
  --to DIR  where the pictures are stored, target/demo by default
  --help    this";

/// Says what a run of this binary is, where it is not the demo itself.
const ROLE_VARIABLE: &str = "PAGE_SNAPSHOT_DEMO_ROLE";
/// For requests that were told to end and have not.
const SHUTDOWN: Duration = Duration::from_secs(1);

/// What the arguments ask for.
struct Options {
    serve: bool,
    to: PathBuf,
}

/// Why the demo did not come to its end.
enum Failure {
    /// Something went wrong: a sentence.
    Failed(String),
    /// It was told to end.
    Interrupted,
}

fn main() -> ExitCode {
    match std::env::var(ROLE_VARIABLE).as_deref() {
        Ok(app::ROLE) => return app::become_application(),
        Ok(other::ROLE) => return other::run(),
        _ => {}
    }
    let options = match parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(sentence) => {
            eprintln!("demo: {sentence}; `--help` lists what there is");
            return ExitCode::from(2);
        }
    };
    // On this thread: the application is told of its death, see `app`.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime needs a few descriptors, and these are the first");
    let outcome = runtime.block_on(demo(&options));
    runtime.shutdown_timeout(SHUTDOWN);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(sentence)) => {
            eprintln!("demo: {sentence}");
            ExitCode::FAILURE
        }
        // As a shell says of who is ended by SIGINT.
        Err(Failure::Interrupted) => ExitCode::from(130),
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let mut options = Options { serve: false, to: "target/demo".into() };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--serve" => options.serve = true,
            "--to" => options.to = arguments.next().ok_or("`--to` needs a directory")?.into(),
            "--help" | "-h" => return Ok(None),
            other => return Err(format!("`{other}` means nothing here")),
        }
    }
    Ok(Some(options))
}

async fn demo(options: &Options) -> Result<(), Failure> {
    let mut ending = Ending::new()?;
    let place = Place::create()?;
    let mut app = tokio::select! {
        site = Site::serve() => App::start(&place, options.serve, site?).await?,
        () = ending.asked_for() => return Err(Failure::Interrupted),
    };
    let scene = app.scene(&options.to)?;
    let outcome = tokio::select! {
        shown = tokio::task::spawn_blocking(move || show::run(&scene)) => {
            shown.unwrap_or_else(|panic| Err(panic.to_string())).map_err(Failure::Failed)
        }
        how = app.ended() => Err(Failure::Failed(how)),
        () = ending.asked_for() => Err(Failure::Interrupted),
    };
    let outcome = match outcome {
        Ok(()) if options.serve => {
            println!("\nthe application goes on until Ctrl-C; for example:\n  {}", app.example());
            tokio::select! {
                how = app.ended() => Err(Failure::Failed(how)),
                () = ending.asked_for() => Ok(()),
            }
        }
        other => other,
    };
    let stopped = app.stop(&mut ending).await;
    outcome.and(stopped.map_err(Failure::Failed))
}

/// How users and their terminals say that it is enough.
struct Ending {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Ending {
    fn new() -> Result<Ending, String> {
        let listen = |kind| signal(kind).map_err(|error| format!("cannot listen to signals: {error}"));
        Ok(Ending {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    async fn asked_for(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

impl From<String> for Failure {
    fn from(sentence: String) -> Failure {
        Failure::Failed(sentence)
    }
}
