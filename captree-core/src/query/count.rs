//! How many rows lie inside each cap.

use std::ops::Range;

use super::walk::{BATCH, Sink, Walk};
use crate::ablation::{Ablation, Parts, Tally};
use crate::caps::Caps;
use crate::control::Control;
use crate::error::Result;
use crate::threads::Threads;
use crate::tree::Tree;

/// Counts of a block of caps; memory does not grow with the matches.
struct Counts(Vec<i64>);

impl Sink for Counts {
    fn all(&mut self, i: usize, positions: Range<usize>) -> Result<()> {
        self.0[i] += positions.len() as i64;
        Ok(())
    }

    fn some(&mut self, i: usize, _start: usize, mask: u64) -> Result<()> {
        self.0[i] += i64::from(mask.count_ones());
        Ok(())
    }

    fn is_done(&self, _i: usize) -> bool {
        false
    }
}

/// What a cap meets in some tiles: those with rows inside, and these rows.
#[derive(Clone, Copy, Default)]
pub(crate) struct Met {
    pub tiles: usize,
    pub rows: usize,
}

struct Meetings(Vec<Met>);

impl Sink for Meetings {
    fn all(&mut self, i: usize, positions: Range<usize>) -> Result<()> {
        self.0[i].tiles += 1;
        self.0[i].rows += positions.len();
        Ok(())
    }

    fn some(&mut self, i: usize, _start: usize, mask: u64) -> Result<()> {
        self.0[i].tiles += 1;
        self.0[i].rows += mask.count_ones() as usize;
        Ok(())
    }

    fn is_done(&self, _i: usize) -> bool {
        false
    }
}

impl Tree {
    /// Number of rows inside each cap, exactly.
    ///
    /// Errors: [`crate::error::Error::InvalidCaps`] for a wrong dimension, what reading a tree on disk gives, and
    /// [`crate::error::Error::Interrupted`].
    pub fn count(&self, caps: &Caps<'_>, threads: &Threads, control: &Control) -> Result<Vec<i64>> {
        self.count_by(caps, None, threads, control)
    }

    /// [`Tree::count`] with some parts of the walk only, and which part decided how many (cap, row) pairs. For measurement.
    #[doc(hidden)]
    pub fn ablate(
        &self,
        caps: &Caps<'_>,
        parts: Parts,
        threads: &Threads,
        control: &Control,
    ) -> Result<(Vec<i64>, Tally)> {
        let ablation = Ablation::new(parts);
        let counts = self.count_by(caps, Some(&ablation), threads, control)?;
        Ok((counts, ablation.total()))
    }

    fn count_by(
        &self,
        caps: &Caps<'_>,
        ablation: Option<&Ablation>,
        threads: &Threads,
        control: &Control,
    ) -> Result<Vec<i64>> {
        self.check_dim(caps)?;
        control.phase("count", Walk::jobs(self, caps.len()));
        let all: Vec<usize> = (0..caps.len()).collect();
        let mut counts = Vec::with_capacity(caps.len());
        for batch in all.chunks(BATCH) {
            let blocks = threads.run(|| {
                let walk = Walk::new(self, caps, batch, control)?.with(ablation);
                walk.run(|block| Counts(vec![0; block.len()]))
            })?;
            for (size, parts) in blocks {
                counts.extend((0..size).map(|i| parts.iter().map(|p| p.0[i]).sum::<i64>()));
            }
        }
        Ok(counts)
    }
}

impl Walk<'_> {
    /// What each cap of the walk meets in these tiles (64 neighbors in tree order, given by their number).
    pub fn met(&self, tiles: &[usize]) -> Result<Vec<Met>> {
        let mut met = Vec::new();
        for (size, parts) in self.run_tiles(tiles, |block| Meetings(vec![Met::default(); block.len()]))? {
            let total = |i: usize| {
                let each = parts.iter().map(|p| p.0[i]);
                each.fold(Met::default(), |a, b| Met { tiles: a.tiles + b.tiles, rows: a.rows + b.rows })
            };
            met.extend((0..size).map(total));
        }
        Ok(met)
    }
}
