//! Step 2, tiles: 64 neighbors in tree order against a cap, by the code of their mean.
//!
//! Reads codes and terms of 64 tiles, a *group*, at a time, in the columns of the first two levels. Decides that all
//! rows of a tile lie inside a cap, or all outside. Costs per cap and tile what the first two levels cost per cap and
//! row, so a sixty-fourth of them per row.

use super::observer::{Observer, Step};
use crate::error::Result;
use crate::sketch::{Decision, QueryCodes};

/// Tiles that some caps go through, one after the other, before the next caps do: what the wide levels have read of so
/// many tiles is remembered until the last caps have come to them.
pub(super) const TILES_TOGETHER: usize = 8;

/// Decides 64 tiles for some queries: bit `b` of `out[i]` stands for all rows of tile `64 group + b`.
pub(crate) fn decide(
    codes: &QueryCodes<'_>,
    group: usize,
    queries: &[u32],
    observer: impl Observer,
    out: &mut [Decision],
) -> Result<()> {
    if observer.makes(Step::Tiles) {
        codes.kernels().group(&codes.tiles(group)?, queries, out);
    } else {
        out.fill(Decision::OPEN);
    }
    Ok(())
}

/// The caps that a tile crosses: their places in a list, and their numbers.
#[derive(Default)]
pub(super) struct Crossing {
    pub places: Vec<usize>,
    pub queries: Vec<u32>,
}

impl Crossing {
    /// Lists those among `queries` for which bit `t` of their decisions is open; calls `inside` for the places of those
    /// whose bit says that the whole tile lies inside.
    #[inline]
    pub fn list(&mut self, queries: &[u32], decisions: &[Decision], t: usize, mut inside: impl FnMut(usize)) {
        self.queries.resize(queries.len(), 0);
        self.places.resize(queries.len(), 0);
        // Without a branch, which the processor would mispredict: every entry is written, and the next one overwrites
        // it unless it counts.
        let mut count = 0;
        for (place, (query, decision)) in queries.iter().zip(decisions).enumerate() {
            (self.queries[count], self.places[count]) = (*query, place);
            count += (decision.unsure >> t & 1) as usize;
            if decision.inside >> t & 1 != 0 {
                inside(place);
            }
        }
        self.queries.truncate(count);
        self.places.truncate(count);
    }
}

/// What the rows of some tiles are to a cap. Most caps and tiles have nothing in common: two masks say which do.
#[derive(Clone, Copy, Default)]
pub(super) struct TileDecisions {
    pub decisions: [Decision; TILES_TOGETHER],
    /// One bit for each tile with rows inside, and with open rows; other decisions are from earlier tiles.
    pub some: u8,
    pub open: u8,
}

const _: () = assert!(TILES_TOGETHER <= u8::BITS as usize);

impl TileDecisions {
    #[inline(always)]
    pub fn clear(&mut self) {
        (self.some, self.open) = (0, 0);
    }

    #[inline(always)]
    pub fn set(&mut self, slot: usize, decision: Decision) {
        self.decisions[slot] = decision;
        self.some |= u8::from(decision.inside != 0) << slot;
        self.open |= u8::from(decision.unsure != 0) << slot;
    }

    /// Adds a row to those inside.
    #[inline(always)]
    pub fn add(&mut self, slot: usize, row: u64) {
        self.decisions[slot].inside |= row;
        self.some |= 1 << slot;
    }
}
