//! One call as a handler sees it: a body to decode, an output to encode into.

use std::mem::MaybeUninit;

use serde::{Deserialize, Serialize};

use crate::blob::shared::Blob;
use crate::wire::blob::{Blobs, Lent};
use crate::wire::budget::{Budget, DecodeError, decode_with};
use crate::wire::output::{EncodeError, INLINE_BODY, Output};

/// Why a call has no result of the method's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The arguments could not be decoded; the method did not run.
    BadRequest(String),
    /// The result could not be encoded; the method ran.
    BadResponse(String),
    /// The result exceeds the limit; the method ran.
    TooLarge {
        /// The largest result allowed, in bytes.
        limit: u64,
        /// The size asked for when encoding stopped.
        size: u64,
    },
    /// There is no shared memory left for the result; the method ran.
    NoMemory,
    /// There is no memory for what goes along with the call; the method did not run.
    NoRoom,
    /// The caller has given up what goes along with the call; the method did not run.
    Cancelled,
}

/// What a handler gives: that the output holds the result or the method's own error, or why it does not.
///
/// One word, so that it comes back in a register. Behind the first store to a response, a value that is read in other
/// pieces than it was written in waits until the response's cache line has come over from the caller.
pub type Concluded = Result<(), Box<Refusal>>;

impl From<DecodeError> for Box<Refusal> {
    #[cold]
    fn from(error: DecodeError) -> Self {
        Box::new(Refusal::BadRequest(error.to_string()))
    }
}

impl From<Box<EncodeError>> for Box<Refusal> {
    #[cold]
    fn from(error: Box<EncodeError>) -> Self {
        Box::new(match *error {
            EncodeError::TooLarge { limit, size } => Refusal::TooLarge { limit, size },
            EncodeError::NoMemory => Refusal::NoMemory,
            EncodeError::Unencodable(why) => Refusal::BadResponse(why),
        })
    }
}

/// A call of a plain method.
#[derive(Debug)]
pub struct Invocation<'a> {
    body: &'a [u8],
    lent: Lent<'a>,
    output: &'a mut Output,
    budget: &'a Budget,
}

impl<'a> Invocation<'a> {
    /// A call with the encoded arguments `body` and what was lent with them, answered into `output`.
    #[inline]
    pub(crate) fn new(body: &'a [u8], lent: Lent<'a>, output: &'a mut Output, budget: &'a Budget) -> Self {
        Invocation { body, lent, output, budget }
    }

    /// Whether it has no arguments.
    pub(crate) fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    /// The arguments, borrowing from the request where `T` does.
    #[inline]
    pub fn arguments<T: Deserialize<'a>>(&self) -> Result<T, Box<Refusal>> {
        Ok(decode_with(self.body, self.lent, self.budget)?)
    }

    /// Answers with a result.
    #[inline]
    pub fn answer<R: Serialize + ?Sized>(self, result: &R) -> Concluded {
        Ok(self.output.encode(result)?)
    }

    /// Answers with a result or with the method's own error.
    #[inline]
    pub fn answer_result<T: Serialize, E: Serialize>(self, result: &Result<T, E>) -> Concluded {
        answer_result(self.output, result)
    }
}

#[inline]
fn answer_result<T: Serialize, E: Serialize>(output: &mut Output, result: &Result<T, E>) -> Concluded {
    match result {
        Ok(value) => output.encode(value)?,
        Err(error) => output.encode_error(error)?,
    }
    Ok(())
}

/// The encoded arguments of an async call, owned by its future.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// Small ones, in place.
    Inline {
        /// The first `len` bytes are initialised.
        bytes: [MaybeUninit<u8>; INLINE_BODY],
        /// At most `INLINE_BODY`.
        len: usize,
    },
    /// Larger ones.
    Large(Blob),
}

impl RequestBody {
    /// A copy of a body that came in its cell.
    #[inline]
    pub(crate) fn copy_of(body: &[u8]) -> RequestBody {
        assert!(body.len() <= INLINE_BODY, "a cell has no room for {} bytes", body.len());
        let mut bytes = [const { MaybeUninit::uninit() }; INLINE_BODY];
        for (to, from) in bytes.iter_mut().zip(body) {
            to.write(*from);
        }
        RequestBody::Inline { bytes, len: body.len() }
    }

    #[inline]
    fn as_bytes(&self) -> &[u8] {
        match self {
            RequestBody::Inline { bytes, len } => {
                // SAFETY: `copy_of`, the only place that makes this variant, wrote the first `len` bytes, and
                // `len` is at most the array's length; the reference lives no longer than the array's.
                unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), *len) }
            }
            RequestBody::Large(blob) => blob,
        }
    }

    /// What the body lies in, so that parts of it can be kept without a copy.
    #[inline]
    fn backing(&self) -> Option<&Blob> {
        match self {
            RequestBody::Large(blob) => Some(blob),
            RequestBody::Inline { .. } => None,
        }
    }
}

/// A call of an async method; its future owns it.
#[derive(Debug)]
pub struct AsyncInvocation {
    body: RequestBody,
    blobs: Blobs,
    output: Output,
    budget: Budget,
}

impl AsyncInvocation {
    /// A call with the encoded arguments `body` and what was lent with them, answered into `output`.
    #[inline]
    pub(crate) fn new(body: RequestBody, blobs: Blobs, output: Output, budget: Budget) -> Self {
        AsyncInvocation { body, blobs, output, budget }
    }

    /// Splits into what the arguments borrow from and what is answered into.
    #[inline]
    pub fn split(self) -> (AsyncRequest, AsyncAnswer) {
        let AsyncInvocation { body, blobs, output, budget } = self;
        (AsyncRequest { body, blobs, budget }, AsyncAnswer { output })
    }
}

/// The request of an async call.
#[derive(Debug)]
pub struct AsyncRequest {
    body: RequestBody,
    blobs: Blobs,
    budget: Budget,
}

impl AsyncRequest {
    /// The arguments, borrowing from the request where `T` does.
    #[inline]
    pub fn arguments<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Box<Refusal>> {
        let lent = Lent { blobs: &self.blobs, backing: self.body.backing() };
        Ok(decode_with(self.body.as_bytes(), lent, &self.budget)?)
    }
}

/// Where an async call is answered.
#[derive(Debug)]
pub struct AsyncAnswer {
    output: Output,
}

impl AsyncAnswer {
    /// Answers with a result.
    #[inline]
    pub fn answer<R: Serialize + ?Sized>(mut self, result: &R) -> Completed {
        let concluded = self.output.encode(result).map_err(Box::from);
        Completed { output: self.output, concluded }
    }

    /// Answers with a result or with the method's own error.
    #[inline]
    pub fn answer_result<T: Serialize, E: Serialize>(mut self, result: &Result<T, E>) -> Completed {
        let concluded = answer_result(&mut self.output, result);
        Completed { output: self.output, concluded }
    }

    /// Ends a call whose arguments could not be decoded.
    #[cold]
    pub fn refuse(self, refusal: Box<Refusal>) -> Completed {
        Completed { output: self.output, concluded: Err(refusal) }
    }
}

/// An async call that has ended.
#[derive(Debug)]
pub struct Completed {
    /// Holds the result or the method's own error.
    pub(crate) output: Output,
    /// Whether it does.
    pub(crate) concluded: Concluded,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owned_body_is_the_copied_one_at_every_size() {
        for len in [0, 1, INLINE_BODY - 1, INLINE_BODY] {
            let body: Vec<u8> = (0..len).map(|i| i as u8).collect();
            assert_eq!(RequestBody::copy_of(&body).as_bytes(), body);
        }
    }

    #[test]
    fn an_async_request_lends_its_arguments() {
        let body = postcard::to_stdvec(&("name", 7u32)).unwrap();
        let call = AsyncInvocation::new(
            RequestBody::copy_of(&body),
            Blobs::new(),
            Output::heap(100),
            Budget::default(),
        );
        let (request, answer) = call.split();
        assert_eq!(request.arguments::<(&str, u32)>().unwrap(), ("name", 7));
        let completed = answer.answer_result(&Err::<(), _>("no"));
        assert_eq!((completed.concluded, completed.output.is_error()), (Ok(()), true));
        assert_eq!(completed.output.spill(), Some(&[2, b'n', b'o'][..]));
    }

    #[test]
    fn a_result_over_the_limit_is_refused() {
        let budget = Budget::default();
        let mut output = Output::heap(4);
        let refused =
            Invocation::new(&[], Lent::default(), &mut output, &budget).answer("hello").unwrap_err();
        assert!(matches!(*refused, Refusal::TooLarge { limit: 4, size: 5..=6 }), "{refused:?}");
        assert!(output.is_empty());
    }
}
