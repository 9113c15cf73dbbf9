//! Decoding what another process sent, within a budget.
//!
//! The format is postcard's (<https://postcard.jamesmunns.com/wire-format>), read by [`decoder`](super::decoder) rather than by
//! postcard because a body is hostile: every claimed length is held against the bytes left, nesting is counted, and each element is charged
//! at its decoded size *before* it is built. Postcard alone would loop on a `Vec<()>` of 2^60 elements and
//! overflow the stack on a value nested 100,000 deep. A property test holds the two decoders equal on honest data.

use std::fmt;

use serde::de::{self, Deserialize};

use super::blob::Lent;
use super::decoder::Decoder;

/// How much one body may cost its reader.
///
/// # Example
///
/// ```ignore
/// let strict = Budget { heap: 1 << 20, heap_per_byte: 16, depth: 32 };
/// let point: (f64, f64) = decode(body, &strict)?;
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Heap that any body may ask for, in bytes of decoded elements.
    pub(crate) heap: u64,
    /// Further heap for each byte of the body.
    pub(crate) heap_per_byte: u64,
    /// How deep options, sequences, maps, tuples, structs and enums may nest.
    pub(crate) depth: u32,
}

impl Default for Budget {
    fn default() -> Self {
        // 64 per byte: an `Option<u128>` that is `None` grows from 1 byte to 32, an empty `String` from 1 to 24.
        Budget { heap: 16 << 20, heap_per_byte: 64, depth: 64 }
    }
}

impl Budget {
    #[inline]
    pub(super) fn heap_for(&self, body: usize) -> u64 {
        self.heap.saturating_add(self.heap_per_byte.saturating_mul(body as u64))
    }
}

/// Why a body is not a value of the type asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The body ends within a value.
    Ended,
    /// A length says more than the body holds.
    LengthBeyondBody,
    /// Bytes follow the value.
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A string is not UTF-8.
    BadUtf8,
    /// A bool is neither 0 nor 1.
    BadBool,
    /// A char is not one.
    BadChar,
    /// The tag of an option is neither 0 nor 1.
    BadOption,
    /// A number does not fit its type.
    BadNumber,
    /// The value nests deeper than the budget allows.
    TooDeep,
    /// The value would take more memory than the budget allows.
    TooBig,
    /// A blob is said to be lent with the body, and is not.
    NotLent {
        /// Which one it is said to be, from 1.
        number: u64,
        /// How many are lent.
        lent: usize,
    },
    /// The type asks what the format cannot tell (`deserialize_any`, skipped fields of unknown type).
    NotSelfDescribing,
    /// The type itself refused the value; its own words.
    Refused(Box<str>),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DecodeError::Ended => "the body ends within a value",
            DecodeError::LengthBeyondBody => "a length claims more than the body holds",
            DecodeError::Trailing { bytes } => return write!(f, "{bytes} bytes follow the value"),
            DecodeError::BadUtf8 => "a string is not UTF-8",
            DecodeError::BadBool => "a bool is neither 0 nor 1",
            DecodeError::BadChar => "a char is not a Unicode scalar value",
            DecodeError::BadOption => "the tag of an option is neither 0 nor 1",
            DecodeError::BadNumber => "a number does not fit its type",
            DecodeError::TooDeep => "the value nests deeper than the limit",
            DecodeError::TooBig => "the value would take more memory than `Limits::decode_bytes` allows for a body of this size",
            DecodeError::NotLent { number, lent } => {
                return write!(f, "the value refers to lent buffer {number}, and {lent} came with it");
            }
            DecodeError::NotSelfDescribing => {
                "the type needs a self-describing format, which the bus does not use (serde's untagged, tag or flatten?)"
            }
            DecodeError::Refused(why) => why,
        })
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    #[cold]
    fn custom<T: fmt::Display>(msg: T) -> Self {
        DecodeError::Refused(msg.to_string().into())
    }
}

/// Decodes `body`, all of it, as a `T` that may borrow strings and bytes from it.
///
/// # Errors
///
/// A [`DecodeError`] when the body is no encoding of a `T`, goes on after it, or costs more than `budget`.
///
/// # Example
///
/// ```ignore
/// let (name, limit): (&str, u32) = decode(body, &Budget::default())?;
/// ```
#[inline]
pub(crate) fn decode<'a, T: Deserialize<'a>>(body: &'a [u8], budget: &Budget) -> Result<T, DecodeError> {
    decode_with(body, Lent::default(), budget)
}

/// As [`decode`], of a body that came with what is `lent`.
///
/// # Errors
///
/// As [`decode`], or when the body refers to a blob that was not lent with it.
#[inline]
pub(crate) fn decode_with<'a, T: Deserialize<'a>>(
    body: &'a [u8],
    lent: Lent<'a>,
    budget: &Budget,
) -> Result<T, DecodeError> {
    let mut decoder = Decoder::new(body, lent, budget);
    let value = T::deserialize(&mut decoder)?;
    match decoder.bytes_left() {
        0 => Ok(value),
        bytes => Err(DecodeError::Trailing { bytes }),
    }
}
