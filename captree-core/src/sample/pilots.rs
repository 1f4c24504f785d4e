//! The pilot set: a fixed part of the tree's tiles, from which a batch of caps learns how many tries a draw may take.

use std::ops::{Add, Range};

use crate::distance::TILE;
use crate::error::Result;
use crate::rng::{Key, Purpose};
use crate::scan::{Scan, Sink};

/// Tiles of the tree for each tile of the pilot set: it costs a small part of what a list costs.
const TILES_PER_PILOT: usize = 32;

/// One of each so many tiles of a segment, the same for every call.
pub(super) struct Pilots {
    tiles: Vec<usize>,
    /// Rows of these tiles.
    pub rows: usize,
}

/// What a cap has in the pilot set: tiles with rows inside, and these rows.
#[derive(Clone, Copy, Default)]
pub(super) struct Hits {
    pub tiles: usize,
    pub rows: usize,
}

impl Add for Hits {
    type Output = Hits;

    fn add(self, other: Hits) -> Hits {
        Hits { tiles: self.tiles + other.tiles, rows: self.rows + other.rows }
    }
}

impl Hits {
    /// About as many of its rows as can be counted on: neighbors lie inside together, so the rows of few tiles say
    /// little about others. All of them less two standard deviations of the number of tiles, but at least one of each.
    pub fn surely(&self) -> usize {
        let less = self.tiles.saturating_sub(2 * self.tiles.isqrt());
        self.tiles.max(self.rows * less / self.tiles.max(1))
    }
}

impl Pilots {
    /// For a segment of `n` rows; small ones have none.
    pub fn of(n: usize) -> Self {
        let mut stream = Key::new(Purpose::Pilots, 0, &[]).stream(0);
        let pick = |i: usize| i * TILES_PER_PILOT + stream.below(TILES_PER_PILOT as u64) as usize;
        let tiles: Vec<usize> = (0..n / TILE / TILES_PER_PILOT).map(pick).collect();
        let rows = tiles.len() * TILE;
        Pilots { tiles, rows }
    }

    /// What each cap of a scan has in the pilot set.
    pub fn hits(&self, scan: &Scan<'_>) -> Result<Vec<Hits>> {
        let mut hits = Vec::new();
        for (size, parts) in scan.run_tiles(&self.tiles, |block| BlockHits(vec![Hits::default(); block.len()]))? {
            let total = |i: usize| {
                let each = parts.iter().map(|p| p.0[i]);
                each.fold(Hits::default(), Add::add)
            };
            hits.extend((0..size).map(total));
        }
        Ok(hits)
    }
}

/// What the caps of a block have.
struct BlockHits(Vec<Hits>);

impl Sink for BlockHits {
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
