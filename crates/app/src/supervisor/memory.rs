//! How much memory a process has, by what the kernel counts.

use std::fs;

use super::orphans::descendants;
use crate::plan::MemoryLimit;

/// What counts against `limit`, in bytes; 0 for a process that is gone.
pub(crate) fn counted(pid: u32, limit: &MemoryLimit) -> u64 {
    let own = of_one(pid, limit.counts_shared);
    let children = if limit.counts_children { descendants(pid) } else { Vec::new() };
    own + children.into_iter().map(|child| of_one(child, limit.counts_shared)).sum::<u64>()
}

/// The process' own memory: what no other shares, swapped out or not.
pub(crate) fn private(pid: u32) -> u64 {
    of_one(pid, false)
}

fn of_one(pid: u32, counts_shared: bool) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    sum(&status, counts_shared)
}

/// The lines look like `RssAnon:    1234 kB`.
fn sum(status: &str, counts_shared: bool) -> u64 {
    let counts = |name: &str| match name {
        "RssAnon" | "VmSwap" => true,
        "RssFile" | "RssShmem" => counts_shared,
        _ => false,
    };
    let lines = status.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| counts(name));
    let kib = lines.filter_map(|(_, value)| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.sum::<u64>() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tweb\nVmSize:\t  999999 kB\nVmRSS:\t     111 kB\nRssAnon:\t     100 kB\nRssFile:\t      10 kB\n\
                          RssShmem:\t       1 kB\nVmSwap:\t       7 kB\n";

    #[test]
    fn shared_memory_and_files_count_only_if_asked_for() {
        assert_eq!(sum(STATUS, false), 107 * 1024);
        assert_eq!(sum(STATUS, true), 118 * 1024);
        assert_eq!(sum("", true), 0);
    }

    #[test]
    fn a_child_counts_only_if_asked_for() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = std::process::id();
        assert!(descendants(pid).contains(&child.id()));
        let limit = MemoryLimit { bytes: 0, counts_shared: true, counts_children: true };
        let alone = MemoryLimit { counts_children: false, ..limit };
        assert!(counted(child.id(), &alone) > 0);
        assert!(counted(pid, &limit) > counted(child.id(), &alone));
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
