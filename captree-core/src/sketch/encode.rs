//! Encoding: codes and terms of all rows, when a tree is built.

use rayon::prelude::*;

use super::basis::Basis;
use super::levels::{Bounds, FINE, FINER, GROUP, GROUP_TERMS, ROW_TERMS, Steps, field, fine_width, full_bytes, padded};
use super::{TILE, up, widths};
use crate::control::Control;
use crate::distance::{Kernels, f32_error};
use crate::element::Element;
use crate::error::Result;
use crate::store::Array;
use crate::vectors::NORM_SLACK;

/// Largest magnitude of a code.
const CODE_MAX: f64 = 127.0;

/// Rows encoded as one task.
const TASK: usize = 16 * TILE;

/// Rows that the steps are chosen from.
const STEP_ROWS: usize = 1024;

/// Share of coordinates that a step may clip; what clipping loses is part of what the row's code loses.
const CLIPPED: f64 = 1e-4;

/// The sketches of all rows, in tree order.
pub(crate) struct Sketch {
    pub basis: Basis,
    pub steps: Steps,
    /// Of tiles: codes of 64 tiles together, like those of the rows in a tile.
    pub tile_codes: Array<u8>,
    pub tile_terms: Array<f32>,
    /// Of rows: tile by tile, in each tile group by group, in each group row by row four bytes.
    pub row_codes: Array<u8>,
    pub row_terms: Array<f32>,
    /// Of rows at full width, row by row.
    pub full_codes: Array<u8>,
}

/// Where the codes and terms of some tiles go.
struct Part<'a> {
    row_codes: &'a mut [u8],
    row_terms: &'a mut [f32],
    full_codes: &'a mut [u8],
}

/// What is stored of one row, or of a tile's mean, beside its codes.
#[derive(Default)]
struct Own {
    z: Vec<f32>,
    shift: f32,
    first_residual: f32,
    residual: f32,
    radius: f32,
    reach: f32,
    bounds: Bounds,
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
        let basis = Basis::train(at, (n, dim), widths(dim), seed, control)?;
        let steps = steps(&basis, at, n)?;
        Sketch::with(basis, steps, at, n, control)
    }

    /// Encodes with any basis and steps: these decide how tight the bounds are, not whether they hold.
    pub fn with<'a, E: Element>(
        basis: Basis,
        steps: Steps,
        at: &(impl Fn(usize) -> Result<&'a [E]> + Sync),
        n: usize,
        control: &Control,
    ) -> Result<Self> {
        let dim = basis.dim;
        let (bytes, full, tiles) = (padded(basis.width), full_bytes(dim), n.div_ceil(TILE));
        let mut row_codes = vec![128u8; tiles * TILE * bytes];
        let mut row_terms = vec![0.0f32; tiles * ROW_TERMS];
        let mut full_codes = vec![128u8; n * full];
        let means: Vec<Own> = row_codes
            .par_chunks_mut(TASK * bytes)
            .zip(row_terms.par_chunks_mut(TASK / TILE * ROW_TERMS))
            .zip(full_codes.par_chunks_mut(TASK * full))
            .enumerate()
            .map(|(task, ((row_codes, row_terms), full_codes))| {
                control.check()?;
                let rows = (task * TASK..n.min((task + 1) * TASK)).map(at).collect::<Result<Vec<_>>>()?;
                control.add(rows.len() as u64);
                Ok(encode(&basis, steps, &rows, Part { row_codes, row_terms, full_codes }))
            })
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect();
        let groups = tiles.div_ceil(TILE);
        let mut tile_codes = vec![128u8; groups * TILE * bytes];
        let mut tile_terms = vec![0.0f32; groups * GROUP_TERMS];
        let parts = tile_codes.chunks_exact_mut(TILE * bytes).zip(tile_terms.chunks_exact_mut(GROUP_TERMS));
        for (means, (codes, terms)) in means.chunks(TILE).zip(parts) {
            interleave(&basis, steps, means, codes, terms);
            for (t, own) in means.iter().enumerate() {
                terms[field::RADIUS + t] = own.radius;
                terms[field::REACH + t] = own.reach;
            }
        }
        Ok(Sketch {
            basis,
            steps,
            tile_codes: Array::from_vec(tile_codes),
            tile_terms: Array::from_vec(tile_terms),
            row_codes: Array::from_vec(row_codes),
            row_terms: Array::from_vec(row_terms),
            full_codes: Array::from_vec(full_codes),
        })
    }

    /// Bytes of all codes and terms.
    pub fn bytes(&self) -> u64 {
        let codes = self.tile_codes.byte_len() + self.row_codes.byte_len() + self.full_codes.byte_len();
        codes + self.tile_terms.byte_len() + self.row_terms.byte_len()
    }

    /// Checks every checksum of the sketch.
    pub fn verify(&self, control: &Control) -> Result<()> {
        self.tile_codes.verify(control)?;
        self.tile_terms.verify(control)?;
        self.row_codes.verify(control)?;
        self.row_terms.verify(control)?;
        self.full_codes.verify(control)
    }
}

/// What a row's codes stand for: its projection `z`, and its coordinates `t` that the columns leave over.
pub(super) struct Split {
    pub z: Vec<f32>,
    pub rest: Vec<f64>,
    /// At least the distance of `rest` from the real `t`.
    pub rest_error: f64,
    /// `|x - mu|^2`.
    pub square: f64,
}

/// Splits vectors whose first term, `along(i) mu`, is taken off.
pub(super) fn split<E: Element>(basis: &Basis, vectors: &[&[E]], along: impl Fn(usize) -> f64) -> Vec<Split> {
    let (dim, width) = (basis.dim, basis.width);
    let mut z = vec![0.0f32; vectors.len() * width];
    basis.project(vectors, &along, &mut z);
    let mut lifted = vec![0.0f32; vectors.len() * dim];
    basis.lift(&z, &mut lifted);
    let mut wide = vec![0.0f32; dim];
    let each = vectors.iter().zip(z.chunks_exact(width)).enumerate();
    each.map(|(v, (x, z))| {
        E::widen(x, &mut wide);
        let (along, mut square) = (along(v), 0.0);
        let coordinate = |(k, (x, m)): (usize, (&f32, &f32))| {
            let centered = f64::from(*x) - along * f64::from(*m);
            square += centered * centered;
            centered - f64::from(lifted[k * vectors.len() + v])
        };
        let rest: Vec<f64> = wide.iter().zip(&basis.mean).enumerate().map(coordinate).collect();
        Split { z: z.to_vec(), rest, rest_error: basis.lift_error(length(z)) + 1e-12, square }
    })
    .collect()
}

fn length(z: &[f32]) -> f64 {
    z.iter().map(|z| f64::from(*z).powi(2)).sum::<f64>().sqrt()
}

/// Steps that clip few coordinates of rows spread over the whole tree.
pub(super) fn steps<'a, E: Element>(basis: &Basis, at: &impl Fn(usize) -> Result<&'a [E]>, n: usize) -> Result<Steps> {
    let count = n.min(STEP_ROWS);
    let rows: Vec<&[E]> = (0..count).map(|i| at(i * n / count)).collect::<Result<_>>()?;
    let splits: Vec<Split> = rows.chunks(TILE).flat_map(|tile| split(basis, tile, |_| 1.0)).collect();
    let step = |values: &mut dyn Iterator<Item = f64>| {
        let mut sizes: Vec<f64> = values.map(f64::abs).collect();
        if sizes.is_empty() {
            return 0.0;
        }
        let last = sizes.len() - 1;
        let at = last - (sizes.len() as f64 * CLIPPED) as usize;
        let (_, size, _) = sizes.select_nth_unstable_by(at, f64::total_cmp);
        // A little room for rows that were not looked at.
        up(*size * 1.05 / CODE_MAX)
    };
    let columns = |range: std::ops::Range<usize>| {
        splits.iter().flat_map(move |s| s.z[range.clone()].iter().map(|z| f64::from(*z)))
    };
    Ok(Steps {
        first: step(&mut columns(0..basis.first)),
        second: step(&mut columns(basis.first..basis.width)),
        rest: step(&mut splits.iter().flat_map(|s| s.rest.iter().copied())),
    })
}

/// Encodes whole tiles (the last one may be short); returns what stands for each.
fn encode<E: Element>(basis: &Basis, steps: Steps, rows: &[&[E]], out: Part<'_>) -> Vec<Own> {
    let (dim, bytes, full) = (basis.dim, TILE * padded(basis.width), full_bytes(basis.dim));
    let mut along = vec![0.0f32; TILE];
    let mut means = Vec::with_capacity(rows.len().div_ceil(TILE));
    for (t, tile) in rows.chunks(TILE).enumerate() {
        let along = &mut along[..tile.len()];
        Kernels::get().dots(tile, &[&basis.mean], along);
        let coded: Vec<Own> = split(basis, tile, |_| 1.0)
            .into_iter()
            .zip(&*along)
            .enumerate()
            .map(|(r, (split, along))| {
                let shift = f64::from(*along) - basis.mean_square;
                let residual = |z: &[f32]| up(basis.residual(split.square, z) * (1.0 + NORM_SLACK));
                let (first_residual, residual) = (residual(&split.z[..basis.first]), residual(&split.z));
                let at = (t * TILE + r) * full;
                let mut bounds = at_full_width(basis, steps, &split, &mut out.full_codes[at..at + full]);
                bounds.spread = up(f32_error(dim) + shift.abs() * 1e-7);
                Own { z: split.z, shift: shift as f32, first_residual, residual, bounds, ..Own::default() }
            })
            .collect();
        let terms = &mut out.row_terms[t * ROW_TERMS..(t + 1) * ROW_TERMS];
        interleave(basis, steps, &coded, &mut out.row_codes[t * bytes..(t + 1) * bytes], terms);
        means.push(summary(&coded, basis.width));
    }
    means
}

/// Rounded up, with room for the rounding of the sum of squares.
fn norm_of(square: f64) -> f32 {
    up(square.sqrt() * (1.0 + NORM_SLACK))
}

/// The integer code of `x`, clipped to what a byte holds.
fn code_of(x: f64, per_step: f64) -> f64 {
    nearest(x * per_step).clamp(-CODE_MAX, CODE_MAX)
}

/// Step of column `k`.
fn step_of(basis: &Basis, steps: Steps, k: usize) -> f64 {
    f64::from(if k < basis.first { steps.first } else { steps.second })
}

/// Writes a row's refinement and its rest, as `128 + i`; returns what these lose.
fn at_full_width(basis: &Basis, steps: Steps, split: &Split, codes: &mut [u8]) -> Bounds {
    codes.fill(128);
    let (fine, rest) = codes.split_at_mut(FINE);
    let (mut lost, mut kept) = (0.0, 0.0);
    for (k, (z, code)) in split.z.iter().zip(fine).enumerate() {
        let step = step_of(basis, steps, k);
        let left = f64::from(*z) - step * code_of(f64::from(*z), inverse(step));
        let i = code_of(left, inverse(step / FINER));
        *code = (128 + i as i32) as u8;
        lost += (left - step / FINER * i).powi(2);
        kept += i * i;
    }
    let mut bounds = Bounds { fine_lost: norm_of(lost), fine_length: norm_of(kept), ..Bounds::default() };
    let step = f64::from(steps.rest);
    let per_step = inverse(step);
    (lost, kept) = (0.0, 0.0);
    for (x, code) in split.rest.iter().zip(rest) {
        let i = code_of(*x, per_step);
        *code = (128 + i as i32) as u8;
        lost += (x - step * i).powi(2);
        kept += i * i;
    }
    bounds.rest_lost = up(f64::from(norm_of(lost)) + split.rest_error);
    bounds.rest_length = up(f64::from(norm_of(kept)) * step);
    bounds
}

/// Codes per unit; 0 where all coordinates are 0.
pub(super) fn inverse(step: f64) -> f64 {
    if step > 0.0 { 1.0 / step } else { 0.0 }
}

/// The integer nearest to a small number, in a way that every instruction set vectorizes: adding 3 * 2^51 leaves no
/// room for a fraction. No bound relies on the rounding: what a code loses is measured.
#[inline(always)]
pub(super) fn nearest(x: f64) -> f64 {
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    (x + SHIFT) - SHIFT
}

/// What holds for every row of a tile: the mean of their projections, and terms that cover all of them.
fn summary(rows: &[Own], width: usize) -> Own {
    let mut mean = vec![0.0f64; width];
    for own in rows {
        mean.iter_mut().zip(&own.z).for_each(|(m, x)| *m += f64::from(*x) / rows.len() as f64);
    }
    let z: Vec<f32> = mean.iter().map(|m| *m as f32).collect();
    let far = |x: &[f32]| x.iter().zip(&z).map(|(x, m)| (f64::from(*x) - f64::from(*m)).powi(2)).sum::<f64>();
    let radius = norm_of(rows.iter().map(|own| far(&own.z)).fold(0.0, f64::max));
    let shifts = || rows.iter().map(|own| own.shift);
    let (low, high) = (shifts().fold(f32::INFINITY, f32::min), shifts().fold(f32::NEG_INFINITY, f32::max));
    let shift = low / 2.0 + high / 2.0;
    let spread = rows.iter().fold(0.0f32, |m, own| m.max(own.bounds.spread));
    let reach = (f64::from(high) - f64::from(shift)).max(f64::from(shift) - f64::from(low)) + f64::from(spread);
    let most = |of: fn(&Own) -> f32| rows.iter().map(of).fold(0.0, f32::max);
    Own {
        shift,
        first_residual: most(|own| own.first_residual),
        residual: most(|own| own.residual),
        radius,
        reach: up(reach),
        bounds: Bounds::default(),
        z,
    }
}

/// Writes up to 64 rows as one tile. Missing rows are decided as nothing: no bound can hold for them, and nobody looks
/// at their bits.
fn interleave(basis: &Basis, steps: Steps, rows: &[Own], codes: &mut [u8], terms: &mut [f32]) {
    terms[field::FIRST_RESIDUAL..field::FIRST_RESIDUAL + TILE].fill(f32::MAX);
    terms[field::RESIDUAL..field::RESIDUAL + TILE].fill(f32::MAX);
    let mut bounds = Bounds::default();
    let leading = fine_width(basis.width);
    for (r, own) in rows.iter().enumerate() {
        // Over the first columns, the others, and those that are not refined: what is lost, and what is kept.
        let (mut lost, mut kept, mut lead) = ([0.0; 3], [0.0; 3], 0.0);
        for (k, z) in own.z.iter().enumerate() {
            let step = step_of(basis, steps, k);
            let i = code_of(f64::from(*z), inverse(step));
            codes[(k / GROUP * TILE + r) * GROUP + k % GROUP] = (128 + i as i32) as u8;
            let (loss, length) = ((f64::from(*z) - step * i).powi(2), (step * i).powi(2));
            let part = usize::from(k >= basis.first);
            (lost[part], kept[part]) = (lost[part] + loss, kept[part] + length);
            if k < leading {
                lead += i * i;
            } else {
                (lost[2], kept[2]) = (lost[2] + loss, kept[2] + length);
            }
        }
        bounds = bounds.max(&Bounds {
            first_lost: norm_of(lost[0]),
            first_length: norm_of(kept[0]),
            second_lost: norm_of(lost[1]),
            second_length: norm_of(kept[1]),
            lead_length: norm_of(lead),
            plain_lost: norm_of(lost[2]),
            plain_length: norm_of(kept[2]),
            ..own.bounds
        });
        terms[field::SHIFT + r] = own.shift;
        terms[field::FIRST_RESIDUAL + r] = own.first_residual;
        terms[field::RESIDUAL + r] = own.residual;
    }
    bounds.write(terms);
}
