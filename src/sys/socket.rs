//! SOCK_SEQPACKET Unix sockets: whole messages, descriptors with them, and who the other side is.
//!
//! Nothing here ever blocks, and every descriptor is close-on-exec.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::event::PollFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::process::Pid;

use super::closer::Foreign;
use super::fd::Fd;
use super::features::{self, Feature};
use super::pidfd;

/// The most descriptors that one message carries here.
pub(crate) const MAX_FDS: usize = 16;

/// Where the kernel maps users that have no number in this user namespace; it names nobody.
pub(crate) const OVERFLOW_UID: u32 = 65_534;

#[cfg(not(any(target_arch = "sparc", target_arch = "sparc64")))]
const SO_PEERPIDFD: libc::c_int = 77;
#[cfg(any(target_arch = "sparc", target_arch = "sparc64"))]
const SO_PEERPIDFD: libc::c_int = 0x56;

#[cfg(not(any(target_arch = "sparc", target_arch = "sparc64")))]
const SO_PEERGROUPS: libc::c_int = 59;
#[cfg(any(target_arch = "sparc", target_arch = "sparc64"))]
const SO_PEERGROUPS: libc::c_int = 0x3d;

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// Two connected ends.
pub(crate) fn pair() -> Result<(Fd, Fd), Errno> {
    let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
    Ok((Fd::from(a), Fd::from(b)))
}

/// Whether what another process sent is one end of such a pair, or so much like one. Never blocks.
pub(crate) fn is_local(fd: &Foreign) -> bool {
    use rustix::net::sockopt::{socket_domain, socket_type};
    socket_domain(fd) == Ok(AddressFamily::UNIX) && socket_type(fd) == Ok(SocketType::SEQPACKET)
}

/// The same as a stream, of which one read takes all that was sent.
#[cfg(feature = "tokio")]
pub(crate) fn stream_pair() -> Result<(Fd, Fd), Errno> {
    let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
    Ok((Fd::from(a), Fd::from(b)))
}

fn socket() -> Result<Fd, Errno> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None).map(Fd::from)
}

/// Binds a new socket at `path`, which must not exist, and listens there with room for `backlog` connections.
///
/// Errors: `NAMETOOLONG` over 107 bytes, `ADDRINUSE`, what the directory says, `MFILE`.
pub(crate) fn listen_at(path: &Path, backlog: i32) -> Result<Fd, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let fd = socket()?;
    rustix::net::bind(&fd, &address)?;
    rustix::net::listen(&fd, backlog)?;
    Ok(fd)
}

/// Connects to the socket at `path`, or fails at once: `AGAIN` when its backlog is full, `CONNREFUSED` when nobody listens.
pub(crate) fn connect(path: &Path) -> Result<Fd, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let fd = socket()?;
    retry_on_intr(|| rustix::net::connect(&fd, &address))?;
    Ok(fd)
}

/// The next connection waiting at a listener. Errors: `AGAIN` for none, `MFILE`/`NFILE` (it stays in the queue).
pub(crate) fn accept(listener: impl AsFd) -> Result<Fd, Errno> {
    retry_on_intr(|| rustix::net::accept_with(&listener, FLAGS)).map(Fd::from)
}

/// Ends both directions for every process that holds the socket; harmless if that has happened.
pub(crate) fn shutdown(socket: impl AsFd) {
    let _ = rustix::net::shutdown(socket, Shutdown::Both);
}

/// Ends our direction for every process that holds the socket: the peer reads what was sent, then the end.
pub(crate) fn shutdown_sending(socket: impl AsFd) {
    let _ = rustix::net::shutdown(socket, Shutdown::Write);
}

/// Sends one message, whole or not at all, with up to [`MAX_FDS`] descriptors.
///
/// Errors: `AGAIN` for a full queue, `PIPE`/`CONNRESET` for a peer that is gone, `TOOMANYREFS` for too many descriptors under
/// way, `MSGSIZE`, `INVAL` for more than [`MAX_FDS`].
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if fds.len() > MAX_FDS || (!fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds))) {
        return Err(Errno::INVAL);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = retry_on_intr(|| rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags))?;
    debug_assert_eq!(sent, bytes.len(), "a message is sent whole");
    Ok(())
}

/// One message received.
#[derive(Debug)]
pub(crate) struct Received {
    /// Its length in bytes; 0 is the end of the connection, or an empty message of a peer that breaks the protocol.
    pub(crate) len: usize,
    /// The descriptors that came with it, none if anything is missing.
    pub(crate) fds: Vec<Foreign>,
    /// Bytes or descriptors were lost: the message is not to be used.
    pub(crate) truncated: bool,
    /// Descriptors were lost because this process or the system can have no more.
    pub(crate) no_fds: bool,
}

/// Receives one message with at most `max_fds` descriptors.
///
/// Errors: `AGAIN` for none; `CONNRESET`, once, when the peer closed with messages of ours unread (more of its own may follow).
pub(crate) fn recv(socket: impl AsFd, buf: &mut [u8], max_fds: usize) -> Result<Received, Errno> {
    assert!(max_fds <= MAX_FDS, "a message carries at most {MAX_FDS} descriptors");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message =
        retry_on_intr(|| rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(buf)], &mut control, flags))?;
    let mut fds = drain(&socket, &mut control);
    let lost = message.flags.contains(ReturnFlags::CTRUNC);
    let truncated = lost || message.flags.contains(ReturnFlags::TRUNC) || fds.len() > max_fds;
    // The room was for MAX_FDS: with fewer here, it was not the room that was short.
    let no_fds = lost && fds.len() < MAX_FDS;
    if truncated {
        fds.clear();
    }
    Ok(Received { len: message.bytes, fds, truncated, no_fds })
}

fn drain(socket: impl AsFd, control: &mut RecvAncillaryBuffer<'_>) -> Vec<Foreign> {
    let rights = |message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    };
    let foreign = |fd| {
        let uid = peer_credentials(&socket).map_or(OVERFLOW_UID, |who| who.uid);
        Foreign::new(fd, uid)
    };
    control.drain().filter_map(rights).flatten().map(foreign).collect()
}

/// Who made the other end, or listens behind it, as of then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Process id, 0 if it lies outside this pid namespace. For display only: numbers are used again.
    pub(crate) pid: u32,
    /// Effective user; [`OVERFLOW_UID`] is nobody.
    pub(crate) uid: u32,
    /// Effective group.
    pub(crate) gid: u32,
}

/// The credentials of the peer (`SO_PEERCRED`): of who connected, made the pair, or called `listen`.
pub(crate) fn peer_credentials(socket: impl AsFd) -> Result<Credentials, Errno> {
    let mut cred = libc::ucred { pid: 0, uid: OVERFLOW_UID, gid: OVERFLOW_UID };
    let len = getsockopt(socket.as_fd(), libc::SO_PEERCRED, std::slice::from_mut(&mut cred))?;
    if len != size_of::<libc::ucred>() {
        return Err(Errno::INVAL);
    }
    Ok(Credentials { pid: u32::try_from(cred.pid).unwrap_or(0), uid: cred.uid, gid: cred.gid })
}

/// The supplementary groups of the peer (`SO_PEERGROUPS`).
pub(crate) fn peer_groups(socket: impl AsFd) -> Result<Vec<u32>, Errno> {
    /// What the kernel allows a process to have.
    const NGROUPS_MAX: usize = 65_536;
    let mut groups = vec![0_u32; 32];
    loop {
        match getsockopt(socket.as_fd(), SO_PEERGROUPS, &mut groups) {
            Ok(len) => {
                groups.truncate(len / size_of::<u32>());
                return Ok(groups);
            }
            Err(Errno::RANGE) if groups.len() < NGROUPS_MAX => groups.resize(groups.len() * 8, 0),
            Err(error) => return Err(error),
        }
    }
}

/// A descriptor of the peer's process, by which its death shows.
///
/// `None` where none can be had: a process outside this pid namespace, or a kernel without pidfds. Errors: `SRCH` when the
/// process has ended, `MFILE`/`NFILE`.
pub(crate) fn peer_pidfd(socket: impl AsFd) -> Result<Option<Fd>, Errno> {
    let socket = socket.as_fd();
    match so_peerpidfd(socket) {
        Ok(fd) => Ok(Some(fd)),
        Err(error @ (Errno::MFILE | Errno::NFILE)) => Err(error),
        // Before Linux 6.5 and under filters the option is missing; a process that is gone gives errors that vary with
        // the kernel's version. The older way tells them apart.
        Err(_) => pidfd_by_number(socket),
    }
}

fn so_peerpidfd(socket: BorrowedFd<'_>) -> Result<Fd, Errno> {
    if features::disabled(Feature::PeerPidfd) {
        return Err(Errno::NOPROTOOPT);
    }
    let mut raw = [-1_i32];
    let len = getsockopt(socket, SO_PEERPIDFD, &mut raw)?;
    if len != size_of::<i32>() || raw[0] < 0 {
        return Err(Errno::NODATA);
    }
    // SAFETY: the kernel has just opened this descriptor for us, close-on-exec as all pidfds are.
    Ok(Fd::from(unsafe { OwnedFd::from_raw_fd(raw[0]) }))
}

/// `pidfd_open` of the number in the credentials. Between the peer's death and this call the number may have gone to a
/// stranger; but a peer that still holds its end open now was alive when the number was looked up.
fn pidfd_by_number(socket: BorrowedFd<'_>) -> Result<Option<Fd>, Errno> {
    let Some(pid) = Pid::from_raw(peer_credentials(socket)?.pid as i32) else { return Ok(None) };
    let fd = match pidfd::open(pid) {
        Ok(fd) => fd,
        Err(error @ (Errno::SRCH | Errno::MFILE | Errno::NFILE)) => return Err(error),
        Err(_) => return Ok(None),
    };
    if pidfd::poll_now(&socket, PollFlags::IN).contains(PollFlags::HUP) {
        return Err(Errno::SRCH);
    }
    Ok(Some(fd))
}

/// Reads an option of plain numbers into `value`; returns its length in bytes.
fn getsockopt<T: Plain>(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
    value: &mut [T],
) -> Result<usize, Errno> {
    let mut len = size_of_val(value) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `value`, for which any bytes are valid (Plain).
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result == -1 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL));
    }
    Ok(len as usize)
}

/// Types for which any bytes are a value.
///
/// # Safety
///
/// No padding, no pointer, no invalid pattern.
unsafe trait Plain {}
// SAFETY: every pattern of 32 bits is a number.
unsafe impl Plain for u32 {}
// SAFETY: as for u32.
unsafe impl Plain for i32 {}
// SAFETY: three 32-bit numbers in C's layout.
unsafe impl Plain for libc::ucred {}

#[cfg(test)]
mod tests;
