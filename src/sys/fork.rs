//! Tells a forked child that it is one, so that nothing of the parent's is used in it.
//!
//! A process has a generation, larger than that of each of its ancestors; whoever holds a resource remembers the
//! generation it was made in. The number lies in a page that the kernel wipes in a child (`MADV_WIPEONFORK`), so even a
//! raw `clone` that runs no `pthread_atfork` handler reads 0 there and gets a new one on the slow path.
//!
//! After `fork`, the handler closes the descriptors of [`Fd`](super::fd::Fd). After a raw `clone` they stay open until
//! exec or exit: the child may have closed them itself and reused their numbers before it first comes here, or share the
//! parent's table (`CLONE_FILES`), so closing would hit strangers. A child that shares the memory as well (`vfork`,
//! `posix_spawn`) is its parent to us, and may do nothing but exec.

use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::fd;
use super::features::{self, Feature};
use super::memfd;

/// Where the generation lies: null before first use, then for ever the same word. It holds 0 in a child not yet noticed.
static WORD: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

/// Stands in for the page where none can be had; then only children made by `fork` are noticed.
static PLAIN: AtomicU32 = AtomicU32::new(0);

/// The last generation given out in this process or an ancestor; never wiped, so a child continues from it.
static LAST: AtomicU32 = AtomicU32::new(0);

/// The process that last came to the slow path, 0 for none: tells a first use from an inherited one.
static SETTLED_BY: AtomicI32 = AtomicI32::new(0);

/// This process's generation, never 0.
#[inline]
pub(crate) fn generation() -> u32 {
    match read() {
        0 => settle(),
        generation => generation,
    }
}

/// Whether this process is a child forked since `generation` was taken: one predictable load.
#[inline]
pub(crate) fn forked_since(generation: u32) -> bool {
    debug_assert_ne!(generation, 0, "a generation comes from generation()");
    read() != generation
}

#[inline]
fn read() -> u32 {
    let word = WORD.load(Ordering::Acquire);
    if word.is_null() {
        return 0;
    }
    // SAFETY: a pointer once stored in WORD is that of PLAIN or of a page that is never unmapped; its content was zero
    // when it was stored (Acquire pairs with the Release in `install`), and all access to it is atomic.
    unsafe { &*word }.load(Ordering::Relaxed)
}

/// Gives this process a generation: at first use, or in a child that no handler has told.
#[cold]
fn settle() -> u32 {
    let word = word();
    let pid = rustix::process::getpid().as_raw_pid();
    let before = SETTLED_BY.swap(pid, Ordering::Relaxed);
    if before != 0 && before != pid {
        // What the bitmap lists was the parent's.
        fd::forget_all();
    }
    let next = next();
    // Another thread of the same child may be here too; the first to store decides for both. Relaxed: the number
    // guards no other memory.
    match word.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => next,
        Err(settled) => settled,
    }
}

fn next() -> u32 {
    LAST.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1)
}

fn word() -> &'static AtomicU32 {
    let mut word = WORD.load(Ordering::Acquire);
    if word.is_null() {
        word = install();
    }
    // SAFETY: as in `read`.
    unsafe { &*word }
}

/// Makes the page and the handlers, once. Without a lock: a lock held by another thread while this one forks would
/// hang the child.
fn install() -> *mut AtomicU32 {
    let fresh = wiped_page().unwrap_or_else(|| ptr::from_ref(&PLAIN).cast_mut());
    match WORD.compare_exchange(ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            // SAFETY: the handlers touch atomics and close(2) alone, which is all that a child of a process with several
            // threads may do. A failure (no memory) leaves the page, which tells as much, only without closing.
            unsafe { libc::pthread_atfork(Some(before_fork), None, Some(in_child)) };
            fresh
        }
        // Another thread was first; the page made here, if any, stays unused: at most one per racing thread.
        Err(theirs) => theirs,
    }
}

fn wiped_page() -> Option<*mut AtomicU32> {
    if features::disabled(Feature::WipeOnFork) {
        return None;
    }
    let len = memfd::page_size();
    // SAFETY: a fresh private mapping at an address of the kernel's choice overlaps nothing.
    let page = unsafe {
        rustix::mm::mmap_anonymous(
            ptr::null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    }
    .ok()?;
    // SAFETY: the range is the mapping just made; wiping it in children is what its only user expects.
    if unsafe { rustix::mm::madvise(page, len, Advice::LinuxWipeOnFork) }.is_err() {
        // SAFETY: nothing refers to the mapping yet.
        let _ = unsafe { rustix::mm::munmap(page, len) };
        return None;
    }
    Some(page.cast())
}

/// A raw clone that now forks must not let the handler in its child close what only its own parent had.
extern "C" fn before_fork() {
    generation();
}

extern "C" fn in_child() {
    fd::close_all();
    word().store(next(), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::{child_status, fork, raw_clone};

    #[test]
    fn the_same_process_keeps_its_generation() {
        let here = generation();
        assert_ne!(here, 0);
        assert_eq!(generation(), here);
        assert!(!forked_since(here));
    }

    #[test]
    fn a_forked_child_is_told() {
        let here = generation();
        let child = fork(|| i32::from(!(forked_since(here) && generation() > here)));
        assert_eq!(child_status(child), 0);
        assert!(!forked_since(here), "the parent's generation has changed");
    }

    #[test]
    fn a_raw_clone_is_told_without_any_handler() {
        let here = generation();
        let child = raw_clone(|| {
            let told = forked_since(here);
            let own = generation();
            i32::from(!(told && own > here && !forked_since(own)))
        });
        assert_eq!(child_status(child), 0);
    }

    #[test]
    fn each_descendant_has_a_larger_generation() {
        let here = generation();
        let child = fork(move || {
            let own = generation();
            let grandchild = raw_clone(|| i32::from(!(generation() > own && own > here)));
            child_status(grandchild)
        });
        assert_eq!(child_status(child), 0);
    }
}
