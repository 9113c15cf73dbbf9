//! Which processor runs this thread, and how many this process may use.

/// The number of the processor that ran this thread a moment ago; `u16::MAX` if the kernel does not say.
///
/// libc answers from the area the kernel keeps per thread (rseq) where there is one, else through the vDSO.
#[inline]
pub(crate) fn current() -> u16 {
    // SAFETY: the function takes nothing and touches no memory of ours.
    let cpu = unsafe { libc::sched_getcpu() };
    u16::try_from(cpu).unwrap_or(u16::MAX)
}

/// How many processors this process may use at once, at least 1: by its affinity mask and its cgroup's quota.
pub(crate) fn usable() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_is_where_it_was_pinned() {
        let mut mask = rustix::thread::CpuSet::new();
        let cpu = current();
        mask.set(cpu.into());
        let pinned = std::thread::spawn(move || {
            rustix::thread::sched_setaffinity(None, &mask).unwrap();
            (current(), usable())
        });
        assert_eq!(pinned.join().unwrap(), (cpu, 1));
        assert!(usable() >= 1);
    }
}
