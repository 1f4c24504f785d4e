//! Steps 3 to 6, the code levels: all rows of a tile, one level after the other, each for what the one before leaves
//! open.

use super::first::First;
use super::full::Full;
use super::observer::{Observer, Step};
use super::second::Second;
use super::wide::Wide;
use crate::error::Result;
use crate::memory::AlignedVec;
use crate::sketch::{Decision, QueryCodes, TILE, kernel};

/// A tile, and the codes of its rows and of the queries.
pub(super) struct Tile<'a> {
    pub number: usize,
    pub codes: &'a QueryCodes<'a>,
    pub rows: kernel::Second<'a>,
}

/// The queries that have open rows in a tile after the first level.
#[derive(Default)]
pub(super) struct Open {
    /// Their places in the list of all queries, and their numbers.
    pub places: Vec<usize>,
    pub queries: Vec<u32>,
    /// Of each, the rows that are still open, and what the dot products of these are estimated at.
    pub masks: Vec<u64>,
    pub values: AlignedVec<[f32; TILE]>,
    /// Which of them have open rows still.
    pub left: Vec<u32>,
}

/// The levels, with their buffers.
pub(crate) struct Levels<O> {
    observer: O,
    open: Open,
    first: First,
    second: Second,
    full: Full,
    third: Wide,
    fourth: Wide,
}

impl<O: Observer> Levels<O> {
    pub fn new(observer: O) -> Self {
        Levels {
            observer,
            open: Open::default(),
            first: First::default(),
            second: Second::default(),
            full: Full::default(),
            third: Wide::new(Step::Third),
            fourth: Wide::new(Step::Fourth),
        }
    }

    /// The same, which a matrix unit goes through with all queries that have more than one row open, however few.
    #[cfg(test)]
    pub fn eager(mut self) -> Self {
        self.full.least_pairs = 0;
        self
    }

    /// Takes the rows of a tile through all levels for some queries: `out[i]` decides for `queries[i]` the rows that
    /// are bits of `valid`.
    pub fn decide(
        &mut self,
        codes: &QueryCodes<'_>,
        tile: usize,
        queries: &[u32],
        valid: u64,
        out: &mut [Decision],
    ) -> Result<()> {
        let observer = self.observer;
        let left_open = |step: Step, out: &[Decision]| observer.left_open(step, || rows(out));
        let tile = Tile { number: tile, codes, rows: codes.rows(tile)? };
        self.first.decide(&tile, (queries, valid), observer, &mut self.open, out);
        left_open(Step::First, out);
        let mut wanted = self.second.decide(&tile, &self.first.sums, observer, &mut self.open, out);
        left_open(Step::Second, out);
        let wide = [Step::Third, Step::Fourth];
        let all_count = wide.into_iter().all(|step| observer.makes(step) && observer.counts(step));
        if wanted != 0 && all_count && codes.unit_split().is_some() {
            wanted = self.full.decide(&tile, wanted, &mut self.open, out)?;
        }
        for (step, level) in [(Step::Third, &mut self.third), (Step::Fourth, &mut self.fourth)] {
            if wanted != 0 && observer.makes(step) {
                wanted = level.decide(&tile, wanted, observer, &mut self.open, out)?;
            }
            left_open(step, out);
        }
        Ok(())
    }
}

/// Open rows of all queries together.
fn rows(decisions: &[Decision]) -> usize {
    decisions.iter().map(|decision| decision.unsure.count_ones() as usize).sum()
}
