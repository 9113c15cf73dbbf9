//! Which processor runs this thread, and how many this process may use.

/// The number of the processor that ran this thread a moment ago; `u16::MAX` if the kernel does not say.
#[inline]
pub(crate) fn current() -> u16 {
    #[cfg(all(target_arch = "x86_64", target_pointer_width = "64", target_env = "gnu"))]
    if let Some(cpu) = rseq::cpu() {
        return cpu;
    }
    asked()
}

/// By libc, which answers from the kernel's area per thread as well, else through the vDSO or a system call.
fn asked() -> u16 {
    // SAFETY: the function takes nothing and touches no memory of ours.
    let cpu = unsafe { libc::sched_getcpu() };
    u16::try_from(cpu).unwrap_or(u16::MAX)
}

/// The area per thread in which the kernel keeps the processor's number (restartable sequences); glibc 2.35 and later
/// registers it and tells where it lies. Some 0.7 ns, where libc's function takes 2 to 4.
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64", target_env = "gnu"))]
mod rseq {
    use std::arch::asm;
    use std::sync::atomic::{AtomicIsize, Ordering};

    /// Nobody has looked for the area yet.
    const UNKNOWN: isize = isize::MAX;
    /// There is none.
    const NONE: isize = isize::MAX - 1;

    /// From the thread pointer to the area, in bytes. Relaxed: everyone finds the same, and it guards nothing.
    static OFFSET: AtomicIsize = AtomicIsize::new(UNKNOWN);

    #[inline]
    pub(super) fn cpu() -> Option<u16> {
        let mut offset = OFFSET.load(Ordering::Relaxed);
        if offset == UNKNOWN {
            offset = find();
        }
        if offset == NONE {
            return None;
        }
        let cpu: i32;
        // SAFETY: glibc has registered an area of at least 32 bytes at this offset from the thread pointer (`fs`) of every
        // thread, for the thread's life; `cpu_id` is its second 32-bit word. The load changes nothing.
        unsafe {
            asm!("mov {0:e}, fs:[{1} + 4]", out(reg) cpu, in(reg) offset, options(nostack, readonly, preserves_flags))
        };
        // Negative where the kernel refused this thread's registration.
        u16::try_from(cpu).ok()
    }

    #[cold]
    fn find() -> isize {
        let offset = announced().unwrap_or(NONE);
        OFFSET.store(offset, Ordering::Relaxed);
        offset
    }

    fn announced() -> Option<isize> {
        // SAFETY: the names are strings with a NUL; looking them up has no other effect.
        let (offset, size) = unsafe {
            (
                libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<isize>(),
                libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()).cast::<u32>(),
            )
        };
        if offset.is_null() || size.is_null() {
            return None;
        }
        // SAFETY: glibc defines both as constants of these types, set before any code of the program's runs.
        let (offset, size) = unsafe { (offset.read(), size.read()) };
        // A size of 0 says that registering failed or was switched off.
        (size > 0).then_some(offset)
    }
}

/// Whether a thread of this process can look for what a process on another processor does without keeping that one from
/// doing it: there are two processors, and no quota that both would be charged to allows less than two.
///
/// The affinity mask does not matter: a process pinned to one processor may well look for one pinned to another. Whether the
/// two do share one is seen at each wait.
pub(crate) fn can_spin() -> bool {
    // SAFETY: sysconf takes a number and touches no memory of ours.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    let in_mask = rustix::thread::sched_getaffinity(None).map_or(1, |mask| mask.count() as usize);
    let has_quota = usable() < in_mask;
    online > 1 && !(has_quota && usable() < 2)
}

/// How many processors this process may use at once, at least 1: by its affinity mask and its cgroup's quota.
pub(crate) fn usable() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(all(target_arch = "x86_64", target_pointer_width = "64", target_env = "gnu"))]
    fn the_short_way_is_taken_where_libc_offers_it() {
        // SAFETY: looking a name up has no other effect.
        let offered = unsafe { !libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).is_null() };
        assert_eq!(rseq::cpu().is_some(), offered);
    }

    #[test]
    fn a_pinned_thread_is_where_it_was_pinned() {
        let mut mask = rustix::thread::CpuSet::new();
        let cpu = current();
        mask.set(cpu.into());
        let pinned = std::thread::spawn(move || {
            rustix::thread::sched_setaffinity(None, &mask).unwrap();
            (current(), asked(), usable())
        });
        assert_eq!(pinned.join().unwrap(), (cpu, cpu, 1));
        assert!(usable() >= 1);
    }
}
