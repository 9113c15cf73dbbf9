//! Objects without a macro: a table of closures.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::invocation::{Concluded, Invocation};
use super::table::{Handler, MethodTable, Signature};
use crate::wire::errors::WireError;
use crate::wire::schema::{Primitive, Schemas, Type, TypeRef};

use std::sync::Arc;

/// A closure of up to eight arguments that can be a method: each argument owned, `serde` and [`Type`], the result too.
///
/// It is implemented for all such closures and cannot be implemented elsewhere.
pub trait Callable<Arguments>: sealed::Sealed<Arguments> + Send + Sync + 'static {
    #[doc(hidden)]
    fn types(types: &mut Schemas) -> (Vec<TypeRef>, TypeRef);

    #[doc(hidden)]
    fn call(&self, call: Invocation<'_>) -> Concluded;
}

/// A closure like a [`Callable`] that returns a `Result`, whose error is the method's own.
pub trait FallibleCallable<Arguments>: sealed::Sealed<Arguments> + Send + Sync + 'static {
    #[doc(hidden)]
    fn types(types: &mut Schemas) -> (Vec<TypeRef>, TypeRef, TypeRef);

    #[doc(hidden)]
    fn call(&self, call: Invocation<'_>) -> Concluded;
}

mod sealed {
    pub trait Sealed<Arguments> {}
}

macro_rules! callables {
    ($($($argument:ident)*;)*) => {$(
        impl<F, R, $($argument),*> sealed::Sealed<($($argument,)*)> for F where F: Fn($($argument),*) -> R {}

        #[allow(non_snake_case, clippy::unused_unit)]
        impl<F, R, $($argument),*> Callable<($($argument,)*)> for F
        where
            F: Fn($($argument),*) -> R + Send + Sync + 'static,
            R: Type + Serialize,
            $($argument: Type + DeserializeOwned,)*
        {
            fn types(types: &mut Schemas) -> (Vec<TypeRef>, TypeRef) {
                (vec![$($argument::schema(types)),*], R::schema(types))
            }

            #[inline]
            fn call(&self, call: Invocation<'_>) -> Concluded {
                let ($($argument,)*): ($($argument,)*) = call.arguments()?;
                call.answer(&self($($argument),*))
            }
        }

        #[allow(non_snake_case, clippy::unused_unit)]
        impl<F, R, E, $($argument),*> FallibleCallable<($($argument,)*)> for F
        where
            F: Fn($($argument),*) -> Result<R, E> + Send + Sync + 'static,
            R: Type + Serialize,
            E: WireError,
            $($argument: Type + DeserializeOwned,)*
        {
            fn types(types: &mut Schemas) -> (Vec<TypeRef>, TypeRef, TypeRef) {
                (vec![$($argument::schema(types)),*], R::schema(types), E::Wire::schema(types))
            }

            #[inline]
            fn call(&self, call: Invocation<'_>) -> Concluded {
                let ($($argument,)*): ($($argument,)*) = call.arguments()?;
                call.answer_result(&self($($argument),*).map_err(E::into_wire))
            }
        }
    )*};
}

callables! {
    ;
    A;
    A B;
    A B C;
    A B C D;
    A B C D G;
    A B C D G H;
    A B C D G H I;
    A B C D G H I J;
}

impl MethodTable {
    /// Adds a method that cannot fail.
    pub fn method<A, F: Callable<A>>(mut self, name: &str, closure: F) -> MethodTable {
        let (arguments, result) = F::types(&mut self.types);
        let never = TypeRef::Primitive(Primitive::Never);
        self.add(name, (arguments, result, never), Handler::Plain(Arc::new(move |call| closure.call(call))))
    }

    /// Adds a method that returns a `Result`; its error is the method's own at the caller.
    pub fn try_method<A, F: FallibleCallable<A>>(mut self, name: &str, closure: F) -> MethodTable {
        let types = F::types(&mut self.types);
        self.add(name, types, Handler::Plain(Arc::new(move |call| closure.call(call))))
    }

    /// Adds a property, read by calling the closure.
    pub fn property<F: Callable<()>>(self, name: &str, closure: F) -> MethodTable {
        let mut table = self.method(name, closure);
        if let Some(signature) = table.last_signature() {
            signature.property = true;
        }
        table
    }

    /// Documents the method added last, or, before any, the object.
    #[must_use]
    pub fn docs(mut self, docs: &str) -> MethodTable {
        match self.last_signature() {
            Some(signature) => signature.docs = docs.to_owned(),
            None => self.describe(docs),
        }
        self
    }

    /// Names the arguments of the method added last, for introspection; they are `a0`, `a1`, … otherwise.
    ///
    /// Names beyond the number of arguments are ignored.
    #[must_use]
    pub fn argument_names(mut self, names: &[&str]) -> MethodTable {
        let arguments = self.last_signature().map(|signature| signature.arguments.as_mut_slice());
        for ((argument, _), name) in arguments.unwrap_or_default().iter_mut().zip(names) {
            *argument = (*name).to_owned();
        }
        self
    }

    fn add(
        mut self,
        name: &str,
        (arguments, result, error): (Vec<TypeRef>, TypeRef, TypeRef),
        handler: Handler,
    ) -> MethodTable {
        let arguments = arguments.into_iter().enumerate().map(|(i, of)| (format!("a{i}"), of)).collect();
        let signature = Signature::new(name, arguments, result, error, &self.types);
        self.push(signature, handler);
        self
    }
}
