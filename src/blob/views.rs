//! Blobs as slices of numbers and structs, by the crate `zerocopy`.

use std::fmt;

use zerocopy::error::CastError;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::exclusive::BlobMut;
use super::shared::Blob;

/// Why bytes cannot be seen as values of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ViewError {
    /// They are no whole number of values.
    Length {
        /// How many bytes there are.
        len: usize,
        /// How many one value has.
        size: usize,
    },
    /// They do not begin at an address that such values may have.
    Alignment {
        /// What the address must be a multiple of, in bytes.
        align: usize,
    },
}

impl ViewError {
    fn of<T, Source>(error: CastError<Source, [T]>, len: usize) -> ViewError {
        match error {
            CastError::Size(_) => ViewError::Length { len, size: size_of::<T>() },
            CastError::Alignment(_) => ViewError::Alignment { align: align_of::<T>() },
        }
    }
}

impl fmt::Display for ViewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ViewError::Length { len, size } => write!(
                f,
                "{len} bytes are no whole number of values of {size} bytes: slice off what does not belong to them"
            ),
            ViewError::Alignment { align } => write!(
                f,
                "the values must begin at a multiple of {align} bytes and do not: slice at such multiples, or copy; memory of a bus begins at a multiple of 64 at least, ordinary memory anywhere"
            ),
        }
    }
}

impl std::error::Error for ViewError {}

impl Blob {
    /// All the bytes as values of one type, in place.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let bus = objbus::Bus::in_memory();
    /// let mut samples = bus.alloc(3 * size_of::<f32>())?;
    /// samples.view_mut::<f32>()?.copy_from_slice(&[0.0, 0.5, 1.0]);
    /// let samples = samples.freeze();
    /// assert_eq!(samples.view::<f32>()?.iter().sum::<f32>(), 1.5);
    /// # Ok(()) }
    /// ```
    ///
    /// Numbers are in this machine's order of bytes.
    ///
    /// # Errors
    ///
    /// [`ViewError`]: the length is no multiple of the type's size, or the bytes are not aligned for it. Those of a bus are,
    /// unless sliced otherwise.
    ///
    /// # Panics
    ///
    /// In a forked child.
    pub fn view<T: FromBytes + Immutable + KnownLayout>(&self) -> Result<&[T], ViewError> {
        view(self)
    }
}

impl BlobMut {
    /// All the bytes as values of one type, see [`Blob::view`]. What nobody has written yet are values, too, unspecified ones.
    ///
    /// # Errors
    ///
    /// As [`Blob::view`].
    ///
    /// # Panics
    ///
    /// In a forked child.
    pub fn view<T: FromBytes + Immutable + KnownLayout>(&self) -> Result<&[T], ViewError> {
        view(self)
    }

    /// All the bytes as values of one type, to be written in place; the cursor stays.
    ///
    /// # Errors
    ///
    /// As [`Blob::view`].
    ///
    /// # Panics
    ///
    /// In a forked child.
    pub fn view_mut<T: FromBytes + IntoBytes + KnownLayout>(&mut self) -> Result<&mut [T], ViewError> {
        let len = self.len();
        if len == 0 {
            return Ok(&mut []); // wherever they lie
        }
        <[T]>::mut_from_bytes(self).map_err(|error| ViewError::of(error, len))
    }
}

fn view<T: FromBytes + Immutable + KnownLayout>(bytes: &[u8]) -> Result<&[T], ViewError> {
    if bytes.is_empty() {
        return Ok(&[]); // wherever they lie
    }
    <[T]>::ref_from_bytes(bytes).map_err(|error| ViewError::of(error, bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bus;

    #[test]
    fn a_view_is_the_same_memory() {
        let bus = Bus::in_memory();
        let mut blob = bus.alloc(32).unwrap();
        blob.view_mut::<u64>().unwrap().copy_from_slice(&[1, 2, 3, u64::MAX]);
        assert_eq!(blob.view::<u64>().unwrap()[3], u64::MAX);
        let blob = blob.freeze();
        let numbers = blob.view::<u64>().unwrap();
        assert_eq!((numbers.as_ptr().cast(), numbers), (blob.as_ptr(), &[1, 2, 3, u64::MAX][..]));
        assert_eq!(blob.slice(8..16).view::<[u64; 1]>().unwrap(), [[2]]);
        assert_eq!(Blob::empty().view::<f64>(), Ok(&[][..]));
    }

    #[test]
    fn a_wrong_length_and_a_wrong_place_are_told() {
        let bus = Bus::in_memory();
        let mut odd = bus.alloc(10).unwrap();
        let length = ViewError::Length { len: 10, size: 4 };
        assert_eq!(odd.view_mut::<f32>(), Err(length.clone()));
        assert_eq!(odd.view::<f32>(), Err(length.clone()));
        assert!(length.to_string().starts_with("10 bytes are no whole number of values of 4 bytes"));
        let odd = odd.freeze();
        assert_eq!(odd.slice(1..9).view::<f32>(), Err(ViewError::Alignment { align: 4 }));
        assert_eq!(odd.slice(4..8).view::<f32>().unwrap().len(), 1);
    }
}
