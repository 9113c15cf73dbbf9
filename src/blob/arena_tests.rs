//! The arena against a reference model, across threads, at its limits and in a forked child.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::{Arc, Barrier, mpsc};

use proptest::prelude::*;
use rustix::process::{Resource, Rlimit};

use super::arena::{ALIGN_MAX, Arena, Chunk};
use super::limit::{Holdings, MemoryLimit, NoMemory};
use super::segments::{LaneLimits, Mappings, Segments};
use crate::sys::testing::{child_status, fork};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn arena(limit: usize) -> (Arena, MemoryLimit) {
    let limit = MemoryLimit::new(limit as u64);
    (Arena::new(limit.clone()), limit)
}

fn place(chunk: &Chunk) -> (u32, u64) {
    (chunk.segment_id(), chunk.offset())
}

#[derive(Clone, Debug)]
enum Step {
    Alloc { len: usize, align_log2: u32 },
    Drop(prop::sample::Index),
    Trim,
    Stats,
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![4 => 0..5 * KIB, 2 => 0..400 * KIB, 1 => 900 * KIB..1400 * KIB];
    prop_oneof![
        6 => (len, 0..=12_u32).prop_map(|(len, align_log2)| Step::Alloc { len, align_log2 }),
        4 => any::<prop::sample::Index>().prop_map(Step::Drop),
        1 => Just(Step::Trim),
        1 => Just(Step::Stats),
    ]
}

/// A chunk that is out, and the byte it was filled with.
type Out = Vec<(Chunk, u8)>;

/// What two chunks would share if they overlapped: a byte of it stands for all.
const GRANULE: usize = 256;

fn fill(chunk: &mut Chunk, byte: u8) {
    chunk.as_mut_slice().iter_mut().step_by(GRANULE).for_each(|first| *first = byte);
    chunk.as_mut_slice().last_mut().into_iter().for_each(|last| *last = byte);
}

fn is_filled(chunk: &Chunk, byte: u8) -> bool {
    let mut looked_at = chunk.as_slice().iter().step_by(GRANULE).chain(chunk.as_slice().last());
    looked_at.all(|&found| found == byte)
}

fn alloc_and_check(
    arena: &Arena,
    out: &mut Out,
    len: usize,
    align: usize,
    byte: u8,
) -> Result<(), TestCaseError> {
    let Ok(mut chunk) = arena.alloc(len, align) else { return Ok(()) };
    prop_assert_eq!(chunk.len(), len);
    prop_assert_eq!(chunk.as_mut_ptr() as usize % align.max(64), 0);
    prop_assert!(chunk.offset() + len as u64 <= chunk.segment().len() as u64);
    for (other, _) in out.iter().filter(|(other, _)| other.segment_id() == chunk.segment_id()) {
        let (ours, theirs) = (chunk.offset(), other.offset());
        let apart = ours + len as u64 <= theirs || theirs + other.len() as u64 <= ours;
        prop_assert!(apart && ours != theirs);
    }
    fill(&mut chunk, byte);
    out.push((chunk, byte));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn random_use_keeps_contents_and_limit_and_all_comes_back(steps in prop::collection::vec(step(), 0..200)) {
        // Fresh pages are what takes the time here: few of them, and the limit is met often.
        let (arena, limit) = arena(4 * MIB);
        let mut out = Out::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Alloc { len, align_log2 } => {
                    alloc_and_check(&arena, &mut out, len, 1 << align_log2, number as u8)?;
                }
                Step::Drop(index) if !out.is_empty() => {
                    let (chunk, byte) = out.swap_remove(index.index(out.len()));
                    prop_assert!(is_filled(&chunk, byte));
                }
                Step::Drop(_) => {}
                Step::Trim => arena.trim(),
                Step::Stats => {
                    // Asking takes the pieces out of the slots, so not at each step.
                    let stats = arena.stats();
                    prop_assert_eq!(limit.charged(), stats.allocated);
                    prop_assert_eq!(stats.allocated, stats.in_use + stats.cached);
                    let lens = out.iter().map(|(chunk, _)| chunk.len() as u64);
                    prop_assert!(lens.sum::<u64>() <= stats.in_use && stats.in_use <= stats.peak);
                }
            }
            prop_assert!(limit.charged() <= limit.limit());
            arena.assert_invariants();
        }
        for (chunk, byte) in out.drain(..) {
            prop_assert!(is_filled(&chunk, byte));
        }
        prop_assert_eq!(arena.stats().in_use, 0);
        arena.trim();
        prop_assert_eq!((arena.stats().segments, limit.charged()), (0, 0));
    }
}

#[test]
fn a_small_body_pays_for_a_small_segment_and_segments_double() {
    let (arena, limit) = arena(64 * MIB);
    let first = arena.alloc(10 * KIB, 1).unwrap();
    assert_eq!(limit.charged(), 256 << 10);
    assert_ne!(first.segment_id(), 0, "no segment has the id 0");
    let more: Vec<_> = (0..1000).map(|_| arena.alloc(10 * KIB, 1).unwrap()).collect();
    assert!(arena.stats().segments <= 8, "{:?}", arena.stats());
    drop(more);
}

#[test]
fn what_was_freed_last_is_reused_first_without_new_memory() {
    let (arena, _) = arena(64 * MIB);
    for len in [0, 100, 10 * KIB, 300 * KIB, MIB, 8 * MIB] {
        let older = arena.alloc(len, 64).unwrap();
        let newer = arena.alloc(len, 64).unwrap();
        let (older_place, newer_place) = (place(&older), place(&newer));
        let before = arena.stats().allocated;
        drop(older);
        drop(newer);
        let again = [arena.alloc(len, 64).unwrap(), arena.alloc(len, 64).unwrap()];
        assert_eq!(again.each_ref().map(place), [newer_place, older_place], "{len}");
        assert_eq!(arena.stats().allocated, before);
    }
}

#[test]
fn a_large_chunk_has_a_segment_that_fits() {
    let (arena, _) = arena(64 * MIB);
    let (large, huge) = (arena.alloc(2 * MIB, 64).unwrap(), arena.alloc(9 * MIB, 64).unwrap());
    assert_ne!(large.segment_id(), huge.segment_id());
    assert_eq!((large.offset(), huge.offset()), (0, 0));
    let ids = [large.segment_id(), huge.segment_id()];
    let close = arena.alloc(3 * MIB, 64).unwrap();
    drop((large, huge, close));
    assert_eq!(arena.alloc(2 * MIB - 1, 64).unwrap().segment_id(), ids[0], "the best fit");
    let _keep = arena.alloc(2 * MIB, 64).unwrap();
    let _also = arena.alloc(2 * MIB, 64).unwrap();
    assert!(
        !ids.contains(&arena.alloc(MIB, 64).unwrap().segment_id()),
        "not a segment of nine times the size"
    );
}

#[test]
fn the_limit_is_no_memory_at_once_and_idle_memory_makes_room() {
    let (arena, limit) = arena(4 * MIB);
    assert_eq!(arena.alloc(5 * MIB, 64).err(), Some(NoMemory));
    for absurd in [usize::MAX, usize::MAX / 2, isize::MAX as usize, isize::MAX as usize / 2] {
        assert_eq!(arena.alloc(absurd, 64).err(), Some(NoMemory));
    }
    let whole = arena.alloc(4 * MIB, 64).unwrap();
    assert_eq!(arena.alloc(1, 64).err(), Some(NoMemory));
    drop(whole);
    let small = arena.alloc(100, 64).unwrap();
    assert_eq!(arena.alloc(4 * MIB, 64).err(), Some(NoMemory));
    drop(small);
    assert!(arena.alloc(4 * MIB, 64).is_ok());
    assert!(limit.charged() <= limit.limit());
}

#[test]
fn where_the_class_does_not_fit_the_limit_the_exact_length_does() {
    let (arena, limit) = arena(3 * MIB + 40 * KIB);
    drop(arena.alloc(3 * MIB + 30 * KIB, 64).unwrap());
    arena.trim();
    let _most = arena.alloc(3 * MIB, 64).unwrap();
    let _rest = arena.alloc(30 * KIB, 64).unwrap();
    assert!(limit.charged() <= limit.limit());
}

#[test]
fn parked_chunks_grow_together_before_new_memory_is_made() {
    let (arena, limit) = arena(64 * MIB);
    let small: Vec<_> = (0..32).map(|_| arena.alloc(8 * KIB, 64).unwrap()).collect();
    let id = small[0].segment_id();
    drop(small);
    assert_eq!(arena.alloc(200 * KIB, 64).unwrap().segment_id(), id);
    assert_eq!((limit.charged(), arena.drops()), (256 << 10, 0));
}

#[test]
fn what_is_parked_is_bounded_in_each_class_and_in_all() {
    let (arena, _) = arena(64 * MIB);
    let sizes = [4 * KIB, 120 * KIB, 100 * KIB, 90 * KIB];
    let bursts = sizes.map(|len| (0..40).map(|_| arena.alloc(len, 64).unwrap()).collect::<Vec<_>>());
    for burst in bursts {
        drop(burst);
        arena.assert_invariants();
    }
}

#[test]
fn idle_bytes_are_bounded_too_and_the_oldest_go_first() {
    let (arena, limit) = arena(256 * MIB);
    let chunks: Vec<_> = (0..10).map(|_| arena.alloc(8 * MIB, 64).unwrap()).collect();
    let ids: Vec<u32> = chunks.iter().map(Chunk::segment_id).collect();
    chunks.into_iter().for_each(drop);
    assert_eq!(limit.charged(), 64 << 20);
    let mut announced = ids.iter().copied().collect();
    assert_eq!(arena.forget_dropped(&mut announced), ids[..2].iter().copied().collect());
}

#[test]
fn two_arenas_share_a_limit() {
    let (first, limit) = arena(4 * MIB);
    let second = Arena::new(limit.clone());
    let held = first.alloc(3 * MIB, 64).unwrap();
    assert_eq!(second.alloc(2 * MIB, 64).err(), Some(NoMemory));
    drop(held);
    first.trim();
    assert!(second.alloc(2 * MIB, 64).is_ok());
}

#[test]
fn idle_segments_are_few_and_each_lane_learns_which_are_gone() {
    let (arena, limit) = arena(256 * MIB);
    let chunks: Vec<_> = (0..80).map(|_| arena.alloc(MIB, 64).unwrap()).collect();
    let mut announced: BTreeSet<u32> = chunks.iter().map(Chunk::segment_id).collect();
    let mut on_another_lane = announced.clone();
    assert_eq!(announced.len(), 80);
    assert!(arena.forget_dropped(&mut announced).is_empty());
    let before = arena.drops();

    drop(chunks);
    assert_eq!(arena.stats().cached, 48 << 20);
    assert_eq!(limit.charged(), 48 << 20);
    assert_eq!(arena.drops(), before + 32);
    let gone = arena.forget_dropped(&mut announced);
    assert_eq!((gone.len(), announced.len()), (32, 48));
    assert_eq!(arena.forget_dropped(&mut on_another_lane), gone);

    arena.trim();
    assert_eq!(arena.forget_dropped(&mut announced).len(), 48);
    let fresh = arena.alloc(MIB, 64).unwrap().segment_id();
    assert!(gone.last().is_some_and(|&last| fresh > last), "the id {fresh} was used before");
}

#[test]
fn a_chunk_outlives_its_arena_and_then_nothing_is_left() {
    let (arena, limit) = arena(64 * MIB);
    let mut small = arena.alloc(5, 64).unwrap();
    let large = arena.alloc(2 * MIB, 64).unwrap();
    small.as_mut_slice().copy_from_slice(b"hello");
    drop(arena.alloc(3 * MIB, 64));
    drop(arena);
    assert_eq!(limit.charged(), (256 << 10) + (2 << 20));
    assert_eq!(small.as_slice(), b"hello");
    drop(large);
    assert_eq!(limit.charged(), 256 << 10, "nothing is kept warm for an arena that is gone");
    drop(small);
    assert_eq!(limit.charged(), 0);
}

#[test]
fn a_reader_finds_the_bytes_by_what_was_announced() {
    let (arena, _) = arena(64 * MIB);
    let limits = LaneLimits { segments: 10, bytes: 1 << 30 };
    let mappings = Mappings::new(MemoryLimit::new(1 << 10), MemoryLimit::new(1 << 30));
    let lane = Segments::new(limits, Arc::new(mappings), Holdings::none());
    for len in [5, 100 * KIB, 2 * MIB] {
        let mut chunk = arena.alloc(len, 64).unwrap();
        chunk.as_mut_slice().fill(len as u8);
        let segment = chunk.segment().announce();
        if lane.get(segment.id).is_none() {
            let fd = segment.fd.as_fd().try_clone_to_owned().unwrap();
            lane.insert(segment.id, fd, segment.len).unwrap();
        }
        let mapped = lane.get(chunk.segment_id()).unwrap();
        assert_eq!(mapped.copy_to_vec(chunk.offset(), len as u64).unwrap(), chunk.as_slice());
    }
}

#[test]
fn threads_take_and_give_each_others_chunks() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 2000;
    let (arena, limit) = arena(64 * MIB);
    let start = Barrier::new(THREADS);
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..THREADS).map(|_| mpsc::sync_channel::<(Chunk, u8)>(16)).unzip();
    let (arena_of_all, start) = (&arena, &start);
    std::thread::scope(|scope| {
        for (thread, receiver) in receivers.into_iter().enumerate() {
            let next = senders[(thread + 1) % THREADS].clone();
            scope.spawn(move || {
                start.wait();
                for round in 0..ROUNDS {
                    let len = (round * 7919 + thread * 104_729)
                        % (if round % 50 == 0 { 2 * MIB } else { 20 * KIB });
                    let byte = (round ^ thread) as u8;
                    let mut chunk = arena_of_all.alloc(len, 64).unwrap();
                    fill(&mut chunk, byte);
                    let _full = next.try_send((chunk, byte));
                    for (chunk, byte) in receiver.try_iter() {
                        assert!(is_filled(&chunk, byte));
                    }
                }
            });
        }
    });
    drop(senders);
    assert_eq!(arena.stats().in_use, 0);
    arena.trim();
    assert_eq!(limit.charged(), 0);
}

#[test]
fn threads_that_want_one_class_never_get_the_same_piece() {
    const ROUNDS: usize = 20_000;
    let (arena, limit) = arena(64 * MIB);
    std::thread::scope(|scope| {
        for thread in 1..=4 {
            let arena = &arena;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let mut chunk = arena.alloc(300, 64).unwrap();
                    fill(&mut chunk, thread);
                    // Now and then a second one, so that pieces go by the pool as well.
                    let other = (round % 7 == 0).then(|| arena.alloc(300, 64).unwrap());
                    assert!(
                        is_filled(&chunk, thread) && other.is_none_or(|other| place(&other) != place(&chunk))
                    );
                }
            });
        }
    });
    assert_eq!(arena.stats().in_use, 0);
    assert!(arena.stats().peak <= 8 * 512, "{:?}", arena.stats());
    drop(arena);
    assert_eq!(limit.charged(), 0);
}

#[test]
fn chunks_that_end_while_their_arena_does_leave_nothing() {
    for round in 0..300 {
        let (arena, limit) = arena(64 * MIB);
        let len = if round % 2 == 0 { 300 } else { MIB };
        let chunks: [_; 3] = std::array::from_fn(|_| arena.alloc(len, 64).unwrap());
        let start = Barrier::new(4);
        std::thread::scope(|scope| {
            for chunk in chunks {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    drop(chunk);
                });
            }
            start.wait();
            drop(arena);
        });
        assert_eq!(limit.charged(), 0, "round {round}");
    }
}

#[test]
fn what_lies_in_slots_is_not_in_use_and_goes_with_a_trim() {
    let (arena, limit) = arena(64 * MIB);
    for len in [100, 10 * KIB, 300 * KIB, MIB, 3 * MIB, 8 * MIB] {
        drop(arena.alloc(len, 64).unwrap());
    }
    let stats = arena.stats();
    assert_eq!((stats.in_use, stats.peak), (0, 8 << 20));
    drop(arena.alloc(8 * MIB, 64).unwrap());
    arena.trim();
    assert_eq!((arena.stats().segments, arena.stats().peak, limit.charged()), (0, 0, 0));
}

#[test]
fn segments_of_all_arenas_have_different_ids() {
    let arenas: [_; 3] = std::array::from_fn(|_| arena(64 * MIB).0);
    let chunks: Vec<_> = (0..12).map(|n| arenas[n % 3].alloc(MIB, 64).unwrap()).collect();
    let ids: BTreeSet<u32> = chunks.iter().map(Chunk::segment_id).collect();
    assert_eq!(ids.len(), chunks.len());
}

#[test]
fn a_forked_child_touches_neither_lock_nor_memory() {
    let (arena, _) = arena(64 * MIB);
    let mut chunk = arena.alloc(100, 64).unwrap();
    chunk.as_mut_slice().fill(1);
    let child = arena.while_locked(|| {
        fork(|| {
            let refused = arena.alloc(100, 64).is_err() && arena.stats().segments == 0;
            std::panic::set_hook(Box::new(|_| {}));
            let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| chunk.as_slice()[0]));
            arena.trim();
            // SAFETY: this child's copies are not used again; the parent's are other memory.
            drop(unsafe { (std::ptr::read(&chunk), std::ptr::read(&arena)) });
            i32::from(!(refused && read.is_err()))
        })
    });
    assert_eq!(child_status(child), 0);
    assert!(chunk.as_slice().iter().all(|&byte| byte == 1));
}

#[test]
fn no_descriptor_left_is_no_memory_and_costs_nothing() {
    let child = fork(|| {
        let (arena, limit) = arena(64 * MIB);
        let before = rustix::process::getrlimit(Resource::Nofile);
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
        let refused = arena.alloc(100, 64).err() == Some(NoMemory) && limit.charged() == 0;
        rustix::process::setrlimit(Resource::Nofile, before).unwrap();
        i32::from(!(refused && arena.alloc(100, 64).is_ok()))
    });
    assert_eq!(child_status(child), 0);
}

#[test]
fn alignment_beyond_a_page_is_a_mistake_of_the_caller() {
    let (arena, _) = arena(64 * MIB);
    assert!(
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| arena.alloc(1, 2 * ALIGN_MAX))).is_err()
    );
    let aligns = (0..=12).map(|log2| 1 << log2);
    let chunks: Vec<(usize, Chunk)> = aligns.map(|align| (align, arena.alloc(1, align).unwrap())).collect();
    for (align, mut chunk) in chunks {
        assert_eq!(chunk.as_mut_ptr() as usize % align, 0);
    }
}
