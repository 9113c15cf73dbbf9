//! The least that an awaited answer from another process costs where both sides sleep: the peer sleeps on a futex and answers by a byte
//! over a socket that the caller's runtime watches.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use rustix::thread::futex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Runtime;

use super::peer::{Peer, Role, fd_argument, ready};
use super::placement::Placement;
use super::shared::{Plain, Shared};
use super::side::{Pace, Side, sample_awaited};

/// The peer's role, as [`Role::name`] reports it.
pub const ROLE: &str = "notified";

/// What both sides share: the number asked, on which the peer sleeps.
#[repr(C)]
pub struct Page {
    asked: CachePadded<AtomicU32>,
}

// SAFETY: an atomic, zero in fresh memory.
unsafe impl Plain for Page {}

/// The caller's handle of the peer.
pub struct Notified {
    page: Shared<Page>,
    socket: OwnedFd,
    _peer: Peer,
}

impl Notified {
    /// Starts the peer at `placement`; the caller pins itself.
    pub fn start(placement: Placement) -> Notified {
        let page = Shared::<Page>::new();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .expect("a pair of connected sockets");
        let lent = [page.fd(), &theirs];
        let peer = Peer::start(placement, ROLE, &lent.map(fd_argument), &lent);
        Notified { page, socket, _peer: peer }
    }

    /// The side that asks and awaits the answer in `runtime`.
    pub fn side<'a>(&'a self, runtime: &'a Runtime) -> NotifiedSide<'a> {
        let _entered = runtime.enter();
        let socket = self.socket.try_clone().expect("a descriptor to spare");
        // SAFETY: an owned descriptor, which nobody replaces or closes as long as it lives.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        NotifiedSide { page: &self.page, socket: socket.expect("a driver with room"), runtime }
    }
}

/// This floor as a side of a comparison.
pub struct NotifiedSide<'a> {
    page: &'a Page,
    socket: AsyncFd<OwnedFd>,
    runtime: &'a Runtime,
}

impl Side for NotifiedSide<'_> {
    fn round(&mut self, pace: Pace, samples: &mut Vec<f64>) {
        let NotifiedSide { page, socket, runtime } = self;
        runtime.block_on(sample_awaited(pace, samples, 1, async || ask(page, socket).await));
    }

    fn time(&mut self, calls: u64) -> Duration {
        let mut samples = Vec::new();
        let pace = Pace { time: Duration::ZERO, at_least: calls as usize, gap: None };
        self.round(pace, &mut samples);
        Duration::from_nanos(samples.iter().sum::<f64>() as u64)
    }
}

async fn ask(page: &Page, socket: &AsyncFd<OwnedFd>) {
    page.asked.fetch_add(1, Release);
    let _ = futex::wake(&page.asked, futex::Flags::empty(), 1);
    loop {
        let mut guard = socket.readable().await.expect("the runtime runs");
        if guard.try_io(|socket| Ok(recv(socket, &mut [0_u8; 16], RecvFlags::DONTWAIT)?)).is_ok() {
            return;
        }
    }
}

/// The peer's whole life: one answer after the other, asleep in between, until the parent ends it.
pub fn serve(role: &Role) -> ! {
    // SAFETY: `Notified::start` lends these two, in this order, and they are taken here only.
    let (page, socket) = unsafe { (Shared::<Page>::map(role.take_fd(0)), role.take_fd(1)) };
    ready();
    let mut answered = 0;
    loop {
        if page.asked.load(Acquire) == answered {
            let _ = futex::wait(&page.asked, futex::Flags::empty(), answered, None);
            continue;
        }
        answered = answered.wrapping_add(1);
        let _ = send(&socket, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}
