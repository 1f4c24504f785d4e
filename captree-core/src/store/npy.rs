//! The `.npy` header: always the same bytes for the same dtype and shape, so that reading is comparing.

use super::Element;

/// Data starts at a multiple of this, as NumPy's own files do; mapped at a page, it is the data's alignment in memory.
const ALIGN: usize = 64;

/// Where things are in the `.npy` file of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// The file's first bytes, up to the data.
    pub header: Vec<u8>,
    /// Number of elements, the product of the shape.
    pub len: usize,
    /// Bytes of the whole file.
    pub bytes: usize,
}

impl Layout {
    /// Layout of an array of `T` of this shape; `None` if it is too large for the address space or for the header.
    pub fn of<T: Element>(shape: &[usize]) -> Option<Layout> {
        const {
            assert!(T::DTYPE.size() == size_of::<T>(), "the dtype's size must be the type's");
            assert!(size_of::<T>() > 0 && align_of::<T>() <= ALIGN);
        }
        let header = header(&T::DTYPE.literal(), shape)?;
        let len = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n))?;
        let bytes = len.checked_mul(size_of::<T>())?.checked_add(header.len())?;
        (bytes <= isize::MAX as usize).then_some(Layout { header, len, bytes })
    }
}

fn header(descr: &str, shape: &[usize]) -> Option<Vec<u8>> {
    let mut axes: String = shape.iter().map(|n| format!("{n}, ")).collect();
    // Python writes (3, 4) but (3,).
    axes.truncate(axes.len().saturating_sub(if shape.len() == 1 { 1 } else { 2 }));
    let dict = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': ({axes}), }}");

    const PREFIX: usize = 10;
    let total = (PREFIX + dict.len() + 1).next_multiple_of(ALIGN);
    let dict_bytes = u16::try_from(total - PREFIX).ok()?;
    let mut header = Vec::with_capacity(total);
    header.extend_from_slice(b"\x93NUMPY\x01\x00");
    header.extend_from_slice(&dict_bytes.to_le_bytes());
    header.extend_from_slice(dict.as_bytes());
    header.resize(total - 1, b' ');
    header.push(b'\n');
    Some(header)
}
