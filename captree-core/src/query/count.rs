//! How many rows lie inside each cap.

use std::ops::Range;

use crate::ablation::{Ablation, StepSet, Tally};
use crate::caps::Caps;
use crate::control::Call;
use crate::error::Result;
use crate::scan::{BATCH, Observer, Scan, Sink};
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

impl Tree {
    /// Number of rows inside each cap, exactly.
    ///
    /// Errors: [`crate::error::Error::InvalidCaps`] for a wrong dimension, what reading a tree on disk gives, and
    /// [`crate::error::Error::Interrupted`].
    pub fn count(&self, caps: &Caps<'_>, call: &Call) -> Result<Vec<i64>> {
        self.count_by(caps, (), call)
    }

    /// [`Tree::count`] with some steps of the scan only, and which step decided how many (cap, row) pairs. For
    /// measurement.
    #[doc(hidden)]
    pub fn ablate(&self, caps: &Caps<'_>, steps: StepSet, call: &Call) -> Result<(Vec<i64>, Tally)> {
        let ablation = Ablation::new(steps);
        let counts = self.count_by(caps, &ablation, call)?;
        Ok((counts, ablation.tally()))
    }

    fn count_by(&self, caps: &Caps<'_>, observer: impl Observer, call: &Call) -> Result<Vec<i64>> {
        self.check_dim(caps)?;
        call.phase("count", Scan::units(self, caps.len()));
        let all: Vec<usize> = (0..caps.len()).collect();
        let mut counts = Vec::with_capacity(caps.len());
        for batch in all.chunks(BATCH) {
            let blocks = call.run(|| {
                let scan = Scan::observed(self, caps, batch, call, observer)?;
                scan.run(|block| Counts(vec![0; block.len()]), |caps| call.add(caps))
            })?;
            for (size, parts) in blocks {
                counts.extend((0..size).map(|i| parts.iter().map(|p| p.0[i]).sum::<i64>()));
            }
        }
        Ok(counts)
    }
}
