//! The tile loops, written once over [`Lanes`].

use super::{Decision, First, OpenRows, Quarters, RefinementTerms, Second, SecondTerms, Test, WideTest, WideTile};
use crate::sketch::TILE;
use crate::sketch::levels::Bounds;

/// WideRows that one register set holds.
pub(super) const ROWS: usize = 16;

const PARTS: usize = TILE / ROWS;

/// Sixteen 32-bit sums, one per row.
///
/// # Safety
/// All methods need the CPU feature of the implementing instruction set; `load` needs 64 readable bytes, `add_pairs` 16
/// readable numbers, `test` 16 at each of the places it names and at `first`; `values`, like `store` and `add_values`,
/// 16 writable ones.
pub(super) trait Lanes {
    type Sums: Copy;
    type Codes: Copy;
    type Four: Copy;
    /// The same number sixteen times.
    unsafe fn start(sum: i32) -> Self::Sums;
    /// Four dims of sixteen rows.
    unsafe fn load(p: *const u8) -> Self::Codes;
    /// Four dims of a query, for every row.
    unsafe fn four(p: *const i8) -> Self::Four;
    /// Adds the products of unsigned rows and signed queries.
    unsafe fn add(sums: Self::Sums, rows: Self::Codes, query: Self::Four) -> Self::Sums;
    /// Adds the products of sixteen rows' pairs of 16-bit numbers (as four bytes each) and a query's pair.
    unsafe fn add_pairs(sums: Self::Sums, rows: *const f32, query: u32) -> Self::Sums;
    /// Bits of the rows whose sum is at least this.
    unsafe fn at_least(sums: Self::Sums, least: i32) -> u16;
    /// Writes the sums.
    unsafe fn store(sums: Self::Sums, into: *mut i32);
    /// Bits of rows surely inside, and of rows not surely outside, by the second level, whose sums go on from the
    /// `first` ones; `GROUP` with the radius and reach of tiles. Writes the values that were tested to `values`, unless
    /// that is null.
    unsafe fn test<const GROUP: bool>(
        sums: Self::Sums,
        first: *const i32,
        terms: *const f32,
        test: &Test,
        values: *mut f32,
    ) -> (u16, u16);
    /// Bits of rows surely inside, and of rows not surely outside, by the test of one of the wide levels; updates
    /// sixteen values, `residuals` has as many readable numbers.
    unsafe fn wide_test(sums: Self::Sums, values: *mut f32, residuals: *const f32, test: &WideTest) -> (u16, u16);
    /// Adds `scale sum` to sixteen values.
    unsafe fn add_values(sums: Self::Sums, scale: f32, values: *mut f32);
}

/// The first level of a tile for all `queries`.
///
/// # Safety
/// As for [`Lanes`], and the lengths that [`super::IntKernels`] checks.
#[inline(always)]
pub(super) unsafe fn first<L: Lanes>(first: &First<'_>, queries: &[u32], open: &mut [u64], kept: &mut [[i32; TILE]]) {
    let mut i = 0;
    // SAFETY: `i` stays below the number of queries, which are as many as there are masks and sums.
    unsafe {
        while i + 4 <= queries.len() {
            first_block::<L, 4>(first, queries, i, open, kept);
            i += 4;
        }
        while i < queries.len() {
            first_block::<L, 1>(first, queries, i, open, kept);
            i += 1;
        }
    }
}

/// # Safety
/// As for [`first`]; there are queries `at..at + Q`.
#[inline(always)]
unsafe fn first_block<L: Lanes, const Q: usize>(
    first: &First<'_>,
    queries: &[u32],
    at: usize,
    open: &mut [u64],
    kept: &mut [[i32; TILE]],
) {
    // SAFETY: the tile and every query have `bytes` codes, every row a pair.
    unsafe {
        let mut terms = [first.query_terms.as_ptr(); Q];
        let mut query = [first.query_codes.as_ptr(); Q];
        let mut sums = [[L::start(0); PARTS]; Q];
        for q in 0..Q {
            let number = *queries.get_unchecked(at + q) as usize;
            terms[q] = terms[q].add(number);
            query[q] = query[q].add(number * first.stride);
            sums[q] = [L::start((*terms[q]).start); PARTS];
        }
        products::<L, Q>(first.codes.as_ptr(), (0, first.bytes), &query, &mut sums);
        for q in 0..Q {
            let terms = &*terms[q];
            let (least, open) = (terms.least_open(first.bounds), open.get_unchecked_mut(at + q));
            let kept = kept.get_unchecked_mut(at + q).as_mut_ptr();
            for p in 0..PARTS {
                L::store(sums[q][p], kept.add(p * ROWS));
                let sums = L::add_pairs(sums[q][p], first.folded.as_ptr().add(p * ROWS), terms.pair);
                super::set(open, p, L::at_least(sums, least));
            }
        }
    }
}

/// The second level of a group of tiles for all `queries`.
///
/// # Safety
/// As for [`Lanes`], and the lengths that [`super::IntKernels`] checks.
#[inline(always)]
pub(super) unsafe fn group<L: Lanes>(second: &Second<'_>, queries: &[u32], out: &mut [Decision]) {
    let mut i = 0;
    // SAFETY: `i` stays below the number of queries, which are as many as there are decisions.
    unsafe {
        while i + 4 <= queries.len() {
            group_block::<L, 4>(second, queries, i, out);
            i += 4;
        }
        while i < queries.len() {
            group_block::<L, 1>(second, queries, i, out);
            i += 1;
        }
    }
}

/// The second level of a tile for those sixteen rows of each query of which some are open. `values` has one entry per
/// query, `quarters` is a buffer.
///
/// # Safety
/// As for [`group`].
#[inline(always)]
pub(super) unsafe fn second<L: Lanes>(
    second: &Second<'_>,
    rows: &OpenRows<'_>,
    out: &mut [Decision],
    values: &mut [[f32; TILE]],
    quarters: &mut Quarters,
) {
    let masks = rows.masks;
    quarters.clear(masks.len());
    // SAFETY: places stay below the number of queries, parts below four.
    unsafe {
        for (four, masks) in masks.chunks(4).enumerate() {
            // With most parts wanted it costs less to do all.
            let wanted: u32 = masks.iter().map(|mask| parts_of(*mask).count_ones()).sum();
            if masks.len() == 4 && wanted > 11 {
                second_block::<L>(second, rows, 4 * four, out, values);
                continue;
            }
            for (q, mask) in masks.iter().enumerate() {
                *out.get_unchecked_mut(4 * four + q) = Decision::default();
                quarters.note(4 * four + q, *mask);
            }
        }
        for (part, places) in quarters.parts() {
            for places in places.chunks(8) {
                if places.len() > 4 {
                    second_part::<L, 8>(second, rows, (part, places), out, values);
                } else {
                    second_part::<L, 4>(second, rows, (part, places), out, values);
                }
            }
        }
    }
}

/// Adds what the codes of queries lose on the leading columns to the values of those sixteen rows in which each has
/// open ones.
///
/// # Safety
/// As for [`group`]; every query with open rows has values.
#[inline(always)]
pub(super) unsafe fn refine<L: Lanes>(
    second: &Second<'_>,
    queries: &[u32],
    quarters: &Quarters,
    values: &mut [[f32; TILE]],
) {
    for (part, places) in quarters.parts() {
        for places in places.chunks(8) {
            // SAFETY: parts are below four, and places are those of queries with values.
            unsafe {
                if places.len() > 4 {
                    refine_part::<L, 8>(second, queries, (part, places), values);
                } else {
                    refine_part::<L, 4>(second, queries, (part, places), values);
                }
            }
        }
    }
}

/// The second level of all rows of a tile for four queries.
///
/// # Safety
/// As for [`group`]; there are queries `at..at + 4`.
#[inline(always)]
unsafe fn second_block<L: Lanes>(
    second: &Second<'_>,
    rows: &OpenRows<'_>,
    at: usize,
    out: &mut [Decision],
    values: &mut [[f32; TILE]],
) {
    // SAFETY: there are queries `at..at + 4`, so every place is below the number of queries; parts are below four.
    unsafe {
        let bounds = Bounds::of(second.terms);
        let places: [u32; 4] = std::array::from_fn(|q| (at + q) as u32);
        let query = query_codes(second.query_codes, second.bytes, rows.queries, &places);
        let mut sums = [[L::start(0); PARTS]; 4];
        for q in 0..4 {
            sums[q] = [L::start(terms_of(second, rows.queries, places[q]).start); PARTS];
        }
        products::<L, 4>(second.codes.as_ptr(), (second.first, second.bytes), &query, &mut sums);
        for q in 0..4 {
            let test = terms_of(second, rows.queries, places[q]).test(bounds);
            let values = values.get_unchecked_mut(at + q).as_mut_ptr();
            let (first, decision) = (first_sums(rows, at + q), out.get_unchecked_mut(at + q));
            for p in 0..PARTS {
                let terms = second.terms.as_ptr().add(p * ROWS);
                let (inside, open) =
                    L::test::<false>(sums[q][p], first.add(p * ROWS), terms, &test, values.add(p * ROWS));
                decision.set(p, inside, open);
            }
        }
    }
}

/// The second level of sixteen rows for at most `Q` queries: as many sums as hide the latency of a product.
///
/// # Safety
/// As for [`group`]; places stay below the number of queries, `part` below four.
#[inline(always)]
unsafe fn second_part<L: Lanes, const Q: usize>(
    second: &Second<'_>,
    rows: &OpenRows<'_>,
    (part, places): (usize, &[u32]),
    out: &mut [Decision],
    values: &mut [[f32; TILE]],
) {
    // SAFETY: places stay below the number of queries and `part` below four, so all reads are within one tile.
    unsafe {
        let codes = second.codes.as_ptr().add(part * ROWS * 4);
        let bounds = Bounds::of(second.terms);
        let at: [u32; Q] = padded(places);
        let mut sums = [L::start(0); Q];
        for c in 0..Q {
            sums[c] = L::start(terms_of(second, rows.queries, at[c]).start);
        }
        let query = query_codes(second.query_codes, second.bytes, rows.queries, &at);
        together::<L, Q>(codes, (second.first, second.bytes), &query, &mut sums);
        for (c, place) in places.iter().enumerate() {
            let test = terms_of(second, rows.queries, *place).test(bounds);
            let values = values.get_unchecked_mut(*place as usize).as_mut_ptr().add(part * ROWS);
            let first = first_sums(rows, *place as usize).add(part * ROWS);
            let (inside, open) =
                L::test::<false>(sums[c], first, second.terms.as_ptr().add(part * ROWS), &test, values);
            out.get_unchecked_mut(*place as usize).set(part, inside, open);
        }
    }
}

/// Adds to the values of sixteen rows what the codes of at most `Q` queries lose on the leading columns.
///
/// # Safety
/// As for [`second_part`].
#[inline(always)]
unsafe fn refine_part<L: Lanes, const Q: usize>(
    second: &Second<'_>,
    queries: &[u32],
    (part, places): (usize, &[u32]),
    values: &mut [[f32; TILE]],
) {
    // SAFETY: places stay below the number of queries and `part` below four, so all reads are within one tile.
    unsafe {
        let codes = second.codes.as_ptr().add(part * ROWS * 4);
        let at: [u32; Q] = padded(places);
        let mut sums = [L::start(0); Q];
        for c in 0..Q {
            sums[c] = L::start(refinement_of(second, queries, at[c]).start);
        }
        let query = query_codes(second.refinement_codes, second.leading, queries, &at);
        together::<L, Q>(codes, (0, second.leading), &query, &mut sums);
        for (c, place) in places.iter().enumerate() {
            let scale = refinement_of(second, queries, *place).scale;
            let values = values.get_unchecked_mut(*place as usize).as_mut_ptr().add(part * ROWS);
            L::add_values(sums[c], scale, values);
        }
    }
}

/// One of the wide levels, for all rows of a tile and all queries of `tile`.
///
/// # Safety
/// As for [`Lanes`], and the lengths that [`super::IntKernels`] checks.
#[inline(always)]
pub(super) unsafe fn wide_tile<L: Lanes>(tile: &WideTile<'_>, values: &mut [[f32; TILE]], out: &mut [Decision]) {
    let mut i = 0;
    // SAFETY: `i` stays below the number of queries, which are as many as there are decisions.
    unsafe {
        while i + 4 <= out.len() {
            wide_tile_block::<L, 4>(tile, i, values, out);
            i += 4;
        }
        while i < out.len() {
            wide_tile_block::<L, 1>(tile, i, values, out);
            i += 1;
        }
    }
}

/// # Safety
/// As for [`wide_tile`]; there are queries `first..first + Q`.
#[inline(always)]
unsafe fn wide_tile_block<L: Lanes, const Q: usize>(
    tile: &WideTile<'_>,
    first: usize,
    values: &mut [[f32; TILE]],
    out: &mut [Decision],
) {
    // SAFETY: the tile has `bytes` codes per row, every query that many from place `from` on, every place has values.
    unsafe {
        let mut query = [tile.query_codes.as_ptr().add(tile.from); Q];
        for q in 0..Q {
            query[q] = query[q].add(*tile.queries.get_unchecked(first + q) as usize * tile.stride);
        }
        let mut sums = [[L::start(0); PARTS]; Q];
        for q in 0..Q {
            sums[q] = [L::start(tile.tests.get_unchecked(first + q).start); PARTS];
        }
        products::<L, Q>(tile.codes.as_ptr(), (0, tile.bytes), &query, &mut sums);
        for q in 0..Q {
            let values = values.get_unchecked_mut(*tile.places.get_unchecked(first + q)).as_mut_ptr();
            let test = tile.tests.get_unchecked(first + q);
            let decision = out.get_unchecked_mut(first + q);
            for p in 0..PARTS {
                let residuals = tile.residuals.as_ptr().add(p * ROWS);
                let (inside, open) = L::wide_test(sums[q][p], values.add(p * ROWS), residuals, test);
                decision.set(p, inside, open);
            }
        }
    }
}

/// Bit `p` says whether a mask has a bit among the sixteen rows of part `p`.
#[inline(always)]
fn parts_of(mask: u64) -> u32 {
    (0..PARTS).fold(0, |m, p| m | u32::from(mask >> (p * ROWS) & 0xffff != 0) << p)
}

/// `Q` places; the last one stands in for those that are missing.
#[inline(always)]
fn padded<const Q: usize>(places: &[u32]) -> [u32; Q] {
    let mut out = [places[places.len() - 1]; Q];
    out[..places.len()].copy_from_slice(places);
    out
}

/// # Safety
/// `at` names queries that are there.
#[inline(always)]
unsafe fn terms_of<'a>(second: &Second<'a>, queries: &[u32], place: u32) -> &'a SecondTerms {
    // SAFETY: queries are numbers of codes, each of which has terms; `place` is below their number.
    unsafe { second.query_terms.get_unchecked(*queries.get_unchecked(place as usize) as usize) }
}

/// # Safety
/// There is a query `place`.
#[inline(always)]
unsafe fn first_sums(rows: &OpenRows<'_>, place: usize) -> *const i32 {
    // SAFETY: places were checked against the sums.
    unsafe { rows.sums.get_unchecked(*rows.places.get_unchecked(place)).as_ptr() }
}

/// # Safety
/// As for [`terms_of`].
#[inline(always)]
unsafe fn refinement_of<'a>(second: &Second<'a>, queries: &[u32], place: u32) -> &'a RefinementTerms {
    // SAFETY: queries are numbers of codes, each of which has terms; `place` is below their number.
    unsafe { second.refinement_terms.get_unchecked(*queries.get_unchecked(place as usize) as usize) }
}

/// # Safety
/// `at` names queries that are there, each with `bytes` codes.
#[inline(always)]
unsafe fn query_codes<const Q: usize>(codes: &[i8], bytes: usize, queries: &[u32], at: &[u32; Q]) -> [*const i8; Q] {
    let mut out = [codes.as_ptr(); Q];
    for c in 0..Q {
        // SAFETY: each query has `bytes` codes, and `at` stays below the number of queries.
        out[c] = unsafe { out[c].add(*queries.get_unchecked(at[c] as usize) as usize * bytes) };
    }
    out
}

/// Adds four dims at a time, from byte `from` to byte `to`, for sixteen rows of a tile and some queries.
///
/// # Safety
/// As for [`group`]; `codes` has a tile of `to` bytes per row from these rows on, each query `to` bytes.
#[inline(always)]
unsafe fn together<L: Lanes, const Q: usize>(
    codes: *const u8,
    (from, to): (usize, usize),
    query: &[*const i8; Q],
    sums: &mut [L::Sums; Q],
) {
    for g in (from..to).step_by(4) {
        // SAFETY: groups of four dims lie 4 * TILE bytes apart.
        unsafe {
            let rows = L::load(codes.add(g * TILE));
            for c in 0..Q {
                sums[c] = L::add(sums[c], rows, L::four(query[c].add(g)));
            }
        }
    }
}

/// Adds four dims at a time, from byte `from` to byte `to` of every code.
///
/// # Safety
/// As for [`group`]; `codes` has a tile of `to` bytes per row, each query `to` bytes.
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
/// As for [`group`]; there are queries `at..at + Q`.
#[inline(always)]
unsafe fn group_block<L: Lanes, const Q: usize>(second: &Second<'_>, queries: &[u32], at: usize, out: &mut [Decision]) {
    // SAFETY: the codes hold `bytes` bytes per tile and query, of which the first level's come first; the terms hold
    // fields of TILE numbers each.
    unsafe {
        let (codes, bounds) = (second.codes.as_ptr(), Bounds::of(second.terms));
        let places: [u32; Q] = std::array::from_fn(|q| (at + q) as u32);
        let query = query_codes(second.query_codes, second.bytes, queries, &places);
        let mut sums = [[L::start(0); PARTS]; Q];
        for q in 0..Q {
            let number = *queries.get_unchecked(at + q) as usize;
            sums[q] = [L::start(second.first_terms.get_unchecked(number).start); PARTS];
        }
        products::<L, Q>(codes, (0, second.first), &query, &mut sums);
        let mut first = [[0; TILE]; Q];
        for q in 0..Q {
            for p in 0..PARTS {
                L::store(sums[q][p], first[q].as_mut_ptr().add(p * ROWS));
            }
            sums[q] = [L::start(terms_of(second, queries, places[q]).start); PARTS];
        }
        products::<L, Q>(codes, (second.first, second.bytes), &query, &mut sums);
        for q in 0..Q {
            let test = terms_of(second, queries, places[q]).test(bounds);
            let decision = out.get_unchecked_mut(at + q);
            for p in 0..PARTS {
                let (first, at) = (first[q].as_ptr().add(p * ROWS), second.terms.as_ptr().add(p * ROWS));
                let (inside, open) = L::test::<true>(sums[q][p], first, at, &test, std::ptr::null_mut());
                decision.set(p, inside, open);
            }
        }
    }
}
