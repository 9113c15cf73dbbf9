//! Blobs for those who use the crate `bytes`.

use bytes::buf::UninitSlice;
use bytes::{BufMut, Bytes};

use super::exclusive::BlobMut;
use super::shared::Blob;

impl Blob {
    /// The same bytes as [`Bytes`], without a copy. All of them are held as long as a part of those is.
    ///
    /// ```
    /// let bytes = objbus::Blob::from("hello").into_bytes();
    /// assert_eq!(bytes, "hello");
    /// ```
    ///
    /// # Panics
    ///
    /// In a forked child. The `Bytes` themselves do not notice a fork: in the child, an access to them may end it.
    pub fn into_bytes(self) -> Bytes {
        if self.is_empty() { Bytes::new() } else { Bytes::from_owner(self) }
    }
}

impl From<Blob> for Bytes {
    /// [`Blob::into_bytes`].
    fn from(blob: Blob) -> Bytes {
        blob.into_bytes()
    }
}

impl From<Bytes> for Blob {
    /// A blob in ordinary memory; without a copy if the bytes began as a vector and nobody else holds them.
    fn from(bytes: Bytes) -> Blob {
        Vec::from(bytes).into()
    }
}

// SAFETY: `chunk_mut` gives what lies behind the cursor and has `remaining_mut` bytes, the same until the cursor moves; all of
// them are initialised, so `advance_mut` cannot uncover any that are not.
unsafe impl BufMut for BlobMut {
    fn remaining_mut(&self) -> usize {
        self.len().saturating_sub(self.position())
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        UninitSlice::new(self.room())
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        let left = self.remaining_mut();
        assert!(count <= left, "cannot advance by {count} bytes: {left} are left");
        self.set_position(self.position() + count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bus;

    #[test]
    fn a_blob_and_its_bytes_are_the_same_memory() {
        let bus = Bus::in_memory();
        let mut blob = bus.alloc(10).unwrap();
        blob.copy_from_slice(b"0123456789");
        let blob = blob.freeze();
        let place = blob.as_ptr();
        let bytes = Bytes::from(blob.slice(2..));
        assert_eq!((bytes.as_ptr(), &bytes[..]), (place.wrapping_add(2), &b"23456789"[..]));
        let blob = blob.try_unfreeze().expect_err("the bytes hold it");
        let part = bytes.slice(1..3);
        drop(bytes);
        let blob = blob.try_unfreeze().expect_err("a part of the bytes holds it");
        drop(part);
        assert!(blob.try_unfreeze().is_ok());
        assert!(Blob::empty().into_bytes().is_empty());
    }

    #[test]
    fn bytes_of_a_vector_become_a_blob_without_a_copy() {
        let bytes = Bytes::from(vec![7; 100]);
        let place = bytes.as_ptr();
        assert_eq!(Blob::from(bytes).as_ptr(), place);
        assert_eq!(Blob::from(Bytes::from_static(b"static")), "static");
    }

    #[test]
    fn puts_go_on_at_the_cursor_and_stop_at_the_end() {
        let bus = Bus::in_memory();
        let mut blob = bus.alloc(16).unwrap();
        blob.put_u32(0x0102_0304);
        std::io::Write::write_all(&mut blob, b"ab").unwrap();
        blob.put_slice(b"cd");
        assert_eq!((blob.position(), blob.remaining_mut()), (8, 8));
        blob.put_bytes(7, 8);
        assert!(!blob.has_remaining_mut());
        assert_eq!(&*blob, b"\x01\x02\x03\x04abcd\x07\x07\x07\x07\x07\x07\x07\x07");
        let beyond = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| blob.put_u8(0)));
        assert!(beyond.is_err());
        blob.set_position(100);
        assert_eq!((blob.remaining_mut(), blob.chunk_mut().len()), (0, 0));
    }
}
