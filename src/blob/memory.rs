//! [`Memory`]: where a bus' memory is.

/// What a bus has of shared memory at one moment, in bytes unless it says otherwise: see [`Bus::memory`](crate::Bus::memory).
///
/// Memory that is lent to processes of one user is never used for those of another, hence the parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Memory {
    /// What may be allocated for all users together.
    pub limit: u64,
    /// What is allocated, by the user whose processes it is for.
    pub users: Vec<UserMemory>,
    /// To whom blobs are lent at present.
    pub borrowers: Vec<Borrower>,
    /// Blobs that were sent as copies, because their memory could not be lent, since the bus was opened.
    pub copied: Copied,
    /// Memory of other processes that is mapped here, in whole segments: they have paid for it.
    pub received: u64,
}

/// Shared memory for the processes of one user. `allocated` is `in_use` and `cached` together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UserMemory {
    /// The user, by number.
    pub uid: u32,
    /// The most that may be allocated for this user, if others leave as much.
    pub limit: u64,
    /// Taken of the system.
    pub allocated: u64,
    /// Of blobs that live, lent or not, and of calls' bodies on their way. Sizes are rounded up by an eighth at most.
    pub in_use: u64,
    /// Free, and kept for what comes next.
    pub cached: u64,
    /// The most that was in use at a time since memory was last short.
    pub peak: u64,
    /// How many pieces of memory that is to the system, each with a descriptor.
    pub segments: usize,
    /// Lent at present; what is lent to several processes counts for each.
    pub lent: u64,
}

/// A process that reads our blobs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Borrower {
    /// The process, 0 if outside this pid namespace.
    pub pid: u32,
    /// Its user, by number.
    pub uid: u32,
    /// How many blobs it holds, each as often as it was sent.
    pub leases: u64,
    /// How many bytes they have.
    pub bytes: u64,
}

/// What was copied instead of lent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Copied {
    /// How many blobs.
    pub count: u64,
    /// How many bytes they had.
    pub bytes: u64,
}

impl Memory {
    /// Taken of the system for all users.
    pub fn allocated(&self) -> u64 {
        self.users.iter().map(|user| user.allocated).sum()
    }

    /// In use for all users.
    pub fn in_use(&self) -> u64 {
        self.users.iter().map(|user| user.in_use).sum()
    }

    /// Free, and kept for what comes next, for all users.
    pub fn cached(&self) -> u64 {
        self.users.iter().map(|user| user.cached).sum()
    }

    /// Lent to all users.
    pub fn lent(&self) -> u64 {
        self.users.iter().map(|user| user.lent).sum()
    }
}
