//! The query side: codes and terms of a batch of caps, and the decisions of each level.

use std::ops::Range;

use super::encode::{Sketch, full_width, inverse, nearest, padded};
use super::kernel::{Decision, IntKernels, QueryTerms};
use super::{TERMS, TILE, Terms, up};
use crate::caps::Caps;
use crate::error::Result;
use crate::vectors::NORM_SLACK;

/// Bytes of a cache line; a full-width code is a whole number of them.
const LINE: usize = 64;

/// Slack for the float32 arithmetic of a test, and for `<q', mu>`, which is zero but for rounding. With a mean of at least
/// 0.05, `lambda` is at most about 20 and the terms of a value at most 8.5 in all: its roundings sum up to less than
/// 112 * 2^-24 = 6.7e-6.
const FLOAT_SLACK: f64 = 1e-5;

/// At least |x - mu| of any row and |q'| of any center: both are unit within 2^-6, the mean is at most 1.1 long.
const LONGEST: f64 = 2.2;

/// Sketches of a batch of caps.
pub(crate) struct Queries<'a> {
    sketch: &'a Sketch,
    kernels: IntKernels,
    /// Prefix codes, [`padded`] bytes each.
    prefix_codes: Vec<i8>,
    prefix_terms: Vec<QueryTerms>,
    full_codes: Vec<i8>,
    full_terms: Vec<QueryTerms>,
}

impl<'a> Queries<'a> {
    /// Encodes the caps `active` of a batch.
    pub fn new(sketch: &'a Sketch, caps: &Caps<'_>, active: &[usize]) -> Self {
        Queries::with(*IntKernels::get(), sketch, caps, active)
    }

    /// The same with kernels of the caller's choice.
    pub fn with(kernels: IntKernels, sketch: &'a Sketch, caps: &Caps<'_>, active: &[usize]) -> Self {
        let basis = &sketch.basis;
        let (dim, width) = (basis.dim, basis.width);
        let centers: Vec<&[f32]> = active.iter().map(|c| caps.center(*c)).collect();
        let along: Vec<f64> = centers
            .iter()
            .map(|q| if basis.mean_square > 0.0 { super::basis::dot(q, &basis.mean) / basis.mean_square } else { 0.0 })
            .collect();
        let mut projected = vec![0.0f32; centers.len() * width];
        for (t, chunk) in centers.chunks(TILE).enumerate() {
            let out = &mut projected[t * TILE * width..][..chunk.len() * width];
            basis.project(chunk, |i| along[t * TILE + i], out);
        }
        let mut queries = Queries {
            sketch,
            kernels,
            prefix_codes: vec![0; centers.len() * padded(width)],
            prefix_terms: Vec::with_capacity(centers.len()),
            full_codes: vec![0; centers.len() * full_width(dim)],
            full_terms: Vec::with_capacity(centers.len()),
        };
        let mut rest = vec![0.0f64; dim];
        for (i, cap) in active.iter().enumerate() {
            for ((r, q), m) in rest.iter_mut().zip(centers[i]).zip(&basis.mean) {
                *r = f64::from(*q) - along[i] * f64::from(*m);
            }
            let square: f64 = rest.iter().map(|x| x * x).sum();
            let projection = &projected[i * width..(i + 1) * width];
            let residual = basis.residual(square, projection) * (1.0 + NORM_SLACK);
            let a: Vec<f64> = projection.iter().map(|x| f64::from(*x)).collect();
            let a_length = a.iter().map(|x| x * x).sum::<f64>().sqrt();
            let offset = along[i] * basis.mean_square;
            let threshold = 1.0 - caps.bound(*cap);
            let prefix = &mut queries.prefix_codes[i * padded(width)..(i + 1) * padded(width)];
            let slack = FLOAT_SLACK + basis.defect(a_length, LONGEST);
            queries.prefix_terms.push(encode(&a, offset, along[i], residual, threshold, slack, prefix));
            let full = &mut queries.full_codes[i * full_width(dim)..(i + 1) * full_width(dim)];
            queries.full_terms.push(encode(&rest, offset, along[i], 0.0, threshold, FLOAT_SLACK, full));
        }
        queries
    }

    /// Moves the threshold of query `i` to `real dot >= threshold`.
    pub fn set_threshold(&mut self, i: usize, threshold: f64) {
        self.prefix_terms[i].set_threshold(threshold);
        self.full_terms[i].set_threshold(threshold);
    }

    /// Decides 64 tiles at once: bit `b` stands for all rows of tile `64 group + b`.
    pub fn tiles(&self, group: usize, queries: &[u32], out: &mut [Decision]) -> Result<()> {
        let (codes, terms) = self.slices(&self.sketch.tile_codes, &self.sketch.tile_terms, group)?;
        self.prefix(codes, terms, queries, out);
        Ok(())
    }

    /// Decides the rows of a tile: bit `b` stands for tree position `64 tile + b`.
    pub fn rows(&self, tile: usize, queries: &[u32], out: &mut [Decision]) -> Result<()> {
        let (codes, terms) = self.slices(&self.sketch.row_codes, &self.sketch.row_terms, tile)?;
        self.prefix(codes, terms, queries, out);
        Ok(())
    }

    /// Per query the tiles, of a tree of `rows` rows, that are not surely outside; `count` queries.
    pub fn open_tiles(&self, count: usize, rows: usize) -> Result<Vec<Vec<u32>>> {
        let numbers: Vec<u32> = (0..count as u32).collect();
        let mut out = vec![Decision::default(); count];
        let mut open = vec![Vec::new(); count];
        let tiles = rows.div_ceil(TILE);
        for group in 0..tiles.div_ceil(TILE) {
            self.tiles(group, &numbers, &mut out)?;
            for (decision, open) in out.iter().zip(&mut open) {
                let mut mask = decision.inside | decision.unsure;
                while mask != 0 {
                    let tile = group * TILE + mask.trailing_zeros() as usize;
                    // What stands behind the last tile decides nothing.
                    if tile < tiles {
                        open.push(tile as u32);
                    }
                    mask &= mask - 1;
                }
            }
        }
        Ok(open)
    }

    fn slices<'b>(
        &self,
        codes: &'b crate::store::Array<u8>,
        terms: &'b crate::store::Array<f32>,
        tile: usize,
    ) -> Result<(&'b [u8], &'b [f32])> {
        let of = |size: usize| -> Range<usize> { tile * size..(tile + 1) * size };
        Ok((codes.slice(of(TILE * padded(self.sketch.basis.width)))?, terms.slice(of(TILE * TERMS))?))
    }

    fn prefix(&self, codes: &[u8], terms: &[f32], queries: &[u32], out: &mut [Decision]) {
        let bytes = padded(self.sketch.basis.width);
        self.kernels.tile(codes, terms, bytes, &self.prefix_codes, &self.prefix_terms, queries, out);
    }

    /// The codes at full width of a range of tree positions.
    pub fn full(&self, positions: Range<usize>) -> Result<Full<'_>> {
        let width = full_width(self.sketch.basis.dim);
        Ok(Full {
            queries: self,
            width,
            codes: self.sketch.full_codes.slice(positions.start * width..positions.end * width)?,
            terms: self.sketch.full_terms.slice(positions)?,
        })
    }
}

/// The codes of a tile at full width, interleaved like those of a prefix; a buffer to reuse.
#[derive(Default)]
pub(crate) struct Interleaved {
    codes: Vec<u8>,
    terms: Vec<f32>,
}

/// Some rows at full width.
pub(crate) struct Full<'a> {
    queries: &'a Queries<'a>,
    width: usize,
    codes: &'a [u8],
    terms: &'a [Terms],
}

impl Full<'_> {
    /// Asks for the codes of row `r` ahead of their use.
    #[inline]
    pub fn prefetch(&self, r: usize) {
        self.queries.kernels.prefetch(&self.codes[r * self.width..(r + 1) * self.width]);
    }

    /// Interleaves the codes of at most 64 rows for [`Full::decide_all`]; pays where many queries ask for many of them.
    pub fn interleave(&self, into: &mut Interleaved) {
        into.codes.resize(TILE * self.width, 0);
        into.terms.resize(TILE * TERMS, 0.0);
        let lanes: &mut [[u8; 4]] = bytemuck::cast_slice_mut(&mut into.codes);
        // Sixteen groups at a time: what they are written to stays in the first-level cache.
        for (part, lanes) in lanes.chunks_exact_mut(LINE / 4 * TILE).enumerate() {
            for (r, row) in self.codes.chunks_exact(self.width).enumerate() {
                let fours: &[[u8; 4]] = bytemuck::cast_slice(&row[part * LINE..(part + 1) * LINE]);
                lanes[r..].iter_mut().step_by(TILE).zip(fours).for_each(|(lane, four)| *lane = *four);
            }
        }
        for (r, row) in self.terms.iter().enumerate() {
            let fields: &[f32; TERMS] = bytemuck::cast_ref(row);
            into.terms[r..].iter_mut().step_by(TILE).zip(fields).for_each(|(term, field)| *term = *field);
        }
    }

    /// Decides all rows for some queries at once.
    pub fn decide_all(&self, tile: &Interleaved, queries: &[u32], out: &mut [Decision]) {
        let own = self.queries;
        own.kernels.tile(&tile.codes, &tile.terms, self.width, &own.full_codes, &own.full_terms, queries, out);
    }

    /// Decides row `r` of the range: inside, outside, or nothing.
    #[inline]
    pub fn decide(&self, r: usize, query: usize) -> Option<bool> {
        let row = &self.terms[r];
        let own = &self.queries.full_codes[query * self.width..(query + 1) * self.width];
        let terms = &self.queries.full_terms[query];
        let sum = self.queries.kernels.dot(&self.codes[r * self.width..(r + 1) * self.width], own) + terms.start;
        let value = terms.offset + terms.along * row.shift + terms.step * (row.step * sum as f32);
        let error = terms.length * row.rounding + terms.rounding * row.length + terms.spread * row.spread;
        if value - error >= terms.inside {
            Some(true)
        } else if value + error < terms.outside {
            Some(false)
        } else {
            None
        }
    }
}

/// Codes of a query and its terms.
fn encode(
    a: &[f64],
    offset: f64,
    along: f64,
    residual: f64,
    threshold: f64,
    slack: f64,
    codes: &mut [i8],
) -> QueryTerms {
    let largest = a.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let step = up(largest / 127.0);
    let (mut lost, mut square, mut sum) = (0.0, 0.0, 0i32);
    let per_step = inverse(step);
    for (x, code) in a.iter().zip(codes) {
        let i = nearest(x * per_step);
        *code = i as i32 as i8;
        sum += i as i32;
        lost += (x - f64::from(step) * i).powi(2);
        square += x * x;
    }
    let bound = |square: f64| up(square.sqrt() * (1.0 + NORM_SLACK));
    let mut terms = QueryTerms {
        step,
        offset: offset as f32,
        along: along as f32,
        rounding: bound(lost),
        length: bound(square),
        residual: up(residual),
        spread: up(along.abs()),
        start: -128 * sum,
        slack: slack + 2e-7 * (offset.abs() + along.abs() * LONGEST),
        ..QueryTerms::default()
    };
    terms.set_threshold(threshold);
    terms
}
