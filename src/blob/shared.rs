//! [`Blob`]: bytes that are lent between processes instead of copied.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::io::{self, Write};
use std::ops::{Bound, Deref, Range, RangeBounds};
use std::ptr::NonNull;
use std::sync::Arc;
use std::{fmt, slice};

use super::arena::Chunk;
use super::exclusive::BlobMut;
use super::limit::Charge;
use crate::parcels::Received;

/// Bytes that nobody changes any more, lent to other processes instead of copied.
///
/// It is made by [`BlobMut::freeze`], arrives in a call, or holds ordinary memory (`Blob::from(vec)`), which is copied into
/// shared memory once it is sent. It is `[u8]` to everybody who reads it: take `&[u8]` once before a loop over single bytes,
/// since each access through the blob asks whether this process was forked.
///
/// Clones and slices share the bytes and hold all of them; the memory is free for other use when the last is dropped, here and
/// in every process that it was lent to. A blob that arrived stays as it is for as long as it is held, whatever becomes of its
/// proxy, its bus and the process that sent it.
///
/// Compared, ordered and hashed by content, as `[u8]`.
///
/// ```
/// use std::io::Write;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bus = objbus::Bus::in_memory();
/// let mut page = bus.alloc(5)?;
/// page.write_all(b"hello")?;
/// let page = page.freeze();
/// let end = page.slice(3..);
/// assert_eq!(end, b"lo");
/// assert_eq!(end.as_ptr(), page[3..].as_ptr()); // the same memory
/// # Ok(()) }
/// ```
///
/// # Panics
///
/// Reading it in a forked child, where shared memory is not mapped. Everything else is harmless there, and dropping it does
/// nothing. A reference into it that was taken before the fork, `Bytes` made of it among them, must not be used in the
/// child: the access ends it.
#[derive(Clone)]
pub struct Blob {
    /// Within what `holder` keeps.
    bytes: NonNull<[u8]>,
    holder: Holder,
}

/// What keeps a blob's bytes where they are, unchanged.
///
/// Its tag takes a word, so that moving a blob moves whole words: the processor forwards no store to a load that straddles two.
#[derive(Clone)]
#[repr(usize)]
pub(crate) enum Holder {
    /// There are none to keep.
    Nobody,
    /// This process' own shared memory: it can be lent.
    Own(Arc<Chunk>),
    /// Another process', lent to this one.
    Lent(Arc<Received>),
    /// Ordinary memory.
    Heap(Arc<Heap>),
}

/// Ordinary memory of a blob.
pub(crate) struct Heap {
    bytes: Vec<u8>,
    /// Of what may be copied on arrival; given back with the memory.
    _charge: Option<Charge>,
}

// SAFETY: a blob is a shared reference to bytes that nobody writes while the holder lives, and every holder is Send and Sync
// (checked below).
unsafe impl Send for Blob {}
// SAFETY: as above.
unsafe impl Sync for Blob {}

const _: () = {
    const fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Holder>();
};

impl Blob {
    /// A blob of no bytes, which holds nothing.
    pub const fn empty() -> Blob {
        Blob { bytes: NonNull::slice_from_raw_parts(NonNull::dangling(), 0), holder: Holder::Nobody }
    }

    /// A blob in this process' ordinary memory, as `Blob::from(vec)` without a vector at hand.
    pub fn copy_of(bytes: &[u8]) -> Blob {
        bytes.to_vec().into()
    }

    /// A range of a chunk that nobody writes from here on.
    pub(super) fn own(chunk: Chunk, range: Range<usize>) -> Blob {
        let bytes = NonNull::from(&chunk.as_slice()[range]);
        if bytes.is_empty() { Blob::empty() } else { Blob { bytes, holder: Holder::Own(Arc::new(chunk)) } }
    }

    /// What another process lends.
    #[inline(always)]
    pub(crate) fn lent(received: Received) -> Blob {
        Blob { bytes: received.bytes(), holder: Holder::Lent(Arc::new(received)) }
    }

    /// A copy of what another process lent, and what was charged for it.
    pub(crate) fn copied(bytes: Vec<u8>, charge: Charge) -> Blob {
        Blob::heap(bytes, Some(charge))
    }

    fn heap(bytes: Vec<u8>, charge: Option<Charge>) -> Blob {
        if bytes.is_empty() {
            return Blob::empty();
        }
        let heap = Arc::new(Heap { bytes, _charge: charge });
        Blob { bytes: NonNull::from(heap.bytes.as_slice()), holder: Holder::Heap(heap) }
    }

    /// Puts what [`into_parts`](Self::into_parts) took apart together.
    pub(crate) fn from_parts(bytes: NonNull<[u8]>, holder: Holder) -> Blob {
        Blob { bytes, holder }
    }

    /// Where the bytes are, and what keeps them.
    pub(crate) fn into_parts(self) -> (NonNull<[u8]>, Holder) {
        (self.bytes, self.holder)
    }

    /// How many bytes it has.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A part of the same bytes, without a copy. All of them are held as long as the part is, unless it is empty.
    ///
    /// # Panics
    ///
    /// If the range does not lie in the blob.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Blob {
        let after = |bound: usize| bound.checked_add(1).expect("a range in a blob ends before usize::MAX");
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&start) => after(start),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&end) => after(end),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => self.len(),
        };
        assert!(
            start <= end && end <= self.len(),
            "the range {start}..{end} does not lie in the blob's {} bytes",
            self.len()
        );
        if start == end {
            return Blob::empty();
        }
        // SAFETY: `start` is at most the length (asserted above), so the pointer stays within what the holder keeps. Nothing
        // is read: a forked child may come here.
        let first = unsafe { self.bytes.cast::<u8>().add(start) };
        Blob { bytes: NonNull::slice_from_raw_parts(first, end - start), holder: self.holder.clone() }
    }

    /// Both parts of the same bytes, without a copy: before `mid`, and from it on.
    ///
    /// # Panics
    ///
    /// If `mid` is larger than the length.
    pub fn split_at(&self, mid: usize) -> (Blob, Blob) {
        (self.slice(..mid), self.slice(mid..))
    }

    /// The blob of what was borrowed from this one, without a copy: to keep what a parser found.
    ///
    /// ```
    /// let line = objbus::Blob::from("name=value");
    /// let value = line.split(|&byte| byte == b'=').nth(1).unwrap();
    /// let value: objbus::Blob = line.slice_ref(value);
    /// assert_eq!(value, "value");
    /// ```
    ///
    /// # Panics
    ///
    /// If `part` has bytes and they do not lie in this blob's.
    pub fn slice_ref(&self, part: &[u8]) -> Blob {
        if part.is_empty() {
            return Blob::empty();
        }
        let start = part.as_ptr().addr().checked_sub(self.bytes.addr().get());
        let start = start.filter(|start| start.saturating_add(part.len()) <= self.len());
        let start = start.expect("what was not borrowed from the blob is no part of it");
        self.slice(start..start + part.len())
    }

    /// Makes the bytes writable again, for the next frame in the same memory.
    ///
    /// The cursor is at their beginning, and what the chunk has behind them is [`capacity`](BlobMut::capacity). Does not block;
    /// a blob lent out is free when every receiver has dropped it.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let bus = objbus::Bus::in_memory();
    /// let frame = bus.alloc(640 * 480)?.freeze();
    /// let shown = frame.clone();
    /// let frame = frame.try_unfreeze().unwrap_err(); // `shown` reads it
    /// drop(shown);
    /// let mut frame = frame.try_unfreeze().unwrap();
    /// frame.fill(0);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// The blob itself, if it is not the only holder of memory that this process has allocated: a clone, a slice or another
    /// process holds it, too, it was lent to this one, lies in ordinary memory, or has no bytes.
    pub fn try_unfreeze(self) -> Result<BlobMut, Blob> {
        let Blob { bytes, holder } = self;
        match holder {
            Holder::Own(chunk) if !chunk.is_inherited() => match Arc::try_unwrap(chunk) {
                Ok(chunk) => {
                    // Of `bytes` only the place is used: a pointer made from `&[u8]` is never written through.
                    let start = bytes.addr().get() - chunk.as_slice().as_ptr().addr();
                    Ok(BlobMut::within(chunk, start, bytes.len()))
                }
                Err(chunk) => Err(Blob { bytes, holder: Holder::Own(chunk) }),
            },
            holder => Err(Blob { bytes, holder }),
        }
    }

    /// Writes all the bytes to a file, a pipe or a socket, from where they lie. Blocks as long as the target does.
    ///
    /// # Errors
    ///
    /// Those of [`Write::write_all`]; how much was written before is not known then.
    pub fn write_to(&self, mut target: impl Write) -> io::Result<()> {
        target.write_all(self)
    }

    fn is_inherited(&self) -> bool {
        match &self.holder {
            Holder::Own(chunk) => chunk.is_inherited(),
            Holder::Lent(received) => received.is_inherited(),
            Holder::Nobody | Holder::Heap(_) => false,
        }
    }
}

impl Deref for Blob {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        assert!(
            !self.is_inherited(),
            "this blob was lent before fork() and is not mapped in the child; open the bus again there"
        );
        // SAFETY: the bytes lie in what the holder keeps, mapped in this process (asserted above) and initialised, and nobody
        // writes them while it lives: an own chunk is written only through `&mut Chunk`, which `try_unfreeze` gets from the
        // last holder alone; a lent one not by an honest lender (SECURITY.md says what trusting the own user's processes with
        // that means); a vector never, since nobody has more than `&Vec` before the last holder gives it up.
        unsafe { slice::from_raw_parts(self.bytes.as_ptr().cast(), self.bytes.len()) }
    }
}

impl AsRef<[u8]> for Blob {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// Equality, order and hash are those of `[u8]`, as a map keyed by blobs and asked with `&[u8]` expects.
impl Borrow<[u8]> for Blob {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl Default for Blob {
    /// [`Blob::empty`].
    fn default() -> Blob {
        Blob::empty()
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.len())
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Blob {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

impl PartialEq<Blob> for [u8] {
    fn eq(&self, other: &Blob) -> bool {
        *self == **other
    }
}

impl PartialEq<Blob> for &[u8] {
    fn eq(&self, other: &Blob) -> bool {
        **self == **other
    }
}

impl Eq for Blob {}

impl<T: AsRef<[u8]> + ?Sized> PartialOrd<T> for Blob {
    fn partial_cmp(&self, other: &T) -> Option<Ordering> {
        (**self).partial_cmp(other.as_ref())
    }
}

impl Ord for Blob {
    fn cmp(&self, other: &Blob) -> Ordering {
        (**self).cmp(other)
    }
}

impl Hash for Blob {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl From<Vec<u8>> for Blob {
    /// Takes the vector over, without a copy.
    fn from(bytes: Vec<u8>) -> Blob {
        Blob::heap(bytes, None)
    }
}

impl From<Box<[u8]>> for Blob {
    /// Takes the box over, without a copy.
    fn from(bytes: Box<[u8]>) -> Blob {
        bytes.into_vec().into()
    }
}

impl From<String> for Blob {
    /// Takes the text over, without a copy.
    fn from(text: String) -> Blob {
        text.into_bytes().into()
    }
}

impl From<&[u8]> for Blob {
    /// Copies.
    fn from(bytes: &[u8]) -> Blob {
        Blob::copy_of(bytes)
    }
}

impl<const N: usize> From<&[u8; N]> for Blob {
    /// Copies.
    fn from(bytes: &[u8; N]) -> Blob {
        Blob::copy_of(bytes)
    }
}

impl From<&str> for Blob {
    /// Copies.
    fn from(text: &str) -> Blob {
        Blob::copy_of(text.as_bytes())
    }
}

impl From<BlobMut> for Blob {
    /// [`BlobMut::freeze`].
    fn from(bytes: BlobMut) -> Blob {
        bytes.freeze()
    }
}

impl From<Blob> for Vec<u8> {
    /// Gives back the vector that the blob was made of, if the blob is all of it and nobody else holds it; copies otherwise.
    fn from(blob: Blob) -> Vec<u8> {
        match blob.holder {
            Holder::Heap(heap) if heap.bytes.len() == blob.bytes.len() => {
                Arc::try_unwrap(heap).map_or_else(|heap| heap.bytes.clone(), |heap| heap.bytes)
            }
            holder => Blob { bytes: blob.bytes, holder }.to_vec(),
        }
    }
}
