//! The tile loops, written once over [`Lanes`].

use super::{Decision, Prefix, QueryTerms, Test};
use crate::sketch::TILE;

/// Rows that one register set holds.
pub(super) const ROWS: usize = 16;

const PARTS: usize = TILE / ROWS;

/// Sixteen 32-bit sums, one per row.
///
/// # Safety
/// All methods need the CPU feature of the implementing instruction set; `load` needs 64 readable bytes, `test` 16
/// readable numbers at each of the places it names and `values`, like `add_values`, 16 writable ones.
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
    /// Multiplies by `2^shift`.
    unsafe fn shift(sums: Self::Sums, shift: u32) -> Self::Sums;
    /// Bits of rows surely inside, and of rows not surely outside, by the test of one level; `GROUP` with the radius and
    /// reach of tiles. Writes the values that were tested to `values`, unless that is null.
    unsafe fn test<const GROUP: bool>(sums: Self::Sums, terms: *const f32, test: &Test, values: *mut f32)
    -> (u16, u16);
    /// Adds `scale (sum + start)` to sixteen values.
    unsafe fn add_values(sums: Self::Sums, start: i32, scale: f32, values: *mut f32);
}

pub(super) const FIRST: u8 = 0;
pub(super) const SECOND: u8 = 1;
pub(super) const GROUP: u8 = 2;

/// One level of a tile for all `queries`; `values` of [`SECOND`] has one entry per query, that of the others none.
///
/// # Safety
/// As for [`Lanes`], and the lengths that [`super::IntKernels`] checks.
#[inline(always)]
pub(super) unsafe fn level<L: Lanes, const LEVEL: u8>(
    prefix: &Prefix<'_>,
    queries: &[u32],
    out: &mut [Decision],
    values: &mut [[f32; TILE]],
) {
    let mut i = 0;
    // SAFETY: forwarded from the caller; `i` stays below the number of queries.
    unsafe {
        while i + 4 <= queries.len() {
            block::<L, LEVEL, 4>(prefix, queries, i, out, values);
            i += 4;
        }
        while i < queries.len() {
            block::<L, LEVEL, 1>(prefix, queries, i, out, values);
            i += 1;
        }
    }
}

/// Adds four dims at a time, from byte `from` to byte `to` of every code.
///
/// # Safety
/// As for [`level`]; `codes` has a tile of `to` bytes per row, each query `to` bytes.
#[inline(always)]
unsafe fn products<L: Lanes, const Q: usize>(
    codes: *const u8,
    (from, to): (usize, usize),
    query: &[*const i8; Q],
    sums: &mut [[L::Sums; PARTS]; Q],
) {
    // SAFETY: groups of four dims lie 4 * TILE bytes apart.
    unsafe {
        let mut rows = codes.add(from * TILE);
        for at in (from..to).step_by(4) {
            let mut codes = [L::load(rows); PARTS];
            for p in 1..PARTS {
                codes[p] = L::load(rows.add(p * ROWS * 4));
            }
            for q in 0..Q {
                let four = L::four(query[q].add(at));
                for p in 0..PARTS {
                    sums[q][p] = L::add(sums[q][p], codes[p], four);
                }
            }
            rows = rows.add(TILE * 4);
        }
    }
}

/// # Safety
/// As for [`level`]; there are queries `first..first + Q`.
#[inline(always)]
unsafe fn block<L: Lanes, const LEVEL: u8, const Q: usize>(
    prefix: &Prefix<'_>,
    queries: &[u32],
    first: usize,
    out: &mut [Decision],
    values: &mut [[f32; TILE]],
) {
    // SAFETY: the codes hold `bytes` bytes per row and query, of which the first level's come first; the terms hold
    // the fields of the level, each TILE numbers.
    unsafe {
        let number = |q: usize| *queries.get_unchecked(first + q) as usize;
        let codes = prefix.codes.as_ptr();
        let query: [*const i8; Q] = std::array::from_fn(|q| prefix.query_codes.as_ptr().add(number(q) * prefix.bytes));
        let mut sums = [[L::zero(); PARTS]; Q];
        products::<L, Q>(codes, (0, prefix.first), &query, &mut sums);
        if LEVEL != FIRST {
            for q in 0..Q {
                let shift = prefix.query_terms.get_unchecked(number(q)).shift;
                for p in 0..PARTS {
                    sums[q][p] = L::shift(sums[q][p], shift);
                }
            }
            products::<L, Q>(codes, (prefix.first, prefix.bytes), &query, &mut sums);
        }
        for q in 0..Q {
            let terms: &QueryTerms = prefix.query_terms.get_unchecked(number(q));
            let test = terms.test::<LEVEL>(prefix.bounds());
            let own =
                if LEVEL == SECOND { values.get_unchecked_mut(first + q).as_mut_ptr() } else { std::ptr::null_mut() };
            let mut decision = Decision::default();
            for p in 0..PARTS {
                let values = if LEVEL == SECOND { own.add(p * ROWS) } else { own };
                let at = prefix.terms.as_ptr().add(p * ROWS);
                let (inside, open) = if LEVEL == GROUP {
                    L::test::<true>(sums[q][p], at, &test, values)
                } else {
                    L::test::<false>(sums[q][p], at, &test, values)
                };
                decision.inside |= u64::from(inside) << (p * ROWS);
                decision.unsure |= u64::from(open & !inside) << (p * ROWS);
            }
            *out.get_unchecked_mut(first + q) = decision;
            if LEVEL == SECOND && decision.unsure != 0 {
                let lead = prefix.lead_codes.as_ptr().add(number(q) * prefix.lead);
                let mut sums = [[L::zero(); PARTS]];
                products::<L, 1>(codes, (0, prefix.lead), &[lead], &mut sums);
                for p in 0..PARTS {
                    L::add_values(sums[0][p], terms.lead_start, terms.lead_scale, own.add(p * ROWS));
                }
            }
        }
    }
}
