//! Step 4, the second level: those sixteen rows of a tile among which some are open.
//!
//! Reads the codes of more columns, 8 bits each, interleaved like the first level's, and two numbers per row. Decides
//! in both directions. Costs one byte per row and added column, and a float32 test of each row; it also gives the
//! float32 values that the wide levels go on from.

use super::levels::{Open, Tile};
use super::observer::{Observer, Step};
use crate::sketch::kernel::{OpenRows, Quarters};
use crate::sketch::{Decision, TILE};

/// The second level, with its buffers.
#[derive(Default)]
pub(super) struct Second {
    decisions: Vec<Decision>,
    quarters: Quarters,
}

impl Second {
    /// Decides the open rows, going on from the `sums` of the first level; returns which rows any query has left.
    pub fn decide(
        &mut self,
        tile: &Tile<'_>,
        sums: &[[i32; TILE]],
        observer: impl Observer,
        open: &mut Open,
        out: &mut [Decision],
    ) -> u64 {
        self.decisions.resize(open.queries.len(), Decision::default());
        if observer.makes(Step::Second) {
            let rows = OpenRows { queries: &open.queries, masks: &open.masks, places: &open.places, sums };
            let kernels = tile.codes.kernels();
            if tile.codes.unit_split().is_some() {
                kernels.unit_second(&tile.rows, &rows, &mut self.decisions, &mut open.values);
            } else {
                kernels.second(&tile.rows, &rows, &mut self.decisions, &mut open.values, &mut self.quarters);
            }
        }
        if !observer.counts(Step::Second) {
            self.decisions.fill(Decision::OPEN);
        }
        let (mut wanted, mut count) = (0, 0);
        open.left.resize(open.queries.len(), 0);
        for (place, ((n, decision), mask)) in open.places.iter().zip(&self.decisions).zip(&mut open.masks).enumerate() {
            let known = &mut out[*n];
            known.then(*decision);
            *mask = known.unsure;
            wanted |= *mask;
            // Without a branch, as in the first level.
            open.left[count] = place as u32;
            count += usize::from(*mask != 0);
        }
        open.left.truncate(count);
        wanted
    }
}
