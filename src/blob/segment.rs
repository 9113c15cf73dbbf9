//! One piece of shared memory of the arena's: paid for when made, written by this process alone.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys::fd::Fd;
use crate::sys::memfd::{self, Mapping};

use super::limit::{Charge, NoMemory};

/// The name in `/proc/<pid>/maps` and `/proc/<pid>/fd`, for whoever asks where the memory went.
const NAME: &str = "objbus-arena";

/// The id of the last segment made, by any arena: a lane's table of segments goes by id, and may hold those of several.
static LAST_ID: AtomicU32 = AtomicU32::new(0);

#[derive(Debug)]
pub(crate) struct Segment {
    id: u32,
    mapping: Mapping,
    fd: Fd,
    /// Taken of the bus and of the user. Dropped after the mapping and the descriptor: the limit is never ahead of the
    /// kernel.
    _charge: [Charge; 2],
}

/// What a peer must be told before a message refers to a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Announcement<'a> {
    pub(crate) id: u32,
    pub(crate) len: u64,
    pub(crate) fd: BorrowedFd<'a>,
}

impl Segment {
    /// Makes `len` bytes, a multiple of the page size, which `charge` pays for; all of them are there when this returns.
    ///
    /// No descriptor left counts as no memory: the caller's remedy, to drop what is idle, is the same.
    /// An id is taken only when all else has worked, so that failures, however many, use up none; Relaxed, since ids need
    /// only differ.
    pub(super) fn create(len: usize, charge: [Charge; 2]) -> Result<Segment, NoMemory> {
        let (mapping, fd) = memfd::create_sealed(NAME, len).map_err(|_| NoMemory)?;
        let last = LAST_ID.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |id| id.checked_add(1));
        let id = last.map_err(|_| NoMemory)? + 1;
        Ok(Segment { id, mapping, fd, _charge: charge })
    }

    /// From 1; no other segment of this process ever had it.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn len(&self) -> usize {
        self.mapping.len()
    }

    pub(crate) fn announce(&self) -> Announcement<'_> {
        Announcement { id: self.id, len: self.len() as u64, fd: self.fd.as_fd() }
    }

    /// The address of a byte; page-aligned for offset 0.
    pub(super) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.len(), "offset {offset} lies beyond the segment's {} bytes", self.len());
        self.mapping.ptr().as_ptr().wrapping_add(offset)
    }
}
