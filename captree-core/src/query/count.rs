//! How many rows lie inside each cap.

use std::ops::Range;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering::Relaxed;

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

/// The same where a cap needs no more rows once it has so many: all tasks add to one count.
struct AtLeast<'a> {
    block: Vec<usize>,
    counts: &'a [AtomicI64],
    least: i64,
}

impl AtLeast<'_> {
    fn add(&self, i: usize, rows: i64) {
        self.counts[self.block[i]].fetch_add(rows, Relaxed);
    }
}

impl Sink for AtLeast<'_> {
    fn all(&mut self, i: usize, positions: Range<usize>) -> Result<()> {
        self.add(i, positions.len() as i64);
        Ok(())
    }

    fn some(&mut self, i: usize, _start: usize, mask: u64) -> Result<()> {
        self.add(i, i64::from(mask.count_ones()));
        Ok(())
    }

    fn is_done(&self, i: usize) -> bool {
        self.counts[self.block[i]].load(Relaxed) >= self.least
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

    /// The smaller of the number of rows inside each cap and `least`: a cap is done once so many rows are found.
    ///
    /// Errors: as [`Tree::count`].
    pub fn count_at_least(&self, caps: &Caps<'_>, least: u64, call: &Call) -> Result<Vec<i64>> {
        self.check_dim(caps)?;
        let least = i64::try_from(least).unwrap_or(i64::MAX);
        if least == 0 {
            return Ok(vec![0; caps.len()]);
        }
        call.phase("count", self.scan_units(caps.len()));
        let all: Vec<usize> = (0..caps.len()).collect();
        let counts: Vec<AtomicI64> = all.iter().map(|_| AtomicI64::new(0)).collect();
        for batch in all.chunks(BATCH) {
            let sink = |block: &[usize]| AtLeast { block: block.to_vec(), counts: &counts, least };
            for segment in self.segments() {
                call.run(|| Scan::new(segment, caps, batch, call)?.run(sink, |caps| call.add(caps)))?;
            }
        }
        Ok(counts.into_iter().map(|count| count.into_inner().min(least)).collect())
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
        call.phase("count", self.scan_units(caps.len()));
        let all: Vec<usize> = (0..caps.len()).collect();
        let mut counts = vec![0; caps.len()];
        for (batch, counts) in all.chunks(BATCH).zip(counts.chunks_mut(BATCH)) {
            for segment in self.segments() {
                let blocks = call.run(|| {
                    let scan = Scan::observed(segment, caps, batch, call, observer)?;
                    scan.run(|block| Counts(vec![0; block.len()]), |caps| call.add(caps))
                })?;
                let mut counts = counts.iter_mut();
                for (size, parts) in blocks {
                    for (i, count) in counts.by_ref().take(size).enumerate() {
                        *count += parts.iter().map(|p| p.0[i]).sum::<i64>();
                    }
                }
            }
        }
        Ok(counts)
    }

    /// What `done` of the segments' scans adds up to for so many caps.
    pub(super) fn scan_units(&self, caps: usize) -> u64 {
        self.segments().iter().map(|segment| Scan::units(segment, caps)).sum()
    }
}
