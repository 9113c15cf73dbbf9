//! Where a value is encoded: straight into the bytes of a cell, and on to shared memory when they are full.
//!
//! Most bodies fit the cell, so nothing is allocated and nothing copied twice. A body that does not fit goes on in a chunk of the
//! arena, where its reader finds it: a big slice is copied once, from the value into the chunk. The cell may be shared memory: it
//! is written through a raw pointer, never read back before it is full, and no reference to it is made.

use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;
use std::{fmt, slice};

use serde::Serialize;

use super::blob::Blobs;
use crate::blob::arena::{Arena, Chunk};
use crate::blob::limit::NoMemory;
use crate::blob::shared::Blob;
use crate::ring::layout::{Loan, REQUEST_BODY};

/// Bytes of a request that travel inside its cell.
pub(crate) const INLINE_BODY: usize = REQUEST_BODY;

/// Alignment of a body in the arena: a cache line.
const ALIGN: usize = 64;

/// More than is known to be needed when a body moves, so that what follows a big slice does not move it again.
const SLACK: usize = 512;

/// Why a value could not be encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EncodeError {
    /// The encoded value exceeds the limit.
    TooLarge {
        /// The largest body allowed, in bytes.
        limit: u64,
        /// How many bytes had been asked for when encoding stopped.
        size: u64,
    },
    /// There is no shared memory left for it.
    NoMemory,
    /// The type's `Serialize` failed, or asks what the format cannot do.
    Unencodable(String),
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EncodeError::TooLarge { limit, size } => {
                write!(f, "the value needs {size} bytes and the bus allows {limit}")
            }
            EncodeError::NoMemory => f.write_str("there is no shared memory left for the value"),
            EncodeError::Unencodable(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for EncodeError {}

/// A body being written: first into the slot it was made for, then, when that is full, into memory of its own.
///
/// It can be started again at any point ([`reset`](Output::reset)), so an encoder that fails or panics half-way leaves
/// nothing behind.
///
/// # Example
///
/// ```ignore
/// let mut output = Output::heap(1 << 20);
/// output.encode(&(2.0, 0.5))?;
/// assert_eq!(output.spill().map(<[u8]>::len), Some(16));
/// ```
pub struct Output {
    /// Where the body begins: at `slot`, or in memory of its own if it has some.
    start: NonNull<u8>,
    /// Bytes that may be written there, at most `limit`.
    room: usize,
    /// Bytes written there, at most `room`.
    len: usize,
    /// What is to be lent with the body: the first, in place since most that lend anything lend one.
    blob: Option<Blob>,
    /// What most bodies do not have; one word, so that it costs them nothing.
    aside: Option<Box<Aside>>,
    /// What was written is an error.
    is_error: bool,
    slot: NonNull<u8>,
    /// Bytes that may be written at `slot`, at most `limit`.
    capacity: usize,
    limit: u64,
    /// Where memory for a body comes from; `None`: the heap.
    arena: Option<NonNull<Arena>>,
}

/// What a body has beside its slot.
#[derive(Default)]
struct Aside {
    /// The memory of one that did not fit the slot.
    memory: Option<Memory>,
    /// What is to be lent with it beside the first.
    blobs: Vec<Blob>,
}

/// Memory of a body's own.
enum Memory {
    Heap {
        /// Written through `Output::start`.
        _bytes: Vec<u8>,
    },
    Shared(Chunk),
}

// SAFETY: `slot` is exclusively this output's, as `new` demands, so it may be written from whichever thread holds the
// output, and so is the memory that it owns; the arena is Sync; everything else is owned data.
unsafe impl Send for Output {}

const _: () = {
    const fn is_sync<T: Sync>() {}
    is_sync::<Arena>();
};

impl Output {
    /// An output that writes into `capacity` bytes at `slot`, then into `arena`, and refuses bodies of more than `limit` bytes.
    ///
    /// # Safety
    ///
    /// `slot` must be valid for writes of `capacity` bytes, by any thread, as long as this output exists; nothing
    /// else in this process may read or write them meanwhile. `arena`, if any, must live as long.
    #[inline]
    pub(crate) unsafe fn new(
        slot: NonNull<u8>,
        capacity: usize,
        limit: u64,
        arena: Option<&Arena>,
    ) -> Output {
        let capacity = room(capacity, limit);
        Output {
            start: slot,
            room: capacity,
            len: 0,
            blob: None,
            aside: None,
            is_error: false,
            slot,
            capacity,
            limit,
            arena: arena.map(NonNull::from),
        }
    }

    /// An output without a slot, for bodies that nobody sends: every one goes to the heap.
    pub fn heap(limit: u64) -> Output {
        // SAFETY: no bytes are written at the slot.
        unsafe { Output::new(NonNull::dangling(), 0, limit, None) }
    }

    /// The number of bytes written.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    #[cfg(test)]
    /// Whether nothing is written yet.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole body if it did not fit the slot; otherwise it lies in the slot's first [`len`](Output::len) bytes.
    #[inline]
    pub fn spill(&self) -> Option<&[u8]> {
        self.memory()?;
        // SAFETY: the body has memory of its own, so `start` is the start of that, of which `len` bytes were written; `&self`
        // excludes that more are, meanwhile.
        Some(unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) })
    }

    /// The body, if it did not fit the slot and lies in the arena; then nothing is left here but the blobs.
    pub(crate) fn take_spill(&mut self) -> Option<Spilled> {
        let memory = &mut self.aside.as_mut()?.memory;
        let Some(Memory::Shared(chunk)) = memory.take_if(|memory| matches!(memory, Memory::Shared(_))) else {
            return None;
        };
        let len = self.len;
        self.rewind();
        Some(Spilled { chunk: Arc::new(chunk), len })
    }

    /// Moves a body that fits its slot out of it, where what goes with it does not.
    ///
    /// # Errors
    ///
    /// [`EncodeError::NoMemory`]; the body then is where it was.
    #[cold]
    pub(crate) fn spill_now(&mut self) -> Result<(), Box<EncodeError>> {
        if self.memory().is_some() { Ok(()) } else { self.move_to_memory(self.len + SLACK, self.len + SLACK) }
    }

    /// Whether the body has left the slot.
    pub(crate) fn is_spilled(&self) -> bool {
        self.memory().is_some()
    }

    /// Whether the slot holds all of it.
    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        self.blob.is_none() && self.aside.is_none()
    }

    /// Ends a [plain](Self::is_plain) one: it holds nothing, and to find that out once more would cost some twenty instructions.
    #[inline(always)]
    pub(crate) fn end_plain(self) {
        debug_assert!(self.is_plain(), "what it holds would be lost");
        std::mem::forget(self);
    }

    /// The body, if it has no memory of its own and was written elsewhere than at `place`.
    #[inline]
    pub(crate) fn written_aside(&self, place: NonNull<u8>) -> Option<&[u8]> {
        let is_aside = self.memory().is_none() && self.start != place;
        // SAFETY: `len` bytes were written at `start`; `&self` excludes that more are, meanwhile.
        is_aside.then(|| unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) })
    }

    /// How many blobs are to be lent with the body.
    #[inline]
    pub(crate) fn blob_count(&self) -> usize {
        usize::from(self.blob.is_some()) + self.aside.as_ref().map_or(0, |aside| aside.blobs.len())
    }

    /// Takes the blob that is to be lent with the body, if it is the only one.
    #[inline]
    pub(crate) fn take_only_blob(&mut self) -> Option<Blob> {
        if self.blob_count() == 1 { self.blob.take() } else { None }
    }

    /// Takes what is to be lent with the body, in order.
    #[inline]
    pub(crate) fn take_blobs(&mut self) -> impl Iterator<Item = Blob> + use<> {
        let more = self.aside.as_mut().map(|aside| std::mem::take(&mut aside.blobs));
        self.blob.take().into_iter().chain(more.into_iter().flatten())
    }

    /// Memory of the body's own.
    #[inline]
    fn memory(&self) -> Option<&Memory> {
        self.aside.as_ref()?.memory.as_ref()
    }

    /// Whether nothing was written since it was made.
    #[inline]
    fn is_fresh(&self) -> bool {
        self.len == 0 && self.is_plain() && !self.is_error
    }

    /// Forgets what was written, to start again.
    #[cold]
    #[inline(never)]
    pub fn reset(&mut self) {
        self.rewind();
        self.is_error = false;
        self.blob = None;
        self.aside = None;
    }

    /// Begins at the slot again.
    fn rewind(&mut self) {
        self.start = self.slot;
        self.room = self.capacity;
        self.len = 0;
    }

    /// Replaces what was written by the encoding of `value`.
    ///
    /// # Errors
    ///
    /// [`EncodeError`] when the value exceeds the limit or its `Serialize` fails; the output is empty then.
    #[inline]
    pub(crate) fn encode<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Box<EncodeError>> {
        if !self.is_fresh() {
            self.reset();
        }
        let encoded = value.serialize(&mut *self);
        if encoded.is_err() {
            self.reset();
        }
        encoded
    }

    /// As [`encode`](Output::encode), for an error of the method's own.
    ///
    /// # Errors
    ///
    /// As [`encode`](Output::encode).
    #[inline]
    pub(crate) fn encode_error<T: Serialize + ?Sized>(&mut self, error: &T) -> Result<(), Box<EncodeError>> {
        self.encode(error)?;
        self.is_error = true;
        Ok(())
    }

    /// Whether what was written is an error.
    #[inline]
    pub fn is_error(&self) -> bool {
        self.is_error
    }

    #[inline]
    pub(super) fn push(&mut self, byte: u8) -> Result<(), Box<EncodeError>> {
        if self.len == self.room {
            self.grow(1)?;
        }
        // SAFETY: `len < room`, so the byte lies in the slot, which `new` was promised to be writable and ours, or in the
        // memory that we own.
        unsafe { self.start.add(self.len).write(byte) };
        self.len += 1;
        Ok(())
    }

    #[inline]
    pub(super) fn extend(&mut self, bytes: &[u8]) -> Result<(), Box<EncodeError>> {
        if bytes.len() > self.room - self.len {
            self.grow(bytes.len())?;
        }
        // SAFETY: `len + bytes.len() <= room`, so the range lies where `push` writes; `bytes` is a live reference, so the two
        // cannot overlap.
        unsafe {
            self.start.add(self.len).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len())
        };
        self.len += bytes.len();
        Ok(())
    }

    /// Writes a blob: its place among those that are lent.
    #[inline]
    pub(super) fn lend(&mut self, blob: &Blob) -> Result<(), Box<EncodeError>> {
        if blob.is_empty() {
            // There is nothing to lend: no bytes follow.
            return self.extend(&[0, 0]);
        }
        if self.blob.is_none() {
            self.blob = Some(blob.clone());
            return self.push(1);
        }
        let blobs = &mut self.aside.get_or_insert_default().blobs;
        blobs.push(blob.clone());
        let number = 1 + blobs.len();
        self.varint(number as u64)
    }

    /// Makes room for `more` bytes, if the limit allows them.
    #[cold]
    #[inline(never)]
    fn grow(&mut self, more: usize) -> Result<(), Box<EncodeError>> {
        // Neither is more than half of the address space.
        let size = self.len + more;
        if size as u64 > self.limit {
            return Err(Box::new(EncodeError::TooLarge { limit: self.limit, size: size as u64 }));
        }
        self.move_to_memory(size + SLACK, 2 * self.room)
    }

    /// Moves the body to memory of at least `least` bytes, of `preferred` if that is more and there is as much.
    fn move_to_memory(&mut self, least: usize, preferred: usize) -> Result<(), Box<EncodeError>> {
        let memory = Memory::new(self.arena, least.max(preferred))
            .or_else(|NoMemory| Memory::new(self.arena, least))
            .map_err(|NoMemory| Box::new(EncodeError::NoMemory))?;
        let (memory, start, capacity) = memory;
        // SAFETY: the first `len` bytes at `start` were written by `push` and `extend`; the new memory is longer, and separate
        // since the old is held until below. What a slot holds is copied before anything looks at it.
        unsafe { start.copy_from_nonoverlapping(self.start, self.len) };
        self.start = start;
        self.room = room(capacity, self.limit);
        self.aside.get_or_insert_default().memory = Some(memory);
        Ok(())
    }
}

/// Bytes of a body that may be written where there is place for `capacity`.
#[inline]
fn room(capacity: usize, limit: u64) -> usize {
    usize::try_from(limit).map_or(capacity, |limit| capacity.min(limit))
}

impl Memory {
    /// Fresh memory, where it begins and how long it is.
    fn new(arena: Option<NonNull<Arena>>, len: usize) -> Result<(Memory, NonNull<u8>, usize), NoMemory> {
        let Some(arena) = arena else {
            let mut bytes = Vec::with_capacity(len);
            // A vector's pointer is never null.
            let start = NonNull::new(bytes.as_mut_ptr()).ok_or(NoMemory)?;
            return Ok((Memory::Heap { _bytes: bytes }, start, len));
        };
        // SAFETY: `Output::new` was promised that the arena lives as long as the output.
        let mut chunk = unsafe { arena.as_ref() }.alloc(len, ALIGN)?;
        let start = NonNull::from(chunk.as_mut_slice()).cast();
        Ok((Memory::Shared(chunk), start, len))
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.memory() {
            None => "slot",
            Some(Memory::Heap { .. }) => "heap",
            Some(Memory::Shared(_)) => "arena",
        };
        write!(f, "Output({} bytes in the {place}, {} blobs)", self.len, self.blob_count())
    }
}

/// A body in the arena, and what is appended to it. A clone is the same memory.
#[derive(Clone)]
pub(crate) struct Spilled {
    /// Shared with the lease that it is lent by.
    chunk: Arc<Chunk>,
    /// Of the body alone.
    len: usize,
}

impl Spilled {
    /// The body.
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.chunk.as_slice()[..self.len]
    }

    /// Bytes of the body.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A copy of `body`.
    pub(crate) fn copy_of(body: &[u8], arena: &Arena) -> Result<Spilled, NoMemory> {
        let mut chunk = arena.alloc(body.len() + SLACK, ALIGN)?;
        chunk.as_mut_slice()[..body.len()].copy_from_slice(body);
        Ok(Spilled { chunk: Arc::new(chunk), len: body.len() })
    }

    /// Writes `loans` behind the body, from the next multiple of 8 bytes on, in place of what was appended before. The body
    /// moves if its chunk is too short, or lent already.
    pub(crate) fn append(&mut self, loans: &[Loan], arena: &Arena) -> Result<(), NoMemory> {
        if loans.is_empty() {
            return Ok(());
        }
        let start = self.len.next_multiple_of(8);
        let end = start + size_of_val(loans);
        if end > self.chunk.len() || Arc::get_mut(&mut self.chunk).is_none() {
            let mut longer = arena.alloc(end, ALIGN)?;
            longer.as_mut_slice()[..self.len].copy_from_slice(self.as_slice());
            self.chunk = Arc::new(longer);
        }
        let Some(chunk) = Arc::get_mut(&mut self.chunk) else { unreachable!("it is shared with nobody") };
        let words = loans.iter().flat_map(|loan| loan.to_words());
        for (to, word) in chunk.as_mut_slice()[start..end].chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        Ok(())
    }

    /// The chunk at whose start it lies.
    pub(crate) fn chunk(&self) -> &Arc<Chunk> {
        &self.chunk
    }
}

impl fmt::Debug for Spilled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spilled({} bytes)", self.len)
    }
}

/// Where the encoded arguments of a call are.
#[derive(Debug)]
pub(crate) enum Encoded {
    /// In the first so many bytes of the inline buffer.
    Inline(usize),
    /// In the arena: they did not fit.
    Spilled(Spilled),
}

/// Encodes the arguments of a call, into `inline` when they fit, else into `arena`; what is to be lent with them goes to `blobs`.
///
/// # Errors
///
/// [`EncodeError`] when they exceed `limit` bytes, there is no memory or their `Serialize` fails.
///
/// # Example
///
/// ```ignore
/// let mut inline = [MaybeUninit::uninit(); INLINE_BODY];
/// let encoded = encode_request(&(2.0, 0.5), &mut inline, 1 << 20, &arena, &mut blobs)?;
/// assert!(matches!(encoded, Encoded::Inline(16)));
/// ```
#[inline(always)]
pub(crate) fn encode_request<A: Serialize + ?Sized>(
    arguments: &A,
    inline: &mut [MaybeUninit<u8>; INLINE_BODY],
    limit: u64,
    arena: &Arena,
    blobs: &mut Blobs,
) -> Result<Encoded, Box<EncodeError>> {
    let slot = NonNull::from(inline).cast::<u8>();
    // SAFETY: `inline` is borrowed mutably for longer than the output lives, and the pointer was made from that borrow; the
    // arena is borrowed for longer, too.
    let mut output = unsafe { Output::new(slot, INLINE_BODY, limit, Some(arena)) };
    output.encode(arguments)?;
    // Not moved as a whole: that would wait for each of its words to be stored.
    if output.is_plain() {
        let len = output.len;
        output.end_plain();
        return Ok(Encoded::Inline(len));
    }
    blobs.extend(output.take_blobs());
    let len = output.len;
    Ok(output.take_spill().map_or(Encoded::Inline(len), Encoded::Spilled))
}

#[cfg(test)]
mod tests;
