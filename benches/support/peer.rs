//! The second process: the bench binary run again, told its role by an environment variable.
//!
//! Never a bare fork: the parent may have threads. The peer is pinned before its `main` proper begins, is killed when the parent
//! dies, says when it is ready on its standard output, and leaves when its standard input ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Child, Command, Stdio, exit};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

use super::placement::{Placement, pin};

/// `<parent's pid> <cpu> <role> <argument>...`, separated by blanks.
const VARIABLE: &str = "OBJBUS_BENCH_PEER";
/// The line by which the peer says that it is ready.
const READY: &str = "ready";

/// The parent's handle; dropping it ends the peer and waits for its end.
pub struct Peer {
    child: Child,
}

impl Peer {
    /// Starts this binary again as `role` on the answering CPU of `placement`, and returns when it has said that it is ready.
    ///
    /// The kernel ends the peer with the *thread* that started it: call this from the main thread.
    pub fn start(placement: Placement, role: &str, arguments: &[String], lent: &[&OwnedFd]) -> Peer {
        let inherit = |flags| lent.iter().for_each(|fd| fcntl_setfd(fd, flags).expect("an open descriptor"));
        let this = std::env::current_exe().expect("Linux knows the path of a running program");
        let parent = getpid().as_raw_nonzero();
        let mut command = Command::new(this);
        let told = format!("{parent} {} {role} {}", placement.peer_cpu(), arguments.join(" "));
        command.env(VARIABLE, told).stdin(Stdio::piped()).stdout(Stdio::piped());
        inherit(FdFlags::empty());
        let mut child = command.spawn().expect("a program that runs can be started again");
        inherit(FdFlags::CLOEXEC);
        let output = child.stdout.take().expect("stdout was piped");
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("reading from the peer");
        assert_eq!(line.trim(), READY, "the peer `{role}` ended before it was ready");
        Peer { child }
    }

    /// Its process id, for [`super::counters`].
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It may be waiting for its parent in shared memory instead of reading its input, so closing that is not enough.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What this process is to do if it is a peer.
pub struct Role {
    /// The role's name, as given to [`Peer::start`].
    pub name: String,
    /// Its arguments.
    pub arguments: Vec<String>,
}

impl Role {
    /// This process' role, pinned and bound to its parent's life; `None` in the process that the user started.
    pub fn of_this_process() -> Option<Role> {
        let told = std::env::var(VARIABLE).ok()?;
        let mut words = told.split_whitespace().map(str::to_owned);
        let mut next = || words.next().expect("the parent writes pid, cpu and role");
        let (parent, cpu, name) = (next(), next(), next());
        die_with(parent.parse().expect("a process id"));
        pin(cpu.parse().expect("a CPU number"));
        Some(Role { name, arguments: words.collect() })
    }

    /// The descriptor lent under number `argument`.
    ///
    /// # Safety
    ///
    /// The argument is the number of a descriptor that the parent lent, and it is taken once.
    pub unsafe fn take_fd(&self, argument: usize) -> OwnedFd {
        let raw: RawFd = self.arguments[argument].parse().expect("a descriptor's number");
        // SAFETY: it is open, since inherited, and nobody else in this process owns it, as the caller vouches.
        unsafe { OwnedFd::from_raw_fd(raw) }
    }
}

/// How [`Peer::start`] is told the number of a lent descriptor.
pub fn fd_argument(fd: &OwnedFd) -> String {
    fd.as_raw_fd().to_string()
}

/// Tells the parent that this peer is ready.
pub fn ready() {
    let mut out = std::io::stdout();
    writeln!(out, "{READY}").and_then(|()| out.flush()).expect("the parent reads this line");
}

/// Blocks until the parent drops its [`Peer`] or ends: what an owner's main thread does while its pool answers calls.
pub fn wait_for_parent() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Asks the kernel to end this process with its parent, which may be gone by now: then nobody would send the signal.
fn die_with(parent: i32) {
    set_parent_process_death_signal(Some(Signal::KILL)).expect("every process may ask for this");
    if getppid().map(Pid::as_raw_nonzero).map(i32::from) != Some(parent) {
        exit(0);
    }
}
