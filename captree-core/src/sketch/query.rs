//! The query side: codes and terms of a batch of caps, and the decisions of each level.

use std::ops::Range;

use super::encode::{Sketch, full_width, inverse, nearest, padded};
use super::kernel::{Decision, IntKernels, QueryTerms};
use super::{TERMS, TILE, Terms, up};
use crate::caps::Caps;
use crate::error::Result;
use crate::vectors::NORM_SLACK;

/// Slack for the float32 arithmetic of a test: about ten operations on numbers of at most 4, each off by 2^-24.
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
            let a: Vec<f64> = projected[i * width..(i + 1) * width].iter().map(|x| f64::from(*x)).collect();
            let a_square: f64 = a.iter().map(|x| x * x).sum();
            // As for the rows: |p|^2 <= |q'|^2 - |a|^2 + 2 error |a| + skew |a|^2.
            let beyond = square - a_square + 2.0 * basis.projection_error * a_square.sqrt() + basis.skew * a_square;
            let residual = ((beyond + 1e-9).max(0.0)).sqrt() * (1.0 + NORM_SLACK);
            let offset = along[i] * basis.mean_square;
            let threshold = 1.0 - caps.bound(*cap);
            let prefix = &mut queries.prefix_codes[i * padded(width)..(i + 1) * padded(width)];
            let slack = FLOAT_SLACK + basis.defect(a_square.sqrt(), LONGEST);
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
