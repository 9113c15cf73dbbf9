//! Where a value is encoded: straight into the bytes of a cell, and on to the heap when they are full.
//!
//! Most bodies fit the cell, so nothing is allocated and nothing copied twice. The cell may be shared memory:
//! it is written through a raw pointer, never read back before it is full, and no reference to it is made.

use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use postcard::ser_flavors::Flavor;
use serde::Serialize;

/// Bytes of a request that travel inside its cell.
pub(crate) const INLINE_BODY: usize = 232;

/// Why a value could not be encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EncodeError {
    /// The encoded value exceeds the limit.
    TooLarge {
        /// The largest body allowed, in bytes.
        limit: u64,
        /// How many bytes had been asked for when encoding stopped.
        size: u64,
    },
    /// The type's `Serialize` failed, or asks what the format cannot do.
    Unencodable(&'static str),
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EncodeError::TooLarge { limit, size } => {
                write!(f, "the value needs {size} bytes and the bus allows {limit}")
            }
            EncodeError::Unencodable(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for EncodeError {}

/// A body being written: first into the slot it was made for, then, when that is full, into a vector.
///
/// It can be started again at any point ([`reset`](Output::reset)), so an encoder that fails or panics half-way leaves
/// nothing behind.
///
/// # Example
///
/// ```ignore
/// let mut output = Output::heap(1 << 20);
/// output.encode(&(2.0, 0.5))?;
/// assert_eq!(output.spill().map(<[u8]>::len), Some(16));
/// ```
#[derive(Debug)]
pub struct Output {
    slot: NonNull<u8>,
    /// Bytes that may be written at `slot`.
    capacity: usize,
    /// Bytes written at `slot`, at most `capacity`; meaningless once `spilled`.
    inline: usize,
    /// The whole body, once it did not fit the slot.
    spill: Vec<u8>,
    spilled: bool,
    /// What was written is an error.
    is_error: bool,
    limit: u64,
    /// The size asked for when `limit` was hit; 0 before.
    refused: u64,
}

// SAFETY: `slot` is exclusively this output's, as `new` demands, so it may be written from whichever thread holds the
// output; everything else is owned data.
unsafe impl Send for Output {}

impl Output {
    /// An output that writes into `capacity` bytes at `slot` and refuses bodies of more than `limit` bytes.
    ///
    /// # Safety
    ///
    /// `slot` must be valid for writes of `capacity` bytes, by any thread, as long as this output exists; nothing
    /// else in this process may read or write them meanwhile.
    pub(crate) unsafe fn new(slot: NonNull<u8>, capacity: usize, limit: u64) -> Output {
        Output { slot, capacity, ..Output::heap(limit) }
    }

    /// An output without a slot: every body goes to the heap.
    pub fn heap(limit: u64) -> Output {
        Output {
            slot: NonNull::dangling(),
            capacity: 0,
            inline: 0,
            spill: Vec::new(),
            spilled: false,
            is_error: false,
            limit,
            refused: 0,
        }
    }

    /// The number of bytes written.
    #[inline]
    pub fn len(&self) -> usize {
        if self.spilled { self.spill.len() } else { self.inline }
    }

    #[cfg(test)]
    /// Whether nothing is written yet.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole body if it did not fit the slot; otherwise it lies in the slot's first [`len`](Output::len) bytes.
    #[inline]
    pub fn spill(&self) -> Option<&[u8]> {
        self.spilled.then_some(self.spill.as_slice())
    }

    /// Forgets what was written, to start again.
    #[inline]
    pub fn reset(&mut self) {
        self.inline = 0;
        self.refused = 0;
        self.spilled = false;
        self.is_error = false;
        self.spill.clear();
    }

    /// Replaces what was written by the encoding of `value`.
    ///
    /// # Errors
    ///
    /// [`EncodeError`] when the value exceeds the limit or its `Serialize` fails; the output is empty then.
    #[inline]
    pub(crate) fn encode<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
        self.reset();
        let encoded = postcard::serialize_with_flavor(value, Sink(self));
        encoded.map_err(|error| self.explain(error))
    }

    /// As [`encode`](Output::encode), for an error of the method's own.
    ///
    /// # Errors
    ///
    /// As [`encode`](Output::encode).
    #[inline]
    pub(crate) fn encode_error<T: Serialize + ?Sized>(&mut self, error: &T) -> Result<(), EncodeError> {
        self.encode(error)?;
        self.is_error = true;
        Ok(())
    }

    /// Whether what was written is an error.
    #[inline]
    pub fn is_error(&self) -> bool {
        self.is_error
    }

    #[cold]
    fn explain(&mut self, error: postcard::Error) -> EncodeError {
        let refused = self.refused;
        self.reset();
        match error {
            _ if refused > 0 => EncodeError::TooLarge { limit: self.limit, size: refused },
            postcard::Error::SerializeSeqLengthUnknown => {
                EncodeError::Unencodable("a sequence does not know its length before it is encoded")
            }
            postcard::Error::SerdeSerCustom | postcard::Error::CollectStrError => {
                EncodeError::Unencodable("the value's Serialize failed")
            }
            _ => EncodeError::Unencodable("the value's type has no place in the format"),
        }
    }

    #[inline]
    fn push(&mut self, byte: u8) -> postcard::Result<()> {
        if self.spilled || self.inline == self.capacity || self.inline as u64 >= self.limit {
            return self.extend_spill(&[byte]);
        }
        // SAFETY: `inline < capacity`, so the byte lies in the range that `new` was promised to be writable and ours.
        unsafe { self.slot.add(self.inline).write(byte) };
        self.inline += 1;
        Ok(())
    }

    #[inline]
    fn extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        let room = self.capacity - self.inline;
        if self.spilled || bytes.len() > room || (self.inline + bytes.len()) as u64 > self.limit {
            return self.extend_spill(bytes);
        }
        // SAFETY: `inline + bytes.len() <= capacity`, so the range lies in what `new` was promised to be writable and
        // ours alone; `bytes` is a live reference, so the two cannot overlap.
        unsafe {
            self.slot.add(self.inline).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len())
        };
        self.inline += bytes.len();
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn extend_spill(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        let size = (self.len() + bytes.len()) as u64;
        if size > self.limit {
            self.refused = size;
            return Err(postcard::Error::SerializeBufferFull);
        }
        if !self.spilled {
            self.move_to_spill(bytes.len());
        }
        self.spill.extend_from_slice(bytes);
        Ok(())
    }

    fn move_to_spill(&mut self, more: usize) {
        self.spill.reserve((self.inline + more).max(2 * self.capacity));
        // SAFETY: the first `inline` bytes of the slot were written by `push` and `extend`; the vector has
        // room for them after the reserve, and is a separate allocation. What the slot holds is
        // copied before anything looks at it.
        unsafe {
            self.slot.as_ptr().copy_to_nonoverlapping(self.spill.as_mut_ptr(), self.inline);
            self.spill.set_len(self.inline);
        }
        self.spilled = true;
    }
}

/// Lets postcard write into an output that the caller keeps.
struct Sink<'a>(&'a mut Output);

impl Flavor for Sink<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.push(data)
    }

    #[inline]
    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend(data)
    }

    #[inline]
    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Where the encoded arguments of a call are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Encoded {
    /// In the first so many bytes of the inline buffer.
    Inline(usize),
    /// In a vector: they did not fit.
    Spilled(Vec<u8>),
}

/// Encodes the arguments of a call, into `inline` when they fit.
///
/// # Errors
///
/// [`EncodeError`] when they exceed `limit` bytes or their `Serialize` fails.
///
/// # Example
///
/// ```ignore
/// let mut inline = [MaybeUninit::uninit(); INLINE_BODY];
/// assert_eq!(encode_request(&(2.0, 0.5), &mut inline, 1 << 20)?, Encoded::Inline(16));
/// ```
#[inline(always)]
pub(crate) fn encode_request<A: Serialize + ?Sized>(
    arguments: &A,
    inline: &mut [MaybeUninit<u8>; INLINE_BODY],
    limit: u64,
) -> Result<Encoded, EncodeError> {
    let slot = NonNull::from(inline).cast::<u8>();
    // SAFETY: `inline` is borrowed mutably for longer than the output lives, and the pointer was made from that borrow.
    let mut output = unsafe { Output::new(slot, INLINE_BODY, limit) };
    output.encode(arguments)?;
    // Not moved as a whole: that would wait for each of its words to be stored.
    Ok(if output.spilled {
        Encoded::Spilled(std::mem::take(&mut output.spill))
    } else {
        Encoded::Inline(output.inline)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn small_bodies_stay_inline_and_equal_postcards() {
        let mut buffer = inline();
        let Ok(Encoded::Inline(len)) = encode_request(&(2.0f64, "half", 7u32), &mut buffer, 1 << 20) else {
            panic!("14 bytes fit")
        };
        // SAFETY: `encode_request` wrote the first `len` bytes.
        let bytes: Vec<u8> = buffer[..len].iter().map(|b| unsafe { b.assume_init() }).collect();
        assert_eq!(bytes, postcard::to_stdvec(&(2.0f64, "half", 7u32)).unwrap());
    }

    #[test]
    fn bodies_spill_at_every_size_around_the_capacity() {
        for len in 0..600 {
            let value = ("a".repeat(len), 1u8, vec![300u16; 3]);
            let expected = postcard::to_stdvec(&value).unwrap();
            let mut buffer = inline();
            match encode_request(&value, &mut buffer, 1 << 20).unwrap() {
                Encoded::Inline(n) => assert_eq!(n, expected.len(), "length {len}"),
                Encoded::Spilled(bytes) => {
                    assert!(bytes.len() > INLINE_BODY, "length {len} spilled too early");
                    assert_eq!(bytes, expected);
                }
            }
        }
    }

    #[test]
    fn the_limit_holds_inline_and_spilled() {
        for (limit, len) in [(10, 11), (INLINE_BODY as u64, 300), (1000, 2000)] {
            let error = encode_request(&"a".repeat(len), &mut inline(), limit).unwrap_err();
            let EncodeError::TooLarge { limit: reported, size } = error else { panic!("{error:?}") };
            assert_eq!(reported, limit);
            assert!(size > limit && size <= len as u64 + 2, "{size}");
        }
        assert!(encode_request(&"a".repeat(9), &mut inline(), 10).is_ok());
    }

    #[test]
    fn an_output_starts_again_after_a_panic_half_way() {
        let mut buffer = inline();
        // SAFETY: `buffer` outlives the output and is not used meanwhile.
        let mut output = unsafe { Output::new(NonNull::from(&mut buffer).cast(), INLINE_BODY, 1 << 20) };
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| output.encode(&Panics)));
        assert!(panicked.is_err());
        output.encode(&7u8).unwrap();
        assert_eq!((output.len(), output.spill()), (1, None));
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
}
