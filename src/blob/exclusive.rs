//! [`BlobMut`]: shared memory that is being filled.

use std::fmt;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::{Deref, DerefMut};

use super::arena::{ALIGN_MAX, Arena, Chunk, NoMemory, WaitError};
use super::error::AllocError;
use super::shared::Blob;

/// The least alignment, in bytes: a cache line, and what vector instructions ask for.
const ALIGN_MIN: usize = 64;

/// Shared memory that this process alone fills, before it lends it as a [`Blob`].
///
/// From [`Bus::alloc`](crate::Bus::alloc), or inside a method [`CallContext::alloc`](crate::CallContext::alloc). It is
/// `&mut [u8]`, of exactly the length asked for, aligned to at least 64 bytes. **Its contents are unspecified** until they are
/// written: whatever lay there before, which processes of the user that it is for could read then, too. Dropped, it gives the
/// memory back.
///
/// # The cursor
///
/// [`Write`], [`Seek`], [`read_into`](Self::read_into) and, with the feature `bytes`, `BufMut` go on at a cursor, as those of
/// `Cursor<&mut [u8]>` do: they overwrite, and never make the blob longer. At its end `write` takes 0 bytes, so `write_all`
/// fails with [`WriteZero`](ErrorKind::WriteZero). The cursor begins at 0 and belongs to them alone: the slice is always the
/// whole blob, and so is what is frozen. Who does not know the length beforehand asks for enough and truncates:
///
/// ```
/// use std::io::Write;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bus = objbus::Bus::in_memory();
/// let mut text = bus.alloc(4096)?;
/// write!(text, "{} plus {} is {}", 1, 1, 1 + 1)?;
/// text.truncate(text.position());
/// assert_eq!(text.freeze(), "1 plus 1 is 2");
/// # Ok(()) }
/// ```
///
/// # Panics
///
/// Reading or writing it in a forked child, where it is not mapped; dropping it there does nothing.
#[must_use = "memory that nobody fills is given back at once"]
pub struct BlobMut {
    chunk: Chunk,
    /// Where in the chunk it begins.
    start: usize,
    /// `start + len` is at most the chunk's length.
    len: usize,
    /// The cursor, counted from `start`; may lie beyond `len`.
    position: usize,
}

impl BlobMut {
    /// `len` bytes, aligned to `align` and to at least [`ALIGN_MIN`].
    #[inline]
    pub(crate) fn alloc(arena: &Arena, len: usize, align: usize) -> Result<BlobMut, AllocError> {
        if !align.is_power_of_two() || align > ALIGN_MAX {
            return Err(AllocError::BadAlignment { align });
        }
        let chunk = arena.alloc(len, align.max(ALIGN_MIN)).map_err(|NoMemory| AllocError::NoMemory)?;
        Ok(BlobMut::within(chunk, 0, len))
    }

    /// As [`alloc`](Self::alloc), waiting for memory until `deadline_ns` (CLOCK_MONOTONIC).
    pub(crate) fn alloc_until(arena: &Arena, len: usize, deadline_ns: u64) -> Result<BlobMut, WaitError> {
        Ok(BlobMut::within(arena.alloc_until(len, ALIGN_MIN, deadline_ns)?, 0, len))
    }

    /// A range of a chunk that nobody else refers to.
    #[inline]
    pub(super) fn within(chunk: Chunk, start: usize, len: usize) -> BlobMut {
        BlobMut { chunk, start, len, position: 0 }
    }

    /// How many bytes it has.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes that it can have, see [`set_len`](Self::set_len): what was allocated, from its beginning on.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.chunk.len() - self.start
    }

    /// Shortens it to `len` bytes; does nothing if it has no more. The cursor stays, and the memory is given back with the rest.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Shortens or lengthens it. The contents of what it has more than before are unspecified.
    ///
    /// # Panics
    ///
    /// If `len` is larger than the [`capacity`](Self::capacity).
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} bytes do not fit a capacity of {}", self.capacity());
        self.len = len;
    }

    /// Where the next write goes, in bytes from the beginning; may lie beyond the end, where nothing can be written.
    #[inline]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Moves the cursor, anywhere.
    #[inline]
    pub fn set_position(&mut self, position: usize) {
        self.position = position;
    }

    /// Fills it from a file, a pipe or a socket, from the cursor on, until it is full or the source has ended; returns how many
    /// bytes it read and moves the cursor by them. The source writes straight into the shared memory. Blocks as long as the
    /// source does.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let bus = objbus::Bus::in_memory();
    /// let file = std::fs::File::open("Cargo.toml")?;
    /// let mut text = bus.alloc(file.metadata()?.len() as usize)?;
    /// let read = text.read_into(&file)?;
    /// text.truncate(read); // it may have become shorter meanwhile
    /// assert!(text.starts_with(b"["));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Read::read`], but for `Interrupted`, after which it goes on. What was read before stays, and the cursor says
    /// how much: with a source that does not block, call again after `WouldBlock`.
    pub fn read_into(&mut self, mut source: impl Read) -> io::Result<usize> {
        let begin = self.position;
        loop {
            let room = self.room();
            if room.is_empty() {
                break;
            }
            match source.read(room) {
                Ok(0) => break,
                Ok(read) => {
                    assert!(read <= room.len(), "the source claims to have read more than there is room for");
                    self.position += read;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.position - begin)
    }

    /// Makes all of it a [`Blob`], to be read and lent, without a copy: [`len`](Self::len) bytes wherever the cursor is.
    ///
    /// # Panics
    ///
    /// In a forked child.
    pub fn freeze(self) -> Blob {
        let end = self.start + self.len;
        Blob::own(self.chunk, self.start..end)
    }

    /// What lies behind the cursor.
    pub(super) fn room(&mut self) -> &mut [u8] {
        let begin = self.position.min(self.len);
        &mut self[begin..]
    }
}

impl Deref for BlobMut {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.chunk.as_slice()[self.start..][..self.len]
    }
}

impl DerefMut for BlobMut {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.chunk.as_mut_slice()[self.start..][..self.len]
    }
}

impl AsRef<[u8]> for BlobMut {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for BlobMut {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl fmt::Debug for BlobMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobMut({} bytes, cursor at {})", self.len, self.position)
    }
}

impl Write for BlobMut {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.room().write(bytes)?;
        self.position += written;
        Ok(written)
    }

    /// There is nothing to flush.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for BlobMut {
    /// Moves the cursor, also beyond the end.
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => (self.len as u64).checked_add_signed(by),
            SeekFrom::Current(by) => (self.position as u64).checked_add_signed(by),
        };
        let target = target.and_then(|target| usize::try_from(target).ok()).ok_or_else(|| {
            io::Error::new(
                ErrorKind::InvalidInput,
                "the position is negative, or beyond what a length can be",
            )
        })?;
        self.position = target;
        Ok(target as u64)
    }
}
