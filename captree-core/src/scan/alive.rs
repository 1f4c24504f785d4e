//! Deleted rows, which the steps decide like any others and no sink sees.

use std::ops::Range;

use super::Sink;
use super::masks::bits_of;
use crate::distance::TILE;
use crate::error::Result;
use crate::tree::Dead;

/// Passes on what is not deleted.
pub(super) struct Alive<'a, S> {
    pub dead: &'a Dead,
    pub sink: S,
}

impl<S: Sink> Sink for Alive<'_, S> {
    fn all(&mut self, i: usize, positions: Range<usize>) -> Result<()> {
        if self.dead.count_in(&positions) == 0 {
            return self.sink.all(i, positions);
        }
        positions.clone().step_by(TILE).try_for_each(|start| self.some(i, start, bits_of(start, &positions)))
    }

    fn some(&mut self, i: usize, start: usize, mask: u64) -> Result<()> {
        match mask & !self.dead.mask(start) {
            0 => Ok(()),
            alive => self.sink.some(i, start, alive),
        }
    }

    fn is_done(&self, i: usize) -> bool {
        self.sink.is_done(i)
    }
}
