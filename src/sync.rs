//! The atomics that the ring is written with: the real ones, or loom's when its models run.
//!
//! A [`Word`] is a 32-bit atomic that a process can sleep on. In production that is a futex in shared memory; under
//! loom a lock and a condition variable which compare under the lock, as the kernel does.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// loom's fence, unless the model that runs leaves it out to show that it is needed.
#[cfg(loom)]
#[track_caller]
pub(crate) fn fence(order: Ordering) {
    if !left_out::has(std::panic::Location::caller()) {
        loom::sync::atomic::fence(order);
    }
}

/// The function whose fence a model leaves out: the ring's own code runs, less one line of it.
#[cfg(loom)]
pub(crate) mod left_out {
    use std::cell::Cell;
    use std::ops::Range;
    use std::panic::Location;

    type Place = (&'static str, u32, u32);

    thread_local! {
        // All threads of a model share one of the system's; tests have one each.
        static PLACE: Cell<Option<Place>> = const { Cell::new(None) };
    }

    /// Leaves out the fence in `lines` of the file whose name ends with `file`, in this test.
    pub fn set(file: &'static str, lines: Range<u32>) {
        PLACE.set(Some((file, lines.start, lines.end)));
    }

    pub fn has(here: &Location<'_>) -> bool {
        PLACE.get().is_some_and(|(file, start, end)| {
            here.file().ends_with(file) && (start..end).contains(&here.line())
        })
    }
}

/// Tells the processor that this is a spin loop; under loom, that another thread must run for it to end.
#[inline(always)]
pub(crate) fn spin_hint() {
    #[cfg(not(loom))]
    core::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
}

/// Has the first cache line of `at` brought over, for storing to it soon.
#[inline(always)]
pub(crate) fn prefetch_for_write<T>(at: &T) {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    // SAFETY: a hint, which changes neither memory nor registers; processors that do not know it do nothing.
    unsafe {
        core::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags));
    }
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    let _ = at;
}

/// A 32-bit word that a thread of any process can sleep on until it changes.
#[repr(C)]
pub(crate) struct Word {
    value: AtomicU32,
    #[cfg(loom)]
    queue: (loom::sync::Mutex<()>, loom::sync::Condvar),
}

impl Word {
    #[cfg(loom)]
    pub fn new(value: u32) -> Word {
        Word { value: AtomicU32::new(value), queue: (loom::sync::Mutex::new(()), loom::sync::Condvar::new()) }
    }

    #[inline(always)]
    pub fn load(&self, order: Ordering) -> u32 {
        self.value.load(order)
    }

    #[inline(always)]
    pub fn store(&self, value: u32, order: Ordering) {
        self.value.store(value, order);
    }

    /// Sleeps while the word holds `expected`, at most until `deadline_ns` (CLOCK_MONOTONIC; `None`: no limit).
    ///
    /// Every return means "look again": woken, changed, timed out and interrupted are not told apart.
    #[cfg(not(loom))]
    pub fn sleep(&self, expected: u32, deadline_ns: Option<u64>) {
        crate::sys::futex::wait(&self.value, expected, deadline_ns);
    }

    #[cfg(loom)]
    pub fn sleep(&self, expected: u32, _deadline_ns: Option<u64>) {
        let guard = self.queue.0.lock().unwrap();
        if self.load(Ordering::Relaxed) == expected {
            drop(self.queue.1.wait(guard).unwrap());
        }
    }

    /// Wakes whoever sleeps on the word.
    #[cfg(not(loom))]
    #[cold]
    pub fn wake(&self) {
        crate::sys::futex::wake(&self.value, i32::MAX as u32);
    }

    #[cfg(loom)]
    pub fn wake(&self) {
        drop(self.queue.0.lock().unwrap());
        self.queue.1.notify_all();
    }
}
