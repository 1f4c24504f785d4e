//! The exact nearest rows of each query.

use rayon::prelude::*;

use crate::caps::Caps;
use crate::control::Control;
use crate::distance::{Kernels, TILE, f32_error};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::exact;
use crate::store::Array;
use crate::threads::Threads;
use crate::tree::Tree;
use crate::vectors::{NormRange, norm, rows, with_elements};

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
    found: std::collections::BinaryHeap<Entry>,
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

struct Search<'a, E: Element> {
    tree: &'a Tree,
    array: &'a Array<E>,
    centers: &'a [f32],
    control: &'a Control,
    error: f64,
}

/// One query of a block.
struct Query<'a> {
    vector: &'a [f32],
    norm: NormRange,
    best: Best,
    wide: Vec<f32>,
}

impl Tree {
    /// The `k` rows nearest to each query (unit vectors, `dim` coordinates each), exactly.
    ///
    /// Errors: [`Error::InvalidCaps`] for a wrong dimension or queries that are not unit, [`Error::InvalidParameter`]
    /// for `k` of 0, what reading a tree on disk gives, and [`Error::Interrupted`].
    pub fn nearest(&self, queries: &[f32], k: usize, threads: &Threads, control: &Control) -> Result<Nearest> {
        if k == 0 {
            return Err(Error::InvalidParameter("expected k of at least 1, got 0".into()));
        }
        let count = queries.len() / self.dim;
        Caps::new(self.dim, queries, &vec![2.0; count])?;
        control.phase("nearest", count as u64);
        let kept = k.min(self.len());
        // Enough blocks for every thread, few enough that a block shares its rows.
        let block = count.div_ceil(threads.count()).clamp(1, BLOCK);
        let best: Vec<Vec<Entry>> = threads
            .run(|| {
                with_elements!(&self.vectors, array => {
                    let search =
                        Search { tree: self, array, centers: self.centers()?, control, error: f32_error(self.dim) };
                    queries.par_chunks(block * self.dim).map(|q| search.block(q, kept)).collect::<Result<Vec<_>>>()
                })
            })?
            .into_iter()
            .flatten()
            .collect();
        let mut result = Nearest { rows: vec![-1; count * k], distances: vec![f64::INFINITY; count * k] };
        for (q, found) in best.iter().enumerate() {
            for (i, entry) in found.iter().enumerate() {
                result.distances[q * k + i] = entry.0;
                result.rows[q * k + i] = entry.1;
            }
        }
        Ok(result)
    }
}

impl<E: Element> Search<'_, E> {
    fn block(&self, queries: &[f32], k: usize) -> Result<Vec<Vec<Entry>>> {
        let d = self.tree.dim;
        let mut queries: Vec<Query<'_>> = queries
            .chunks_exact(d)
            .map(|vector| Query {
                vector,
                norm: NormRange::of(norm(vector)),
                best: Best { k, found: Default::default() },
                wide: vec![0.0; d],
            })
            .collect();
        let homes = queries.iter_mut().map(|q| self.descend(q)).collect::<Result<Vec<_>>>()?;
        let mut stack = vec![(0, (0..queries.len()).collect::<Vec<usize>>())];
        while let Some((i, active)) = stack.pop() {
            self.control.check()?;
            let node = &self.tree.nodes[i];
            if node.is_leaf() {
                let active: Vec<usize> = active.into_iter().filter(|q| homes[*q] != i).collect();
                self.leaf(i, &active, &mut queries)?;
                continue;
            }
            let children = node.child_range();
            let dots = self.dots(children.clone(), &active, &queries);
            let count = children.len();
            let mut open = vec![(f64::NEG_INFINITY, Vec::new()); count];
            for (q, dots) in active.iter().zip(dots.chunks_exact(count)) {
                let query = &queries[*q];
                let threshold = query.best.threshold();
                for ((child, open), dot) in children.clone().zip(&mut open).zip(dots) {
                    if self.most(child, f64::from(*dot), query.norm) >= threshold {
                        open.0 = open.0.max(f64::from(*dot));
                        open.1.push(*q);
                    }
                }
            }
            // The child nearest to any of its queries comes first, so that thresholds rise early.
            let mut open: Vec<_> = children.zip(open).filter(|(_, (_, queries))| !queries.is_empty()).collect();
            open.sort_by(|a, b| a.1.0.total_cmp(&b.1.0));
            stack.extend(open.into_iter().map(|(child, (_, queries))| (child, queries)));
        }
        self.control.add(queries.len() as u64);
        Ok(queries
            .into_iter()
            .map(|q| {
                let mut found = q.best.found.into_vec();
                found.sort_unstable();
                found
            })
            .collect())
    }

    /// Fills a query's best from the leaf that a greedy descent reaches; returns the leaf.
    fn descend(&self, query: &mut Query<'_>) -> Result<usize> {
        let d = self.tree.dim;
        let mut i = 0;
        while !self.tree.nodes[i].is_leaf() {
            let children = self.tree.nodes[i].child_range();
            let centers: Vec<&[f32]> = self.centers[children.start * d..children.end * d].chunks_exact(d).collect();
            let mut dots = vec![0.0f32; centers.len()];
            Kernels::get().dots(&centers, &[query.vector], &mut dots);
            let nearest = dots.iter().enumerate().fold(0, |best, (c, dot)| if *dot > dots[best] { c } else { best });
            i = children.start + nearest;
        }
        self.leaf(i, &[0], std::slice::from_mut(query))?;
        Ok(i)
    }

    fn dots(&self, nodes: std::ops::Range<usize>, active: &[usize], queries: &[Query<'_>]) -> Vec<f32> {
        let d = self.tree.dim;
        let centers: Vec<&[f32]> = self.centers[nodes.start * d..nodes.end * d].chunks_exact(d).collect();
        let vectors: Vec<&[f32]> = active.iter().map(|q| queries[*q].vector).collect();
        let mut dots = vec![0.0f32; centers.len() * vectors.len()];
        Kernels::get().dots(&centers, &vectors, &mut dots);
        dots
    }

    /// Largest real dot product that a row below the node can have.
    fn most(&self, node: usize, dot: f64, query: NormRange) -> f64 {
        let norms = &self.tree.norms;
        self.tree.angles[node].dot_bounds(dot, self.error, query, norms.centers, norms.rows).1
    }

    fn leaf(&self, leaf: usize, active: &[usize], queries: &mut [Query<'_>]) -> Result<()> {
        let range = self.tree.nodes[leaf].range();
        let vectors: Vec<&[f32]> = active.iter().map(|q| queries[*q].vector).collect();
        let mut dots = vec![0.0f32; TILE * active.len()];
        for start in range.clone().step_by(TILE) {
            let tile = rows(self.array, start..(start + TILE).min(range.end), self.tree.dim)?;
            let dots = &mut dots[..tile.len() * active.len()];
            Kernels::get().dots(&tile, &vectors, dots);
            for (q, dots) in active.iter().zip(dots.chunks_exact(tile.len())) {
                let query = &mut queries[*q];
                let mut threshold = query.best.threshold();
                for (r, dot) in dots.iter().enumerate() {
                    if f64::from(*dot) + self.error >= threshold {
                        E::widen(tile[r], &mut query.wide);
                        let distance = exact::distance(Kernels::get(), query.vector, &query.wide);
                        query.best.push(Entry(distance, self.tree.rows.get(start + r)?));
                        threshold = query.best.threshold();
                    }
                }
            }
        }
        Ok(())
    }
}
