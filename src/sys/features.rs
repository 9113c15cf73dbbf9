//! Parts of the kernel that older systems lack, so that tests can pretend to run on one.
//!
//! `OBJBUS_TEST_DISABLE=peerpidfd,inotify` makes this process behave as if the kernel had neither. It is for tests only:
//! it is read once, and every fall-back it leads to is as correct as what it replaces, only slower.

use std::sync::LazyLock;

/// Something newer than the oldest kernel supported, or missing where a seccomp filter or a container hides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feature {
    /// `SO_PEERPIDFD`, Linux 6.5.
    PeerPidfd,
    /// `pidfd_open`, Linux 5.3.
    PidfdOpen,
    /// `MFD_NOEXEC_SEAL`, Linux 6.3.
    NoexecSeal,
    /// inotify instances, which are few per user.
    Inotify,
    /// `/proc/self/fd`.
    ProcFd,
    /// `MADV_WIPEONFORK`, Linux 4.14.
    WipeOnFork,
}

const NAMES: [(&str, Feature); 6] = [
    ("peerpidfd", Feature::PeerPidfd),
    ("pidfd_open", Feature::PidfdOpen),
    ("noexec_seal", Feature::NoexecSeal),
    ("inotify", Feature::Inotify),
    ("procfd", Feature::ProcFd),
    ("wipeonfork", Feature::WipeOnFork),
];

static DISABLED: LazyLock<u32> =
    LazyLock::new(|| std::env::var("OBJBUS_TEST_DISABLE").map_or(0, |list| mask(&list)));

/// Whether a test has switched `feature` off for this process.
pub(crate) fn disabled(feature: Feature) -> bool {
    *DISABLED & bit(feature) != 0
}

fn bit(feature: Feature) -> u32 {
    1 << feature as u32
}

fn mask(list: &str) -> u32 {
    let named = |word: &str| NAMES.iter().find(|(name, _)| *name == word).map_or(0, |(_, f)| bit(*f));
    list.split(',').map(|word| named(word.trim())).fold(0, |all, one| all | one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_names_becomes_a_mask() {
        assert_eq!(mask(""), 0);
        assert_eq!(mask("inotify"), bit(Feature::Inotify));
        assert_eq!(mask("peerpidfd, procfd,unknown"), bit(Feature::PeerPidfd) | bit(Feature::ProcFd));
    }
}
