//! The role that runs services: makes, starts, publishes and stops them as the supervisor says, and reports.
//!
//! The connection to the supervisor has the main thread and a runtime of its own, so that a service that blocks its threads can
//! neither delay a time-out nor keep the process alive after the supervisor has ended. Services share the other runtime.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use objbus::Bus;
use rustix::process::{Signal, getpid, getppid, kill_process, set_parent_process_death_signal};
use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{SignalKind, signal};

use crate::app::App;
use crate::config::Settings;
use crate::control::{Connection, ToSupervisor, Welcome};
use crate::log::layer::{self, Pipe};
use crate::options::Options;
use crate::plan::Plan;

mod services;
#[cfg(test)]
mod tests;

use services::Services;

/// How long the bus may take to end after all services have stopped.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// The exit code for a declaration or configuration that is wrong.
const EXIT_WRONG: u8 = 2;

/// Which of the application's processes this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Instance {
    pub name: String,
    pub index: u32,
    /// The supervisor's pid.
    pub supervisor: u32,
}

/// Everything that services are made of.
pub(crate) struct Host {
    pub app: App,
    pub plan: Plan,
    pub settings: Arc<Settings>,
    pub is_dev: bool,
    pub instance: Instance,
    /// Or why it cannot be opened.
    pub bus: Result<Bus, String>,
    /// Where services run.
    pub runtime: Handle,
}

/// How the supervisor's part ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It said so.
    Told,
    /// It is gone.
    Lost,
}

/// Runs the process until the supervisor says that it ends. `control` is its end of the pair.
pub(crate) fn run(app: App, options: &Options, instance: Instance, control: OwnedFd) -> ExitCode {
    die_with(instance.supervisor);
    let (plan, settings) = match app.configured(options) {
        Ok(configured) => configured,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(EXIT_WRONG);
        }
    };
    let of_services = Builder::new_multi_thread().enable_all().thread_name("service").build();
    let of_control = Builder::new_current_thread().enable_all().build();
    let (Ok(of_services), Ok(of_control)) = (of_services, of_control) else {
        eprintln!("process {} cannot make its threads", instance.name);
        return ExitCode::FAILURE;
    };
    let ended = of_control.block_on(async {
        leave_signals()?;
        let control = welcomed(control, &instance.name).await?;
        let bus = app.bus_factory()().map_err(|error| format!("the bus cannot be opened: {error}"));
        let is_dev = options.dev;
        let runtime = of_services.handle().clone();
        let settings = Arc::new(settings);
        let host = Host { app, plan, settings, is_dev, instance, bus: bus.clone(), runtime };
        let end = serve(host, &control).await;
        io::Result::Ok((end, bus))
    });
    match ended {
        Ok((End::Told, bus)) => {
            if let Ok(bus) = bus {
                bus.close(CLOSE_TIMEOUT);
            }
            of_services.shutdown_background();
            ExitCode::SUCCESS
        }
        Ok((End::Lost, _)) => end_at_once(),
        Err(error) => {
            eprintln!("the connection to the supervisor failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Has the kernel end this process when the supervisor ends, whatever this process does by then.
fn die_with(supervisor: u32) {
    let set = set_parent_process_death_signal(Some(Signal::KILL));
    let parent = getppid().and_then(|pid| u32::try_from(pid.as_raw_pid()).ok());
    if set.is_err() || parent != Some(supervisor) {
        // It has ended before this was asked for, and nobody would tell.
        end_at_once();
    }
}

/// Has the signals that end a program, or reload a daemon, do nothing here; programs that services start have them as ever. What
/// happens is the supervisor's to say, and a service manager may send them to every process that there is.
fn leave_signals() -> io::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        // Handled from the first time on that somebody wants to hear of it.
        drop(signal(kind)?);
    }
    Ok(())
}

/// Ends the process where a normal end could be held up by what runs in it.
fn end_at_once() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}

/// The connection, when the supervisor has said where the log goes.
async fn welcomed(control: OwnedFd, process: &str) -> io::Result<Connection> {
    let control = Connection::new(control)?;
    let Some((Welcome, Some(log))) = control.recv().await? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it did not begin with a log"));
    };
    layer::install(process, Pipe::new(log));
    std::panic::set_hook(Box::new(|info| {
        let trace = Backtrace::capture();
        match trace.status() {
            BacktraceStatus::Captured => tracing::error!(target: "panic", "{info}\n{trace}"),
            _ => tracing::error!(target: "panic", "{info}"),
        }
    }));
    Ok(control)
}

/// Does what the supervisor says until it says that it is the end, or is gone.
async fn serve(host: Host, control: &Connection) -> End {
    let (mut services, mut events) = Services::new(host);
    if control.send(&ToSupervisor::Hello, None::<OwnedFd>).await.is_err() {
        return End::Lost;
    }
    loop {
        let reply = tokio::select! {
            message = control.recv() => match message {
                Ok(Some((message, descriptor))) => match services.told(message, descriptor) {
                    Ok(reply) => reply,
                    Err(end) => return end,
                },
                Ok(None) | Err(_) => return End::Lost,
            },
            Some(event) = events.next() => services.happened(event),
        };
        if let Some(reply) = reply
            && control.send(&reply, None::<OwnedFd>).await.is_err()
        {
            return End::Lost;
        }
    }
}

/// What a panic said.
fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("something that is no text")
}
