//! Where the two processes run. A figure without its placement says nothing: the same call takes 0.2 us between two CPUs
//! that spin, 6 us on one CPU, and 60 us when an idle virtual CPU has to be woken.

use std::fmt;
use std::fs;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// A named placement of the two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Each process is pinned to a CPU of its own, of different cores where the machine has them.
    TwoCpus,
    /// Both processes are pinned to the same CPU.
    OneCpu,
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Placement::TwoCpus => "two CPUs",
            Placement::OneCpu => "one CPU",
        })
    }
}

impl Placement {
    /// The placements that this process' affinity mask allows.
    pub fn available() -> Vec<Placement> {
        match Cpus::of_this_process().second {
            Some(_) => vec![Placement::TwoCpus, Placement::OneCpu],
            None => vec![Placement::OneCpu],
        }
    }

    /// The CPU of the calling side.
    pub fn caller_cpu(self) -> usize {
        let cpus = Cpus::of_this_process();
        match self {
            Placement::TwoCpus => cpus.first,
            Placement::OneCpu => cpus.second.unwrap_or(cpus.first),
        }
    }

    /// The CPU of the answering side: never the first if there are two, since that one serves most interrupts.
    pub fn peer_cpu(self) -> usize {
        let cpus = Cpus::of_this_process();
        cpus.second.unwrap_or(cpus.first)
    }

    /// Pins this thread, and those that it starts from now on, to the calling side's CPU.
    pub fn pin_caller(self) {
        pin(self.caller_cpu());
    }
}

/// Pins this thread, and those that it starts from now on, to `cpu`.
pub fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).expect("this process may choose among the CPUs it was given");
}

/// The two CPUs that the benches use.
#[derive(Clone, Copy)]
struct Cpus {
    first: usize,
    second: Option<usize>,
}

impl Cpus {
    /// As the affinity mask stood before anything was pinned.
    fn of_this_process() -> Cpus {
        static CPUS: std::sync::OnceLock<Cpus> = std::sync::OnceLock::new();
        *CPUS.get_or_init(|| {
            let mask = sched_getaffinity(None).expect("a process can read its own affinity");
            let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| mask.is_set(*cpu)).collect();
            let first = allowed[0];
            let siblings = siblings_of(first);
            let other_core = allowed[1..].iter().find(|cpu| !siblings.contains(cpu));
            Cpus { first, second: other_core.or(allowed.get(1)).copied() }
        })
    }
}

/// The CPUs that share a core with `cpu`; empty where the kernel does not say.
fn siblings_of(cpu: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    let list = fs::read_to_string(path).unwrap_or_default();
    list.trim().split(',').filter_map(cpu_range).flatten().collect()
}

/// `3` or `0-1`, as the kernel writes lists of CPUs.
fn cpu_range(text: &str) -> Option<std::ops::RangeInclusive<usize>> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    Some(low.parse().ok()?..=high.parse().ok()?)
}

/// The machine, in one line: CPU model, number of CPUs, kernel.
pub fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field =
        |name: &str| cpuinfo.lines().find(|line| line.starts_with(name))?.split_once(": ").map(|f| f.1);
    let model = field("model name").unwrap_or("unknown CPU");
    let virtual_cpu = cpuinfo.contains(" hypervisor ");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let count = std::thread::available_parallelism().map_or(1, |n| n.get());
    let kind = if virtual_cpu { "virtual CPUs" } else { "CPUs" };
    format!("{model}, {count} {kind}, Linux {}", kernel.trim())
}
