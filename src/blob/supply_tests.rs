//! Limits for each user, who is asked for memory that lies elsewhere, and waiting for it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use super::arena::{Arena, Chunk, MemoryLimit, NoMemory, WaitError};
use super::supply::{LentCharge, Reclaim, Supply, SupplyLimits, User};
use crate::sys::clock;
use crate::sys::testing::{child_status, fork, wait_until};

const MIB: usize = 1 << 20;

fn limits(memory: usize) -> SupplyLimits {
    let memory = MemoryLimit::new(memory as u64);
    SupplyLimits { memory, memory_per_user: None, lent: None, lent_per_user: None }
}

fn arenas<const N: usize>(limits: SupplyLimits, users: [User; N]) -> [Arena; N] {
    let supply = Arc::new(Supply::new(limits, None));
    users.map(|user| Arena::of(Arc::clone(&supply), user))
}

/// As many chunks of a MiB as there are to be had.
fn fill(arena: &Arena) -> Vec<Chunk> {
    std::iter::from_fn(|| arena.alloc(MIB, 64).ok()).collect()
}

/// Waits for memory that is sure to come back, and not for the deadline, at which one would look once more.
fn alloc_in_time(arena: &Arena, len: usize) -> Chunk {
    let end = clock::now_ns() + 60_000_000_000;
    let chunk = arena.alloc_until(len, 64, end).unwrap();
    assert!(clock::now_ns() < end, "nobody woke the waiter");
    chunk
}

#[test]
fn other_users_leave_as_much_as_they_have() {
    let [own, first, second] = arenas(limits(16 * MIB), [User::Own, User::Other, User::Other]);
    let greedy = fill(&first);
    assert_eq!(greedy.len(), 8, "alone: half");
    assert_eq!(fill(&second).len(), 4, "half of what was left");
    second.trim();
    assert_eq!(fill(&own).len(), 8, "our own: all that is left");
    own.trim();
    drop(greedy);
    first.trim();
    assert_eq!(fill(&own).len(), 16);
}

#[test]
fn a_limit_for_each_user_holds_beside_that_of_the_bus() {
    let limits = SupplyLimits { memory_per_user: Some(3 << 20), ..limits(8 * MIB) };
    let users = arenas(limits, [User::Own, User::Own, User::Other]);
    let held = users.each_ref().map(fill);
    assert_eq!(held.each_ref().map(Vec::len), [3, 3, 1], "the last one has half of what two have left");
    let memory = users[0].memory(7, 0);
    assert_eq!((memory.uid, memory.limit, memory.allocated, memory.in_use), (7, 3 << 20, 3 << 20, 3 << 20));
    assert_eq!(users[0].alloc(4 * MIB, 64).err(), Some(NoMemory));
}

#[test]
fn what_is_lent_is_limited_for_each_user_and_in_all() {
    let of_users = SupplyLimits { lent_per_user: Some(100), ..limits(16 * MIB) };
    let [own, other] = arenas(of_users, [User::Own, User::Other]);
    let sixty = own.charge_lent(60).unwrap();
    assert_eq!(own.charge_lent(41).unwrap_err(), NoMemory);
    assert_eq!(own.charge_lent(u64::MAX).unwrap_err(), NoMemory);
    let forty = own.charge_lent(40).unwrap();
    let also = other.charge_lent(100).unwrap();
    assert_eq!((own.lent(), other.lent()), (100, 100));
    own.return_lent(sixty);
    own.return_lent(forty);
    other.return_lent(also);
    assert_eq!((own.lent(), other.lent()), (0, 0));

    let [own, other] = arenas(SupplyLimits { lent: Some(100), ..limits(16 * MIB) }, [User::Own, User::Other]);
    let sixty = own.charge_lent(60).unwrap();
    assert_eq!(other.charge_lent(60).unwrap_err(), NoMemory);
    assert_eq!(other.lent(), 0, "a refusal takes nothing");
    own.return_lent(sixty);
    let hundred = other.charge_lent(100).unwrap();
    other.return_lent(hundred);

    let [own, other] = arenas(limits(16 * MIB), [User::Own, User::Other]);
    let quarter = other.charge_lent(4 << 20).unwrap();
    assert_eq!(other.charge_lent(1).unwrap_err(), NoMemory, "another user: a quarter");
    let much = own.charge_lent(1 << 40).unwrap();
    own.return_lent(much);
    other.return_lent(quarter);
}

/// Knows of chunks that nobody needs, and of all arenas.
#[derive(Default)]
struct Keeper {
    arenas: OnceLock<Vec<Weak<Arena>>>,
    unneeded: Mutex<Vec<Chunk>>,
    /// Given back, of each arena, but not collected.
    unread: Mutex<Vec<LentCharge>>,
    asked: AtomicUsize,
    wanted: Mutex<Vec<bool>>,
}

impl Reclaim for Keeper {
    fn collect(&self) {
        let arenas = self.arenas.get().into_iter().flatten().filter_map(Weak::upgrade);
        let unread = std::mem::take(&mut *self.unread.lock());
        arenas.zip(unread).for_each(|(arena, charge)| arena.return_lent(charge));
    }

    fn reclaim(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        drop(std::mem::take(&mut *self.unneeded.lock()));
        let arenas = self.arenas.get().into_iter().flatten().filter_map(Weak::upgrade);
        // It would hang if the arena that asks were locked.
        arenas.for_each(|arena| arena.trim());
    }

    fn want(&self, wanted: bool) {
        self.wanted.lock().push(wanted);
    }
}

/// Two arenas of this user, and their keeper.
fn kept(memory: usize) -> (Arc<Keeper>, [Arc<Arena>; 2]) {
    kept_within(limits(memory))
}

fn kept_within(limits: SupplyLimits) -> (Arc<Keeper>, [Arc<Arena>; 2]) {
    let keeper = Arc::new(Keeper::default());
    let hook = Arc::downgrade(&(Arc::clone(&keeper) as Arc<dyn Reclaim>));
    let supply = Arc::new(Supply::new(limits, Some(hook)));
    let arenas = [(); 2].map(|()| Arc::new(Arena::of(Arc::clone(&supply), User::Own)));
    keeper.arenas.set(arenas.iter().map(Arc::downgrade).collect()).unwrap();
    (keeper, arenas)
}

#[test]
fn before_an_arena_refuses_it_asks_once() {
    let (keeper, [arena, other]) = kept(4 * MIB);
    keeper.unneeded.lock().push(arena.alloc(3 * MIB, 64).unwrap());
    drop(other.alloc(MIB, 64).unwrap());
    assert_eq!(keeper.asked.load(Ordering::Relaxed), 0);
    let held = arena.alloc(4 * MIB, 64).unwrap();
    assert_eq!(keeper.asked.load(Ordering::Relaxed), 1, "both memories come back");
    assert_eq!(other.alloc(1, 64).err(), Some(NoMemory));
    assert_eq!(keeper.asked.load(Ordering::Relaxed), 2);
    assert_eq!(arena.alloc(5 * MIB, 64).err(), Some(NoMemory));
    assert_eq!(keeper.asked.load(Ordering::Relaxed), 2, "nobody can help with what is beyond the limit");
    drop(held);
}

#[test]
fn waiting_ends_at_the_deadline_and_for_what_never_can_be_had_at_once() {
    let (keeper, [arena, _]) = kept(4 * MIB);
    let held = arena.alloc(3 * MIB, 64).unwrap();
    let end = clock::now_ns() + 3_000_000;
    assert_eq!(arena.alloc_until(2 * MIB, 64, end).err(), Some(WaitError::TimedOut));
    assert!(clock::now_ns() >= end);
    assert_eq!(arena.alloc_until(2 * MIB, 64, 0).err(), Some(WaitError::TimedOut));
    assert_eq!(*keeper.wanted.lock(), [true, false, true, false]);
    for never in [5 * MIB, usize::MAX] {
        assert_eq!(arena.alloc_until(never, 64, u64::MAX).err(), Some(WaitError::NoMemory));
    }
    assert!(arena.alloc_until(MIB, 64, 0).is_ok(), "what is there is had after the deadline too");
    let child = fork(|| {
        let refused = arena.alloc_until(2 * MIB, 64, u64::MAX).err();
        // SAFETY: this child's copy is not used again; the parent's is other memory.
        drop(unsafe { std::ptr::read(&held) });
        i32::from(refused != Some(WaitError::NoMemory))
    });
    assert_eq!(child_status(child), 0);
    assert_eq!(keeper.wanted.lock().len(), 4);
}

#[test]
fn a_waiter_gets_what_another_thread_drops_whatever_its_arena() {
    let (keeper, [arena, other]) = kept(4 * MIB);
    for lender in [&arena, &other] {
        for len in [3 * MIB, 100] {
            let held = lender.alloc(len, 64).unwrap();
            let most = if len == 100 { 4 * MIB } else { 2 * MIB };
            keeper.wanted.lock().clear();
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| alloc_in_time(&arena, most));
                wait_until("somebody waits", || *keeper.wanted.lock() == [true]);
                drop(held);
                waiter.join().unwrap();
            });
            assert_eq!(*keeper.wanted.lock(), [true, false]);
        }
    }
}

#[test]
fn of_many_who_wait_for_a_few_frames_none_is_forgotten() {
    const ROUNDS: usize = 400;
    for len in [MIB, 300] {
        let (keeper, [arena, _]) = kept(2 * MIB);
        // All but the memory of two frames.
        let mut rest: Vec<_> = std::iter::from_fn(|| arena.alloc(len, 64).ok()).collect();
        rest.truncate(rest.len() - 2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        let _chunk = alloc_in_time(&arena, len);
                        std::thread::yield_now();
                    }
                });
            }
        });
        let wanted = keeper.wanted.lock();
        let alternate = wanted.iter().enumerate().all(|(index, &wanted)| wanted == (index % 2 == 0));
        assert!(alternate && wanted.len() % 2 == 0, "told in order");
    }
}

#[test]
fn what_was_given_back_and_not_collected_may_be_lent_again() {
    let (keeper, [one, other]) =
        kept_within(SupplyLimits { lent: Some(100), lent_per_user: Some(100), ..limits(MIB) });
    keeper.unread.lock().push(one.charge_lent(60).unwrap());
    assert_eq!(other.charge_lent(101).unwrap_err(), NoMemory);
    assert_eq!(one.lent(), 60, "for what cannot be lent nothing is collected");
    let hundred = other.charge_lent(100).unwrap();
    assert_eq!((one.lent(), other.lent()), (0, 100));
    assert_eq!(one.charge_lent(1).unwrap_err(), NoMemory);
    other.return_lent(hundred);
}
