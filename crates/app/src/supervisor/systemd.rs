//! The service manager: sockets that it has opened for us, and what it wants to hear. The guard is the process it knows.

use std::io;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::control::ToGuard;

/// Variables that are meant for the guard alone.
const VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_FDS_FIRST_FD", "WATCHDOG_PID"];
/// How often the service manager wants to hear that the application is alive, in microseconds.
const WATCHDOG_VARIABLE: &str = "WATCHDOG_USEC";

/// Takes the listening TCP sockets that this process was started with. Others stay where they are.
pub(crate) fn sockets() -> Vec<TcpListener> {
    let mut passed = ListenFd::from_env();
    (0..passed.len()).filter_map(|index| passed.take_tcp_listener(index).ok().flatten()).collect()
}

/// Keeps from a child what is meant for the guard.
pub(crate) fn hide(command: &mut Command) {
    for variable in VARIABLES {
        command.env_remove(variable);
    }
}

/// Tells the service manager, if there is one.
pub(crate) fn tell(what: ToGuard) -> io::Result<()> {
    match what {
        ToGuard::Ready => sd_notify::notify(&[NotifyState::Ready]),
        ToGuard::Reloading => {
            sd_notify::notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?])
        }
        ToGuard::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
        ToGuard::Watchdog => sd_notify::notify(&[NotifyState::Watchdog]),
    }
}

/// How often the supervisor says that it is alive: twice as often as is wanted.
pub(crate) fn watchdog_interval() -> Option<Duration> {
    let wanted: u64 = std::env::var(WATCHDOG_VARIABLE).ok()?.parse().ok()?;
    (wanted > 1).then(|| Duration::from_micros(wanted / 2))
}
