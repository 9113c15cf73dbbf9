//! Who may call: rules by the user and group that the kernel attests.

use crate::sys::socket::{Credentials, OVERFLOW_UID};

/// Who may call an object or one of its methods.
///
/// The default admits everybody whom the bus admits. A rule made by [`only`](Access::only) admits the users and groups
/// named and nobody else, not even the owner or root.
///
/// ```
/// use objbus::Access;
///
/// let operators = Access::only().uid(0).gid(27);
/// assert_ne!(operators, Access::everyone());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// `None` admits all.
    admitted: Option<Admitted>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Admitted {
    uids: Vec<u32>,
    gids: Vec<u32>,
}

impl Access {
    /// Everybody whom the bus admits.
    pub fn everyone() -> Access {
        Access::default()
    }

    /// Nobody yet; add users and groups.
    pub fn only() -> Access {
        Access { admitted: Some(Admitted::default()) }
    }

    /// Admits the user, too. The overflow user 65534, to which the kernel maps strangers of other user namespaces, is
    /// nobody in particular and is never admitted by its number.
    pub fn uid(mut self, uid: u32) -> Access {
        self.admitted.get_or_insert_default().uids.push(uid);
        self
    }

    /// Admits processes with this group, as their own or a supplementary one.
    pub fn gid(mut self, gid: u32) -> Access {
        self.admitted.get_or_insert_default().gids.push(gid);
        self
    }

    /// Whether a process with these credentials may call. `groups` are its supplementary ones.
    pub(crate) fn admits(&self, who: &Credentials, groups: &[u32]) -> bool {
        let Some(admitted) = &self.admitted else { return true };
        let by_uid = who.uid != OVERFLOW_UID && admitted.uids.contains(&who.uid);
        by_uid || admitted.gids.iter().any(|gid| who.gid == *gid || groups.contains(gid))
    }

    /// Whether the rule asks for groups, which cost a system call to find out.
    pub(crate) fn names_groups(&self) -> bool {
        self.admitted.as_ref().is_some_and(|admitted| !admitted.gids.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Credentials = Credentials { pid: 7, uid: 1000, gid: 1000 };

    #[test]
    fn a_rule_admits_whom_it_names_and_nobody_else() {
        assert!(Access::everyone().admits(&ALICE, &[]));
        assert!(!Access::only().admits(&ALICE, &[]));
        assert!(Access::only().uid(1000).admits(&ALICE, &[]));
        assert!(!Access::only().uid(0).admits(&ALICE, &[]));
        assert!(Access::only().gid(27).admits(&ALICE, &[4, 27]), "a supplementary group counts");
        assert!(Access::only().gid(1000).admits(&ALICE, &[]));
    }

    #[test]
    fn the_overflow_user_is_nobody() {
        let stranger = Credentials { pid: 0, uid: OVERFLOW_UID, gid: OVERFLOW_UID };
        assert!(!Access::only().uid(OVERFLOW_UID).admits(&stranger, &[]));
    }
}
