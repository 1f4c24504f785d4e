//! Encoding: codes and terms of all rows, when a tree is built.

use rayon::prelude::*;

use super::basis::Basis;
use super::{TILE, Terms, TileTerms, up};
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

struct Part {
    row_codes: Vec<u8>,
    row_terms: Vec<f32>,
    full_codes: Vec<u8>,
    full_terms: Vec<Terms>,
    tiles: Vec<(Vec<f32>, Terms)>,
}

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
        let starts: Vec<usize> = (0..n).step_by(TASK).collect();
        let parts: Vec<Part> = starts
            .par_iter()
            .map(|start| {
                control.check()?;
                let end = (start + TASK).min(n);
                let part = encode(&basis, &(*start..end).map(at).collect::<Result<Vec<_>>>()?);
                control.add((end - start) as u64);
                Ok(part)
            })
            .collect::<Result<_>>()?;
        let mut all = Part {
            row_codes: Vec::with_capacity(n.next_multiple_of(TILE) * padded(basis.width)),
            row_terms: Vec::with_capacity(n.next_multiple_of(TILE) * super::TERMS),
            full_codes: Vec::with_capacity(n * full_width(dim)),
            full_terms: Vec::with_capacity(n),
            tiles: Vec::with_capacity(n.div_ceil(TILE)),
        };
        for part in parts {
            all.row_codes.extend_from_slice(&part.row_codes);
            all.row_terms.extend_from_slice(&part.row_terms);
            all.full_codes.extend_from_slice(&part.full_codes);
            all.full_terms.extend_from_slice(&part.full_terms);
            all.tiles.extend(part.tiles);
        }
        let (mut tile_codes, mut tile_terms) = (Vec::new(), Vec::new());
        for group in all.tiles.chunks(TILE) {
            interleave(group, basis.width, &mut tile_codes, &mut tile_terms);
        }
        Ok(Sketch {
            basis,
            tile_codes: Array::from_vec(tile_codes),
            tile_terms: Array::from_vec(tile_terms),
            row_codes: Array::from_vec(all.row_codes),
            row_terms: Array::from_vec(all.row_terms),
            full_codes: Array::from_vec(all.full_codes),
            full_terms: Array::from_vec(all.full_terms),
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

fn encode<E: Element>(basis: &Basis, rows: &[&[E]]) -> Part {
    let (dim, width) = (basis.dim, basis.width);
    let mut part = Part {
        row_codes: Vec::new(),
        row_terms: Vec::new(),
        full_codes: vec![0; rows.len() * full_width(dim)],
        full_terms: Vec::with_capacity(rows.len()),
        tiles: Vec::new(),
    };
    let mut wide = vec![0.0f32; dim];
    let mut along = vec![0.0f32; TILE];
    for (t, tile) in rows.chunks(TILE).enumerate() {
        let mut z = vec![0.0f32; tile.len() * width];
        basis.project(tile, |_| 1.0, &mut z);
        let along = &mut along[..tile.len()];
        Kernels::get().dots(tile, &[&basis.mean], along);
        let mut coded = Vec::with_capacity(tile.len());
        for (r, (row, z)) in tile.iter().zip(z.chunks_exact(width)).enumerate() {
            E::widen(row, &mut wide);
            let centered: Vec<f64> = wide.iter().zip(&basis.mean).map(|(x, m)| f64::from(*x) - f64::from(*m)).collect();
            let square: f64 = centered.iter().map(|x| x * x).sum();
            let shift = f64::from(along[r]) - basis.mean_square;
            let spread = f32_error(dim) + shift.abs() * 1e-7;
            let z: Vec<f64> = z.iter().map(|x| f64::from(*x)).collect();
            let z_square: f64 = z.iter().map(|x| x * x).sum();
            // |t|^2 = |x - mu|^2 - 2 <W^T (x - mu), z> + |W z|^2, with W^T (x - mu) = z + error and |W z|^2 <= (1 + skew) |z|^2.
            let length = z_square.sqrt();
            let rest = square - z_square + 2.0 * basis.projection_error * length + basis.skew * z_square + 1e-9;
            let prefix = Terms {
                shift: shift as f32,
                spread: up(spread),
                residual: up(rest.max(0.0).sqrt() * (1.0 + NORM_SLACK)),
                ..Terms::default()
            };
            coded.push((z.iter().map(|x| *x as f32).collect::<Vec<f32>>(), prefix));
            let at = (t * TILE + r) * full_width(dim);
            let terms = quantize(&centered, &mut part.full_codes[at..at + full_width(dim)]);
            part.full_terms.push(Terms { shift: shift as f32, spread: up(spread), ..terms });
        }
        part.tiles.push(summary(&coded, width));
        interleave(&coded, width, &mut part.row_codes, &mut part.row_terms);
    }
    part
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
fn summary(rows: &[(Vec<f32>, Terms)], width: usize) -> (Vec<f32>, Terms) {
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

/// Appends up to 64 rows as one tile. `rounding` of a row is added to what its code loses. Missing rows are decided as
/// nothing: no bound can hold for them, and nobody looks at their bits.
fn interleave(rows: &[(Vec<f32>, Terms)], width: usize, codes: &mut Vec<u8>, terms: &mut Vec<f32>) {
    let bytes = padded(width);
    let start = codes.len();
    codes.resize(start + TILE * bytes, 128);
    let tile = &mut codes[start..];
    let mut soa = TileTerms {
        step: [0.0; TILE],
        shift: [0.0; TILE],
        rounding: [f32::MAX; TILE],
        length: [0.0; TILE],
        residual: [0.0; TILE],
        spread: [0.0; TILE],
    };
    let mut code = vec![0u8; bytes];
    for (r, (z, own)) in rows.iter().enumerate() {
        let z: Vec<f64> = z.iter().map(|x| f64::from(*x)).collect();
        let quantized = quantize(&z, &mut code);
        for (g, four) in code.chunks_exact(GROUP).enumerate() {
            let at = (g * TILE + r) * GROUP;
            tile[at..at + GROUP].copy_from_slice(four);
        }
        soa.step[r] = quantized.step;
        soa.shift[r] = own.shift;
        soa.rounding[r] = up(f64::from(quantized.rounding) + f64::from(own.rounding));
        soa.length[r] = quantized.length;
        soa.residual[r] = own.residual;
        soa.spread[r] = own.spread;
    }
    terms.extend_from_slice(bytemuck::cast_slice(std::slice::from_ref(&soa)));
}
