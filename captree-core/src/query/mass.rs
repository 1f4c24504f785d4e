//! The smallest bound whose cap holds a given number of rows.
//!
//! Every row has a smallest float64 bound whose cap holds it, its real distance rounded up; the answer for k rows is
//! the k-th smallest of these. It is found without computing them all:
//!
//! 1. rows spread evenly over the tree give a band of dot products that very likely holds the k-th largest;
//! 2. one scan counts the rows surely above the band and keeps those not surely outside: tiles and rows by their codes
//!    ([`crate::sketch`]), what is left by float32 dot products and their error bound;
//! 3. of the rows kept, those that the error bound cannot tell from the k-th are computed exactly.
//!
//! A band that missed, which step 3 sees, is widened, in the end to everything; so the sample decides the time, never
//! the answer.

use std::ops::Range;

use rayon::prelude::*;

use crate::caps::Caps;
use crate::control::{Call, Control};
use crate::distance::{Kernels, TILE, f32_error};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::exact;
use crate::memory::filled;
use crate::scan::{Levels, bits_of, positions_of, tiles};
use crate::sketch::{Decision, QueryCodes};
use crate::store::Array;
use crate::tree::{Dead, Segment, Tree, Typed, with_segments};
use crate::vectors::row;

/// Centers that share the rows they load, at most.
const BLOCK: usize = 64;

/// Groups of 64 tiles that one task scans.
const PART: usize = 8;

/// The sample is one row in this many, but at least [`LEAST_SAMPLE`].
const SAMPLE_STEP: usize = 128;
const LEAST_SAMPLE: usize = 4096;

/// Bytes of kept rows that the blocks at work may fill, about, all together.
const KEPT_BYTES: usize = 1 << 28;

/// Beyond every dot product of an accepted row and center.
const BEYOND: f64 = 2.0;

/// Rows with a real dot product above `high` are counted, rows below `low` dropped.
#[derive(Clone, Copy)]
struct Band {
    low: f64,
    high: f64,
}

/// The rows in and above the band of one center.
#[derive(Clone, Default)]
struct BandRows {
    /// Rows surely above the band.
    above: usize,
    /// Float32 dot products of the rows not surely outside the band, and where these stand in all segments.
    kept: Vec<(f32, u32)>,
    /// Whether there were more of them than could be kept.
    crowded: bool,
}

/// A segment, its vectors, and how many stored rows stand in the segments before it.
struct Source<'a, E: Element> {
    segment: &'a Segment,
    dead: &'a Dead,
    array: &'a Array<E>,
    before: usize,
}

struct Search<'a, E: Element> {
    tree: &'a Tree,
    sources: &'a [Source<'a, E>],
    caps: &'a Caps<'a>,
    counts: &'a [usize],
    control: &'a Control,
    error: f64,
    /// The sample: places of segments, and tree positions there.
    sample: &'a [(usize, usize)],
    /// Rows that are kept for a center in each part of a scan, at most.
    limit: usize,
}

impl Tree {
    /// For each center (unit vectors, `dim` coordinates each) the smallest bound in [0, 2] whose cap holds at least as
    /// many rows as `counts` says, exactly.
    ///
    /// 2 where not even that bound holds them: rows and centers a little longer than 1 can be more than 2 apart.
    /// Errors: [`Error::InvalidCaps`] for a wrong dimension or centers that are not unit, [`Error::InvalidParameter`]
    /// for a count that is not between 1 and the number of rows, what reading a tree on disk gives, and
    /// [`Error::Interrupted`].
    pub fn radius_for_count(&self, centers: &[f32], counts: &[usize], call: &Call) -> Result<Vec<f64>> {
        if let Some((i, k)) = counts.iter().enumerate().find(|(_, k)| **k == 0 || **k > self.alive()) {
            let expected = format!("numbers between 1 and {}", self.alive());
            return Err(Error::parameter("counts", expected, format!("{k} for center {i}")));
        }
        let bounds = vec![2.0; counts.len()];
        let caps = Caps::new(self.dim, centers, &bounds)?;
        call.phase("radius", counts.len() as u64);
        let stored: usize = self.segments().iter().map(|segment| segment.kept()).sum();
        let size = (stored / SAMPLE_STEP).max(LEAST_SAMPLE).min(stored);
        // A band is at most about this many rows wide, and a slack of as many again costs little.
        let width = 2 * stored / size.max(1) * Band::margin(size / 2, size, 1.0) + TILE * TILE;
        let fits = KEPT_BYTES / call.threads() / (width * size_of::<(f32, u32)>());
        let block = counts.len().div_ceil(call.threads()).clamp(1, BLOCK.min(fits.max(1)));
        let all: Vec<usize> = (0..counts.len()).collect();
        let blocks: Vec<Vec<f64>> = call.run(|| {
            with_segments!(self, typed => {
                let mut sources: Vec<Source<'_, _>> = Vec::with_capacity(typed.len());
                let mut before = 0;
                for Typed { segment, array } in typed {
                    sources.push(Source { segment, dead: segment.dead()?, array, before });
                    before += segment.kept();
                }
                let spread = (0..size).map(|i| (i as u128 * stored as u128 / size as u128) as usize);
                let sample: Vec<(usize, usize)> = spread
                    .map(|place| place_among(&sources, place))
                    .filter(|(source, position)| !sources[*source].dead.contains(*position))
                    .collect();
                let search = Search {
                    tree: self,
                    sources: &sources,
                    caps: &caps,
                    counts,
                    control: call,
                    error: f32_error(self.dim),
                    sample: &sample,
                    limit: 2 * width,
                };
                all.par_chunks(block).map(|centers| search.block(centers)).collect::<Result<Vec<_>>>()
            })
        })?;
        Ok(blocks.into_iter().flatten().collect())
    }
}

/// The segment that holds a place among all stored rows, and the tree position there.
fn place_among<E: Element>(sources: &[Source<'_, E>], place: usize) -> (usize, usize) {
    let source = sources.partition_point(|source| source.before <= place).saturating_sub(1);
    (source, place - sources[source].before)
}

impl Band {
    /// Places in the sorted sample that the wanted one is likely within: three standard deviations of its
    /// hypergeometric law and a few, times `factor`. Rows spread over the tree, whose neighbors are alike, vary less
    /// than random ones.
    fn margin(place: usize, size: usize, factor: f64) -> usize {
        let share = place as f64 / size as f64;
        (factor * (3.0 * (place as f64 * (1.0 - share)).sqrt() + 3.0)).ceil() as usize
    }

    /// About the `k`-th largest of `n` dot products, by those of the sample in descending order.
    fn around(sorted: &[f32], k: usize, n: usize, error: f64, factor: f64) -> Band {
        let size = sorted.len();
        if size == 0 {
            return Band { low: -BEYOND, high: BEYOND };
        }
        let place = (k as u128 * size as u128 / n as u128) as usize;
        let margin = Band::margin(place, size, factor);
        // Four errors beyond a sampled value: a row of the same value is told from the band's ends.
        let high = place.checked_sub(margin).map_or(BEYOND, |i| f64::from(sorted[i]) + 4.0 * error);
        let low = sorted.get(place.saturating_add(margin)).map_or(-BEYOND, |s| f64::from(*s) - 4.0 * error);
        Band { low, high }
    }
}

impl<E: Element> Search<'_, E> {
    /// The bounds of some centers.
    fn block(&self, block: &[usize]) -> Result<Vec<f64>> {
        let samples = self.samples(block)?;
        let sketches = self.sources.iter().map(|source| &source.segment.sketch);
        let mut queries: Vec<_> = sketches.map(|sketch| QueryCodes::new(sketch, self.caps, &twice(block))).collect();
        let mut bounds = vec![f64::NAN; block.len()];
        let mut left: Vec<u32> = (0..block.len() as u32).collect();
        let mut factor = 1.0;
        while !left.is_empty() {
            let mut bands = vec![Band { low: -BEYOND, high: BEYOND }; block.len()];
            for j in left.iter().map(|j| *j as usize) {
                let (k, n) = (self.counts[block[j]], self.tree.alive());
                bands[j] = Band::around(&samples[j], k, n, self.error, factor);
                for queries in &mut queries {
                    queries.set_threshold(2 * j, bands[j].low);
                    queries.set_threshold(2 * j + 1, bands[j].high);
                }
            }
            let found = self.scan(block, &left, &queries, &bands, self.limit)?;
            let mut missed = Vec::new();
            for (j, mut found) in left.into_iter().zip(found) {
                if found.crowded {
                    // Very many rows are about as far as the wanted one: this center alone, whatever it takes.
                    found = self.scan(block, &[j], &queries, &bands, usize::MAX)?.swap_remove(0);
                }
                let j = j as usize;
                match self.finish(block[j], &bands[j], found)? {
                    Some(bound) => bounds[j] = bound,
                    None => missed.push(j as u32),
                }
            }
            left = missed;
            if factor.is_infinite() && !left.is_empty() {
                return Err(self.contradiction());
            }
            // Twelve deviations, then all rows.
            factor = if factor > 1.0 { f64::INFINITY } else { 4.0 };
        }
        self.control.add(block.len() as u64);
        Ok(bounds)
    }

    /// Float32 dot products of the sample with each center, in descending order.
    fn samples(&self, block: &[usize]) -> Result<Vec<Vec<f32>>> {
        let centers: Vec<&[f32]> = block.iter().map(|c| self.caps.center(*c)).collect();
        let parts = self
            .sample
            .par_chunks(PART * TILE)
            .map(|part| {
                self.control.check()?;
                let mut out: Vec<Vec<f32>> = vec![Vec::with_capacity(part.len()); block.len()];
                let mut dots = Vec::new();
                for tile in part.chunks(TILE) {
                    let sampled = |(s, p): &(usize, usize)| row(self.sources[*s].array, *p, self.tree.dim);
                    let rows = tile.iter().map(sampled).collect::<Result<Vec<_>>>()?;
                    dots.resize(rows.len() * centers.len(), 0.0);
                    Kernels::get().dots(&rows, &centers, &mut dots);
                    out.iter_mut().zip(dots.chunks_exact(rows.len())).for_each(|(o, d)| o.extend_from_slice(d));
                }
                Ok(out)
            })
            .collect::<Result<Vec<_>>>()?;
        let mut sorted: Vec<Vec<f32>> = vec![Vec::with_capacity(self.sample.len()); block.len()];
        for part in parts {
            sorted.iter_mut().zip(part).for_each(|(all, some)| all.extend(some));
        }
        sorted.par_iter_mut().for_each(|all| all.sort_unstable_by(|a, b| b.total_cmp(a)));
        Ok(sorted)
    }

    /// Scans all rows for the centers `active` of a block.
    fn scan(
        &self,
        block: &[usize],
        active: &[u32],
        queries: &[QueryCodes<'_>],
        bands: &[Band],
        limit: usize,
    ) -> Result<Vec<BandRows>> {
        let groups = |source: &Source<'_, E>| source.segment.kept().div_ceil(TILE).div_ceil(TILE);
        let tasks: Vec<(usize, Range<usize>)> = (0..self.sources.len())
            .flat_map(|s| {
                let groups = groups(&self.sources[s]);
                (0..groups).step_by(PART).map(move |first| (s, first..groups.min(first + PART)))
            })
            .collect();
        let parts = tasks
            .into_par_iter()
            .map(|(s, groups)| {
                let mut part = Part::new(self, &self.sources[s], block, active, &queries[s], bands, limit);
                groups.into_iter().try_for_each(|group| part.group(group))?;
                Ok(part.found)
            })
            .collect::<Result<Vec<_>>>()?;
        let mut found = vec![BandRows::default(); active.len()];
        for part in parts {
            for (all, some) in found.iter_mut().zip(part) {
                all.above += some.above;
                all.crowded |= some.crowded || all.kept.len().saturating_add(some.kept.len()) > limit;
                if all.crowded {
                    all.kept = Vec::new();
                } else {
                    all.kept.extend(some.kept);
                }
            }
        }
        Ok(found)
    }

    /// What only a tree can lead to that was not made by captree.
    fn contradiction(&self) -> Error {
        self.tree.corrupt("sketches and rows contradict each other".into())
    }

    /// The bound of one center from what a scan found, or nothing where the band missed.
    fn finish(&self, center: usize, band: &Band, rows: BandRows) -> Result<Option<f64>> {
        let BandRows { above, mut kept, .. } = rows;
        let k = self.counts[center];
        if k <= above || k > above + kept.len() {
            return Ok(None);
        }
        let (_, &mut (middle, _), _) = kept.select_nth_unstable_by(k - above - 1, |a, b| b.0.total_cmp(&a.0));
        // The k-th largest real dot product is within one error of the k-th largest float32 one, if the band holds it:
        // all rows counted lie above the band, all rows dropped below.
        let middle = f64::from(middle);
        if middle + self.error > band.high || middle - self.error < band.low {
            return Ok(None);
        }
        let surely = kept.iter().filter(|(dot, _)| f64::from(*dot) > middle + 2.0 * self.error).count();
        let close: Vec<u32> = kept
            .into_iter()
            .filter(|(dot, _)| (f64::from(*dot) - middle).abs() <= 2.0 * self.error)
            .map(|(_, position)| position)
            .collect();
        let mut wide = vec![0.0f32; self.tree.dim];
        let mut bounds = filled(1, close.len(), 0.0f64)?;
        for (i, (bound, position)) in bounds.iter_mut().zip(close).enumerate() {
            if i % (TILE * TILE) == 0 {
                self.control.check()?;
            }
            let (source, position) = place_among(self.sources, position as usize);
            E::widen(row(self.sources[source].array, position, self.tree.dim)?, &mut wide);
            *bound = least_bound(self.caps.center(center), &wide);
        }
        let place = (k - above - 1).checked_sub(surely).filter(|place| *place < bounds.len());
        let Some(place) = place else { return Err(self.contradiction()) };
        let (_, bound, _) = bounds.select_nth_unstable_by(place, f64::total_cmp);
        // Adding 0 turns -0 into 0.
        Ok(Some(bound.clamp(0.0, 2.0) + 0.0))
    }
}

/// The smallest float64 bound whose cap holds the row.
fn least_bound(center: &[f32], row: &[f32]) -> f64 {
    let nearest = exact::distance(Kernels::get(), center, row);
    if exact::is_inside(Kernels::get(), center, row, nearest) { nearest } else { nearest.next_up() }
}

/// Every number of `block` two times: a center has a query for each end of its band.
fn twice(block: &[usize]) -> Vec<usize> {
    block.iter().flat_map(|c| [*c, *c]).collect()
}

/// The scan of some groups of tiles, with its buffers.
struct Part<'a, E: Element> {
    search: &'a Search<'a, E>,
    source: &'a Source<'a, E>,
    block: &'a [usize],
    active: &'a [u32],
    queries: &'a QueryCodes<'a>,
    bands: &'a [Band],
    limit: usize,
    /// The queries of the active centers.
    numbers: Vec<u32>,
    decisions: Vec<Decision>,
    /// Per tile of the group: the places among the active centers whose band it meets.
    open: Vec<Vec<usize>>,
    levels: Levels<()>,
    /// The queries of those, and what a tile's rows are to them.
    ends: Vec<u32>,
    answers: Vec<Decision>,
    dots: Vec<f32>,
    found: Vec<BandRows>,
}

impl<'a, E: Element> Part<'a, E> {
    fn new(
        search: &'a Search<'a, E>,
        source: &'a Source<'a, E>,
        block: &'a [usize],
        active: &'a [u32],
        queries: &'a QueryCodes<'a>,
        bands: &'a [Band],
        limit: usize,
    ) -> Self {
        Part {
            search,
            source,
            block,
            active,
            queries,
            bands,
            limit,
            numbers: active.iter().flat_map(|j| [2 * j, 2 * j + 1]).collect(),
            decisions: vec![Decision::default(); 2 * active.len()],
            open: vec![Vec::new(); TILE],
            levels: Levels::new(()),
            ends: Vec::new(),
            answers: Vec::new(),
            dots: Vec::new(),
            found: vec![BandRows::default(); active.len()],
        }
    }

    fn group(&mut self, group: usize) -> Result<()> {
        self.search.control.check()?;
        let (kept, dead) = (self.source.segment.kept(), self.source.dead);
        let valid = bits_of(group * TILE, &(0..kept.div_ceil(TILE)));
        tiles::decide(self.queries, group, &self.numbers, (), &mut self.decisions)?;
        for (i, ends) in self.decisions.chunks_exact(2).enumerate() {
            let above = ends[1].inside & valid;
            let whole = |t: usize| {
                let rows = t * TILE..kept.min((t + 1) * TILE);
                rows.len() - dead.count_in(&rows)
            };
            self.found[i].above += positions_of(group * TILE, above).map(whole).sum::<usize>();
            let open = (ends[0].inside | ends[0].unsure) & valid & !above;
            positions_of(0, open).for_each(|t| self.open[t].push(i));
        }
        for t in 0..TILE {
            let open = std::mem::take(&mut self.open[t]);
            if !open.is_empty() {
                self.tile(group * TILE + t, &open)?;
            }
            self.open[t] = open;
            self.open[t].clear();
        }
        Ok(())
    }

    fn tile(&mut self, tile: usize, open: &[usize]) -> Result<()> {
        let (search, source) = (self.search, self.source);
        let start = tile * TILE;
        let valid = bits_of(start, &(0..source.segment.kept())) & !source.dead.mask(start);
        self.ends.clear();
        self.ends.extend(open.iter().flat_map(|i| [2 * self.active[*i], 2 * self.active[*i] + 1]));
        self.answers.resize(self.ends.len(), Decision::default());
        self.levels.decide(self.queries, tile, &self.ends, valid, &mut self.answers)?;
        for (i, ends) in open.iter().zip(self.answers.chunks_exact(2)) {
            let (place, found) = (self.active[*i] as usize, &mut self.found[*i]);
            let above = ends[1].inside & valid;
            found.above += above.count_ones() as usize;
            let left = (ends[0].inside | ends[0].unsure) & valid & !above;
            let at = |position| row(source.array, position, search.tree.dim);
            let rows = positions_of(start, left).map(at).collect::<Result<Vec<_>>>()?;
            self.dots.resize(rows.len(), 0.0);
            Kernels::get().dots(&rows, &[search.caps.center(self.block[place])], &mut self.dots);
            let band = self.bands[place];
            let (high, low) = (band.high + search.error, band.low - search.error);
            for (position, dot) in positions_of(start, left).zip(&self.dots) {
                let value = f64::from(*dot);
                if value > high {
                    found.above += 1;
                } else if value >= low && !found.crowded {
                    found.kept.push((*dot, (source.before + position) as u32));
                }
            }
            if found.kept.len() > self.limit {
                found.crowded = true;
                found.kept = Vec::new();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_bound_is_the_real_distance_rounded_up() {
        // 1 - <c, x> is 2^-60 below and above 0: neither is a float64 beside 1, both are by themselves.
        let (tiny, minus) = ([1.0f32, 2f32.powi(-30)], [1.0f32, -(2f32.powi(-30))]);
        assert_eq!(least_bound(&tiny, &tiny), -(2f64.powi(-60)));
        assert_eq!(least_bound(&tiny, &minus), 2f64.powi(-60));
        // 0.5 + 2^-70 rounds to 0.5, which does not hold the row.
        let (center, row) = ([1.0f32, 2f32.powi(-35)], [0.5f32, -(2f32.powi(-35))]);
        assert_eq!(exact::distance(Kernels::get(), &center, &row), 0.5);
        assert_eq!(least_bound(&center, &row), 0.5f64.next_up());
    }

    #[test]
    fn bands_hold_their_place_and_end_at_everything() {
        let sorted: Vec<f32> = (0..1000).map(|i| 1.0 - i as f32 / 1000.0).collect();
        let band = Band::around(&sorted, 50_000, 100_000, 1e-6, 1.0);
        assert!(band.low < 0.5 && 0.5 < band.high && band.high - band.low < 0.2);
        let all = Band::around(&sorted, 50_000, 100_000, 1e-6, f64::INFINITY);
        assert!(all.low == -BEYOND && all.high == BEYOND);
        assert_eq!(Band::around(&sorted, 1, 100_000, 1e-6, 1.0).high, BEYOND);
        assert_eq!(Band::around(&sorted, 100_000, 100_000, 1e-6, 1.0).low, -BEYOND);
    }
}
