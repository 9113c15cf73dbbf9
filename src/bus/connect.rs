//! The caller's half of the handshake.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::BusInner;
use crate::error::{ConnectError, PublishError};
use crate::handshake::{
    FEATURES, Hello, LAYOUT, MESSAGE_MAX, Message, Refusal, Unreadable, VERSION, Welcome,
};
use crate::names::{Address, Bound, Directory, Name};
use crate::parcels::Side;
use crate::peer::Peer;
use crate::proxy::{Lane, LaneParts, Link};
use crate::ring::caller::CallerRing;
use crate::ring::layout::{RequestMemory, ResponseMemory};
use crate::sys::clock;
use crate::sys::closer::Foreign;
use crate::sys::eventfd::Doorbell;
use crate::sys::fd::Fd;
use crate::sys::memfd::{self, BadSegment, Mapping};
use crate::sys::socket::{self, OVERFLOW_UID};

/// Owners met in one attempt to connect, each of which was just leaving; more is a name that is not to be had.
const OWNERS_MAX: u32 = 8;

impl BusInner {
    /// Makes a lane to whoever publishes at the link's address. Blocks until `deadline_ns` at most.
    pub fn connect(self: &Arc<Self>, link: &Arc<Link>, deadline_ns: u64) -> Result<Arc<Lane>, ConnectError> {
        if self.is_foreign() {
            return Err(ConnectError::ForkedHandle);
        }
        if self.is_closed() {
            return Err(ConnectError::Closed);
        }
        // An owner that leaves in this very moment may have handed its name over already.
        let mut owners_left = OWNERS_MAX;
        loop {
            let socket = self.reach(&link.address, deadline_ns)?;
            match self.meet(link, socket, deadline_ns) {
                Err(ConnectError::NotFound { .. }) if owners_left > 1 => owners_left -= 1,
                met => return met,
            }
        }
    }

    /// The handshake with the owner at the other end of `socket`; `NotFound` if it leaves instead of answering.
    fn meet(
        self: &Arc<Self>,
        link: &Arc<Link>,
        socket: Fd,
        deadline_ns: u64,
    ) -> Result<Arc<Lane>, ConnectError> {
        let peer = self.check_owner(&socket)?;
        let (request, request_fd) = memfd::create_sealed("objbus-request", size_of::<RequestMemory>())
            .map_err(system("making a segment"))?;
        let hello = Message::Hello(Hello { layout: LAYOUT, features: FEATURES, clock_ns: clock::now_ns() });
        // An owner that has refused already has closed its end; what it said is there to be read.
        match socket::send(&socket, &hello.encode(), &[request_fd.as_fd()]) {
            Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => {}
            Err(errno) => return Err(system("sending the request segment")(errno)),
        }
        drop(request_fd);
        let (welcome, fds) = self.await_welcome(&socket, &peer, link.name(), deadline_ns)?;
        let lane = self.make_lane(link, socket, &peer, request, (welcome, fds))?;
        lane.watch().map_err(system("watching the connection"))?;
        Ok(lane)
    }

    /// The same with a caller of this process' objects, to call objects of its in turn: it has put its part of the lane into the
    /// socket before it sent the other end, so that nothing is waited for.
    pub fn meet_back(
        self: &Arc<Self>,
        link: &Arc<Link>,
        end: Foreign,
        caller: &Arc<Peer>,
    ) -> Result<Arc<Lane>, ConnectError> {
        let doing = system("taking the lane for callbacks");
        let received = await_message(&end, 0).map_err(&doing)?;
        let Some((Ok(Message::Welcome(welcome)), fds)) = received else {
            return Err(ConnectError::System {
                reason: "the caller does not speak this protocol".to_owned(),
            });
        };
        let (request, request_fd) =
            memfd::create_sealed("objbus-request", size_of::<RequestMemory>()).map_err(&doing)?;
        let hello = Message::Hello(Hello { layout: LAYOUT, features: FEATURES, clock_ns: clock::now_ns() });
        let socket = Fd::from(OwnedFd::from(end));
        let lane = self.make_lane(link, socket, caller, request, (welcome, fds))?;
        // The caller's end is watched before it can be lent anything.
        lane.watch().map_err(&doing)?;
        socket::send(&lane.parcels.socket, &hello.encode(), &[request_fd.as_fd()]).map_err(&doing)?;
        Ok(lane)
    }

    fn make_lane(
        self: &Arc<Self>,
        link: &Arc<Link>,
        socket: Fd,
        peer: &Arc<Peer>,
        request: Mapping,
        (welcome, fds): (Welcome, Vec<Foreign>),
    ) -> Result<Arc<Lane>, ConnectError> {
        let (response, doorbell) = receive_memory(fds)?;
        // SAFETY: both mappings have the sizes of the types, are page-aligned, and the lane keeps them as long as the ring.
        let ring = unsafe { CallerRing::new(request.ptr().cast(), response.ptr().cast()) };
        Ok(Lane::new(LaneParts {
            ring,
            parcels: self.parcels(Side::Caller, socket, peer, [request, response]),
            doorbell,
            peer: Arc::clone(peer),
            engine: self.engine,
            keys: welcome.keys.into_iter().collect(),
            owner_ahead_ms: welcome.owner_ahead_ms,
            link: Arc::downgrade(link),
            spins: self.spins(),
        }))
    }

    /// A connection to whoever listens at `address`.
    fn reach(&self, address: &Address, deadline_ns: u64) -> Result<Fd, ConnectError> {
        let Some(directory) = self.directory() else {
            let name = || address.name().to_string();
            let listener = self.local_listener(address);
            let listener =
                listener.ok_or_else(|| ConnectError::NotFound { name: name(), waited: Duration::ZERO })?;
            let (ours, theirs) = socket::pair().map_err(system("making a connection"))?;
            listener.admit(self.engine, theirs);
            return Ok(ours);
        };
        directory.connect(address, deadline_ns)
    }

    /// Nothing is sent to an owner that runs as another user than expected.
    fn check_owner(&self, socket: &Fd) -> Result<Arc<Peer>, ConnectError> {
        let uid = socket::peer_credentials(socket).map_err(system("asking who answers"))?.uid;
        if uid != self.owner_uid || uid == OVERFLOW_UID {
            return Err(ConnectError::WrongOwnerUid { uid });
        }
        self.engine.peers.of_socket(self.engine, socket).map_err(system("watching the owner"))
    }

    fn await_welcome(
        &self,
        socket: &Fd,
        peer: &Peer,
        name: &Name,
        deadline_ns: u64,
    ) -> Result<(Welcome, Vec<Foreign>), ConnectError> {
        let began_ns = clock::now_ns();
        let gone = || ConnectError::NotFound { name: name.to_string(), waited: Duration::ZERO };
        match await_message(socket, deadline_ns) {
            Ok(Some((Ok(Message::Welcome(welcome)), fds))) => Ok((welcome, fds)),
            Ok(Some((Ok(Message::Refused(refusal)), _))) => Err(refusal.into_error(name.as_str())),
            Ok(Some((Err(Unreadable::Version(theirs)), _))) => {
                Err(ConnectError::VersionMismatch { ours: VERSION, theirs })
            }
            Ok(Some(_)) => {
                Err(ConnectError::System { reason: "the owner does not speak this protocol".to_owned() })
            }
            // It closed without a word: it is dying, or was withdrawn in this moment.
            Ok(None) => Err(gone()),
            Err(Errno::TIMEDOUT) if peer.is_dead() == Some(true) => Err(gone()),
            Err(Errno::TIMEDOUT) => Err(ConnectError::HandshakeTimeout {
                after: Duration::from_nanos(clock::now_ns() - began_ns),
            }),
            Err(errno) => Err(system("waiting for the owner")(errno)),
        }
    }

    /// Publishes at `address` in place of all that stand in its way, or plainly if there are none.
    pub fn take_over(&self, address: &Address) -> Result<Bound, PublishError> {
        let Some(directory) = self.directory() else {
            unreachable!("an in-memory bus binds no sockets");
        };
        let mut predecessors = Vec::new();
        // The ends of these connections, after the name is ours, are what the old owners wait for.
        let mut granted = Vec::new();
        // Who may not list the directory hears from a name's own owner why it is refused.
        let alone = Address::from(address.name().clone());
        let instances = self.addresses_of(address.name()).into_iter().filter(Address::is_instance);
        for other in std::iter::once(alone).chain(instances) {
            if address.succeeds(&other)
                && let Some(socket) = ask_to_succeed(directory, &other)?
            {
                predecessors.push(other);
                granted.push(socket);
            }
        }
        if predecessors.is_empty() {
            return directory.bind(address);
        }
        directory.replace(address, &predecessors)
    }
}

/// Asks whoever publishes at `address` to hand over: the connection over which it has agreed, or `None` where nobody is there or it
/// is just leaving.
fn ask_to_succeed(directory: &Directory, address: &Address) -> Result<Option<Fd>, PublishError> {
    let deadline_ns = clock::now_ns() + crate::proxy::HANDSHAKE_NS;
    let socket = match directory.connect(address, deadline_ns) {
        Ok(socket) => socket,
        Err(ConnectError::NotFound { .. }) => return Ok(None),
        Err(ConnectError::PermissionDenied) => return Err(PublishError::PermissionDenied),
        Err(error) => {
            return Err(PublishError::System { reason: format!("reaching the present owner: {error}") });
        }
    };
    let refused = |reason: String| PublishError::System { reason };
    match socket::send(&socket, &Message::Replace.encode(), &[]) {
        Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => {}
        Err(errno) => return Err(refused(format!("asking the present owner: {errno}"))),
    }
    match await_message(&socket, deadline_ns) {
        Ok(Some((Ok(Message::Granted), _))) => Ok(Some(socket)),
        Ok(Some((Ok(Message::Refused(Refusal::PermissionDenied)), _))) => Err(PublishError::PermissionDenied),
        Ok(None | Some((Ok(Message::Refused(Refusal::Closing)), _))) => Ok(None),
        Ok(Some((Ok(Message::Refused(refusal)), _))) => {
            let why = refusal.into_error(address.name().as_str());
            Err(refused(format!("the present owner does not hand over now: {why}")))
        }
        Ok(Some((Err(Unreadable::Version(theirs)), _))) => Err(refused(format!(
            "the present owner speaks protocol version {theirs}, this process {VERSION}, so it cannot hand over: end it, then publish"
        ))),
        Ok(Some(_)) => Err(refused("the present owner does not speak this protocol".to_owned())),
        Err(Errno::TIMEDOUT) => Err(refused(
            "the present owner did not answer: it may be stopped; continue or end it, then try again"
                .to_owned(),
        )),
        Err(errno) => Err(refused(format!("asking the present owner: {errno}"))),
    }
}

type Received = (Result<Message, Unreadable>, Vec<Foreign>);

/// The peer's next message; `None`: it closed without one.
fn await_message(socket: &impl AsFd, deadline_ns: u64) -> Result<Option<Received>, Errno> {
    let mut bytes = vec![0; MESSAGE_MAX];
    loop {
        match socket::recv(socket, &mut bytes, 2) {
            Ok(received) if received.no_fds => return Err(Errno::MFILE),
            Ok(received) if received.len == 0 => return Ok(None),
            Ok(received) => return Ok(Some((Message::decode(&bytes[..received.len]), received.fds))),
            // Once, before what a peer that closed had said.
            Err(Errno::CONNRESET) => {}
            Err(Errno::AGAIN) => wait_readable(socket, deadline_ns)?,
            Err(errno) => return Err(errno),
        }
    }
}

fn wait_readable(socket: &impl AsFd, deadline_ns: u64) -> Result<(), Errno> {
    let left = deadline_ns.saturating_sub(clock::now_ns());
    if left == 0 {
        return Err(Errno::TIMEDOUT);
    }
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    match rustix::event::poll(&mut fds, Some(&clock::timespec(left))) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn receive_memory(fds: Vec<Foreign>) -> Result<(Mapping, Doorbell), ConnectError> {
    let bad = |reason| ConnectError::BadSegment { reason };
    let [response, bell] =
        <[Foreign; 2]>::try_from(fds).map_err(|_| bad("it did not pass what was agreed on"))?;
    let response =
        memfd::receive_sealed(response, size_of::<ResponseMemory>()).map_err(|error| match error {
            BadSegment::Untrusted(reason) => bad(reason),
            BadSegment::System(errno) => system("mapping the response segment")(errno),
        })?;
    Ok((response, Doorbell::receive(bell).map_err(bad)?))
}

/// An error of the system, as an error of connecting.
pub(crate) fn system(doing: &'static str) -> impl Fn(Errno) -> ConnectError {
    move |errno| match errno {
        Errno::MFILE | Errno::NFILE | Errno::TOOMANYREFS => ConnectError::NoFds,
        Errno::NOMEM | Errno::NOSPC | Errno::NOBUFS => ConnectError::NoMemory,
        errno => ConnectError::System { reason: format!("{doing}: {errno}") },
    }
}
