//! The methods of an object, found by key.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use super::invocation::{AsyncInvocation, Completed, Concluded, Invocation};
use super::pool::{FuturePool, PooledFuture};
use crate::object::Proxy;
use crate::wire::describe::{Description, MethodDescription};
use crate::wire::key::method_key;
use crate::wire::schema::{MethodShape, Schemas, Shape, TypeRef};

/// The most methods that an object may have: what a handshake has to list stays bounded.
pub(crate) const MOST_METHODS: usize = 1 << 16;

/// Gives the schema of a type.
pub type SchemaOf = fn(&mut Schemas) -> TypeRef;

/// A method as a macro sees it: what both the object and its proxy are built from.
#[derive(Clone, Copy, Debug)]
pub struct MethodSpec {
    /// Its name.
    pub name: &'static str,
    /// Its doc comment.
    pub docs: &'static str,
    /// Whether it is read as a property.
    pub property: bool,
    /// Whether it is an `async fn`.
    pub is_async: bool,
    /// The names and schemas of its arguments.
    pub arguments: &'static [(&'static str, SchemaOf)],
    /// The schema of its result.
    pub result: SchemaOf,
    /// The schema of its own error; `Infallible`'s if it has none.
    pub error: SchemaOf,
}

impl MethodSpec {
    pub(super) fn signature(&self, types: &mut Schemas) -> Signature {
        let arguments = self.arguments.iter().map(|(name, of)| ((*name).to_owned(), of(types))).collect();
        let (result, error) = ((self.result)(types), (self.error)(types));
        let mut signature = Signature::new(self.name, arguments, result, error, types);
        signature.docs = self.docs.to_owned();
        signature.property = self.property;
        signature.is_async = self.is_async;
        signature
    }

    fn shape(&self, types: &mut Schemas) -> MethodShape {
        MethodShape {
            name: self.name.to_owned(),
            arguments: self.arguments.iter().map(|(name, of)| ((*name).to_owned(), of(types))).collect(),
            result: (self.result)(types),
            error: (self.error)(types),
        }
    }
}

/// The schema of an argument that is an object of the caller's, called back through `P`; there need not be one if it is `OPTIONAL`.
pub fn callback_schema<P: Proxy, const OPTIONAL: bool>(types: &mut Schemas) -> TypeRef {
    let (name, methods) = P::methods();
    let object = types.named::<P>(name, |types| {
        Shape::Interface(methods.iter().map(|method| method.shape(types)).collect())
    });
    if OPTIONAL { TypeRef::Option(Box::new(object)) } else { object }
}

/// Where the method `name` stands in `methods`.
///
/// # Panics
///
/// If it is not there; the macros use it in constants, where that is an error of the compiler.
pub const fn index_of(methods: &[MethodSpec], name: &str) -> usize {
    let mut index = 0;
    while index < methods.len() {
        if same(methods[index].name.as_bytes(), name.as_bytes()) {
            return index;
        }
        index += 1;
    }
    panic!("the method is not in the list")
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut index = 0;
    while index < a.len() && index < b.len() && a[index] == b[index] {
        index += 1;
    }
    index == a.len() && index == b.len()
}

/// Everything about a method but its code: name, docs, types, key.
pub(crate) type Signature = MethodDescription;

impl Signature {
    pub(super) fn new(
        name: &str,
        arguments: Vec<(String, TypeRef)>,
        result: TypeRef,
        error: TypeRef,
        types: &Schemas,
    ) -> Signature {
        let argument_types: Vec<&TypeRef> = arguments.iter().map(|(_, of)| of).collect();
        let key = method_key(name, &argument_types, &result, &error, types);
        let (name, docs) = (name.to_owned(), String::new());
        Signature { name, docs, arguments, result, error, property: false, is_async: false, key }
    }
}

type PlainHandler = dyn for<'a> Fn(Invocation<'a>) -> Concluded + Send + Sync;
type AsyncHandler = dyn Fn(AsyncInvocation) -> PooledFuture + Send + Sync;

/// The code of a method.
#[derive(Clone)]
pub(crate) enum Handler {
    /// Runs on the thread that took the request.
    Plain(Arc<PlainHandler>),
    /// Gives a future, polled once there and then handed to the runtime.
    Async(Arc<AsyncHandler>),
}

/// The handler that runs this code.
pub(super) fn asynchronous<F, R>(code: F) -> Handler
where
    F: Fn(AsyncInvocation) -> R + Send + Sync + 'static,
    R: Future<Output = Completed> + Send + 'static,
{
    let pool = FuturePool::<R>::new();
    Handler::Async(Arc::new(move |call| pool.start(code(call))))
}

/// One method of an object.
#[derive(Clone)]
pub(crate) struct Method {
    pub(crate) signature: Signature,
    pub(crate) handler: Handler,
}

/// An object's methods: `#[objbus::object]` builds one, and closures can be put together by hand.
///
/// # Example
///
/// ```
/// let math = objbus::MethodTable::named("math")
///     .method("pow", |x: f64, y: f64| x.powf(y))
///     .argument_names(&["x", "y"])
///     .method("hypot", |x: f64, y: f64| x.hypot(y));
/// assert!(math.description().to_string().contains("fn pow(x: f64, y: f64) -> f64;"));
/// ```
///
/// It is published as any object is: `bus.publish("math", math)`.
#[derive(Clone)]
pub struct MethodTable {
    type_name: String,
    docs: String,
    pub(super) types: Schemas,
    methods: Vec<Method>,
    index: KeyIndex,
}

impl fmt::Debug for MethodTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.description(), f)
    }
}

impl MethodTable {
    /// A table without methods, for an object of this type.
    pub fn named(type_name: impl Into<String>) -> MethodTable {
        MethodTable {
            type_name: type_name.into(),
            docs: String::new(),
            types: Schemas::default(),
            methods: Vec::new(),
            index: KeyIndex::default(),
        }
    }

    /// Adds a plain method; for generated code.
    #[doc(hidden)]
    pub fn plain<F>(&mut self, spec: &MethodSpec, handler: F)
    where
        F: for<'a> Fn(Invocation<'a>) -> Concluded + Send + Sync + 'static,
    {
        let signature = spec.signature(&mut self.types);
        self.push(signature, Handler::Plain(Arc::new(handler)));
    }

    /// Adds an async method; for generated code.
    #[doc(hidden)]
    pub fn asynchronous<F, R>(&mut self, spec: &MethodSpec, handler: F)
    where
        F: Fn(AsyncInvocation) -> R + Send + Sync + 'static,
        R: Future<Output = Completed> + Send + 'static,
    {
        let signature = spec.signature(&mut self.types);
        self.push(signature, asynchronous(handler));
    }

    /// Sets the docs of the object as a whole; for generated code.
    #[doc(hidden)]
    pub fn describe(&mut self, docs: &str) {
        self.docs = docs.to_owned();
    }

    pub(super) fn push(&mut self, signature: Signature, handler: Handler) {
        self.methods.push(Method { signature, handler });
        self.index = KeyIndex::of(&self.methods);
    }

    pub(super) fn last_signature(&mut self) -> Option<&mut Signature> {
        self.methods.last_mut().map(|method| &mut method.signature)
    }

    /// The methods; [`find`](MethodTable::find) gives an index into them.
    pub(crate) fn methods(&self) -> &[Method] {
        &self.methods
    }

    /// The index of the method with this key.
    #[inline]
    pub(crate) fn find(&self, key: u64) -> Option<usize> {
        self.index.find(key)
    }

    /// The index of the method with this name, whatever its key.
    pub(crate) fn find_name(&self, name: &str) -> Option<usize> {
        self.methods.iter().position(|method| method.signature.name == name)
    }

    /// Whether the table can be published.
    ///
    /// # Errors
    ///
    /// A sentence when there are no methods, two of them share a name or a key, or there are more than 65,536.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.methods.is_empty() {
            return Err("there is nothing to call: give it a method".to_owned());
        }
        if self.methods.len() > MOST_METHODS {
            return Err(format!("it has {} methods, more than {MOST_METHODS}", self.methods.len()));
        }
        for (index, Method { signature, .. }) in self.methods.iter().enumerate() {
            if self.find_name(&signature.name) != Some(index) {
                return Err(format!("it has two methods `{}`", signature.name));
            }
            if let Some(other) = self.find(signature.key).filter(|other| *other != index) {
                let other = &self.methods[other].signature.name;
                return Err(format!(
                    "its methods `{}` and `{other}` have the same key; rename one",
                    signature.name
                ));
            }
        }
        Ok(())
    }

    /// What introspection tells of the object.
    pub fn description(&self) -> Description {
        Description {
            type_name: self.type_name.clone(),
            docs: self.docs.clone(),
            methods: self.methods.iter().map(|method| method.signature.clone()).collect(),
            types: self.types.types().to_vec(),
        }
    }
}

/// Finds a method by its key: open addressing, at most half full. Keys are hashes, so their low bits spread.
#[derive(Clone, Debug, Default)]
struct KeyIndex {
    /// A power of two of entries, or none at all.
    entries: Vec<Option<(u64, u32)>>,
}

impl KeyIndex {
    fn of(methods: &[Method]) -> KeyIndex {
        let mut index = KeyIndex { entries: vec![None; (2 * methods.len()).next_power_of_two()] };
        for (position, method) in methods.iter().enumerate() {
            index.insert(method.signature.key, position as u32);
        }
        index
    }

    fn insert(&mut self, key: u64, position: u32) {
        let mask = self.entries.len() - 1;
        let mut at = key as usize & mask;
        while self.entries[at].is_some() {
            at = (at + 1) & mask;
        }
        self.entries[at] = Some((key, position));
    }

    #[inline]
    fn find(&self, key: u64) -> Option<usize> {
        let mask = self.entries.len().checked_sub(1)?;
        let mut at = key as usize & mask;
        while let Some((found, position)) = self.entries[at] {
            if found == key {
                return Some(position as usize);
            }
            at = (at + 1) & mask;
        }
        None
    }
}
