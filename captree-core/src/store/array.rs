//! Flat arrays, in memory or mapped.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;

use super::checks::{MappedFile, out_of_range};
use crate::control::Control;
use crate::error::Result;
use crate::memory::AlignedVec;

/// A flat array that lives in memory or in a mapped, checksummed file. Clones share the data.
pub struct Array<T> {
    data: Data<T>,
}

enum Data<T> {
    Owned(Arc<AlignedVec<T>>),
    /// The file holds at least `len` elements' bytes, aligned for `T`: see [`Array::mapped`].
    Mapped {
        file: Arc<MappedFile>,
        len: usize,
    },
}

impl<T: Pod + Send + Sync> Array<T> {
    /// An array in memory: a copy of the vector.
    pub fn from_vec(v: Vec<T>) -> Self {
        let mut own = AlignedVec::zeroed(v.len());
        own.copy_from_slice(&v);
        Array::in_memory(own)
    }

    /// An array in memory; the numbers are not copied.
    pub(crate) fn in_memory(numbers: AlignedVec<T>) -> Self {
        Array { data: Data::Owned(Arc::new(numbers)) }
    }

    /// The first `len` elements of a mapped file, whose size and alignment the caller has checked.
    pub(super) fn mapped(file: MappedFile, len: usize) -> Self {
        Array { data: Data::Mapped { file: Arc::new(file), len } }
    }

    /// Number of elements.
    #[inline]
    pub fn len(&self) -> usize {
        match &self.data {
            Data::Owned(v) => v.len(),
            Data::Mapped { len, .. } => *len,
        }
    }

    /// Whether there are no elements.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements of `range`. In a mapped file, chunks that are touched for the first time are checked, on this
    /// thread: before one slice of many gigabytes, [`Array::verify`] does the same in parallel.
    ///
    /// # Errors
    /// [`Corrupt`](crate::error::Error::Corrupt) if a chunk does not match its checksum, or if the range is not inside
    /// a stored array (ranges come from other arrays of the tree, so one of them is wrong);
    /// [`RowOutOfRange`](crate::error::Error::RowOutOfRange) if it is not inside an array in memory.
    #[inline]
    pub fn slice(&self, range: Range<usize>) -> Result<&[T]> {
        match &self.data {
            Data::Owned(v) => v.get(range.clone()).ok_or_else(|| out_of_range(&range, v.len())),
            Data::Mapped { file, len } => {
                if range.start > range.end || range.end > *len {
                    return Err(file.out_of_range(&range, *len));
                }
                let size = size_of::<T>();
                file.data(range.start * size..range.end * size).map(bytemuck::cast_slice)
            }
        }
    }

    /// The element at `i`.
    ///
    /// # Errors
    /// As [`Array::slice`].
    #[inline]
    pub fn get(&self, i: usize) -> Result<T> {
        self.slice(i..i.saturating_add(1)).map(|one| one[0])
    }

    /// Checks every chunk of the file again, in parallel on the current rayon pool, and adds the data bytes done to
    /// `control` ([`Array::byte_len`] in all). Does nothing for arrays that have no stored file.
    ///
    /// # Errors
    /// [`Corrupt`](crate::error::Error::Corrupt) at a chunk that does not match;
    /// [`Interrupted`](crate::error::Error::Interrupted) if `control` was cancelled.
    pub fn verify(&self, control: &Control) -> Result<()> {
        match &self.data {
            Data::Owned(_) => Ok(()),
            Data::Mapped { file, .. } => file.verify(control),
        }
    }

    /// Bytes of the elements.
    pub fn byte_len(&self) -> u64 {
        self.len() as u64 * size_of::<T>() as u64
    }

    /// Whether the elements are in a mapped file rather than in memory.
    pub fn is_mapped(&self) -> bool {
        matches!(self.data, Data::Mapped { .. })
    }

    /// Tells the system that accesses will jump around, where it takes such hints.
    pub fn advise_random(&self) {
        if let Data::Mapped { file, .. } = &self.data {
            file.advise_random();
        }
    }
}

impl<T> Clone for Array<T> {
    fn clone(&self) -> Self {
        let data = match &self.data {
            Data::Owned(v) => Data::Owned(Arc::clone(v)),
            Data::Mapped { file, len } => Data::Mapped { file: Arc::clone(file), len: *len },
        };
        Array { data }
    }
}

impl<T> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (len, place) = match &self.data {
            Data::Owned(v) => (v.len(), "in memory"),
            Data::Mapped { len, .. } => (*len, "mapped"),
        };
        write!(f, "Array<{}>({len}, {place})", std::any::type_name::<T>())
    }
}
