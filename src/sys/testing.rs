//! What tests of this crate share: children of several kinds, and waiting for a state.

use std::time::{Duration, Instant};

/// A child made by `fork`: it runs `f` and exits with its result.
pub(crate) fn fork(f: impl FnOnce() -> i32) -> libc::pid_t {
    // SAFETY: the child runs `f` alone and leaves by _exit; tests keep `f` to system calls and atomics, or to
    // allocation, which glibc makes usable after fork.
    let pid = unsafe { libc::fork() };
    run_if_child(pid, f)
}

/// A child made by the system call itself, so that no `pthread_atfork` handler runs. libc's locks may be held in it for
/// ever: `f` keeps to system calls and atomics.
pub(crate) fn raw_clone(f: impl FnOnce() -> i32) -> libc::pid_t {
    // SAFETY: flags without CLONE_VM give the child its own memory, and a null stack means the present one.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    run_if_child(pid as libc::pid_t, f)
}

fn run_if_child(pid: libc::pid_t, f: impl FnOnce() -> i32) -> libc::pid_t {
    assert_ne!(pid, -1, "no child: {}", std::io::Error::last_os_error());
    if pid == 0 {
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or(101);
        // SAFETY: _exit ends the child without running the test harness's own exit handlers.
        unsafe { libc::_exit(code) };
    }
    pid
}

/// Waits for the child's end: its exit code, or 128 + the signal that killed it.
pub(crate) fn child_status(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: `status` outlives the call, and `pid` is a child that nobody else waits for.
    let reaped = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(reaped, pid);
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) }
}

/// Looks until `state` holds; fails the test after half a minute.
pub(crate) fn wait_until(what: &str, mut state: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !state() {
        assert!(Instant::now() < end, "not within half a minute: {what}");
        std::thread::yield_now();
    }
}

/// Runs one test of this binary in a process of its own with `features` switched off.
pub(crate) fn rerun_without(features: &str, test: &str) {
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--test-threads=1"])
        .env("OBJBUS_TEST_DISABLE", features)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&status.stdout);
    assert!(status.status.success(), "{test} without {features}:\n{said}");
    assert!(said.contains("1 passed"), "{test} is not a test:\n{said}");
}
