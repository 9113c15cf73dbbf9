//! An item, encoded once for however many receivers.

use std::ptr::NonNull;

use parking_lot::Mutex;
use serde::Serialize;
use smallvec::SmallVec;

use crate::blob::arena::Arena;
use crate::blob::limit::NoMemory;
use crate::ring::channel::ITEM_WORDS;
use crate::wire::blob::Blobs;
use crate::wire::output::{EncodeError, Output, Spilled};

/// Words of a body that may stand in the ring.
const INLINE_WORDS: usize = ITEM_WORDS - 2;

/// An item as it travels.
pub(crate) struct EncodedItem {
    /// The body, if it is short: so many bytes of `words`, padded with zeros.
    len: u32,
    words: Box<[u64; INLINE_WORDS]>,
    /// The body, if it is not: one copy for each user whose processes are receivers.
    large: Mutex<SmallVec<[Spilled; 1]>>,
    is_large: bool,
    pub(super) blobs: Blobs,
}

impl EncodedItem {
    /// Without a body, to be used again and again.
    pub fn blank() -> EncodedItem {
        EncodedItem {
            len: 0,
            words: Box::new([0; INLINE_WORDS]),
            large: Mutex::default(),
            is_large: false,
            blobs: Blobs::new(),
        }
    }

    /// Holds `value` from here on, a body of at most `limit` bytes; what is large goes into `arena`.
    #[inline]
    pub fn encode<T: Serialize + ?Sized>(
        &mut self,
        value: &T,
        arena: &Arena,
        limit: u64,
    ) -> Result<(), Box<EncodeError>> {
        if self.is_large || !self.blobs.is_empty() {
            self.clear();
        }
        let limit = limit.min(u32::MAX.into());
        let place = NonNull::from(&mut *self.words).cast::<u8>();
        // SAFETY: the words are borrowed for longer than the output lives, and used for nothing else; so is the arena.
        let mut output = unsafe { Output::new(place, INLINE_WORDS * 8, limit, Some(arena)) };
        output.encode(value)?;
        self.len = output.len() as u32;
        if output.is_plain() {
            output.end_plain();
        } else {
            self.blobs.extend(output.take_blobs());
            self.large.get_mut().extend(output.take_spill());
            self.is_large = !self.large.get_mut().is_empty();
        }
        if !self.is_large && !self.len.is_multiple_of(8) {
            let word = &mut self.words[self.len as usize / 8];
            *word = u64::from_ne_bytes(std::array::from_fn(|byte| {
                if byte < self.len as usize % 8 { word.to_ne_bytes()[byte] } else { 0 }
            }));
        }
        Ok(())
    }

    #[cold]
    fn clear(&mut self) {
        self.large.get_mut().clear();
        self.is_large = false;
        self.blobs.clear();
    }

    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether something is lent with it, its own body or a blob.
    pub fn lends(&self) -> bool {
        self.is_large || !self.blobs.is_empty()
    }

    /// The body in words, if it is short.
    #[inline(always)]
    pub(super) fn words(&self) -> Option<&[u64]> {
        (!self.is_large).then(|| &self.words[..self.len.div_ceil(8) as usize])
    }

    /// The body in memory of `arena`.
    #[cold]
    pub(super) fn body_in(&self, arena: &Arena) -> Result<Spilled, NoMemory> {
        let mut large = self.large.lock();
        if let Some(spilled) = large.iter().find(|spilled| spilled.chunk().is_of(arena)) {
            return Ok(spilled.clone());
        }
        let copy = match large.first() {
            Some(spilled) => Spilled::copy_of(spilled.as_slice(), arena)?,
            None => {
                let bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                return Spilled::copy_of(&bytes[..self.len as usize], arena);
            }
        };
        large.push(copy.clone());
        Ok(copy)
    }
}
