//! Integer dot products of a tile of codes with many queries, and the test that follows: one loop, one instantiation
//! per instruction set, chosen once at run time.

#![allow(unsafe_code)]

mod blocks;
mod generic;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod portable;
mod quarters;
mod rows;
mod terms;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod twin;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::sync::OnceLock;

pub(crate) use blocks::Workspace;
pub(crate) use quarters::Quarters;
pub(crate) use terms::{FirstTerms, RefinementTerms, SecondTerms, WideTerms, WideTest};

use blocks::BlockKernels;
use terms::Test;

use super::TILE;
use super::levels::{Bounds, TERMS};
use crate::instructions;

/// WideRows that the loops take at a time.
pub(crate) const QUARTER: usize = 16;

/// One bit per row of a tile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    /// Surely inside.
    pub inside: u64,
    /// Neither surely inside nor surely outside.
    pub unsure: u64,
}

impl Decision {
    /// Nothing is decided.
    pub const OPEN: Decision = Decision { inside: 0, unsure: u64::MAX };

    /// Takes over what was decided of the rows that are open.
    #[inline(always)]
    pub fn then(&mut self, later: Decision) {
        self.inside |= self.unsure & later.inside;
        self.unsure &= later.unsure;
    }

    /// Sets the bits of sixteen rows.
    #[inline(always)]
    fn set(&mut self, part: usize, inside: u16, open: u16) {
        set(&mut self.inside, part, inside);
        set(&mut self.unsure, part, open & !inside);
    }

    /// Adds what was found of one row: whether it is inside, and whether it is not outside.
    #[inline(always)]
    fn add(&mut self, row: usize, (inside, open): (bool, bool)) {
        self.inside |= u64::from(inside) << row;
        self.unsure |= u64::from(open & !inside) << row;
    }
}

/// Sets sixteen bits of a mask: four stores cost less than what puts four parts together.
#[inline(always)]
fn set(mask: &mut u64, part: usize, bits: u16) {
    let at = if cfg!(target_endian = "big") { TILE / QUARTER - 1 - part } else { part };
    bytemuck::cast_mut::<u64, [u16; 4]>(mask)[at] = bits;
}

/// What the first level reads of 64 rows and of the queries.
pub(crate) struct First<'a> {
    /// Codes, interleaved by groups of four dims, `bytes` each.
    pub codes: &'a [u8],
    pub bytes: usize,
    /// From a query's codes to the next one's.
    pub stride: usize,
    /// Two integers per row.
    pub folded: &'a [f32],
    pub bounds: &'a Bounds,
    /// Of all queries: codes, and terms.
    pub query_codes: &'a [i8],
    pub query_terms: &'a [FirstTerms],
}

/// What the second level reads of 64 rows or tiles, and of the queries; its codes hold those of the first level.
pub(crate) struct Second<'a> {
    /// Codes, interleaved by groups of four dims.
    pub codes: &'a [u8],
    /// Fields of 64 numbers each, then [`Bounds`].
    pub terms: &'a [f32],
    /// Bytes of a code that the first level reads, too, of the whole code, and of the columns that are refined.
    pub first: usize,
    pub bytes: usize,
    pub leading: usize,
    /// Of all queries: codes, and terms of both levels.
    pub query_codes: &'a [i8],
    pub first_terms: &'a [FirstTerms],
    pub query_terms: &'a [SecondTerms],
    /// The refinements of their codes, `leading` bytes each, and their terms.
    pub refinement_codes: &'a [i8],
    pub refinement_terms: &'a [RefinementTerms],
}

impl Second<'_> {
    /// # Panics
    /// If lengths do not fit.
    fn check(&self, queries: &[u32]) {
        let (count, parts) = (self.query_terms.len(), [self.first, self.bytes, self.leading]);
        assert!(parts.iter().all(|b| b.is_multiple_of(4) && *b <= self.bytes));
        assert!(self.codes.len() == TILE * self.bytes && self.terms.len() == TERMS);
        assert!(self.query_codes.len() == count * self.bytes && self.first_terms.len() == count);
        assert!(self.refinement_codes.len() == count * self.leading && self.refinement_terms.len() == count);
        assert!(queries.iter().all(|q| (*q as usize) < count));
    }
}

/// What the first level of a matrix unit reads of 64 rows and of the queries: the columns of the first two levels.
pub(crate) struct Joint<'a> {
    /// Codes, interleaved by groups of four dims, `bytes` each, of which the first `split` have a sum of their own.
    pub codes: &'a [u8],
    pub bytes: usize,
    pub split: usize,
    /// Two integers per row: [`super::Fold::pairs`].
    pub pairs: &'a [u32; TILE],
    pub bounds: &'a Bounds,
    /// Of all queries: codes, and terms.
    pub query_codes: &'a [i8],
    pub query_terms: &'a [FirstTerms],
}

/// What a matrix unit reads of all rows of a tile beyond that, and the queries with open rows.
pub(crate) struct FullTile<'a> {
    /// What the third and the fourth level read, interleaved, `stride` bytes per row, of which the third reads the
    /// first `third`.
    pub codes: &'a [u8],
    pub stride: usize,
    pub third: usize,
    /// The leading columns, interleaved, `leading` bytes per row.
    pub leading_codes: &'a [u8],
    pub leading: usize,
    pub bounds: &'a Bounds,
    /// Of all queries: the counterparts of both, and their terms.
    pub query_codes: &'a [i8],
    pub terms: &'a [WideTerms],
    pub refinement_codes: &'a [i8],
    pub refinement_terms: &'a [RefinementTerms],
    /// Numbers of the queries with open rows, ascending, and where the values of each are.
    pub queries: &'a [u32],
    pub places: &'a [usize],
}

/// The queries that have open rows in a tile.
pub(crate) struct OpenRows<'a> {
    /// Numbers of the queries.
    pub queries: &'a [u32],
    /// Of each, these rows.
    pub masks: &'a [u64],
    /// Of each, where the first level's sums are, if no matrix unit gave them.
    pub places: &'a [usize],
    pub sums: &'a [[i32; TILE]],
}

/// What one of the wide levels reads of all rows of a tile, interleaved like those of the second level, and
/// the queries with many open rows.
pub(crate) struct WideTile<'a> {
    pub codes: &'a [u8],
    /// Bytes per row.
    pub bytes: usize,
    /// Of all queries, `stride` codes each, of which the level reads `bytes` from place `from` on.
    pub query_codes: &'a [i8],
    pub stride: usize,
    pub from: usize,
    /// Numbers of these queries, where the values of each are, and their tests.
    pub queries: &'a [u32],
    pub places: &'a [usize],
    pub tests: &'a [WideTest],
    /// What the level's columns leave of the rows.
    pub residuals: &'a [f32],
}

/// What one of the wide levels reads of a tile's rows, one after the other.
pub(crate) struct WideRows<'a> {
    /// Their codes (plus 128), `stride` bytes from row to row; a last tile may have fewer than 64.
    pub codes: &'a [u8],
    pub stride: usize,
    /// What the level's columns leave of them.
    pub residuals: &'a [f32; TILE],
}

type FirstLevel = unsafe fn(&First<'_>, &[u32], &mut [u64], &mut [[i32; TILE]]);
type RowByRow = unsafe fn(&WideRows<'_>, &[i8], u64, &mut [f32; TILE], &WideTest) -> Decision;
type SecondLevel = unsafe fn(&Second<'_>, &OpenRows<'_>, &mut [Decision], &mut [[f32; TILE]], &mut Quarters);
type Refine = unsafe fn(&Second<'_>, &[u32], &Quarters, &mut [[f32; TILE]]);

/// The kernels of one instruction set. Holding one proves that the CPU has it.
#[derive(Clone, Copy)]
pub(crate) struct IntKernels {
    name: &'static str,
    first: FirstLevel,
    second: SecondLevel,
    refine: Refine,
    group: unsafe fn(&Second<'_>, &[u32], &mut [Decision]),
    wide_tile: unsafe fn(&WideTile<'_>, &mut [[f32; TILE]], &mut [Decision]),
    wide_rows: RowByRow,
    interleave: unsafe fn(&[u8], usize, usize, &mut [u8]),
    /// Levels of a matrix unit, if there is one.
    blocks: Option<BlockKernels>,
}

impl IntKernels {
    /// All kernels that this CPU can run, fastest first; the portable one is always last.
    pub fn available() -> Vec<IntKernels> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        found.extend(x86_64::available());
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        found.extend(neon::available());
        found.push(portable::KERNELS);
        found
    }

    /// The same, and those that stand in for a matrix unit.
    #[cfg(test)]
    pub fn tested() -> Vec<IntKernels> {
        let mut found = IntKernels::available();
        found.push(twin::KERNELS);
        found
    }

    /// The kernels that run: the fastest of this CPU, or those that the environment asks for (`instructions.rs`).
    #[inline]
    pub fn get() -> &'static IntKernels {
        static BEST: OnceLock<IntKernels> = OnceLock::new();
        BEST.get_or_init(|| instructions::choose(&IntKernels::available(), |kernels| kernels.name))
    }

    /// The instruction set's name, for reports.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Bit `r` of `open[i]` says that the first level cannot decide row `r` of a tile for query `queries[i]`; `sums[i]`
    /// gets the sums over the codes alone.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn first(&self, first: &First<'_>, queries: &[u32], open: &mut [u64], sums: &mut [[i32; TILE]]) {
        let First { codes, bytes, stride, folded, bounds: _, query_codes, query_terms } = first;
        let count = query_terms.len();
        assert!(bytes.is_multiple_of(4) && codes.len() == TILE * bytes && folded.len() == TILE);
        assert!(query_codes.len() == count * stride && bytes <= stride);
        assert!(queries.iter().all(|q| (*q as usize) < count));
        assert!(open.len() == queries.len() && sums.len() == queries.len());
        // SAFETY: `self` exists only where the CPU has the instruction set; the lengths were checked above.
        unsafe { (self.first)(first, queries, open, sums) }
    }

    /// `out[i]` decides by the second level, for query `i` of those with open rows in a tile, these rows; what it says
    /// of others means nothing. `values[i]` gets the estimates of their dot products.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn second(
        &self,
        second: &Second<'_>,
        rows: &OpenRows<'_>,
        out: &mut [Decision],
        values: &mut [[f32; TILE]],
        quarters: &mut Quarters,
    ) {
        let count = rows.queries.len();
        second.check(rows.queries);
        assert!(out.len() == count && values.len() == count && rows.masks.len() == count && rows.places.len() == count);
        assert!(rows.places.iter().all(|p| *p < rows.sums.len()));
        // SAFETY: `self` exists only where the CPU has the instruction set; the lengths were checked above.
        unsafe { (self.second)(second, rows, out, values, quarters) }
    }

    /// Adds to `values[place]`, for every sixteen rows that `quarters` has for it, what the code of query
    /// `queries[place]` loses on the leading columns.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn refine(&self, second: &Second<'_>, queries: &[u32], quarters: &Quarters, values: &mut [[f32; TILE]]) {
        second.check(queries);
        assert!(values.len() == queries.len());
        assert!(quarters.parts().all(|(_, places)| places.iter().all(|place| (*place as usize) < queries.len())));
        // SAFETY: `self` exists only where the CPU has the instruction set; the lengths were checked above.
        unsafe { (self.refine)(second, queries, quarters, values) }
    }

    /// `out[i]` decides 64 tiles, each as a whole, for query `queries[i]`.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn group(&self, second: &Second<'_>, queries: &[u32], out: &mut [Decision]) {
        second.check(queries);
        assert!(out.len() == queries.len());
        // SAFETY: `self` exists only where the CPU has the instruction set; the lengths were checked above.
        unsafe { (self.group)(second, queries, out) }
    }

    /// Whether there is a matrix unit, so that the levels below can be asked.
    #[inline]
    pub fn has_unit(&self) -> bool {
        self.blocks.is_some()
    }

    /// The same kernels without it.
    pub fn without_unit(self) -> IntKernels {
        IntKernels { blocks: None, ..self }
    }

    /// Bit `r` of `open[i]` says that the first level of the matrix unit cannot decide row `r` of a tile for query
    /// `queries[i]`. `sums` gets the sums over the codes alone, one query behind the other: of all, or of those that
    /// have an open row among those of `kept_if_open`.
    ///
    /// # Panics
    /// If there is no matrix unit, or lengths do not fit.
    pub fn unit_first(
        &self,
        joint: &Joint<'_>,
        queries: &[u32],
        kept_if_open: Option<u64>,
        workspace: &mut Workspace,
        open: &mut [u64],
        sums: &mut [[i32; TILE]],
    ) {
        let Joint { codes, bytes, split, pairs: _, bounds: _, query_codes, query_terms } = joint;
        let count = query_terms.len();
        assert!(split.is_multiple_of(64) && bytes.is_multiple_of(64) && *split > 0 && split <= bytes);
        assert!(codes.len() == TILE * bytes && query_codes.len() == count * bytes);
        assert!(queries.iter().all(|q| (*q as usize) < count) && queries.is_sorted());
        assert!(open.len() == queries.len() && sums.len() == queries.len());
        let unit = self.blocks.expect("a matrix unit");
        // SAFETY: `self` exists only where the CPU has the unit; the lengths were checked above.
        unsafe { (unit.first)(joint, queries, kept_if_open, workspace, open, sums) }
    }

    /// `out[i]` decides by the second level, which takes the sums of the matrix unit's first one, for query `i` of
    /// those with open rows in a tile, these rows; `rows.sums[i]` are its sums. `values[i]` gets the estimates of their
    /// dot products.
    ///
    /// # Panics
    /// If there is no matrix unit, or lengths do not fit.
    pub fn unit_second(
        &self,
        second: &Second<'_>,
        rows: &OpenRows<'_>,
        out: &mut [Decision],
        values: &mut [[f32; TILE]],
    ) {
        let count = rows.queries.len();
        second.check(rows.queries);
        assert!(out.len() == count && values.len() == count && rows.masks.len() == count && rows.sums.len() >= count);
        let unit = self.blocks.expect("a matrix unit");
        // SAFETY: `self` exists only where the CPU has the unit; the lengths were checked above.
        unsafe { (unit.second)(second, rows, out, values) }
    }

    /// `out[i]` decides all rows of a tile by all columns for query `queries[i]`.
    ///
    /// # Panics
    /// If there is no matrix unit, or lengths do not fit.
    pub fn unit_full(
        &self,
        tile: &FullTile<'_>,
        workspace: &mut Workspace,
        values: &[[f32; TILE]],
        out: &mut [Decision],
    ) {
        let (stride, leading, count) = (tile.stride, tile.leading, tile.terms.len());
        assert!([stride, tile.third, leading].iter().all(|bytes| bytes.is_multiple_of(64)));
        assert!(tile.third < stride && leading > 0);
        assert!(tile.codes.len() == TILE * stride && tile.leading_codes.len() == TILE * leading);
        assert!(tile.query_codes.len() == count * stride && tile.refinement_codes.len() == count * leading);
        assert!(tile.refinement_terms.len() == count);
        assert!(tile.queries.iter().all(|q| (*q as usize) < count) && tile.queries.is_sorted());
        assert!(tile.queries.len() == out.len() && tile.places.len() == out.len());
        assert!(tile.places.iter().all(|p| *p < values.len()));
        let unit = self.blocks.expect("a matrix unit");
        // SAFETY: `self` exists only where the CPU has the unit; the lengths were checked above.
        unsafe { (unit.full)(tile, workspace, values, out) }
    }

    /// Hints that `codes` will be read soon.
    #[inline]
    pub fn prefetch(&self, codes: &[u8]) {
        #[cfg(target_arch = "x86_64")]
        x86_64::prefetch(codes);
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        neon::prefetch(codes);
        #[cfg(not(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little"))))]
        let _ = codes;
    }

    /// `out[i]` decides all rows of a tile by one of the wide levels for query `queries[i]`, and updates its values.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn wide_tile(&self, tile: &WideTile<'_>, values: &mut [[f32; TILE]], out: &mut [Decision]) {
        let WideTile { codes, bytes, query_codes, stride, from, queries, places, tests, residuals } = tile;
        assert!(bytes.is_multiple_of(4) && codes.len() == TILE * bytes && residuals.len() == TILE);
        assert!(queries.iter().all(|q| *q as usize * stride + from + bytes <= query_codes.len()));
        assert!(places.iter().all(|p| *p < values.len()));
        assert!(queries.len() == out.len() && places.len() == out.len() && tests.len() == out.len());
        // SAFETY: `self` exists only where the CPU has the instruction set; the lengths were checked above.
        unsafe { (self.wide_tile)(tile, values, out) }
    }

    /// Decides the rows that are bits of `mask` by one of the wide levels, and updates their `values`.
    ///
    /// # Panics
    /// If the query is longer than the stride or no multiple of 64, or `mask` names a row that is not there.
    #[inline]
    pub fn wide_rows(
        &self,
        rows: &WideRows<'_>,
        query: &[i8],
        mask: u64,
        values: &mut [f32; TILE],
        test: &WideTest,
    ) -> Decision {
        let there = TILE - mask.leading_zeros() as usize;
        assert!(query.len().is_multiple_of(64) && query.len() <= rows.stride);
        assert!(there == 0 || rows.codes.len() >= (there - 1) * rows.stride + query.len());
        // SAFETY: `self` exists only where the CPU has the instruction set; the lengths were checked above.
        unsafe { (self.wide_rows)(rows, query, mask, values, test) }
    }

    /// Writes `bytes` bytes of each of at most sixteen rows, which are `stride` apart, interleaved by groups of four,
    /// as those of the first sixteen rows of a tile.
    ///
    /// # Panics
    /// If `bytes` is no multiple of 64, or lengths do not fit.
    pub fn interleave(&self, codes: &[u8], stride: usize, bytes: usize, into: &mut [u8]) {
        let last = (codes.len() + stride - 1) % stride + 1;
        assert!(bytes.is_multiple_of(64) && bytes <= last && !codes.is_empty());
        assert!(into.len() + (TILE - QUARTER) * 4 >= TILE * bytes);
        // SAFETY: `self` exists only where the CPU has the instruction set; the lengths were checked above.
        unsafe { (self.interleave)(codes, stride, bytes, into) }
    }
}
