//! The other processes' segments, as announced on a lane, and how their bytes get here.
//!
//! Another process writes this memory whenever it likes. So a range is checked, copied, and only the copy is looked at; but for
//! blobs, which are bytes that their honest lender leaves alone.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use crate::sys::fork;
use crate::sys::memfd::{self, Mapping};

use super::limit::{Charge, Holdings, MemoryLimit, NoMemory};

/// A segment of another process, mapped read-only; unmapped when neither a lane nor a blob refers to it.
#[derive(Debug)]
pub(crate) struct Mapped {
    mapping: Mapping,
    /// Taken of the bus, and of the peer that announced it first.
    _bytes: [Charge; 2],
}

/// A range that lies in its segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadRange<'a> {
    mapping: &'a Mapping,
    offset: usize,
    len: usize,
}

/// Why bytes were not copied out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyError {
    /// The range does not lie in the segment: the peer broke the protocol.
    OutOfRange,
    /// There is no memory for the copy.
    NoMemory,
}

impl Mapped {
    fn new(fd: impl AsFd, len: u64, bytes: [Charge; 2]) -> Result<Mapped, BadSegment> {
        // Above the address space it is above any size the descriptor can have.
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let mapping = memfd::receive_sealed(fd, len).map_err(BadSegment::Refused)?;
        Ok(Mapped { mapping, _bytes: bytes })
    }

    pub(crate) fn len(&self) -> usize {
        self.mapping.len()
    }

    /// The address of a byte; `offset` is at most the length.
    #[inline]
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset <= self.len(), "offset {offset} lies beyond the segment's {} bytes", self.len());
        // SAFETY: within the mapping, or at its end.
        unsafe { self.mapping.ptr().add(offset) }
    }

    /// `None` if any part of the range lies beyond the end.
    pub(crate) fn read(&self, offset: u64, len: u64) -> Option<ReadRange<'_>> {
        let end = offset.checked_add(len)?;
        if end > self.len() as u64 {
            return None;
        }
        // Both are at most the mapping's length, a usize.
        Some(ReadRange { mapping: &self.mapping, offset: offset as usize, len: len as usize })
    }

    pub(crate) fn copy_to_vec(&self, offset: u64, len: u64) -> Result<Vec<u8>, CopyError> {
        let range = self.read(offset, len).ok_or(CopyError::OutOfRange)?;
        range.copy_to_vec().map_err(|NoMemory| CopyError::NoMemory)
    }
}

impl ReadRange<'_> {
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The bytes as they were at some moment during the copy, each for itself: to be validated in the copy.
    pub(crate) fn copy_to_vec(&self) -> Result<Vec<u8>, NoMemory> {
        assert!(!self.mapping.is_inherited(), "memory lent before fork() is not mapped in the child");
        let mut copy = Vec::new();
        copy.try_reserve_exact(self.len).map_err(|_| NoMemory)?;
        // SAFETY: the source lies in the mapping (`read` has checked), which `self` borrows and which is mapped in this
        // process (asserted above); it is sealed and allocated whole, so no access faults. The target is a fresh
        // allocation of at least `len` bytes, which all are written, to whatever values: any is a u8. The source may
        // be written meanwhile, by another process only: no access of this program's takes part in that race, and no
        // value is read twice, since the fence below forbids to read the source again in place of the copy.
        unsafe {
            let source = self.mapping.ptr().as_ptr().add(self.offset);
            source.copy_to_nonoverlapping(copy.as_mut_ptr(), self.len);
            copy.set_len(self.len);
        }
        // To the compiler the source may change here: it must take what follows from the copy.
        fence(Ordering::Acquire);
        Ok(copy)
    }
}

/// Why an announced segment was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadSegment {
    /// The id is taken on this lane: the peer broke the protocol.
    Duplicate,
    /// It is not what it must be, or could not be mapped.
    Refused(memfd::BadSegment),
    /// A limit of ours: of the lane, of the whole bus, or of what one peer may have of the bus's.
    Limit,
}

/// How much one lane's peer may make this process map. Mapping costs addresses and page tables, not memory: that was
/// paid for by who made it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneLimits {
    pub(crate) segments: usize,
    pub(crate) bytes: u64,
}

/// The segments announced on one lane, by the peer's ids.
#[derive(Debug)]
pub(crate) struct Segments {
    limits: LaneLimits,
    mappings: Arc<Mappings>,
    peer: Holdings,
    /// In a forked child the lock may be held for ever.
    generation: u32,
    table: RwLock<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_id: BTreeMap<u32, Announced>,
    /// The sum of the lengths, at most the lane's limit.
    bytes: u64,
}

#[derive(Debug)]
struct Announced {
    mapped: Arc<Mapped>,
    /// One segment, taken of the bus and of the peer.
    _count: [Charge; 2],
}

impl Segments {
    pub(crate) fn new(limits: LaneLimits, mappings: Arc<Mappings>, peer: Holdings) -> Segments {
        Segments { limits, mappings, peer, generation: fork::generation(), table: RwLock::default() }
    }

    /// Checks and maps what the peer announced as `len` bytes under the number `id`.
    pub(crate) fn insert(&self, id: u32, fd: impl AsFd, len: u64) -> Result<(), BadSegment> {
        if fork::forked_since(self.generation) {
            return Err(BadSegment::Limit);
        }
        let mut table = self.table.write();
        if table.by_id.contains_key(&id) {
            return Err(BadSegment::Duplicate);
        }
        let bytes = table.bytes.checked_add(len).filter(|&sum| sum <= self.limits.bytes);
        let bytes = bytes.ok_or(BadSegment::Limit)?;
        if table.by_id.len() >= self.limits.segments {
            return Err(BadSegment::Limit);
        }
        let count = self.mappings.segments.charge_share(&self.peer.segments, 1);
        let count = count.map_err(|NoMemory| BadSegment::Limit)?;
        let mapped = self.mappings.map(fd, len, &self.peer)?;
        table.by_id.insert(id, Announced { mapped, _count: count });
        table.bytes = bytes;
        Ok(())
    }

    pub(crate) fn get(&self, id: u32) -> Option<Arc<Mapped>> {
        if fork::forked_since(self.generation) {
            return None;
        }
        self.table.read().by_id.get(&id).map(|announced| Arc::clone(&announced.mapped))
    }

    /// Forgets the segment, which stays mapped while a blob of it is held; the answer, whether there was one.
    pub(crate) fn remove(&self, id: u32) -> bool {
        if fork::forked_since(self.generation) {
            return false;
        }
        let mut table = self.table.write();
        let Some(removed) = table.by_id.remove(&id) else { return false };
        table.bytes -= removed.mapped.len() as u64;
        drop(table);
        // Unmapped only now, as this may be the last that holds it.
        drop(removed);
        true
    }
}

/// What a bus has mapped, by device and inode: a segment announced on several lanes is mapped once. An inode is not used
/// again while it is mapped, so an entry that can be upgraded is the same memory.
///
/// One table per bus, not a static one: in a forked child, which may open a bus of its own, a static lock could be held
/// for ever.
#[derive(Debug)]
pub(crate) struct Mappings {
    /// On the segments known, once for each lane.
    segments: MemoryLimit,
    /// On the bytes mapped.
    bytes: MemoryLimit,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_inode: BTreeMap<(u64, u64), Weak<Mapped>>,
    /// At so many entries those of segments that are mapped no more are swept: twice as many as were left last time, so
    /// that a peer whose segments come and go costs a little for each, not all for each.
    sweep_at: usize,
}

impl Mappings {
    pub(crate) fn new(segments: MemoryLimit, bytes: MemoryLimit) -> Mappings {
        Mappings { segments, bytes, known: Mutex::default() }
    }

    /// Bytes of other processes' memory that are mapped.
    pub(crate) fn mapped_bytes(&self) -> u64 {
        self.bytes.charged()
    }

    fn map(&self, fd: impl AsFd, len: u64, peer: &Holdings) -> Result<Arc<Mapped>, BadSegment> {
        let identity = identity(&fd).map_err(BadSegment::Refused)?;
        let mut known = self.known.lock();
        let present = known.by_inode.get(&identity).and_then(Weak::upgrade);
        let Some(present) = present else {
            let bytes = self.bytes.charge_share(&peer.mapped, len);
            let mapped = Arc::new(Mapped::new(fd, len, bytes.map_err(|NoMemory| BadSegment::Limit)?)?);
            known.enter(identity, &mapped);
            return Ok(mapped);
        };
        drop(known);
        // All else was checked when it was mapped, and is sealed.
        if present.len() as u64 == len { Ok(present) } else { Err(BadSegment::Refused(OTHER_LENGTH)) }
    }
}

impl Known {
    fn enter(&mut self, identity: (u64, u64), mapped: &Arc<Mapped>) {
        if self.by_inode.len() >= self.sweep_at {
            self.by_inode.retain(|_, mapped| mapped.strong_count() > 0);
            self.sweep_at = 2 * self.by_inode.len() + 16;
        }
        self.by_inode.insert(identity, Arc::downgrade(mapped));
    }
}

const OTHER_LENGTH: memfd::BadSegment =
    memfd::BadSegment::Untrusted("it was announced before with another length");

/// Asks for the seals first: only the kernel's own memory has any, while a question about another file may go to a
/// hostile file server that never answers.
fn identity(fd: impl AsFd) -> Result<(u64, u64), memfd::BadSegment> {
    rustix::fs::fcntl_get_seals(&fd).map_err(|_| memfd::BadSegment::Untrusted("it is not a memfd"))?;
    memfd::identity(fd).map_err(memfd::BadSegment::System)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::{child_status, fork};
    use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
    use std::os::fd::OwnedFd;

    const LEN: usize = 64 << 10;
    const LIMITS: LaneLimits = LaneLimits { segments: 3, bytes: 8 * LEN as u64 };

    fn limited(segments: u64, bytes: usize) -> Arc<Mappings> {
        Arc::new(Mappings::new(MemoryLimit::new(segments), MemoryLimit::new(bytes as u64)))
    }

    fn mappings() -> Arc<Mappings> {
        limited(1 << 10, 1 << 30)
    }

    /// A lane with a peer of its own.
    fn lane(mappings: &Arc<Mappings>) -> Segments {
        lane_with(mappings, &Holdings::none())
    }

    fn lane_with(mappings: &Arc<Mappings>, peer: &Holdings) -> Segments {
        Segments::new(LIMITS, Arc::clone(mappings), peer.clone())
    }

    fn charged(mappings: &Mappings) -> [u64; 2] {
        [mappings.segments.charged(), mappings.bytes.charged()]
    }

    fn sealed(len: usize) -> (Mapping, OwnedFd) {
        let (mapping, fd) = memfd::create_sealed("test", len).unwrap();
        let fd = fd.as_fd().try_clone_to_owned().unwrap();
        (mapping, fd)
    }

    fn write(mapping: &Mapping, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= mapping.len());
        // SAFETY: the range lies in the mapping (asserted above), of which no reference exists.
        unsafe { mapping.ptr().as_ptr().add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    #[test]
    fn ranges_are_copied_out_and_none_reaches_beyond_the_end() {
        let lane = lane(&mappings());
        let (ours, fd) = sealed(LEN);
        write(&ours, LEN - 5, b"hello");
        lane.insert(7, fd, LEN as u64).unwrap();
        let mapped = lane.get(7).unwrap();
        let end = LEN as u64;
        assert_eq!(mapped.copy_to_vec(end - 5, 5).unwrap(), b"hello");
        assert_eq!(mapped.read(0, end).unwrap().len(), LEN);
        assert_eq!(mapped.copy_to_vec(end, 0).unwrap(), b"");
        for (offset, len) in
            [(end, 1), (end - 5, 6), (u64::MAX, 1), (1, u64::MAX), (0, end + 1), (end + 1, 0)]
        {
            assert_eq!(mapped.copy_to_vec(offset, len), Err(CopyError::OutOfRange), "{offset}+{len}");
        }
    }

    #[test]
    fn one_segment_on_two_lanes_is_mapped_once_and_unmapped_after_the_last_holder() {
        let mappings = mappings();
        let (first, second) = (lane(&mappings), lane(&mappings));
        let (ours, fd) = sealed(LEN);
        write(&ours, 0, b"x");
        first.insert(1, fd.try_clone().unwrap(), LEN as u64).unwrap();
        second.insert(9, fd.try_clone().unwrap(), LEN as u64).unwrap();
        let blob = first.get(1).unwrap();
        assert!(Arc::ptr_eq(&blob, &second.get(9).unwrap()));
        assert_eq!(charged(&mappings), [2, LEN as u64], "announced twice, mapped once");

        assert!(first.remove(1) && !first.remove(1));
        drop(second);
        drop(ours);
        assert_eq!(blob.copy_to_vec(0, 1).unwrap(), b"x", "a held segment stays");
        drop(blob);
        assert_eq!(charged(&mappings), [0, 0]);
        first.insert(1, fd, LEN as u64).unwrap();
    }

    #[test]
    fn ids_and_limits_of_a_lane_hold_and_a_refusal_changes_nothing() {
        let mappings = mappings();
        let lane = lane(&mappings);
        let insert = |id, len: usize| lane.insert(id, sealed(len).1, len as u64);
        insert(1, LEN).unwrap();
        assert_eq!(insert(1, LEN), Err(BadSegment::Duplicate));
        assert_eq!(insert(2, 8 * LEN), Err(BadSegment::Limit));
        insert(2, 7 * LEN).unwrap();
        assert!(lane.remove(2));
        insert(2, LEN).unwrap();
        insert(3, LEN).unwrap();
        assert_eq!(insert(4, LEN), Err(BadSegment::Limit));
        assert_eq!(charged(&mappings), [3, 3 * LEN as u64]);
    }

    #[test]
    fn the_limits_of_the_bus_hold_over_all_lanes_of_a_peer_and_leave_some_to_the_next() {
        for mappings in [limited(4, 1 << 30), limited(1 << 10, 4 * LEN)] {
            let (greedy, modest) = (Holdings::none(), Holdings::none());
            let [first, second] = [(); 2].map(|()| lane_with(&mappings, &greedy));
            first.insert(1, sealed(LEN).1, LEN as u64).unwrap();
            second.insert(1, sealed(LEN).1, LEN as u64).unwrap();
            assert_eq!(second.insert(2, sealed(LEN).1, LEN as u64), Err(BadSegment::Limit));
            let other = lane_with(&mappings, &modest);
            other.insert(1, sealed(LEN).1, LEN as u64).unwrap();
            assert_eq!(other.insert(2, sealed(LEN).1, LEN as u64), Err(BadSegment::Limit));
            first.remove(1);
            drop(second);
            other.insert(2, sealed(LEN).1, LEN as u64).unwrap();
            drop((first, other));
            assert_eq!(charged(&mappings), [0, 0]);
            assert_eq!([greedy.segments.charged(), greedy.mapped.charged()], [0, 0]);
        }
    }

    #[test]
    fn what_is_mapped_no_more_is_forgotten() {
        let mappings = mappings();
        let lane = lane(&mappings);
        for id in 0..1000 {
            lane.insert(id, sealed(4096).1, 4096).unwrap();
            lane.remove(id);
        }
        assert!(mappings.known.lock().by_inode.len() < 100);
    }

    fn memfd(reserve: bool, seals: SealFlags) -> OwnedFd {
        let fd = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&fd, LEN as u64).unwrap();
        if reserve {
            rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, LEN as u64).unwrap();
        }
        rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
        fd
    }

    #[test]
    fn sparse_unsealed_short_and_foreign_files_are_refused() {
        let sealed_to_grow = SealFlags::SHRINK | SealFlags::GROW;
        let all = sealed_to_grow | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        let (pipe, _writer) = std::io::pipe().unwrap();
        let lane = lane(&mappings());
        let hostile = [
            ("sparse", memfd(false, all), LEN),
            ("not sealed", memfd(true, SealFlags::empty()), LEN),
            ("writable for others", memfd(true, sealed_to_grow | SealFlags::SEAL), LEN),
            ("shorter than it says", memfd(true, all), 2 * LEN),
            ("longer than it says", memfd(true, all), LEN / 2),
            ("empty", memfd(true, all), 0),
            ("a file", file.into(), LEN),
            ("a pipe", pipe.into(), LEN),
        ];
        for (what, fd, len) in hostile {
            let answer = lane.insert(1, fd, len as u64);
            assert!(matches!(answer, Err(BadSegment::Refused(_))), "{what}: {answer:?}");
        }
        assert_eq!(charged(&lane.mappings), [0, 0]);
        lane.insert(1, memfd(true, all), LEN as u64).unwrap();
    }

    #[test]
    fn a_length_announced_otherwise_on_another_lane_is_refused() {
        let mappings = mappings();
        let (first, second) = (lane(&mappings), lane(&mappings));
        let (_ours, fd) = sealed(LEN);
        first.insert(1, fd.try_clone().unwrap(), LEN as u64).unwrap();
        assert_eq!(second.insert(1, fd, 2 * LEN as u64), Err(BadSegment::Refused(OTHER_LENGTH)));
    }

    #[test]
    fn a_forked_child_finds_nothing_drops_all_and_may_begin_anew() {
        let mappings = mappings();
        let inherited = lane(&mappings);
        let (_ours, fd) = sealed(LEN);
        inherited.insert(1, fd, LEN as u64).unwrap();
        let held = inherited.get(1).unwrap();
        let locked = inherited.table.write();
        let also_locked = mappings.known.lock();
        let child = fork(|| {
            let nothing = inherited.get(1).is_none() && !inherited.remove(1);
            let refused = inherited.insert(2, sealed(LEN).1, LEN as u64).is_err();
            // SAFETY: this child's copies are not used again; the parent's are other memory.
            drop(unsafe { std::ptr::read(&held) });
            let own = lane(&self::mappings());
            let begun = own.insert(1, sealed(LEN).1, LEN as u64).is_ok();
            i32::from(!(nothing && refused && begun))
        });
        assert_eq!(child_status(child), 0);
        drop((locked, also_locked));
        assert_eq!(held.copy_to_vec(0, 1).unwrap(), [0], "the parent's mapping is as before");
    }
}
