//! The guard: the process that the user, or the service manager, has started. It does next to nothing, so that next to
//! nothing can go wrong in it: it starts the supervisor, passes on what it is told, and when the supervisor has ended, however
//! that came about, it kills whatever is left of the application.

use std::io::{self, IsTerminal};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::control::{self, Connection, FromGuard, ROLE_VARIABLE, Role, ToGuard};
use crate::supervisor::{orphans, systemd};

/// Within so long the same signal counts once: a terminal, `timeout` and others send it to a process and to its group.
const REPEAT: Duration = Duration::from_millis(100);
/// How often it must be told to end before it kills without asking the supervisor, which acts on the first two.
const PATIENCE: u32 = 3;

/// Runs the application in a supervisor, to its end.
pub(crate) fn run() -> io::Result<ExitCode> {
    // On this thread alone: nothing here is worth another.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(guard())?;
    Ok(exit_code(status))
}

async fn guard() -> io::Result<ExitStatus> {
    orphans::adopt_orphans()?;
    let sockets = systemd::sockets();
    // Before there is a supervisor: none must be left alone.
    let mut signals = Signals::new()?;
    let (ours, theirs) = control::pair()?;
    let mut supervisor = Command::new(std::env::current_exe()?);
    supervisor.args(std::env::args_os().skip(1)).stdin(theirs).process_group(0);
    supervisor.env(ROLE_VARIABLE, serde_json::to_string(&Role::Supervisor)?);
    systemd::hide(&mut supervisor);
    let mut supervisor = supervisor.spawn()?;
    let ended = control::watch(pidfd_open(Pid::from_child(&supervisor), PidfdFlags::NONBLOCK)?)?;

    let connection = Connection::new(ours)?;
    // A supervisor that has ended already is noticed below.
    let _ = begin(&connection, sockets).await;
    let mut told_to_end = 0;
    let mut is_connected = true;
    loop {
        tokio::select! {
            _ = ended.readable() => break,
            message = connection.recv::<ToGuard>(), if is_connected => match message {
                // The service manager is told as a courtesy: the application does not depend on it.
                Ok(Some((what, _))) => drop(systemd::tell(what)),
                Ok(None) | Err(_) => is_connected = false,
            },
            what = signals.next() => {
                told_to_end += u32::from(what == FromGuard::Stop);
                if told_to_end >= PATIENCE {
                    break;
                }
                let _ = connection.send(&what, None::<OwnedFd>).await;
            }
        }
    }
    if told_to_end >= PATIENCE {
        supervisor.kill()?;
    }
    let status = supervisor.wait()?;
    orphans::kill_all();
    Ok(status)
}

async fn begin(connection: &Connection, sockets: Vec<TcpListener>) -> io::Result<()> {
    for socket in sockets {
        connection.send(&FromGuard::Socket, Some(socket)).await?;
    }
    connection.send(&FromGuard::Start, None::<OwnedFd>).await
}

/// What a user or a service manager has to say.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    /// What came last, and when.
    last: Option<(FromGuard, Instant)>,
    /// Who was started at a terminal has lost it with a hang-up, and its user with it; a daemon is told to reload.
    is_at_terminal: bool,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            last: None,
            is_at_terminal: io::stdin().is_terminal(),
        })
    }

    async fn next(&mut self) -> FromGuard {
        loop {
            let what = tokio::select! {
                _ = self.interrupt.recv() => FromGuard::Stop,
                _ = self.terminate.recv() => FromGuard::Stop,
                _ = self.hang_up.recv() => if self.is_at_terminal { FromGuard::Stop } else { FromGuard::Reload },
            };
            let is_repeat = |(last, at): (FromGuard, Instant)| last == what && at.elapsed() < REPEAT;
            if !self.last.is_some_and(is_repeat) {
                self.last = Some((what, Instant::now()));
                return what;
            }
        }
    }
}

/// The supervisor's own; as a shell has it if a signal has ended it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
