//! Encoding: codes and terms of all rows, when a tree is built.

use rayon::prelude::*;

use super::basis::Basis;
use super::{TERMS, TILE, Terms, TileTerms, up};
use crate::control::Control;
use crate::distance::{Kernels, f32_error};
use crate::element::Element;
use crate::error::Result;
use crate::store::Array;
use crate::vectors::NORM_SLACK;

/// Largest magnitude of a code.
const CODE_MAX: f64 = 127.0;

/// Dimensions are coded in groups of four: one 32-bit lane of the integer dot products.
pub(super) const GROUP: usize = 4;

/// Rows encoded as one task.
const TASK: usize = 16 * TILE;

/// The sketches of all rows, in tree order.
pub(crate) struct Sketch {
    pub basis: Basis,
    /// Of tiles: codes of 64 tiles together, like those of the rows in a tile.
    pub tile_codes: Array<u8>,
    pub tile_terms: Array<f32>,
    /// Of rows: tile by tile, in each tile group by group, in each group row by row four bytes.
    pub row_codes: Array<u8>,
    pub row_terms: Array<f32>,
    /// Of rows at full width, row by row.
    pub full_codes: Array<u8>,
    pub full_terms: Array<Terms>,
}

/// Bytes of one code at full width: a multiple of 64, so that the loop has no tail.
pub(crate) fn full_width(dim: usize) -> usize {
    dim.next_multiple_of(64)
}

/// Dims of the prefix for rows of `dim` dims.
pub(crate) fn prefix_width(dim: usize) -> usize {
    dim.next_multiple_of(GROUP).min(128)
}

/// Bytes per row of all sketches, but for the tiles' small share.
pub(crate) fn sketch_bytes(dim: usize) -> usize {
    padded(prefix_width(dim)) + full_width(dim) + 2 * size_of::<Terms>()
}

/// Where the codes and terms of some tiles go.
struct Part<'a> {
    row_codes: &'a mut [u8],
    row_terms: &'a mut [f32],
    full_codes: &'a mut [u8],
    full_terms: &'a mut [Terms],
}

/// A tile's mean projection, and terms that hold for all of its rows.
type Summary = (Vec<f32>, Terms);

impl Sketch {
    /// Encodes `n` rows of `dim` dims; `at` gives the row at a tree position.
    pub fn build<'a, E: Element>(
        at: &(impl Fn(usize) -> Result<&'a [E]> + Sync),
        (n, dim): (usize, usize),
        seed: u64,
        control: &Control,
    ) -> Result<Self> {
        control.phase("sketch", n as u64);
        // A basis has no more columns than dims; what the padding to whole groups adds stays zero.
        let basis = Basis::train(at, (n, dim), prefix_width(dim).min(dim), seed, control)?;
        let (bytes, width, tiles) = (padded(basis.width), full_width(dim), n.div_ceil(TILE));
        let mut row_codes = vec![128u8; tiles * TILE * bytes];
        let mut row_terms = vec![0.0f32; tiles * TILE * TERMS];
        let mut full_codes = vec![128u8; n * width];
        let mut full_terms = vec![Terms::default(); n];
        let summaries: Vec<Summary> = row_codes
            .par_chunks_mut(TASK * bytes)
            .zip(row_terms.par_chunks_mut(TASK * TERMS))
            .zip(full_codes.par_chunks_mut(TASK * width))
            .zip(full_terms.par_chunks_mut(TASK))
            .enumerate()
            .map(|(task, (((row_codes, row_terms), full_codes), full_terms))| {
                control.check()?;
                let rows = (task * TASK..n.min((task + 1) * TASK)).map(at).collect::<Result<Vec<_>>>()?;
                control.add(rows.len() as u64);
                Ok(encode(&basis, &rows, Part { row_codes, row_terms, full_codes, full_terms }))
            })
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect();
        let groups = tiles.div_ceil(TILE);
        let mut tile_codes = vec![128u8; groups * TILE * bytes];
        let mut tile_terms = vec![0.0f32; groups * TILE * TERMS];
        for (g, group) in summaries.chunks(TILE).enumerate() {
            let codes = &mut tile_codes[g * TILE * bytes..(g + 1) * TILE * bytes];
            interleave(group, codes, &mut tile_terms[g * TILE * TERMS..(g + 1) * TILE * TERMS]);
        }
        Ok(Sketch {
            basis,
            tile_codes: Array::from_vec(tile_codes),
            tile_terms: Array::from_vec(tile_terms),
            row_codes: Array::from_vec(row_codes),
            row_terms: Array::from_vec(row_terms),
            full_codes: Array::from_vec(full_codes),
            full_terms: Array::from_vec(full_terms),
        })
    }
}

impl Sketch {
    /// Bytes of all codes and terms.
    pub fn bytes(&self) -> u64 {
        let codes = self.tile_codes.byte_len() + self.row_codes.byte_len() + self.full_codes.byte_len();
        codes + self.tile_terms.byte_len() + self.row_terms.byte_len() + self.full_terms.byte_len()
    }

    /// Checks every checksum of the sketch.
    pub fn verify(&self, control: &Control) -> Result<()> {
        self.tile_codes.verify(control)?;
        self.tile_terms.verify(control)?;
        self.row_codes.verify(control)?;
        self.row_terms.verify(control)?;
        self.full_codes.verify(control)?;
        self.full_terms.verify(control)
    }
}

/// Bytes of a prefix code.
pub(crate) fn padded(width: usize) -> usize {
    width.next_multiple_of(GROUP)
}

/// Encodes whole tiles (the last one may be short); returns their summaries.
fn encode<E: Element>(basis: &Basis, rows: &[&[E]], out: Part<'_>) -> Vec<Summary> {
    let (dim, width) = (basis.dim, full_width(basis.dim));
    let (codes, terms) = (TILE * padded(basis.width), TILE * TERMS);
    let mut wide = vec![0.0f32; dim];
    let mut along = vec![0.0f32; TILE];
    let mut summaries = Vec::with_capacity(rows.len().div_ceil(TILE));
    for (t, tile) in rows.chunks(TILE).enumerate() {
        let mut z = vec![0.0f32; tile.len() * basis.width];
        basis.project(tile, |_| 1.0, &mut z);
        let along = &mut along[..tile.len()];
        Kernels::get().dots(tile, &[&basis.mean], along);
        let mut coded: Vec<Summary> = Vec::with_capacity(tile.len());
        for (r, (row, z)) in tile.iter().zip(z.chunks_exact(basis.width)).enumerate() {
            E::widen(row, &mut wide);
            let centered: Vec<f64> = wide.iter().zip(&basis.mean).map(|(x, m)| f64::from(*x) - f64::from(*m)).collect();
            let shift = f64::from(along[r]) - basis.mean_square;
            let spread = up(f32_error(dim) + shift.abs() * 1e-7);
            let residual = up(basis.residual(square(&centered), z) * (1.0 + NORM_SLACK));
            coded.push((z.to_vec(), Terms { shift: shift as f32, spread, residual, ..Terms::default() }));
            let at = t * TILE + r;
            let own = quantize(&centered, &mut out.full_codes[at * width..(at + 1) * width]);
            out.full_terms[at] = Terms { shift: shift as f32, spread, ..own };
        }
        interleave(
            &coded,
            &mut out.row_codes[t * codes..(t + 1) * codes],
            &mut out.row_terms[t * terms..(t + 1) * terms],
        );
        summaries.push(summary(&coded, basis.width));
    }
    summaries
}

fn square(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum()
}

/// Codes of `z` as `128 + i`; returns step, rounding and length.
fn quantize(z: &[f64], codes: &mut [u8]) -> Terms {
    codes.fill(128);
    let largest = z.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    // The step is rounded up to a float32, so that no code exceeds its range.
    let step = up(largest / CODE_MAX);
    let per_step = inverse(step);
    let (mut lost, mut kept) = (0.0, 0.0);
    for (x, code) in z.iter().zip(codes) {
        let i = nearest(x * per_step);
        *code = (128 + i as i32) as u8;
        lost += (x - f64::from(step) * i).powi(2);
        kept += i * i;
    }
    let bound = |square: f64| up(square.sqrt() * (1.0 + NORM_SLACK));
    Terms { step, rounding: bound(lost), length: up(f64::from(bound(kept)) * f64::from(step)), ..Terms::default() }
}

/// Codes per unit; 0 where all coordinates are 0.
pub(super) fn inverse(step: f32) -> f64 {
    if step > 0.0 { 1.0 / f64::from(step) } else { 0.0 }
}

/// The integer nearest to a small number, in a way that every instruction set vectorizes: adding 3 * 2^51 leaves no
/// room for a fraction. No bound relies on the rounding: what a code loses is measured.
#[inline(always)]
pub(super) fn nearest(x: f64) -> f64 {
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    (x + SHIFT) - SHIFT
}

/// What holds for every row of a tile: the mean of their projections, and terms that cover all of them.
fn summary(rows: &[Summary], width: usize) -> Summary {
    let mut mean = vec![0.0f64; width];
    for (z, _) in rows {
        mean.iter_mut().zip(z).for_each(|(m, x)| *m += f64::from(*x) / rows.len() as f64);
    }
    let mean: Vec<f32> = mean.iter().map(|m| *m as f32).collect();
    let far = |z: &[f32]| z.iter().zip(&mean).map(|(x, m)| (f64::from(*x) - f64::from(*m)).powi(2)).sum::<f64>();
    let radius = rows.iter().map(|(z, _)| far(z)).fold(0.0, f64::max).sqrt() * (1.0 + NORM_SLACK);
    let shifts = || rows.iter().map(|(_, t)| t.shift);
    let (low, high) = (shifts().fold(f32::INFINITY, f32::min), shifts().fold(f32::NEG_INFINITY, f32::max));
    let middle = low / 2.0 + high / 2.0;
    let spread = rows.iter().fold(0.0f32, |m, (_, t)| m.max(t.spread));
    let reach = (f64::from(high) - f64::from(middle)).max(f64::from(middle) - f64::from(low)) + f64::from(spread);
    let terms = Terms {
        shift: middle,
        spread: up(reach),
        rounding: up(radius),
        residual: rows.iter().fold(0.0f32, |m, (_, t)| m.max(t.residual)),
        ..Terms::default()
    };
    (mean, terms)
}

/// Writes up to 64 rows as one tile. `rounding` of a row is added to what its code loses. Missing rows are decided as
/// nothing: no bound can hold for them, and nobody looks at their bits.
fn interleave(rows: &[Summary], codes: &mut [u8], terms: &mut [f32]) {
    let mut soa = TileTerms {
        step: [0.0; TILE],
        shift: [0.0; TILE],
        rounding: [f32::MAX; TILE],
        length: [0.0; TILE],
        residual: [0.0; TILE],
        spread: [0.0; TILE],
    };
    let mut code = vec![0u8; codes.len() / TILE];
    for (r, (z, own)) in rows.iter().enumerate() {
        let z: Vec<f64> = z.iter().map(|x| f64::from(*x)).collect();
        let quantized = quantize(&z, &mut code);
        for (g, four) in code.chunks_exact(GROUP).enumerate() {
            let at = (g * TILE + r) * GROUP;
            codes[at..at + GROUP].copy_from_slice(four);
        }
        soa.step[r] = quantized.step;
        soa.shift[r] = own.shift;
        soa.rounding[r] = up(f64::from(quantized.rounding) + f64::from(own.rounding));
        soa.length[r] = quantized.length;
        soa.residual[r] = own.residual;
        soa.spread[r] = own.spread;
    }
    terms.copy_from_slice(bytemuck::cast_slice(std::slice::from_ref(&soa)));
}
