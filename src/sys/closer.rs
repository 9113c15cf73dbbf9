//! What other processes sent and is not what it should be, closed where nobody waits for it.
//!
//! Closing can block for as long as its maker likes: a file of a hostile file server, a TCP connection that lingers. So a
//! descriptor that came from another process and is not known to be harmless is closed on a thread of its own. There is
//! one such thread per user with something to close: who blocks it delays the closing of that user's descriptors alone,
//! and a user that has [`PENDING_MAX`] of them waiting is not listened to any more. The threads end when they are done.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicPtr, Ordering};

use parking_lot::Mutex;

use super::{fork, signals};

/// With so many descriptors of one user still to be closed, none of it is admitted: more come from its present lanes only,
/// each of which ends with the first.
const PENDING_MAX: usize = 64;

/// A descriptor that another process sent, as which a memory is expected; whatever it is, dropping it does not block.
#[derive(Debug)]
pub(crate) struct Foreign {
    /// `None` once taken out.
    fd: Option<OwnedFd>,
    /// The user it came from.
    uid: u32,
}

impl Foreign {
    pub(crate) fn new(fd: OwnedFd, uid: u32) -> Foreign {
        Foreign { fd: Some(fd), uid }
    }

    /// Whether it is a memfd, or so much like one that the kernel alone has to do with it. Never blocks.
    pub(crate) fn is_memory(&self) -> bool {
        rustix::fs::fcntl_get_seals(self).is_ok()
    }
}

impl AsFd for Foreign {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("it is taken out by value only").as_fd()
    }
}

/// Once it is known to be harmless.
impl From<Foreign> for OwnedFd {
    fn from(mut foreign: Foreign) -> OwnedFd {
        foreign.fd.take().expect("it is taken out by value only")
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if self.fd.is_some()
            && !self.is_memory()
            && let Some(fd) = self.fd.take()
        {
            closer().close(self.uid, fd);
        }
    }
}

/// Whether so much of this user's waits to be closed that nothing more should be taken from it.
pub(crate) fn is_full(uid: u32) -> bool {
    closer().by_uid.lock().get(&uid).is_some_and(|pending| pending.fds.len() >= PENDING_MAX)
}

/// The closing threads of a process.
struct Closer {
    /// In a forked child the lock may be held for ever, and there are no threads.
    generation: u32,
    by_uid: Mutex<HashMap<u32, Pending>>,
}

/// What waits to be closed of one user's; gone with the last.
#[derive(Default)]
struct Pending {
    fds: VecDeque<OwnedFd>,
    has_thread: bool,
}

static CURRENT: AtomicPtr<Closer> = AtomicPtr::new(std::ptr::null_mut());

fn closer() -> &'static Closer {
    let current = CURRENT.load(Ordering::Acquire);
    // SAFETY: a stored closer was leaked and is never freed.
    if let Some(closer) = unsafe { current.as_ref() }
        && !fork::forked_since(closer.generation)
    {
        return closer;
    }
    let fresh = Box::new(Closer { generation: fork::generation(), by_uid: Mutex::default() });
    let fresh = Box::into_raw(fresh);
    match CURRENT.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: stored, so leaked and never freed.
        Ok(_) => unsafe { &*fresh },
        Err(other) => {
            // SAFETY: it came from a box just now and nobody has seen it.
            drop(unsafe { Box::from_raw(fresh) });
            // SAFETY: another thread of this process has stored it, so it is leaked and never freed.
            unsafe { &*other }
        }
    }
}

impl Closer {
    fn close(&'static self, uid: u32, fd: OwnedFd) {
        let mut by_uid = self.by_uid.lock();
        let pending = by_uid.entry(uid).or_default();
        pending.fds.push_back(fd);
        if !pending.has_thread {
            // Where no thread is to be had now, the next descriptor of this user asks again.
            pending.has_thread = signals::spawn("objbus-closer", move || self.run(uid)).is_ok();
        }
    }

    fn run(&self, uid: u32) {
        while let Some(fd) = self.next(uid) {
            drop(fd);
        }
    }

    fn next(&self, uid: u32) -> Option<OwnedFd> {
        let mut by_uid = self.by_uid.lock();
        let fd = by_uid.get_mut(&uid).and_then(|pending| pending.fds.pop_front());
        if fd.is_none() {
            by_uid.remove(&uid);
        }
        fd
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::sys::testing::wait_until;

    /// Users of no other test's.
    const HOSTILE: u32 = 4_000_000_001;
    const HONEST: u32 = 4_000_000_002;

    /// A descriptor whose last close blocks until the other end is closed.
    fn lingering() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        ours.set_nonblocking(true).unwrap();
        let full = std::iter::repeat_with(|| ours.write(&[0; 1 << 16])).find_map(Result::err).unwrap();
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        let linger = libc::linger { l_onoff: 1, l_linger: 3600 };
        let len = size_of::<libc::linger>() as libc::socklen_t;
        let value = (&raw const linger).cast();
        // SAFETY: the option is a `linger`, which outlives the call.
        let set =
            unsafe { libc::setsockopt(ours.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, value, len) };
        assert_eq!(set, 0);
        (ours.into(), theirs)
    }

    fn has_ended(mut stream: &UnixStream) -> bool {
        match stream.read(&mut [0]) {
            Ok(len) => len == 0,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        }
    }

    fn some_end() -> (OwnedFd, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours.into(), theirs)
    }

    #[test]
    fn a_close_that_blocks_delays_those_of_its_user_alone_until_it_is_over() {
        let (blocking, other_end) = lingering();
        drop(Foreign::new(blocking, HOSTILE));
        wait_until("the thread has taken it", || closer().by_uid.lock()[&HOSTILE].fds.is_empty());
        let (queued, first): (Vec<_>, Vec<_>) = (0..PENDING_MAX).map(|_| some_end()).unzip();
        for fd in queued {
            assert!(!is_full(HOSTILE));
            drop(Foreign::new(fd, HOSTILE));
        }
        assert!(is_full(HOSTILE) && !is_full(HONEST));
        let (fd, second) = some_end();
        drop(Foreign::new(fd, HONEST));
        wait_until("another user's is closed", || has_ended(&second));
        assert!(!first.iter().any(has_ended));
        drop(other_end);
        wait_until("all are closed", || first.iter().all(has_ended));
        wait_until("nothing is left", || !closer().by_uid.lock().contains_key(&HOSTILE));
        assert!(!is_full(HOSTILE));
    }

    #[test]
    fn a_memory_is_closed_at_once() {
        let (_mapping, memory) = crate::sys::memfd::create_sealed("test", 4096).unwrap();
        drop(Foreign::new(memory.as_fd().try_clone_to_owned().unwrap(), HOSTILE - 1));
        assert!(!closer().by_uid.lock().contains_key(&(HOSTILE - 1)));
    }
}
