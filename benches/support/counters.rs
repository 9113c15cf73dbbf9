//! What a process has used, from `/proc`, so that one side can look at the other: context switches, faults, CPU time, memory.

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
    /// Pages that had to be set up without reading a disk.
    pub minor_faults: u64,
    /// Time on a CPU, in user and kernel mode.
    pub cpu: Duration,
}

impl Counters {
    /// Those of process `pid` now.
    pub fn of(pid: u32) -> io::Result<Counters> {
        let process = Path::new("/proc").join(pid.to_string());
        let mut sum = Counters { minor_faults: minor_faults(&process)?, ..Counters::default() };
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
            minor_faults: self.minor_faults - earlier.minor_faults,
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

/// The number behind `name` in a file of `Name: number` lines; 0 where the kernel has no such line.
fn field(text: &str, name: &str) -> u64 {
    let rest = text.lines().find_map(|line| line.strip_prefix(name));
    rest.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The tenth field of `stat`, the eighth behind the process' name, which may itself hold blanks and brackets.
fn minor_faults(process: &Path) -> io::Result<u64> {
    let stat = fs::read_to_string(process.join("stat"))?;
    let behind_name = stat.rsplit_once(") ").map_or("", |parts| parts.1);
    Ok(behind_name.split_whitespace().nth(7).and_then(|n| n.parse().ok()).unwrap_or(0))
}
