//! Blobs inside serde types: over the bus they are lent, everywhere else they are bytes.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ptr::NonNull;

use serde::de::{self, DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::blob::{Blobs, Lent};
use super::budget::{Budget, DecodeError, decode, decode_with};
use super::key::method_key_of;
use super::output::Output;
use crate::blob::arena::{Arena, MemoryLimit};
use crate::blob::shared::Blob;

const CONTENT: &[u8] = b"some bytes to be lent";

fn encode<T: Serialize + ?Sized>(value: &T) -> (Vec<u8>, Blobs) {
    let mut output = Output::heap(1 << 20);
    output.encode(value).unwrap();
    (output.spill().unwrap_or_default().to_vec(), output.take_blobs().collect())
}

fn decode_lent<T: DeserializeOwned>(body: &[u8], blobs: &[Blob]) -> Result<T, DecodeError> {
    decode_with(body, Lent { blobs, backing: None }, &Budget::default())
}

/// Whether two blobs are the same bytes at the same place.
fn is_same(one: &Blob, other: &Blob) -> bool {
    one.as_ptr_range() == other.as_ptr_range()
}

/// Sends a value and asserts that exactly these blobs of it arrive in their place, uncopied, as `blobs_in` finds them.
fn sends<T: Serialize + DeserializeOwned>(value: &T, blobs_in: impl Fn(&T) -> Vec<&Blob>) {
    let (body, lent) = encode(value);
    let arrived: T = decode_lent(&body, &lent).unwrap();
    let (before, after) = (blobs_in(value), blobs_in(&arrived));
    assert_eq!(before.len(), after.len());
    assert!(before.iter().zip(&after).all(|(one, other)| is_same(one, other)));
    assert_eq!(lent.len(), before.len());
    assert!(body.len() < CONTENT.len() * before.len(), "the bytes travel in the body");
}

#[derive(Clone, Serialize, Deserialize)]
struct Frame {
    name: String,
    pixels: Blob,
    layers: Layers,
}

#[derive(Clone, Serialize, Deserialize)]
enum Layers {
    None,
    One(Blob),
    Two { front: Blob, back: Option<Blob> },
    Pair(Blob, Box<Frame>),
}

#[derive(Clone, Serialize, Deserialize)]
struct Named(Blob);

fn blob() -> Blob {
    Blob::copy_of(CONTENT)
}

#[test]
fn a_blob_arrives_uncopied_wherever_it_stands() {
    sends(&blob(), |blob| vec![blob]);
    sends(&(blob(), 7u8, blob()), |(one, _, other)| vec![one, other]);
    sends(&vec![blob(), blob(), blob()], |all| all.iter().collect());
    sends(&Some(Some(blob())), |blob| blob.iter().flatten().collect());
    sends(&Named(blob()), |named| vec![&named.0]);
    sends(&Ok::<Blob, String>(blob()), |blob| blob.iter().collect());
    sends(&BTreeMap::from([(1, blob()), (2, blob())]), |map| map.values().collect());
    sends(&[blob(), blob()], |all| all.iter().collect());
    let inner = Frame { name: "inner".into(), pixels: blob(), layers: Layers::One(blob()) };
    let frame = Frame { name: "outer".into(), pixels: blob(), layers: Layers::Pair(blob(), Box::new(inner)) };
    sends(&vec![frame], |frames| {
        let Layers::Pair(pair, inner) = &frames[0].layers else { panic!() };
        let Layers::One(one) = &inner.layers else { panic!() };
        vec![&frames[0].pixels, pair, &inner.pixels, one]
    });
    let two = Layers::Two { front: blob(), back: Some(blob()) };
    sends(&(Layers::None, two), |(_, layers)| match layers {
        Layers::Two { front, back } => std::iter::once(front).chain(back).collect(),
        _ => panic!(),
    });
}

#[test]
fn very_many_blobs_go_with_one_message() {
    let many: Vec<Blob> = (0..4096).map(|_| blob()).collect();
    sends(&many, |all| all.iter().collect());
}

#[test]
fn an_empty_blob_lends_nothing() {
    let (body, lent) = encode(&(Blob::empty(), blob().slice(3..3)));
    assert_eq!((body.as_slice(), lent.len()), (&[0, 0, 0, 0][..], 0));
    let (one, other): (Blob, Blob) = decode_lent(&body, &[]).unwrap();
    assert!(one.is_empty() && other.is_empty());
}

#[test]
fn an_index_used_twice_shares_and_one_beyond_the_list_is_refused() {
    let lent = [blob()];
    let both: Vec<Blob> = decode_lent(&[2, 1, 1], &lent).unwrap();
    assert!(both.iter().all(|blob| is_same(blob, &lent[0])));
    assert_eq!(decode_lent::<Blob>(&[2], &lent).unwrap_err(), DecodeError::NotLent { number: 2, lent: 1 });
    assert_eq!(
        decode::<Blob>(&[1], &Budget::default()).unwrap_err(),
        DecodeError::NotLent { number: 1, lent: 0 }
    );
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    assert!(matches!(decode_lent::<Blob>(&huge, &lent), Err(DecodeError::NotLent { number: u64::MAX, .. })));
    assert_eq!(decode_lent::<Blob>(&[0, 9, 1], &lent).unwrap_err(), DecodeError::LengthBeyondBody);
    assert_eq!(decode_lent::<Blob>(&[], &lent).unwrap_err(), DecodeError::Ended);
}

#[test]
fn bytes_in_the_body_are_a_blob_too_a_slice_where_the_body_is_lent() {
    let backing = Blob::copy_of(&[0, 3, 7, 8, 9]);
    let body: &[u8] = &backing;
    let copied: Blob = decode(body, &Budget::default()).unwrap();
    assert!(copied[..] == [7, 8, 9] && !body.as_ptr_range().contains(&copied.as_ptr()));
    let lent = Lent { blobs: &[], backing: Some(&backing) };
    let sliced: Blob = decode_with(body, lent, &Budget::default()).unwrap();
    assert!(is_same(&sliced, &backing.slice(2..)));
    // A small part is not worth keeping all of it.
    let long = Blob::copy_of(&[&[0, 3, 7, 8, 9][..], &[0; 11]].concat());
    let small = Lent { blobs: &[], backing: Some(&long) }.blob_of(&long[2..5]);
    assert!(small == [7, 8, 9] && !long.as_ptr_range().contains(&small.as_ptr()));
    // The backing of another message is none of this one's.
    let elsewhere: Blob = decode_with(&[0, 3, 7, 8, 9], lent, &Budget::default()).unwrap();
    assert!(elsewhere[..] == [7, 8, 9] && !body.as_ptr_range().contains(&elsewhere.as_ptr()));
}

#[test]
fn json_sees_bytes_and_can_make_no_lent_blob_up() {
    let frame =
        Frame { name: "f".into(), pixels: Blob::copy_of(&[1, 2]), layers: Layers::One(Blob::empty()) };
    let text = serde_json::to_string(&frame).unwrap();
    assert_eq!(text, r#"{"name":"f","pixels":[1,2],"layers":{"One":[]}}"#);
    let read: Frame = serde_json::from_str(&text).unwrap();
    assert!(read.pixels[..] == [1, 2] && !is_same(&read.pixels, &frame.pixels));

    for forged in ["1", "{\"$objbus::Blob\":1}", "{\"$objbus::Blob\":[1]}", "null", "{}", "[256]", "[[1]]"] {
        assert!(serde_json::from_str::<Blob>(forged).is_err(), "{forged}");
    }
    // Numbers that could be places are bytes.
    let one: Blob = serde_json::from_str("[1]").unwrap();
    assert_eq!(one[..], [1]);
    assert_eq!(postcard::from_bytes::<Blob>(&[2, 1, 1]).unwrap()[..], [1, 1]);
    assert_eq!(postcard::to_stdvec(&blob()).unwrap(), postcard::to_stdvec(CONTENT).unwrap());
}

#[test]
fn no_other_type_gets_a_blob_by_calling_itself_one() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename = "$objbus::Blob")]
    struct Posing(Vec<u8>);

    let lent = [blob()];
    assert!(matches!(decode_lent::<Posing>(&[1], &lent), Err(DecodeError::Refused(_))));
    let (body, blobs) = encode(&Posing(vec![7]));
    assert_eq!((body.as_slice(), blobs.len()), (&[0, 1, 7][..], 0));
}

/// Passes everything on through wrappers, as crates that trace or intercept serde do.
struct Wrapped<T>(T);

macro_rules! forward {
    ($($method:ident($($argument:ident: $type:ty),*);)*) => {$(
        fn $method(self, $($argument: $type),*) -> Result<S::Ok, S::Error> {
            self.0.$method($($argument),*)
        }
    )*};
}

impl<S: Serializer> Serializer for Wrapped<S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = S::SerializeSeq;
    type SerializeTuple = S::SerializeTuple;
    type SerializeTupleStruct = S::SerializeTupleStruct;
    type SerializeTupleVariant = S::SerializeTupleVariant;
    type SerializeMap = S::SerializeMap;
    type SerializeStruct = S::SerializeStruct;
    type SerializeStructVariant = S::SerializeStructVariant;

    forward! {
        serialize_bool(value: bool);
        serialize_i8(value: i8);
        serialize_i16(value: i16);
        serialize_i32(value: i32);
        serialize_i64(value: i64);
        serialize_u8(value: u8);
        serialize_u16(value: u16);
        serialize_u32(value: u32);
        serialize_u64(value: u64);
        serialize_f32(value: f32);
        serialize_f64(value: f64);
        serialize_char(value: char);
        serialize_str(value: &str);
        serialize_bytes(value: &[u8]);
        serialize_none();
        serialize_unit();
        serialize_unit_struct(name: &'static str);
        serialize_unit_variant(name: &'static str, index: u32, variant: &'static str);
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.0.serialize_some(&Wrapped(value))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.0.serialize_newtype_struct(name, &Wrapped(value))
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.0.serialize_newtype_variant(name, index, variant, &Wrapped(value))
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<S::SerializeSeq, S::Error> {
        self.0.serialize_seq(len)
    }

    fn serialize_tuple(self, len: usize) -> Result<S::SerializeTuple, S::Error> {
        self.0.serialize_tuple(len)
    }

    fn serialize_tuple_struct(
        self,
        name: &'static str,
        len: usize,
    ) -> Result<S::SerializeTupleStruct, S::Error> {
        self.0.serialize_tuple_struct(name, len)
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<S::SerializeTupleVariant, S::Error> {
        self.0.serialize_tuple_variant(name, index, variant, len)
    }

    fn serialize_map(self, len: Option<usize>) -> Result<S::SerializeMap, S::Error> {
        self.0.serialize_map(len)
    }

    fn serialize_struct(self, name: &'static str, len: usize) -> Result<S::SerializeStruct, S::Error> {
        self.0.serialize_struct(name, len)
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<S::SerializeStructVariant, S::Error> {
        self.0.serialize_struct_variant(name, index, variant, len)
    }
}

impl<T: Serialize + ?Sized> Serialize for Wrapped<&T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(Wrapped(serializer))
    }
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Wrapped<D> {
    type Error = D::Error;

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_newtype_struct(name, Wrapped(visitor))
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_byte_buf(Wrapped(visitor))
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes option unit unit_struct seq
        tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Wrapped<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.expecting(f)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(Wrapped(deserializer))
    }

    fn visit_borrowed_bytes<E: de::Error>(self, bytes: &'de [u8]) -> Result<V::Value, E> {
        self.0.visit_borrowed_bytes(bytes)
    }
}

mod wrapping {
    use super::*;

    pub fn serialize<S: Serializer>(blob: &Blob, serializer: S) -> Result<S::Ok, S::Error> {
        blob.serialize(Wrapped(serializer))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Blob, D::Error> {
        Blob::deserialize(Wrapped(deserializer))
    }
}

#[derive(Serialize, Deserialize)]
struct Hidden {
    #[serde(with = "wrapping")]
    both: Blob,
    #[serde(serialize_with = "wrapping::serialize")]
    out: Blob,
    #[serde(deserialize_with = "wrapping::deserialize")]
    inwards: Blob,
    last: u8,
}

#[test]
fn a_blob_whose_type_is_hidden_on_either_side_arrives_as_bytes() {
    let hidden = Hidden { both: blob(), out: blob(), inwards: blob(), last: 7 };
    let (body, lent) = encode(&hidden);
    assert_eq!(lent.len(), 1, "only one was seen for what it is");
    let arrived: Hidden = decode_lent(&body, &lent).unwrap();
    let contents = [&arrived.both, &arrived.out, &arrived.inwards];
    assert!(contents.iter().all(|blob| blob[..] == *CONTENT) && arrived.last == 7);
    assert!(!is_same(&arrived.inwards, &lent[0]), "a visitor that is not ours gets no blob");

    let empty = Hidden { both: Blob::empty(), out: Blob::empty(), inwards: Blob::empty(), last: 7 };
    let (body, lent) = encode(&empty);
    assert_eq!((body.as_slice(), lent.len()), (&[0, 0, 0, 0, 0, 0, 7][..], 0));
    assert!(decode_lent::<Hidden>(&body, &lent).unwrap().both.is_empty());
}

#[test]
fn an_output_forgets_its_blobs_with_its_body() {
    struct Fails(Blob);
    impl Serialize for Fails {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            use serde::ser::{Error, SerializeTuple};
            let mut tuple = serializer.serialize_tuple(2)?;
            tuple.serialize_element(&self.0)?;
            Err(S::Error::custom("half-way"))
        }
    }
    let mut output = Output::heap(100);
    output.encode(&blob()).unwrap();
    assert_eq!(output.blob_count(), 1);
    let error = output.encode(&Fails(blob())).unwrap_err();
    assert!(error.to_string().contains("half-way"), "{error}");
    assert_eq!((output.blob_count(), output.len()), (0, 0));
}

#[test]
fn a_blob_is_no_vector_to_the_schema() {
    let keys = [
        method_key_of::<(Blob,), (), std::convert::Infallible>("f"),
        method_key_of::<(Vec<u8>,), (), std::convert::Infallible>("f"),
    ];
    assert_ne!(keys[0], keys[1]);
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Buffers<'a> {
    vec: Vec<u8>,
    boxed: Box<[u8]>,
    cow: std::borrow::Cow<'a, [u8]>,
    option: Option<Vec<u8>>,
    map: BTreeMap<String, Vec<u8>>,
    text: String,
}

#[test]
fn bytes_of_every_owner_move_whole() {
    fn moves<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
        let (body, lent) = encode(value);
        assert_eq!((&body, lent.len()), (&postcard::to_stdvec(value).unwrap(), 0));
        assert_eq!(&decode::<T>(&body, &Budget::default()).unwrap(), value);
    }
    let bytes: Vec<u8> = (0..=255).cycle().take(3000).collect();
    moves(&bytes);
    moves(&bytes.clone().into_boxed_slice());
    moves(&(1u8, Some(bytes.clone()), "text".to_owned()));
    moves(&Buffers {
        vec: bytes.clone(),
        boxed: bytes.clone().into(),
        cow: bytes.clone().into(),
        option: Some(bytes.clone()),
        map: BTreeMap::from([("key".to_owned(), bytes.clone())]),
        text: "text".to_owned(),
    });
}

#[test]
fn serde_still_asks_for_bytes_in_the_way_that_is_recognised() {
    fn is_whole<T: Serialize>(value: &T) -> bool {
        // What is written whole goes into one chunk of its size; what comes piece by piece into ever larger ones.
        let arena = Arena::new(MemoryLimit::new(16 << 20));
        let mut slot = [0u64; 8];
        // SAFETY: `slot` and `arena` outlive the output, and the slot is used by nothing else.
        let mut output = unsafe { Output::new(NonNull::from(&mut slot).cast(), 64, 16 << 20, Some(&arena)) };
        output.encode(value).unwrap();
        arena.stats().peak < 5 << 19
    }
    let bytes = vec![1u8; 2 << 20];
    assert!(is_whole(&bytes) && is_whole(&bytes.as_slice()) && is_whole(&bytes.clone().into_boxed_slice()));
    assert!(!is_whole(&vec![1u16; 2 << 20]), "the measure measures");
    let visitor = super::blob::visitor_of::<Vec<u8>>();
    assert!(visitor.is_some() && visitor != super::blob::visitor_of::<Vec<i8>>());
}

#[test]
fn a_visitor_of_ones_own_sees_elements() {
    #[derive(Debug, PartialEq)]
    struct Doubled(Vec<u8>);

    struct Doubling;

    impl<'de> Visitor<'de> for Doubling {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("bytes")
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u8>, A::Error> {
            let mut bytes = Vec::new();
            while let Some(byte) = seq.next_element::<u8>()? {
                bytes.push(2 * byte);
            }
            Ok(bytes)
        }
    }

    impl<'de> Deserialize<'de> for Doubled {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_seq(Doubling).map(Doubled)
        }
    }

    assert_eq!(decode::<Doubled>(&[2, 7, 8], &Budget::default()), Ok(Doubled(vec![14, 16])));
}

#[cfg(feature = "bytes")]
#[test]
fn bytes_are_slices_of_the_body_where_it_is_lent() {
    use bytes::Bytes;

    let (body, _) = encode(&(7u8, Bytes::from_static(CONTENT)));
    assert_eq!(body, postcard::to_stdvec(&(7u8, CONTENT)).unwrap());
    let backing = Blob::copy_of(&body);
    let lent = Lent { blobs: &[], backing: Some(&backing) };
    let (_, sliced): (u8, Bytes) = decode_with(&backing, lent, &Budget::default()).unwrap();
    assert!(sliced == CONTENT && backing.as_ptr_range().contains(&sliced.as_ptr()));
    let (_, copied): (u8, Bytes) = decode(&body, &Budget::default()).unwrap();
    assert!(copied == CONTENT && !body.as_ptr_range().contains(&copied.as_ptr()));
}
