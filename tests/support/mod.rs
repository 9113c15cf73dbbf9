//! What two-process tests share: the other side as a real process, and waiting for states instead of sleeping.
//!
//! The other side is this test binary again: [`start`] runs it with the one test `role`, which every such binary has and
//! which does what [`role`] says. The two sides talk in lines: the child's [`say`] is the parent's [`Child::expect`],
//! the parent's [`Child::tell`] the child's [`hear`].
#![allow(dead_code)] // each test binary uses its part

pub mod system;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use objbus::{Bus, CallError, Executed};

/// How long anything may take on a loaded machine before a test calls it hung.
pub const PATIENCE: Duration = Duration::from_secs(30);
const ROLE: &str = "OBJBUS_TEST_ROLE";
const ARGUMENTS: &str = "OBJBUS_TEST_ARGUMENTS";
const MARK: &str = "objbus>";

/// What this process was started to be, with its arguments; `None` in the test itself.
pub fn role() -> Option<(String, Vec<String>)> {
    let role = std::env::var(ROLE).ok()?;
    let arguments = std::env::var(ARGUMENTS).unwrap_or_default();
    // SAFETY: prctl with these arguments touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    Some((role, arguments.split('\u{1f}').filter(|text| !text.is_empty()).map(str::to_owned).collect()))
}

/// Tells the parent.
pub fn say(line: impl AsRef<str>) {
    let mut out = std::io::stdout().lock();
    // The test runner writes to the same stream, and not in whole lines.
    let _ = writeln!(out, "\n{MARK}{}", line.as_ref());
    let _ = out.flush();
}

/// The parent's next line; the process ends when there is none.
pub fn hear() -> String {
    let mut line = String::new();
    match std::io::stdin().lock().read_line(&mut line) {
        Ok(n) if n > 0 => line.trim_end().to_owned(),
        _ => std::process::exit(0),
    }
}

/// Stays until the parent closes its end or kills us.
pub fn stay() -> ! {
    loop {
        hear();
    }
}

/// The other side.
pub struct Child {
    process: std::process::Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

/// Starts this test binary in `role`.
pub fn start(role: &str, arguments: &[&str]) -> Child {
    start_with(role, arguments, |_| {})
}

/// As [`start`], with changes to the command: environment, limits.
pub fn start_with(role: &str, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("the test binary has a path"));
    command.args(["role", "--exact", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).env(ARGUMENTS, arguments.join("\u{1f}"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    change(&mut command);
    let mut process = command.spawn().expect("the test binary starts");
    let (to, lines) = channel();
    let output = process.stdout.take().expect("it was piped");
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Some(line) = line.strip_prefix(MARK)
                && to.send(line.to_owned()).is_err()
            {
                break;
            }
        }
    });
    Child { input: process.stdin.take(), process, lines }
}

impl Child {
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The child's next line.
    pub fn hear(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|error| panic!("process {} says nothing: {error}", self.pid()))
    }

    /// The next line if it comes within `span`.
    pub fn hear_within(&self, span: Duration) -> Option<String> {
        self.lines.recv_timeout(span).ok()
    }

    /// Waits for the line `expected`, which must be the next.
    pub fn expect(&self, expected: &str) {
        assert_eq!(self.hear(), expected, "from process {}", self.pid());
    }

    /// Tells the child.
    pub fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("the child's input is open");
        writeln!(input, "{line}").and_then(|()| input.flush()).expect("the child reads");
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill touches no memory; the child is not reaped yet, so its pid is its own.
        assert_eq!(unsafe { libc::kill(self.pid() as i32, signal) }, 0, "signalling process {}", self.pid());
    }

    /// Stops it and waits until all of it stands still.
    pub fn stop(&self) {
        self.signal(libc::SIGSTOP);
        system::wait_for_threads(self.pid(), 'T');
    }

    /// Kills it with SIGKILL and reaps it; when the kill was sent.
    pub fn kill(&mut self) -> Instant {
        let at = Instant::now();
        self.signal(libc::SIGKILL);
        let _ = self.process.wait();
        at
    }

    /// Closes its input, so that it ends by itself, and waits for that.
    pub fn finish(mut self) -> ExitStatus {
        drop(self.input.take());
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().expect("waiting for a child") {
                return status;
            }
            assert!(Instant::now() < until, "process {} does not end", self.pid());
            std::thread::yield_now();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A run-time directory of a test's own, gone with it.
pub struct Place(PathBuf);

/// Makes one.
pub fn place() -> Place {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("objbus-test-{}-{count}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    Place(path)
}

impl Place {
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path as a role's argument.
    pub fn text(&self) -> &str {
        self.0.to_str().expect("the path is text")
    }

    pub fn bus(&self) -> Bus {
        bus_at(self.text())
    }

    /// The files in it, sorted.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The bus in the directory that a role was told.
pub fn bus_at(path: &str) -> Bus {
    Bus::builder().directory(path).open().expect("a directory of the test's own can be used")
}

/// Waits for `state`, at most [`PATIENCE`]; how long it took.
pub fn wait_until(what: &str, mut state: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !state() {
        assert!(began.elapsed() < PATIENCE, "still not so after {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
    began.elapsed()
}

/// Lets a call time out after it has begun, which on a loaded machine takes some patience; what it got then.
pub fn time_out_begun<T>(call: impl Fn(Duration) -> Result<T, CallError>) -> Result<T, CallError> {
    let mut span = Duration::from_millis(200);
    loop {
        match call(span) {
            Err(CallError::DeadlineExceeded { executed: Executed::No }) => span *= 2,
            other => return other,
        }
        assert!(span < PATIENCE, "it is never begun");
    }
}

/// Wakes a thread that is parked.
pub struct Unpark(pub std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The smallest executor there is: polls a future on this thread until it is done.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let began = Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        assert!(began.elapsed() < 2 * PATIENCE, "a future never ends");
        std::thread::park_timeout(PATIENCE);
    }
}

/// What a process holds: its descriptors and its shared mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub fds: usize,
    pub mappings: usize,
}

/// What process `pid` holds at this moment.
pub fn held_by(pid: u32) -> Held {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    Held { fds, mappings: maps.lines().filter(|line| line.contains("objbus-")).count() }
}
