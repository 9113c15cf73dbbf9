//! Types that derive their schema.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::marker::PhantomData;

use objbus::{Schemas, Shape, Type, TypeRef};
use serde::{Deserialize, Serialize};

/// A type of another crate, without a schema.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Foreign(u128);

#[derive(Serialize, Deserialize, Type)]
struct Unit;

#[derive(Serialize, Deserialize, Type)]
struct Meters(f64);

#[derive(Serialize, Deserialize, Type)]
#[serde(transparent)]
struct Seen {
    inner: Meters,
}

#[derive(Serialize, Deserialize, Type)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Everything<'a, T, const N: usize>
where
    T: Clone,
{
    first_field: T,
    #[serde(borrow)]
    text: Cow<'a, str>,
    #[serde(rename = "other", default, alias = "older")]
    renamed: BTreeMap<String, Vec<Meters>>,
    #[objbus(opaque = "foreign/1")]
    #[serde(with = "somehow")]
    foreign: Foreign,
    #[serde(skip)]
    cache: Foreign,
    marker: PhantomData<[u8; N]>,
    r#type: Option<Box<Everything<'a, T, N>>>,
}

mod somehow {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(foreign: &super::Foreign, serializer: S) -> Result<S::Ok, S::Error> {
        foreign.0.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<super::Foreign, D::Error> {
        u128::deserialize(deserializer).map(super::Foreign)
    }
}

#[derive(Serialize, Deserialize, Type)]
#[objbus(opaque = "tagged/2")]
#[serde(untagged)]
#[allow(dead_code)]
enum Opaque {
    Number(u8),
    Foreign(Foreign),
}

#[derive(Serialize, Deserialize, Type)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE", rename_all_fields = "camelCase")]
#[allow(dead_code)]
enum Event {
    Nothing,
    OneThing(u8),
    Two(u8, u16),
    ManyThings { first_thing: u8, second: Unit },
    Last(Option<Box<Event>>),
    #[serde(other)]
    Unknown,
}

fn main() {
    let mut types = Schemas::default();
    let TypeRef::Named(index) = <Everything<'_, u8, 3>>::schema(&mut types) else { panic!() };
    let Shape::Struct(fields) = &types.types()[index as usize].shape else { panic!() };
    let names: Vec<_> = fields.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["firstField", "text", "other", "foreign", "marker", "type"]);
    assert_eq!(fields[3].1, TypeRef::Opaque("foreign/1".into()));
    assert_eq!(Seen::schema(&mut types), Meters::schema(&mut types));
    assert_eq!(Opaque::schema(&mut types), TypeRef::Opaque("tagged/2".into()));
    let TypeRef::Named(index) = Event::schema(&mut types) else { panic!() };
    let Shape::Enum(variants) = &types.types()[index as usize].shape else { panic!() };
    assert_eq!(variants[3].0, "MANY_THINGS");
    let Shape::Struct(fields) = &variants[3].1 else { panic!() };
    assert_eq!(fields[0].0, "firstThing");
}
