//! What tests ask of the kernel: children by fork, limits, and what other processes do with their time.

use std::time::{Duration, Instant};

use objbus::{Blob, Call, MethodTable, Untyped};

use super::{Child, Held, PATIENCE, Place, bus_at, hear, held_by, say, start, wait_until};

/// The object that most tests publish.
pub fn table() -> MethodTable {
    MethodTable::named("Math")
        .method("pow", |x: f64, y: f64| x.powf(y))
        .method("size", |blob: Blob| blob.len() as u64)
        .method("pid", std::process::id)
        .method("nap", |ms: u64| {
            let (_keep, nobody) = std::sync::mpsc::channel::<()>();
            let _ = nobody.recv_timeout(Duration::from_millis(ms));
        })
        .method("caller", || objbus::CallContext::current().map(|call| (call.pid(), call.uid())))
}

/// The role of an owner: publishes that object as `math`, and answers each line with how many callers it has.
pub fn own_math(directory: &str) -> ! {
    let published = bus_at(directory).publish("math", table()).expect("the name is free");
    say("ready");
    loop {
        hear();
        say(published.callers().to_string());
    }
}

/// Starts the role `owner` and waits until it has published.
pub fn math_owner(place: &Place) -> Child {
    let owner = start("owner", &[place.text()]);
    owner.expect("ready");
    owner
}

/// The third power of 2, which is 8.
pub fn pow(math: &Untyped) -> Call<f64> {
    math.call("pow", &(2.0, 3.0))
}

/// A child made by `fork`, with the handlers that libc runs for it: it runs `f` and exits with its result.
///
/// For a process whose other threads are the library's: a lock that another thread holds is held for ever in the child.
pub fn fork(f: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs `f` and leaves by _exit; allocation works in a child of glibc's fork.
    let pid = unsafe { libc::fork() };
    run_if_child(pid, f)
}

/// A child made by the system call itself, so that no handler runs. `f` keeps to system calls and atomics.
pub fn raw_clone(f: impl FnOnce() -> i32) -> i32 {
    // SAFETY: without CLONE_VM the child has memory of its own, and a null stack means the present one.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    run_if_child(pid as i32, f)
}

fn run_if_child(pid: i32, f: impl FnOnce() -> i32) -> i32 {
    assert_ne!(pid, -1, "no child: {}", std::io::Error::last_os_error());
    if pid == 0 {
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or(101);
        // SAFETY: _exit runs nothing of the parent's in the child.
        unsafe { libc::_exit(code) };
    }
    pid
}

/// Waits for the end of a child of [`fork`] or [`raw_clone`]: its exit code, or 128 + the signal that killed it.
pub fn exit_code(pid: i32) -> i32 {
    let mut status = 0;
    wait_until("the forked child ends", || {
        // SAFETY: `status` outlives the call, and nobody else waits for this child.
        unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) == pid }
    });
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) }
}

/// Holds on until killed.
pub fn pause_for_ever() -> ! {
    loop {
        // SAFETY: it sleeps until a signal comes.
        unsafe { libc::pause() };
    }
}

/// A process that is no child of the test's, killed when this is dropped.
pub struct Orphan(pub i32);

impl Drop for Orphan {
    fn drop(&mut self) {
        // SAFETY: kill touches no memory. The orphan sleeps for ever, so the number is still its own.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
    }
}

/// Sets this process' soft limit of descriptors; the one before.
pub fn set_fd_limit(soft: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a whole rlimit that outlives them.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        let before = std::mem::replace(&mut limit.rlim_cur, soft);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
        before
    }
}

/// One more than the highest descriptor open: with this as the limit, and no gap below it, none can be opened.
pub fn fds_end() -> u64 {
    let numbers = std::fs::read_dir("/proc/self/fd").expect("/proc is mounted").flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
    numbers.max().unwrap_or(2) + 1
}

/// Opens descriptors until none is left, and leaves `spare` of them unused.
pub fn hoard_fds(spare: usize) -> Vec<std::fs::File> {
    let mut hoard: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    hoard.truncate(hoard.len().saturating_sub(spare));
    hoard
}

/// Processor time that a process has used, to a clock tick.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    // The name, in parentheses, may contain spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum();
    // SAFETY: it only reads a constant of the system's.
    let per_s = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
    Duration::from_millis(ticks * 1000 / per_s)
}

/// Whether a process holds no more than before. It may have held something in passing when `before` was looked up.
pub fn is_within(now: Held, before: Held) -> bool {
    now.fds <= before.fds && now.mappings <= before.mappings
}

/// Waits until process `pid` holds no more than before; says what it holds if it does not come to that.
pub fn wait_for_release(pid: u32, before: Held) {
    let began = Instant::now();
    while !is_within(held_by(pid), before) {
        if began.elapsed() > PATIENCE {
            let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            let fds: Vec<_> = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()).collect();
            panic!("process {pid} holds {:?}, more than {before:?}: {fds:?}", held_by(pid));
        }
        std::thread::yield_now();
    }
}

/// The lines of /proc/<pid>/task/*/status that begin with `key`, with the thread's name.
pub fn of_threads(pid: u32, key: &str) -> Vec<(String, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives").flatten();
    let value = |text: &str, key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    };
    let statuses = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    statuses.map(|status| (value(&status, "Name"), value(&status, key))).collect()
}

/// Waits until all threads of a process are in one state of /proc/<pid>/status.
pub fn wait_for_threads(pid: u32, expected: char) {
    let all = || of_threads(pid, "State").iter().all(|(_, state)| state.starts_with(expected));
    wait_until(&format!("all threads of {pid} are in state {expected}"), all);
}

/// Waits until all threads of a process sleep: none of them is in the middle of anything.
pub fn wait_for_rest(pid: u32) {
    wait_for_threads(pid, 'S');
}

/// The memory of a process that is in use, in KiB.
pub fn resident_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it says its size");
    line.split_whitespace().next().and_then(|kb| kb.parse().ok()).expect("a number")
}

/// How often the threads of a process have gone to sleep so far.
pub fn voluntary_switches(pid: u32) -> u64 {
    of_threads(pid, "voluntary_ctxt_switches").iter().filter_map(|(_, n)| n.parse::<u64>().ok()).sum()
}

pub fn is_root() -> bool {
    // SAFETY: it only reads.
    unsafe { libc::geteuid() == 0 }
}

/// Runs it `rounds` times and on until one run takes less than `bar`, which on a loaded machine few may do; what the quickest
/// took.
pub fn expect_quick(
    what: &str,
    rounds: usize,
    bar: Duration,
    mut round: impl FnMut() -> Duration,
) -> Duration {
    let mut best = Duration::MAX;
    for done in 0..50 {
        if done >= rounds && best < bar {
            break;
        }
        best = best.min(round());
    }
    println!("{what}: {best:?} at best");
    assert!(best < bar, "{what}: {best:?} at best, and not below {bar:?}");
    best
}
