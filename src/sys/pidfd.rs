//! Whether a process has ended, without trusting its number.

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use super::fd::Fd;
use super::features::{self, Feature};

/// A descriptor of the process that has the number `pid` now.
///
/// Errors: `SRCH` when there is none, `NOSYS` or `PERM` where the kernel or a filter has no pidfds, `MFILE`, `NFILE`.
pub(crate) fn open(pid: Pid) -> Result<Fd, Errno> {
    if features::disabled(Feature::PidfdOpen) {
        return Err(Errno::NOSYS);
    }
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).map(Fd::from)
}

/// Whether the process has ended, with all of its threads; one that nobody has reaped yet counts as ended.
pub(crate) fn is_dead(pidfd: impl AsFd) -> bool {
    poll_now(&pidfd, PollFlags::IN).contains(PollFlags::IN)
}

/// What `poll` reports at once.
pub(super) fn poll_now(fd: &impl AsFd, events: PollFlags) -> PollFlags {
    let mut fds = [PollFd::new(fd, events)];
    // A failure (no memory) reports nothing, as if nothing had happened yet: the caller looks again some time.
    let _ = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    fds[0].revents()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::{child_status, fork, wait_until};

    #[test]
    fn a_process_is_dead_from_its_exit_on() {
        let child = fork(|| {
            // SAFETY: it sleeps until the signal that ends it.
            unsafe { libc::pause() }
        });
        let pidfd = open(Pid::from_raw(child).unwrap()).unwrap();
        assert!(!is_dead(&pidfd));
        rustix::process::kill_process(Pid::from_raw(child).unwrap(), rustix::process::Signal::KILL).unwrap();
        wait_until("the child's death shows", || is_dead(&pidfd));
        child_status(child);
        assert!(is_dead(&pidfd), "reaping it brought it back");
    }
}
