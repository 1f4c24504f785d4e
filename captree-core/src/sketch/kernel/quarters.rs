//! Which queries have open rows in which quarter of a tile.

use super::QUARTER;
use crate::sketch::TILE;

/// Of each sixteen rows of a tile, the places of the queries that have open rows among them.
#[derive(Default)]
pub(crate) struct Quarters {
    places: [Vec<u32>; TILE / QUARTER],
    counts: [usize; TILE / QUARTER],
}

impl Quarters {
    /// Starts anew, for at most `most` queries.
    #[inline(always)]
    pub fn clear(&mut self, most: usize) {
        self.counts = [0; TILE / QUARTER];
        for places in &mut self.places {
            if places.len() < most {
                places.resize(most, 0);
            }
        }
    }

    /// Notes the quarters in which a query has open rows. Without a branch, which the processor would mispredict: every
    /// entry is written, and the next one overwrites it unless it counts.
    #[inline(always)]
    pub fn note(&mut self, place: usize, mask: u64) {
        for (part, (places, count)) in self.places.iter_mut().zip(&mut self.counts).enumerate() {
            places[*count] = place as u32;
            *count += usize::from(mask >> (part * QUARTER) & 0xffff != 0);
        }
    }

    /// The quarters, each with its queries.
    #[inline(always)]
    pub fn parts(&self) -> impl Iterator<Item = (usize, &[u32])> {
        self.places.iter().zip(&self.counts).map(|(places, count)| &places[..*count]).enumerate()
    }
}
