//! The caller's half of the protocol, written from `docs/layout.md`, for tests that misuse it.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;

use crate::raw::*;
use crate::support::wait_until;

pub const BROKEN: u32 = 3;
pub const SPILLED: u8 = 1;
pub const ONE_WAY: u8 = 2;
pub const CHAIN: u8 = 4;

pub const RETURNED: u8 = 1;
pub const REFUSED: u8 = 3;
pub const BAD_REQUEST: u8 = 0;

/// What an owner said instead of a welcome.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    Because(u8),
    Version(u32),
    Ended,
}
pub const BAD_SEGMENT: Refusal = Refusal::Because(2);

pub fn hello(layout: u64) -> Vec<u8> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    varints(&[0, layout, 0, now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64])
}

/// Sends `message` with descriptors to whoever listens at `path`; its answer's body and descriptors.
pub fn shake(
    path: &Path,
    message: &[u8],
    fds: &[&OwnedFd],
) -> Result<(OwnedFd, Vec<u8>, Vec<OwnedFd>), Refusal> {
    let socket = dial(path);
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    // An owner that refuses at once has closed its end already.
    let _ = send(&socket, message, &fds);
    let (answer, fds) = receive(&socket).ok_or(Refusal::Ended)?;
    assert_eq!(&answer[..4], b"objb");
    let version = u32::from_le_bytes(answer[4..8].try_into().unwrap());
    match answer[8] {
        2 if version != u32::from_le_bytes(message[4..8].try_into().unwrap()) => {
            Err(Refusal::Version(version))
        }
        2 => Err(Refusal::Because(answer[9])),
        _ => Ok((socket, answer[8..].to_vec(), fds)),
    }
}

/// A request, as it stands in a cell.
#[derive(Clone)]
pub struct Request {
    pub slot: u32,
    pub flags: u8,
    pub key: u64,
    pub len: u32,
    pub lent: u32,
    pub returned: u32,
    pub body: Vec<u8>,
}

/// What a slot holds after an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u8,
    pub flags: u8,
    pub len: u32,
    pub body: Vec<u8>,
}

impl Answer {
    /// The kind of refusal, if it is one.
    pub fn refusal(&self) -> Option<u8> {
        (self.status == REFUSED).then(|| self.body[0])
    }

    /// The number returned.
    #[track_caller]
    pub fn number(&self) -> u64 {
        assert_eq!(self.status, RETURNED, "{self:?}");
        take_varint(&mut &self.body[..])
    }
}

/// A caller.
pub struct Caller {
    pub socket: OwnedFd,
    pub request: Map,
    pub response: Map,
    pub bell: OwnedFd,
    pub keys: HashMap<u64, u64>,
    pub position: u32,
    pub request_fd: OwnedFd,
}

impl Caller {
    #[track_caller]
    pub fn connect(path: &Path) -> Caller {
        Caller::try_connect(path).expect("an honest handshake")
    }

    pub fn try_connect(path: &Path) -> Result<Caller, Refusal> {
        let (request_fd, request) = memory(REQUEST_SIZE);
        let (socket, answer, fds) = shake(path, &message(1, &hello(LAYOUT)), &[&request_fd])?;
        let [response, bell] = <[OwnedFd; 2]>::try_from(fds).expect("two descriptors");
        let mut answer = &answer[..];
        let mut next = || take_varint(&mut answer);
        assert_eq!([next(), next(), next()], [1, 0, 0], "a welcome, no features, the same clock");
        let keys = (0..next()).map(|_| (next(), next())).collect();
        let response = Map::of(&response, RESPONSE_SIZE, false).expect("it can be mapped");
        Ok(Caller { socket, request, response, bell, keys, position: 0, request_fd })
    }

    pub fn key(&self, method: &str) -> u64 {
        self.keys[&name_hash(method)]
    }

    pub fn request(&self, method: &str, slot: u32, body: &[u8]) -> Request {
        let (key, len) = (self.key(method), body.len() as u32);
        Request { slot, flags: 0, key, len, lent: 0, returned: 0, body: body.to_vec() }
    }

    /// The lease of the spilled answer in `slot`.
    pub fn lease(&self, slot: u32) -> u32 {
        self.response.word(512 + 256 * slot as usize + 16).load(Ordering::Relaxed)
    }

    /// The bit by which the owner gives back our lease number `lease`.
    pub fn is_turned(&self, lease: u32) -> bool {
        let index = lease as usize % 8192;
        let word = self.response.wide(16896 + 8 + 8 * (index / 64)).load(Ordering::Acquire);
        word & 1 << (index % 64) != 0
    }

    /// Turns the bit of a lease of the owner's.
    pub fn give_back(&self, lease: u32) {
        let index = lease as usize % 8192;
        self.request.wide(20480 + 8 + 8 * (index / 64)).fetch_xor(1 << (index % 64), Ordering::Release);
        self.request.word(20480).fetch_add(1, Ordering::Release);
    }

    pub fn cell(&self, position: u32) -> usize {
        4096 + 256 * (position % SLOTS) as usize
    }

    /// Writes a cell, all but its number.
    pub fn write(&self, request: &Request) {
        let cell = self.cell(self.position);
        let cpu = 0xffff_u32;
        let meta = request.slot | u32::from(request.flags) << 8 | cpu << 16;
        self.request.word(cell + 4).store(meta, Ordering::Relaxed);
        self.request.wide(cell + 8).store(request.key, Ordering::Relaxed);
        self.request.word(cell + 16).store(0, Ordering::Relaxed);
        self.request.word(cell + 20).store(request.len, Ordering::Relaxed);
        self.request.word(cell + 24).store(request.lent, Ordering::Relaxed);
        self.request.word(cell + 28).store(request.returned, Ordering::Relaxed);
        self.request.write(cell + 32, &request.body[..request.body.len().min(224)]);
    }

    /// Publishes it and rings, whether the owner polls or not.
    pub fn publish(&mut self, request: &Request) {
        self.publish_silently(request);
        self.ring();
    }

    /// Publishes it.
    pub fn publish_silently(&mut self, request: &Request) {
        self.write(request);
        let number = self.position.wrapping_add(1);
        self.request.word(self.cell(self.position)).store(number, Ordering::Release);
        self.position = number;
    }

    pub fn ring(&self) {
        fence();
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    pub fn count(&self, slot: u32) -> u32 {
        self.response.word(512 + 256 * slot as usize).load(Ordering::Acquire)
    }

    pub fn started(&self, slot: u32) -> u32 {
        self.response.word(128 + 4 * slot as usize).load(Ordering::Acquire)
    }

    /// Waits until `slot` has had `count` answers.
    #[track_caller]
    pub fn answer(&self, slot: u32, count: u32) -> Answer {
        let word = self.response.word(512 + 256 * slot as usize);
        self.request.word(64 * slot as usize).store(1, Ordering::Relaxed);
        fence();
        wait_until("the call is answered", || {
            let seen = word.load(Ordering::Acquire);
            if seen != count {
                futex_wait(word, seen);
            }
            seen == count
        });
        self.request.word(64 * slot as usize).store(0, Ordering::Relaxed);
        let at = 512 + 256 * slot as usize;
        let meta = self.response.word(at + 4).load(Ordering::Relaxed);
        let len = self.response.word(at + 8).load(Ordering::Relaxed);
        let body = self.response.read(at + 16, (len as usize).min(240));
        Answer { status: meta as u8, flags: (meta >> 8) as u8, len, body }
    }

    /// One call, from its publication to its answer.
    #[track_caller]
    pub fn call(&mut self, request: &Request) -> Answer {
        let count = self.count(request.slot).wrapping_add(1);
        self.publish(request);
        self.answer(request.slot, count)
    }

    /// Announces a segment.
    pub fn announce(&self, id: u32, fd: &OwnedFd, len: u64) {
        let message = [&[2][..], &id.to_le_bytes(), &len.to_le_bytes()].concat();
        send(&self.socket, &message, &[fd.as_fd()]).expect("the owner reads its socket");
    }

    pub fn is_broken(&self) -> bool {
        self.response.word(4).load(Ordering::Acquire) == BROKEN && has_ended(&self.socket)
    }

    /// Waits until the owner has closed the lane for a violation.
    #[track_caller]
    pub fn expect_broken(&self, why: &str) {
        wait_until(why, || self.is_broken());
    }
}

/// Where a spilled body lies.
pub fn spill(segment: u32, offset: u64, len: u64) -> Vec<u8> {
    loan(1, segment, offset, len)
}

/// Where something lent lies.
pub fn loan(lease: u32, segment: u32, offset: u64, len: u64) -> Vec<u8> {
    [u64::from(lease) | u64::from(segment) << 32, offset, len].map(u64::to_ne_bytes).concat()
}
