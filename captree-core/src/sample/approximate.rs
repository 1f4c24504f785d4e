//! The published two-stage scheme: density estimates at the root's children, then a row.

use std::collections::HashSet;
use std::ops::Range;

use rayon::prelude::*;

use super::{SampleOptions, occurrences};
use crate::caps::{Caps, Relation};
use crate::control::{Call, Control};
use crate::distance::TILE;
use crate::error::{Error, Result};
use crate::memory::filled;
use crate::rng::{Key, Purpose, Stream};
use crate::scan::{hits, positions_of, relations};
use crate::tree::{Dead, Segment, Tree};
use crate::vectors::{row, with_elements};

/// Caps that one task handles.
const BLOCK: usize = 128;

impl Tree {
    /// `k` rows per cap by the two-stage scheme with density estimates.
    ///
    /// The root's children inside the cap count whole; those that cross it are estimated from `density_samples` rows of
    /// each, drawn once for the batch. A child is drawn in proportion to its estimate, then one of its rows: any row of
    /// a child inside, one of the sample's hits in a child that crosses. Where the estimates add up to zero and
    /// something crosses, the cap is sampled exactly. The draws are biased: in crossing children only rows of the
    /// shared sample can come, and a child whose sample misses the cap never does. Errors: as [`Tree::sample`].
    pub fn sample_approximate(
        &self,
        caps: &Caps<'_>,
        options: SampleOptions,
        density_samples: usize,
        call: &Call,
    ) -> Result<Vec<i64>> {
        options.check()?;
        self.check_dim(caps)?;
        if density_samples == 0 {
            return Err(Error::parameter("density_samples", "at least 1", 0));
        }
        let mut rows = filled(caps.len(), options.k, -1)?;
        let mut parts = Vec::new();
        for (segment, place) in self.segments().iter().zip(0..) {
            let nodes = if segment.nodes[0].is_leaf() { 0..1 } else { segment.nodes[0].child_range() };
            let dead = segment.dead()?;
            parts.extend(nodes.map(|node| Part::new(segment, place, dead, node, density_samples, options.seed)));
        }
        let key = |(content, before): (u128, u64)| {
            Key::new(Purpose::ApproximateDraws, options.seed, &[&content.to_le_bytes(), &before.to_le_bytes()])
        };
        let keys: Vec<Key> = occurrences(caps).map(key).collect();
        let all: Vec<usize> = (0..caps.len()).collect();
        call.phase("sample", caps.len() as u64);
        let of_block = |block: &[usize]| {
            let strata = self.strata(caps, block, &parts, call)?;
            call.add(block.len() as u64);
            let draws = block.iter().zip(&strata).map(|(cap, s)| s.draw(&keys[*cap], &options, &parts));
            Ok(draws.collect::<Vec<_>>())
        };
        let drawn: Vec<Option<Vec<Place>>> =
            call.run(|| all.par_chunks(BLOCK).map(of_block).collect::<Result<Vec<_>>>())?.concat();
        for (out, places) in rows.chunks_exact_mut(options.k).zip(&drawn) {
            for (row, (segment, position)) in out.iter_mut().zip(places.iter().flatten()) {
                *row = self.segments()[*segment].row_at(*position)?;
            }
        }
        self.fall_back(caps, &drawn, &mut rows, options, call)?;
        Ok(rows)
    }

    /// Samples the caps without an estimate exactly.
    fn fall_back(
        &self,
        caps: &Caps<'_>,
        drawn: &[Option<Vec<Place>>],
        rows: &mut [i64],
        options: SampleOptions,
        call: &Call,
    ) -> Result<()> {
        let missed: Vec<usize> = (0..caps.len()).filter(|c| drawn[*c].is_none()).collect();
        let centers: Vec<f32> = missed.iter().flat_map(|c| caps.center(*c)).copied().collect();
        let bounds: Vec<f64> = missed.iter().map(|c| caps.bound(*c)).collect();
        let exact = self.sample(&Caps::new(self.dim, &centers, &bounds)?, options, call)?;
        for (cap, found) in missed.iter().zip(exact.chunks_exact(options.k)) {
            rows[cap * options.k..(cap + 1) * options.k].copy_from_slice(found);
        }
        Ok(())
    }

    fn strata(&self, caps: &Caps<'_>, block: &[usize], parts: &[Part<'_>], control: &Control) -> Result<Vec<Strata>> {
        let mut strata: Vec<Strata> = block.iter().map(|_| Strata::default()).collect();
        for (number, part) in parts.iter().enumerate().filter(|(_, part)| part.alive > 0) {
            control.check()?;
            let (segment, node) = (part.segment, part.node);
            let mut crossing = Vec::new();
            relations(segment, segment.centers()?, caps, block, node..node + 1, |i, _, relation| {
                match relation {
                    Relation::Outside => {}
                    Relation::Inside => strata[i].add_whole(number, part.alive),
                    Relation::Crossing => crossing.push(i),
                }
                Ok(())
            })?;
            let active: Vec<usize> = crossing.iter().map(|i| block[*i]).collect();
            let mut masks = vec![vec![0u64; part.sample.len().div_ceil(TILE)]; active.len()];
            with_elements!(&segment.vectors, array => {
                let at = |position: &usize| row(array, *position, self.dim);
                let rows = part.sample.iter().map(at).collect::<Result<Vec<_>>>()?;
                hits(&rows, caps, &active, |i, first, mask| masks[i][first / TILE] = mask);
            });
            for (i, masks) in crossing.iter().zip(masks) {
                strata[*i].add_sampled(number, part.alive as f64 / part.sample.len() as f64, masks);
            }
        }
        Ok(strata)
    }
}

/// A segment, by its place, and a tree position there.
type Place = (usize, usize);

/// A child of a segment's root, and the rows of it that are tested.
struct Part<'a> {
    segment: &'a Segment,
    place: usize,
    dead: &'a Dead,
    node: usize,
    /// Rows below that are not deleted.
    alive: usize,
    /// Tree positions of some of these.
    sample: Vec<usize>,
}

impl<'a> Part<'a> {
    fn new(segment: &'a Segment, place: usize, dead: &'a Dead, node: usize, samples: usize, seed: u64) -> Self {
        let range = segment.nodes[node].range();
        let alive = range.len() - dead.count_in(&range);
        let bytes = [segment.range().start as u64, node as u64].map(u64::to_le_bytes);
        let stream = Key::new(Purpose::DensitySample, seed, &[&bytes[0], &bytes[1]]).stream(0);
        let sample = match alive {
            all if all == range.len() => distinct(range, samples, stream),
            _ => {
                let there: Vec<usize> = range.filter(|position| !dead.contains(*position)).collect();
                distinct(0..there.len(), samples, stream).into_iter().map(|i| there[i]).collect()
            }
        };
        Part { segment, place, dead, node, alive, sample }
    }

    /// The tree position of a random row below.
    fn any(&self, stream: &mut Stream) -> usize {
        let range = self.segment.nodes[self.node].range();
        loop {
            let position = range.start + stream.below(range.len() as u64) as usize;
            if !self.dead.contains(position) {
                return position;
            }
        }
    }
}

/// One cap's picture of the parts.
#[derive(Default)]
struct Strata {
    parts: Vec<(f64, Stratum)>,
    crosses: bool,
}

/// Rows of a part: all of them, or those of its sample that lie inside.
#[derive(Clone)]
enum Stratum {
    Whole { part: usize, rows: usize },
    Sampled { part: usize, hits: Vec<u32> },
}

impl Strata {
    fn add_whole(&mut self, part: usize, rows: usize) {
        self.parts.push((rows as f64, Stratum::Whole { part, rows }));
    }

    /// `weight`: rows that one sampled row stands for.
    fn add_sampled(&mut self, part: usize, weight: f64, masks: Vec<u64>) {
        self.crosses = true;
        let hits: Vec<u32> =
            masks.iter().enumerate().flat_map(|(t, m)| positions_of(t * TILE, *m)).map(|i| i as u32).collect();
        if !hits.is_empty() {
            self.parts.push((weight * hits.len() as f64, Stratum::Sampled { part, hits }));
        }
    }

    /// Places of the draws; none to ask for the exact path.
    fn draw(&self, key: &Key, options: &SampleOptions, parts: &[Part<'_>]) -> Option<Vec<Place>> {
        let total: f64 = self.parts.iter().map(|p| p.0).sum();
        if total == 0.0 {
            return if self.crosses { None } else { Some(Vec::new()) };
        }
        let support: usize = self.parts.iter().map(|(_, s)| s.len()).sum();
        let wanted = if options.replace { options.k } else { options.k.min(support) };
        let mut taken = HashSet::new();
        let draws = (0..wanted).map(|draw| {
            let mut stream = key.stream(draw as u64);
            loop {
                let place = self.one(total, &mut stream, parts);
                if options.replace || taken.insert(place) {
                    return place;
                }
            }
        });
        Some(draws.collect())
    }

    fn one(&self, total: f64, stream: &mut Stream, parts: &[Part<'_>]) -> Place {
        let mut at = stream.unit() * total;
        let mut chosen = &self.parts[self.parts.len() - 1].1;
        for (weight, stratum) in &self.parts {
            if at < *weight {
                chosen = stratum;
                break;
            }
            at -= weight;
        }
        match chosen {
            Stratum::Whole { part, .. } => (parts[*part].place, parts[*part].any(stream)),
            Stratum::Sampled { part, hits } => {
                let hit = hits[stream.below(hits.len() as u64) as usize];
                (parts[*part].place, parts[*part].sample[hit as usize])
            }
        }
    }
}

impl Stratum {
    fn len(&self) -> usize {
        match self {
            Stratum::Whole { rows, .. } => *rows,
            Stratum::Sampled { hits, .. } => hits.len(),
        }
    }
}

/// `count` distinct positions of a range, uniformly; all of them where there are no more (Floyd's algorithm).
fn distinct(range: Range<usize>, count: usize, mut stream: Stream) -> Vec<usize> {
    if range.len() <= count {
        return range.collect();
    }
    let mut chosen = HashSet::with_capacity(count);
    let mut positions = Vec::with_capacity(count);
    for top in range.len() - count..range.len() {
        let pick = stream.below(top as u64 + 1) as usize;
        let pick = if chosen.insert(pick) {
            pick
        } else {
            chosen.insert(top);
            top
        };
        positions.push(range.start + pick);
    }
    positions
}
