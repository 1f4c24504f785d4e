//! Which rows lie inside each cap, and how far they are.

use std::ops::Range;

use rayon::prelude::*;

use super::walk::{Sink, Walk, positions_of};
use crate::caps::Caps;
use crate::control::Control;
use crate::distance::Kernels;
use crate::error::Result;
use crate::exact;
use crate::threads::Threads;
use crate::tree::Tree;

/// The rows inside each cap of a batch, in compressed sparse row form.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RangeResult {
    /// Rows of cap `i` stand at `offsets[i]..offsets[i + 1]`.
    pub offsets: Vec<i64>,
    /// Row numbers.
    pub rows: Vec<i64>,
    /// Real cosine distances rounded to float64.
    pub distances: Vec<f64>,
}

/// How [`Tree::search`] orders and cuts its answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct SearchOptions {
    /// Nearest first, equal distances by row; otherwise in tree order.
    pub sort: bool,
    /// At most this many rows per cap: the nearest ones with `sort`, otherwise the first in tree order.
    pub limit: Option<usize>,
}

/// One (distance, row) of a cap.
type Found = (f64, i64);

fn order(a: &Found, b: &Found) -> std::cmp::Ordering {
    a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
}

struct Rows<'a> {
    tree: &'a Tree,
    caps: &'a Caps<'a>,
    options: SearchOptions,
    first: usize,
    found: Vec<Vec<Found>>,
    wide: Vec<f32>,
}

impl Rows<'_> {
    fn push(&mut self, cap: usize, position: usize) -> Result<()> {
        let limit = self.options.limit.unwrap_or(usize::MAX);
        let found = &mut self.found[cap - self.first];
        if found.len() >= limit && !self.options.sort {
            return Ok(());
        }
        self.tree.vectors.widen(position, &mut self.wide)?;
        let distance = exact::distance(Kernels::get(), self.caps.center(cap), &self.wide);
        found.push((distance, self.tree.rows.get(position)?));
        // With twice the rows that are wanted, the farther half can go: memory stays in proportion to the limit.
        if self.options.sort && found.len() >= limit.saturating_mul(2).max(1024) {
            found.select_nth_unstable_by(limit - 1, order);
            found.truncate(limit);
        }
        Ok(())
    }
}

impl Sink for Rows<'_> {
    fn all(&mut self, cap: usize, positions: Range<usize>) -> Result<()> {
        positions.into_iter().try_for_each(|p| self.push(cap, p))
    }

    fn some(&mut self, cap: usize, start: usize, mask: u64) -> Result<()> {
        positions_of(start, mask).try_for_each(|p| self.push(cap, p))
    }

    fn is_done(&self, cap: usize) -> bool {
        !self.options.sort && self.options.limit.is_some_and(|l| self.found[cap - self.first].len() >= l)
    }
}

impl Tree {
    /// The rows inside each cap and their distances, exactly.
    ///
    /// Errors: as [`Tree::count`].
    pub fn search(
        &self,
        caps: &Caps<'_>,
        options: SearchOptions,
        threads: &Threads,
        control: &Control,
    ) -> Result<RangeResult> {
        self.check_dim(caps)?;
        let mut result = RangeResult { offsets: vec![0], ..RangeResult::default() };
        if options.limit == Some(0) {
            result.offsets.resize(caps.len() + 1, 0);
            return Ok(result);
        }
        let walk = Walk::new(self, caps, control)?;
        let blocks = walk.blocks();
        control.phase("search", (blocks.len() * walk.tasks()) as u64);
        for block in blocks {
            let active: Vec<usize> = block.clone().collect();
            let mut parts: Vec<Vec<Vec<Found>>> = threads.run(|| {
                (0..walk.tasks())
                    .into_par_iter()
                    .map(|task| {
                        let (found, wide) = (vec![Vec::new(); block.len()], vec![0.0; self.dim]);
                        let mut sink = Rows { tree: self, caps, options, first: block.start, found, wide };
                        walk.run(&active, task, &mut sink)?;
                        control.add(1);
                        Ok(sink.found)
                    })
                    .collect::<Result<_>>()
            })?;
            for cap in 0..block.len() {
                let mut found: Vec<Found> = parts.iter_mut().flat_map(|p| std::mem::take(&mut p[cap])).collect();
                if options.sort {
                    found.sort_unstable_by(order);
                }
                found.truncate(options.limit.unwrap_or(usize::MAX));
                result.rows.extend(found.iter().map(|f| f.1));
                result.distances.extend(found.iter().map(|f| f.0));
                result.offsets.push(result.rows.len() as i64);
            }
        }
        Ok(result)
    }
}
