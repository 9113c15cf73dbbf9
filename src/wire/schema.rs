//! The schema of a type: what its values look like on the wire, and what its parts are called.
//!
//! A schema is built by plain functions at publish and at connect, not by constants, so that recursive and generic types
//! need nothing special: a named type enters the table before its fields are looked at.

use std::mem::{align_of, size_of};

use serde::{Deserialize, Serialize};

/// A type whose values can be arguments, results and errors of methods.
///
/// It describes what serde puts on the wire, so that two processes can tell whether they mean the same by a
/// method. Derive it beside serde's traits; the types of the standard library have it.
///
/// # Example
///
/// ```
/// # mod uuid { #[derive(serde::Serialize, serde::Deserialize)] pub struct Uuid(u128); }
/// #[derive(serde::Serialize, serde::Deserialize, objbus::Type)]
/// struct Snapshot {
///     taken_at: std::time::SystemTime,
///     /// A type of another crate: its form is named, and not looked into.
///     #[objbus(opaque = "uuid/1")]
///     id: uuid::Uuid,
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be sent to another process: it has no schema",
    label = "no `objbus::Type`",
    note = "put `#[derive(serde::Serialize, serde::Deserialize, objbus::Type)]` on it",
    note = "a type of another crate goes into a field marked `#[objbus(opaque = \"name/1\")]`"
)]
pub trait Type {
    /// The schema of this type; named types it uses are entered in `types`.
    fn schema(types: &mut Schemas) -> TypeRef;
}

/// A type, as it stands in a signature or a field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TypeRef {
    /// A type that stands for itself: a number, a string.
    Primitive(Primitive),
    /// A value or nothing.
    Option(Box<TypeRef>),
    /// Any number of elements; bytes are a sequence of `u8`.
    Seq(Box<TypeRef>),
    /// Any number of keys, each with a value.
    Map(Box<TypeRef>, Box<TypeRef>),
    /// Some values in a fixed order.
    Tuple(Vec<TypeRef>),
    /// A fixed number of elements.
    Array(Box<TypeRef>, u64),
    /// A struct or enum: its place in the table of named types.
    Named(u32),
    /// A type known by an agreed name only.
    Opaque(String),
    /// Values that come one after the other, beside the call.
    Stream(Box<TypeRef>),
    /// What a method gives that is an event: such a value each time it is emitted.
    Event(Box<TypeRef>),
    /// What a method gives that is a watched property: its value now, or each time it changes.
    Watched(Box<TypeRef>),
}

/// A type that stands for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)] // the variants are the types that they are called after
#[non_exhaustive]
pub enum Primitive {
    Unit,
    Never,
    Bool,
    U8,
    U16,
    U32,
    U64,
    U128,
    Usize,
    I8,
    I16,
    I32,
    I64,
    I128,
    Isize,
    F32,
    F64,
    Char,
    String,
    Blob,
}

impl Primitive {
    /// The type's name in Rust.
    pub fn name(self) -> &'static str {
        match self {
            Primitive::Unit => "()",
            Primitive::Never => "!",
            Primitive::Bool => "bool",
            Primitive::U8 => "u8",
            Primitive::U16 => "u16",
            Primitive::U32 => "u32",
            Primitive::U64 => "u64",
            Primitive::U128 => "u128",
            Primitive::Usize => "usize",
            Primitive::I8 => "i8",
            Primitive::I16 => "i16",
            Primitive::I32 => "i32",
            Primitive::I64 => "i64",
            Primitive::I128 => "i128",
            Primitive::Isize => "isize",
            Primitive::F32 => "f32",
            Primitive::F64 => "f64",
            Primitive::Char => "char",
            Primitive::String => "String",
            Primitive::Blob => "Blob",
        }
    }
}

/// A struct or enum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedType {
    /// The name that serde knows it by.
    pub name: String,
    /// What it is made of.
    pub shape: Shape,
}

/// What a struct, or a variant of an enum, is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Shape {
    /// Nothing.
    Unit,
    /// One value in a struct of its own.
    Newtype(TypeRef),
    /// Values in a fixed order.
    Tuple(Vec<TypeRef>),
    /// Named values in a fixed order.
    Struct(Vec<(String, TypeRef)>),
    /// One of several named shapes.
    Enum(Vec<(String, Shape)>),
    /// The methods of an object: what an argument can do that is called back.
    Interface(Vec<MethodShape>),
}

/// A method of an [interface](Shape::Interface).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodShape {
    /// Its name.
    pub name: String,
    /// The names and types of its arguments.
    pub arguments: Vec<(String, TypeRef)>,
    /// The type of what it returns.
    pub result: TypeRef,
    /// The type of its own error; [`Primitive::Never`] if it has none.
    pub error: TypeRef,
}

/// The named types met while schemas are built.
#[derive(Clone, Debug, Default)]
pub struct Schemas {
    types: Vec<NamedType>,
    /// Which Rust type each entry was made from; two of one name but different size are two.
    identities: Vec<(&'static str, usize, usize)>,
}

impl Schemas {
    /// The reference to the named type `T`, whose shape `build` gives when it is met for the first time.
    ///
    /// The type is in the table while `build` runs, so a type may contain itself.
    pub fn named<T>(&mut self, name: &str, build: impl FnOnce(&mut Schemas) -> Shape) -> TypeRef {
        let identity = (std::any::type_name::<T>(), size_of::<T>(), align_of::<T>());
        if let Some(known) = self.identities.iter().position(|known| *known == identity) {
            return TypeRef::Named(known as u32);
        }
        let index = self.types.len();
        self.identities.push(identity);
        self.types.push(NamedType { name: name.to_owned(), shape: Shape::Unit });
        let shape = build(self);
        self.types[index].shape = shape;
        TypeRef::Named(index as u32)
    }

    /// The table: [`TypeRef::Named`] is an index into it.
    pub fn types(&self) -> &[NamedType] {
        &self.types
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct List;

    impl Type for List {
        fn schema(types: &mut Schemas) -> TypeRef {
            types.named::<List>("List", |types| {
                Shape::Struct(vec![("next".into(), <Option<Box<List>>>::schema(types))])
            })
        }
    }

    #[test]
    fn a_type_that_contains_itself_ends() {
        let mut types = Schemas::default();
        assert_eq!(List::schema(&mut types), TypeRef::Named(0));
        assert_eq!(<Vec<List>>::schema(&mut types), TypeRef::Seq(Box::new(TypeRef::Named(0))));
        let next = TypeRef::Option(Box::new(TypeRef::Named(0)));
        assert_eq!(
            types.types(),
            [NamedType { name: "List".into(), shape: Shape::Struct(vec![("next".into(), next)]) }]
        );
    }
}
