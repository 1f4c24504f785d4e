//! The exact nearest rows of each query.

use std::collections::BinaryHeap;
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

/// The nearest rows of each query, nearest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Nearest {
    /// `q * k` row numbers; -1 where the tree has fewer than `k` rows.
    pub rows: Vec<i64>,
    /// `q * k` real cosine distances rounded to float64; infinite where there is no row.
    pub distances: Vec<f64>,
}

/// Queries that share the rows they load.
const BLOCK: usize = 64;

/// The best `k` (distance, row) so far; ties go to the lower row.
struct Best {
    k: usize,
    found: BinaryHeap<Entry>,
}

#[derive(Clone, Copy, PartialEq)]
struct Entry(f64, i64);

impl Eq for Entry {}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Best {
    /// A row with a real dot product below this cannot be among the best.
    fn threshold(&self) -> f64 {
        match self.found.peek() {
            Some(worst) if self.found.len() == self.k => 1.0 - worst.0 - 4.0 * f64::EPSILON,
            _ => f64::NEG_INFINITY,
        }
    }

    fn push(&mut self, entry: Entry) {
        if self.found.len() < self.k {
            self.found.push(entry);
        } else if let Some(mut worst) = self.found.peek_mut()
            && entry < *worst
        {
            *worst = entry;
        }
    }
}

/// The search in one segment.
struct Search<'a, E: Element> {
    segment: &'a Segment,
    dead: &'a Dead,
    array: &'a Array<E>,
    centers: &'a [f32],
    control: &'a Control,
    error: f64,
    k: usize,
}

/// One query of a block.
struct Query<'a> {
    vector: &'a [f32],
    best: &'a mut Best,
    /// Tree positions that were looked at first.
    home: Range<usize>,
    /// A row in float32.
    row: Vec<f32>,
}

/// The queries of a block in one segment, with their codes and buffers.
struct Block<'a, 'b, E: Element> {
    search: &'a Search<'a, E>,
    queries: Vec<Query<'b>>,
    codes: QueryCodes<'a>,
    levels: Levels<()>,
    decisions: Vec<Decision>,
}

impl Tree {
    /// The `k` rows nearest to each query (unit vectors, `dim` coordinates each), exactly.
    ///
    /// Errors: [`Error::InvalidCaps`] for a wrong dimension or queries that are not unit, [`Error::InvalidParameter`]
    /// for `k` of 0, what reading a tree on disk gives, and [`Error::Interrupted`].
    pub fn nearest(&self, queries: &[f32], k: usize, call: &Call) -> Result<Nearest> {
        if k == 0 {
            return Err(Error::parameter("k", "at least 1", 0));
        }
        let count = queries.len() / self.dim;
        let mut result = Nearest { rows: filled(count, k, -1)?, distances: filled(count, k, f64::INFINITY)? };
        let bounds = vec![2.0; count];
        let caps = Caps::new(self.dim, queries, &bounds)?;
        call.phase("nearest", count as u64);
        // Enough blocks for every thread, few enough that a block shares the codes it loads.
        let block = count.div_ceil(call.threads()).clamp(1, BLOCK);
        let all: Vec<usize> = (0..count).collect();
        let (error, k_found) = (f32_error(self.dim), k.min(self.alive()));
        let best = call.run(|| {
            with_segments!(self, typed => {
                let mut searches = Vec::with_capacity(typed.len());
                for Typed { segment, array } in typed {
                    let (dead, centers) = (segment.dead()?, segment.centers()?);
                    searches.push(Search { segment, dead, array, centers, control: call, error, k: k_found });
                }
                let blocks = all.par_chunks(block).map(|block| nearest_of(&searches, &caps, block, k_found, call));
                Ok(blocks.collect::<Result<Vec<_>>>()?.concat())
            })
        })?;

        for (q, found) in best.iter().enumerate() {
            for (i, entry) in found.iter().enumerate() {
                result.distances[q * k + i] = entry.0;
                result.rows[q * k + i] = entry.1;
            }
        }
        Ok(result)
    }
}

/// The best rows of a block of queries, nearest first: thresholds go from segment to segment.
fn nearest_of<E: Element>(
    searches: &[Search<'_, E>],
    caps: &Caps<'_>,
    block: &[usize],
    k: usize,
    control: &Control,
) -> Result<Vec<Vec<Entry>>> {
    let mut best: Vec<Best> = block.iter().map(|_| Best { k, found: BinaryHeap::new() }).collect();
    searches.iter().try_for_each(|search| search.block(caps, block, &mut best))?;
    control.add(block.len() as u64);
    let sorted = |best: Best| {
        let mut found = best.found.into_vec();
        found.sort_unstable();
        found
    };
    Ok(best.into_iter().map(sorted).collect())
}

impl<E: Element> Search<'_, E> {
    /// Scans the segment for a block of queries. A query's threshold, its `k`-th best so far, starts from the leaf that
    /// a greedy descent reaches; tiles and rows that cannot reach it are left out, the likeliest tiles come first.
    fn block(&self, caps: &Caps<'_>, block: &[usize], best: &mut [Best]) -> Result<()> {
        let query = |(q, best): (&usize, _)| {
            let row = vec![0.0; self.segment.dim];
            let mut query = Query { vector: caps.center(*q), best, home: 0..0, row };
            query.home = self.descend(&mut query)?;
            Ok(query)
        };
        let mut codes = QueryCodes::new(&self.segment.sketch, caps, block);
        let queries = block.iter().zip(best).map(query).collect::<Result<Vec<_>>>()?;
        queries.iter().enumerate().for_each(|(q, query)| codes.set_threshold(q, query.best.threshold()));
        let mut block = Block { search: self, queries, codes, levels: Levels::new(()), decisions: Vec::new() };
        let open = block.tiles()?;
        // Tiles that many queries of the block reach are likely to raise many thresholds.
        let mut order: Vec<usize> = (0..open.len()).filter(|t| !open[*t].is_empty()).collect();
        order.sort_by_key(|t| std::cmp::Reverse(open[*t].len()));
        for tile in order {
            self.control.check()?;
            block.tile(tile, &open[tile])?;
        }
        Ok(())
    }

    /// Fills a query's best from around the leaf that a greedy descent reaches; returns these tree positions.
    fn descend(&self, query: &mut Query<'_>) -> Result<Range<usize>> {
        let d = self.segment.dim;
        let mut i = 0;
        while !self.segment.nodes[i].is_leaf() {
            let children = self.segment.nodes[i].child_range();
            let centers: Vec<&[f32]> = self.centers[children.start * d..children.end * d].chunks_exact(d).collect();
            let mut dots = vec![0.0f32; centers.len()];
            Kernels::get().dots(&centers, &[query.vector], &mut dots);
            let nearest = dots.iter().enumerate().fold(0, |best, (c, dot)| if *dot > dots[best] { c } else { best });
            i = children.start + nearest;
        }
        // Neighbors in tree order are siblings: enough of them that the first threshold means something.
        let (leaf, around) = (self.segment.nodes[i].range(), (4 * self.k).max(TILE));
        let range = leaf.start.saturating_sub(around)..(leaf.end + around).min(self.segment.kept());
        let alive: Vec<usize> = range.clone().filter(|position| !self.dead.contains(*position)).collect();
        for positions in alive.chunks(TILE) {
            self.consider(positions, query)?;
        }
        Ok(range)
    }

    /// Takes the rows at some tree positions into a query's best.
    fn consider(&self, positions: &[usize], query: &mut Query<'_>) -> Result<()> {
        let rows = positions.iter().map(|p| row(self.array, *p, self.segment.dim)).collect::<Result<Vec<_>>>()?;
        let mut dots = [0.0f32; TILE];
        let dots = &mut dots[..rows.len()];
        Kernels::get().dots(&rows, &[query.vector], dots);
        for ((dot, row), position) in dots.iter().zip(rows).zip(positions) {
            if f64::from(*dot) + self.error >= query.best.threshold() {
                E::widen(row, &mut query.row);
                let distance = exact::distance(Kernels::get(), query.vector, &query.row);
                query.best.push(Entry(distance, self.segment.row_at(*position)?));
            }
        }
        Ok(())
    }
}

impl<E: Element> Block<'_, '_, E> {
    /// Per tile, the queries that may have some of their best rows there.
    fn tiles(&mut self) -> Result<Vec<Vec<u32>>> {
        let all: Vec<u32> = (0..self.queries.len() as u32).collect();
        let count = self.search.segment.kept().div_ceil(TILE);
        let mut open: Vec<Vec<u32>> = vec![Vec::new(); count];
        self.decisions.resize(all.len(), Decision::default());
        for group in 0..count.div_ceil(TILE) {
            self.search.control.check()?;
            tiles::decide(&self.codes, group, &all, (), &mut self.decisions)?;
            let valid = bits_of(group * TILE, &(0..count));
            for (q, decision) in all.iter().zip(&self.decisions) {
                positions_of(group * TILE, (decision.inside | decision.unsure) & valid).for_each(|t| open[t].push(*q));
            }
        }
        Ok(open)
    }

    /// Looks at the rows of a tile for some queries, and moves their thresholds.
    fn tile(&mut self, tile: usize, queries: &[u32]) -> Result<()> {
        let start = tile * TILE;
        let valid = bits_of(start, &(0..self.search.segment.kept())) & !self.search.dead.mask(start);
        self.decisions.resize(queries.len(), Decision::default());
        self.levels.decide(&self.codes, tile, queries, valid, &mut self.decisions)?;
        for (q, decision) in queries.iter().zip(&self.decisions) {
            let q = *q as usize;
            let query = &mut self.queries[q];
            let left = (decision.inside | decision.unsure) & valid & !bits_of(start, &query.home);
            if left != 0 {
                let positions: Vec<usize> = positions_of(start, left).collect();
                self.search.consider(&positions, query)?;
                self.codes.set_threshold(q, query.best.threshold());
            }
        }
        Ok(())
    }
}
