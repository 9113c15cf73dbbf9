//! `cargo xtask demo --examples`: builds the examples and runs each as two processes, on a bus of their own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::tools::cargo;

/// The examples with a side that publishes, and what they show.
const SERVED: [(&str, &str); 6] = [
    ("process_info", "an object answers for its process"),
    ("math", "an object made of closures, called without a generated proxy"),
    ("interface", "the same code with a local object and with one of another process"),
    ("one_way", "a call that runs although its sender exits at once"),
    ("frames", "frames lent from a bounded pool, and read in place"),
    ("progress", "a method that calls an object of its caller's while it runs"),
];

/// How long a process may take to say something; a loaded machine takes a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs every example; the first that fails ends it.
pub fn run() -> Result<(), String> {
    let place = Place(std::env::temp_dir().join(format!("objbus-demo-{}", std::process::id())));
    show(&place)
}

fn show(place: &Place) -> Result<(), String> {
    println!("building the examples, optimised; the first time this takes minutes");
    let built = cargo(&["build", "--release", "--examples"]).status();
    if !built.is_ok_and(|status| status.success()) {
        return Err("the examples do not build: `cargo build --release --examples`".into());
    }
    SERVED.iter().try_for_each(|(name, about)| show_one(place, name, about))?;
    println!("\nlatency: a hot call and a socket echo between the same two processes, in turn");
    println!("  {}", said_by(place, "latency")?);
    println!("  (`cargo xtask bench` measures with pinned processes, and against the machine's own floors)");
    Ok(())
}

fn show_one(place: &Place, name: &str, about: &str) -> Result<(), String> {
    println!("\n{name}: {about}");
    let owner = Owner::start(place, name)?;
    println!("  process {}: {}", owner.process.id(), owner.hear()?);
    said_by(place, name)?.lines().for_each(|line| println!("  the other: {line}"));
    if name == "one_way" {
        println!("  process {}: {}", owner.process.id(), owner.hear()?);
    }
    println!("  process {} is killed; the next publisher would take its name over", owner.process.id());
    Ok(())
}

/// What the other side of an example prints.
fn said_by(place: &Place, name: &str) -> Result<String, String> {
    let failed = |why: String| format!("example `{name}` failed: {why}");
    let output = example(place, name).stderr(Stdio::inherit()).output().map_err(|e| failed(e.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    if output.status.success() {
        Ok(said)
    } else {
        Err(failed(format!("{}; it said {said:?}", output.status)))
    }
}

fn example(place: &Place, name: &str) -> Command {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let mut command = Command::new(Path::new(&target).join("release/examples").join(name));
    command.env("OBJBUS_DIR", &place.0).stdin(Stdio::null());
    command
}

/// The run-time directory of the demo's bus, gone with it.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The side of an example that publishes; killed when dropped.
struct Owner {
    process: Child,
    lines: Receiver<String>,
}

impl Owner {
    fn start(place: &Place, name: &str) -> Result<Owner, String> {
        let started = example(place, name).arg("serve").stdout(Stdio::piped()).spawn();
        let mut process = started.map_err(|error| format!("`{name}` could not be started: {error}"))?;
        let (to, lines) = channel();
        let output = process.stdout.take();
        std::thread::spawn(move || {
            let mut lines = output.into_iter().flat_map(|output| BufReader::new(output).lines());
            lines.try_for_each(|line| to.send(line.ok()?).ok())
        });
        Ok(Owner { process, lines })
    }

    /// The next line that it prints.
    fn hear(&self) -> Result<String, String> {
        let silent = |_| format!("process {} has ended, or says nothing", self.process.id());
        self.lines.recv_timeout(PATIENCE).map_err(silent)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
