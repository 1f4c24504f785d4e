//! One task: the caps of a block against the rows of one subtree, or of some tiles, through all steps behind the nodes.

use std::ops::Range;

use super::Sink;
use super::levels::Levels;
use super::masks::{bits_of, positions_of};
use super::observer::{Observer, Step};
use super::rows::{OpenRows, RowDecider};
use super::tiles::{self, Crossing, TILES_TOGETHER, TileDecisions};
use crate::caps::Caps;
use crate::control::Control;
use crate::distance::TILE;
use crate::element::Element;
use crate::error::Result;
use crate::memory::AlignedVec;
use crate::sketch::{Decision, QueryCodes};
use crate::store::Array;
use crate::tree::Segment;

/// Caps that go through the levels of a tile together: enough that what a level does once for all of them costs little.
const CHUNK: usize = 512;

/// Numbers of a cache line.
const LINE: usize = 64 / size_of::<f32>();

/// Caps that are scanned together: their numbers, codes and centers.
pub(super) struct Block<'a> {
    pub caps: &'a [usize],
    codes: QueryCodes<'a>,
    /// Each center from a cache line on, `stride` numbers from one to the next.
    centers: AlignedVec<f32>,
    stride: usize,
}

impl<'a> Block<'a> {
    pub fn new(segment: &'a Segment, caps: &Caps<'_>, block: &'a [usize]) -> Self {
        let stride = caps.dim().next_multiple_of(LINE);
        let mut centers = AlignedVec::zeroed(block.len() * stride);
        for (center, cap) in centers.chunks_exact_mut(stride).zip(block) {
            center[..caps.dim()].copy_from_slice(caps.center(*cap));
        }
        Block { caps: block, codes: QueryCodes::new(&segment.sketch, caps, block), centers, stride }
    }
}

/// A block and a range of tree positions, with the buffers of all steps. Caps are numbered within the block.
pub(super) struct Task<'a, E: Element, O> {
    codes: &'a QueryCodes<'a>,
    range: Range<usize>,
    observer: O,
    /// Of each cap, what the tiles of a group are to it.
    groups: Vec<Decision>,
    /// Of each cap of a chunk, what the rows of some tiles are to it.
    found: Vec<TileDecisions>,
    /// The caps of a chunk that one of these tiles crosses, and what the tile's rows are to them.
    crossing: Crossing,
    decisions: Vec<Decision>,
    levels: Levels<O>,
    rows: OpenRows<'a, E>,
}

impl<'a, E: Element, O: Observer> Task<'a, E, O> {
    pub fn new(
        caps: &'a Caps<'a>,
        array: &'a Array<E>,
        block: &'a Block<'a>,
        range: Range<usize>,
        observer: O,
    ) -> Self {
        let centers = block.centers.chunks_exact(block.stride).map(|center| &center[..caps.dim()]).collect();
        Task {
            codes: &block.codes,
            range,
            observer,
            groups: Vec::new(),
            found: Vec::new(),
            crossing: Crossing::default(),
            decisions: Vec::new(),
            levels: Levels::new(observer),
            rows: OpenRows::new(caps.dim(), array, RowDecider::with(caps, block.caps, centers)),
        }
    }

    /// Decides all rows of the range for some caps.
    pub fn all(&mut self, mut caps: Vec<u32>, control: &Control, sink: &mut impl Sink) -> Result<()> {
        let tiles = self.range.start / TILE..self.range.end.div_ceil(TILE);
        for group in tiles.start / TILE..tiles.end.div_ceil(TILE) {
            control.check()?;
            caps.retain(|i| !sink.is_done(*i as usize));
            if caps.is_empty() {
                break;
            }
            self.group(group, &tiles, &caps, sink)?;
        }
        self.observer.left_open(Step::Rows, || self.rows.decided_exactly());
        Ok(())
    }

    /// Decides the rows of some tiles, given by their numbers, for all caps of the block.
    pub fn some(&mut self, tiles: &[usize], caps: usize, sink: &mut impl Sink) -> Result<()> {
        let caps: Vec<u32> = (0..caps as u32).collect();
        let open = [Decision::OPEN; CHUNK];
        for tiles in tiles.chunks(TILES_TOGETHER) {
            let tiles: Vec<(usize, usize)> = tiles.iter().map(|tile| (*tile, 0)).collect();
            caps.chunks(CHUNK).try_for_each(|caps| self.tiles(&tiles, caps, &open[..caps.len()], sink))?;
        }
        Ok(())
    }

    /// Sixty-four tiles, of which those in `tiles` belong to the range.
    fn group(&mut self, group: usize, tiles: &Range<usize>, caps: &[u32], sink: &mut impl Sink) -> Result<()> {
        let valid = bits_of(group * TILE, tiles);
        let mut decisions = std::mem::take(&mut self.groups);
        decisions.resize(caps.len(), Decision::default());
        tiles::decide(self.codes, group, caps, self.observer, &mut decisions)?;
        for first in (0..TILE).step_by(TILES_TOGETHER) {
            let some = valid & bits_of(0, &(first..first + TILES_TOGETHER));
            let tiles: Vec<(usize, usize)> = positions_of(0, some).map(|t| (group * TILE + t, t)).collect();
            for (caps, decisions) in caps.chunks(CHUNK).zip(decisions.chunks(CHUNK)) {
                self.tiles(&tiles, caps, decisions, sink)?;
            }
        }
        self.groups = decisions;
        Ok(())
    }

    /// At most [`TILES_TOGETHER`] tiles for at most [`CHUNK`] caps. With each tile comes which bit of the caps'
    /// `decisions` stands for it as a whole.
    fn tiles(
        &mut self,
        tiles: &[(usize, usize)],
        caps: &[u32],
        decisions: &[Decision],
        sink: &mut impl Sink,
    ) -> Result<()> {
        self.found.resize(caps.len(), TileDecisions::default());
        self.found.iter_mut().for_each(TileDecisions::clear);
        for (slot, (tile, bit)) in tiles.iter().enumerate() {
            let valid = bits_of(tile * TILE, &self.range);
            let whole = Decision { inside: valid, unsure: 0 };
            let found = &mut self.found;
            self.crossing.list(caps, decisions, *bit, |place| found[place].set(slot, whole));
            let (queries, places) = (&self.crossing.queries, &self.crossing.places);
            self.observer.left_open(Step::Tiles, || queries.len() * valid.count_ones() as usize);
            if !queries.is_empty() {
                self.decisions.resize(queries.len(), Decision::default());
                self.levels.decide(self.codes, *tile, queries, valid, &mut self.decisions)?;
                let each = places.iter().zip(&self.decisions);
                each.for_each(|(place, decision)| self.found[*place].set(slot, *decision));
            }
        }
        self.rows.decide(tiles, caps, &mut self.found)?;
        for (i, found) in caps.iter().zip(&self.found) {
            for slot in positions_of(0, u64::from(found.some)) {
                sink.some(*i as usize, tiles[slot].0 * TILE, found.decisions[slot].inside)?;
            }
        }
        Ok(())
    }
}
