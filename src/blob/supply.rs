//! What the arenas of one bus share: how much they may have, and whom they ask when they have no more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::limit::{Charge, MemoryLimit, NoMemory};

/// The part of a bus' memory that may be lent to one other user at a time: a quarter.
const OTHERS_LENT: u64 = 4;

/// Who can get memory back that an arena has not in its hands.
pub(crate) trait Reclaim: Send + Sync {
    /// Takes back what was lent and is not held any more.
    fn collect(&self);

    /// Memory is short: collects, and lets go of what is idle elsewhere. Called without any of the arenas' locks.
    fn reclaim(&self);

    /// Whether somebody waits for memory from now on. Calls come in order, one at a time; it must not wait for memory, nor
    /// run code of the user's.
    fn want(&self, wanted: bool);
}

/// How many bytes a bus may have, as its builder was told.
#[derive(Debug)]
pub(crate) struct SupplyLimits {
    /// Allocated.
    pub(crate) memory: MemoryLimit,
    /// Allocated for one user.
    pub(crate) memory_per_user: Option<u64>,
    /// Lent at a time.
    pub(crate) lent: Option<u64>,
    /// Lent to one user at a time.
    pub(crate) lent_per_user: Option<u64>,
}

/// The memory of a bus.
pub(crate) struct Supply {
    limits: SupplyLimits,
    /// What is lent to all users together; counted only if that is limited.
    lent: LentAccount,
    reclaim: Option<Weak<dyn Reclaim>>,
    waiting: Mutex<usize>,
}

/// For whose processes memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// The one that this process runs as: trusted with all of the memory, unless the builder says otherwise.
    Own,
    /// Another: one who never gives anything back may hold what it has, so as much stays free for all others as it has.
    Other,
}

impl Supply {
    pub(crate) fn new(limits: SupplyLimits, reclaim: Option<Weak<dyn Reclaim>>) -> Supply {
        let lent = LentAccount::new(limits.lent.unwrap_or(u64::MAX));
        Supply { limits, lent, reclaim, waiting: Mutex::new(0) }
    }

    /// Memory without any limit but this.
    #[cfg(test)]
    pub(crate) fn of(memory: MemoryLimit) -> Supply {
        Supply::new(SupplyLimits { memory, memory_per_user: None, lent: None, lent_per_user: None }, None)
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limits.memory.limit()
    }

    fn reclaim(&self) {
        if let Some(reclaim) = self.hook() {
            reclaim.reclaim();
        }
    }

    fn hook(&self) -> Option<Arc<dyn Reclaim>> {
        self.reclaim.as_ref()?.upgrade()
    }

    fn count_waiters(&self, count: impl FnOnce(usize) -> usize) {
        let mut waiting = self.waiting.lock();
        let before = *waiting;
        *waiting = count(before);
        if (before == 0) != (*waiting == 0)
            && let Some(reclaim) = self.hook()
        {
            // Under the lock, so that the last word is the true one.
            reclaim.want(before == 0);
        }
    }
}

/// One user's part of a bus' supply.
pub(crate) struct Account {
    supply: Arc<Supply>,
    user: User,
    own: MemoryLimit,
    lent: LentAccount,
}

impl Account {
    pub(super) fn new(supply: Arc<Supply>, user: User) -> Account {
        let SupplyLimits { memory_per_user, lent_per_user, .. } = supply.limits;
        let own = MemoryLimit::new(memory_per_user.unwrap_or(u64::MAX));
        let lent = LentAccount::new(lent_per_user.unwrap_or(match user {
            // Bounded by what is allocated, times the readers of each blob.
            User::Own => u64::MAX,
            User::Other => supply.limit() / OTHERS_LENT,
        }));
        Account { supply, user, own, lent }
    }

    /// Takes `bytes` for a segment, of the bus and of the user.
    pub(super) fn charge(&self, bytes: u64) -> Result<[Charge; 2], NoMemory> {
        let all = &self.supply.limits.memory;
        match self.user {
            User::Own => all.charge_both(&self.own, bytes),
            User::Other => all.charge_share(&self.own, bytes),
        }
    }

    /// The most that can be had, if nobody else has any.
    pub(super) fn limit(&self) -> u64 {
        let all = self.supply.limit();
        self.own.limit().min(match self.user {
            User::Own => all,
            User::Other => all / 2,
        })
    }

    /// Counts `bytes` as lent, until they are given to [`return_lent`](Self::return_lent).
    #[inline]
    pub(super) fn charge_lent(&self, bytes: u64) -> Result<LentCharge, NoMemory> {
        self.try_charge_lent(bytes).or_else(|NoMemory| self.collect_and_charge_lent(bytes))
    }

    /// What was given back, by other processes than the one that is lent to among them, counts until it is collected.
    #[cold]
    fn collect_and_charge_lent(&self, bytes: u64) -> Result<LentCharge, NoMemory> {
        if bytes > self.lent.limit.min(self.supply.lent.limit) {
            return Err(NoMemory);
        }
        if let Some(reclaim) = self.supply.hook() {
            reclaim.collect();
        }
        self.try_charge_lent(bytes)
    }

    #[inline]
    fn try_charge_lent(&self, bytes: u64) -> Result<LentCharge, NoMemory> {
        let all = &self.supply.lent;
        self.lent.charge(bytes)?;
        all.charge(bytes).inspect_err(|NoMemory| self.lent.give_back(bytes))?;
        Ok(LentCharge { bytes })
    }

    #[inline]
    pub(super) fn return_lent(&self, charge: LentCharge) {
        self.lent.give_back(charge.bytes);
        self.supply.lent.give_back(charge.bytes);
    }

    #[cfg(test)]
    pub(super) fn lent(&self) -> u64 {
        self.lent.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn reclaim(&self) {
        self.supply.reclaim();
    }

    pub(super) fn wait(&self) -> Wanting<'_> {
        self.supply.count_waiters(|waiting| waiting + 1);
        Wanting(&self.supply)
    }
}

/// Somebody waits for memory of this bus, until it is dropped.
pub(super) struct Wanting<'a>(&'a Supply);

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        self.0.count_waiters(|waiting| waiting - 1);
    }
}

/// How many bytes are lent, each lease counted for itself; only where they are limited. Changed for each lease, hence one atomic operation each way and
/// no reference counts.
#[repr(align(64))]
struct LentAccount {
    limit: u64,
    bytes: AtomicU64,
}

/// Bytes counted as lent. It refers to nobody, so it must be brought back to the arena that it came from: if it is lost,
/// they stay counted.
#[derive(Debug, Default)]
#[must_use = "bytes stay counted as lent until they are given back"]
pub(crate) struct LentCharge {
    bytes: u64,
}

impl LentCharge {
    /// How many.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl LentAccount {
    fn new(limit: u64) -> LentAccount {
        LentAccount { limit, bytes: AtomicU64::new(0) }
    }

    fn is_limited(&self) -> bool {
        self.limit != u64::MAX
    }

    /// Adds first and looks then, so two threads at the limit may refuse each other for what one of them could have had.
    /// Relaxed: the number guards nothing but itself. It does not wrap: a lease
    /// costs its lender memory of its own, for far fewer than would lend 2^64 bytes.
    #[inline]
    fn charge(&self, bytes: u64) -> Result<(), NoMemory> {
        if !self.is_limited() {
            return Ok(());
        }
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.limit {
            self.give_back(bytes);
            return Err(NoMemory);
        }
        Ok(())
    }

    #[inline]
    fn give_back(&self, bytes: u64) {
        if self.is_limited() {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}
