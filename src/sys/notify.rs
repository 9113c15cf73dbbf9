//! The owner's end of a socket by which a caller's tasks are woken, made by the caller.
//!
//! It must be one end of a pair of Unix stream sockets: whatever else is done with those, a send that does not wait cannot block. And
//! one made by the caller itself: the byte would else be said, in the owner's name, to whomever the caller is connected with.

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::closer::Foreign;
use super::fd::Fd;
use super::socket::{self, Credentials};

/// Where a caller's tasks are woken.
#[derive(Debug)]
pub(crate) struct Notify {
    fd: Fd,
    /// The user it came from.
    uid: u32,
}

impl Notify {
    /// Takes what the process `peer` sent. An error for what no honest one sends; `None` for a pair that is another process's, or that
    /// was made under another user than `peer` was met as.
    pub(crate) fn receive(fd: Foreign, peer: Credentials) -> Result<Option<Notify>, Errno> {
        let is_unix = sockopt::socket_domain(&fd)? == AddressFamily::UNIX;
        if !is_unix || sockopt::socket_type(&fd)? != SocketType::STREAM {
            return Err(Errno::PROTOTYPE);
        }
        if socket::peer_credentials(&fd)? != peer {
            return Ok(None);
        }
        Ok(Some(Notify { fd: Fd::from(std::os::fd::OwnedFd::from(fd)), uid: peer.uid }))
    }

    /// Wakes whoever reads at the other end; `false`: nobody does. Full means that there is something to read.
    pub(crate) fn ring(&self, byte: u8) -> bool {
        matches!(socket::send(&self.fd, &[byte], &[]), Ok(()) | Err(Errno::AGAIN))
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        if self.fd.is_inherited() {
            return;
        }
        // The last close of a socket closes what lies in it unread, which may be anything. After this nothing more comes in.
        socket::shutdown(&self.fd);
        if rustix::io::ioctl_fionread(&self.fd) == Ok(0) {
            return;
        }
        // Another descriptor of it makes that one's close the last.
        match rustix::io::fcntl_dupfd_cloexec(&self.fd, 0) {
            Ok(last) => drop(Foreign::new(last, self.uid)),
            Err(_) => self.fd.leak(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    fn foreign(fd: impl Into<OwnedFd>) -> Foreign {
        Foreign::new(fd.into(), 4_000_000_010)
    }

    fn own() -> Credentials {
        let (one, _other) = socket::pair().unwrap();
        socket::peer_credentials(&one).unwrap()
    }

    #[test]
    fn a_pair_of_ones_own_is_taken_and_full_or_closed_never_blocks() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let notify = Notify::receive(foreign(theirs), own()).unwrap().unwrap();
        assert!((0..100_000).all(|_| notify.ring(1)), "full counts as rung");
        drop(ours);
        assert!(!notify.ring(1));
    }

    #[test]
    fn what_is_no_such_socket_is_refused() {
        let refused = |fd: OwnedFd| Notify::receive(foreign(fd), own()).unwrap_err();
        assert_eq!(refused(std::fs::File::open("/dev/null").unwrap().into()), Errno::NOTSOCK);
        assert_eq!(refused(rustix::pipe::pipe().unwrap().1), Errno::NOTSOCK);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(refused(listener.into()), Errno::PROTOTYPE);
        assert_eq!(refused(UnixDatagram::pair().unwrap().0.into()), Errno::PROTOTYPE);
    }

    #[test]
    fn anothers_socket_is_not_used() {
        let other = Credentials { pid: 1, ..own() };
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(Notify::receive(foreign(ours), other).unwrap().is_none());
    }
}
