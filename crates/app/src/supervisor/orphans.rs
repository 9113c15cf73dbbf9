//! Who is left over: children that nobody waits for, and the children of the dead. A subreaper is handed whatever its
//! descendants leave behind.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid};

/// Marks a process of the application and everything it starts, by the variable's value: [`mark`].
pub(crate) const MARK_VARIABLE: &str = "OBJBUS_APP_INSTANCE";

/// From now on the orphans among this process' descendants become its children.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// The value of [`MARK_VARIABLE`] for one process that this supervisor starts.
pub(crate) fn mark(serial: u64) -> String {
    format!("{}.{serial}", std::process::id())
}

/// Kills every descendant of this process, and returns when there is none: what a child leaves behind becomes a child in
/// its turn.
pub(crate) fn kill_all() {
    loop {
        // One that may not be killed, a program of another user, is not waited for either.
        let killed = children().into_iter().filter(|child| kill_process(*child, Signal::KILL).is_ok());
        let killed: Vec<Pid> = killed.collect();
        if killed.is_empty() {
            return;
        }
        for child in killed {
            // An error means that somebody else has waited for it.
            while matches!(waitpid(Some(child), WaitOptions::empty()), Err(Errno::INTR)) {}
        }
    }
}

/// What a look at the children has found.
pub(crate) struct Swept {
    /// How many were killed.
    pub killed: usize,
    /// Who has no mark. One that is being executed at this moment has none either, so that it takes a second look.
    pub suspects: Vec<u32>,
}

/// Kills the children that are not known and bear the mark of nobody who lives, and buries the dead among them. Who bears no
/// mark at all is killed if it was suspect before. The death of one makes its own children ours, which SIGCHLD says.
pub(crate) fn sweep(is_known: impl Fn(u32) -> bool, lives: impl Fn(&str) -> bool, suspects: &[u32]) -> Swept {
    let mut swept = Swept { killed: 0, suspects: Vec::new() };
    for child in children() {
        let pid = child.as_raw_nonzero().get().unsigned_abs();
        if is_known(pid) {
            continue;
        }
        match mark_of(pid) {
            Some(mark) if lives(&mark) => {}
            None if !suspects.contains(&pid) && !is_dead(pid) => swept.suspects.push(pid),
            // It may have ended just now.
            _ if !is_dead(pid) => swept.killed += usize::from(kill_process(child, Signal::KILL).is_ok()),
            _ => {}
        }
        // Nothing to bury yet, or somebody else's: both are fine.
        let _ = waitpid(Some(child), WaitOptions::NOHANG);
    }
    swept
}

/// The pids of the descendants of a process, as far as they can be seen while they come and go.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let mut found = children_of(pid);
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children_of(*pid));
        next += 1;
    }
    found
}

fn children() -> Vec<Pid> {
    let pids = children_of(std::process::id());
    pids.into_iter().filter_map(|pid| Pid::from_raw(pid.cast_signed())).collect()
}

/// Each thread has the children that it has started; adopted ones are with any of them.
fn children_of(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// What the environment says that a process was started with; `None` where there is none or it cannot be read.
fn mark_of(pid: u32) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let prefix = format!("{MARK_VARIABLE}=");
    let mut variables = environment.split(|byte| *byte == 0);
    let mark = variables.find_map(|variable| variable.strip_prefix(prefix.as_bytes()))?;
    Some(String::from_utf8_lossy(mark).into_owned())
}

/// Whether only its exit code is left of it.
fn is_dead(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything, in parentheses.
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}
