//! The tile loop, written once over [`Lanes`].

use super::{Decision, QueryTerms, Tile};
use crate::sketch::TILE;

/// Rows that one register set holds.
pub(super) const ROWS: usize = 16;

/// Sixteen 32-bit sums, one per row.
///
/// # Safety
/// All methods need the CPU feature of the implementing instruction set; `load` needs 64 readable bytes, `decide` 16
/// readable numbers at each of the six places.
pub(super) trait Lanes {
    type Sums: Copy;
    type Codes: Copy;
    type Four: Copy;
    unsafe fn zero() -> Self::Sums;
    /// Four dims of sixteen rows.
    unsafe fn load(p: *const u8) -> Self::Codes;
    /// Four dims of a query, for every row.
    unsafe fn four(p: *const i8) -> Self::Four;
    /// Adds the products of unsigned rows and signed queries.
    unsafe fn add(sums: Self::Sums, rows: Self::Codes, query: Self::Four) -> Self::Sums;
    /// Bits of rows surely inside, and of rows not surely outside.
    unsafe fn decide(sums: Self::Sums, terms: *const f32, query: &QueryTerms) -> (u16, u16);
}

/// # Safety
/// As for [`Lanes`], and the lengths that [`super::IntKernels::tile`] checks.
#[inline(always)]
pub(super) unsafe fn tile<L: Lanes>(tile: &Tile<'_>, out: &mut [Decision]) {
    let mut i = 0;
    // SAFETY: forwarded from the caller; `i` stays below the number of queries.
    unsafe {
        while i + 4 <= tile.queries.len() {
            block::<L, 4>(tile, i, out);
            i += 4;
        }
        while i < tile.queries.len() {
            block::<L, 1>(tile, i, out);
            i += 1;
        }
    }
}

/// # Safety
/// As for [`tile`]; there are queries `first..first + Q`.
#[inline(always)]
unsafe fn block<L: Lanes, const Q: usize>(tile: &Tile<'_>, first: usize, out: &mut [Decision]) {
    const PARTS: usize = TILE / ROWS;
    // SAFETY: codes hold `bytes / 4` groups of 4 * TILE bytes, each query `bytes` codes, terms six runs of TILE.
    unsafe {
        let mut query = [std::ptr::null::<i8>(); Q];
        for q in 0..Q {
            let number = *tile.queries.get_unchecked(first + q) as usize;
            query[q] = tile.query_codes.as_ptr().add(number * tile.bytes);
        }
        let mut sums = [[L::zero(); PARTS]; Q];
        let mut rows = tile.codes.as_ptr();
        for g in 0..tile.bytes / 4 {
            let mut codes = [L::load(rows); PARTS];
            for p in 1..PARTS {
                codes[p] = L::load(rows.add(p * ROWS * 4));
            }
            for q in 0..Q {
                let four = L::four(query[q].add(g * 4));
                for p in 0..PARTS {
                    sums[q][p] = L::add(sums[q][p], codes[p], four);
                }
            }
            rows = rows.add(TILE * 4);
        }
        for q in 0..Q {
            let number = *tile.queries.get_unchecked(first + q) as usize;
            let terms = tile.query_terms.get_unchecked(number);
            let mut decision = Decision::default();
            for p in 0..PARTS {
                let (inside, open) = L::decide(sums[q][p], tile.terms.as_ptr().add(p * ROWS), terms);
                decision.inside |= u64::from(inside) << (p * ROWS);
                decision.unsure |= u64::from(open & !inside) << (p * ROWS);
            }
            *out.get_unchecked_mut(first + q) = decision;
        }
    }
}
