//! Objects without a macro: a table of closures.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::invocation::{AsyncRequest, Concluded, Invocation};
use super::streams::{self, Opening};
use super::table::{Handler, MethodTable, Signature};
use crate::events::{Event, Told, Watched};
use crate::stream::Stream;
use crate::wire::errors::WireError;
use crate::wire::schema::{Primitive, Schemas, Type, TypeRef};

use std::pin::Pin;
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

/// A closure like a [`Callable`] that returns a stream.
pub trait StreamCallable<Arguments>: sealed::Sealed<Arguments> + Send + Sync + 'static {
    #[doc(hidden)]
    fn types(types: &mut Schemas) -> (Vec<TypeRef>, TypeRef);

    #[doc(hidden)]
    fn open(&self, request: &AsyncRequest, opening: Opening) -> Pin<Box<dyn Future<Output = ()> + Send>>;
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
        impl<F, R, $($argument),*> StreamCallable<($($argument,)*)> for F
        where
            F: Fn($($argument),*) -> R + Send + Sync + 'static,
            R: futures_core::Stream<Item: Type + Serialize> + Send + 'static,
            $($argument: Type + DeserializeOwned,)*
        {
            fn types(types: &mut Schemas) -> (Vec<TypeRef>, TypeRef) {
                (vec![$($argument::schema(types)),*], <Stream<R::Item>>::schema(types))
            }

            fn open(
                &self,
                request: &AsyncRequest,
                opening: Opening,
            ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
                let arguments: Result<($($argument,)* u32,), _> = request.arguments();
                let ($($argument,)* channel,) = match arguments {
                    Ok(arguments) => arguments,
                    Err(refusal) => {
                        opening.refuse(refusal);
                        return Box::pin(std::future::ready(()));
                    }
                };
                match opening.claim(channel) {
                    Some(opening) => Box::pin(opening.pump(self($($argument),*))),
                    None => Box::pin(std::future::ready(())),
                }
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

    /// Adds a method that returns a stream: its values go out one by one, as fast as the caller takes them.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use objbus::{Bus, MethodTable, Untyped, stream_of};
    ///
    /// let bus = Bus::in_memory();
    /// let table = MethodTable::named("Clock").stream("countdown", |from: u32| stream_of((0..from).rev()));
    /// let _published = bus.publish("clock", table)?;
    ///
    /// let clock: Untyped = bus.proxy("clock").wait()?;
    /// let mut left = clock.stream::<(u32,), u32>("countdown", &(3,)).wait()?;
    /// assert_eq!(left.iter().collect::<Result<Vec<_>, _>>()?, [2, 1, 0]);
    /// # Ok(()) }
    /// ```
    pub fn stream<A, F: StreamCallable<A>>(mut self, name: &str, closure: F) -> MethodTable {
        let (arguments, result) = F::types(&mut self.types);
        let never = TypeRef::Primitive(Primitive::Never);
        let handler = streams::handler(move |request, opening| closure.open(&request, opening));
        self.add(name, (arguments, result, never), handler)
    }

    /// Adds a property, read by calling the closure.
    pub fn property<F: Callable<()>>(self, name: &str, closure: F) -> MethodTable {
        let mut table = self.method(name, closure);
        if let Some(signature) = table.last_signature() {
            signature.property = true;
        }
        table
    }

    /// Adds an event, which is subscribed to.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use objbus::{Bus, Event, MethodTable, Untyped};
    ///
    /// let ticks: Event<u32> = Event::new();
    /// let bus = Bus::in_memory();
    /// let _published = bus.publish("clock", MethodTable::named("Clock").event("ticks", &ticks))?;
    ///
    /// let clock: Untyped = bus.proxy("clock").wait()?;
    /// let mut heard = clock.subscribe::<u32>("ticks").wait()?;
    /// ticks.emit(&1)?;
    /// assert_eq!(heard.iter().next(), Some(Ok(1)));
    /// # Ok(()) }
    /// ```
    pub fn event<T: Type + Serialize + 'static>(self, name: &str, event: &Event<T>) -> MethodTable {
        self.told(name, event.clone())
    }

    /// Adds a watched property, which is read or subscribed to.
    pub fn watched<T: Type + Serialize + Send + 'static>(
        self,
        name: &str,
        watched: &Watched<T>,
    ) -> MethodTable {
        self.told(name, watched.clone())
    }

    fn told<S: Told + Send + Sync + 'static>(mut self, name: &str, told: S) -> MethodTable {
        let types = (Vec::new(), S::schema(&mut self.types), TypeRef::Primitive(Primitive::Never));
        self.add(name, types, Handler::Plain(Arc::new(move |call| told.serve(call))))
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
