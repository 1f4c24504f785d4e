//! The query side: codes and terms of a batch of caps, and the decisions of each level.

use super::encode::{Sketch, Split, inverse, nearest, split};
use super::kernel::{Decision, Dense, FullTest, IntKernels, Part, Prefix, QUARTER, QueryTerms};
use super::levels::{Bounds, FINE, FINER, GROUP_TERMS, ROW_TERMS, fine_width, full_bytes, padded};
use super::{TILE, up};
use crate::caps::Caps;
use crate::error::Result;
use crate::store::Array;
use crate::vectors::NORM_SLACK;

/// Slack for the float32 arithmetic of a test: what all operations up to full width round, with lengths, steps and a mean
/// that [`crate::tree`] accepts, is less than 250 units of 2^-24 (counted in docs/exactness.md). `<q', mu>`, which is zero
/// but for rounding, and the float64 arithmetic are in it too.
const FLOAT_SLACK: f64 = 2e-5;

/// At least |x - mu| of any row and |q'| of any center: both are unit within 2^-6, the mean is at most 1.1 long.
const LONGEST: f64 = 2.2;

/// The second level's step may be finer than the first one's by this many powers of two: its sums stay below 2^31.
const MAX_SHIFT: u32 = 8;

/// Open rows of a tile from which all its rows together cost less than one by one.
const DENSE_ROWS: u32 = 8;

/// Queries with that many from which interleaving the tile's codes pays.
const DENSE_QUERIES: usize = 4;

/// Bytes of a cache line; a code at full width is a whole number of them.
const LINE: usize = 64;

/// Sketches of a batch of caps.
pub(crate) struct Queries<'a> {
    sketch: &'a Sketch,
    kernels: IntKernels,
    terms: Vec<QueryTerms>,
    /// Prefix codes, [`padded`] bytes each, and what they lose on the leading columns.
    prefix_codes: Vec<i8>,
    lead_codes: Vec<i8>,
    /// The counterparts of the rows' codes at full width.
    full_codes: Vec<i8>,
}

/// Buffers of [`Queries::settle`].
#[derive(Default)]
pub(crate) struct Settling {
    decisions: Vec<Decision>,
    /// Queries with open rows: their places among the active ones, and their numbers.
    places: Vec<usize>,
    open: Vec<u32>,
    /// Their open rows, and what they are estimated at.
    masks: Vec<u64>,
    values: Vec<[f32; TILE]>,
    parts: Vec<Part>,
    /// The queries that are settled together at full width: numbers, places among the open ones, tests.
    asked: Vec<u32>,
    asked_places: Vec<usize>,
    tests: Vec<FullTest>,
    /// The codes at full width of a tile, interleaved.
    interleaved: Vec<u8>,
    interleaved_tile: Option<usize>,
    /// Rows of the last tile whose codes were asked for.
    tile: Option<usize>,
    fetched: u64,
}

impl<'a> Queries<'a> {
    /// Encodes the caps `active` of a batch.
    pub fn new(sketch: &'a Sketch, caps: &Caps<'_>, active: &[usize]) -> Self {
        Queries::with(*IntKernels::get(), sketch, caps, active)
    }

    /// The same with kernels of the caller's choice.
    pub fn with(kernels: IntKernels, sketch: &'a Sketch, caps: &Caps<'_>, active: &[usize]) -> Self {
        let basis = &sketch.basis;
        let (prefix, lead, full) = (padded(basis.width), padded(fine_width(basis.width)), full_bytes(basis.dim));
        let mut queries = Queries {
            sketch,
            kernels,
            terms: Vec::with_capacity(active.len()),
            prefix_codes: vec![0; active.len() * prefix],
            lead_codes: vec![0; active.len() * lead],
            full_codes: vec![0; active.len() * full],
        };
        for caps_of_tile in active.chunks(TILE) {
            let centers: Vec<&[f32]> = caps_of_tile.iter().map(|c| caps.center(*c)).collect();
            let along: Vec<f64> =
                centers
                    .iter()
                    .map(|q| {
                        if basis.mean_square > 0.0 {
                            super::basis::dot(q, &basis.mean) / basis.mean_square
                        } else {
                            0.0
                        }
                    })
                    .collect();
            for ((cap, split), along) in caps_of_tile.iter().zip(split(basis, &centers, |i| along[i])).zip(&along) {
                let i = queries.terms.len();
                let mut terms = encode(
                    sketch,
                    &split,
                    *along,
                    &mut queries.prefix_codes[i * prefix..(i + 1) * prefix],
                    &mut queries.lead_codes[i * lead..(i + 1) * lead],
                    &mut queries.full_codes[i * full..(i + 1) * full],
                );
                terms.set_threshold(1.0 - caps.bound(*cap));
                queries.terms.push(terms);
            }
        }
        queries
    }

    /// Moves the threshold of query `i` to `real dot >= threshold`.
    pub fn set_threshold(&mut self, i: usize, threshold: f64) {
        self.terms[i].set_threshold(threshold);
    }

    /// Decides 64 tiles at once: bit `b` stands for all rows of tile `64 group + b`.
    pub fn tiles(&self, group: usize, queries: &[u32], out: &mut [Decision]) -> Result<()> {
        let prefix = self.prefix(&self.sketch.tile_codes, &self.sketch.tile_terms, group, GROUP_TERMS)?;
        self.kernels.group(&prefix, queries, out);
        Ok(())
    }

    fn prefix<'b>(
        &'b self,
        codes: &'b Array<u8>,
        terms: &'b Array<f32>,
        tile: usize,
        numbers: usize,
    ) -> Result<Prefix<'b>> {
        let basis = &self.sketch.basis;
        let size = TILE * padded(basis.width);
        Ok(Prefix {
            codes: codes.slice(tile * size..(tile + 1) * size)?,
            terms: terms.slice(tile * numbers..(tile + 1) * numbers)?,
            first: padded(basis.first),
            bytes: padded(basis.width),
            lead: padded(fine_width(basis.width)),
            query_codes: &self.prefix_codes,
            lead_codes: &self.lead_codes,
            query_terms: &self.terms,
        })
    }

    /// What the first and the second level say of a tile's rows, each on its own.
    #[cfg(test)]
    pub fn prefix_levels(&self, tile: usize, queries: &[u32]) -> Result<[Vec<Decision>; 2]> {
        let prefix = self.prefix(&self.sketch.row_codes, &self.sketch.row_terms, tile, ROW_TERMS)?;
        let mut out = [vec![Decision::default(); queries.len()], vec![Decision::default(); queries.len()]];
        self.kernels.first(&prefix, queries, &mut out[0]);
        let masks = vec![u64::MAX; queries.len()];
        let mut values = vec![[0.0; TILE]; queries.len()];
        self.kernels.second(&prefix, queries, &masks, &mut out[1], &mut values, &mut Vec::new());
        Ok(out)
    }

    /// Takes a tile's rows through all levels for some queries: `out[n]` decides for query `active[n]` the rows that are
    /// bits of `valid`.
    pub fn settle(
        &self,
        tile: usize,
        active: &[u32],
        valid: u64,
        with: &mut Settling,
        out: &mut [Decision],
    ) -> Result<()> {
        let prefix = self.prefix(&self.sketch.row_codes, &self.sketch.row_terms, tile, ROW_TERMS)?;
        self.kernels.first(&prefix, active, out);
        with.places.clear();
        with.open.clear();
        with.masks.clear();
        for (n, (query, own)) in active.iter().zip(&mut *out).enumerate() {
            own.inside &= valid;
            own.unsure &= valid;
            if own.unsure != 0 {
                with.places.push(n);
                with.open.push(*query);
                with.masks.push(own.unsure);
            }
        }
        with.decisions.resize(with.open.len(), Decision::default());
        with.values.resize(with.open.len(), [0.0; TILE]);
        self.kernels.second(&prefix, &with.open, &with.masks, &mut with.decisions, &mut with.values, &mut with.parts);
        let mut wanted = 0;
        for ((n, decision), mask) in with.places.iter().zip(&with.decisions).zip(&mut with.masks) {
            let own = &mut out[*n];
            own.inside |= own.unsure & decision.inside;
            own.unsure &= decision.unsure;
            *mask = own.unsure;
            wanted |= *mask;
        }
        if wanted == 0 {
            return Ok(());
        }
        let size = full_bytes(self.sketch.basis.dim);
        let end = self.sketch.full_codes.len().min((tile + 1) * TILE * size);
        let codes = self.sketch.full_codes.slice(tile * TILE * size..end)?;
        if with.tile != Some(tile) {
            (with.tile, with.fetched) = (Some(tile), 0);
        }
        for r in bits(wanted & !with.fetched) {
            self.kernels.prefetch(&codes[r * size..(r + 1) * size]);
        }
        with.fetched |= wanted;
        let bounds = Bounds::of(prefix.terms);
        self.settle_dense(tile, codes, bounds, with, out);
        // A quarter of the tile at a time: its codes and those of the queries stay in the first-level cache.
        for (quarter, codes) in codes.chunks(QUARTER * size).enumerate() {
            let start = quarter * QUARTER;
            for (place, mask) in with.masks.iter().enumerate() {
                let mask = (mask >> start) as u16;
                if mask == 0 {
                    continue;
                }
                let (own, query, values) = (&mut out[with.places[place]], &with.open[place], &with.values[place]);
                let code = &self.full_codes[*query as usize * size..(*query as usize + 1) * size];
                let test = self.terms[*query as usize].full(bounds);
                let values = values[start..start + QUARTER].try_into().expect("a quarter of a tile");
                let (inside, open) = self.kernels.full(codes, code, mask, values, &test);
                own.inside |= u64::from(inside) << start;
                own.unsure &= !(u64::from(mask & !open) << start);
            }
        }
        Ok(())
    }

    /// Settles together the queries that leave many rows of a tile open, if these are several, and takes their masks away.
    /// `codes` are the rows' at full width.
    fn settle_dense(&self, tile: usize, codes: &[u8], bounds: &Bounds, with: &mut Settling, out: &mut [Decision]) {
        with.asked.clear();
        with.asked_places.clear();
        for (place, mask) in with.masks.iter().enumerate() {
            if mask.count_ones() >= DENSE_ROWS {
                with.asked.push(with.open[place]);
                with.asked_places.push(place);
            }
        }
        if with.asked.len() < DENSE_QUERIES {
            return;
        }
        let bytes = full_bytes(self.sketch.basis.dim);
        if with.interleaved_tile != Some(tile) {
            with.interleaved_tile = Some(tile);
            with.interleaved.resize(TILE * bytes, 0);
            interleave(codes, bytes, &mut with.interleaved);
        }
        with.tests.clear();
        with.tests.extend(with.asked.iter().map(|query| self.terms[*query as usize].full(bounds)));
        with.decisions.resize(with.asked.len(), Decision::default());
        let dense = Dense {
            codes: &with.interleaved,
            bytes,
            query_codes: &self.full_codes,
            queries: &with.asked,
            places: &with.asked_places,
            tests: &with.tests,
        };
        self.kernels.dense(&dense, &with.values, &mut with.decisions);
        for (place, decision) in with.asked_places.iter().zip(&with.decisions) {
            let own = &mut out[with.places[*place]];
            own.inside |= own.unsure & decision.inside;
            own.unsure &= decision.unsure;
            with.masks[*place] = 0;
        }
    }
}

/// Interleaves the codes of at most 64 rows by groups of four bytes, like those of a prefix.
fn interleave(codes: &[u8], bytes: usize, into: &mut [u8]) {
    let lanes: &mut [[u8; 4]] = bytemuck::cast_slice_mut(into);
    // Sixteen groups at a time: what they are written to stays in the first-level cache.
    for (part, lanes) in lanes.chunks_exact_mut(LINE / 4 * TILE).enumerate() {
        for (r, row) in codes.chunks_exact(bytes).enumerate() {
            let fours: &[[u8; 4]] = bytemuck::cast_slice(&row[part * LINE..(part + 1) * LINE]);
            lanes[r..].iter_mut().step_by(TILE).zip(fours).for_each(|(lane, four)| *lane = *four);
        }
    }
}

/// The numbers of a mask's bits.
fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (mask != 0).then(|| {
            let bit = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            bit
        })
    })
}

/// Rounded up, with room for the rounding of the sum of squares.
fn norm<'a>(values: impl IntoIterator<Item = &'a f64>) -> f32 {
    up(values.into_iter().map(|x| x * x).sum::<f64>().sqrt() * (1.0 + NORM_SLACK))
}

fn largest<'a>(values: impl IntoIterator<Item = &'a f64>) -> f64 {
    values.into_iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// Codes `values` with one step; returns what that loses and the sum of the codes.
fn code(values: &[f64], step: f64, codes: &mut [i8]) -> (Vec<f64>, i32) {
    let (per_step, mut sum) = (inverse(step), 0);
    let lost = values.iter().zip(codes).map(|(x, code)| {
        let i = nearest(x * per_step).clamp(-127.0, 127.0);
        *code = i as i32 as i8;
        sum += i as i32;
        x - step * i
    });
    (lost.collect(), sum)
}

/// Codes of a query and its terms, but for the threshold.
fn encode(
    sketch: &Sketch,
    split: &Split,
    along: f64,
    prefix: &mut [i8],
    lead: &mut [i8],
    full: &mut [i8],
) -> QueryTerms {
    let (basis, steps) = (&sketch.basis, sketch.steps);
    let [first_step, second_step, rest_step] = [steps.first, steps.second, steps.rest].map(f64::from);
    let (first, leading) = (basis.first, fine_width(basis.width));
    let step_of = |k: usize| if k < first { first_step } else { second_step };
    let a: Vec<f64> = split.z.iter().map(|x| f64::from(*x)).collect();
    // One integer sum serves both parts of the prefix: the scale of the first is a power of two times the second's.
    let (first_scale, second_scale) = (largest(&a[..first]) * first_step, largest(&a[first..]) * second_step);
    let ratio = if second_scale > 0.0 { (first_scale / second_scale).log2().floor().max(0.0) as u32 } else { 0 };
    let shift = ratio.min(MAX_SHIFT);
    let power = f64::from(1u32 << shift);
    let scale = up(second_scale.max(first_scale / power) / 127.0);
    let step = [power * f64::from(scale) * inverse(first_step), f64::from(scale) * inverse(second_step)];
    let (mut lost, first_sum) = code(&a[..first], step[0], prefix);
    let (second_lost, second_sum) = code(&a[first..], step[1], &mut prefix[first..]);
    lost.extend(second_lost);
    // What the leading codes lose, in units of the rows' steps.
    let missing: Vec<f64> = lost[..leading].iter().enumerate().map(|(k, x)| x * step_of(k)).collect();
    let lead_scale = up(largest(&missing) / 127.0);
    let (lead_lost, lead_sum) = code(&missing, f64::from(lead_scale), lead);
    // One integer sum serves the refinement and the rest.
    let finer: Vec<f64> = a[..leading].iter().enumerate().map(|(k, x)| x * (step_of(k) / FINER)).collect();
    let full_scale = up(largest(&finer).max(largest(&split.rest) * rest_step) / 127.0);
    let (fine, rest) = full.split_at_mut(FINE);
    let (finer_lost, fine_sum) = code(&finer, f64::from(full_scale), fine);
    let (rest_lost, rest_sum) = code(&split.rest, f64::from(full_scale) * inverse(rest_step), rest);
    let offset = along * basis.mean_square;
    let residual = |z: &[f32]| up(basis.residual(split.square, z) * (1.0 + NORM_SLACK));
    QueryTerms {
        offset: offset as f32,
        along: along as f32,
        spread: up(along.abs()),
        shift,
        first_scale: scale * power as f32,
        first_start: -128 * first_sum,
        second_scale: scale,
        second_start: -128 * ((first_sum << shift) + second_sum),
        lead_scale,
        lead_start: -128 * lead_sum,
        full_scale,
        full_start: -128 * (fine_sum + rest_sum),
        first_residual: residual(&split.z[..first]),
        residual: residual(&split.z),
        first_length: norm(&a[..first]),
        first_lost: norm(&lost[..first]),
        second_length: norm(&a[first..]),
        second_lost: norm(&lost[first..]),
        length: norm(&a),
        lead_length: norm(&a[..leading]),
        lead_lost: norm(&lead_lost),
        finer_lost: norm(&finer_lost),
        plain_length: norm(&a[leading..]),
        plain_lost: norm(&lost[leading..]),
        // `p` itself is `split.rest` but for its error.
        rest_length: up(f64::from(norm(&split.rest)) + split.rest_error),
        rest_lost: up(f64::from(norm(&rest_lost)) + split.rest_error),
        slack: FLOAT_SLACK + basis.defect(f64::from(norm(&a)), LONGEST) + 2e-7 * (offset.abs() + along.abs() * LONGEST),
        inside: 0.0,
        outside: 0.0,
    }
}
