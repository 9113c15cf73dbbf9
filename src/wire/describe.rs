//! A description of an object for introspection: its methods and properties with names, types and docs.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::schema::{NamedType, Primitive, Shape, TypeRef};

/// What a published object can do, as its owner tells it.
///
/// `Display` prints it as Rust would: one line a method, doc comments above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The name of the object's type.
    pub type_name: String,
    /// The doc comment of its `impl` block or trait.
    pub docs: String,
    /// Its methods and properties, in the order they are written in.
    pub methods: Vec<MethodDescription>,
    /// The structs and enums that they use: [`TypeRef::Named`] is an index into it.
    pub types: Vec<NamedType>,
}

/// One method, property or event of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodDescription {
    /// Its name.
    pub name: String,
    /// Its doc comment.
    pub docs: String,
    /// The names and types of its arguments.
    pub arguments: Vec<(String, TypeRef)>,
    /// The type of what it returns.
    pub result: TypeRef,
    /// The type of its own error; [`Primitive::Never`] if it has none.
    pub error: TypeRef,
    /// Whether it is read as a property.
    pub property: bool,
    /// Whether it runs on the owner's async runtime.
    pub is_async: bool,
    /// The key that callers and owner must agree on.
    pub key: u64,
}

/// What a [`MethodDescription`] describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MethodKind {
    /// It is called.
    Method,
    /// It is read.
    Property,
    /// It is subscribed to; its result is [`TypeRef::Event`].
    Event,
    /// It is read, or subscribed to; its result is [`TypeRef::Watched`].
    Watched,
}

impl MethodDescription {
    /// Whether it is called, read or subscribed to.
    pub fn kind(&self) -> MethodKind {
        match (&self.result, self.property) {
            (TypeRef::Event(_), _) => MethodKind::Event,
            (TypeRef::Watched(_), _) => MethodKind::Watched,
            (_, true) => MethodKind::Property,
            (_, false) => MethodKind::Method,
        }
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_docs(f, "", &self.docs)?;
        writeln!(f, "object {} {{", self.type_name)?;
        for method in &self.methods {
            write_docs(f, "    ", &method.docs)?;
            writeln!(f, "    {};", Signature { method, types: &self.types })?;
        }
        f.write_str("}")?;
        self.types.iter().try_for_each(|of| write_named(f, of, &self.types))
    }
}

impl Description {
    /// A method's signature in Rust's words, such as `fn pow(x: f64, y: f64) -> f64`.
    pub fn signature(&self, method: &MethodDescription) -> String {
        Signature { method, types: &self.types }.to_string()
    }
}

fn write_docs(f: &mut fmt::Formatter<'_>, indent: &str, docs: &str) -> fmt::Result {
    docs.lines().try_for_each(|line| writeln!(f, "{}", format!("{indent}/// {line}").trim_end()))
}

struct Signature<'a> {
    method: &'a MethodDescription,
    types: &'a [NamedType],
}

impl fmt::Display for Signature<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MethodDescription { name, arguments, result, error, is_async, .. } = self.method;
        let keyword = match (self.method.kind(), is_async) {
            (MethodKind::Event, _) => "event",
            (MethodKind::Watched, _) => "watched",
            (MethodKind::Property, _) => "property",
            (MethodKind::Method, true) => "async fn",
            (MethodKind::Method, false) => "fn",
        };
        write!(f, "{keyword} {name}")?;
        write_types(f, arguments, (result, error), self.types)
    }
}

/// What a method takes, and what it gives: value and error.
fn write_types(
    f: &mut fmt::Formatter<'_>,
    arguments: &[(String, TypeRef)],
    gives: (&TypeRef, &TypeRef),
    types: &[NamedType],
) -> fmt::Result {
    f.write_str("(")?;
    for (index, (argument, of)) in arguments.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        write!(f, "{comma}{argument}: {}", Named(of, types))?;
    }
    f.write_str(")")?;
    match gives {
        (TypeRef::Primitive(Primitive::Unit), TypeRef::Primitive(Primitive::Never)) => Ok(()),
        (result, TypeRef::Primitive(Primitive::Never)) => write!(f, " -> {}", Named(result, types)),
        (result, error) => write!(f, " -> Result<{}, {}>", Named(result, types), Named(error, types)),
    }
}

/// A type reference with the table that its indices point into.
struct Named<'a>(&'a TypeRef, &'a [NamedType]);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Named(of, types) = *self;
        let named = |inner| Named(inner, types);
        match of {
            TypeRef::Primitive(primitive) => f.write_str(primitive.name()),
            TypeRef::Option(inner) => write!(f, "Option<{}>", named(inner)),
            TypeRef::Seq(inner) => write!(f, "Vec<{}>", named(inner)),
            TypeRef::Map(key, value) => write!(f, "Map<{}, {}>", named(key), named(value)),
            TypeRef::Tuple(elements) => write_tuple(f, elements, types),
            TypeRef::Array(inner, len) => write!(f, "[{}; {len}]", named(inner)),
            // A description comes from another process: an index out of its table is no reason to panic.
            TypeRef::Named(index) => match types.get(*index as usize) {
                Some(NamedType { name, shape: Shape::Interface(_) }) => write!(f, "&dyn {name}"),
                of => f.write_str(of.map_or("?", |of| of.name.as_str())),
            },
            TypeRef::Opaque(name) => write!(f, "opaque \"{name}\""),
            TypeRef::Stream(inner) => write!(f, "Stream<{}>", named(inner)),
            // The keyword says what it is.
            TypeRef::Event(inner) | TypeRef::Watched(inner) => write!(f, "{}", named(inner)),
        }
    }
}

fn write_tuple(f: &mut fmt::Formatter<'_>, elements: &[TypeRef], types: &[NamedType]) -> fmt::Result {
    f.write_str("(")?;
    for (index, element) in elements.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        write!(f, "{comma}{}", Named(element, types))?;
    }
    f.write_str(if elements.len() == 1 { ",)" } else { ")" })
}

fn write_named(f: &mut fmt::Formatter<'_>, of: &NamedType, types: &[NamedType]) -> fmt::Result {
    f.write_str("\n\n")?;
    if let Shape::Interface(methods) = &of.shape {
        writeln!(f, "interface {} {{", of.name)?;
        for method in methods {
            write!(f, "    fn {}", method.name)?;
            write_types(f, &method.arguments, (&method.result, &method.error), types)?;
            f.write_str(";\n")?;
        }
        return f.write_str("}");
    }
    let Shape::Enum(variants) = &of.shape else {
        write!(f, "struct {}", of.name)?;
        return write_shape(f, &of.shape, types);
    };
    writeln!(f, "enum {} {{", of.name)?;
    for (name, shape) in variants {
        write!(f, "    {name}")?;
        write_shape(f, shape, types)?;
        f.write_str(",\n")?;
    }
    f.write_str("}")
}

fn write_shape(f: &mut fmt::Formatter<'_>, shape: &Shape, types: &[NamedType]) -> fmt::Result {
    match shape {
        Shape::Unit | Shape::Enum(_) | Shape::Interface(_) => Ok(()),
        Shape::Newtype(inner) => write!(f, "({})", Named(inner, types)),
        Shape::Tuple(elements) => write_tuple(f, elements, types),
        Shape::Struct(fields) => {
            f.write_str(" { ")?;
            for (index, (name, of)) in fields.iter().enumerate() {
                let comma = if index == 0 { "" } else { ", " };
                write!(f, "{comma}{name}: {}", Named(of, types))?;
            }
            f.write_str(" }")
        }
    }
}
