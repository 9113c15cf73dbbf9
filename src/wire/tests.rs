//! Properties of the wire: honest data passes, bombs and garbage end at once, keys tell what matters.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fmt::Debug;
use std::time::Duration;

use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::budget::{Budget, DecodeError, decode};
use super::errors::OwnError;
use super::key::method_key;
use super::output::Output;
use super::schema::{Schemas, Type};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, crate::Type)]
enum Tree {
    Leaf,
    Value(i64),
    Pair(Box<Tree>, Box<Tree>),
    Many { children: Vec<Tree>, label: String },
    Next(Option<Box<Tree>>),
}

fn tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![Just(Tree::Leaf), any::<i64>().prop_map(Tree::Value)];
    leaf.prop_recursive(6, 64, 5, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| Tree::Pair(Box::new(a), Box::new(b))),
            (prop::collection::vec(inner.clone(), 0..5), ".*")
                .prop_map(|(children, label)| Tree::Many { children, label }),
            prop::option::of(inner).prop_map(|next| Tree::Next(next.map(Box::new))),
        ]
    })
}

fn round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let body = postcard::to_stdvec(value).unwrap();
    let mut output = Output::heap(1 << 30);
    output.encode(value).unwrap();
    assert_eq!(output.spill().unwrap_or_default(), body, "encoded otherwise than postcard does");
    assert_eq!(decode::<T>(&body, &Budget::default()).as_ref(), Ok(value));
}

/// Decodes, within a bounded time of the processor's, whoever else has it meanwhile.
fn attempt<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    let start = processor_time();
    let result = decode::<T>(body, &Budget::default());
    let took = processor_time() - start;
    // The promise is 10 ms of an optimised build; what must not happen is a loop without end.
    assert!(took < Duration::from_secs(2), "took {took:?}");
    result
}

/// What this thread has used so far.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

type Scalars = ((u8, i8, u16, i16, bool), (u32, i32, u64, i64), (u128, i128));
type Collections = (Vec<u16>, HashMap<u8, String>, BTreeMap<String, Option<u32>>, [u8; 3], Vec<()>);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn honest_scalars_pass(value: Scalars, float: f64, letter: char) {
        round_trip(&value);
        round_trip(&(usize::MAX, isize::MIN, letter));
        let bits = decode::<f64>(&postcard::to_stdvec(&float).unwrap(), &Budget::default()).unwrap().to_bits();
        prop_assert_eq!(bits, float.to_bits());
    }

    #[test]
    fn honest_collections_pass(value: Collections, text: (String, Option<Option<String>>, Result<u8, String>)) {
        round_trip(&value);
        round_trip(&text);
    }

    #[test]
    fn honest_trees_pass(tree in tree()) {
        round_trip(&tree);
    }

    #[test]
    fn garbage_decodes_as_postcard_would_or_is_refused(body: Vec<u8>) {
        fn same<T: DeserializeOwned + PartialEq + Debug>(body: &[u8]) {
            if let Ok(ours) = attempt::<T>(body) {
                assert_eq!(postcard::from_bytes::<T>(body).as_ref(), Ok(&ours));
            }
        }
        same::<Tree>(&body);
        same::<Collections>(&body);
        same::<(String, Vec<String>)>(&body);
        same::<(u16, i32, u64, i128, bool, char)>(&body);
        let _ = attempt::<Vec<()>>(&body);
    }

    #[test]
    fn every_cut_of_an_honest_body_is_refused(tree in tree(), cut: prop::sample::Index) {
        let body = postcard::to_stdvec(&tree).unwrap();
        let cut = cut.index(body.len());
        prop_assert!(attempt::<Tree>(&body[..cut]).is_err());
    }
}

/// A length prefix of 2^60.
const HUGE: [u8; 9] = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];

#[test]
fn row_11_huge_lengths_end_at_once() {
    assert_eq!(attempt::<Vec<()>>(&HUGE), Err(DecodeError::LengthBeyondBody));
    assert_eq!(attempt::<Vec<u8>>(&HUGE), Err(DecodeError::LengthBeyondBody));
    assert_eq!(attempt::<Vec<[u64; 32]>>(&HUGE), Err(DecodeError::LengthBeyondBody));
    assert_eq!(attempt::<HashMap<(), ()>>(&HUGE), Err(DecodeError::LengthBeyondBody));
    assert_eq!(attempt::<String>(&HUGE), Err(DecodeError::LengthBeyondBody));
    assert!(attempt::<Vec<Vec<()>>>(&[&[1][..], &HUGE].concat()).is_err());
}

#[test]
fn row_11_honest_elements_of_no_bytes_pass() {
    round_trip(&vec![(); 100_000]);
    round_trip(&vec![[0u8; 0]; 1000]);
}

#[test]
fn row_11_depth_ends_before_the_stack_does() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Nested(Vec<Nested>);

    assert_eq!(attempt::<Nested>(&[1; 100_000]), Err(DecodeError::TooDeep));
    assert_eq!(attempt::<Tree>(&[2; 100_000]), Err(DecodeError::TooDeep));
    assert_eq!(attempt::<Tree>(&[4, 1].repeat(50_000)), Err(DecodeError::TooDeep));
    let legal = (0..20).fold(Tree::Leaf, |inner, _| Tree::Next(Some(Box::new(inner))));
    round_trip(&legal);
}

#[test]
fn row_11_elements_are_charged_as_they_will_be_in_memory() {
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[allow(clippy::large_enum_variant)]
    enum Fat {
        Thin,
        Thick([u64; 32], [u64; 32]),
    }

    let body = postcard::to_stdvec(&vec![Fat::Thin; 1 << 20]).unwrap();
    assert_eq!(attempt::<Vec<Fat>>(&body), Err(DecodeError::TooBig));
    round_trip(&vec![Fat::Thin; 1000]);
    round_trip(&vec![None::<u128>; 1 << 18]);
}

#[test]
fn row_10_garbage_has_a_reason() {
    assert_eq!(attempt::<bool>(&[2]), Err(DecodeError::BadBool));
    assert_eq!(attempt::<Option<u8>>(&[2, 0]), Err(DecodeError::BadOption));
    assert_eq!(attempt::<String>(&[1, 0xff]), Err(DecodeError::BadUtf8));
    assert_eq!(attempt::<char>(&[0]), Err(DecodeError::BadChar));
    assert_eq!(attempt::<u8>(&[1, 2, 3]), Err(DecodeError::Trailing { bytes: 2 }));
    assert_eq!(attempt::<u16>(&[0xff, 0xff, 0x04]), Err(DecodeError::BadNumber));
    assert_eq!(attempt::<u64>(&[]), Err(DecodeError::Ended));
    let unknown = attempt::<Tree>(&[9]).unwrap_err().to_string();
    assert!(unknown.contains("variant"), "{unknown}");
}

#[test]
fn strings_and_bytes_are_borrowed_from_the_body() {
    let body = postcard::to_stdvec(&("name", [1u8, 2].as_slice())).unwrap();
    let (name, bytes): (&str, &[u8]) = decode(&body, &Budget::default()).unwrap();
    assert!(body.as_ptr_range().contains(&name.as_ptr()) && body.as_ptr_range().contains(&bytes.as_ptr()));
}

/// The key of `fn f(_: A) -> R`.
fn key<A: Type, R: Type>(name: &str) -> u64 {
    let mut types = Schemas::default();
    let (argument, result) = (A::schema(&mut types), R::schema(&mut types));
    let never = <Infallible as OwnError>::error_schema(&mut types);
    method_key(name, &[&argument], &result, &never, &types)
}

mod v1 {
    #[derive(crate::Type)]
    #[allow(dead_code)]
    pub struct Snapshot {
        pub name: String,
        pub sizes: Vec<u32>,
    }
}

mod v2 {
    #[derive(crate::Type)]
    #[allow(dead_code)]
    pub struct Snapshot {
        pub name: std::string::String,
        pub sizes: Vec<u64>,
    }
}

mod renamed {
    #[derive(crate::Type)]
    #[allow(dead_code)]
    #[serde(rename = "Snapshot", rename_all = "lowercase")]
    pub struct Other<'a> {
        pub name: &'a str,
        #[serde(rename = "sizes", default)]
        pub lengths: Box<[u32]>,
        #[serde(skip)]
        pub cache: std::cell::RefCell<Vec<u8>>,
    }
}

#[test]
fn row_12_keys_tell_what_matters_on_the_wire() {
    let base = key::<v1::Snapshot, String>("f");
    assert_eq!(
        base,
        key::<renamed::Other<'_>, &str>("f"),
        "serde's names count, paths and references do not"
    );
    assert_ne!(base, key::<v2::Snapshot, String>("f"), "a field changed its type");
    assert_ne!(base, key::<v1::Snapshot, String>("g"), "another name");
    assert_ne!(base, key::<v1::Snapshot, Vec<u8>>("f"), "another result");
    assert_ne!(key::<(u8, u16), ()>("f"), key::<(u16, u8), ()>("f"), "order counts");
    assert_ne!(key::<(u8, (u8, u8)), ()>("f"), key::<((u8, u8), u8), ()>("f"), "nesting counts");
    assert_eq!(key::<Box<Tree>, ()>("f"), key::<&Tree, ()>("f"));
    assert_ne!(key::<Tree, ()>("f"), key::<Vec<Tree>, ()>("f"));
}

#[test]
fn keys_do_not_depend_on_what_else_is_in_the_table() {
    let mut types = Schemas::default();
    let _ = Duration::schema(&mut types);
    let (argument, result) = (Tree::schema(&mut types), <()>::schema(&mut types));
    let never = <Infallible as OwnError>::error_schema(&mut types);
    assert_eq!(method_key("f", &[&argument], &result, &never, &types), key::<Tree, ()>("f"));
}

/// These numbers are part of the protocol: other processes, built earlier, compare theirs with them.
#[test]
fn keys_stay_what_they_are() {
    assert_eq!(format!("{:016x}", key::<f64, f64>("sqrt")), "e60136b3da6612cd");
    assert_eq!(format!("{:016x}", key::<Tree, Option<Vec<u8>>>("walk")), "c5b9bab24b5c2130");
    assert_eq!(format!("{:016x}", key::<v1::Snapshot, Result<(), String>>("store")), "5aae8b3d0a677cc8");
}
