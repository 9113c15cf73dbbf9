//! The owner's half of the protocol, written from `docs/layout.md`, for tests that misuse it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketFlags};

use crate::raw::*;
use crate::support::{Place, wait_until};

/// A socket that is bound but not listening.
pub fn bind(path: &Path) -> OwnedFd {
    let listener = socket();
    rustix::net::bind(&listener, &SocketAddrUnix::new(path).unwrap()).unwrap();
    listener
}

/// Listens under a name in a directory that a bus has made.
pub fn listen(place: &Place, name: &str) -> OwnedFd {
    let listener = bind(&place.path().join(name));
    rustix::net::listen(&listener, 8).unwrap();
    listener
}

/// A message and its descriptors.
type Heard = (Vec<u8>, Vec<OwnedFd>);

/// The next caller, with what it says first; `None` if it goes without a word.
pub fn accept_and_hear(listener: &OwnedFd) -> (OwnedFd, Option<Heard>) {
    let mut accepted = None;
    wait_until("somebody connects", || {
        match rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(socket) => accepted = Some(socket),
            Err(Errno::AGAIN) => {}
            Err(error) => panic!("accepting: {error}"),
        }
        accepted.is_some()
    });
    let socket = accepted.expect("it was waited for");
    let heard = receive(&socket);
    (socket, heard)
}

/// The next caller that says something, with its descriptors.
pub fn accept(listener: &OwnedFd) -> (OwnedFd, Vec<OwnedFd>) {
    loop {
        if let (socket, Some((hello, fds))) = accept_and_hear(listener) {
            assert_eq!(&hello[..9], b"objb\x01\0\0\0\0");
            return (socket, fds);
        }
    }
}

pub fn eventfd() -> OwnedFd {
    use rustix::event::EventfdFlags;
    rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

/// A welcome with the keys of some methods.
pub fn welcome(keys: &[(u64, u64)]) -> Vec<u8> {
    let keys: Vec<u64> = keys.iter().flat_map(|(name, key)| [*name, *key]).collect();
    message(1, &varints(&[&[1, 0, 0, keys.len() as u64 / 2][..], &keys].concat()))
}

/// An owner with one caller.
pub struct Owner {
    pub socket: OwnedFd,
    pub request: Map,
    pub response: Map,
    pub bell: OwnedFd,
    position: u32,
}

/// A request as it was found.
pub struct Taken {
    pub slot: u32,
    pub wanted: u32,
    pub body: Vec<u8>,
}

impl Owner {
    /// Welcomes the next caller honestly.
    pub fn meet(listener: &OwnedFd) -> Owner {
        let (socket, fds) = accept(listener);
        let request = Map::of(&fds[0], REQUEST_SIZE, false).unwrap();
        let (response_fd, response) = memory(RESPONSE_SIZE);
        let bell = eventfd();
        send(&socket, &welcome(&[]), &[response_fd.as_fd(), bell.as_fd()]).unwrap();
        Owner { socket, request, response, bell, position: 0 }
    }

    /// With one whose memory is yet to come.
    pub fn over(socket: OwnedFd, response: Map, bell: OwnedFd) -> Owner {
        let (_, request) = memory(REQUEST_SIZE);
        Owner { socket, request, response, bell, position: 0 }
    }

    /// Takes its caller's memory, of a lane whose welcome came first.
    pub fn hear_hello(&mut self) {
        let (hello, fds) = receive(&self.socket).expect("a hello");
        assert_eq!(&hello[..9], b"objb\x01\0\0\0\0");
        self.request = Map::of(&fds[0], REQUEST_SIZE, false).unwrap();
    }

    /// Waits for the next request.
    pub fn take(&mut self) -> Taken {
        let cell = 4096 + 256 * (self.position % SLOTS) as usize;
        let number = self.request.word(cell);
        wait_until("a request comes", || number.load(Ordering::Acquire) == self.position.wrapping_add(1));
        self.position = self.position.wrapping_add(1);
        let slot = self.request.word(cell + 4).load(Ordering::Relaxed) & 0xff;
        let len = self.request.word(cell + 20).load(Ordering::Relaxed).min(224);
        let wanted = self.slot(slot, 0).load(Ordering::Relaxed).wrapping_add(1);
        Taken { slot, wanted, body: self.request.read(cell + 32, len as usize) }
    }

    /// A word of a slot.
    pub fn slot(&self, slot: u32, at: usize) -> &std::sync::atomic::AtomicU32 {
        self.response.word(512 + 256 * slot as usize + at)
    }

    /// Publishes whatever it is told to.
    pub fn answer(&self, slot: u32, count: u32, meta: u32, len: u32, body: &[u8]) {
        self.response.write(512 + 256 * slot as usize + 16, body);
        self.slot(slot, 4).store(meta, Ordering::Relaxed);
        self.slot(slot, 8).store(len, Ordering::Relaxed);
        self.slot(slot, 0).store(count, Ordering::Release);
        fence();
        futex_wake(self.slot(slot, 0));
    }

    /// Answers as an honest owner would.
    pub fn answer_honestly(&self, taken: &Taken, body: &[u8]) {
        self.answer(taken.slot, taken.wanted, 1, body.len() as u32, body);
    }
}
