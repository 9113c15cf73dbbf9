//! Doorbells: eventfds that one side rings and the other only ever sees through edge-triggered epoll.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;
use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};
use rustix::io::Errno;

use super::fd::Fd;

/// A doorbell: never read, so that each ring is an edge.
#[derive(Debug)]
pub(crate) struct Doorbell(Fd);

impl Doorbell {
    /// Makes one. Errors: `MFILE`, `NFILE`, `NOMEM`.
    pub(crate) fn create() -> Result<Doorbell, Errno> {
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Fd::from).map(Doorbell)
    }

    /// Takes one made by another process, or says what is wrong with it.
    ///
    /// A pipe or a file of a user's file system would let that process block who rings it. The maker can still make an
    /// eventfd blocking later and fill it: then it hangs its own caller, and nobody else.
    pub(crate) fn receive(fd: impl AsFd + Into<OwnedFd>) -> Result<Doorbell, &'static str> {
        // Without a sync: the type is known here, and a file server that its maker runs might never answer.
        let how = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(&fd, "", how, StatxFlags::TYPE)
            .map_err(|_| "the doorbell cannot be examined")?;
        // What has no type at all is an anonymous inode, as eventfds are.
        if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::Unknown {
            return Err("the doorbell is not an eventfd");
        }
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(|_| "the doorbell cannot be examined")?;
        if !flags.contains(OFlags::NONBLOCK) {
            return Err("the doorbell would block");
        }
        // Of the anonymous inodes, timers and the like take no 8 bytes of 0, which ring an eventfd for nothing.
        if rustix::io::write(&fd, &0_u64.to_ne_bytes()) != Ok(8) {
            return Err("the doorbell is not an eventfd");
        }
        Ok(Doorbell(Fd::from(fd.into())))
    }

    /// Rings. Full means that the other side has an edge to see already; a dead maker needs no bell.
    pub(crate) fn ring(&self) {
        let rung = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
        debug_assert!(matches!(rung, Ok(8) | Err(Errno::AGAIN)), "ringing a doorbell: {rung:?}");
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::epoll;

    use super::*;

    fn dup(doorbell: &Doorbell) -> OwnedFd {
        rustix::io::fcntl_dupfd_cloexec(doorbell, 0).unwrap()
    }

    fn edges(set: &OwnedFd) -> usize {
        let mut events = Vec::with_capacity(4);
        epoll::wait(set, rustix::buffer::spare_capacity(&mut events), Some(&Default::default())).unwrap()
    }

    #[test]
    fn each_ring_is_an_edge_and_nothing_is_read() {
        let ours = Doorbell::create().unwrap();
        let theirs = Doorbell::receive(dup(&ours)).unwrap();
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let data = epoll::EventData::new_u64(0);
        epoll::add(&set, &ours, data, epoll::EventFlags::IN | epoll::EventFlags::ET).unwrap();
        assert_eq!(edges(&set), 0);
        for _ in 0..3 {
            theirs.ring();
            theirs.ring();
            assert_eq!(edges(&set), 1);
            assert_eq!(edges(&set), 0);
        }
    }

    #[test]
    fn a_full_doorbell_does_not_block() {
        let bell = Doorbell::create().unwrap();
        rustix::io::write(&bell, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        bell.ring();
    }

    #[test]
    fn a_pipe_and_a_blocking_eventfd_are_refused() {
        let (_, pipe) = rustix::pipe::pipe().unwrap();
        assert_eq!(Doorbell::receive(pipe).unwrap_err(), "the doorbell is not an eventfd");
        let blocking = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        assert_eq!(Doorbell::receive(blocking).unwrap_err(), "the doorbell would block");
    }
}
