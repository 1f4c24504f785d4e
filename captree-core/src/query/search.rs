//! Which rows lie inside each cap, and how far they are.

use std::ops::Range;

use crate::caps::Caps;
use crate::control::Call;
use crate::distance::Kernels;
use crate::error::Result;
use crate::exact;
use crate::scan::{BATCH, Scan, Sink, positions_of};
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
    block: Vec<usize>,
    options: SearchOptions,
    found: Vec<Vec<Found>>,
    wide: Vec<f32>,
}

impl Rows<'_> {
    fn push(&mut self, i: usize, position: usize) -> Result<()> {
        let limit = self.options.limit.unwrap_or(usize::MAX);
        let found = &mut self.found[i];
        if found.len() >= limit && !self.options.sort {
            return Ok(());
        }
        self.tree.vectors.widen(position, &mut self.wide)?;
        let distance = exact::distance(Kernels::get(), self.caps.center(self.block[i]), &self.wide);
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
    fn all(&mut self, i: usize, positions: Range<usize>) -> Result<()> {
        positions.into_iter().try_for_each(|p| self.push(i, p))
    }

    fn some(&mut self, i: usize, start: usize, mask: u64) -> Result<()> {
        positions_of(start, mask).try_for_each(|p| self.push(i, p))
    }

    fn is_done(&self, i: usize) -> bool {
        !self.options.sort && self.options.limit.is_some_and(|l| self.found[i].len() >= l)
    }
}

impl Tree {
    /// The rows inside each cap and their distances, exactly.
    ///
    /// Errors: as [`Tree::count`].
    pub fn search(&self, caps: &Caps<'_>, options: SearchOptions, call: &Call) -> Result<RangeResult> {
        self.check_dim(caps)?;
        let mut result = RangeResult { offsets: vec![0], ..RangeResult::default() };
        if options.limit == Some(0) {
            result.offsets.resize(caps.len() + 1, 0);
            return Ok(result);
        }
        call.phase("search", Scan::units(self, caps.len()));
        let all: Vec<usize> = (0..caps.len()).collect();
        for batch in all.chunks(BATCH) {
            let sink = |block: &[usize]| Rows {
                tree: self,
                caps,
                block: block.to_vec(),
                options,
                found: vec![Vec::new(); block.len()],
                wide: vec![0.0; self.dim],
            };
            for (size, mut parts) in
                call.run(|| Scan::new(self, caps, batch, call)?.run(sink, |caps| call.add(caps)))?
            {
                for i in 0..size {
                    let mut found: Vec<Found> =
                        parts.iter_mut().flat_map(|p| std::mem::take(&mut p.found[i])).collect();
                    if options.sort {
                        found.sort_unstable_by(order);
                    }
                    found.truncate(options.limit.unwrap_or(usize::MAX));
                    result.rows.extend(found.iter().map(|f| f.1));
                    result.distances.extend(found.iter().map(|f| f.0));
                    result.offsets.push(result.rows.len() as i64);
                }
            }
        }
        Ok(result)
    }
}
