//! Bodies in slots, on the heap and in the arena.

use super::*;

use crate::blob::arena::MemoryLimit;

fn arena() -> Arena {
    Arena::new(MemoryLimit::new(64 << 20))
}

fn inline() -> [MaybeUninit<u8>; INLINE_BODY] {
    [const { MaybeUninit::uninit() }; INLINE_BODY]
}

/// A value whose `Serialize` writes 300 bytes and then panics.
struct Panics;

impl Serialize for Panics {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeTuple;
        let mut tuple = serializer.serialize_tuple(2)?;
        tuple.serialize_element(&"x".repeat(300))?;
        panic!("half-way");
    }
}

fn request<A: Serialize>(value: &A, limit: u64) -> Result<Vec<u8>, EncodeError> {
    let (mut buffer, mut blobs) = (inline(), Blobs::new());
    match encode_request(value, &mut buffer, limit, &arena(), &mut blobs).map_err(|error| *error)? {
        // SAFETY: `encode_request` wrote the first `len` bytes.
        Encoded::Inline(len) => Ok(buffer[..len].iter().map(|b| unsafe { b.assume_init() }).collect()),
        Encoded::Spilled(spilled) => {
            assert!(spilled.len() > INLINE_BODY, "{} bytes spilled too early", spilled.len());
            Ok(spilled.as_slice().to_vec())
        }
    }
}

#[test]
fn bodies_spill_at_every_size_around_the_capacity() {
    for len in 0..600 {
        let value = ("a".repeat(len), 1u8, vec![300u16; 3]);
        assert_eq!(request(&value, 1 << 20).unwrap(), postcard::to_stdvec(&value).unwrap());
    }
}

#[test]
fn the_limit_holds_inline_and_spilled_before_memory_is_taken() {
    for (limit, len) in [(10, 11), (INLINE_BODY as u64, 300), (1000, 2000), (1000, 1 << 30)] {
        let error = request(&"a".repeat(len), limit).unwrap_err();
        let EncodeError::TooLarge { limit: reported, size } = error else { panic!("{error:?}") };
        assert_eq!(reported, limit);
        assert!(size > limit && size <= len as u64 + 5, "{size}");
    }
    assert_eq!(request(&"a".repeat(9), 10).unwrap().len(), 10);
    assert_eq!(request(&vec![1u32; 299], 300), Err(EncodeError::TooLarge { limit: 300, size: 301 }));
}

#[test]
fn without_memory_for_a_body_there_is_an_error_of_its_own() {
    let (mut buffer, mut blobs) = (inline(), Blobs::new());
    let arena = Arena::new(MemoryLimit::new(1 << 20));
    let encoded = encode_request(&vec![1u8; 2 << 20], &mut buffer, 1 << 30, &arena, &mut blobs);
    assert_eq!(*encoded.unwrap_err(), EncodeError::NoMemory);
    // More than twice the arena's size cannot be had, but what is needed can.
    let encoded = encode_request(&(vec![1u8; 600 << 10], 1u8), &mut buffer, 1 << 30, &arena, &mut blobs);
    assert!(matches!(encoded, Ok(Encoded::Spilled(_))));
}

#[test]
fn a_big_slice_is_copied_once_into_a_chunk_of_its_size() {
    let arena = arena();
    let bytes = vec![7u8; 8 << 20];
    let (mut buffer, mut blobs) = (inline(), Blobs::new());
    let encoded = encode_request(&(&bytes, 1u8), &mut buffer, 1 << 30, &arena, &mut blobs).unwrap();
    let Encoded::Spilled(spilled) = encoded else { panic!("8 MiB fit no cell") };
    assert_eq!(spilled.as_slice(), postcard::to_stdvec(&(&bytes, 1u8)).unwrap());
    assert_eq!(arena.stats().segments, 1, "it was moved");
    assert!(arena.stats().peak < 10 << 20, "{:?}", arena.stats());
    assert_eq!(spilled.chunk().offset() % 64, 0);
}

#[test]
fn loans_are_appended_behind_the_body_and_appended_anew() {
    let arena = arena();
    let mut slot = [0u64; 8];
    // SAFETY: `slot` and `arena` outlive the output and the slot is used by nothing else.
    let mut output = unsafe { Output::new(NonNull::from(&mut slot).cast(), 64, 1 << 20, Some(&arena)) };
    output.encode("eleven bytes").unwrap();
    assert!(output.take_spill().is_none());
    output.spill_now().unwrap();
    assert_eq!(output.spill(), Some(&b"\x0celeven bytes"[..]));
    let mut spilled = output.take_spill().unwrap();
    assert_eq!((output.len(), output.spill()), (0, None));
    let loan = |lease: u32| Loan { lease, segment: lease, offset: 3, len: 4 };
    for leases in [1..2, 1..1000, 7..9] {
        // One that is lent stays as it is.
        let lent = Arc::clone(spilled.chunk());
        let before = lent.as_slice().to_vec();
        let loans: Vec<Loan> = leases.map(loan).collect();
        spilled.append(&loans, &arena).unwrap();
        assert_eq!(spilled.as_slice(), b"\x0celeven bytes");
        let behind = &spilled.chunk.as_slice()[16..16 + 24 * loans.len()];
        let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap());
        let read: Vec<Loan> = behind
            .chunks_exact(24)
            .map(|loan| Loan::from_words([word(&loan[..8]), word(&loan[8..16]), word(&loan[16..])]))
            .collect();
        assert_eq!(read, loans);
        assert_eq!(lent.as_slice(), before);
    }
}

#[test]
fn an_output_starts_again_after_a_panic_half_way() {
    let (mut buffer, arena) = (inline(), arena());
    let slot = NonNull::from(&mut buffer).cast();
    // SAFETY: `buffer` and `arena` outlive the output, and `buffer` is not used meanwhile.
    let mut output = unsafe { Output::new(slot, INLINE_BODY, 1 << 20, Some(&arena)) };
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| output.encode(&Panics)));
    assert!(panicked.is_err());
    output.encode(&7u8).unwrap();
    assert_eq!((output.len(), output.spill(), output.blob_count()), (1, None, 0));
    assert_eq!(arena.stats().in_use, 0);
}

#[test]
fn an_unknown_length_is_an_error_with_a_sentence() {
    struct Endless;
    impl Serialize for Endless {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_seq(None).map(|_| unreachable!("postcard needs the length"))
        }
    }
    let error = Output::heap(100).encode(&Endless).unwrap_err();
    assert!(error.to_string().contains("length"), "{error}");
}
