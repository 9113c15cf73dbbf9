//! A serde deserializer of postcard's format that holds every number in a body against a [`Budget`].

use std::mem::size_of;

use serde::de::value::BorrowedBytesDeserializer;
use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};

use super::blob::{self, Lent};
use super::budget::{Budget, DecodeError};
use crate::blob::shared::Blob;

/// The least an element is charged, in bytes: bounds the time spent on elements that take no bytes at all.
const LEAST_CHARGE: u64 = 8;

/// Sequences nested deeper than this are not preallocated: each open one may hold 1 MiB of serde's
/// preallocation, and together they must stay within the fixed part of the budget.
const DEEPEST_PREALLOCATION: u32 = 8;

type Result<T> = std::result::Result<T, DecodeError>;

/// A cursor over a body and what is left of its budget.
pub(super) struct Decoder<'de> {
    left: &'de [u8],
    heap_left: u64,
    depth_left: u32,
    /// Sequences preallocate while at least this much depth is left.
    preallocate_from: u32,
    lent: Lent<'de>,
}

impl<'de> Decoder<'de> {
    #[inline]
    pub(super) fn new(body: &'de [u8], lent: Lent<'de>, budget: &Budget) -> Self {
        Decoder {
            left: body,
            heap_left: budget.heap_for(body.len()),
            depth_left: budget.depth,
            preallocate_from: budget.depth.saturating_sub(DEEPEST_PREALLOCATION),
            lent,
        }
    }

    #[inline]
    pub(super) fn bytes_left(&self) -> usize {
        self.left.len()
    }

    #[inline]
    fn byte(&mut self) -> Result<u8> {
        let (&first, rest) = self.left.split_first().ok_or(DecodeError::Ended)?;
        self.left = rest;
        Ok(first)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (first, rest) = self.left.split_first_chunk::<N>().ok_or(DecodeError::Ended)?;
        self.left = rest;
        Ok(*first)
    }

    /// A varint of a type of `bits` bits: seven bits a byte, least significant first.
    #[inline]
    fn varint(&mut self, bits: u32) -> Result<u64> {
        let first = self.byte()?;
        if first < 0x80 {
            return Ok(u64::from(first));
        }
        let mut value = u64::from(first & 0x7f);
        let mut shift = 7;
        while shift < bits {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if bits - shift < 7 && part >> (bits - shift) != 0 {
                return Err(DecodeError::BadNumber);
            }
            value |= part << shift;
            if byte < 0x80 {
                return Ok(value);
            }
            shift += 7;
        }
        Err(DecodeError::BadNumber)
    }

    fn varint_128(&mut self) -> Result<u128> {
        let mut value = 0;
        let mut shift = 0;
        while shift < 128 {
            let byte = self.byte()?;
            let part = u128::from(byte & 0x7f);
            if 128 - shift < 7 && part >> (128 - shift) != 0 {
                return Err(DecodeError::BadNumber);
            }
            value |= part << shift;
            if byte < 0x80 {
                return Ok(value);
            }
            shift += 7;
        }
        Err(DecodeError::BadNumber)
    }

    #[inline]
    fn zigzag(&mut self, bits: u32) -> Result<i64> {
        let n = self.varint(bits)?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    /// A length and that many bytes, borrowed from the body.
    #[inline]
    fn bytes(&mut self) -> Result<&'de [u8]> {
        let len = self.varint(usize::BITS)? as usize;
        let (bytes, rest) = self.left.split_at_checked(len).ok_or(DecodeError::LengthBeyondBody)?;
        self.left = rest;
        Ok(bytes)
    }

    #[inline]
    fn string(&mut self) -> Result<&'de str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError::BadUtf8)
    }

    /// A blob, or where its bytes are if the body has them.
    fn blob(&mut self) -> Result<std::result::Result<&'de Blob, &'de [u8]>> {
        let number = self.varint(64)?;
        let Some(index) = number.checked_sub(1) else { return self.bytes().map(Err) };
        let lent = usize::try_from(index).ok().and_then(|index| self.lent.blobs.get(index));
        lent.map(Ok).ok_or(DecodeError::NotLent { number, lent: self.lent.blobs.len() })
    }

    /// The number of elements of a sequence or map. More than there are bytes left is honest only for elements of no
    /// bytes, so only what the budget can still pay for passes.
    #[inline]
    fn length(&mut self) -> Result<usize> {
        let len = self.varint(usize::BITS)?;
        if len > self.left.len() as u64 && len > self.heap_left / LEAST_CHARGE {
            return Err(DecodeError::LengthBeyondBody);
        }
        Ok(len as usize)
    }

    #[inline]
    fn charge(&mut self, size: usize) -> Result<()> {
        let charge = (size as u64).max(1);
        self.heap_left = self.heap_left.checked_sub(charge).ok_or(DecodeError::TooBig)?;
        Ok(())
    }

    /// Runs `inner` one level down.
    #[inline]
    fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.depth_left = self.depth_left.checked_sub(1).ok_or(DecodeError::TooDeep)?;
        let value = inner(self)?;
        self.depth_left += 1;
        Ok(value)
    }

    /// The elements of a tuple or struct: they live in their parent, which was charged for them.
    #[inline]
    fn fields<V: Visitor<'de>>(&mut self, len: usize, visitor: V) -> Result<V::Value> {
        self.nested(|decoder| visitor.visit_seq(Fields { decoder, left: len }))
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident |$decoder:ident| $read:expr;)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
            let $decoder = self;
            visitor.$visit($read)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for &mut Decoder<'de> {
    type Error = DecodeError;

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    numbers! {
        deserialize_u8 visit_u8 |d| d.byte()?;
        deserialize_i8 visit_i8 |d| d.byte()? as i8;
        deserialize_u16 visit_u16 |d| d.varint(16)? as u16;
        deserialize_u32 visit_u32 |d| d.varint(32)? as u32;
        deserialize_u64 visit_u64 |d| d.varint(64)?;
        deserialize_u128 visit_u128 |d| d.varint_128()?;
        deserialize_i16 visit_i16 |d| d.zigzag(16)? as i16;
        deserialize_i32 visit_i32 |d| d.zigzag(32)? as i32;
        deserialize_i64 visit_i64 |d| d.zigzag(64)?;
        deserialize_i128 visit_i128 |d| { let n = d.varint_128()?; (n >> 1) as i128 ^ -((n & 1) as i128) };
        deserialize_f32 visit_f32 |d| f32::from_le_bytes(d.array()?);
        deserialize_f64 visit_f64 |d| f64::from_le_bytes(d.array()?);
        deserialize_str visit_borrowed_str |d| d.string()?;
        deserialize_string visit_borrowed_str |d| d.string()?;
        deserialize_bytes visit_borrowed_bytes |d| d.bytes()?;
    }

    #[inline]
    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let bytes = self.bytes()?;
        #[cfg(feature = "bytes")]
        if typeid::of::<V::Value>() == typeid::of::<bytes::Bytes>()
            && blob::visitor_of::<bytes::Bytes>() == Some(typeid::of::<V>())
            && let Some(slice) = self.lent.slice_of(bytes)
            && let Ok(value) = blob::same(blob::into_bytes(slice))
        {
            return Ok(value);
        }
        visitor.visit_borrowed_bytes(bytes)
    }

    #[inline]
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.byte()? {
            0 => visitor.visit_bool(false),
            1 => visitor.visit_bool(true),
            _ => Err(DecodeError::BadBool),
        }
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let text = std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError::BadChar)?;
        let mut chars = text.chars();
        match (chars.next(), chars.next()) {
            (Some(only), None) => visitor.visit_char(only),
            _ => Err(DecodeError::BadChar),
        }
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.byte()? {
            0 => visitor.visit_none(),
            1 => self.nested(|decoder| visitor.visit_some(decoder)),
            _ => Err(DecodeError::BadOption),
        }
    }

    #[inline]
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_unit()
    }

    #[inline]
    fn deserialize_unit_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value> {
        visitor.visit_unit()
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value> {
        if name != blob::NAME {
            return self.nested(|decoder| visitor.visit_newtype_struct(decoder));
        }
        let found = self.blob()?;
        if blob::asks_for_blob::<V>() {
            let blob = match found {
                Ok(lent) => lent.clone(),
                Err(bytes) => self.lent.blob_of(bytes),
            };
            if let Ok(value) = blob::same(blob) {
                return Ok(value);
            }
        }
        // Somebody between the blob and us has wrapped its visitor: all that passes through is bytes.
        let bytes = match found {
            Ok(lent) => lent,
            Err(bytes) => bytes,
        };
        visitor.visit_newtype_struct(BorrowedBytesDeserializer::new(bytes))
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        // The visitor is looked at as well, since another might make of its elements what it likes.
        if typeid::of::<V::Value>() == typeid::of::<Vec<u8>>()
            && blob::visitor_of::<Vec<u8>>() == Some(typeid::of::<V>())
            && let Ok(value) = blob::same(self.bytes()?.to_vec())
        {
            return Ok(value);
        }
        let len = self.length()?;
        self.nested(|decoder| visitor.visit_seq(Elements { decoder, left: len }))
    }

    #[inline]
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let len = self.length()?;
        self.nested(|decoder| visitor.visit_map(Elements { decoder, left: len }))
    }

    #[inline]
    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value> {
        self.fields(len, visitor)
    }

    #[inline]
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value> {
        self.fields(len, visitor)
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.fields(fields.len(), visitor)
    }

    #[inline]
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.nested(|decoder| visitor.visit_enum(decoder))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value> {
        Err(DecodeError::NotSelfDescribing)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value> {
        Err(DecodeError::NotSelfDescribing)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value> {
        Err(DecodeError::NotSelfDescribing)
    }
}

/// The elements of a tuple or struct.
struct Fields<'a, 'de> {
    decoder: &'a mut Decoder<'de>,
    left: usize,
}

impl<'de> de::SeqAccess<'de> for Fields<'_, 'de> {
    type Error = DecodeError;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(&mut *self.decoder).map(Some)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

/// The elements of a sequence or map, each charged before it is built.
struct Elements<'a, 'de> {
    decoder: &'a mut Decoder<'de>,
    left: usize,
}

impl<'de> Elements<'_, 'de> {
    #[inline]
    fn next<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value> {
        let before = self.decoder.left.len();
        self.decoder.charge(size_of::<S::Value>())?;
        let value = seed.deserialize(&mut *self.decoder)?;
        if self.decoder.left.len() == before {
            self.decoder.charge(LEAST_CHARGE as usize)?;
        }
        Ok(value)
    }

    #[inline]
    fn hint(&self) -> Option<usize> {
        (self.decoder.depth_left >= self.decoder.preallocate_from).then_some(self.left)
    }
}

impl<'de> de::SeqAccess<'de> for Elements<'_, 'de> {
    type Error = DecodeError;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.next(seed).map(Some)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.hint()
    }
}

impl<'de> de::MapAccess<'de> for Elements<'_, 'de> {
    type Error = DecodeError;

    #[inline]
    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.next(seed).map(Some)
    }

    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value> {
        self.next(seed)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.hint()
    }
}

impl<'de> de::EnumAccess<'de> for &mut Decoder<'de> {
    type Error = DecodeError;
    type Variant = Self;

    #[inline]
    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self)> {
        let tag = self.varint(32)? as u32;
        let variant = seed.deserialize(tag.into_deserializer())?;
        Ok((variant, self))
    }
}

impl<'de> de::VariantAccess<'de> for &mut Decoder<'de> {
    type Error = DecodeError;

    #[inline]
    fn unit_variant(self) -> Result<()> {
        Ok(())
    }

    #[inline]
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value> {
        seed.deserialize(self)
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value> {
        self.fields(len, visitor)
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.fields(fields.len(), visitor)
    }
}
