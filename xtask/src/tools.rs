//! What a fresh machine may lack: looked for before use, installed where that is a plain thing to do, named loudly where not.

use std::path::Path;
use std::process::{Command, Stdio};

/// A command that runs `cargo`, the one that runs us, without asking anything of the terminal.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Whether `cargo <subcommand>` is installed.
pub fn has_cargo(subcommand: &str) -> bool {
    succeeds(cargo(&[subcommand, "--version"]))
}

/// Sees to it that `cargo <subcommand>` is there, by adding `component` with rustup if need be.
pub fn need_component(subcommand: &str, component: &str) -> Result<(), String> {
    if has_cargo(subcommand) {
        return Ok(());
    }
    println!("{component} is missing: running `rustup component add {component}`");
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add", component]).stdin(Stdio::null());
    match rustup.status() {
        Ok(status) if status.success() && has_cargo(subcommand) => Ok(()),
        Ok(_) => Err(format!("rustup could not add {component}; add it by hand and run this again")),
        Err(_) => {
            Err(format!("{component} is missing and so is rustup; install the package that has {component}"))
        }
    }
}

/// The programs that some tests run, by the name of their Debian package, which is that of the program.
const PROGRAMS: [&str; 3] = ["strace", "valgrind", CHROMIUM];
const CHROMIUM: &str = "chromium";

/// Installs the programs of [`PROGRAMS`] that are missing, if this is root on a machine with apt; says so before and after.
///
/// The tests that use a program say themselves that they did not run without it: its absence is no failure.
pub fn offer_programs() {
    let missing: Vec<&str> = PROGRAMS.into_iter().filter(|program| !is_installed(program)).collect();
    if missing.is_empty() {
        return println!("found: {}", PROGRAMS.join(", "));
    }
    let list = missing.join(" ");
    if !(is_root() && is_installed("apt-get")) {
        return println!(
            "SKIPPED: the tests that use {list}; install them (apt-get install {list}) to run these too"
        );
    }
    if !install(&missing) {
        println!("SKIPPED: the tests that use {list}; apt-get could not install them");
    }
}

/// Sees to it that Chromium is there.
pub fn need_chromium() -> Result<(), String> {
    let is_there = || Path::new("/usr/bin").join(CHROMIUM).is_file();
    let by_hand = "install Debian's package `chromium` (`sudo apt-get install chromium`) and run this again";
    match is_root() && is_installed("apt-get") {
        _ if is_there() => Ok(()),
        true if install(&[CHROMIUM]) && is_there() => Ok(()),
        true => Err(format!("apt-get could not install Chromium; {by_hand}")),
        false => Err(format!("/usr/bin/chromium is missing; {by_hand}")),
    }
}

/// Installs packages with apt, saying so first.
fn install(packages: &[&str]) -> bool {
    let list = packages.join(" ");
    println!(
        "missing: {list}; running `apt-get update` and `apt-get install {list}` as root, which may take minutes"
    );
    let install = ["-qq", "-y", "--no-install-recommends", "install"];
    succeeds(apt(&["-qq", "update"])) && succeeds(apt(&[&install[..], packages].concat()))
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Asked of the kernel by the owner of our own entry in `/proc`, since the standard library has no getuid.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    Path::new("/proc/self").metadata().is_ok_and(|entry| entry.uid() == 0)
}

/// Runs `command` silently.
fn succeeds(mut command: Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
