//! What a process has used, from `/proc`, so that one side can look at the other: context switches, faults, CPU time, memory.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Totals over the threads that a process has now; those of threads that ended are not in it, except the faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// How often a thread gave up its CPU: went to sleep.
    pub voluntary_switches: u64,
    /// How often a thread's CPU was taken from it.
    pub involuntary_switches: u64,
    /// Pages that had to be set up, whether a disk was read for them or not.
    pub faults: u64,
    /// Time on a CPU, in user and kernel mode.
    pub cpu: Duration,
}

impl Counters {
    /// Those of process `pid` now.
    pub fn of(pid: u32) -> io::Result<Counters> {
        let process = Path::new("/proc").join(pid.to_string());
        let mut sum = Counters { faults: faults(&process)?, ..Counters::default() };
        for thread in fs::read_dir(process.join("task"))? {
            let thread = thread?.path();
            let status = fs::read_to_string(thread.join("status"))?;
            sum.voluntary_switches += field(&status, "voluntary_ctxt_switches:");
            sum.involuntary_switches += field(&status, "nonvoluntary_ctxt_switches:");
            let on_cpu = fs::read_to_string(thread.join("schedstat"))?;
            let nanoseconds = on_cpu.split_whitespace().next().and_then(|n| n.parse().ok());
            sum.cpu += Duration::from_nanos(nanoseconds.unwrap_or(0));
        }
        Ok(sum)
    }

    /// What was used since `earlier`.
    pub fn since(self, earlier: Counters) -> Counters {
        Counters {
            voluntary_switches: self.voluntary_switches - earlier.voluntary_switches,
            involuntary_switches: self.involuntary_switches - earlier.involuntary_switches,
            faults: self.faults - earlier.faults,
            cpu: self.cpu.saturating_sub(earlier.cpu),
        }
    }
}

/// Memory in KiB that belongs to the kernel and tmpfs as a whole, and to some processes alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Pages of tmpfs and memfds in the whole system.
    pub shmem: u64,
    /// The kernel's own small objects in the whole system: sockets, inodes, epoll items.
    pub slab: u64,
    /// Pages that only one of the processes has mapped, summed over them.
    pub private: u64,
}

impl Memory {
    /// The system's, and what the processes `pids` hold alone.
    pub fn of(pids: &[u32]) -> io::Result<Memory> {
        let system = fs::read_to_string("/proc/meminfo")?;
        let (shmem, slab) = (field(&system, "Shmem:"), field(&system, "Slab:"));
        let mut private = 0;
        for pid in pids {
            let maps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            private += field(&maps, "Private_Clean:") + field(&maps, "Private_Dirty:");
        }
        Ok(Memory { shmem, slab, private })
    }

    /// The growth of the sum since `earlier`, in KiB; negative if other programs freed more than was used here.
    pub fn growth_since(self, earlier: Memory) -> i64 {
        let sum = |m: Memory| (m.shmem + m.slab + m.private) as i64;
        sum(self) - sum(earlier)
    }
}

/// What processes have in memory, in KiB: for a loop whose every turn is to leave nothing behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Pages that the processes have mapped and touched, summed over them; a page that two have counts twice.
    pub mapped: u64,
    /// The lengths of the memfds that they have mapped, each memfd counted once.
    pub memfds: u64,
}

impl Resident {
    /// That of the processes `pids` now.
    pub fn of(pids: &[u32]) -> io::Result<Resident> {
        let (mut mapped, mut memfds) = (0, BTreeMap::new());
        for pid in pids {
            mapped += field(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?, "Rss:");
            let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
            memfds.extend(maps.lines().filter_map(memfd_range));
        }
        Ok(Resident { mapped, memfds: memfds.values().sum() })
    }
}

/// The memfd behind a line of `maps`, and where in it: as key and KiB; `None` behind other lines.
fn memfd_range(line: &str) -> Option<((String, String), u64)> {
    let mut fields = line.split_whitespace();
    let (low, high) = fields.next()?.split_once('-')?;
    let (offset, inode) = (fields.nth(1)?, fields.nth(1)?);
    let is_memfd = fields.next()?.starts_with("/memfd:");
    let bytes = u64::from_str_radix(high, 16).ok()? - u64::from_str_radix(low, 16).ok()?;
    is_memfd.then(|| ((inode.to_owned(), offset.to_owned()), bytes / 1024))
}

/// The length of a page, in bytes.
pub fn page_size() -> usize {
    // SAFETY: `sysconf` only answers.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// What the machine could give without swapping, in KiB.
pub fn available() -> u64 {
    field(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable:")
}

/// The number behind `name` in a file of `Name: number` lines; 0 where the kernel has no such line.
fn field(text: &str, name: &str) -> u64 {
    let rest = text.lines().find_map(|line| line.strip_prefix(name));
    rest.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The tenth and the twelfth field of `stat`, the eighth and tenth behind the process' name, which may itself hold blanks and
/// brackets.
fn faults(process: &Path) -> io::Result<u64> {
    let stat = fs::read_to_string(process.join("stat"))?;
    let behind_name: Vec<&str> = stat.rsplit_once(") ").map_or("", |parts| parts.1).split(' ').collect();
    let number = |at: usize| behind_name.get(at).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    Ok(number(7) + number(9))
}
