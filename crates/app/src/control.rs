//! What the guard, the supervisor and a process of the application say to each other: one message a datagram over a
//! `SOCK_SEQPACKET` pair, in postcard, with a descriptor or without.
//!
//! The supervisor decides and the process does: it makes, starts and stops its services one by one as it is told to, so that
//! the order of dependencies holds across processes. Either sees the other's end as the end of the socket.
//!
//! A child finds its end of the pair as its standard input, which is the one descriptor that can be given to it, and taken by
//! it, in safe code. Whatever else it needs comes in messages.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Which part of the application a process of the binary is: see [`Role`].
pub(crate) const ROLE_VARIABLE: &str = "OBJBUS_APP_ROLE";
/// The longest message, in bytes; the reasons of failures are cut to fit.
pub(crate) const MESSAGE_MAX: usize = 16 * 1024;
/// Stands in front of every message: there are some without any content, and an empty datagram looks like the socket's end.
const PREFIX: [u8; 1] = [0];

/// Which part of the application this process of its binary is; by [`ROLE_VARIABLE`], as JSON. Without that, or if standard
/// input is no end of a pair because the variable was only inherited, it is the guard: what the user has started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    /// Decides what runs. The guard is its parent.
    Supervisor,
    /// Runs services. The supervisor is its parent.
    Process {
        /// As declared.
        name: String,
        /// From 0 to the scale.
        index: u32,
        /// The supervisor's pid, by which it is known whether that has ended before its end could be watched.
        supervisor: u32,
    },
}

/// What the guard says to the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromGuard {
    /// A listening socket that the guard was started with is in the message.
    Socket,
    /// All sockets have been said: start the application.
    Start,
    /// The guard was told to end: stop gracefully, or, said again, at once.
    Stop,
    /// Reload every process.
    Reload,
}

/// What the supervisor says to the guard, which is the process that systemd knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToGuard {
    /// The application has started, or has been reloaded.
    Ready,
    Reloading,
    Stopping,
    /// It is alive.
    Watchdog,
}

/// The first message to a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome;

/// What the supervisor says to a process. The first message is a [`Welcome`], with a pipe in it that takes the process'
/// [events](crate::log::Event), a line of JSON each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToProcess {
    /// Make a service, start it, and publish it if it is to be; answered by `Started` or `Failed`.
    Start {
        service: String,
        /// This process replaces another: nothing is published before [`TakeOver`](Self::TakeOver), since the other one stays
        /// where a later service of this process cannot be started.
        replace: bool,
    },
    /// All services of a process that replaces another have started: publish this one, taking the name over; answered by
    /// `Started` or `Failed`. Said for each service, in their order.
    TakeOver { service: String },
    /// Withdraw a service's name, let its calls end, and stop it; answered by `Stopped`.
    Stop {
        service: String,
        /// Another process has taken its names over: its calls go on there, and none is refused.
        is_replaced: bool,
    },
    /// The answer to `Listen`, with the socket in the message if there is one.
    Listening { id: u32, result: Result<(), String> },
    /// All its services have stopped: end.
    End,
}

/// What a process says to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToSupervisor {
    /// It is there. The first message.
    Hello,
    Started {
        service: String,
    },
    /// A service could not be made, started or published.
    Failed {
        service: String,
        why: String,
    },
    /// A service has stopped, or, with an error, has tried to.
    Stopped {
        service: String,
        error: Option<String>,
    },
    /// Wants a TCP socket that listens at `addr`: the same one for all processes in which this service asks for it, and after
    /// their restarts.
    Listen {
        id: u32,
        service: String,
        addr: SocketAddr,
    },
}

/// A connected pair: one end for this process, one for a child's standard input. Neither is inherited otherwise.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// One end of a pair.
#[derive(Debug)]
pub(crate) struct Connection(AsyncFd<OwnedFd>);

impl Connection {
    /// Within a tokio runtime.
    pub fn new(end: OwnedFd) -> io::Result<Self> {
        watch(end).map(Self)
    }

    /// Sends one message. An error means that the other end is gone, or that the message is too long.
    pub async fn send<M: Serialize>(&self, message: &M, descriptor: Option<impl AsFd>) -> io::Result<()> {
        let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
        if bytes.len() > MESSAGE_MAX {
            return Err(ErrorKind::InvalidInput.into());
        }
        let descriptor = descriptor.as_ref().map(AsFd::as_fd);
        self.0.async_io(Interest::WRITABLE, |end| send_once(end, &bytes, descriptor)).await
    }

    /// The next message and the descriptor that came with it; `None`: the other end is gone.
    pub async fn recv<M: DeserializeOwned>(&self) -> io::Result<Option<(M, Option<OwnedFd>)>> {
        // Whoever waits beside something else begins this often; there is room for a message once there is one.
        drop(self.0.readable().await?);
        let mut bytes = vec![0; PREFIX.len() + MESSAGE_MAX];
        let (length, descriptor) =
            match self.0.async_io(Interest::READABLE, |end| receive_once(end, &mut bytes)).await {
                Ok((0, _)) => return Ok(None),
                // It ended with messages of ours unread.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                other => other?,
            };
        let message = postcard::from_bytes(&bytes[PREFIX.len()..length])
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        Ok(Some((message, descriptor)))
    }
}

/// For waiting until a descriptor is ready. Within a tokio runtime.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // Deprecated since a type might close its descriptor, or hand out another, while it is watched. An `OwnedFd` does not.
    #[allow(deprecated)]
    AsyncFd::new(descriptor)
}

fn send_once(end: &OwnedFd, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_ref().map(std::slice::from_ref);
    if let Some(descriptors) = descriptors {
        let fits = ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        debug_assert!(fits, "the space is for one descriptor");
    }
    // A seqpacket socket takes a message whole or not at all.
    sendmsg(end, &[IoSlice::new(&PREFIX), IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_once(end: &OwnedFd, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(end, &mut [IoSliceMut::new(bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(ErrorKind::InvalidData.into());
    }
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((received.bytes, descriptor))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    #[tokio::test]
    async fn a_message_arrives_with_its_descriptor_and_the_end_as_none() {
        let (here, there) = pair().unwrap();
        let (here, there) = (Connection::new(here).unwrap(), Connection::new(there).unwrap());
        let sent = ToProcess::Listening { id: 7, result: Ok(()) };
        here.send(&sent, Some(File::open("/dev/zero").unwrap())).await.unwrap();
        here.send(&Welcome, None::<OwnedFd>).await.unwrap();
        drop(here);

        let (received, descriptor) = there.recv::<ToProcess>().await.unwrap().unwrap();
        assert_eq!(received, sent);
        let mut byte = [1];
        File::from(descriptor.unwrap()).read_exact(&mut byte).unwrap();
        assert_eq!(byte, [0]);
        let (received, descriptor) = there.recv::<Welcome>().await.unwrap().unwrap();
        assert_eq!(received, Welcome, "a message without content is no end");
        assert!(descriptor.is_none());
        assert!(there.recv::<ToProcess>().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_is_refused_by_its_sender() {
        let (here, _there) = pair().unwrap();
        let why = "x".repeat(MESSAGE_MAX);
        let sent = ToSupervisor::Failed { service: "web".to_owned(), why };
        let error = Connection::new(here).unwrap().send(&sent, None::<OwnedFd>).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
