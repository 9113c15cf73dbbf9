//! A stand-in for the caller's side.
#![allow(missing_docs, dead_code, clippy::all)]
use crate::error::CallError;
use serde::{Serialize, de::DeserializeOwned};
use std::convert::Infallible;
use std::marker::PhantomData;

#[derive(Clone, Debug)]
pub struct Handle;
#[must_use]
#[derive(Debug)]
pub struct Call<T, E = Infallible>(PhantomData<fn() -> (T, E)>);
impl Handle {
    pub fn call<A: Serialize + ?Sized, T: DeserializeOwned + 'static, E: crate::OwnError>(
        &self,
        _index: usize,
        _method: &'static str,
        _arguments: &A,
    ) -> Call<T, E> {
        Call(PhantomData)
    }
}
impl<T, E> Call<T, E> {
    pub fn wait(self) -> Result<T, CallError<E>> {
        Err(CallError::Overloaded { executed: crate::Executed::No })
    }
}
impl<T, E> Future for Call<T, E> {
    type Output = Result<T, CallError<E>>;
    fn poll(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::task::Poll::Ready(Err(CallError::Overloaded { executed: crate::Executed::No }))
    }
}
