//! How a method's own error travels: as itself if it can, else as its sentences.

use std::convert::Infallible;
use std::error::Error;
use std::{fmt, io};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::blob::Lent;
use super::budget::{Budget, DecodeError, decode_with};
use super::schema::{Primitive, Schemas, Type, TypeRef};
use crate::error::{BusError, CallError, RemoteError};

/// An error that a method may return.
///
/// Every error with serde's traits and [`Type`] travels as itself. `std::io::Error`, `Box<dyn Error>`, [`CallError`] and, with the
/// feature `anyhow`, `anyhow::Error` travel as a [`RemoteError`]: kind, message and the sentences of their sources.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot travel as the error of a method",
    note = "put `#[derive(serde::Serialize, serde::Deserialize, objbus::Type)]` on it, or return `Box<dyn std::error::Error + Send + Sync>`"
)]
pub trait WireError {
    /// What the caller gets.
    type Wire: Type + Serialize + DeserializeOwned + 'static;

    /// Turns the error into what travels.
    fn into_wire(self) -> Self::Wire;
}

impl<E: Type + Serialize + DeserializeOwned + 'static> WireError for E {
    type Wire = E;

    #[inline]
    fn into_wire(self) -> E {
        self
    }
}

impl WireError for io::Error {
    type Wire = RemoteError;

    fn into_wire(self) -> RemoteError {
        describe(format!("std::io::ErrorKind::{:?}", self.kind()), &self)
    }
}

// As itself, it would claim at the caller to be about the caller's own call; and its variants, which later versions add to,
// would be part of the method's key.
impl<E: fmt::Debug + fmt::Display> WireError for CallError<E> {
    type Wire = RemoteError;

    fn into_wire(self) -> RemoteError {
        let fields = format!("{self:?}");
        let variant = fields.split(|letter: char| !letter.is_alphanumeric()).next().unwrap_or_default();
        describe(format!("objbus::CallError::{variant}"), &self)
    }
}

macro_rules! boxed {
    ($($type:ty)*) => {$(
        impl WireError for Box<$type> {
            type Wire = RemoteError;

            fn into_wire(self) -> RemoteError {
                describe("dyn Error".to_owned(), &*self)
            }
        }
    )*};
}

boxed! { dyn Error dyn Error + Send dyn Error + Send + Sync }

#[cfg(feature = "anyhow")]
impl WireError for anyhow::Error {
    type Wire = RemoteError;

    fn into_wire(self) -> RemoteError {
        describe("anyhow::Error".to_owned(), &*self)
    }
}

/// A method's own error as the caller gets it: one that travels, or `Infallible` for a method that cannot fail.
pub trait OwnError: Sized + 'static {
    /// Its schema.
    #[doc(hidden)]
    fn error_schema(types: &mut Schemas) -> TypeRef;

    /// Decodes it.
    #[doc(hidden)]
    fn decode_error(body: &[u8], lent: Lent<'_>, budget: &Budget) -> Result<Self, DecodeError>;
}

impl<E: Type + DeserializeOwned + 'static> OwnError for E {
    fn error_schema(types: &mut Schemas) -> TypeRef {
        <E as Type>::schema(types)
    }

    fn decode_error(body: &[u8], lent: Lent<'_>, budget: &Budget) -> Result<E, DecodeError> {
        decode_with(body, lent, budget)
    }
}

// `Infallible` has neither serde's traits nor a schema, for no value of it ever travels.
impl OwnError for Infallible {
    fn error_schema(_: &mut Schemas) -> TypeRef {
        TypeRef::Primitive(Primitive::Never)
    }

    fn decode_error(_: &[u8], _: Lent<'_>, _: &Budget) -> Result<Infallible, DecodeError> {
        Err(DecodeError::Refused("the method cannot fail, and yet it did".into()))
    }
}

/// What a method that can fail returns: `Result`, also behind an alias such as `std::io::Result`.
pub trait MethodResult {
    /// The type of success.
    type Ok;
    /// What travels of the error.
    type Err: Type + Serialize + DeserializeOwned + 'static;

    /// The result with its error as it travels.
    fn into_result(self) -> Result<Self::Ok, Self::Err>;
}

impl<T, E: WireError> MethodResult for Result<T, E> {
    type Ok = T;
    type Err = E::Wire;

    #[inline]
    fn into_result(self) -> Result<T, E::Wire> {
        self.map_err(E::into_wire)
    }
}

/// An error that a bus error can become; what the macro of interfaces asks for, so that its absence reads as a sentence.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no place for the errors of the bus",
    label = "the error of an interface's method must be `From<objbus::BusError>`",
    note = "write `impl From<objbus::BusError> for {Self}`, because a call may fail on its way"
)]
pub trait InterfaceError: From<BusError> {}

#[diagnostic::do_not_recommend]
impl<E: From<BusError>> InterfaceError for E {}

/// The result of an interface's method: bus errors become the method's own error type.
#[inline]
pub fn settle<T, E: InterfaceError + From<W>, W>(result: Result<T, CallError<W>>) -> Result<T, E> {
    result.map_err(|error| match error.into_app() {
        Ok(own) => E::from(own),
        Err(bus) => E::from(bus),
    })
}

/// The kind, sentence and sources of an error that has no form of its own on the wire.
fn describe(kind: String, error: &dyn Error) -> RemoteError {
    let sources = std::iter::successors(error.source(), |source| (*source).source());
    RemoteError { kind, message: error.to_string(), sources: sources.map(ToString::to_string).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Executed;

    #[test]
    fn a_source_chain_travels_in_order() {
        let inner = io::Error::new(io::ErrorKind::NotFound, "no such disk");
        let outer = io::Error::other(inner);
        let remote = outer.into_wire();
        assert_eq!(remote.kind, "std::io::ErrorKind::Other");
        assert_eq!(remote.message, "no such disk");
        let boxed: Box<dyn Error + Send + Sync> = "out of ink".into();
        assert_eq!(boxed.into_wire().message, "out of ink");
    }

    #[test]
    fn a_bus_error_that_a_method_returns_is_not_one_of_its_callers_call() {
        let inner = BusError::NotFound { name: "x".to_owned(), executed: Executed::No };
        let sentence = inner.to_string();
        let outer = settle::<(), BusError, _>(Err(CallError::App(inner.clone().into_wire()))).unwrap_err();
        assert_eq!(outer.executed(), Executed::Yes);
        assert!(outer.to_string().contains(&sentence), "{outer}");
        let CallError::Nested { error, .. } = &outer else { panic!("{outer:?}") };
        assert_eq!((error.kind.as_str(), &error.message), ("objbus::CallError::NotFound", &sentence));
        assert_eq!(settle::<(), BusError, RemoteError>(Err(inner.clone().widen())), Err(inner));
    }

    #[cfg(feature = "anyhow")]
    #[test]
    fn an_anyhow_error_keeps_its_context() {
        let error = anyhow::anyhow!("no paper").context("cannot print");
        let remote = error.into_wire();
        assert_eq!((remote.message.as_str(), remote.sources), ("cannot print", vec!["no paper".to_owned()]));
    }
}
