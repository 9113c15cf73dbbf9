//! How many bytes of shared memory a bus may have made, and how much the processes at the other ends may have it hold.
//!
//! Limits of our own, because the kernel's are deadly: shared memory is charged to the memory cgroup, and at the
//! cgroup's limit the kernel kills instead of failing an allocation; and a process that has as many mappings as the kernel
//! allows can map nothing more, the stacks of its threads included.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::returns;

/// The limit, or the system, leaves no room for what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoMemory;

/// The memory assumed, in bytes, where the system does not tell (no /proc): half of it is found on any machine that runs
/// a bus, and a builder's explicit limit overrides it.
const UNKNOWN_MEMORY: u64 = 1 << 30;

/// A number of bytes, or of things, that all who hold a clone of it may take together.
#[derive(Clone, Debug)]
pub(crate) struct MemoryLimit(Arc<Account>);

/// What one peer process makes this one hold, over all its lanes. Counted here, limited by who charges it.
#[derive(Clone, Debug)]
pub(crate) struct Holdings {
    /// Segments of its that are announced, once for each lane.
    pub(crate) segments: MemoryLimit,
    /// Bytes of its segments that are mapped.
    pub(crate) mapped: MemoryLimit,
    /// Bytes of spilled bodies of its calls: requests that run, and answers that it has not copied out.
    pub(crate) in_flight: MemoryLimit,
}

impl Holdings {
    pub(crate) fn none() -> Holdings {
        let uncounted = || MemoryLimit::new(u64::MAX);
        Holdings { segments: uncounted(), mapped: uncounted(), in_flight: uncounted() }
    }
}

#[derive(Debug)]
struct Account {
    limit: u64,
    /// At most `limit`.
    charged: AtomicU64,
}

impl MemoryLimit {
    pub(crate) fn new(bytes: u64) -> MemoryLimit {
        MemoryLimit(Arc::new(Account { limit: bytes, charged: AtomicU64::new(0) }))
    }

    /// Half of the memory that this process may use: of the machine's, or of its cgroup's if that is less.
    pub(crate) fn of_this_system() -> MemoryLimit {
        let cgroups = cgroup_limit(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
        let memory = machine_memory(Path::new("/proc/meminfo")).unwrap_or(UNKNOWN_MEMORY);
        MemoryLimit::new(cgroups.map_or(memory, |limit| limit.min(memory)) / 2)
    }

    /// All the memory of the machine.
    pub(crate) fn of_this_machine() -> MemoryLimit {
        MemoryLimit::new(machine_memory(Path::new("/proc/meminfo")).unwrap_or(UNKNOWN_MEMORY))
    }

    pub(crate) fn limit(&self) -> u64 {
        self.0.limit
    }

    pub(crate) fn charged(&self) -> u64 {
        self.0.charged.load(Ordering::Relaxed)
    }

    /// Takes `bytes` until the charge is dropped.
    ///
    /// The number guards nothing but itself. SeqCst for who waits for memory: either the waiter finds here what was given
    /// back, or who gave it back finds the waiter (`blob/returns.rs`).
    pub(crate) fn charge(&self, bytes: u64) -> Result<Charge, NoMemory> {
        self.charge_within(bytes, self.0.limit)
    }

    /// As [`charge`](Self::charge), with a limit for this charge only.
    pub(crate) fn charge_within(&self, bytes: u64, limit: u64) -> Result<Charge, NoMemory> {
        self.0
            .charged
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |charged| {
                charged.checked_add(bytes).filter(|&sum| sum <= limit)
            })
            .map_err(|_| NoMemory)?;
        Ok(Charge { account: Arc::clone(&self.0), bytes })
    }

    /// Takes `bytes` of what all peers share for one of them, which has `own` so far: it may come to have as much as is
    /// left then for all the others. So one peer gets half, two a third each, and however many of them are greedy, the
    /// next one finds something.
    ///
    /// Two threads at once may each count what the other is about to take, which errs on the side of refusing.
    pub(crate) fn charge_share(&self, own: &MemoryLimit, bytes: u64) -> Result<[Charge; 2], NoMemory> {
        let left = |taken: u64| self.0.limit.saturating_sub(self.charged().saturating_add(taken));
        own.look_for(bytes, left(bytes))?;
        self.charge_after(bytes, || own.charge_within(bytes, left(0).min(own.0.limit)))
    }

    /// Takes `bytes` of this and of `own`, a part of it.
    pub(crate) fn charge_both(&self, own: &MemoryLimit, bytes: u64) -> Result<[Charge; 2], NoMemory> {
        own.look_for(bytes, own.0.limit)?;
        self.charge_after(bytes, || own.charge(bytes))
    }

    /// Whether so many more bytes are within `limit` and the own one, at this moment.
    fn look_for(&self, bytes: u64, limit: u64) -> Result<(), NoMemory> {
        let sum = self.0.charged.load(Ordering::SeqCst).checked_add(bytes);
        sum.filter(|&sum| sum <= limit.min(self.0.limit)).map(drop).ok_or(NoMemory)
    }

    /// Takes `bytes` of this, and then what `own` takes.
    ///
    /// Who waits for memory may meet what is given back at once if that fails, so that is announced. To be called only where
    /// it should not fail: a waiter that went on announcing its own failure would never sleep.
    fn charge_after(
        &self,
        bytes: u64,
        own: impl FnOnce() -> Result<Charge, NoMemory>,
    ) -> Result<[Charge; 2], NoMemory> {
        let shared = self.charge(bytes)?;
        match own() {
            Ok(own) => Ok([shared, own]),
            Err(NoMemory) => {
                drop(shared);
                returns::announce();
                Err(NoMemory)
            }
        }
    }
}

/// Bytes taken from a [`MemoryLimit`], given back when dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    account: Arc<Account>,
    bytes: u64,
}

impl Charge {
    /// Takes `bytes` out of it, to be given back by themselves; all that it has, if that is less.
    pub(crate) fn split(&mut self, bytes: u64) -> Charge {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Charge { account: Arc::clone(&self.account), bytes }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.charged.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

fn machine_memory(meminfo: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(meminfo).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The lowest memory limit of the cgroups above this process, of either version, mounted at the usual place.
fn cgroup_limit(membership: &Path, mount: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(membership).ok()?;
    text.lines().filter_map(|line| limit_of_membership(line, mount)).min()
}

/// The limit named by one line `hierarchy:controllers:/path` of /proc/self/cgroup.
fn limit_of_membership(line: &str, mount: &Path) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
    if controllers.is_empty() {
        return lowest_on_the_way_up(mount, path, "memory.max");
    }
    let is_memory = controllers.split(',').any(|controller| controller == "memory");
    is_memory.then(|| lowest_on_the_way_up(&mount.join("memory"), path, "memory.limit_in_bytes"))?
}

/// A group's limit binds all groups below it. A container sees its own group as the root of the mount, so a
/// directory that is missing here is passed over, not an end.
fn lowest_on_the_way_up(mount: &Path, path: &str, file: &str) -> Option<u64> {
    let group: PathBuf = mount.join(path);
    let groups = group.ancestors().take_while(|group| group.starts_with(mount));
    groups.filter_map(|group| std::fs::read_to_string(group.join(file)).ok()?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_stop_at_the_limit_and_come_back() {
        let limit = MemoryLimit::new(100);
        let sixty = limit.charge(60).unwrap();
        let forty = limit.clone().charge(40).unwrap();
        assert_eq!(limit.charge(1).unwrap_err(), NoMemory);
        assert_eq!(limit.charge(u64::MAX).unwrap_err(), NoMemory, "the sum must not wrap");
        drop(sixty);
        assert_eq!(limit.charged(), 40);
        drop(forty);
        assert!(limit.charge(100).is_ok());
    }

    #[test]
    fn a_part_of_a_charge_comes_back_by_itself() {
        let limit = MemoryLimit::new(100);
        let mut whole = limit.charge(60).unwrap();
        let part = whole.split(20);
        drop(whole);
        assert_eq!(limit.charged(), 20);
        let mut rest = part;
        drop(rest.split(u64::MAX));
        assert_eq!(limit.charged(), 0, "no more than there is");
        drop(rest);
        assert_eq!(limit.charged(), 0);
    }

    #[test]
    fn a_peer_gets_as_much_as_it_leaves() {
        let all = MemoryLimit::new(120);
        let peers: [_; 3] = std::array::from_fn(|_| MemoryLimit::new(u64::MAX));
        let fill =
            |own: &MemoryLimit| -> Vec<_> { std::iter::from_fn(|| all.charge_share(own, 1).ok()).collect() };
        let first = fill(&peers[0]);
        assert_eq!(first.len(), 60, "alone: half");
        let second = fill(&peers[1]);
        assert_eq!(second.len(), 30, "half of what was left");
        assert_eq!(fill(&peers[2]).len(), 15);
        assert_eq!(all.charged(), 90, "a refusal takes nothing");
        drop(first);
        assert_eq!((all.charged(), peers[0].charged()), (30, 0));
        assert_eq!(fill(&peers[1]).len(), 30, "alone again: half, with what it has");
        drop(second);
        assert_eq!(peers[1].charged(), 0);
    }

    #[test]
    fn the_default_is_at_most_half_of_the_machine() {
        let memory = machine_memory(Path::new("/proc/meminfo")).unwrap();
        let limit = MemoryLimit::of_this_system().limit();
        assert!(limit > 0 && limit <= memory / 2, "{limit} of {memory}");
    }

    fn tree(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("objbus-limit-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_lowest_group_on_the_way_up_counts_in_either_version() {
        let v2 = tree(
            "v2",
            &[
                ("self", "0::/user/app\n"),
                ("mount/memory.max", "9000\n"),
                ("mount/user/memory.max", "3000\n"),
                ("mount/user/app/memory.max", "max\n"),
            ],
        );
        assert_eq!(cgroup_limit(&v2.join("self"), &v2.join("mount")), Some(3000));

        let v1 = tree(
            "v1",
            &[
                ("self", "4:cpu,memory:/docker/abc\n3:pids:/docker/abc\n0::/\n"),
                ("mount/memory/memory.limit_in_bytes", "5000\n"),
                ("mount/pids/docker/abc/memory.max", "1\n"),
            ],
        );
        assert_eq!(cgroup_limit(&v1.join("self"), &v1.join("mount")), Some(5000));
        assert_eq!(cgroup_limit(&v1.join("nowhere"), &v1.join("mount")), None);
        for root in [v2, v1] {
            std::fs::remove_dir_all(root).unwrap();
        }
    }
}
