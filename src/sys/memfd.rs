//! Memory shared between two processes: written by its maker alone, mapped read-only by whoever receives it.
//!
//! The maker allocates all of it, maps it writable, then seals it (`SHRINK|GROW|FUTURE_WRITE|SEAL`): from then on nobody,
//! the maker included, can resize it, punch holes into it or map it writable once more. The receiver checks all that
//! before it maps, so that no later access can fault.

use std::os::fd::AsFd;
use std::ptr::{self, NonNull};

use rustix::fs::{FallocateFlags, FileType, MemfdFlags, SealFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::fd::Fd;
use super::features::{self, Feature};
use super::fork;

/// What makes a segment safe to read: no resize, no hole, no new writable mapping, and none of that ever lifted.
const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

/// What fstatfs reports for tmpfs and for memfds on it; hugetlb segments report another.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// The unit of `st_blocks`, in bytes.
const BLOCK: u64 = 512;

/// How much is allocated per system call, in bytes: a signal undoes the piece in hand, so it must be short.
const ALLOCATION_STEP: usize = 4 << 20;

/// Bytes of a page. Asked of libc, since rustix reads it from an area that a debugger's kernel may not have mapped.
pub(crate) fn page_size() -> usize {
    // SAFETY: sysconf takes a number and touches no memory of ours.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

/// A mapped segment, unmapped on drop. It is absent in forked children and in core dumps.
#[derive(Debug)]
pub(crate) struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
    /// The process it was mapped in: in a child, the addresses are free or another's.
    generation: u32,
}

// SAFETY: the mapping is plain memory that outlives no handle to it; who reads or writes through the pointer must argue
// its own synchronisation, as for any raw pointer.
unsafe impl Send for Mapping {}
// SAFETY: as for Send; `&Mapping` gives out an address and a length only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// The first byte; valid for `len` bytes until drop, in the process that mapped it.
    pub(crate) fn ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// The length in bytes, never 0.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether this process was forked from the one that mapped it; then `ptr` must not be touched.
    pub(crate) fn is_inherited(&self) -> bool {
        fork::forked_since(self.generation)
    }

    fn new(fd: impl AsFd, len: usize, prot: ProtFlags) -> Result<Mapping, Errno> {
        let generation = fork::generation();
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe { rustix::mm::mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, fd, 0) }?;
        let ptr = NonNull::new(start.cast()).expect("the kernel never maps page 0 by its own choice");
        let mapping = Mapping { ptr, len, generation };
        mapping.advise(Advice::LinuxDontFork)?;
        mapping.advise(Advice::LinuxDontDump)?;
        Ok(mapping)
    }

    fn advise(&self, advice: Advice) -> Result<(), Errno> {
        // SAFETY: the range is this mapping; both pieces of advice used leave its content in this process alone.
        unsafe { rustix::mm::madvise(self.ptr.as_ptr().cast(), self.len, advice) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.is_inherited() {
            return;
        }
        // SAFETY: the range was mapped by `new` in this process and is unmapped only here; no pointer taken from the
        // mapping may be used after it.
        let unmapped = unsafe { rustix::mm::munmap(self.ptr.as_ptr().cast(), self.len) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

/// Why a received descriptor was not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadSegment {
    /// It is not a sealed segment of the size agreed on; the text says what it lacks.
    Untrusted(&'static str),
    /// The system could not map it: no memory, or too many mappings.
    System(Errno),
}

/// Makes a segment of `len` bytes, all zero and all allocated, and maps it writable; the descriptor is for sending.
///
/// `name` shows in `/proc/<pid>/maps` only. Errors: `INVAL` for a length of 0, `MFILE`/`NFILE`, `NOMEM`/`NOSPC`. At a
/// cgroup's memory limit the kernel kills instead of failing, so callers keep below limits of their own.
pub(crate) fn create_sealed(name: &str, len: usize) -> Result<(Mapping, Fd), Errno> {
    let fd = create(name)?;
    rustix::fs::ftruncate(&fd, len as u64)?;
    allocate(&fd, len)?;
    let mapping = Mapping::new(&fd, len, ProtFlags::READ | ProtFlags::WRITE)?;
    rustix::fs::fcntl_add_seals(&fd, SEALS)?;
    Ok((mapping, fd))
}

fn create(name: &str) -> Result<Fd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if !features::disabled(Feature::NoexecSeal) {
        match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
            // Before Linux 6.3, or a bad name; the second attempt tells.
            Err(Errno::INVAL) => {}
            made => return made.map(Fd::from),
        }
    }
    rustix::fs::memfd_create(name, flags).map(Fd::from)
}

fn allocate(fd: &Fd, len: usize) -> Result<(), Errno> {
    for start in (0..len).step_by(ALLOCATION_STEP) {
        let step = ALLOCATION_STEP.min(len - start);
        retry_on_intr(|| rustix::fs::fallocate(fd, FallocateFlags::empty(), start as u64, step as u64))?;
    }
    Ok(())
}

/// Maps a segment received from another process read-only, after checking that it is one and has `len` bytes.
pub(crate) fn receive_sealed(fd: impl AsFd, len: usize) -> Result<Mapping, BadSegment> {
    check(&fd, len).map_err(BadSegment::Untrusted)?;
    Mapping::new(&fd, len, ProtFlags::READ).map_err(BadSegment::System)
}

/// The seals come first: once they are known to hold, nothing checked after them can change.
fn check(fd: impl AsFd, len: usize) -> Result<(), &'static str> {
    let seals = rustix::fs::fcntl_get_seals(&fd).map_err(|_| "it is not a memfd")?;
    if !seals.contains(SEALS) {
        return Err("it is not sealed against shrinking, growing and writing");
    }
    let system = rustix::fs::fstatfs(&fd).map_err(|_| "its file system is unknown")?;
    if system.f_type as i64 != TMPFS_MAGIC {
        return Err("it is not on tmpfs");
    }
    let stat = rustix::fs::fstat(&fd).map_err(|_| "its size is unknown")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("it is not a regular file");
    }
    if len == 0 || u64::try_from(stat.st_size) != Ok(len as u64) {
        return Err("its size is not the size agreed on");
    }
    if (stat.st_blocks as u64).saturating_mul(BLOCK) < len as u64 {
        return Err("it is sparse");
    }
    Ok(())
}

/// What identifies the segment behind a descriptor while any process holds it: device and inode.
pub(crate) fn identity(fd: impl AsFd) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests;
