//! The atomics that the ring is written with: the real ones, or loom's when its models run.
//!
//! A [`Word`] is a 32-bit atomic that a process can sleep on. In production that is a futex in shared memory; under
//! loom a lock and a condition variable which compare under the lock, as the kernel does.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::Ordering;
#[cfg(loom)]
pub(crate) use weakened::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};

#[cfg(not(loom))]
pub(crate) use parking_lot::Mutex;

/// loom's lock, with the interface of the real one.
#[cfg(loom)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(loom)]
impl<T> Mutex<T> {
    pub fn new(value: T) -> Mutex<T> {
        Mutex(loom::sync::Mutex::new(value))
    }

    pub fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
}

/// loom's fence, unless the model that runs leaves it out to show that it is needed.
#[cfg(loom)]
#[track_caller]
pub(crate) fn fence(order: Ordering) {
    if !left_out::has(left_out::Part::Fence, std::panic::Location::caller()) {
        loom::sync::atomic::fence(order);
    }
}

/// loom's atomics, whose accesses are relaxed where the model that runs leaves their order out to show that it is needed.
#[cfg(loom)]
mod weakened {
    use std::panic::Location;

    use loom::sync::atomic::{self, Ordering};

    use super::left_out::{self, Part};

    #[track_caller]
    fn left(order: Ordering) -> Ordering {
        if left_out::has(Part::Order, Location::caller()) { Ordering::Relaxed } else { order }
    }

    macro_rules! atomic {
        ($name:ident, $value:ty, $($fetch:ident)*) => {
            #[derive(Debug)]
            pub(crate) struct $name(atomic::$name);

            impl $name {
                #[track_caller]
                pub fn new(value: $value) -> $name {
                    $name(atomic::$name::new(value))
                }

                #[track_caller]
                pub fn load(&self, order: Ordering) -> $value {
                    self.0.load(left(order))
                }

                #[track_caller]
                pub fn store(&self, value: $value, order: Ordering) {
                    self.0.store(value, left(order));
                }

                #[track_caller]
                pub fn compare_exchange(
                    &self,
                    old: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    self.0.compare_exchange(old, new, left(success), left(failure))
                }

                #[track_caller]
                pub fn compare_exchange_weak(
                    &self,
                    old: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    self.0.compare_exchange_weak(old, new, left(success), left(failure))
                }

                #[track_caller]
                pub fn fetch_update(
                    &self,
                    success: Ordering,
                    failure: Ordering,
                    f: impl FnMut($value) -> Option<$value>,
                ) -> Result<$value, $value> {
                    self.0.fetch_update(left(success), left(failure), f)
                }

                $(#[track_caller]
                pub fn $fetch(&self, value: $value, order: Ordering) -> $value {
                    self.0.$fetch(value, left(order))
                })*
            }
        };
    }

    atomic!(AtomicBool, bool, swap fetch_or fetch_and);
    atomic!(AtomicU32, u32, swap fetch_add fetch_sub fetch_or fetch_and fetch_xor);
    atomic!(AtomicU64, u64, swap fetch_add fetch_sub fetch_or fetch_and fetch_xor);
    atomic!(AtomicUsize, usize, swap fetch_add fetch_sub fetch_or fetch_and fetch_xor);
}

/// The function whose fences or orders a model leaves out: the ring's own code runs, less that.
#[cfg(loom)]
pub(crate) mod left_out {
    use std::cell::Cell;
    use std::ops::Range;
    use std::panic::Location;

    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum Part {
        Fence,
        /// Every access is relaxed.
        Order,
    }

    type Place = (Part, &'static str, u32, u32);

    thread_local! {
        // All threads of a model share one of the system's; tests have one each.
        static PLACE: Cell<Option<Place>> = const { Cell::new(None) };
    }

    /// Leaves out `part` of `lines` of the file whose name ends with `file`, in this test.
    pub fn set(part: Part, file: &'static str, lines: Range<u32>) {
        PLACE.set(Some((part, file, lines.start, lines.end)));
    }

    pub fn has(part: Part, here: &Location<'_>) -> bool {
        PLACE.get().is_some_and(|(set, file, start, end)| {
            part == set && here.file().ends_with(file) && (start..end).contains(&here.line())
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
