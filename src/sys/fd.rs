//! An owned descriptor that a forked child neither keeps open nor closes twice.
//!
//! A child that kept a listener or a lane's socket open would make a dead publisher look alive. So a bitmap lists the
//! open descriptors, and the handler that `fork` runs in the child closes them all; their owners' drops there do nothing.
//! Between the system call that makes a descriptor and its entry in the bitmap another thread may fork: that copy stays
//! open in the child until exec or exit, which is why nothing in the bus takes an open socket alone as a sign of life.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use super::fork;

/// Descriptors from here on are not listed, and stay open in a child until exec or exit.
const LISTED: usize = 65_536;

static OPEN: [AtomicU64; LISTED / 64] = [const { AtomicU64::new(0) }; LISTED / 64];

/// A descriptor of this process, closed on drop, and in a forked child at the fork.
#[derive(Debug)]
pub(crate) struct Fd {
    raw: RawFd,
    /// The process it was made in.
    generation: u32,
}

impl Fd {
    #[cfg(test)]
    /// The descriptor's number. In a forked child it belongs to nobody or to a stranger.
    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.raw
    }

    /// Leaves it open for good, where closing it might block.
    pub(crate) fn leak(&mut self) {
        unlist(self.raw);
        // Every later drop finds a number of another generation.
        self.generation = u32::MAX;
    }

    /// Whether this process was forked from the one that made the descriptor.
    pub(crate) fn is_inherited(&self) -> bool {
        fork::forked_since(self.generation)
    }
}

impl From<OwnedFd> for Fd {
    fn from(fd: OwnedFd) -> Fd {
        // First the generation: in a raw clone, taking it empties the bitmap.
        let generation = fork::generation();
        let raw = fd.into_raw_fd();
        list(raw);
        Fd { raw, generation }
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        debug_assert!(!self.is_inherited(), "a descriptor made before fork() is used in the child");
        // SAFETY: `raw` is open until drop in the process that made it. Handles check `forked_since` before they come
        // here, so that a child never does; if it did, the number would be closed (EBADF) or the child's own.
        unsafe { BorrowedFd::borrow_raw(self.raw) }
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        if self.is_inherited() {
            return;
        }
        // Off the list first: listed while closed, its number could be another's when a child closes it.
        unlist(self.raw);
        // SAFETY: `raw` came from an OwnedFd in this very process and is closed nowhere else.
        drop(unsafe { OwnedFd::from_raw_fd(self.raw) });
    }
}

fn entry(raw: RawFd) -> Option<(&'static AtomicU64, u64)> {
    let n = usize::try_from(raw).ok()?;
    Some((OPEN.get(n / 64)?, 1 << (n % 64)))
}

// All accesses are Relaxed: the child reads a copy of the memory as the forking thread saw it, and no access orders
// any other memory.
fn list(raw: RawFd) {
    if let Some((word, bit)) = entry(raw) {
        word.fetch_or(bit, Ordering::Relaxed);
    }
}

fn unlist(raw: RawFd) {
    if let Some((word, bit)) = entry(raw) {
        word.fetch_and(!bit, Ordering::Relaxed);
    }
}

/// Closes every listed descriptor; only for the handler that runs in a forked child.
pub(super) fn close_all() {
    for (index, word) in OPEN.iter().enumerate() {
        let mut bits = word.swap(0, Ordering::Relaxed);
        while bits != 0 {
            let raw = index * 64 + bits.trailing_zeros() as usize;
            // SAFETY: a listed number was an Fd of the parent's at the fork, hence is the same one here; the Fd's drop
            // will not close it again in this process.
            unsafe { libc::close(raw as RawFd) };
            bits &= bits - 1;
        }
    }
}

/// Empties the list without closing: its numbers mean nothing to this process any more.
pub(super) fn forget_all() {
    OPEN.iter().for_each(|word| word.store(0, Ordering::Relaxed));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::{child_status, fork as fork_child, raw_clone};

    fn is_open(raw: RawFd) -> bool {
        // SAFETY: F_GETFD reads the flags of any number and changes nothing.
        unsafe { libc::fcntl(raw, libc::F_GETFD) != -1 }
    }

    fn some_fd() -> Fd {
        Fd::from(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()))
    }

    #[test]
    fn a_forked_child_closes_it_and_drops_nothing() {
        let fd = some_fd();
        let raw = fd.as_raw_fd();
        let child = fork_child(move || {
            let closed = !is_open(raw);
            // SAFETY: the path is a string with a NUL; the result is checked by what follows.
            let reused = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY) };
            // SAFETY: both numbers are this child's own.
            unsafe { libc::dup2(reused, raw) };
            drop(fd);
            i32::from(!(closed && is_open(raw)))
        });
        assert_eq!(child_status(child), 0);
    }

    #[test]
    fn a_raw_clone_leaves_the_number_alone() {
        let fd = some_fd();
        let raw = fd.as_raw_fd();
        let child = raw_clone(move || {
            drop(fd);
            // Once it knows what it is, a fork of its own would not close the number either.
            fork::generation();
            let (word, bit) = entry(raw).unwrap();
            i32::from(!is_open(raw) || word.load(Ordering::Relaxed) & bit != 0)
        });
        assert_eq!(child_status(child), 0);
    }

    #[test]
    fn dropping_it_closes_it() {
        let (mine, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(Fd::from(OwnedFd::from(mine)));
        let mut byte = [0];
        assert_eq!(std::io::Read::read(&mut &theirs, &mut byte).unwrap(), 0, "the other end is still open");
    }
}
