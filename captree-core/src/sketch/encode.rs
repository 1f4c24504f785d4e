//! Encoding: codes and terms of all rows, when a tree is built.

use rayon::prelude::*;

use super::basis::Basis;
use super::fold::Fold;
use super::levels::{
    Bounds, FINER, GROUP, REFINED, Steps, TERMS, field, padded, refined_width, third_bytes, wide_bytes,
};
use super::{TILE, Widths, up};
use crate::control::Control;
use crate::distance::{Kernels, f32_error};
use crate::element::Element;
use crate::error::Result;
use crate::memory::AlignedVec;
use crate::store::Array;
use crate::vectors::NORM_SLACK;

/// Largest magnitude of a code.
const CODE_MAX: f64 = 127.0;

/// Rows encoded as one task.
const TASK: usize = 16 * TILE;

/// Groups of neighbors that the steps are chosen from.
const STEP_TILES: usize = 32;

/// Shares of coordinates that a step may clip, to choose from; what clipping loses is part of what the row's code
/// loses.
const CLIPPED: [f64; 6] = [0.0, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3];

/// A little room for rows that were not looked at.
const ROOM: f64 = 1.05;

/// More of it for the first level's columns, if all of them are refined. Their second code makes up for a coarse step,
/// but not for clipping: one clipped coordinate can be most of what the fourth level's bound has to allow for.
const FIRST_ROOM: f64 = 1.4;

/// The sketches of all rows, in tree order.
pub(crate) struct Sketch {
    pub basis: Basis,
    pub steps: Steps,
    pub fold: Fold,
    /// At least the distance of any row from the mean.
    pub farthest: f64,
    /// Of tiles: codes of 64 tiles together, like those of the rows in a tile.
    pub tile_codes: Array<u8>,
    pub tile_terms: Array<f32>,
    /// Of rows: tile by tile, in each tile group by group, in each group row by row four bytes.
    pub row_codes: Array<u8>,
    pub row_terms: Array<f32>,
    /// Of rows, row by row: what the third and the fourth level read.
    pub wide_codes: Array<u8>,
}

/// Where the codes and terms of some tiles go.
struct Part<'a> {
    row_codes: &'a mut [u8],
    row_terms: &'a mut [f32],
    wide_codes: &'a mut [u8],
}

/// One row, or the mean of a tile's, as it is encoded: its projection, and what is stored beside its codes.
#[derive(Default)]
struct Encoded {
    z: Vec<f32>,
    shift: f32,
    /// What the columns of the first three levels leave over.
    residuals: [f32; 3],
    /// `|x - mu|`.
    length: f64,
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
        let basis = Basis::train(at, (n, dim), seed, control)?;
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
        let (bytes, wide, tiles) = (padded(basis.widths.second), wide_bytes(basis.widths), n.div_ceil(TILE));
        let mut row_codes = AlignedVec::filled(tiles * TILE * bytes, 128u8);
        let mut row_terms = AlignedVec::<f32>::zeroed(tiles * TERMS);
        let mut wide_codes = AlignedVec::filled(n * wide, 128u8);
        let means: Vec<Encoded> = row_codes
            .par_chunks_mut(TASK * bytes)
            .zip(row_terms.par_chunks_mut(TASK / TILE * TERMS))
            .zip(wide_codes.par_chunks_mut(TASK * wide))
            .enumerate()
            .map(|(task, ((row_codes, row_terms), wide_codes))| {
                control.check()?;
                let rows = (task * TASK..n.min((task + 1) * TASK)).map(at).collect::<Result<Vec<_>>>()?;
                control.add(rows.len() as u64);
                Ok(encode(&basis, steps, &rows, Part { row_codes, row_terms, wide_codes }))
            })
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect();
        let fold = Fold::rows(n, &mut row_terms);
        let groups = tiles.div_ceil(TILE);
        let mut tile_codes = vec![128u8; groups * TILE * bytes];
        let mut tile_terms = vec![0.0f32; groups * TERMS];
        let parts = tile_codes.chunks_exact_mut(TILE * bytes).zip(tile_terms.chunks_exact_mut(TERMS));
        for (means, (codes, terms)) in means.chunks(TILE).zip(parts) {
            interleave(&basis, steps, means, codes, terms);
            for (t, row) in means.iter().enumerate() {
                terms[field::RADIUS + t] = row.radius;
                terms[field::REACH + t] = row.reach;
            }
        }
        Ok(Sketch {
            basis,
            steps,
            fold,
            farthest: means.iter().fold(0.0, |m, row| m.max(row.length)),
            tile_codes: Array::from_vec(tile_codes),
            tile_terms: Array::from_vec(tile_terms),
            row_codes: Array::in_memory(row_codes),
            row_terms: Array::in_memory(row_terms),
            wide_codes: Array::in_memory(wide_codes),
        })
    }

    /// Bytes of all codes and terms.
    pub fn bytes(&self) -> u64 {
        let codes = self.tile_codes.byte_len() + self.row_codes.byte_len() + self.wide_codes.byte_len();
        codes + self.tile_terms.byte_len() + self.row_terms.byte_len()
    }

    /// Checks every checksum of the sketch.
    pub fn verify(&self, control: &Control) -> Result<()> {
        self.tile_codes.verify(control)?;
        self.tile_terms.verify(control)?;
        self.row_codes.verify(control)?;
        self.row_terms.verify(control)?;
        self.wide_codes.verify(control)
    }
}

/// What a row's codes stand for: its projection `z`, and `|x - mu|^2`.
pub(super) struct Split {
    pub z: Vec<f32>,
    pub square: f64,
}

/// Splits vectors whose first term, `along(i) mu`, is taken off.
pub(super) fn split<E: Element>(basis: &Basis, vectors: &[&[E]], along: impl Fn(usize) -> f64) -> Vec<Split> {
    let (dim, all) = (basis.dim, basis.widths.all);
    let mut wide = vec![0.0f32; vectors.len() * dim];
    vectors.iter().zip(wide.chunks_exact_mut(dim)).for_each(|(x, wide)| E::widen(x, wide));
    let wide: Vec<&[f32]> = wide.chunks_exact(dim).collect();
    let mut z = vec![0.0f32; vectors.len() * all];
    basis.project(&wide, &along, &mut z);
    let each = wide.iter().zip(z.chunks_exact(all)).enumerate();
    each.map(|(v, (x, z))| {
        let along = along(v);
        let centered = |(x, m): (&f32, &f32)| (f64::from(*x) - along * f64::from(*m)).powi(2);
        Split { z: z.to_vec(), square: x.iter().zip(&basis.mean).map(centered).sum() }
    })
    .collect()
}

/// For each level's columns, the step with which rows lose least: by the row of a tile that loses most, since its bound
/// is that of all. A smaller step clips more coordinates, and one that is clipped counts for the whole tile. Chosen
/// from neighbors spread over the whole tree.
pub(crate) fn steps<'a, E: Element>(basis: &Basis, at: &impl Fn(usize) -> Result<&'a [E]>, n: usize) -> Result<Steps> {
    let tiles = n.div_ceil(TILE).min(STEP_TILES);
    let mut groups = Vec::with_capacity(tiles);
    for t in 0..tiles {
        let start = t * n.div_ceil(TILE) / tiles * TILE;
        let rows: Vec<&[E]> = (start..n.min(start + TILE)).map(at).collect::<Result<_>>()?;
        groups.push(split(basis, &rows, |_| 1.0));
    }
    let step = |columns: std::ops::Range<usize>, shares: &[f64], room: f64| {
        let each = groups.iter().flatten().flat_map(|s| &s.z[columns.clone()]);
        let mut sizes: Vec<f64> = each.map(|z| f64::from(*z).abs()).collect();
        sizes.sort_unstable_by(f64::total_cmp);
        let Some(last) = sizes.len().checked_sub(1) else { return 0.0 };
        let steps =
            shares.iter().map(|share| up(sizes[last - (sizes.len() as f64 * share) as usize] * room / CODE_MAX));
        let lost = |step: f64, z: &[f32]| {
            let loss = |z: &f32| (f64::from(*z) - step * code_of(f64::from(*z), inverse(step))).powi(2);
            z.iter().map(loss).sum::<f64>()
        };
        let cost = |step: &f32| -> f64 {
            let most = |group: &Vec<Split>| {
                let each = group.iter().map(|s| lost(f64::from(*step), &s.z[columns.clone()]));
                each.fold(0.0, f64::max).sqrt()
            };
            groups.iter().map(most).sum()
        };
        steps.min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or(0.0)
    };
    let Widths { first, second, third, all } = basis.widths;
    Ok(Steps {
        first: if first <= REFINED {
            step(0..first, &CLIPPED[..1], FIRST_ROOM)
        } else {
            step(0..first, &CLIPPED, ROOM)
        },
        second: step(first..second, &CLIPPED, ROOM),
        third: step(second..third, &CLIPPED, ROOM),
        fourth: step(third..all, &CLIPPED, ROOM),
    })
}

/// Encodes whole tiles (the last one may be short); returns what stands for each.
fn encode<E: Element>(basis: &Basis, steps: Steps, rows: &[&[E]], out: Part<'_>) -> Vec<Encoded> {
    let (bytes, wide) = (TILE * padded(basis.widths.second), wide_bytes(basis.widths));
    let mut along = vec![0.0f32; TILE];
    let mut means = Vec::with_capacity(rows.len().div_ceil(TILE));
    for (t, tile) in rows.chunks(TILE).enumerate() {
        let along = &mut along[..tile.len()];
        Kernels::get().dots(tile, &[&basis.mean], along);
        let coded: Vec<Encoded> = split(basis, tile, |_| 1.0)
            .into_iter()
            .zip(&*along)
            .enumerate()
            .map(|(r, (split, along))| {
                let shift = f64::from(*along) - basis.mean_square;
                let residual = |width: usize| up(basis.residual(split.square, &split.z[..width]) * (1.0 + NORM_SLACK));
                let Widths { first, second, third, all } = basis.widths;
                let at = (t * TILE + r) * wide;
                let mut bounds = wide_code(basis, steps, &split.z, &mut out.wide_codes[at..at + wide]);
                bounds.spread = up(f32_error(basis.dim) + shift.abs() * 1e-7);
                bounds.residual = residual(all);
                let residuals = [first, second, third].map(residual);
                let length = split.square.sqrt() * (1.0 + NORM_SLACK);
                Encoded { z: split.z, shift: shift as f32, residuals, length, bounds, ..Encoded::default() }
            })
            .collect();
        let terms = &mut out.row_terms[t * TERMS..(t + 1) * TERMS];
        interleave(basis, steps, &coded, &mut out.row_codes[t * bytes..(t + 1) * bytes], terms);
        terms[field::THIRD_RESIDUAL..][..TILE].fill(f32::MAX);
        for (r, row) in coded.iter().enumerate() {
            terms[field::THIRD_RESIDUAL + r] = row.residuals[2];
            // Until all rows are known, and can be folded.
            terms[field::FOLDED + r] = row.residuals[0];
        }
        means.push(summary(&coded, basis.widths.second));
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

impl Steps {
    /// Step of column `k`.
    pub fn of(&self, widths: Widths, k: usize) -> f64 {
        let ends = [widths.first, widths.second, widths.third];
        f64::from(self.each()[ends.iter().filter(|end| k >= **end).count()])
    }
}

/// Writes what the third and the fourth level read of a row, as `128 + i`; returns what that loses.
fn wide_code(basis: &Basis, steps: Steps, z: &[f32], codes: &mut [u8]) -> Bounds {
    codes.fill(128);
    let Widths { second, third, .. } = basis.widths;
    let (third_codes, others) = codes.split_at_mut(third_bytes(basis.widths));
    let (refinement, fourth) = others.split_at_mut(REFINED);
    let (mut lost, mut kept) = (0.0, 0.0);
    for (k, (z, code)) in z[..refined_width(second)].iter().zip(refinement).enumerate() {
        let step = steps.of(basis.widths, k);
        let left = f64::from(*z) - step * code_of(f64::from(*z), inverse(step));
        let i = code_of(left, inverse(step / FINER));
        *code = (128 + i as i32) as u8;
        lost += (left - step / FINER * i).powi(2);
        kept += i * i;
    }
    let of_level = |z: &[f32], step: f32, codes: &mut [u8]| {
        let step = f64::from(step);
        let (per_step, mut lost, mut kept) = (inverse(step), 0.0, 0.0);
        for (x, code) in z.iter().zip(codes) {
            let i = code_of(f64::from(*x), per_step);
            *code = (128 + i as i32) as u8;
            lost += (f64::from(*x) - step * i).powi(2);
            kept += i * i;
        }
        (norm_of(lost), up(f64::from(norm_of(kept)) * step))
    };
    let (third_lost, third_length) = of_level(&z[second..third], steps.third, third_codes);
    let (fourth_lost, fourth_length) = of_level(&z[third..], steps.fourth, fourth);
    let (refinement_lost, refinement_length) = (norm_of(lost), norm_of(kept));
    Bounds {
        refinement_lost,
        refinement_length,
        third_lost,
        third_length,
        fourth_lost,
        fourth_length,
        ..Bounds::default()
    }
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
fn summary(rows: &[Encoded], width: usize) -> Encoded {
    let mut mean = vec![0.0f64; width];
    for row in rows {
        mean.iter_mut().zip(&row.z).for_each(|(m, x)| *m += f64::from(*x) / rows.len() as f64);
    }
    let z: Vec<f32> = mean.iter().map(|m| *m as f32).collect();
    let far = |x: &[f32]| x.iter().zip(&z).map(|(x, m)| (f64::from(*x) - f64::from(*m)).powi(2)).sum::<f64>();
    let radius = norm_of(rows.iter().map(|row| far(&row.z)).fold(0.0, f64::max));
    let shifts = || rows.iter().map(|row| row.shift);
    let (low, high) = (shifts().fold(f32::INFINITY, f32::min), shifts().fold(f32::NEG_INFINITY, f32::max));
    let shift = low / 2.0 + high / 2.0;
    let spread = rows.iter().fold(0.0f32, |m, row| m.max(row.bounds.spread));
    let reach = (f64::from(high) - f64::from(shift)).max(f64::from(shift) - f64::from(low)) + f64::from(spread);
    let most = |of: fn(&Encoded) -> f32| rows.iter().map(of).fold(0.0, f32::max);
    Encoded {
        shift,
        residuals: [0.0, most(|row| row.residuals[1]), 0.0],
        length: rows.iter().fold(0.0, |m, row| m.max(row.length)),
        radius,
        reach: up(reach),
        bounds: Bounds::default(),
        z,
    }
}

/// Writes up to 64 rows as one tile. Missing rows stay open: no bound can hold for them, and their
/// bits are never looked at.
fn interleave(basis: &Basis, steps: Steps, rows: &[Encoded], codes: &mut [u8], terms: &mut [f32]) {
    terms[field::SECOND_RESIDUAL..field::SECOND_RESIDUAL + TILE].fill(f32::MAX);
    let mut bounds = Bounds::default();
    let Widths { first, second, .. } = basis.widths;
    let leading = refined_width(second);
    for (r, row) in rows.iter().enumerate() {
        // Over the first columns, the others, those that are refined, and those that are not: what is lost, and what is
        // kept.
        let (mut lost, mut kept, mut leading_kept) = ([0.0; 4], [0.0; 4], 0.0);
        for (k, z) in row.z[..second].iter().enumerate() {
            let step = steps.of(basis.widths, k);
            let i = code_of(f64::from(*z), inverse(step));
            codes[(k / GROUP * TILE + r) * GROUP + k % GROUP] = (128 + i as i32) as u8;
            let (loss, length) = ((f64::from(*z) - step * i).powi(2), (step * i).powi(2));
            for part in [usize::from(k >= first), 2 + usize::from(k >= leading)] {
                (lost[part], kept[part]) = (lost[part] + loss, kept[part] + length);
            }
            leading_kept += if k < leading { i * i } else { 0.0 };
        }
        bounds = bounds.max(&Bounds {
            first_lost: norm_of(lost[0]),
            first_length: norm_of(kept[0]),
            second_lost: norm_of(lost[1]),
            second_length: norm_of(kept[1]),
            leading_lost: norm_of(lost[2]),
            leading_length: norm_of(leading_kept),
            unrefined_lost: norm_of(lost[3]),
            unrefined_length: norm_of(kept[3]),
            ..row.bounds
        });
        terms[field::SHIFT + r] = row.shift;
        terms[field::SECOND_RESIDUAL + r] = row.residuals[1];
    }
    bounds.write(terms);
}
