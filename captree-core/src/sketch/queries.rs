//! The codes of queries: centers of caps, each with a threshold that the dot products of rows are compared with.

use rayon::prelude::*;

use super::encode::{Sketch, split};
use super::fold::FirstThreshold;
use super::kernel::{First, FirstTerms, FullTile, IntKernels, Joint, RefinementTerms, Second, SecondTerms, WideTerms};
use super::levels::{Bounds, TERMS, field, padded, refined_width, third_bytes, wide_bytes};
use super::terms::{Codes, Terms, encode};
use super::{TILE, Widths, up};
use crate::caps::Caps;
use crate::error::Result;
use crate::memory::AlignedVec;
use crate::store::Array;

/// Columns that a matrix unit reads at a time, and queries from which it pays.
const UNIT_COLUMNS: usize = 64;
const FEWEST: usize = 12;

/// Queries that are encoded together: their projections share the basis.
const AT_ONCE: usize = 32;

/// Codes and terms of a batch of queries, numbered from 0, against the rows of one sketch.
pub(crate) struct QueryCodes<'a> {
    sketch: &'a Sketch,
    kernels: IntKernels,
    /// With a matrix unit: leading columns whose sum is one of its own.
    unit_split: Option<usize>,
    /// What rounding and the basis may hide.
    slack: Vec<f64>,
    /// Codes of the first level's columns and of those that the second one adds, [`padded`] bytes each.
    codes: Vec<i8>,
    first_terms: Vec<FirstTerms>,
    first_thresholds: Vec<FirstThreshold>,
    second_terms: Vec<SecondTerms>,
    /// What these codes lose on the leading columns.
    refinement_codes: Vec<i8>,
    refinement_terms: Vec<RefinementTerms>,
    /// The counterparts of the rows' wide codes.
    wide_codes: AlignedVec<i8>,
    wide_terms: Vec<WideTerms>,
}

impl<'a> QueryCodes<'a> {
    /// Encodes the caps `active` of a batch.
    pub fn new(sketch: &'a Sketch, caps: &Caps<'_>, active: &[usize]) -> Self {
        let kernels = *IntKernels::get();
        // A matrix unit takes 32 at a time.
        let kernels = if active.len() < FEWEST { kernels.without_unit() } else { kernels };
        QueryCodes::with(kernels, sketch, caps, active)
    }

    /// The same with kernels of the caller's choice.
    pub fn with(kernels: IntKernels, sketch: &'a Sketch, caps: &Caps<'_>, active: &[usize]) -> Self {
        let basis = &sketch.basis;
        let Widths { first, second, .. } = basis.widths;
        let fits = second > 0 && second.is_multiple_of(UNIT_COLUMNS);
        let unit_split = (kernels.has_unit() && fits).then(|| first.next_multiple_of(UNIT_COLUMNS).min(second));
        let (leading, interleaved) = (padded(refined_width(second)), padded(second));
        let (count, wide) = (active.len(), wide_bytes(basis.widths));
        let mut queries = QueryCodes {
            sketch,
            kernels,
            unit_split,
            slack: Vec::with_capacity(count),
            codes: vec![0; count * interleaved],
            first_terms: Vec::with_capacity(count),
            first_thresholds: Vec::with_capacity(count),
            second_terms: Vec::with_capacity(count),
            refinement_codes: vec![0; count * leading],
            refinement_terms: Vec::with_capacity(count),
            wide_codes: AlignedVec::zeroed(count * wide),
            wide_terms: Vec::with_capacity(count),
        };
        let parts: Vec<Vec<Terms>> = active
            .par_chunks(AT_ONCE)
            .zip(queries.codes.par_chunks_mut(AT_ONCE * interleaved))
            .zip(queries.refinement_codes.par_chunks_mut(AT_ONCE * leading))
            .zip(queries.wide_codes.par_chunks_mut(AT_ONCE * wide))
            .map(|(((active, codes), refinement_codes), wide_codes)| {
                let centers: Vec<&[f32]> = active.iter().map(|c| caps.center(*c)).collect();
                let along = |q: &&[f32]| {
                    if basis.mean_square > 0.0 { super::basis::dot(q, &basis.mean) / basis.mean_square } else { 0.0 }
                };
                let along: Vec<f64> = centers.iter().map(along).collect();
                let codes = codes
                    .chunks_mut(interleaved)
                    .zip(refinement_codes.chunks_mut(leading))
                    .zip(wide_codes.chunks_mut(wide))
                    .map(|((interleaved, refinement), wide)| Codes { interleaved, refinement, wide });
                let splits = split(basis, &centers, |i| along[i]);
                let each = splits.iter().zip(&along).zip(codes);
                each.map(|((split, along), codes)| encode(sketch, split, *along, unit_split, codes)).collect()
            })
            .collect();
        for (i, (terms, cap)) in parts.into_iter().flatten().zip(active).enumerate() {
            queries.slack.push(terms.slack);
            queries.first_terms.push(terms.first);
            queries.first_thresholds.push(terms.first_threshold);
            queries.second_terms.push(terms.second);
            queries.refinement_terms.push(terms.refinement);
            queries.wide_terms.push(terms.wide);
            queries.set_threshold(i, 1.0 - caps.bound(*cap));
        }
        queries
    }

    /// Moves the threshold of query `i` to `real dot >= threshold`.
    pub fn set_threshold(&mut self, i: usize, threshold: f64) {
        let inside = up(threshold + self.slack[i]);
        let outside = -up(self.slack[i] - threshold);
        let Widths { first, second, .. } = self.sketch.basis.widths;
        let columns = if self.unit_split.is_some() { second } else { first };
        let codes = &mut self.codes[i * padded(second)..][..padded(columns)];
        self.first_thresholds[i].set(threshold, &mut self.first_terms[i], &mut self.second_terms[i], codes);
        (self.second_terms[i].inside, self.second_terms[i].outside) = (inside, outside);
        (self.wide_terms[i].inside, self.wide_terms[i].outside) = (inside, outside);
    }

    /// The kernels that multiply these codes.
    #[inline]
    pub fn kernels(&self) -> &IntKernels {
        &self.kernels
    }

    /// How many columns each level reads.
    #[inline]
    pub fn widths(&self) -> Widths {
        self.sketch.basis.widths
    }

    /// What the first two levels read of 64 tiles.
    pub fn tiles(&self, group: usize) -> Result<Second<'_>> {
        self.second(&self.sketch.tile_codes, &self.sketch.tile_terms, group)
    }

    /// What the first two levels read of the rows of a tile.
    pub fn rows(&self, tile: usize) -> Result<Second<'_>> {
        self.second(&self.sketch.row_codes, &self.sketch.row_terms, tile)
    }

    fn second<'b>(&'b self, codes: &'b Array<u8>, terms: &'b Array<f32>, number: usize) -> Result<Second<'b>> {
        let widths = self.sketch.basis.widths;
        let size = TILE * padded(widths.second);
        Ok(Second {
            codes: codes.slice(number * size..(number + 1) * size)?,
            terms: terms.slice(number * TERMS..(number + 1) * TERMS)?,
            first: self.unit_split.unwrap_or(padded(widths.first)),
            bytes: padded(widths.second),
            leading: padded(refined_width(widths.second)),
            query_codes: &self.codes,
            first_terms: &self.first_terms,
            query_terms: &self.second_terms,
            refinement_codes: &self.refinement_codes,
            refinement_terms: &self.refinement_terms,
        })
    }

    /// What the first level reads of the rows of a tile.
    pub fn first<'b>(&'b self, rows: &Second<'b>) -> First<'b> {
        First {
            codes: &rows.codes[..TILE * rows.first],
            bytes: rows.first,
            stride: rows.bytes,
            folded: &rows.terms[field::FOLDED..][..TILE],
            bounds: Bounds::of(rows.terms),
            query_codes: &self.codes,
            query_terms: &self.first_terms,
        }
    }

    /// With a matrix unit: leading columns whose sum is one of its own.
    pub fn unit_split(&self) -> Option<usize> {
        self.unit_split
    }

    /// The two integers of each row of a tile that its first level reads with a matrix unit.
    pub fn pairs(&self, rows: &Second<'_>, pairs: &mut [u32; TILE]) {
        self.sketch.fold.pairs(rows.terms, pairs);
    }

    /// What the first level reads of the rows of a tile with a matrix unit.
    pub fn joint<'b>(&'b self, rows: &Second<'b>, pairs: &'b [u32; TILE]) -> Joint<'b> {
        Joint {
            codes: rows.codes,
            bytes: rows.bytes,
            split: rows.first,
            pairs,
            bounds: Bounds::of(rows.terms),
            query_codes: &self.codes,
            query_terms: &self.first_terms,
        }
    }

    /// What a matrix unit reads of the rows of a tile beyond that, given their wide codes, interleaved.
    pub fn full<'b>(
        &'b self,
        rows: &Second<'b>,
        wide: &'b [u8],
        (queries, places): (&'b [u32], &'b [usize]),
    ) -> FullTile<'b> {
        FullTile {
            codes: wide,
            stride: wide_bytes(self.sketch.basis.widths),
            third: third_bytes(self.sketch.basis.widths),
            leading_codes: &rows.codes[..TILE * rows.leading],
            leading: rows.leading,
            bounds: Bounds::of(rows.terms),
            query_codes: &self.wide_codes,
            terms: &self.wide_terms,
            refinement_codes: &self.refinement_codes,
            refinement_terms: &self.refinement_terms,
            queries,
            places,
        }
    }

    /// All bits, if rows that the first level decides for a query lie inside, none if outside.
    #[inline]
    pub fn first_inside(&self, query: u32) -> u64 {
        self.first_terms[query as usize].inside
    }

    /// Wide codes of the rows of a tile, [`wide_bytes`] from one to the next.
    #[inline]
    pub fn wide_rows(&self, tile: usize) -> Result<&[u8]> {
        let (codes, size) = (&self.sketch.wide_codes, TILE * wide_bytes(self.sketch.basis.widths));
        codes.slice(tile * size..codes.len().min((tile + 1) * size))
    }

    /// Wide codes of all queries, [`wide_bytes`] from one to the next.
    #[inline]
    pub fn wide_codes(&self) -> &[i8] {
        &self.wide_codes
    }

    /// What the wide levels need of a query beside its code.
    #[inline]
    pub fn wide_terms(&self, query: u32) -> &WideTerms {
        &self.wide_terms[query as usize]
    }
}
