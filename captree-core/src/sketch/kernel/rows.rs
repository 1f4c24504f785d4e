//! The wide levels' codes, which lie row by row, in plain Rust.

use super::generic::ROWS;
use super::{Decision, WideRows, WideTest};
use crate::sketch::TILE;

/// Decides the rows of `mask`, given how a row and a query of the same length are multiplied.
///
/// # Safety
/// As for [`super::IntKernels::wide_rows`], and what `dot` needs.
#[inline(always)]
pub(super) unsafe fn one_by_one(
    rows: &WideRows<'_>,
    query: &[i8],
    mask: u64,
    values: &mut [f32; TILE],
    test: &WideTest,
    dot: unsafe fn(&[u8], &[i8]) -> i32,
) -> Decision {
    let (mut decision, mut left) = (Decision::default(), mask);
    while left != 0 {
        let r = left.trailing_zeros() as usize;
        left &= left - 1;
        // SAFETY: the processor has what `dot` needs, and both have the length of the query.
        let sum = unsafe { dot(&rows.codes[r * rows.stride..][..query.len()], query) };
        decision.add(r, test.decide(sum, &mut values[r], rows.residuals[r]));
    }
    decision
}

/// Copies four bytes at a time.
///
/// # Safety
/// The lengths that [`super::IntKernels`] checks.
pub(super) unsafe fn interleave(codes: &[u8], stride: usize, bytes: usize, into: &mut [u8]) {
    for (r, row) in codes.chunks(stride).take(ROWS).enumerate() {
        for (group, four) in row[..bytes].chunks_exact(4).enumerate() {
            let at = (group * TILE + r) * 4;
            into[at..at + 4].copy_from_slice(four);
        }
    }
}
