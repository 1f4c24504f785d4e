//! The walk: which rows of a subtree lie inside each cap of a block.
//!
//! Every step settles what it can, in both directions, and passes the rest on:
//!
//! 1. the caps of large subtrees, by the triangle inequality ([`crate::caps::NodeAngle`]);
//! 2. tiles of 64 neighbors in tree order, by their prefix code and radius ([`crate::sketch`]);
//! 3. rows, by their codes in four levels, each of more columns than the one before;
//! 4. the stored rows, in float32 where its error bound allows, otherwise exactly ([`crate::exact`]).
//!
//! Blocks of caps share the codes that a tile loads.

mod masks;
mod rows;

use std::ops::Range;

use rayon::prelude::*;

use crate::ablation::{Ablation, OPEN, Part, Tally};
use crate::caps::{Caps, Relation};
use crate::control::Control;
use crate::distance::{Kernels, TILE, f32_error};
use crate::element::Element;
use crate::error::Result;
use crate::memory::Lined;
use crate::sketch::{Decision, IntKernels, QueryCodes, Settling, TILES_TOGETHER};
use crate::store::Array;
use crate::tree::Tree;
use crate::vectors::with_elements;

pub(crate) use masks::{bits_of, positions_of};
pub(crate) use rows::{Decider, hits};

/// Caps that are encoded, and walked together where the tree is large: they share what is read of the rows.
pub(crate) const BATCH: usize = 4096;

/// Fewest caps that are walked together, where a small tree has too few subtrees to keep all threads busy.
const LEAST_TOGETHER: usize = 256;

/// A subtree of fewer rows than this is one task: less than a few groups of tiles would not pay for the task.
const TASK_ROWS: usize = 16 * 1024;

/// Larger trees have larger tasks: of about this share of all rows.
const TASK_SHARE: usize = 16;

/// Caps that go through the levels of a tile together: enough that what a level does once for all of them costs little.
const CHUNK: usize = 512;

/// Numbers of a cache line.
const LINE: usize = 64 / size_of::<f32>();

/// Receives the rows inside each cap of a block, in tree order per cap.
pub(crate) trait Sink {
    /// All rows at these tree positions lie inside cap `i` of the block.
    fn all(&mut self, i: usize, positions: Range<usize>) -> Result<()>;
    /// Bit `b` of `mask` says that position `start + b` lies inside cap `i` of the block.
    fn some(&mut self, i: usize, start: usize, mask: u64) -> Result<()>;
    /// Whether cap `i` of the block needs no more rows of this task.
    fn is_done(&self, i: usize) -> bool;
}

/// Caps that are walked together.
struct Block<'a> {
    caps: &'a [usize],
    queries: QueryCodes<'a>,
    /// Their centers, each from a cache line on, `stride` numbers from one to the next.
    centers: Lined<f32>,
    stride: usize,
}

impl<'a> Block<'a> {
    fn new(tree: &'a Tree, caps: &Caps<'_>, active: &'a [usize]) -> Self {
        let stride = caps.dim().next_multiple_of(LINE);
        let mut centers = Lined::zeroed(active.len() * stride);
        for (center, cap) in centers.chunks_exact_mut(stride).zip(active) {
            center[..caps.dim()].copy_from_slice(caps.center(*cap));
        }
        Block { caps: active, queries: QueryCodes::new(&tree.sketch, caps, active), centers, stride }
    }
}

/// A tree, some caps of a batch, and how both are cut into tasks.
pub(crate) struct Walk<'a> {
    tree: &'a Tree,
    caps: &'a Caps<'a>,
    control: &'a Control,
    centers: &'a [f32],
    blocks: Vec<Block<'a>>,
    /// Roots of the subtrees that make a task each, in tree order.
    subtrees: Vec<usize>,
    ablation: Option<&'a Ablation>,
}

impl<'a> Walk<'a> {
    /// For the caps numbered `active`, at most [`BATCH`] of them. Errors: what reading a tree on disk gives.
    pub fn new(tree: &'a Tree, caps: &'a Caps<'a>, active: &'a [usize], control: &'a Control) -> Result<Self> {
        let subtrees = subtrees(tree);
        // So that a small tree has about as many pairs of a block and a subtree as a large one has subtrees.
        let together = (active.len() * subtrees.len() / TASK_SHARE).clamp(LEAST_TOGETHER, BATCH);
        let blocks = active.par_chunks(together).map(|block| Block::new(tree, caps, block)).collect();
        Ok(Walk { tree, caps, control, centers: tree.centers()?, blocks, subtrees, ablation: None })
    }

    /// The same walk with some parts only, if given.
    pub fn with(mut self, ablation: Option<&'a Ablation>) -> Self {
        self.ablation = ablation;
        if let Some(ablation) = ablation {
            self.blocks.iter_mut().for_each(|block| block.queries.only(ablation.parts));
        }
        self
    }

    /// Walks every block over every subtree in parallel, each pair with a sink of its own for as many caps as the block
    /// has. Returns per block its number of caps and the sinks in tree order. `done` is told how many caps a subtree is done
    /// with, [`Walk::units`] in all.
    pub fn run<S: Sink + Send>(
        &self,
        sink: impl Fn(&[usize]) -> S + Sync,
        done: impl Fn(u64) + Sync,
    ) -> Result<Vec<(usize, Vec<S>)>> {
        self.tasks(self.subtrees.len(), sink, |block, task, sink| {
            let root = self.subtrees[task];
            with_elements!(&self.tree.vectors, a => self.subtree(a, block, root, sink))?;
            done(block.caps.len() as u64);
            Ok(())
        })
    }

    /// The same over some tiles, each given by its number.
    pub fn run_tiles<S: Sink + Send>(
        &self,
        tiles: &[usize],
        sink: impl Fn(&[usize]) -> S + Sync,
    ) -> Result<Vec<(usize, Vec<S>)>> {
        let chunks: Vec<&[usize]> = tiles.chunks(TILE).collect();
        self.tasks(chunks.len(), sink, |block, task, sink| {
            self.control.check()?;
            let all: Vec<u32> = (0..block.caps.len() as u32).collect();
            let open = [OPEN; CHUNK];
            with_elements!(&self.tree.vectors, a => {
                let mut scan = Scan::new(self, a, block, 0..self.tree.len());
                for tiles in chunks[task].chunks(TILES_TOGETHER) {
                    let tiles: Vec<(usize, usize)> = tiles.iter().map(|tile| (*tile, 0)).collect();
                    all.chunks(CHUNK).try_for_each(|active| scan.tiles(&tiles, active, &open[..active.len()], sink))?;
                }
                Ok(())
            })
        })
    }

    fn tasks<S: Sink + Send>(
        &self,
        tasks: usize,
        sink: impl Fn(&[usize]) -> S + Sync,
        run: impl Fn(&Block<'_>, usize, &mut S) -> Result<()> + Sync,
    ) -> Result<Vec<(usize, Vec<S>)>> {
        let mut sinks = (0..self.blocks.len() * tasks)
            .into_par_iter()
            .map(|job| {
                let block = &self.blocks[job / tasks];
                let mut sink = sink(block.caps);
                run(block, job % tasks, &mut sink)?;
                Ok(sink)
            })
            .collect::<Result<Vec<S>>>()?
            .into_iter();
        Ok(self.blocks.iter().map(|block| (block.caps.len(), sinks.by_ref().take(tasks).collect())).collect())
    }

    /// What `done` of [`Walk::run`] adds up to for so many caps, however they are cut into blocks.
    pub fn units(tree: &Tree, caps: usize) -> u64 {
        (caps * subtrees(tree).len()) as u64
    }

    fn subtree<E: Element>(
        &self,
        array: &Array<E>,
        block: &Block<'_>,
        root: usize,
        sink: &mut impl Sink,
    ) -> Result<()> {
        let range = self.tree.nodes[root].range();
        let mut crossing: Vec<u32> = Vec::with_capacity(block.caps.len());
        let is_on = self.ablation.is_none_or(|a| a.parts.has(Part::Nodes));
        relations(self.tree, self.centers, self.caps, block.caps, root..root + 1, |i, _, relation| match relation {
            Relation::Outside if is_on => Ok(()),
            Relation::Inside if is_on => sink.all(i, range.clone()),
            _ => {
                crossing.push(i as u32);
                Ok(())
            }
        })?;
        let mut scan = Scan::new(self, array, block, range.clone());
        if let Some(tally) = &mut scan.settling.tally {
            tally.start(block.caps.len() * range.len());
            tally.pass(Part::Nodes, crossing.len() * range.len());
        }
        let tiles = range.start / TILE..range.end.div_ceil(TILE);
        for group in tiles.start / TILE..tiles.end.div_ceil(TILE) {
            self.control.check()?;
            crossing.retain(|i| !sink.is_done(*i as usize));
            if crossing.is_empty() {
                break;
            }
            scan.group(group, &tiles, &crossing, sink)?;
        }
        if let (Some(ablation), Some(mut tally)) = (self.ablation, scan.settling.tally) {
            tally.pass(Part::Float32, scan.decider.decided_exactly);
            ablation.add(&tally);
        }
        Ok(())
    }
}

/// Roots of the subtrees that make a task each, in tree order.
fn subtrees(tree: &Tree) -> Vec<usize> {
    let most = TASK_ROWS.max(tree.len() / TASK_SHARE);
    let mut found = Vec::new();
    let mut stack = vec![0];
    while let Some(i) = stack.pop() {
        let node = &tree.nodes[i];
        if node.rows as usize <= most || node.is_leaf() {
            found.push(i);
        } else {
            stack.extend(node.child_range().rev());
        }
    }
    found
}

/// What the rows of some tiles are to a cap. Most caps and tiles have nothing in common: two masks say which do.
#[derive(Clone, Copy, Default)]
struct Found {
    decisions: [Decision; TILES_TOGETHER],
    /// One bit for each tile with rows inside, and with open rows; other decisions are from earlier tiles.
    some: u8,
    open: u8,
}

const _: () = assert!(TILES_TOGETHER <= u8::BITS as usize);

impl Found {
    #[inline(always)]
    fn set(&mut self, slot: usize, decision: Decision) {
        self.decisions[slot] = decision;
        self.some |= u8::from(decision.inside != 0) << slot;
        self.open |= u8::from(decision.unsure != 0) << slot;
    }

    /// Adds a row to those inside.
    #[inline(always)]
    fn add(&mut self, slot: usize, row: u64) {
        self.decisions[slot].inside |= row;
        self.some |= 1 << slot;
    }
}

/// The scan of one subtree for one block, with its buffers.
struct Scan<'a, E: Element> {
    dim: usize,
    array: &'a Array<E>,
    queries: &'a QueryCodes<'a>,
    range: Range<usize>,
    decider: Decider<'a>,
    /// Of each cap, what a group's tiles are to it.
    groups: Vec<Decision>,
    /// Of each cap of a chunk, what the rows of some tiles are to it.
    found: Vec<Found>,
    /// Caps that one of these tiles crosses: places in the chunk, numbers, decisions.
    places: Vec<usize>,
    crossing: Vec<u32>,
    decisions: Vec<Decision>,
    settling: Settling,
    /// What the sketches leave open, cap by cap: places in the chunk, numbers among the tiles' rows, rows.
    left: Vec<(usize, usize)>,
    left_rows: Vec<&'a [E]>,
    /// Which rows of the last tiles were asked for.
    fetched: [(usize, u64); TILES_TOGETHER],
}

impl<'a, E: Element> Scan<'a, E> {
    fn new(walk: &'a Walk<'a>, array: &'a Array<E>, block: &'a Block<'a>, range: Range<usize>) -> Self {
        let dim = walk.tree.dim;
        let centers = block.centers.chunks_exact(block.stride).map(|center| &center[..dim]).collect();
        Scan {
            dim,
            array,
            queries: &block.queries,
            range,
            decider: Decider::with(walk.caps, block.caps, centers),
            groups: Vec::new(),
            found: Vec::new(),
            places: Vec::new(),
            crossing: Vec::new(),
            decisions: Vec::new(),
            settling: Settling::new(walk.ablation.map(|_| Tally::default())),
            left: Vec::new(),
            left_rows: Vec::new(),
            fetched: [(usize::MAX, 0); TILES_TOGETHER],
        }
    }

    /// Sixty-four tiles, of which those in `tiles` belong to the subtree.
    fn group(&mut self, group: usize, tiles: &Range<usize>, active: &[u32], sink: &mut impl Sink) -> Result<()> {
        let valid = bits_of(group * TILE, tiles);
        let mut decisions = std::mem::take(&mut self.groups);
        decisions.resize(active.len(), Decision::default());
        self.queries.tiles(group, active, &mut decisions)?;
        for first in (0..TILE).step_by(TILES_TOGETHER) {
            let some = valid & bits_of(0, &(first..first + TILES_TOGETHER));
            let tiles: Vec<(usize, usize)> = positions_of(0, some).map(|t| (group * TILE + t, t)).collect();
            for (active, decisions) in active.chunks(CHUNK).zip(decisions.chunks(CHUNK)) {
                self.tiles(&tiles, active, decisions, sink)?;
            }
        }
        self.groups = decisions;
        Ok(())
    }

    /// At most [`TILES_TOGETHER`] tiles for at most [`CHUNK`] caps. With each tile comes which bit of the caps' `decisions`
    /// stands for it as a whole.
    fn tiles(
        &mut self,
        tiles: &[(usize, usize)],
        active: &[u32],
        decisions: &[Decision],
        sink: &mut impl Sink,
    ) -> Result<()> {
        self.found.resize(active.len(), Found::default());
        self.found.iter_mut().for_each(|found| (found.some, found.open) = (0, 0));
        for (slot, (tile, t)) in tiles.iter().enumerate() {
            let valid = bits_of(tile * TILE, &self.range);
            // Without a branch where nobody could foretell it: entries overwrite the last one unless that counts.
            self.crossing.resize(active.len(), 0);
            self.places.resize(active.len(), 0);
            let mut count = 0;
            for (place, (i, decision)) in active.iter().zip(decisions).enumerate() {
                (self.crossing[count], self.places[count]) = (*i, place);
                count += (decision.unsure >> t & 1) as usize;
                if decision.inside >> t & 1 != 0 {
                    self.found[place].set(slot, Decision { inside: valid, unsure: 0 });
                }
            }
            self.crossing.truncate(count);
            self.places.truncate(count);
            if let Some(tally) = &mut self.settling.tally {
                tally.pass(Part::Tiles, count * valid.count_ones() as usize);
            }
            if count != 0 {
                self.decisions.resize(count, Decision::default());
                self.queries.settle(*tile, &self.crossing, valid, &mut self.settling, &mut self.decisions)?;
                let each = self.places.iter().zip(&self.decisions);
                each.for_each(|(place, decision)| self.found[*place].set(slot, *decision));
            }
        }
        self.decide_left(tiles, active)?;
        for (i, found) in active.iter().zip(&self.found) {
            for slot in positions_of(0, u64::from(found.some)) {
                sink.some(*i as usize, tiles[slot].0 * TILE, found.decisions[slot].inside)?;
            }
        }
        Ok(())
    }

    /// Decides by the stored rows what the sketches leave open of some tiles, one cap after the other: its center is read
    /// once for all of them.
    fn decide_left(&mut self, tiles: &[(usize, usize)], active: &[u32]) -> Result<()> {
        let d = self.dim;
        let mut wanted = [0; TILES_TOGETHER];
        for found in &self.found {
            for slot in positions_of(0, u64::from(found.open)) {
                wanted[slot] |= found.decisions[slot].unsure;
            }
        }
        let mut rows: [&[E]; TILES_TOGETHER] = [&[]; TILES_TOGETHER];
        for ((tile, _), (wanted, rows)) in tiles.iter().zip(wanted.into_iter().zip(&mut rows)) {
            if wanted == 0 {
                continue;
            }
            let fetched = &mut self.fetched[tile % TILES_TOGETHER];
            if fetched.0 != *tile {
                *fetched = (*tile, 0);
            }
            *rows = self.array.slice(tile * TILE * d..self.array.len().min((tile + 1) * TILE * d))?;
            for r in positions_of(0, wanted & !fetched.1) {
                IntKernels::get().prefetch(bytemuck::cast_slice(&rows[r * d..(r + 1) * d]));
            }
            fetched.1 |= wanted;
        }
        self.left.clear();
        self.left_rows.clear();
        for (place, found) in self.found.iter().enumerate() {
            for slot in positions_of(0, u64::from(found.open)) {
                for r in positions_of(0, found.decisions[slot].unsure) {
                    self.left.push((place, slot * TILE + r));
                    self.left_rows.push(&rows[slot][r * d..(r + 1) * d]);
                }
            }
        }
        let (left, found) = (&self.left, &mut self.found);
        let inside = |l: usize| {
            let (place, row) = left[l];
            found[place].add(row / TILE, 1 << (row % TILE));
        };
        self.decider.decide_pairs(&self.left_rows, |l| active[left[l].0] as usize, inside);
        Ok(())
    }
}

/// Calls `each(i, node, relation)` for every cap `active[i]` and every node of a range.
pub(crate) fn relations(
    tree: &Tree,
    centers: &[f32],
    caps: &Caps<'_>,
    active: &[usize],
    nodes: Range<usize>,
    mut each: impl FnMut(usize, usize, Relation) -> Result<()>,
) -> Result<()> {
    let d = tree.dim;
    let centers: Vec<&[f32]> = centers[nodes.start * d..nodes.end * d].chunks_exact(d).collect();
    let queries: Vec<&[f32]> = active.iter().map(|c| caps.center(*c)).collect();
    let mut dots = vec![0.0f32; centers.len() * queries.len()];
    Kernels::get().dots(&centers, &queries, &mut dots);
    let (error, norms) = (f32_error(d), &tree.norms);
    for (i, (cap, dots)) in active.iter().zip(dots.chunks_exact(nodes.len())).enumerate() {
        let (query, bound) = (caps.norm(*cap), caps.bound(*cap));
        for (node, dot) in nodes.clone().zip(dots) {
            let angle = &tree.angles[node];
            let relation = angle.relation(f64::from(*dot), error, query, norms.centers, norms.rows, bound);
            each(i, node, relation)?;
        }
    }
    Ok(())
}
