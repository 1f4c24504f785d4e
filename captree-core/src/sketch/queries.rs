//! The query side: codes and terms of a batch of caps, and the decisions of each level.

use rayon::prelude::*;

use super::encode::{Sketch, split};
use super::fold::FirstThreshold;
use super::kernel::{
    Decision, First, FirstTerms, IntKernels, OpenRows, QUARTER, Quarters, RefinementTerms, Second, SecondTerms,
    WideRows, WideTerms, WideTest, WideTile,
};
use super::levels::{Bounds, TERMS, field, padded, refined_width, third_bytes, wide_bytes};
use super::terms::{Codes, Terms, encode};
use super::{TILE, Widths, up};
use crate::ablation::{OPEN, Part, Parts, Tally};
use crate::caps::Caps;
use crate::error::Result;
use crate::memory::Lined;
use crate::scan::positions_of;
use crate::store::Array;

/// Tiles that some caps go through, one after the other, before the next caps do: what the wider levels have read of so many
/// tiles is remembered until the last caps have met them.
pub(crate) const TILES_TOGETHER: usize = 8;

/// QueryCodes that are encoded together: their projections share the basis.
const AT_ONCE: usize = 32;

/// Open rows of a tile from which all its rows together cost less than one by one.
pub(super) const DENSE_ROWS: u32 = 12;

/// Open rows, of all queries with that many, from which interleaving the tile's codes pays.
const DENSE_PAIRS: u32 = 240;

/// Sketches of a batch of caps.
pub(crate) struct QueryCodes<'a> {
    sketch: &'a Sketch,
    kernels: IntKernels,
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
    /// The counterparts of the rows' wider codes.
    wide_codes: Lined<i8>,
    wide_terms: Vec<WideTerms>,
    parts: Parts,
    /// Terms of a second level that decides nothing, where it is switched off.
    blind_terms: Vec<SecondTerms>,
}

/// Buffers of [`QueryCodes::settle`].
#[derive(Default)]
pub(crate) struct Settling {
    /// Per query, the rows that the first level leaves open.
    first: Vec<u64>,
    /// Per query, the first level's sums.
    sums: Lined<[i32; TILE]>,
    decisions: Vec<Decision>,
    /// QueryCodes with open rows after the first level: their places among the active ones, and their numbers.
    places: Vec<usize>,
    open: Vec<u32>,
    /// Which of these have open rows still.
    still: Vec<u32>,
    /// Their open rows, and what they are estimated at.
    masks: Vec<u64>,
    values: Lined<[f32; TILE]>,
    quarters: Quarters,
    /// The queries that are settled together: numbers, places among the open ones, tests.
    asked: Vec<u32>,
    asked_places: Vec<usize>,
    tests: Vec<WideTest>,
    /// Places of those that are settled row by row.
    alone: Vec<usize>,
    /// What the wider levels have read of the last tiles.
    late: [[Late; 2]; TILES_TOGETHER],
    /// Where what the levels leave open is counted, if anywhere.
    pub tally: Option<Tally>,
}

/// What one of the wider levels has read of a tile.
#[derive(Default)]
struct Late {
    tile: Option<usize>,
    fetched: u64,
    interleaved: Lined<u8>,
    is_interleaved: bool,
}

impl Settling {
    pub fn new(tally: Option<Tally>) -> Self {
        Settling { tally, ..Settling::default() }
    }

    fn tally(&mut self, level: Part, out: &[Decision]) {
        if let Some(tally) = &mut self.tally {
            tally.pass_rows(level, out);
        }
    }
}

impl<'a> QueryCodes<'a> {
    /// Encodes the caps `active` of a batch.
    pub fn new(sketch: &'a Sketch, caps: &Caps<'_>, active: &[usize]) -> Self {
        QueryCodes::with(*IntKernels::get(), sketch, caps, active)
    }

    /// The same with kernels of the caller's choice.
    pub fn with(kernels: IntKernels, sketch: &'a Sketch, caps: &Caps<'_>, active: &[usize]) -> Self {
        let basis = &sketch.basis;
        let Widths { second, .. } = basis.widths;
        let (leading, interleaved) = (padded(refined_width(second)), padded(second));
        let (count, wide) = (active.len(), wide_bytes(basis.widths));
        let mut queries = QueryCodes {
            sketch,
            kernels,
            slack: Vec::with_capacity(count),
            codes: vec![0; count * interleaved],
            first_terms: Vec::with_capacity(count),
            first_thresholds: Vec::with_capacity(count),
            second_terms: Vec::with_capacity(count),
            refinement_codes: vec![0; count * leading],
            refinement_terms: Vec::with_capacity(count),
            wide_codes: Lined::zeroed(count * wide),
            wide_terms: Vec::with_capacity(count),
            parts: Parts::ALL,
            blind_terms: Vec::new(),
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
                each.map(|((split, along), codes)| encode(sketch, split, *along, codes)).collect()
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
        let codes = &mut self.codes[i * padded(second)..][..padded(first)];
        self.first_thresholds[i].set(threshold, &mut self.first_terms[i], &mut self.second_terms[i].first_scale, codes);
        (self.second_terms[i].inside, self.second_terms[i].outside) = (inside, outside);
        (self.wide_terms[i].inside, self.wide_terms[i].outside) = (inside, outside);
    }

    /// Switches all other parts off.
    pub fn only(&mut self, parts: Parts) {
        self.parts = parts;
        let (inside, outside) = (f32::INFINITY, f32::NEG_INFINITY);
        self.blind_terms = self.second_terms.iter().map(|terms| SecondTerms { inside, outside, ..*terms }).collect();
    }

    /// Decides 64 tiles at once: bit `b` stands for all rows of tile `64 group + b`.
    pub fn tiles(&self, group: usize, queries: &[u32], out: &mut [Decision]) -> Result<()> {
        if !self.parts.has(Part::Tiles) {
            out.fill(OPEN);
            return Ok(());
        }
        let second = self.second(&self.sketch.tile_codes, &self.sketch.tile_terms, group)?;
        self.kernels.group(&second, queries, out);
        Ok(())
    }

    /// The second level of 64 rows or tiles.
    fn second<'b>(&'b self, codes: &'b Array<u8>, terms: &'b Array<f32>, tile: usize) -> Result<Second<'b>> {
        let widths = self.sketch.basis.widths;
        let size = TILE * padded(widths.second);
        Ok(Second {
            codes: codes.slice(tile * size..(tile + 1) * size)?,
            terms: terms.slice(tile * TERMS..(tile + 1) * TERMS)?,
            first: padded(widths.first),
            bytes: padded(widths.second),
            leading: padded(refined_width(widths.second)),
            query_codes: &self.codes,
            first_terms: &self.first_terms,
            query_terms: &self.second_terms,
            refinement_codes: &self.refinement_codes,
            refinement_terms: &self.refinement_terms,
        })
    }

    /// The rows that the first level leaves open, given a tile's second one.
    fn first(&self, second: &Second<'_>, queries: &[u32], open: &mut [u64], sums: &mut [[i32; TILE]]) {
        let first = First {
            codes: &second.codes[..TILE * second.first],
            bytes: second.first,
            stride: second.bytes,
            folded: &second.terms[field::FOLDED..][..TILE],
            bounds: Bounds::of(second.terms),
            query_codes: &self.codes,
            query_terms: &self.first_terms,
        };
        self.kernels.first(&first, queries, open, sums);
    }

    /// What the first and the second level say of a tile's rows, each on its own.
    #[cfg(test)]
    pub fn first_and_second(&self, tile: usize, queries: &[u32]) -> Result<[Vec<Decision>; 2]> {
        let second = self.second(&self.sketch.row_codes, &self.sketch.row_terms, tile)?;
        let mut out = [vec![Decision::default(); queries.len()], vec![Decision::default(); queries.len()]];
        let mut masks = vec![0; queries.len()];
        let mut sums = vec![[0; TILE]; queries.len()];
        self.first(&second, queries, &mut masks, &mut sums);
        for ((own, open), query) in out[0].iter_mut().zip(&masks).zip(queries) {
            *own = Decision { inside: !open & self.first_terms[*query as usize].inside, unsure: *open };
        }
        masks.fill(u64::MAX);
        let mut values = vec![[0.0; TILE]; queries.len()];
        let places: Vec<usize> = (0..queries.len()).collect();
        let asked = OpenRows { queries, masks: &masks, places: &places, sums: &sums };
        self.kernels.second(&second, &asked, &mut out[1], &mut values, &mut Quarters::default());
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
        let mut second = self.second(&self.sketch.row_codes, &self.sketch.row_terms, tile)?;
        with.first.resize(active.len(), 0);
        with.sums.resize(active.len());
        self.first(&second, active, &mut with.first, &mut with.sums);
        if !self.parts.has(Part::First) {
            with.first.fill(u64::MAX);
        }
        // Lists of what is open are written without a branch, which nobody could foretell: each entry overwrites the last one
        // unless that counts.
        with.places.resize(active.len(), 0);
        with.open.resize(active.len(), 0);
        with.masks.resize(active.len(), 0);
        let mut count = 0;
        for (n, ((query, first), own)) in active.iter().zip(&with.first).zip(&mut *out).enumerate() {
            let open = first & valid;
            *own = Decision { inside: self.first_terms[*query as usize].inside & valid & !open, unsure: open };
            (with.places[count], with.open[count], with.masks[count]) = (n, *query, open);
            count += usize::from(open != 0);
        }
        with.places.truncate(count);
        with.open.truncate(count);
        with.masks.truncate(count);
        with.tally(Part::First, out);
        with.decisions.resize(with.open.len(), Decision::default());
        with.values.resize(with.open.len());
        if !self.parts.has(Part::Second) {
            second.query_terms = &self.blind_terms;
        }
        if self.parts.reach(Part::Second) {
            let asked = OpenRows { queries: &with.open, masks: &with.masks, places: &with.places, sums: &with.sums };
            self.kernels.second(&second, &asked, &mut with.decisions, &mut with.values, &mut with.quarters);
        } else {
            with.decisions.fill(OPEN);
        }
        let (mut wanted, mut left) = (0, 0);
        with.still.resize(with.open.len(), 0);
        for (place, ((n, decision), mask)) in with.places.iter().zip(&with.decisions).zip(&mut with.masks).enumerate() {
            let own = &mut out[*n];
            own.inside |= own.unsure & decision.inside;
            own.unsure &= decision.unsure;
            *mask = own.unsure;
            wanted |= *mask;
            with.still[left] = place as u32;
            left += usize::from(*mask != 0);
        }
        with.still.truncate(left);
        with.tally(Part::Second, out);
        for level in [Part::Third, Part::Last] {
            if wanted != 0 && self.parts.reach(level) {
                wanted = self.settle_late(level, tile, &second, wanted, with, out)?;
            }
            with.tally(level, out);
        }
        Ok(())
    }

    /// Takes the rows that are left open, `wanted` of any query, through one of the wider levels; returns what is left then.
    fn settle_late(
        &self,
        level: Part,
        tile: usize,
        second: &Second<'_>,
        wanted: u64,
        with: &mut Settling,
        out: &mut [Decision],
    ) -> Result<u64> {
        let widths = self.sketch.basis.widths;
        let (stride, third) = (wide_bytes(widths), third_bytes(widths));
        let (from, to) = if level == Part::Third { (0, third) } else { (third, stride) };
        if from == to {
            return Ok(wanted);
        }
        let end = self.sketch.wide_codes.len().min((tile + 1) * TILE * stride);
        let codes = &self.sketch.wide_codes.slice(tile * TILE * stride..end)?[from..];
        let late = &mut with.late[tile % TILES_TOGETHER][usize::from(level == Part::Last)];
        if late.tile != Some(tile) {
            (late.tile, late.fetched, late.is_interleaved) = (Some(tile), 0, false);
        }
        for r in positions_of(0, wanted & !late.fetched) {
            self.kernels.prefetch(&codes[r * stride..r * stride + to - from]);
        }
        late.fetched |= wanted;
        let bounds = Bounds::of(second.terms);
        let test = |query: u32| {
            let terms = &self.wide_terms[query as usize];
            let test = if level == Part::Third { terms.third(bounds) } else { terms.fourth(bounds) };
            if self.parts.has(level) {
                test
            } else {
                WideTest { inside: f32::INFINITY, outside: f32::NEG_INFINITY, ..test }
            }
        };
        let residuals = second.terms[field::THIRD_RESIDUAL..].first_chunk::<TILE>().expect("a tile");
        if level == Part::Last {
            with.quarters.clear(with.still.len());
            with.still.iter().for_each(|place| with.quarters.note(*place as usize, with.masks[*place as usize]));
            self.kernels.refine(second, &with.open, &with.quarters, &mut with.values);
        }
        // Both lists without a branch, as above.
        let (mut together, mut alone, mut pairs) = (0, 0, 0);
        with.asked.resize(with.still.len(), 0);
        with.asked_places.resize(with.still.len(), 0);
        with.alone.resize(with.still.len(), 0);
        for place in with.still.iter().map(|place| *place as usize) {
            let rows = with.masks[place].count_ones();
            let are_many = rows >= DENSE_ROWS;
            pairs += if are_many { rows } else { 0 };
            (with.asked[together], with.asked_places[together], with.alone[alone]) = (with.open[place], place, place);
            together += usize::from(are_many);
            alone += usize::from(!are_many);
        }
        with.asked.truncate(together);
        with.asked_places.truncate(together);
        with.alone.truncate(alone);
        if pairs >= DENSE_PAIRS {
            if !late.is_interleaved {
                late.is_interleaved = true;
                late.interleaved.resize(TILE * (to - from));
                for start in (0..codes.len().div_ceil(stride)).step_by(QUARTER) {
                    let into = &mut late.interleaved[start * 4..];
                    self.kernels.interleave(&codes[start * stride..], stride, to - from, into);
                }
            }
            with.tests.clear();
            with.tests.extend(with.asked.iter().map(|query| test(*query)));
            with.decisions.resize(with.asked.len(), Decision::default());
            let wide_tile = WideTile {
                codes: &late.interleaved,
                bytes: to - from,
                query_codes: &self.wide_codes,
                stride,
                from,
                queries: &with.asked,
                places: &with.asked_places,
                tests: &with.tests,
                residuals,
            };
            self.kernels.wide_tile(&wide_tile, &mut with.values, &mut with.decisions);
            for (place, decision) in with.asked_places.iter().zip(&with.decisions) {
                let own = &mut out[with.places[*place]];
                own.inside |= own.unsure & decision.inside;
                own.unsure &= decision.unsure;
            }
        } else {
            with.alone.append(&mut with.asked_places);
        }
        let rows = WideRows { codes, stride, residuals };
        let (query_codes, values) = (&*self.wide_codes, &mut *with.values);
        for place in &with.alone {
            let (own, query) = (&mut out[with.places[*place]], with.open[*place]);
            let code = &query_codes[query as usize * stride..][from..to];
            let decision = self.kernels.wide_rows(&rows, code, with.masks[*place], &mut values[*place], &test(query));
            own.inside |= decision.inside;
            own.unsure = decision.unsure;
        }
        let (mut left, mut count) = (0, 0);
        for i in 0..with.still.len() {
            let place = with.still[i] as usize;
            let mask = out[with.places[place]].unsure;
            with.masks[place] = mask;
            left |= mask;
            with.still[count] = place as u32;
            count += usize::from(mask != 0);
        }
        with.still.truncate(count);
        Ok(left)
    }
}
