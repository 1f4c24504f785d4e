//! Memory whose size a caller chooses, asked for politely, so that too much is an error and not the end of the process;
//! and memory that starts at a cache line.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};

use crate::error::{Error, Result};

/// `rows * columns` copies of a value. Errors: [`Error::TooLarge`] if the system has no room for them.
pub(crate) fn filled<T: Clone>(rows: usize, columns: usize, value: T) -> Result<Vec<T>> {
    let mut out = Vec::new();
    let room = rows.checked_mul(columns).is_some_and(|len| out.try_reserve_exact(len).is_ok());
    if !room {
        let bytes = rows as u128 * columns as u128 * size_of::<T>() as u128;
        return Err(Error::TooLarge { bytes });
    }
    out.resize(rows * columns, value);
    Ok(out)
}

/// Bytes that a process may take by default: half of what the machine, and the container that it runs in, has free;
/// none where the system does not tell.
pub fn half_of_free() -> Option<u64> {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let machine = Some(system.available_memory()).filter(|bytes| *bytes > 0);
    let container = system.cgroup_limits().map(|limits| limits.free_memory);
    machine.into_iter().chain(container).min().map(|bytes| bytes / 2)
}

/// A cache line, and what the widest registers hold.
#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Numbers that start at a cache line: a load of a whole register then touches one line, not two. (The crate
/// aligned-vec has such vectors, but writes the zeros of new ones, which the system would give unwritten.)
pub(crate) struct AlignedVec<T> {
    lines: Vec<Line>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Pod> AlignedVec<T> {
    /// So many zeros.
    pub fn zeroed(len: usize) -> Self {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        // What the system hands out is zero already: large ones are not written here.
        AlignedVec { lines: bytemuck::zeroed_vec(lines), len, of: PhantomData }
    }

    /// So many copies of a value.
    pub fn filled(len: usize, value: T) -> Self {
        let mut out = AlignedVec::zeroed(len);
        out.fill(value);
        out
    }

    /// Asks for room for so many at once: later ones are then not moved.
    pub fn reserve(&mut self, len: usize) {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        self.lines.reserve_exact(lines.saturating_sub(self.lines.len()));
    }

    /// Changes their number; the first ones stay, others are zero or what once was there.
    pub fn resize(&mut self, len: usize) {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        if lines > self.lines.len() {
            self.lines.resize(lines, Line::zeroed());
        }
        self.len = len;
    }
}

impl<T> AlignedVec<T> {
    /// Their number.
    pub fn len(&self) -> usize {
        self.len
    }
}

impl<T> Default for AlignedVec<T> {
    fn default() -> Self {
        AlignedVec { lines: Vec::new(), len: 0, of: PhantomData }
    }
}

impl<T: Pod> Deref for AlignedVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let bytes: &[u8] = bytemuck::cast_slice(&self.lines);
        bytemuck::cast_slice(&bytes[..self.len * size_of::<T>()])
    }
}

impl<T: Pod> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.lines);
        bytemuck::cast_slice_mut(&mut bytes[..self.len * size_of::<T>()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_is_an_error() {
        assert_eq!(filled(2, 3, 7).unwrap(), [7; 6]);
        assert!(matches!(filled(usize::MAX, 2, 0i64), Err(Error::TooLarge { .. })));
        assert!(matches!(filled(1, usize::MAX / 16, 0i64), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn numbers_start_at_a_line_and_stay_when_there_are_more() {
        let mut numbers = AlignedVec::<f32>::zeroed(3);
        numbers.copy_from_slice(&[1.0, 2.0, 3.0]);
        numbers.resize(1000);
        assert_eq!((numbers.as_ptr() as usize % 64, numbers.len()), (0, 1000));
        assert_eq!((&numbers[..3], numbers[999]), (&[1.0, 2.0, 3.0][..], 0.0));
        numbers.resize(2);
        assert_eq!(*numbers, [1.0, 2.0]);
    }
}
