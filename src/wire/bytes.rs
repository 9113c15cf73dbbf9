//! Byte buffers as arguments and results: moved whole, not element by element.
//!
//! On the wire they equal a sequence of `u8`, so a side that cannot see that a type is a byte buffer (an alias, a generic)
//! reads and writes the same body, only slower.

use std::any::Any;
use std::fmt;

use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, Visitor};
use serde::{Serialize, Serializer};

use super::budget::{Budget, DecodeError, decode};

/// Borrowed bytes: `&[u8]` on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Serialize for Bytes<'_> {
    #[inline]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Bytes<'a> {
    #[inline]
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&[u8]>::deserialize(deserializer).map(Bytes)
    }
}

/// Owned bytes: `Vec<u8>` on its way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByteBuf(pub Vec<u8>);

impl<'de> Deserialize<'de> for ByteBuf {
    #[inline]
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_byte_buf(ByteBufVisitor)
    }
}

struct ByteBufVisitor;

impl<'de> Visitor<'de> for ByteBufVisitor {
    type Value = ByteBuf;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<ByteBuf, E> {
        Ok(ByteBuf(bytes.to_vec()))
    }

    fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<ByteBuf, E> {
        Ok(ByteBuf(bytes))
    }
}

/// Decodes a result, taking the short way when `T` turns out to be a byte buffer.
///
/// # Errors
///
/// As [`decode`].
#[inline]
pub(crate) fn decode_owned<T: DeserializeOwned + 'static>(
    body: &[u8],
    budget: &Budget,
) -> Result<T, DecodeError> {
    let mut value: Option<T> = None;
    let slot: &mut dyn Any = &mut value;
    if let Some(bytes) = slot.downcast_mut::<Option<Vec<u8>>>() {
        *bytes = Some(decode::<ByteBuf>(body, budget)?.0);
    } else if let Some(bytes) = slot.downcast_mut::<Option<Option<Vec<u8>>>>() {
        *bytes = Some(decode::<Option<ByteBuf>>(body, budget)?.map(|bytes| bytes.0));
    }
    value.map_or_else(|| decode(body, budget), Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_sequences_of_u8_are_one_form() {
        let data: Vec<u8> = (0..=255).collect();
        let as_bytes = postcard::to_stdvec(&Bytes(&data)).unwrap();
        assert_eq!(as_bytes, postcard::to_stdvec(&data).unwrap());
        let budget = Budget::default();
        assert_eq!(decode::<Vec<u8>>(&as_bytes, &budget).unwrap(), data);
        assert_eq!(decode::<ByteBuf>(&as_bytes, &budget).unwrap().0, data);
        assert_eq!(decode::<Bytes<'_>>(&as_bytes, &budget).unwrap().0, data);
        assert_eq!(decode_owned::<Vec<u8>>(&as_bytes, &budget).unwrap(), data);
    }

    #[test]
    fn results_are_decoded_as_what_they_are() {
        let budget = Budget::default();
        assert_eq!(decode_owned::<Option<Vec<u8>>>(&[1, 2, 7, 8], &budget).unwrap(), Some(vec![7, 8]));
        assert_eq!(decode_owned::<Option<Vec<u8>>>(&[0], &budget).unwrap(), None);
        assert_eq!(decode_owned::<Vec<u16>>(&[2, 7, 8], &budget).unwrap(), [7, 8]);
        assert!(decode_owned::<Vec<u8>>(&[3, 7, 8], &budget).is_err());
    }
}
