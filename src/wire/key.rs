//! A method's key: one number for its name and everything about its types that matters on the wire.
//!
//! Two processes compare keys when they connect; a call goes out only under equal ones. The key is FNV-1a over a canonical
//! walk of the schema: names of structs, fields and variants, their order and their types count; names of
//! arguments, of modules and of crates do not, nor do references and boxes.

use serde::Serialize;

use super::errors::OwnError;
use super::schema::{MethodShape, NamedType, Primitive, Schemas, Shape, Type, TypeRef};

/// The key of the method `name`.
///
/// # Example
///
/// ```ignore
/// let mut types = Schemas::default();
/// let (text, never) = (String::schema(&mut types), Infallible::schema(&mut types));
/// let key = method_key("greet", &[&text], &text, &never, &types);
/// ```
pub(crate) fn method_key(
    name: &str,
    arguments: &[&TypeRef],
    result: &TypeRef,
    error: &TypeRef,
    types: &Schemas,
) -> u64 {
    let mut walk = Walk { hash: Fnv::new(), types: types.types(), met: Vec::new() };
    walk.text(name);
    walk.number(arguments.len() as u64);
    arguments.iter().for_each(|argument| walk.type_ref(argument));
    walk.type_ref(result);
    walk.type_ref(error);
    walk.hash.finish()
}

/// The key of a method with these types.
pub(crate) fn method_key_of<A: Arguments, T: Type, E: OwnError>(name: &str) -> u64 {
    let mut types = Schemas::default();
    let arguments = A::schemas(&mut types);
    let (result, error) = (T::schema(&mut types), E::error_schema(&mut types));
    method_key(name, &arguments.iter().collect::<Vec<_>>(), &result, &error, &types)
}

/// The key under which the caller's object of this number is asked for the method with this key.
pub(crate) fn key_at(key: u64, number: u32) -> u64 {
    key ^ u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The key of a method without arguments whose result `schema` gives, and which cannot fail.
pub(crate) fn getter_key(name: &str, schema: impl FnOnce(&mut Schemas) -> TypeRef) -> u64 {
    let mut types = Schemas::default();
    let result = schema(&mut types);
    method_key(name, &[], &result, &TypeRef::Primitive(Primitive::Never), &types)
}

/// What stands for a method's name where the peers exchange their keys.
pub(crate) fn name_hash(name: &str) -> u64 {
    let mut hash = Fnv::new();
    name.bytes().for_each(|byte| hash.byte(byte));
    hash.finish()
}

/// The arguments of a method, as a tuple of up to eight. It is implemented for all such tuples and cannot be elsewhere.
pub trait Arguments: Serialize + sealed::Sealed {
    #[doc(hidden)]
    fn schemas(types: &mut Schemas) -> Vec<TypeRef>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! arguments {
    ($($($argument:ident)*;)*) => {$(
        impl<$($argument: Type + Serialize),*> sealed::Sealed for ($($argument,)*) {}

        impl<$($argument: Type + Serialize),*> Arguments for ($($argument,)*) {
            #[allow(unused_variables)]
            fn schemas(types: &mut Schemas) -> Vec<TypeRef> {
                vec![$($argument::schema(types)),*]
            }
        }
    )*};
}

arguments! {
    ;
    A;
    A B;
    A B C;
    A B C D;
    A B C D E;
    A B C D E F;
    A B C D E F G;
    A B C D E F G H;
}

/// What comes next in the walk; the values are part of the key and never change.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Token {
    Primitive = 1,
    Option = 2,
    Seq = 3,
    Map = 4,
    Tuple = 5,
    Array = 6,
    Named = 7,
    Again = 8,
    Opaque = 9,
    Stream = 10,
    Event = 11,
    Watched = 12,
    UnitShape = 16,
    NewtypeShape = 17,
    TupleShape = 18,
    StructShape = 19,
    EnumShape = 20,
    InterfaceShape = 21,
}

struct Walk<'a> {
    hash: Fnv,
    types: &'a [NamedType],
    /// Named types in the order in which the walk met them; one met again is that position.
    met: Vec<u32>,
}

impl Walk<'_> {
    fn token(&mut self, token: Token) {
        self.hash.byte(token as u8);
    }

    fn number(&mut self, number: u64) {
        number.to_le_bytes().into_iter().for_each(|byte| self.hash.byte(byte));
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        text.bytes().for_each(|byte| self.hash.byte(byte));
    }

    fn type_ref(&mut self, of: &TypeRef) {
        match of {
            TypeRef::Primitive(primitive) => {
                self.token(Token::Primitive);
                self.text(primitive.name());
            }
            TypeRef::Option(inner) => self.wrapping(Token::Option, inner),
            TypeRef::Seq(inner) => self.wrapping(Token::Seq, inner),
            TypeRef::Map(key, value) => {
                self.wrapping(Token::Map, key);
                self.type_ref(value);
            }
            TypeRef::Tuple(elements) => self.elements(Token::Tuple, elements),
            TypeRef::Array(inner, len) => {
                self.wrapping(Token::Array, inner);
                self.number(*len);
            }
            TypeRef::Named(index) => self.named(*index),
            TypeRef::Opaque(name) => {
                self.token(Token::Opaque);
                self.text(name);
            }
            TypeRef::Stream(inner) => self.wrapping(Token::Stream, inner),
            TypeRef::Event(inner) => self.wrapping(Token::Event, inner),
            TypeRef::Watched(inner) => self.wrapping(Token::Watched, inner),
        }
    }

    fn wrapping(&mut self, token: Token, inner: &TypeRef) {
        self.token(token);
        self.type_ref(inner);
    }

    fn elements(&mut self, token: Token, elements: &[TypeRef]) {
        self.token(token);
        self.number(elements.len() as u64);
        elements.iter().for_each(|element| self.type_ref(element));
    }

    fn named(&mut self, index: u32) {
        if let Some(position) = self.met.iter().position(|met| *met == index) {
            self.token(Token::Again);
            self.number(position as u64);
            return;
        }
        self.met.push(index);
        let NamedType { name, shape } = &self.types[index as usize];
        self.token(Token::Named);
        self.text(name);
        self.shape(shape);
    }

    fn shape(&mut self, shape: &Shape) {
        match shape {
            Shape::Unit => self.token(Token::UnitShape),
            Shape::Newtype(inner) => self.wrapping(Token::NewtypeShape, inner),
            Shape::Tuple(elements) => self.elements(Token::TupleShape, elements),
            Shape::Struct(fields) => {
                self.token(Token::StructShape);
                self.number(fields.len() as u64);
                for (name, of) in fields {
                    self.text(name);
                    self.type_ref(of);
                }
            }
            Shape::Enum(variants) => {
                self.token(Token::EnumShape);
                self.number(variants.len() as u64);
                for (name, shape) in variants {
                    self.text(name);
                    self.shape(shape);
                }
            }
            Shape::Interface(methods) => {
                self.token(Token::InterfaceShape);
                self.number(methods.len() as u64);
                // They are found by key, so that their order means nothing.
                let mut by_name: Vec<_> = methods.iter().collect();
                by_name.sort_by_key(|method| &method.name);
                for MethodShape { name, arguments, result, error } in by_name {
                    self.text(name);
                    self.number(arguments.len() as u64);
                    arguments.iter().for_each(|(_, of)| self.type_ref(of));
                    self.type_ref(result);
                    self.type_ref(error);
                }
            }
        }
    }
}

/// FNV-1a, 64 bits, with the final mix of MurmurHash3 so that every bit of the key depends on all of the input.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    fn byte(&mut self, byte: u8) {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }

    fn finish(self) -> u64 {
        let mut hash = self.0;
        hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ hash >> 33
    }
}
