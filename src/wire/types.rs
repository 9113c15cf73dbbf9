//! The schemas of the standard library's types, as serde writes them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, LinkedList, VecDeque};
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::num::{
    NonZeroI8, NonZeroI16, NonZeroI32, NonZeroI64, NonZeroI128, NonZeroIsize, NonZeroU8, NonZeroU16,
    NonZeroU32, NonZeroU64, NonZeroU128, NonZeroUsize, Saturating, Wrapping,
};
use std::ops::{Range, RangeFrom, RangeInclusive, RangeTo};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::schema::{Primitive, Schemas, Shape, Type, TypeRef};
use crate::error::RemoteError;

macro_rules! primitives {
    ($($primitive:ident: $($type:ty),+;)*) => {$($(
        impl Type for $type {
            fn schema(_: &mut Schemas) -> TypeRef {
                TypeRef::Primitive(Primitive::$primitive)
            }
        }
    )+)*};
}

primitives! {
    Unit: ();
    Bool: bool;
    U8: u8, NonZeroU8;
    U16: u16, NonZeroU16;
    U32: u32, NonZeroU32;
    U64: u64, NonZeroU64;
    U128: u128, NonZeroU128;
    Usize: usize, NonZeroUsize;
    I8: i8, NonZeroI8;
    I16: i16, NonZeroI16;
    I32: i32, NonZeroI32;
    I64: i64, NonZeroI64;
    I128: i128, NonZeroI128;
    Isize: isize, NonZeroIsize;
    F32: f32;
    F64: f64;
    Char: char;
    String: str, String, Path, PathBuf;
}

/// Types that travel as the type they hold.
macro_rules! transparent {
    ($($type:ty $(, $sized:tt)?;)*) => {$(
        impl<T: Type $(+ $sized Sized)?> Type for $type {
            fn schema(types: &mut Schemas) -> TypeRef {
                T::schema(types)
            }
        }
    )*};
}

transparent! {
    &T, ?;
    &mut T, ?;
    Box<T>, ?;
    Rc<T>, ?;
    Arc<T>, ?;
    Wrapping<T>;
    Saturating<T>;
}

impl<T: Type + ToOwned + ?Sized> Type for Cow<'_, T> {
    fn schema(types: &mut Schemas) -> TypeRef {
        T::schema(types)
    }
}

impl<T: ?Sized> Type for PhantomData<T> {
    fn schema(_: &mut Schemas) -> TypeRef {
        TypeRef::Primitive(Primitive::Unit)
    }
}

impl<T: Type> Type for Option<T> {
    fn schema(types: &mut Schemas) -> TypeRef {
        TypeRef::Option(Box::new(T::schema(types)))
    }
}

macro_rules! sequences {
    ($(<$($parameter:ident),+> $type:ty;)*) => {$(
        impl<$($parameter),+> Type for $type where T: Type {
            fn schema(types: &mut Schemas) -> TypeRef {
                TypeRef::Seq(Box::new(T::schema(types)))
            }
        }
    )*};
}

sequences! {
    <T> [T];
    <T> Vec<T>;
    <T> VecDeque<T>;
    <T> LinkedList<T>;
    <T> BinaryHeap<T>;
    <T> BTreeSet<T>;
    <T, S> HashSet<T, S>;
}

#[cfg(feature = "bytes")]
impl Type for bytes::Bytes {
    fn schema(types: &mut Schemas) -> TypeRef {
        <[u8]>::schema(types)
    }
}

impl<K: Type, V: Type> Type for BTreeMap<K, V> {
    fn schema(types: &mut Schemas) -> TypeRef {
        TypeRef::Map(Box::new(K::schema(types)), Box::new(V::schema(types)))
    }
}

impl<K: Type, V: Type, S> Type for HashMap<K, V, S> {
    fn schema(types: &mut Schemas) -> TypeRef {
        <BTreeMap<K, V>>::schema(types)
    }
}

impl<T: Type, const N: usize> Type for [T; N] {
    fn schema(types: &mut Schemas) -> TypeRef {
        TypeRef::Array(Box::new(T::schema(types)), N as u64)
    }
}

macro_rules! tuples {
    ($($($name:ident)+;)*) => {$(
        impl<$($name: Type),+> Type for ($($name,)+) {
            fn schema(types: &mut Schemas) -> TypeRef {
                TypeRef::Tuple(vec![$($name::schema(types)),+])
            }
        }
    )*};
}

tuples! {
    A;
    A B;
    A B C;
    A B C D;
    A B C D E;
    A B C D E F;
    A B C D E F G;
    A B C D E F G H;
    A B C D E F G H I;
    A B C D E F G H I J;
    A B C D E F G H I J K;
    A B C D E F G H I J K L;
}

/// Structs that serde writes field by field.
macro_rules! structs {
    ($(<$($parameter:ident)?> $type:ty, $name:literal { $($field:literal: $of:ty),+ })*) => {$(
        impl $(<$parameter: Type>)? Type for $type {
            fn schema(types: &mut Schemas) -> TypeRef {
                types.named::<Self>($name, |types| Shape::Struct(vec![$(($field.into(), <$of>::schema(types))),+]))
            }
        }
    )*};
}

structs! {
    <> Duration, "Duration" { "secs": u64, "nanos": u32 }
    <> SystemTime, "SystemTime" { "secs_since_epoch": u64, "nanos_since_epoch": u32 }
    <> RemoteError, "RemoteError" { "kind": String, "message": String, "sources": Vec<String> }
    <T> Range<T>, "Range" { "start": T, "end": T }
    <T> RangeInclusive<T>, "RangeInclusive" { "start": T, "end": T }
    <T> RangeFrom<T>, "RangeFrom" { "start": T }
    <T> RangeTo<T>, "RangeTo" { "end": T }
}

/// Enums that serde writes as one of several newtypes.
macro_rules! enums {
    ($(<$($parameter:ident),*> $type:ty, $name:literal { $($variant:literal: $of:ty),+ })*) => {$(
        impl<$($parameter: Type),*> Type for $type {
            fn schema(types: &mut Schemas) -> TypeRef {
                types.named::<Self>($name, |types| {
                    Shape::Enum(vec![$(($variant.into(), Shape::Newtype(<$of>::schema(types)))),+])
                })
            }
        }
    )*};
}

enums! {
    <T, E> Result<T, E>, "Result" { "Ok": T, "Err": E }
    <> IpAddr, "IpAddr" { "V4": Ipv4Addr, "V6": Ipv6Addr }
    <> SocketAddr, "SocketAddr" { "V4": SocketAddrV4, "V6": SocketAddrV6 }
}

/// Types that serde writes as a tuple.
macro_rules! as_tuples {
    ($($type:ty, $as:ty;)*) => {$(
        impl Type for $type {
            fn schema(types: &mut Schemas) -> TypeRef {
                <$as>::schema(types)
            }
        }
    )*};
}

as_tuples! {
    Ipv4Addr, [u8; 4];
    Ipv6Addr, [u8; 16];
    SocketAddrV4, (Ipv4Addr, u16);
    SocketAddrV6, (Ipv6Addr, u16);
}
