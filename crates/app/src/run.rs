//! Which part of the application this process is, and that part's run.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;
use rustix::stdio::dup2_stdin;

use crate::app::App;
use crate::control::{ROLE_VARIABLE, Role};
use crate::options::Options;
use crate::process::Instance;
use crate::{guard, process, supervisor};

/// For a wrong declaration or configuration.
const EXIT_WRONG: u8 = 2;

/// Runs this process' part, to its end.
pub(crate) fn run(app: App, options: Options) -> ExitCode {
    let name = app.name().to_owned();
    let done = match role() {
        None => guard(&app, &options),
        Some((Role::Supervisor, end)) => supervise(&app, &options, end),
        Some((Role::Process { name, index, supervisor }, end)) => {
            Ok(process::run(app, &options, Instance { name, index, supervisor }, end))
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("{name}: {error}");
        ExitCode::FAILURE
    })
}

/// The plan is made for its errors: here they go straight to the user, before anything is started.
fn guard(app: &App, options: &Options) -> io::Result<ExitCode> {
    match app.plan(options) {
        Ok(_) => guard::run(),
        Err(errors) => {
            eprintln!("{errors}");
            Ok(ExitCode::from(EXIT_WRONG))
        }
    }
}

fn supervise(app: &App, options: &Options, end: OwnedFd) -> io::Result<ExitCode> {
    let plan = app.plan(options).map_err(io::Error::other)?;
    let open = app.bus_factory();
    let open = move || open().map_err(|error| format!("cannot open the bus: {error}"));
    supervisor::run(plan, options.json, open, end)
}

/// What this process was started as, with its end of the pair; `None` for what the user has started.
fn role() -> Option<(Role, OwnedFd)> {
    let role = serde_json::from_str(&std::env::var(ROLE_VARIABLE).ok()?).ok()?;
    let input = io::stdin();
    // A program that a service has started inherits the variable, and not the socket.
    if input.is_terminal() || socket_type(&input) != Ok(SocketType::SEQPACKET) {
        return None;
    }
    let end = input.as_fd().try_clone_to_owned().ok()?;
    dup2_stdin(File::open("/dev/null").ok()?).ok()?;
    Some((role, end))
}
