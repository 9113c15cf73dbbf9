//! A frame: bytes as many as a large picture has, how all of them are written, and how all of them are read.
//!
//! Every way in which a frame can travel uses these two functions, so that two ways differ only in the way.

use std::cell::UnsafeCell;

use super::shared::Plain;

/// The length of a frame.
pub const LEN: usize = 8 << 20;

/// Writes every byte, another content for another seed. Its own function, so that it is compiled once for all ways.
#[inline(never)]
pub fn fill(bytes: &mut [u8], seed: u8) {
    let first = u64::from(seed) << 32;
    let (words, rest) = bytes.as_chunks_mut();
    for (index, word) in words.iter_mut().enumerate() {
        *word = (first + index as u64).to_ne_bytes();
    }
    rest.fill(seed);
}

/// Reads every byte: the sum of the words.
#[inline(never)]
pub fn fold(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks();
    let sum = words.iter().fold(0, |sum: u64, word| sum.wrapping_add(u64::from_ne_bytes(*word)));
    rest.iter().fold(sum, |sum, byte| sum.wrapping_add(u64::from(*byte)))
}

/// What [`fold`] gives for `len` bytes that [`fill`] wrote.
pub fn folded(len: usize, seed: u8) -> u64 {
    let mut bytes = vec![0; len];
    fill(&mut bytes, seed);
    fold(&bytes)
}

/// A frame's bytes in plain shared memory.
#[repr(C, align(4096))]
pub struct Frame(UnsafeCell<[u8; LEN]>);

// SAFETY: bytes, all zero in fresh memory; who may touch them is up to the callers of the two functions below.
unsafe impl Plain for Frame {}

impl Frame {
    /// [`fill`].
    ///
    /// # Safety
    ///
    /// The other process has handed the frame over, and this one thread has it.
    pub unsafe fn fill(&self, seed: u8) {
        // SAFETY: nobody else uses the bytes now, as the caller vouches.
        fill(unsafe { &mut *self.0.get() }, seed);
    }

    /// [`fold`].
    ///
    /// # Safety
    ///
    /// The other process has handed the frame over, and this one thread has it.
    pub unsafe fn fold(&self) -> u64 {
        // SAFETY: nobody writes the bytes now, as the caller vouches.
        fold(unsafe { &*self.0.get() })
    }
}
