//! Starts applications, reads what they say, and sees whether anything of them is left. Every wait has an end.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use objbus::{Bus, MethodTable};
use objbus_app::{AppControlProxy, AppState, AppStatus};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// Which application this binary is.
pub const APP_VARIABLE: &str = "OBJBUS_TEST_APP";
/// Where it puts what a test wants to know.
pub const DIRECTORY_VARIABLE: &str = "OBJBUS_TEST_DIRECTORY";
/// So long, everything that must happen may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How many processes the application `family` consists of: the guard, the supervisor, two processes and three programs of each.
pub const FAMILY: usize = 10;

/// A running application, with a bus and a directory of its own. Whatever is left of it is killed in the end.
pub struct Running {
    pub guard: Child,
    pub directory: PathBuf,
    lines: Receiver<String>,
    /// All lines that were read.
    pub seen: Vec<String>,
}

/// A directory of a test's own.
pub fn directory() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("objbus-app-test-{}-{count}", std::process::id()));
    // One that an earlier process of this number has left.
    let _ = fs::remove_dir_all(&directory);
    fs::DirBuilder::new().mode(0o700).create(&directory).unwrap();
    directory
}

impl Running {
    pub fn start(app: &str) -> Running {
        Running::start_in(app, directory(), |command| command)
    }

    pub fn start_in(
        app: &str,
        directory: PathBuf,
        adjust: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Running {
        Running::start_program(&std::env::current_exe().unwrap(), app, directory, adjust)
    }

    /// Another program than this one, which does not look at `app`.
    pub fn start_program(
        program: &Path,
        app: &str,
        directory: PathBuf,
        adjust: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Running {
        let mut command = Command::new(program);
        command.env(APP_VARIABLE, app).env(DIRECTORY_VARIABLE, &directory).env("OBJBUS_DIR", &directory);
        command.current_dir(&directory).stdin(Stdio::null()).stdout(Stdio::piped());
        adjust(&mut command).process_group(0);
        let mut guard = command.spawn().unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(guard.stdout.take().unwrap());
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Running { guard, directory, lines, seen: Vec::new() }
    }

    /// Starts it and waits until it has started.
    pub fn up(app: &str) -> Running {
        let mut running = Running::start(app);
        running.wait_for("Application start successful");
        running
    }

    /// Reads until a line has `part`.
    pub fn wait_for(&mut self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(part) {
                        return line;
                    }
                }
                Err(error) => panic!("no line with `{part}` ({error}), but:\n{}", self.seen.join("\n")),
            }
        }
    }

    /// Waits for its end, and reads the rest.
    pub fn wait(&mut self) -> ExitStatus {
        wait_dead(&[self.guard.id()]);
        let status = self.guard.wait().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => return status,
                Err(RecvTimeoutError::Timeout) => panic!("somebody holds the application's output"),
            }
        }
    }

    /// As [`wait`](Self::wait), and expects this exit code and nothing to be left.
    pub fn ends(&mut self, code: i32) {
        let status = self.wait();
        let ended = (status.code(), status.signal());
        assert_eq!(ended, (Some(code), None), "{}", self.seen.join("\n"));
        self.nothing_is_left();
    }

    pub fn is_dead_within(&self, time: Duration) -> bool {
        is_dead_within(self.guard.id(), time)
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.guard.id(), signal);
    }

    /// Every process of it, and all that they have started.
    pub fn pids(&self) -> Vec<u32> {
        let mark = format!("{DIRECTORY_VARIABLE}={}", self.directory.display());
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        })
        .collect()
    }

    /// As [`pids`](Self::pids), when there are so many: a program that is being executed has no environment for a moment.
    pub fn all_pids(&self, count: usize) -> Vec<u32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let pids = self.pids();
            if pids.len() == count {
                return pids;
            }
            assert!(Instant::now() < deadline, "{} processes: {pids:?}", pids.len());
            self.is_dead_within(Duration::from_millis(5));
        }
    }

    /// Its processes die by themselves, and the name on the bus is free.
    pub fn nothing_is_left(&self) {
        wait_dead(&self.pids());
        assert_eq!(self.pids(), Vec::<u32>::new(), "somebody was started while others died");
        let table = MethodTable::named("Other").method("nop", || ());
        let _published = self.bus().publish("app.test", table).expect("the name is free");
    }

    pub fn bus(&self) -> Bus {
        Bus::builder().directory(&self.directory).open().unwrap()
    }

    pub fn control(&self) -> AppControlProxy {
        self.bus().proxy("app.test").call_timeout(PATIENCE).wait_for(PATIENCE).unwrap()
    }

    pub fn status(&self) -> AppStatus {
        self.control().status().wait().unwrap()
    }

    /// The pid of a process, by its name and index.
    pub fn pid_of(&self, name: &str, index: u32) -> u32 {
        let status = self.status();
        assert_eq!(status.state, AppState::Running);
        let process = status.processes.iter().find(|process| process.name == name && process.index == index);
        process.and_then(|process| process.pid).expect("the process runs")
    }

    /// What services have written down, each with one write, in order.
    pub fn record(&self) -> Vec<String> {
        let text = fs::read_to_string(self.directory.join("record")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// What a service said with this word in front of it, for the last time.
    pub fn recorded(&self, word: &str) -> String {
        let lines = self.record();
        let line = lines.iter().rev().find_map(|line| line.strip_prefix(word)).expect("it was written down");
        line.trim().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for pid in self.pids() {
            let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
        }
        let _ = self.guard.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Lets the services of an application read it.
pub fn put(directory: &Path, name: &str) {
    fs::write(directory.join(name), "").unwrap();
}

pub fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// Waits for the ends of processes.
pub fn wait_dead(pids: &[u32]) {
    let deadline = Instant::now() + PATIENCE;
    for pid in pids {
        let is_dead = is_dead_within(*pid, deadline.saturating_duration_since(Instant::now()));
        let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        assert!(is_dead, "process {pid}, `{}`, lives on", command.trim());
    }
}

fn is_dead_within(pid: u32, time: Duration) -> bool {
    // One that cannot be opened is dead already.
    let open: Result<OwnedFd, _> = pidfd_open(Pid::from_raw(pid.cast_signed()).unwrap(), PidfdFlags::empty());
    let Ok(pidfd) = open else { return true };
    let time = Timespec::try_from(time).unwrap();
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&time)).unwrap() == 1
}
