//! Step 3, the first level: all rows of a tile in integers alone.
//!
//! Reads the codes of the first columns, 8 bits each, which lie interleaved, and two integers per row
//! ([`crate::sketch::Fold`]). Decides rows in one direction, the one that a row near the mean suggests: that they lie
//! outside, or inside. Costs one byte per row and column, and one comparison per row; most pairs that reach it end
//! here. Processors with a matrix unit read the second level's columns, too, for little more than the first ones cost.

use super::levels::{Open, Tile};
use super::observer::{Observer, Step};
use crate::memory::AlignedVec;
use crate::sketch::kernel::Workspace;
use crate::sketch::{Decision, TILE};

/// The first level, with its buffers.
pub(super) struct First {
    /// With a matrix unit, the rows' integers, and what the unit works in.
    pairs: [u32; TILE],
    workspace: Workspace,
    /// Per query, the rows that are left open.
    masks: Vec<u64>,
    /// Per query, the sums, from which the second level goes on; a matrix unit keeps those of queries with open rows.
    pub sums: AlignedVec<[i32; TILE]>,
}

impl Default for First {
    fn default() -> Self {
        let (masks, sums) = (Vec::new(), AlignedVec::default());
        First { pairs: [0; TILE], workspace: Workspace::default(), masks, sums }
    }
}

impl First {
    /// Decides the rows that are bits of `valid` for some queries, and lists the queries that have open ones.
    pub fn decide(
        &mut self,
        tile: &Tile<'_>,
        (queries, valid): (&[u32], u64),
        observer: impl Observer,
        open: &mut Open,
        out: &mut [Decision],
    ) {
        self.masks.resize(queries.len(), 0);
        self.sums.resize(queries.len());
        let (codes, kernels) = (tile.codes, tile.codes.kernels());
        let (masks, sums) = (&mut self.masks, &mut self.sums);
        if codes.unit_split().is_some() {
            codes.pairs(&tile.rows, &mut self.pairs);
            let kept = observer.counts(Step::First).then_some(valid);
            let joint = codes.joint(&tile.rows, &self.pairs);
            kernels.unit_first(&joint, queries, kept, &mut self.workspace, masks, sums);
        } else {
            kernels.first(&codes.first(&tile.rows), queries, masks, sums);
        }
        if !observer.counts(Step::First) {
            self.masks.fill(u64::MAX);
        }
        open.places.resize(queries.len(), 0);
        open.queries.resize(queries.len(), 0);
        open.masks.resize(queries.len(), 0);
        // Without a branch, which the processor would mispredict: every entry is written, and the next one overwrites
        // it unless it counts.
        let mut count = 0;
        for (n, ((query, mask), decision)) in queries.iter().zip(&self.masks).zip(out).enumerate() {
            let unsure = mask & valid;
            *decision = Decision { inside: tile.codes.first_inside(*query) & valid & !unsure, unsure };
            (open.places[count], open.queries[count], open.masks[count]) = (n, *query, unsure);
            count += usize::from(unsure != 0);
        }
        open.places.truncate(count);
        open.queries.truncate(count);
        open.masks.truncate(count);
        open.values.resize(count);
    }
}
