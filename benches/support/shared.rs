//! Plain shared memory for the floors: one memfd, mapped by both processes, holding one value made of atomics.

use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// What may be shared this way.
///
/// # Safety
///
/// All-zero bytes are a valid value, and every field that is written after the mapping is an atomic, or lies in an `UnsafeCell`
/// that atomics hand to and fro.
pub unsafe trait Plain {}

/// A `T` in memory that another process maps as well.
pub struct Shared<T: Plain> {
    fd: OwnedFd,
    at: *const T,
}

impl<T: Plain> Shared<T> {
    /// New memory, all zero.
    pub fn new() -> Shared<T> {
        let fd = memfd_create("objbus-bench", MemfdFlags::CLOEXEC).expect("memfd_create");
        ftruncate(&fd, size_of::<T>() as u64).expect("sizing a memfd");
        Shared::map(fd)
    }

    /// Maps what the other process made; `fd` is the descriptor inherited from it.
    pub fn map(fd: OwnedFd) -> Shared<T> {
        // SAFETY: a fresh mapping chosen by the kernel overlaps nothing. The memfd has the size of a `T`: it was made by `new`
        // in this process or in the parent, which runs the same binary.
        let at = unsafe {
            let (access, kind) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
            mmap(std::ptr::null_mut(), size_of::<T>(), access, kind, fd.as_fd(), 0)
        };
        Shared { fd, at: at.expect("mapping a memfd").cast() }
    }

    /// The descriptor to hand to the other process.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

impl<T: Plain> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the mapping lives as long as `self`; `Plain` says that its bytes are a `T` and that only what is
        // made for it changes.
        unsafe { &*self.at }
    }
}

impl<T: Plain> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the range is the one that `map` received, and `deref` lends it for no longer than `self` lives.
        unsafe { munmap(self.at.cast_mut().cast(), size_of::<T>()).expect("unmapping our own mapping") }
    }
}
