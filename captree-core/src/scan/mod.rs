//! The scan: which rows of a segment lie inside each cap.
//!
//! Pairs of a cap and a row pass through these steps, one file each. Every step decides what it can, in both
//! directions, and passes the rest on; the last one decides everything, so answers are exact whatever the others leave.
//!
//! | step | file | reads | costs, per pair that reaches it |
//! |---|---|---|---|
//! | 1 nodes | [`nodes`] | centers of large subtrees | a dot product for thousands of rows |
//! | 2 tiles | [`tiles`] | codes of the means of 64 neighbors | what a first and a second level cost, for 64 rows |
//! | 3 first level | [`first`] | 16 to 96 bytes of a row's code | as many integer products, an integer test |
//! | | | with a matrix unit up to 192 bytes | as many integer products, 64 times 32 rows and caps at once |
//! | 4 second level | [`second`] | up to 192 bytes with the first's | as many integer products, a float32 test |
//! | 5 third, 6 fourth level | [`wide`] | up to 384 columns, then all | as many integer products, a float32 test |
//! | 5 and 6 at once | [`full`] | all columns, on processors with a matrix unit | for all rows of a tile at once |
//! | 7 stored rows | [`rows`] | the stored coordinates | a float32 dot product; seldom an exact one |
//!
//! [`levels`] puts the code levels one behind the other, [`task`] all steps but the first, and [`Scan`] cuts caps and
//! tree into tasks. Codes and what is proved of them are [`crate::sketch`]'s; the proof that each step decides rightly
//! is in docs/exactness.md. Blocks of caps share the codes that a tile loads.

mod alive;
mod first;
mod full;
mod levels;
mod masks;
mod nodes;
mod observer;
mod rows;
mod second;
mod task;
#[cfg(test)]
mod tests;
pub(crate) mod tiles;
mod wide;

use std::ops::Range;

use rayon::prelude::*;

use crate::caps::{Caps, Relation};
use crate::control::Control;
use crate::distance::TILE;
use crate::element::Element;
use crate::error::Result;
use crate::store::Array;
use crate::tree::Segment;
use crate::vectors::with_elements;
use alive::Alive;
use task::{Block, Task};

pub(crate) use levels::Levels;
pub(crate) use masks::{bits_of, positions_of};
pub(crate) use nodes::relations;
pub(crate) use observer::{Observer, Step};
pub(crate) use rows::{RowDecider, hits};

/// Caps that are encoded together, and scanned together where the tree is large: they share what is read of the rows.
pub(crate) const BATCH: usize = 4096;

/// Fewest caps that are scanned together, where a small tree has too few subtrees to keep all threads busy.
const LEAST_TOGETHER: usize = 256;

/// A subtree of fewer rows than this is one task: less than a few groups of tiles would not pay for the task.
const TASK_ROWS: usize = 16 * 1024;

/// Larger trees have larger tasks: of about this share of all rows.
const TASK_SHARE: usize = 16;

/// Receives the rows inside each cap of a block, in tree order per cap, without those that are deleted.
pub(crate) trait Sink {
    /// All rows at these tree positions lie inside cap `i` of the block.
    fn all(&mut self, i: usize, positions: Range<usize>) -> Result<()>;
    /// Bit `b` of `mask` says that position `start + b` lies inside cap `i` of the block.
    fn some(&mut self, i: usize, start: usize, mask: u64) -> Result<()>;
    /// Whether cap `i` of the block needs no more rows of this task.
    fn is_done(&self, i: usize) -> bool;
}

/// A segment, some caps of a batch, and how both are cut into tasks.
pub(crate) struct Scan<'a, O = ()> {
    segment: &'a Segment,
    caps: &'a Caps<'a>,
    control: &'a Control,
    centers: &'a [f32],
    blocks: Vec<Block<'a>>,
    /// Roots of the subtrees that make a task each, in tree order.
    subtrees: Vec<usize>,
    observer: O,
}

impl<'a> Scan<'a> {
    /// For the caps numbered `active`, at most [`BATCH`] of them. Errors: what reading a tree on disk gives.
    pub fn new(segment: &'a Segment, caps: &'a Caps<'a>, active: &'a [usize], control: &'a Control) -> Result<Self> {
        Scan::observed(segment, caps, active, control, ())
    }

    /// What `done` of [`Scan::run`] adds up to for so many caps, however they are cut into blocks.
    pub fn units(segment: &Segment, caps: usize) -> u64 {
        (caps * subtrees(segment).len()) as u64
    }
}

impl<'a, O: Observer> Scan<'a, O> {
    /// The same with an observer.
    pub fn observed(
        segment: &'a Segment,
        caps: &'a Caps<'a>,
        active: &'a [usize],
        control: &'a Control,
        observer: O,
    ) -> Result<Self> {
        let subtrees = subtrees(segment);
        // So that a small tree has about as many pairs of a block and a subtree as a large one has subtrees.
        let together = (active.len() * subtrees.len() / TASK_SHARE).clamp(LEAST_TOGETHER, BATCH);
        let blocks = active.par_chunks(together).map(|block| Block::new(segment, caps, block)).collect();
        Ok(Scan { segment, caps, control, centers: segment.centers()?, blocks, subtrees, observer })
    }

    /// Scans every subtree for every block in parallel, each pair with a sink of its own for as many caps as the block
    /// has. Returns per block its number of caps and the sinks in tree order. `done` is told how many caps a subtree is
    /// done with, [`Scan::units`] in all.
    pub fn run<S: Sink + Send>(
        &self,
        sink: impl Fn(&[usize]) -> S + Sync,
        done: impl Fn(u64) + Sync,
    ) -> Result<Vec<(usize, Vec<S>)>> {
        self.tasks(self.subtrees.len(), sink, |block, task, sink| {
            let root = self.subtrees[task];
            with_elements!(&self.segment.vectors, array => self.subtree(array, block, root, sink))?;
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
            let range = 0..self.segment.kept();
            with_elements!(&self.segment.vectors, array => {
                Task::new(self.caps, array, block, range, self.observer).some(chunks[task], block.caps.len(), sink)
            })
        })
    }

    /// For each cap, how many rows step 1 leaves open: a measure of what [`Scan::run`] costs for it.
    pub fn open_rows(&self) -> Result<Vec<usize>> {
        let of_block = |block: &Block<'_>| {
            let mut open = vec![0; block.caps.len()];
            for root in &self.subtrees {
                let rows = self.segment.nodes[*root].range().len();
                relations(self.segment, self.centers, self.caps, block.caps, *root..root + 1, |i, _, relation| {
                    open[i] += if relation == Relation::Crossing { rows } else { 0 };
                    Ok(())
                })?;
            }
            Ok(open)
        };
        Ok(self.blocks.par_iter().map(of_block).collect::<Result<Vec<_>>>()?.concat())
    }

    fn tasks<S: Sink + Send>(
        &self,
        tasks: usize,
        sink: impl Fn(&[usize]) -> S + Sync,
        run: impl Fn(&Block<'_>, usize, &mut Alive<'_, S>) -> Result<()> + Sync,
    ) -> Result<Vec<(usize, Vec<S>)>> {
        let dead = self.segment.dead()?;
        let mut sinks = (0..self.blocks.len() * tasks)
            .into_par_iter()
            .map(|job| {
                let block = &self.blocks[job / tasks];
                let mut alive = Alive { dead, sink: sink(block.caps) };
                run(block, job % tasks, &mut alive)?;
                Ok(alive.sink)
            })
            .collect::<Result<Vec<S>>>()?
            .into_iter();
        Ok(self.blocks.iter().map(|block| (block.caps.len(), sinks.by_ref().take(tasks).collect())).collect())
    }

    /// One subtree for one block: its root first, then its rows for the caps that the root crosses.
    fn subtree<E: Element>(
        &self,
        array: &Array<E>,
        block: &Block<'_>,
        root: usize,
        sink: &mut impl Sink,
    ) -> Result<()> {
        let (range, observer) = (self.segment.nodes[root].range(), self.observer);
        let mut crossing: Vec<u32> = Vec::with_capacity(block.caps.len());
        relations(
            self.segment,
            self.centers,
            self.caps,
            block.caps,
            root..root + 1,
            |i, _, relation| match relation {
                Relation::Outside if observer.counts(Step::Nodes) => Ok(()),
                Relation::Inside if observer.counts(Step::Nodes) => sink.all(i, range.clone()),
                _ => {
                    crossing.push(i as u32);
                    Ok(())
                }
            },
        )?;
        observer.start(block.caps.len() * range.len());
        observer.left_open(Step::Nodes, || crossing.len() * range.len());
        Task::new(self.caps, array, block, range, observer).all(crossing, self.control, sink)
    }
}

/// What a scan found, to be gone through cap by cap.
pub(crate) struct CapByCap<S> {
    blocks: std::vec::IntoIter<(usize, Vec<S>)>,
    current: (usize, Vec<S>),
    next: usize,
}

impl<S> CapByCap<S> {
    /// From what [`Scan::run`] returns.
    pub fn new(blocks: Vec<(usize, Vec<S>)>) -> Self {
        CapByCap { blocks: blocks.into_iter(), current: (0, Vec::new()), next: 0 }
    }

    /// Calls `each(sink, i)` for the sinks of the next cap, which is number `i` of their block.
    pub fn next(&mut self, mut each: impl FnMut(&mut S, usize)) {
        while self.next == self.current.0 {
            let Some(block) = self.blocks.next() else { return };
            (self.current, self.next) = (block, 0);
        }
        self.current.1.iter_mut().for_each(|sink| each(sink, self.next));
        self.next += 1;
    }
}

/// Roots of the subtrees that make a task each, in tree order.
fn subtrees(segment: &Segment) -> Vec<usize> {
    let most = TASK_ROWS.max(segment.kept() / TASK_SHARE);
    let mut found = Vec::new();
    let mut stack = vec![0];
    while let Some(i) = stack.pop() {
        let node = &segment.nodes[i];
        if node.rows as usize <= most || node.is_leaf() {
            found.push(i);
        } else {
            stack.extend(node.child_range().rev());
        }
    }
    found
}
