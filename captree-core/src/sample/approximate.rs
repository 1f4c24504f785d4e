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
use crate::tree::Tree;

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
        let parts = if self.nodes[0].is_leaf() { 0..1 } else { self.nodes[0].child_range() };
        let samples: Vec<Vec<usize>> = parts
            .clone()
            .map(|node| {
                let key = Key::new(Purpose::DensitySample, options.seed, &[&(node as u64).to_le_bytes()]);
                distinct(self.nodes[node].range(), density_samples, key.stream(0))
            })
            .collect();
        let key = |(content, before): (u128, u64)| {
            Key::new(Purpose::ApproximateDraws, options.seed, &[&content.to_le_bytes(), &before.to_le_bytes()])
        };
        let keys: Vec<Key> = occurrences(caps).map(key).collect();
        let all: Vec<usize> = (0..caps.len()).collect();
        call.phase("sample", caps.len() as u64);
        let drawn: Vec<Option<Vec<usize>>> = call
            .run(|| {
                all.par_chunks(BLOCK)
                    .map(|block| {
                        let strata = self.strata(caps, block, parts.clone(), &samples, call)?;
                        call.add(block.len() as u64);
                        let draws = block.iter().zip(&strata).map(|(cap, s)| s.draw(&keys[*cap], &options, &samples));
                        Ok(draws.collect::<Vec<_>>())
                    })
                    .collect::<Result<Vec<_>>>()
            })?
            .into_iter()
            .flatten()
            .collect();
        for (out, positions) in rows.chunks_exact_mut(options.k).zip(&drawn) {
            for (row, position) in out.iter_mut().zip(positions.iter().flatten()) {
                *row = self.row_at(*position)?;
            }
        }
        self.fall_back(caps, &drawn, &mut rows, options, call)?;
        Ok(rows)
    }

    /// Samples the caps without an estimate exactly.
    fn fall_back(
        &self,
        caps: &Caps<'_>,
        drawn: &[Option<Vec<usize>>],
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

    fn strata(
        &self,
        caps: &Caps<'_>,
        block: &[usize],
        parts: Range<usize>,
        samples: &[Vec<usize>],
        control: &Control,
    ) -> Result<Vec<Strata>> {
        let mut strata: Vec<Strata> = block.iter().map(|_| Strata::default()).collect();
        let mut crossing = vec![Vec::new(); parts.len()];
        relations(self, self.centers()?, caps, block, parts.clone(), |i, node, relation| {
            match relation {
                Relation::Outside => {}
                Relation::Inside => strata[i].add_whole(self.nodes[node].range()),
                Relation::Crossing => crossing[node - parts.start].push(i),
            }
            Ok(())
        })?;
        for (part, crossing) in crossing.iter().enumerate() {
            control.check()?;
            let active: Vec<usize> = crossing.iter().map(|i| block[*i]).collect();
            let mut masks = vec![vec![0u64; samples[part].len().div_ceil(TILE)]; active.len()];
            hits(self, caps, &active, &samples[part], |i, first, mask| masks[i][first / TILE] = mask)?;
            let rows = self.nodes[parts.start + part].rows as f64;
            for (i, masks) in crossing.iter().zip(masks) {
                strata[*i].add_sampled(part, rows / samples[part].len() as f64, masks);
            }
        }
        Ok(strata)
    }
}

/// One cap's picture of the root's children.
#[derive(Default)]
struct Strata {
    parts: Vec<(f64, Stratum)>,
    crosses: bool,
}

enum Stratum {
    Whole(Range<usize>),
    Sampled { part: usize, hits: Vec<u32> },
}

impl Strata {
    fn add_whole(&mut self, rows: Range<usize>) {
        self.parts.push((rows.len() as f64, Stratum::Whole(rows)));
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

    /// Tree positions of the draws; none to ask for the exact path.
    fn draw(&self, key: &Key, options: &SampleOptions, samples: &[Vec<usize>]) -> Option<Vec<usize>> {
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
                let position = self.one(total, &mut stream, samples);
                if options.replace || taken.insert(position) {
                    return position;
                }
            }
        });
        Some(draws.collect())
    }

    fn one(&self, total: f64, stream: &mut Stream, samples: &[Vec<usize>]) -> usize {
        let mut at = stream.unit() * total;
        let mut chosen = &self.parts[self.parts.len() - 1].1;
        for (weight, stratum) in &self.parts {
            if at < *weight {
                chosen = stratum;
                break;
            }
            at -= weight;
        }
        let rank = stream.below(chosen.len() as u64) as usize;
        match chosen {
            Stratum::Whole(range) => range.start + rank,
            Stratum::Sampled { part, hits } => samples[*part][hits[rank] as usize],
        }
    }
}

impl Stratum {
    fn len(&self) -> usize {
        match self {
            Stratum::Whole(range) => range.len(),
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
