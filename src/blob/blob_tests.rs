//! Blobs as their users see them: the cursor against a model, who may write when, and a fork.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Cursor, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Bound;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use proptest::prelude::*;

use super::arena::{ALIGN_MAX, Arena, MemoryLimit};
use super::error::AllocError;
use super::exclusive::BlobMut;
use super::shared::Blob;
use crate::sys::testing::{child_status, fork};
use crate::{Bus, BusError, CallContext, Executed, MethodTable, RemoteError, Untyped};

fn arena(limit: u64) -> Arena {
    Arena::new(MemoryLimit::new(limit))
}

fn filled(arena: &Arena, bytes: &[u8]) -> BlobMut {
    let mut blob = BlobMut::alloc(arena, bytes.len(), 1).unwrap();
    blob.copy_from_slice(bytes);
    blob
}

/// The same bytes once more, as a process to which they were lent has them.
fn lent(blob: &Blob) -> Blob {
    crate::parcels::tests::borrowed(blob)
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<u8>),
    WriteAll(Vec<u8>),
    Seek(SeekFrom),
    Truncate(usize),
    SetLen(usize),
    Store(prop::sample::Index, u8),
    ReadInto(Vec<u8>),
    Freeze,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..60);
    let seek = prop_oneof![
        (0..150_u64).prop_map(SeekFrom::Start),
        (-150..50_i64).prop_map(SeekFrom::End),
        (-100..100_i64).prop_map(SeekFrom::Current),
        Just(SeekFrom::Start(u64::MAX)),
        Just(SeekFrom::Current(i64::MAX)),
    ];
    prop_oneof![
        4 => bytes().prop_map(Step::Write),
        2 => bytes().prop_map(Step::WriteAll),
        4 => seek.prop_map(Step::Seek),
        1 => (0..120_usize).prop_map(Step::Truncate),
        1 => (0..=100_usize).prop_map(Step::SetLen),
        2 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, value)| Step::Store(at, value)),
        2 => bytes().prop_map(Step::ReadInto),
        1 => Just(Step::Freeze),
    ]
}

/// A vector of the capacity's length, of which the first `len` bytes are the blob.
struct Model {
    bytes: Vec<u8>,
    len: usize,
    position: u64,
}

impl Model {
    fn cursor<R>(&mut self, f: impl FnOnce(&mut Cursor<&mut [u8]>) -> R) -> R {
        let mut cursor = Cursor::new(&mut self.bytes[..self.len]);
        cursor.set_position(self.position);
        let result = f(&mut cursor);
        self.position = cursor.position();
        result
    }
}

fn kind<T>(result: io::Result<T>) -> Result<T, ErrorKind> {
    result.map_err(|error| error.kind())
}

fn run(mut blob: BlobMut, model: &mut Model, step: Step) -> Result<BlobMut, TestCaseError> {
    match step {
        Step::Write(bytes) => {
            prop_assert_eq!(kind(blob.write(&bytes)), kind(model.cursor(|cursor| cursor.write(&bytes))));
        }
        Step::WriteAll(bytes) => {
            let expected = kind(model.cursor(|cursor| cursor.write_all(&bytes)));
            prop_assert_eq!(kind(blob.write_all(&bytes)), expected);
            prop_assert!(expected.is_ok() || expected == Err(ErrorKind::WriteZero));
        }
        Step::Seek(to) => {
            prop_assert_eq!(kind(blob.seek(to)), kind(model.cursor(|cursor| cursor.seek(to))));
        }
        Step::Truncate(len) => {
            blob.truncate(len);
            model.len = model.len.min(len);
        }
        Step::SetLen(len) => {
            blob.set_len(len);
            model.len = len;
        }
        Step::Store(at, value) if !blob.is_empty() => {
            let at = at.index(model.len);
            blob[at] = value;
            model.bytes[at] = value;
        }
        Step::Store(..) => {}
        Step::ReadInto(source) => {
            let written = model.cursor(|cursor| cursor.write(&source)).unwrap();
            prop_assert_eq!(blob.read_into(&*source).unwrap(), written);
        }
        Step::Freeze if !blob.is_empty() => {
            let frozen = blob.freeze();
            prop_assert_eq!(&frozen, &model.bytes[..model.len]);
            blob = frozen.try_unfreeze().expect("nobody else holds it");
            model.position = 0;
        }
        Step::Freeze => {}
    }
    Ok(blob)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn writes_and_seeks_are_those_of_a_cursor_over_a_slice(steps in prop::collection::vec(step(), 0..60)) {
        let arena = arena(1 << 20);
        let mut blob = filled(&arena, &[0; 100]);
        let mut model = Model { bytes: vec![0; 100], len: 100, position: 0 };
        for step in steps {
            blob = run(blob, &mut model, step)?;
            prop_assert_eq!(&*blob, &model.bytes[..model.len]);
            prop_assert_eq!(blob.position() as u64, model.position);
            prop_assert_eq!(blob.capacity(), 100);
        }
        drop(blob);
        prop_assert_eq!(arena.stats().in_use, 0);
    }

    #[test]
    fn slices_are_those_of_a_slice(
        bytes in prop::collection::vec(any::<u8>(), 0..40),
        start in 0..50_usize,
        end in 0..50_usize,
        is_shared in any::<bool>(),
    ) {
        let arena = arena(1 << 20);
        let blob = if is_shared { filled(&arena, &bytes).freeze() } else { bytes.clone().into() };
        let range = (Bound::Included(start), Bound::Excluded(end));
        match bytes.get(range) {
            Some(part) => {
                let slice = blob.slice(range);
                prop_assert_eq!(&slice, part);
                prop_assert!(part.is_empty() || slice.as_ptr() == blob[start..].as_ptr());
                prop_assert_eq!(blob.slice_ref(&blob[range]), slice);
            }
            None => prop_assert!(catch_unwind(AssertUnwindSafe(|| blob.slice(range))).is_err()),
        }
    }
}

#[test]
fn all_kinds_of_ranges_slice() {
    let blob = Blob::from("0123456789");
    assert_eq!(blob.slice(..), "0123456789");
    assert_eq!(blob.slice(7..), "789");
    assert_eq!(blob.slice(2..=3), "23");
    assert_eq!(blob.slice((Bound::Excluded(7), Bound::Unbounded)), "89");
    assert_eq!(blob.split_at(4), (Blob::from("0123"), Blob::from("456789")));
    assert_eq!(blob.split_at(10).1, Blob::empty());
    assert_eq!(blob.slice(3..).slice(2..4), "56", "a slice of a slice");
    for absurd in [0..=usize::MAX, 11..=11] {
        assert!(catch_unwind(AssertUnwindSafe(|| blob.slice(absurd))).is_err());
    }
    let after_all = (Bound::Excluded(usize::MAX), Bound::Unbounded);
    assert!(catch_unwind(AssertUnwindSafe(|| blob.slice(after_all))).is_err());
}

#[test]
fn what_was_not_borrowed_from_a_blob_is_no_part_of_it() {
    let (blob, other) = (Blob::from("0123456789"), Blob::from("0123456789"));
    let middle = blob.slice(3..6);
    for stranger in [&other[2..3], &blob[2..4], &blob[5..7], &blob[..]] {
        assert!(catch_unwind(AssertUnwindSafe(|| middle.slice_ref(stranger))).is_err());
    }
    assert_eq!(middle.slice_ref(&blob[4..6]), "45", "the same memory, borrowed through another");
    assert_eq!(middle.slice_ref(&other[..0]), "");
}

#[test]
fn only_the_last_holder_of_own_memory_may_write_it_again() {
    let arena = arena(1 << 20);
    let blob = filled(&arena, b"0123456789").freeze();
    let place = blob.as_ptr();
    let (clone, part) = (blob.clone(), blob.slice(2..6));
    let blob = blob.try_unfreeze().unwrap_err();
    assert_eq!(blob, "0123456789", "it comes back as it was");
    drop((blob, clone));
    let mut part = part.try_unfreeze().unwrap();
    assert_eq!((&*part, part.len(), part.capacity(), part.position()), (&b"2345"[..], 4, 8, 0));
    part.write_all(b"abcd").unwrap();
    part.set_len(8);
    assert_eq!(&*part, b"abcd6789");
    assert_eq!(part.as_ptr(), place.wrapping_add(2), "the same memory");
    let whole = catch_unwind(AssertUnwindSafe(|| part.set_len(9)));
    assert!(whole.is_err(), "not beyond what was allocated");
    assert_eq!(part.freeze(), "abcd6789");
    assert_eq!(arena.stats().in_use, 0);
}

#[test]
fn what_is_not_own_memory_is_never_written() {
    let arena = arena(1 << 20);
    let own = filled(&arena, b"lent").freeze();
    let strangers = [Blob::from("heap"), Blob::empty(), lent(&own), own.slice(..0)];
    for blob in strangers {
        let bytes = blob.to_vec();
        assert_eq!(blob.try_unfreeze().unwrap_err(), bytes);
    }
    assert!(own.try_unfreeze().is_ok());
}

#[test]
fn an_empty_blob_holds_nothing() {
    let arena = arena(1 << 20);
    let mut empty = BlobMut::alloc(&arena, 0, 4096).unwrap();
    assert!(empty.is_empty());
    assert_eq!(empty.write(b"x").unwrap(), 0);
    assert_eq!(empty.read_into(&b"x"[..]).unwrap(), 0);
    let empty = empty.freeze();
    assert_eq!((empty.len(), arena.stats().in_use), (0, 0));
    let blob = filled(&arena, b"full").freeze();
    let rest = blob.slice(4..);
    drop(blob);
    assert_eq!((rest.len(), arena.stats().in_use), (0, 0));
    assert_eq!(Blob::default(), Vec::new());
    assert!(Blob::from(Vec::new()).is_empty());
}

#[test]
#[expect(clippy::mutable_key_type, reason = "what changes inside a blob's holder are counts, not the bytes")]
fn blobs_compare_and_hash_as_their_bytes() {
    let arena = arena(1 << 20);
    let (shared, heap) = (filled(&arena, b"key").freeze(), Blob::copy_of(b"key"));
    assert_eq!(shared, heap);
    assert_eq!(*b"key".as_slice(), shared);
    assert_eq!(b"key".as_slice(), shared);
    assert_eq!(shared, vec![b'k', b'e', b'y']);
    assert!(shared < *"kez" && shared > *"ke");
    let map = HashMap::from([(shared, 1)]);
    assert_eq!(
        (map.get(&heap), map.get(b"key".as_slice()), map.get(b"no".as_slice())),
        (Some(&1), Some(&1), None)
    );
    let sorted = BTreeSet::from(["b", "", "ab"].map(Blob::from));
    assert!(sorted.iter().eq(["", "ab", "b"].map(Blob::from).iter()));
    assert_eq!(
        (format!("{heap:?}"), lent(&filled(&arena, b"far").freeze())),
        ("Blob(3 bytes)".to_owned(), "far".into())
    );
}

#[test]
fn a_vector_passes_through_a_blob_without_a_copy() {
    let vec = vec![7; 1000];
    let place = vec.as_ptr();
    let blob = Blob::from(vec);
    assert_eq!(blob.as_ptr(), place);
    let part = blob.slice(1..);
    let copy = Vec::from(blob.clone());
    assert_ne!(copy.as_ptr(), place, "others hold it");
    drop(blob);
    let copy_of_part = Vec::from(part);
    assert_eq!(copy_of_part.len(), 999);
    let vec = Vec::from(Blob::from(copy_of_part.into_boxed_slice()));
    assert_eq!(vec, [7; 999]);
    let whole = Blob::from("text".to_owned());
    let place = whole.as_ptr();
    let text = Vec::from(whole);
    assert_eq!((text.as_ptr(), &*text), (place, &b"text"[..]));
    let arena = arena(1 << 20);
    assert_eq!(Vec::from(filled(&arena, b"shared").freeze()), b"shared");
}

#[test]
fn a_file_a_pipe_and_a_socket_fill_a_blob_and_take_its_bytes() {
    let arena = arena(64 << 20);
    let pattern: Vec<u8> = (0..3 << 20).map(|index: u32| (index % 251) as u8).collect();
    let source = filled(&arena, &pattern).freeze();

    let path = std::env::temp_dir().join(format!("objbus-blob-{}", std::process::id()));
    source.write_to(File::create(&path).unwrap()).unwrap();
    let mut from_file = BlobMut::alloc(&arena, pattern.len() + 10, 1).unwrap();
    assert_eq!(from_file.read_into(File::open(&path).unwrap()).unwrap(), pattern.len(), "the file ends");
    std::fs::remove_file(path).unwrap();
    from_file.truncate(from_file.position());
    assert_eq!(from_file.freeze(), source);

    let (pipe_end, pipe) = io::pipe().unwrap();
    let (socket_end, socket) = UnixStream::pair().unwrap();
    let writers = [source.clone(), source.clone()];
    thread::scope(|scope| {
        let [to_pipe, to_socket] = writers;
        scope.spawn(move || to_pipe.write_to(pipe).unwrap());
        scope.spawn(move || to_socket.write_to(&socket).unwrap());
        let ends: [Box<dyn Read>; 2] = [Box::new(pipe_end), Box::new(&socket_end)];
        for mut end in ends {
            let mut blob = BlobMut::alloc(&arena, pattern.len() - 5, 1).unwrap();
            assert_eq!(blob.read_into(&mut end).unwrap(), blob.len(), "the blob is full");
            assert_eq!(blob.freeze(), pattern[..pattern.len() - 5]);
            let mut rest = Vec::new();
            end.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, pattern[pattern.len() - 5..], "what had no room is still there");
        }
    });
}

#[test]
fn reading_goes_on_after_a_signal_and_keeps_what_it_has_on_errors() {
    struct Answers(Vec<io::Result<&'static [u8]>>);
    impl Read for Answers {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            self.0.remove(0).and_then(|mut bytes| bytes.read(room))
        }
    }
    let failed = |kind: ErrorKind| Err(io::Error::from(kind));
    let arena = arena(1 << 20);
    let mut blob = filled(&arena, b"__________");
    blob.set_position(1);
    let mut source = Answers(vec![
        failed(ErrorKind::Interrupted),
        Ok(b"ab"),
        failed(ErrorKind::Interrupted),
        Ok(b"c"),
        failed(ErrorKind::WouldBlock),
        Ok(b"d"),
        Ok(b""),
    ]);
    assert_eq!(kind(blob.read_into(&mut source)), Err(ErrorKind::WouldBlock));
    assert_eq!((blob.position(), &*blob), (4, &b"_abc______"[..]));
    assert_eq!(blob.read_into(&mut source).unwrap(), 1);
    assert_eq!((blob.position(), &*blob), (5, &b"_abcd_____"[..]));
    blob.set_position(11);
    assert_eq!(blob.read_into(&mut source).unwrap(), 0, "beyond the end nothing is asked for");
}

#[test]
fn a_source_that_lies_about_what_it_read_is_caught() {
    struct Liar;
    impl Read for Liar {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            Ok(room.len() + 1)
        }
    }
    let arena = arena(1 << 20);
    let mut blob = filled(&arena, b"abc");
    assert!(catch_unwind(AssertUnwindSafe(|| blob.read_into(Liar))).is_err());
    assert_eq!((blob.position(), blob.len()), (0, 3));
}

#[test]
fn memory_is_aligned_as_asked_and_a_wrong_alignment_is_an_error() {
    let bus = Bus::in_memory();
    for align in (0..=12).map(|log2| 1 << log2) {
        for len in [1, 65, 5000] {
            let blob = bus.alloc_aligned(len, align).unwrap();
            assert_eq!((blob.len(), blob.as_ptr().addr() % align.max(64)), (len, 0));
        }
    }
    for align in [0, 3, 96, 2 * ALIGN_MAX, usize::MAX] {
        let refused = bus.alloc_aligned(1, align).unwrap_err();
        assert_eq!(refused, AllocError::BadAlignment { align });
        assert!(refused.to_string().contains("power of two of at most 4096"));
    }
}

#[test]
fn beyond_the_limit_is_an_error_and_what_was_dropped_makes_room() {
    let arena = arena(4 << 20);
    let held = BlobMut::alloc(&arena, 3 << 20, 1).unwrap();
    assert_eq!(BlobMut::alloc(&arena, 2 << 20, 1).unwrap_err(), AllocError::NoMemory);
    assert_eq!(BlobMut::alloc(&arena, usize::MAX, 1).unwrap_err(), AllocError::NoMemory);
    drop(held.freeze());
    assert!(BlobMut::alloc(&arena, 2 << 20, 1).is_ok());
    assert_eq!(Bus::in_memory().alloc(usize::MAX).unwrap_err(), AllocError::NoMemory);
}

#[test]
fn errors_say_what_to_do_and_become_those_of_a_call() {
    let errors = [
        (AllocError::NoMemory, "BusBuilder::memory"),
        (AllocError::TimedOut, "in time"),
        (AllocError::BadAlignment { align: 3 }, "aligned to 3 bytes"),
        (AllocError::ForkedHandle, "open it again in the child"),
        (AllocError::Closed, "open it again"),
    ];
    for (error, advice) in errors {
        assert!(error.to_string().contains(advice), "{error}");
        let of_call = BusError::from(error.clone());
        assert_eq!(of_call.executed(), Executed::No);
        assert!(of_call.to_string().contains("did not run"), "{of_call}");
    }
}

#[test]
fn a_method_allocates_for_its_caller() {
    let bus = Bus::in_memory();
    let table = MethodTable::named("Frames").try_method("size", |len: u64| {
        let call = CallContext::current().expect("a method has a call");
        call.alloc(len as usize).map(|frame| frame.len() as u64)
    });
    let _published = bus.publish("frames", table).unwrap();
    let frames: Untyped = bus.proxy("frames").wait().unwrap();
    let size = |len: u64| frames.try_call::<_, u64, RemoteError>("size", &(len,)).wait();
    assert_eq!(size(1 << 20).unwrap(), 1 << 20);
    let refused = size(u64::MAX).unwrap_err();
    assert_eq!(refused.into_app().unwrap().kind, "objbus::AllocError");
}

/// Whether `f` panics, and says that of a fork.
fn tells_of_the_fork<R>(f: impl FnOnce() -> R) -> bool {
    let Err(panic) = catch_unwind(AssertUnwindSafe(f)) else { return false };
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.is_some_and(|text| text.contains("before fork()"))
}

/// Faults, row 25.
#[test]
fn row_25_a_forked_child_reads_no_blob_and_harms_none() {
    let arena = arena(1 << 20);
    let own = filled(&arena, b"own memory").freeze();
    let blobs = [own.clone(), own.slice(4..), lent(&own)];
    let filling = Cell::new(Some(filled(&arena, b"not frozen")));
    let before = arena.stats().in_use;
    let child = arena.while_locked(|| {
        fork(|| {
            std::panic::set_hook(Box::new(|_| {}));
            for blob in &blobs {
                let (clone, slice) = (blob.clone(), blob.slice(1..));
                let (left, right) = blob.split_at(1);
                assert_eq!(
                    (clone.len(), slice.len(), left.len(), right.len()),
                    (blob.len(), blob.len() - 1, 1, slice.len())
                );
                assert!(tells_of_the_fork(|| blob[0]));
                assert!(tells_of_the_fork(|| slice == clone));
                assert!(tells_of_the_fork(|| clone.write_to(io::sink())));
                assert!(clone.try_unfreeze().is_err());
            }
            let mut filling = filling.take().unwrap();
            assert!(tells_of_the_fork(|| filling.fill(0)));
            assert!(tells_of_the_fork(|| filling.write(b"x")));
            assert!(tells_of_the_fork(|| filling.freeze()));
            // SAFETY: this child's copies are not used again; the parent's are other memory.
            let [own, part, lent] = unsafe { std::ptr::read(&blobs) };
            // SAFETY: as above.
            drop(unsafe { std::ptr::read(&own) });
            // The last holder there is in the child.
            assert!(part.try_unfreeze().is_err());
            drop(lent);
            assert_eq!(Vec::from(Blob::from("heap").slice(1..)), b"eap");
            0
        })
    });
    assert_eq!(child_status(child), 0);
    assert_eq!(arena.stats().in_use, before, "nothing came back from the child");
    let [first, second, third] = blobs;
    assert_eq!((&first, &second, &third), (&Blob::from("own memory"), &Blob::from("memory"), &first));
    assert_eq!(filling.take().unwrap().freeze(), "not frozen");
    drop((own, second));
    assert!(first.try_unfreeze().is_ok());
    assert_eq!(third, "own memory");
}

#[test]
fn row_25_a_bus_gives_a_forked_child_no_memory() {
    let bus = Bus::in_memory();
    drop(bus.alloc(100).unwrap());
    let child = fork(|| i32::from(bus.alloc(100).unwrap_err() != AllocError::ForkedHandle));
    assert_eq!(child_status(child), 0);
}
