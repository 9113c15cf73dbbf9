//! One process: how it is started, and what connects it with the supervisor. Its state is a [`Life`](super::state::Life).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use rustix::io::ioctl_fionread;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::state::Serial;
use super::{Event, orphans};
use crate::control::{self, Connection, ROLE_VARIABLE, Role, ToProcess, Welcome};
use crate::log::{self, LINE_MAX, Level};
use crate::plan::ProcessPlan;

/// Where a process' messages and lines go.
#[derive(Clone)]
pub(crate) struct Sinks {
    pub events: mpsc::Sender<Event>,
    pub logs: mpsc::Sender<log::Event>,
}

/// A process that runs, or has ended without its exit code having been fetched.
pub(crate) struct Instance {
    child: Child,
    /// Never waits: a process that does not read must not hold the supervisor.
    outbox: mpsc::UnboundedSender<(ToProcess, Option<OwnedFd>)>,
}

impl Instance {
    /// Starts the binary once more. This must be the main thread, since the end of the thread that has started a process is the
    /// end of that process.
    pub fn launch(
        binary: &Path,
        process: &ProcessPlan,
        index: u32,
        serial: Serial,
        sinks: &Sinks,
    ) -> io::Result<Instance> {
        let (ours, theirs) = control::pair()?;
        let (events, events_end) = pipe_with(PipeFlags::CLOEXEC)?;
        let role = Role::Process { name: process.name.clone(), index, supervisor: std::process::id() };
        let mut command = Command::new(binary);
        command.args(std::env::args_os().skip(1)).args(&process.args).envs(&process.env);
        command.env(ROLE_VARIABLE, serde_json::to_string(&role)?);
        command.env(orphans::MARK_VARIABLE, orphans::mark(serial));
        command.stdin(theirs).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;

        let pid = child.id();
        let ended = control::watch(pidfd_open(Pid::from_child(&child), PidfdFlags::NONBLOCK)?)?;
        let events_sink = sinks.events.clone();
        tokio::spawn(async move {
            let _ = ended.readable().await;
            let _ = events_sink.send(Event::Died(serial)).await;
        });
        let speaker = Speaker { process: process.name.clone(), pid, sinks: sinks.clone() };
        for (pipe, target) in [
            (child.stdout.take().map(OwnedFd::from), "stdout"),
            (child.stderr.take().map(OwnedFd::from), "stderr"),
        ] {
            let pipe = pipe.expect("it was asked for");
            tokio::spawn(speaker.clone().copy(Lines::new(pipe)?, target));
        }
        let connection = Arc::new(Connection::new(ours)?);
        tokio::spawn(speaker.listen(connection.clone(), Lines::new(events)?, serial));
        let (outbox, messages) = mpsc::unbounded_channel();
        tokio::spawn(write(connection, events_end, messages));
        Ok(Instance { child, outbox })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A process that is gone does not get it.
    pub fn tell(&self, message: ToProcess, descriptor: Option<OwnedFd>) {
        let _ = self.outbox.send((message, descriptor));
    }

    /// Kills it; its end is an event like any other's.
    pub fn kill(&mut self) {
        // It may have ended just now.
        let _ = self.child.kill();
    }

    /// How it has ended.
    pub fn bury(mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }
}

async fn write(
    connection: Arc<Connection>,
    events_end: OwnedFd,
    mut messages: mpsc::UnboundedReceiver<(ToProcess, Option<OwnedFd>)>,
) {
    // The end of a process is seen by its pidfd, not here.
    if connection.send(&Welcome, Some(events_end)).await.is_err() {
        return;
    }
    while let Some((message, descriptor)) = messages.recv().await {
        if connection.send(&message, descriptor).await.is_err() {
            return;
        }
    }
}

/// Who says what is read from the pipes of a process.
#[derive(Clone)]
struct Speaker {
    process: String,
    pid: u32,
    sinks: Sinks,
}

impl Speaker {
    /// Passes on the messages of a process and the events of its log. What it has logged before a message, arrives before that;
    /// but a message does not wait for what is logged later, or who logs without a pause would never be heard.
    async fn listen(self, connection: Arc<Connection>, mut lines: Lines, serial: Serial) {
        let (mut talks, mut logs) = (true, true);
        loop {
            let is_passed = tokio::select! {
                biased;
                message = connection.recv(), if talks => match message {
                    Ok(Some((message, _))) => {
                        self.log_earlier(&mut lines).await
                            && self.sinks.events.send(Event::Said(serial, message)).await.is_ok()
                    }
                    Ok(None) | Err(_) => { talks = false; true }
                },
                line = lines.next(), if logs => match line {
                    Some(line) => self.log(event(&line)).await,
                    None => { logs = false; true }
                },
                else => return,
            };
            if !is_passed {
                return;
            }
        }
    }

    /// Passes on what is in the pipe by now. Whether anybody is still there for it.
    async fn log_earlier(&self, lines: &mut Lines) -> bool {
        let mut left = lines.waiting();
        while left > 0 {
            let Some(line) = lines.next().await else { return true };
            left = left.saturating_sub(line.len());
            if !self.log(event(&line)).await {
                return false;
            }
        }
        true
    }

    /// Makes events of lines.
    async fn copy(self, mut lines: Lines, target: &'static str) {
        while let Some(line) = lines.next().await {
            if !self.log(log::Event::new(Level::Info, target, text(&line))).await {
                return;
            }
        }
    }

    /// Whether anybody is still there for it.
    async fn log(&self, mut event: log::Event) -> bool {
        // Who it is, the supervisor knows best.
        event.process = Some(self.process.clone());
        event.pid = self.pid;
        self.sinks.logs.send(event).await.is_ok()
    }
}

/// The lines that come through a pipe.
struct Lines {
    reader: BufReader<pipe::Receiver>,
    /// What is there of the next one.
    line: Vec<u8>,
}

impl Lines {
    fn new(pipe: OwnedFd) -> io::Result<Lines> {
        Ok(Lines { reader: BufReader::new(pipe::Receiver::from_owned_fd(pipe)?), line: Vec::new() })
    }

    /// How many bytes there are to be read without waiting.
    fn waiting(&self) -> usize {
        let in_pipe = ioctl_fionread(self.reader.get_ref()).unwrap_or(0);
        self.line.len() + self.reader.buffer().len() + usize::try_from(in_pipe).unwrap_or(usize::MAX)
    }

    /// The next line; `None`: the pipe has ended. Nothing is lost if this is not waited for.
    async fn next(&mut self) -> Option<Vec<u8>> {
        let room = (LINE_MAX - self.line.len()) as u64;
        // What was there of a line when the pipe ended or broke is the last one.
        let _ = (&mut self.reader).take(room).read_until(b'\n', &mut self.line).await;
        (!self.line.is_empty()).then(|| std::mem::take(&mut self.line))
    }
}

fn event(line: &[u8]) -> log::Event {
    serde_json::from_slice(line).unwrap_or_else(|_| log::Event::new(Level::Info, "objbus_app", text(line)))
}

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::time::Duration;

    use super::*;
    use crate::control::ToSupervisor;

    #[tokio::test]
    async fn a_message_is_heard_from_one_who_logs_without_a_pause() {
        let (ours, theirs) = control::pair().unwrap();
        let (events_end, flood) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        // Until nobody reads any more.
        std::thread::spawn(
            move || while File::from(flood.try_clone().unwrap()).write_all(&[b'\n'; 4096]).is_ok() {},
        );
        let (events, mut happening) = mpsc::channel(1);
        let (logs, mut lines) = mpsc::channel(1);
        let speaker = Speaker { process: "loud".to_owned(), pid: 1, sinks: Sinks { events, logs } };
        let connection = Arc::new(Connection::new(ours).unwrap());
        tokio::spawn(speaker.listen(connection, Lines::new(events_end).unwrap(), 7));
        lines.recv().await.unwrap();

        let process = Connection::new(theirs).unwrap();
        process.send(&ToSupervisor::Hello, None::<OwnedFd>).await.unwrap();
        let heard = async {
            loop {
                tokio::select! {
                    event = happening.recv() => return event,
                    Some(_) = lines.recv() => {}
                }
            }
        };
        let heard = tokio::time::timeout(Duration::from_secs(10), heard).await.expect("it is heard in time");
        assert!(matches!(heard, Some(Event::Said(7, ToSupervisor::Hello))));
    }
}
