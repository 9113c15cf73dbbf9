//! Postcard's format, written into an [`Output`].
//!
//! The serializer is our own because it sees more than postcard's would: a [`Blob`] is put beside the body and lent, and a
//! sequence of bytes is written whole. It knows both by the identity of the type it is handed, which no user's type can
//! forge. A property test holds the bodies equal to postcard's.

use std::fmt::Display;

use serde::ser::{
    self, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

use super::blob;
use super::output::{EncodeError, Output};

type Result<T = ()> = std::result::Result<T, Box<EncodeError>>;

/// A `u64` takes at most so many bytes as a varint.
const VARINT_MAX: usize = 10;

impl ser::Error for Box<EncodeError> {
    #[cold]
    fn custom<T: Display>(why: T) -> Self {
        Box::new(EncodeError::Unencodable(format!("the value's Serialize failed: {why}")))
    }
}

impl Output {
    #[inline]
    pub(super) fn varint(&mut self, mut value: u64) -> Result {
        if value < 0x80 {
            return self.push(value as u8);
        }
        let (mut bytes, mut len) = ([0; VARINT_MAX], 0);
        while value >= 0x80 {
            bytes[len] = value as u8 | 0x80;
            len += 1;
            value >>= 7;
        }
        bytes[len] = value as u8;
        self.extend(&bytes[..=len])
    }

    fn varint_128(&mut self, mut value: u128) -> Result {
        while value >= 0x80 {
            self.push(value as u8 | 0x80)?;
            value >>= 7;
        }
        self.push(value as u8)
    }

    #[inline]
    fn zigzag(&mut self, value: i64) -> Result {
        self.varint((value << 1 ^ value >> 63) as u64)
    }

    #[inline]
    fn bytes(&mut self, bytes: &[u8]) -> Result {
        self.varint(bytes.len() as u64)?;
        self.extend(bytes)
    }
}

macro_rules! scalars {
    ($($method:ident($type:ty) |$output:ident, $value:ident| $write:expr;)*) => {$(
        #[inline]
        fn $method(self, $value: $type) -> Result {
            let $output = self;
            $write
        }
    )*};
}

impl<'a> Serializer for &'a mut Output {
    type Ok = ();
    type Error = Box<EncodeError>;
    type SerializeSeq = &'a mut Output;
    type SerializeTuple = &'a mut Output;
    type SerializeTupleStruct = &'a mut Output;
    type SerializeTupleVariant = &'a mut Output;
    type SerializeMap = &'a mut Output;
    type SerializeStruct = &'a mut Output;
    type SerializeStructVariant = &'a mut Output;

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    scalars! {
        serialize_bool(bool) |output, value| output.push(u8::from(value));
        serialize_u8(u8) |output, value| output.push(value);
        serialize_i8(i8) |output, value| output.push(value as u8);
        serialize_u16(u16) |output, value| output.varint(value.into());
        serialize_u32(u32) |output, value| output.varint(value.into());
        serialize_u64(u64) |output, value| output.varint(value);
        serialize_u128(u128) |output, value| output.varint_128(value);
        serialize_i16(i16) |output, value| output.zigzag(value.into());
        serialize_i32(i32) |output, value| output.zigzag(value.into());
        serialize_i64(i64) |output, value| output.zigzag(value);
        serialize_i128(i128) |output, value| output.varint_128((value << 1 ^ value >> 127) as u128);
        serialize_f32(f32) |output, value| output.extend(&value.to_le_bytes());
        serialize_f64(f64) |output, value| output.extend(&value.to_le_bytes());
        serialize_char(char) |output, value| output.bytes(value.encode_utf8(&mut [0; 4]).as_bytes());
        serialize_str(&str) |output, value| output.bytes(value.as_bytes());
        serialize_bytes(&[u8]) |output, value| output.bytes(value);
    }

    #[inline]
    fn serialize_none(self) -> Result {
        self.push(0)
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result {
        self.push(1)?;
        value.serialize(self)
    }

    #[inline]
    fn serialize_unit(self) -> Result {
        Ok(())
    }

    #[inline]
    fn serialize_unit_struct(self, _name: &'static str) -> Result {
        Ok(())
    }

    #[inline]
    fn serialize_unit_variant(self, _name: &'static str, index: u32, _variant: &'static str) -> Result {
        self.varint(index.into())
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Result {
        match blob::behind(value) {
            Some(blob) => self.lend(blob),
            // Somebody between the blob and us has wrapped it: its bytes follow.
            None if name == blob::NAME => {
                self.push(0)?;
                value.serialize(self)
            }
            None => value.serialize(self),
        }
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
        value: &T,
    ) -> Result {
        self.varint(index.into())?;
        value.serialize(self)
    }

    #[inline]
    fn serialize_seq(self, len: Option<usize>) -> Result<Self> {
        match len {
            Some(len) => self.varint(len as u64)?,
            None => return Err(unknown_length("a sequence")),
        }
        Ok(self)
    }

    #[inline]
    fn serialize_tuple(self, _len: usize) -> Result<Self> {
        Ok(self)
    }

    #[inline]
    fn serialize_tuple_struct(self, _name: &'static str, _len: usize) -> Result<Self> {
        Ok(self)
    }

    #[inline]
    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
        _len: usize,
    ) -> Result<Self> {
        self.varint(index.into())?;
        Ok(self)
    }

    #[inline]
    fn serialize_map(self, len: Option<usize>) -> Result<Self> {
        match len {
            Some(len) => self.varint(len as u64)?,
            None => return Err(unknown_length("a map")),
        }
        Ok(self)
    }

    #[inline]
    fn serialize_struct(self, _name: &'static str, _len: usize) -> Result<Self> {
        Ok(self)
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
        _len: usize,
    ) -> Result<Self> {
        self.varint(index.into())?;
        Ok(self)
    }

    /// What slices and vectors come by.
    #[inline]
    fn collect_seq<I>(self, values: I) -> Result
    where
        I: IntoIterator,
        I::Item: Serialize,
    {
        if let Some(bytes) = blob::as_bytes(&values) {
            return self.bytes(bytes);
        }
        let mut values = values.into_iter();
        let (least, most) = values.size_hint();
        let mut output = self.serialize_seq(most.filter(|most| *most == least))?;
        values.try_for_each(|value| SerializeSeq::serialize_element(&mut output, &value))
    }
}

#[cold]
fn unknown_length(what: &str) -> Box<EncodeError> {
    Box::new(EncodeError::Unencodable(format!("{what} does not know its length before it is encoded")))
}

macro_rules! compounds {
    ($($compound:ident $method:ident;)*) => {$(
        impl $compound for &mut Output {
            type Ok = ();
            type Error = Box<EncodeError>;

            #[inline]
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result {
                value.serialize(&mut **self)
            }

            #[inline]
            fn end(self) -> Result {
                Ok(())
            }
        }
    )*};
}

compounds! {
    SerializeSeq serialize_element;
    SerializeTuple serialize_element;
    SerializeTupleStruct serialize_field;
    SerializeTupleVariant serialize_field;
}

macro_rules! named_compounds {
    ($($compound:ident)*) => {$(
        impl $compound for &mut Output {
            type Ok = ();
            type Error = Box<EncodeError>;

            #[inline]
            fn serialize_field<T: Serialize + ?Sized>(&mut self, _name: &'static str, value: &T) -> Result {
                value.serialize(&mut **self)
            }

            #[inline]
            fn end(self) -> Result {
                Ok(())
            }
        }
    )*};
}

named_compounds! { SerializeStruct SerializeStructVariant }

impl SerializeMap for &mut Output {
    type Ok = ();
    type Error = Box<EncodeError>;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result {
        key.serialize(&mut **self)
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result {
        value.serialize(&mut **self)
    }

    #[inline]
    fn end(self) -> Result {
        Ok(())
    }
}
