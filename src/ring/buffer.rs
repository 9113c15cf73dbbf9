//! A request's body while its call value waits to be sent: words, as the ring wants them, that are written as bytes.

use std::mem::MaybeUninit;

use super::caller::RequestWords;
use super::layout::{CHAIN_AT, CHAIN_WORDS, Loan, REQUEST_BODY, REQUEST_FIRST_WORDS};

/// Holds what [`CallerRing::publish`](super::caller::CallerRing::publish) asks to be initialised: always the first line's
/// words; the words of a body once [`close`](RequestBuffer::close) was told its length; the chain's once set.
pub(crate) struct RequestBuffer {
    words: RequestWords,
}

impl RequestBuffer {
    pub fn new() -> RequestBuffer {
        let mut buffer = RequestBuffer { words: [MaybeUninit::uninit(); REQUEST_BODY / 8] };
        buffer.clear();
        buffer
    }

    /// Makes it as good as new.
    #[inline(always)]
    pub fn clear(&mut self) {
        // Part of the first line, which is sent whole: zeros, not older bytes.
        for word in &mut self.words[..REQUEST_FIRST_WORDS] {
            word.write(0);
        }
    }

    /// Where a body of up to [`REQUEST_BODY`] bytes is written.
    #[inline(always)]
    pub fn bytes(&mut self) -> &mut [MaybeUninit<u8>; REQUEST_BODY] {
        // SAFETY: as many bytes, less strictly aligned, and any byte may be uninitialised in both types.
        unsafe { &mut *self.words.as_mut_ptr().cast() }
    }

    /// Says that the first `len` bytes were written, and fills up the last word with zeros.
    #[inline(always)]
    pub fn close(&mut self, len: usize) {
        if len > REQUEST_FIRST_WORDS * 8 {
            let end = len.next_multiple_of(8).min(REQUEST_BODY);
            for byte in &mut self.bytes()[len..end] {
                byte.write(0);
            }
        }
    }

    /// Puts loans at the word `first`: behind a body that was closed, or, where it lies elsewhere, in its place.
    pub fn set_loans(&mut self, first: usize, loans: &[Loan]) {
        let values = loans.iter().flat_map(|loan| loan.to_words());
        for (word, value) in self.words[first..].iter_mut().zip(values) {
            word.write(value);
        }
    }

    pub fn set_chain(&mut self, chain: &[u64; CHAIN_WORDS]) {
        for (word, id) in self.words[CHAIN_AT..].iter_mut().zip(chain) {
            word.write(*id);
        }
    }

    #[inline(always)]
    pub fn words(&self) -> &RequestWords {
        &self.words
    }
}
