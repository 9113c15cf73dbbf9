//! What both raw halves of the protocol share, written from `docs/layout.md` alone: nothing here uses the library.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};
use rustix::net::*;

use crate::support::PATIENCE;

pub const REQUEST_SIZE: usize = 21760;
pub const RESPONSE_SIZE: usize = 18176;
pub const SLOTS: u32 = 64;
pub const LAYOUT: u64 = (REQUEST_SIZE as u64) << 32 | (RESPONSE_SIZE as u64) << 8 | 1;
pub const SEALS: i32 =
    libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL;

/// Appends a number as postcard writes it.
pub fn varint(mut bytes: Vec<u8>, mut number: u64) -> Vec<u8> {
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// Numbers, one behind the other.
pub fn varints(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().fold(Vec::new(), |bytes, number| varint(bytes, *number))
}

/// A string or byte vector.
pub fn text(bytes: &[u8]) -> Vec<u8> {
    [varints(&[bytes.len() as u64]), bytes.to_vec()].concat()
}

/// Takes a number off the front.
pub fn take_varint(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..).step_by(7) {
        let (byte, rest) = bytes.split_first().expect("a number ends");
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

/// The hash that stands for a method's name.
pub fn name_hash(name: &str) -> u64 {
    let mix = |hash: u64, by: u64| (hash ^ hash >> 33).wrapping_mul(by);
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    let hash = mix(mix(hash, 0xff51_afd7_ed55_8ccd), 0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

/// A mapped memory.
pub struct Map {
    start: *mut u8,
    len: usize,
}

// SAFETY: it is reached through atomics and byte copies only.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    pub fn of(fd: impl AsFd, len: usize, writable: bool) -> io::Result<Map> {
        let prot = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, prot, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Map { start: start.cast(), len })
        }
    }

    pub fn start(&self) -> *mut u8 {
        self.start
    }

    pub fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= self.len);
        // SAFETY: within the mapping and aligned; any bits are a number.
        unsafe { &*self.start.add(at).cast() }
    }

    pub fn wide(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.len);
        // SAFETY: within the mapping and aligned; any bits are a number.
        unsafe { &*self.start.add(at).cast() }
    }

    pub fn read(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        // SAFETY: within the mapping; what another process changes meanwhile is some byte or other.
        (at..at + len).map(|at| unsafe { self.start.add(at).read_volatile() }).collect()
    }

    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: within the mapping, of which nobody has a Rust reference to more than a word.
            unsafe { self.start.add(at + index).write_volatile(*byte) };
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped by `of`, unmapped only here.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// How a memory is made; the honest way by default, to be spoiled.
#[derive(Clone, Copy)]
pub struct Recipe {
    pub size: usize,
    pub allocated: usize,
    pub seals: i32,
    pub flags: u32,
}

impl Recipe {
    pub fn honest(size: usize) -> Recipe {
        Recipe { size, allocated: size, seals: SEALS, flags: libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING }
    }

    /// The memory's descriptor, and its mapping where there can be one.
    pub fn make(self) -> io::Result<(OwnedFd, Option<Map>)> {
        // SAFETY: a name that ends; the descriptor is fresh.
        let fd = unsafe { libc::memfd_create(c"objbus-hostile".as_ptr(), self.flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        rustix::fs::ftruncate(&fd, self.size as u64)?;
        if self.allocated > 0 {
            rustix::fs::fallocate(&fd, rustix::fs::FallocateFlags::empty(), 0, self.allocated as u64)?;
        }
        let map = Map::of(&fd, self.size.max(1), true).ok();
        // SAFETY: the call touches no memory.
        if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, self.seals) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((fd, map))
    }
}

/// An honest memory.
pub fn memory(size: usize) -> (OwnedFd, Map) {
    let (fd, map) = Recipe::honest(size).make().expect("a memory can be made");
    (fd, map.expect("it can be mapped"))
}

pub fn socket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a socket")
}

/// A connection to `path`; its backlog may be full for a moment.
pub fn dial(path: &Path) -> OwnedFd {
    let began = Instant::now();
    loop {
        let socket = socket();
        match connect(&socket, &SocketAddrUnix::new(path).expect("a short path")) {
            Ok(()) => return socket,
            Err(rustix::io::Errno::AGAIN) if began.elapsed() < PATIENCE => std::thread::yield_now(),
            Err(error) => panic!("connecting to {path:?}: {error}"),
        }
    }
}

pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags).map(drop)
}

/// The next message; `None` at the socket's end.
pub fn receive(socket: impl AsFd) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let until = Instant::now() + PATIENCE;
    let mut bytes = vec![0; 98304];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg(&socket, &mut parts, &mut control, RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => {
                let rights = |message| match message {
                    RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                    _ => None,
                };
                let fds = control.drain().filter_map(rights).flatten().collect();
                bytes.truncate(message.bytes);
                return (message.bytes > 0).then_some((bytes, fds));
            }
            Err(rustix::io::Errno::AGAIN) => wait_readable(&socket, until),
            Err(rustix::io::Errno::CONNRESET) => {}
            Err(error) => panic!("receiving: {error}"),
        }
    }
}

fn wait_readable(socket: impl AsFd, until: Instant) {
    let left = until.saturating_duration_since(Instant::now());
    assert!(!left.is_zero(), "the other side says nothing");
    let timeout = rustix::event::Timespec { tv_sec: left.as_secs() as _, tv_nsec: 0 };
    let _ = rustix::event::poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout));
}

/// Whether the other side has ended the socket.
pub fn has_ended(socket: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&socket, PollFlags::IN)];
    let _ = rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }));
    fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// Waits on a futex word for as long as it holds `value`, a little while at most.
pub fn futex_wait(word: &AtomicU32, value: u32) {
    let timeout = libc::timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    // SAFETY: the word is mapped; FUTEX_WAIT reads it and the time-out only.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const timeout) };
}

pub fn futex_wake(word: &AtomicU32) {
    // SAFETY: the word is mapped; FUTEX_WAKE does not touch it.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

pub fn fence() {
    std::sync::atomic::fence(Ordering::SeqCst);
}

/// The prefix of every handshake message, and what follows.
pub fn message(version: u32, body: &[u8]) -> Vec<u8> {
    [b"objb", &version.to_le_bytes()[..], body].concat()
}
