//! Bodies that do not fit a cell, and the lane's socket, which announces where they lie.
//!
//! A big body is copied into a chunk of the sender's arena; the cell carries three words that say where. A segment is
//! announced on a lane before its first use there, so a reader that meets an unknown number has only to read its socket:
//! another thread may hold the announcement in its hands, so it takes the socket's lock, reads to the end, looks again,
//! and only then calls it a violation.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::blob::arena::{Arena, Chunk};
use crate::blob::segments::{BadSegment, CopyError, Mapped, Segments};
use crate::ring::layout::Spill;
use crate::sys::closer::Foreign;
use crate::sys::fd::Fd;
use crate::sys::{memfd, socket};

/// First byte of a message on a lane's socket: answers wait for tasks of the receiver.
pub(crate) const WAKE: u8 = 1;
/// A segment: its number (u32) and length (u64), little-endian, and its descriptor.
pub(crate) const SEGMENT: u8 = 2;
/// A segment that is used no more: its number (u32).
pub(crate) const DROPPED: u8 = 3;
/// The longest of them, in bytes.
pub(crate) const MESSAGE_MAX: usize = 13;
/// Messages read in one go. A peer that sends as fast as we read would keep its reader for ever.
const MESSAGES_PER_TURN: usize = 256;
/// Goes in search of one announcement. A socket holds fewer messages than these read, so it was sent too late, if at all.
const TURNS_MAX: usize = 64;
/// How long a socket rests after a turn that did not empty it.
pub(crate) const REST_NS: u64 = 10_000_000;
/// Alignment of a spilled body: a cache line.
const ALIGN: usize = 64;

/// Why a body was not put into the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PackError {
    /// The bus's memory limit is reached, or the peer does not read its socket.
    NoMemory,
    /// The lane has ended.
    Ended,
}

/// Why a spilled body could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnpackError {
    /// The peer broke the protocol.
    Violation,
    /// No memory or no descriptors here.
    NoMemory,
}

/// What reading the socket brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// Answers may wait for tasks: there was a message, and behind others a wake may have found no room.
    pub woken: bool,
    /// The peer's end is closed and all it sent is read.
    pub ended: bool,
    /// The peer sent what no honest one does.
    pub violated: bool,
    /// It may have sent more than was read.
    pub more: bool,
}

impl News {
    fn add(&mut self, other: News) {
        self.woken |= other.woken;
        self.ended |= other.ended;
        self.violated |= other.violated;
        self.more = other.more;
    }
}

/// One end of a lane's socket and the segments known through it.
pub(crate) struct Parcels {
    pub(crate) socket: Fd,
    /// Held while reading the socket, so that what a message says is acted on before the next reader looks.
    reading: Mutex<()>,
    incoming: Segments,
    arena: Arc<Arena>,
    announced: Mutex<BTreeSet<u32>>,
    /// The arena's count of dropped segments when `announced` was last compared with it.
    drops_seen: AtomicU64,
    /// A segment was announced that we had no descriptor or room for: an unknown number is no proof of a lie then.
    lost: AtomicBool,
}

impl Parcels {
    pub fn new(socket: Fd, incoming: Segments, arena: Arc<Arena>) -> Parcels {
        Parcels {
            socket,
            reading: Mutex::new(()),
            incoming,
            arena,
            announced: Mutex::default(),
            drops_seen: AtomicU64::new(0),
            lost: AtomicBool::new(false),
        }
    }

    /// Copies `body` into a chunk that the peer can read; keep the chunk until the peer has.
    #[cold]
    pub fn pack(&self, body: &[u8]) -> Result<(Spill, Chunk), PackError> {
        let mut chunk = self.arena.alloc(body.len(), ALIGN).map_err(|_| PackError::NoMemory)?;
        chunk.as_mut_slice().copy_from_slice(body);
        self.announce(&chunk)?;
        let spill = Spill { segment: chunk.segment_id(), offset: chunk.offset(), len: body.len() as u64 };
        Ok((spill, chunk))
    }

    fn announce(&self, chunk: &Chunk) -> Result<(), PackError> {
        let mut announced = self.announced.lock();
        self.withdraw_dropped(&mut announced);
        if announced.contains(&chunk.segment_id()) {
            return Ok(());
        }
        let segment = chunk.segment().announce();
        let mut message = [0; MESSAGE_MAX];
        message[0] = SEGMENT;
        message[1..5].copy_from_slice(&segment.id.to_le_bytes());
        message[5..13].copy_from_slice(&segment.len.to_le_bytes());
        match socket::send(&self.socket, &message, &[segment.fd]) {
            Ok(()) => {
                announced.insert(segment.id);
                Ok(())
            }
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Err(PackError::Ended),
            Err(_) => Err(PackError::NoMemory),
        }
    }

    /// Tells the peer which segments are gone; one that cannot be told now is told before the next announcement.
    fn withdraw_dropped(&self, announced: &mut BTreeSet<u32>) {
        let drops = self.arena.drops();
        if self.drops_seen.swap(drops, Ordering::Relaxed) == drops {
            return;
        }
        for id in self.arena.forget_dropped(announced) {
            let mut message = [0; 5];
            message[0] = DROPPED;
            message[1..].copy_from_slice(&id.to_le_bytes());
            if socket::send(&self.socket, &message, &[]).is_err() {
                // The number is never used again, so keeping it costs the peer a mapping and nothing else.
                announced.insert(id);
                self.drops_seen.store(u64::MAX, Ordering::Relaxed);
            }
        }
    }

    /// Wakes the peer's tasks. A full socket means that there is something to read, and whatever is read wakes them.
    pub fn send_wake(&self) {
        let _ = socket::send(&self.socket, &[WAKE], &[]);
    }

    /// Copies a spilled body of the peer's out.
    #[cold]
    pub fn unpack(&self, spill: Spill, news: &mut News) -> Result<Vec<u8>, UnpackError> {
        let Some(segment) = self.find(spill.segment, news) else {
            let lost = self.lost.load(Ordering::Relaxed);
            return Err(if lost { UnpackError::NoMemory } else { UnpackError::Violation });
        };
        segment.copy_to_vec(spill.offset, spill.len).map_err(|error| match error {
            CopyError::OutOfRange => UnpackError::Violation,
            CopyError::NoMemory => UnpackError::NoMemory,
        })
    }

    fn find(&self, segment: u32, news: &mut News) -> Option<Arc<Mapped>> {
        self.incoming.get(segment).or_else(|| {
            for _ in 0..TURNS_MAX {
                news.add(self.read_socket());
                if !news.more {
                    break;
                }
            }
            self.incoming.get(segment)
        })
    }

    /// Reads what the peer has sent: everything, unless it is more than a turn's worth.
    pub fn read_socket(&self) -> News {
        let _reading = self.reading.lock();
        let mut news = News::default();
        let mut was_reset = false;
        for _ in 0..MESSAGES_PER_TURN {
            if news.ended || news.violated {
                return news;
            }
            let mut message = [0; MESSAGE_MAX + 1];
            match socket::recv(&self.socket, &mut message, 1) {
                Err(Errno::AGAIN) => return news,
                // A peer that closes with our messages unread gives this once, before what it had sent.
                Err(Errno::CONNRESET) if !was_reset => was_reset = true,
                Err(_) => news.ended = true,
                Ok(received) if received.len == 0 => news.ended = true,
                Ok(received) if received.no_fds => self.lost.store(true, Ordering::Relaxed),
                Ok(received) if received.truncated => news.violated = true,
                Ok(received) => {
                    news.violated |= !self.receive(&message[..received.len], received.fds);
                    news.woken = true;
                }
            }
        }
        news.more = true;
        news
    }

    /// Acts on a message; `false`: no honest peer sends it.
    fn receive(&self, message: &[u8], fds: Vec<Foreign>) -> bool {
        let number = |range: std::ops::Range<usize>| -> Option<u32> {
            Some(u32::from_le_bytes(message.get(range)?.try_into().ok()?))
        };
        let mut fds = fds.into_iter();
        let understood = match (message.first(), message.len(), fds.next()) {
            (Some(&WAKE), 1, None) => Some(()),
            (Some(&SEGMENT), MESSAGE_MAX, Some(fd)) => number(1..5)
                .zip(number(5..9))
                .zip(number(9..13))
                .and_then(|((id, low), high)| self.insert(id, u64::from(low) | u64::from(high) << 32, fd)),
            (Some(&DROPPED), 5, None) => number(1..5)
                .filter(|&id| self.incoming.remove(id) || self.lost.load(Ordering::Relaxed))
                .map(drop),
            _ => None,
        };
        understood.is_some()
    }

    /// `None`: the peer broke the protocol.
    fn insert(&self, id: u32, len: u64, fd: Foreign) -> Option<()> {
        // Before any limit: one who sends something else is not to send it again.
        if !fd.is_memory() {
            return None;
        }
        match self.incoming.insert(id, fd, len) {
            Ok(()) => Some(()),
            Err(BadSegment::Limit | BadSegment::Refused(memfd::BadSegment::System(_))) => {
                self.lost.store(true, Ordering::Relaxed);
                Some(())
            }
            Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::arena::MemoryLimit;
    use crate::blob::limit::Holdings;
    use crate::blob::segments::{LaneLimits, Mappings};

    #[test]
    fn an_announcement_wakes_as_well() {
        let (ours, theirs) = socket::pair().unwrap();
        let end = |socket| {
            let mappings = Arc::new(Mappings::new(MemoryLimit::new(8), MemoryLimit::new(1 << 30)));
            let limits = LaneLimits { segments: 8, bytes: 1 << 30 };
            let segments = Segments::new(limits, mappings, Holdings::none());
            Parcels::new(socket, segments, Arc::new(Arena::new(MemoryLimit::new(1 << 30))))
        };
        let (ours, theirs) = (end(ours), end(theirs));
        assert_eq!(theirs.read_socket(), News::default());
        let _packed = ours.pack(b"a body").unwrap();
        assert_eq!(theirs.read_socket(), News { woken: true, ..News::default() });
    }
}
