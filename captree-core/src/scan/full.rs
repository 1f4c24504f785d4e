//! Steps 5 and 6 at once, where the processor has a matrix unit: all rows of a tile, by all columns, for the queries
//! with more than one row that is open.
//!
//! Reads what the third and the fourth level read, and decides what they would decide together, in both directions. The
//! unit takes a tile's rows for 32 queries at a time, so that rows that are not open cost less than picking the others.

use super::levels::{Open, Tile};
use super::tiles::TILES_TOGETHER;
use super::wide::ReadTile;
use crate::error::Result;
use crate::sketch::kernel::Workspace;
use crate::sketch::{Decision, wide_bytes};

/// Open rows of a query from which it takes all rows of a tile.
const ROWS: u32 = 2;

/// Open rows, of all such queries, from which that pays for interleaving the tile's codes.
const PAIRS: u32 = 1000;

/// The step, with its buffers.
pub(super) struct Full {
    /// Open rows from which it takes a tile.
    pub least_pairs: u32,
    workspace: Workspace,
    queries: Vec<u32>,
    places: Vec<usize>,
    decisions: Vec<Decision>,
    /// What was read of the last tiles.
    read: [ReadTile; TILES_TOGETHER],
}

impl Default for Full {
    fn default() -> Self {
        Full {
            least_pairs: PAIRS,
            workspace: Workspace::default(),
            queries: Vec::new(),
            places: Vec::new(),
            decisions: Vec::new(),
            read: Default::default(),
        }
    }
}

impl Full {
    /// Decides the open rows of queries with many of them, and leaves the other queries in `open.left`; returns which
    /// rows any of these has.
    pub fn decide(&mut self, tile: &Tile<'_>, wanted: u64, open: &mut Open, out: &mut [Decision]) -> Result<u64> {
        if !self.list(open) {
            return Ok(wanted);
        }
        let stride = wide_bytes(tile.codes.widths());
        let read = &mut self.read[tile.number % TILES_TOGETHER];
        read.start(tile.number);
        let codes = read.interleaved(tile.codes.kernels(), tile.codes.wide_rows(tile.number)?, stride, stride);
        self.decisions.resize(self.queries.len(), Decision::default());
        let full = tile.codes.full(&tile.rows, codes, (&self.queries, &self.places));
        tile.codes.kernels().unit_full(&full, &mut self.workspace, &open.values, &mut self.decisions);
        for (place, decision) in self.places.iter().zip(&self.decisions) {
            out[open.places[*place]].then(*decision);
        }
        Ok(open.left.iter().fold(0, |wanted, place| wanted | open.masks[*place as usize]))
    }

    /// Takes the queries with many open rows out of those that are left, unless they are too few; says whether it did.
    fn list(&mut self, open: &mut Open) -> bool {
        let most = open.left.len();
        self.queries.resize(most, 0);
        self.places.resize(most, 0);
        let rows_of = |place: u32| open.masks[place as usize].count_ones();
        // Without a branch, as in the first level.
        let (mut count, mut pairs) = (0, 0);
        for place in &open.left {
            let rows = rows_of(*place);
            (self.queries[count], self.places[count]) = (open.queries[*place as usize], *place as usize);
            count += usize::from(rows >= ROWS);
            pairs += if rows >= ROWS { rows } else { 0 };
        }
        if pairs < self.least_pairs {
            return false;
        }
        self.queries.truncate(count);
        self.places.truncate(count);
        open.left.retain(|place| rows_of(*place) < ROWS);
        true
    }
}
