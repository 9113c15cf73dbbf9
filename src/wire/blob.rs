//! How a [`Blob`] travels inside any serde type.
//!
//! Serde's data model has no blobs. So a blob presents itself as a newtype struct around a type that only this module can
//! name, and our own serializer knows it by that type's identity, `typeid::of`: what it was handed *is* a blob, which it puts
//! beside the body, to be lent, and whose place it writes. Our decoder knows a blob that is asked for by the identity of the
//! visitor and gives it what was lent. Neither needs a table or a thread-local, and no other format, JSON say, can make a lent
//! blob up: all others see bytes, and bytes become a copy.
//!
//! In a body a blob is a number: 0, and its bytes follow; or its place in the list of what is lent, counted from 1.

use std::any::TypeId;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::{Serialize, Serializer};
use smallvec::SmallVec;

use super::schema::{Primitive, Schemas, Type, TypeRef};
use crate::blob::shared::Blob;

/// The blobs of one message. Most have none, most others one.
pub(crate) type Blobs = SmallVec<[Blob; 1]>;

/// No user's struct is called so. It tells our serializer and decoder of a blob whose type somebody between has wrapped.
pub(super) const NAME: &str = "$objbus::Blob";

/// Elements reserved for bytes that come one by one, whatever their sender says how many there are.
const RESERVED_MAX: usize = 1 << 20;

/// The smallest part of a body that is kept in place is one of so many: at most so much memory more than it needs.
const KEPT_PART: usize = 4;

/// What a message came with beside its body.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lent<'a> {
    /// What was lent with it, in order.
    pub(crate) blobs: &'a [Blob],
    /// What the body lies in, if it did not fit its cell or slot: parts of it can be kept without a copy.
    pub(crate) backing: Option<&'a Blob>,
}

impl Lent<'_> {
    /// Bytes of the body as a blob: a slice of what the body lies in, else a copy.
    pub(super) fn blob_of(&self, bytes: &[u8]) -> Blob {
        self.slice_of(bytes).unwrap_or_else(|| Blob::copy_of(bytes))
    }

    /// Bytes of the body as a slice of what the body lies in, unless they are a small part of it: who keeps them keeps all.
    pub(super) fn slice_of(&self, bytes: &[u8]) -> Option<Blob> {
        let backing = self.backing.filter(|backing| bytes.len() >= backing.len() / KEPT_PART)?;
        let start = (bytes.as_ptr() as usize).checked_sub(backing.as_ptr() as usize)?;
        let end = start.checked_add(bytes.len())?;
        (end <= backing.len()).then(|| backing.slice(start..end))
    }
}

/// A blob on its way to a serializer. It has no lifetime, so its id is that of no other type.
#[repr(transparent)]
struct Inner(Blob);

impl Serialize for Blob {
    /// Over a bus the blob is lent; in any other format it is its bytes.
    #[inline]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // SAFETY: `Inner` is a transparent wrapper of `Blob`, and the reference lives as long as the one it is made from.
        let inner = unsafe { &*ptr::from_ref(self).cast::<Inner>() };
        serializer.serialize_newtype_struct(NAME, inner)
    }
}

impl Serialize for Inner {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

/// The blob that a newtype struct's content is, if it is one.
#[inline]
pub(super) fn behind<T: ?Sized>(content: &T) -> Option<&Blob> {
    if typeid::of::<T>() != typeid::of::<Inner>() {
        return None;
    }
    // SAFETY: ids are equal for types that differ in nothing but lifetimes, and `Inner` has none, so `T` is `Inner`.
    let inner = unsafe { &*ptr::from_ref(content).cast::<Inner>() };
    Some(&inner.0)
}

impl<'de> Deserialize<'de> for Blob {
    /// Over a bus the blob is what was lent; from any other format it is a copy of bytes.
    #[inline]
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Blob, D::Error> {
        deserializer.deserialize_newtype_struct(NAME, BlobVisitor)
    }
}

/// Asks for a blob. Only this module can make one.
struct BlobVisitor;

/// Whether `V` asks for a blob.
#[inline]
pub(super) fn asks_for_blob<'de, V: Visitor<'de>>() -> bool {
    typeid::of::<V>() == typeid::of::<BlobVisitor>()
}

impl<'de> Visitor<'de> for BlobVisitor {
    type Value = Blob;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Blob, D::Error> {
        deserializer.deserialize_byte_buf(self)
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
        Ok(Blob::copy_of(bytes))
    }

    /// An array of numbers, as JSON has it.
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Blob, A::Error> {
        let mut bytes = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(RESERVED_MAX));
        while let Some(byte) = seq.next_element()? {
            bytes.push(byte);
        }
        Ok(Blob::copy_of(&bytes))
    }
}

/// A blob as `Bytes` keep it.
#[cfg(feature = "bytes")]
struct Owner(Blob);

#[cfg(feature = "bytes")]
impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The blob as `Bytes`, which hold it.
#[cfg(feature = "bytes")]
pub(super) fn into_bytes(blob: Blob) -> bytes::Bytes {
    bytes::Bytes::from_owner(Owner(blob))
}

impl Type for Blob {
    fn schema(_: &mut Schemas) -> TypeRef {
        TypeRef::Primitive(Primitive::Blob)
    }
}

/// The bytes that `values` are, where they are bytes in one piece.
#[inline]
pub(super) fn as_bytes<I>(values: &I) -> Option<&[u8]> {
    let id = typeid::of::<I>();
    if id == typeid::of::<&[u8]>() {
        // SAFETY: the ids are equal, so `I` is `&[u8]` up to its lifetime, which is not shorter than that of a reference to it.
        Some(unsafe { *ptr::from_ref(values).cast::<&[u8]>() })
    } else if id == typeid::of::<&Vec<u8>>() {
        // SAFETY: as above, of `&Vec<u8>`.
        Some(unsafe { *ptr::from_ref(values).cast::<&Vec<u8>>() })
    } else {
        None
    }
}

/// A type without lifetimes: none other has its id.
///
/// # Safety
///
/// The type must be written without any lifetime, `'static` included, all the way down its parameters.
pub(crate) unsafe trait Whole: 'static {}

// SAFETY: as it stands here.
unsafe impl Whole for Blob {}
// SAFETY: as it stands here.
unsafe impl Whole for Vec<u8> {}
// SAFETY: as it stands here.
#[cfg(feature = "bytes")]
unsafe impl Whole for bytes::Bytes {}

/// Whether `T` is [`Blob`].
#[inline]
pub(crate) fn is_blob<T>() -> bool {
    typeid::of::<T>() == typeid::of::<Blob>()
}

/// `value` as a `T`, if that is its type.
#[inline]
pub(crate) fn same<T, U: Whole>(value: U) -> Result<T, U> {
    if typeid::of::<T>() != typeid::of::<U>() {
        return Err(value);
    }
    let value = ManuallyDrop::new(value);
    // SAFETY: ids are equal for types that differ in nothing but lifetimes, and `U` has none, so `T` is `U`. The value is read
    // out once and not dropped where it was.
    Ok(unsafe { ptr::from_ref(&*value).cast::<T>().read() })
}

/// The visitor with which `T` asks a deserializer for a sequence or for bytes.
///
/// Those of serde and of other crates are private; but their ids can be learnt by letting `T` ask.
#[inline]
pub(super) fn visitor_of<T: Deserialize<'static>>() -> Option<TypeId> {
    T::deserialize(Probe).err().and_then(|Asked(visitor)| visitor)
}

/// A deserializer that gives nothing but tells, as its error, who asked.
struct Probe;

#[derive(Debug)]
struct Asked(Option<TypeId>);

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing is here")
    }
}

impl std::error::Error for Asked {}

impl de::Error for Asked {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Asked(None)
    }
}

impl<'de> Deserializer<'de> for Probe {
    type Error = Asked;

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Asked> {
        Err(Asked(Some(typeid::of::<V>())))
    }

    #[inline]
    fn deserialize_byte_buf<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Asked> {
        Err(Asked(Some(typeid::of::<V>())))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Asked> {
        Err(Asked(None))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes option unit unit_struct newtype_struct
        tuple tuple_struct map struct enum identifier ignored_any
    }
}
