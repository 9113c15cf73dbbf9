//! A shared-memory object bus for Linux.
#![warn(missing_docs)]

// The macros' code names the crate as its users do.
extern crate self as objbus;

mod error;
mod object;
mod proxy;
mod wire;

pub use error::{BusError, CallError, ConnectError, Executed, PublishError, RemoteError};
pub use objbus_macros::{Type, interface, object};
pub use object::{Callable, FallibleCallable, Interface, MethodTable, Object, Proxy};
pub use proxy::{Call, Handle};
pub use wire::describe::{Description, MethodDescription};
pub use wire::errors::{MethodResult, OwnError, WireError};
pub use wire::schema::{NamedType, Primitive, Schemas, Shape, Type, TypeRef};

/// What the macros' code uses and nobody else should.
#[doc(hidden)]
pub mod __private {
    pub use crate::object::{AsyncInvocation, Invocation, MethodSpec, index_of};
    pub use crate::wire::bytes::{ByteBuf, Bytes};
    pub use crate::wire::errors::settle;
    pub use std::convert::Infallible;
    pub use std::result::Result;
    pub use std::sync::Arc;
}
