//! The tile loops, written once over [`Lanes`].

use super::{Decision, Dense, FullTest, Part, Prefix, QueryTerms, Test};
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
    /// Bits of rows surely inside, and of rows not surely outside, at full width; `values` has sixteen readable numbers.
    unsafe fn full_test(sums: Self::Sums, values: *const f32, test: &FullTest) -> (u16, u16);
    /// Adds `scale (sum + start)` to sixteen values.
    unsafe fn add_values(sums: Self::Sums, start: i32, scale: f32, values: *mut f32);
}

pub(super) const FIRST: u8 = 0;
pub(super) const SECOND: u8 = 1;
pub(super) const GROUP: u8 = 2;

/// The first level of a tile, or that of a group of tiles, for all `queries`.
///
/// # Safety
/// As for [`Lanes`], and the lengths that [`super::IntKernels`] checks.
#[inline(always)]
pub(super) unsafe fn level<L: Lanes, const LEVEL: u8>(prefix: &Prefix<'_>, queries: &[u32], out: &mut [Decision]) {
    let mut i = 0;
    // SAFETY: forwarded from the caller; `i` stays below the number of queries.
    unsafe {
        while i + 4 <= queries.len() {
            block::<L, LEVEL, 4>(prefix, queries, i, out, &mut []);
            i += 4;
        }
        while i < queries.len() {
            block::<L, LEVEL, 1>(prefix, queries, i, out, &mut []);
            i += 1;
        }
    }
}

/// The second level of a tile for those sixteen rows of each query of which `masks` has a bit; then what the query's leading
/// codes lost, for those of which some row stays open. `values` has one entry per query, `parts` is a buffer.
///
/// # Safety
/// As for [`level`].
#[inline(always)]
pub(super) unsafe fn second<L: Lanes>(
    prefix: &Prefix<'_>,
    queries: &[u32],
    masks: &[u64],
    out: &mut [Decision],
    values: &mut [[f32; TILE]],
    parts: &mut Vec<Part>,
) {
    parts.clear();
    // SAFETY: forwarded from the caller; places stay below the number of queries, parts below four.
    unsafe {
        for (block_number, masks) in masks.chunks(4).enumerate() {
            let first = 4 * block_number;
            let before = parts.len();
            for (q, mask) in masks.iter().enumerate() {
                open_parts(parts, first + q, *mask);
                *out.get_unchecked_mut(first + q) = Decision::default();
            }
            // With most parts wanted it costs less to do all.
            if masks.len() == 4 && parts.len() - before > 8 {
                parts.truncate(before);
                block::<L, SECOND, 4>(prefix, queries, first, out, values);
            }
        }
        for four in parts.chunks(4) {
            let mut sums = [L::zero(); 4];
            let at = places(four);
            let query = query_codes(prefix.query_codes, prefix.bytes, queries, &at);
            scattered::<L>(prefix.codes.as_ptr(), (0, prefix.first), &query, &at, &mut sums);
            for c in 0..4 {
                sums[c] = L::shift(sums[c], terms_of(prefix, queries, at[c]).shift);
            }
            scattered::<L>(prefix.codes.as_ptr(), (prefix.first, prefix.bytes), &query, &at, &mut sums);
            for (c, (place, part)) in four.iter().enumerate() {
                let test = terms_of(prefix, queries, at[c]).test::<SECOND>(prefix.bounds());
                let own = values.get_unchecked_mut(*place as usize).as_mut_ptr().add(*part as usize * ROWS);
                let terms = prefix.terms.as_ptr().add(*part as usize * ROWS);
                let (inside, open) = L::test::<false>(sums[c], terms, &test, own);
                let decision = out.get_unchecked_mut(*place as usize);
                decision.inside |= u64::from(inside) << (*part as usize * ROWS);
                decision.unsure |= u64::from(open & !inside) << (*part as usize * ROWS);
            }
        }
        parts.clear();
        for (place, (decision, mask)) in out.iter().zip(masks).enumerate() {
            open_parts(parts, place, decision.unsure & mask);
        }
        for four in parts.chunks(4) {
            let mut sums = [L::zero(); 4];
            let at = places(four);
            let query = query_codes(prefix.lead_codes, prefix.lead, queries, &at);
            scattered::<L>(prefix.codes.as_ptr(), (0, prefix.lead), &query, &at, &mut sums);
            for (c, (place, part)) in four.iter().enumerate() {
                let terms = terms_of(prefix, queries, at[c]);
                let own = values.get_unchecked_mut(*place as usize).as_mut_ptr().add(*part as usize * ROWS);
                L::add_values(sums[c], terms.lead_start, terms.lead_scale, own);
            }
        }
    }
}

/// The full width of a tile for all queries of `dense`.
///
/// # Safety
/// As for [`Lanes`], and the lengths that [`super::IntKernels`] checks.
#[inline(always)]
pub(super) unsafe fn dense<L: Lanes>(dense: &Dense<'_>, values: &[[f32; TILE]], out: &mut [Decision]) {
    let mut i = 0;
    // SAFETY: forwarded from the caller; `i` stays below the number of queries.
    unsafe {
        while i + 4 <= out.len() {
            dense_block::<L, 4>(dense, i, values, out);
            i += 4;
        }
        while i < out.len() {
            dense_block::<L, 1>(dense, i, values, out);
            i += 1;
        }
    }
}

/// # Safety
/// As for [`dense`]; there are queries `first..first + Q`.
#[inline(always)]
unsafe fn dense_block<L: Lanes, const Q: usize>(
    dense: &Dense<'_>,
    first: usize,
    values: &[[f32; TILE]],
    out: &mut [Decision],
) {
    // SAFETY: the tile and every query have `bytes` codes per row, every place has values.
    unsafe {
        let mut query = [dense.query_codes.as_ptr(); Q];
        for q in 0..Q {
            query[q] = query[q].add(*dense.queries.get_unchecked(first + q) as usize * dense.bytes);
        }
        let mut sums = [[L::zero(); PARTS]; Q];
        products::<L, Q>(dense.codes.as_ptr(), (0, dense.bytes), &query, &mut sums);
        for q in 0..Q {
            let values = values.get_unchecked(*dense.places.get_unchecked(first + q)).as_ptr();
            let test = dense.tests.get_unchecked(first + q);
            let mut decision = Decision::default();
            for p in 0..PARTS {
                let (inside, open) = L::full_test(sums[q][p], values.add(p * ROWS), test);
                decision.inside |= u64::from(inside) << (p * ROWS);
                decision.unsure |= u64::from(open & !inside) << (p * ROWS);
            }
            *out.get_unchecked_mut(first + q) = decision;
        }
    }
}

/// Adds the parts of a tile in which a mask has bits.
#[inline(always)]
fn open_parts(parts: &mut Vec<Part>, place: usize, mask: u64) {
    for part in 0..PARTS {
        if mask >> (part * ROWS) & 0xffff != 0 {
            parts.push((place as u32, part as u32));
        }
    }
}

/// Four parts; the last one stands in for those that are missing.
#[inline(always)]
fn places(parts: &[Part]) -> [Part; 4] {
    let mut out = [parts[parts.len() - 1]; 4];
    out[..parts.len()].copy_from_slice(parts);
    out
}

/// # Safety
/// `at` names queries that are there.
#[inline(always)]
unsafe fn terms_of<'a>(prefix: &Prefix<'a>, queries: &[u32], at: Part) -> &'a QueryTerms {
    // SAFETY: forwarded from the caller.
    unsafe { prefix.query_terms.get_unchecked(*queries.get_unchecked(at.0 as usize) as usize) }
}

/// # Safety
/// `at` names queries that are there, each with `bytes` codes.
#[inline(always)]
unsafe fn query_codes(codes: &[i8], bytes: usize, queries: &[u32], at: &[Part; 4]) -> [*const i8; 4] {
    let mut out = [codes.as_ptr(); 4];
    for c in 0..4 {
        // SAFETY: forwarded from the caller.
        out[c] = unsafe { out[c].add(*queries.get_unchecked(at[c].0 as usize) as usize * bytes) };
    }
    out
}

/// Adds four dims at a time, from byte `from` to byte `to`, for four parts of a tile, each with a query of its own.
///
/// # Safety
/// As for [`level`]; `codes` has a tile of `to` bytes per row, each query `to` bytes.
#[inline(always)]
unsafe fn scattered<L: Lanes>(
    codes: *const u8,
    (from, to): (usize, usize),
    query: &[*const i8; 4],
    at: &[Part; 4],
    sums: &mut [L::Sums; 4],
) {
    let mut g = from;
    while g < to {
        for c in 0..4 {
            // SAFETY: groups of four dims lie 4 * TILE bytes apart, parts 4 * ROWS.
            unsafe {
                let rows = L::load(codes.add(g * TILE + at[c].1 as usize * ROWS * 4));
                sums[c] = L::add(sums[c], rows, L::four(query[c].add(g)));
            }
        }
        g += 4;
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
        }
    }
}
