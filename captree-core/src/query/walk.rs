//! The walk: which rows of a subtree lie inside each cap of a block.
//!
//! A node that lies wholly inside or outside a cap is settled by the triangle inequality ([`crate::caps::NodeAngle`]);
//! crossing nodes are opened, and the rows of crossing leaves are decided in tiles: by float32 dot products where their
//! error bound allows, by [`crate::exact`] for the rest. Blocks of caps share the rows that a tile loads.

use std::ops::Range;

use crate::caps::{Caps, Relation, RowTest};
use crate::control::Control;
use crate::distance::{Kernels, TILE, f32_error};
use crate::element::Element;
use crate::error::Result;
use crate::exact;
use crate::store::Array;
use crate::tree::Tree;
use crate::vectors::{rows, with_elements};

/// Caps that are walked together: their centers stay in the second-level cache beside a tile of rows.
const BLOCK: usize = 256;

/// A subtree of fewer rows than this is one task.
const TASK_ROWS: usize = 16 * 1024;

/// Most tasks that one block of caps is cut into.
const MAX_TASKS: usize = 64;

/// Receives the rows inside each cap, in tree order per cap.
pub(crate) trait Sink {
    /// All rows at these tree positions lie inside `cap`.
    fn all(&mut self, cap: usize, positions: Range<usize>) -> Result<()>;
    /// Bit `b` of `mask` says that position `start + b` lies inside `cap`.
    fn some(&mut self, cap: usize, start: usize, mask: u64) -> Result<()>;
    /// Whether `cap` needs no more rows of this task.
    fn is_done(&self, cap: usize) -> bool;
}

/// Tree positions of a mask's bits.
pub(crate) fn positions_of(start: usize, mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (mask != 0).then(|| {
            let bit = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            start + bit
        })
    })
}

/// Bit `r` of the result: `test(dots[r])`.
#[inline]
pub(crate) fn mask_of(dots: &[f32], test: impl Fn(f32) -> bool) -> u64 {
    dots.iter().enumerate().fold(0, |m, (r, s)| m | u64::from(test(*s)) << r)
}

/// A tree, a batch of caps, and how both are cut into tasks.
pub(crate) struct Walk<'a> {
    tree: &'a Tree,
    caps: &'a Caps<'a>,
    control: &'a Control,
    centers: &'a [f32],
    /// Roots of the subtrees that make a task each, in tree order.
    subtrees: Vec<usize>,
}

impl<'a> Walk<'a> {
    /// Cuts the tree into subtrees. Errors: what reading the centers of a tree on disk gives.
    pub fn new(tree: &'a Tree, caps: &'a Caps<'a>, control: &'a Control) -> Result<Self> {
        let most = TASK_ROWS.max(tree.len() / MAX_TASKS);
        let mut subtrees = Vec::new();
        let mut stack = vec![0];
        while let Some(i) = stack.pop() {
            let node = &tree.nodes[i];
            if node.rows as usize <= most || node.is_leaf() {
                subtrees.push(i);
            } else {
                stack.extend(node.child_range().rev());
            }
        }
        Ok(Walk { tree, caps, control, centers: tree.centers()?, subtrees })
    }

    /// Blocks of caps, as ranges.
    pub fn blocks(&self) -> Vec<Range<usize>> {
        (0..self.caps.len()).step_by(BLOCK).map(|s| s..(s + BLOCK).min(self.caps.len())).collect()
    }

    /// Number of subtrees each block is walked over.
    pub fn tasks(&self) -> usize {
        self.subtrees.len()
    }

    /// Walks subtree `task` for the caps numbered `active`.
    pub fn run(&self, active: &[usize], task: usize, sink: &mut impl Sink) -> Result<()> {
        with_elements!(&self.tree.vectors, a => self.subtree(a, active, self.subtrees[task], sink))
    }

    fn subtree<E: Element>(&self, array: &Array<E>, active: &[usize], root: usize, sink: &mut impl Sink) -> Result<()> {
        let mut stack: Vec<(usize, Vec<usize>)> = Vec::new();
        let crossing = self.relate(root..root + 1, active, sink)?.pop().unwrap_or_default();
        stack.push((root, crossing));
        while let Some((i, mut active)) = stack.pop() {
            self.control.check()?;
            active.retain(|cap| !sink.is_done(*cap));
            if active.is_empty() {
                continue;
            }
            let node = &self.tree.nodes[i];
            if node.is_leaf() {
                self.leaf(array, node.range(), &active, sink)?;
                continue;
            }
            let children = node.child_range();
            // Children are numbered in tree order, so the reversed stack visits rows in tree order.
            let crossing = self.relate(children.clone(), &active, sink)?;
            stack.extend(children.zip(crossing).filter(|(_, caps)| !caps.is_empty()).rev());
        }
        Ok(())
    }

    /// Settles the caps that hold all or none of each node's rows; returns per node the caps that cross it.
    fn relate(&self, nodes: Range<usize>, active: &[usize], sink: &mut impl Sink) -> Result<Vec<Vec<usize>>> {
        let mut crossing = vec![Vec::new(); nodes.len()];
        relations(self.tree, self.centers, self.caps, active, nodes.clone(), |cap, node, relation| match relation {
            Relation::Outside => Ok(()),
            Relation::Inside => sink.all(active[cap], self.tree.nodes[node].range()),
            Relation::Crossing => {
                crossing[node - nodes.start].push(active[cap]);
                Ok(())
            }
        })?;
        Ok(crossing)
    }

    fn leaf<E: Element>(
        &self,
        array: &Array<E>,
        range: Range<usize>,
        active: &[usize],
        sink: &mut impl Sink,
    ) -> Result<()> {
        let mut decider = Decider::new(self.caps, active);
        for start in range.clone().step_by(TILE) {
            let tile = rows(array, start..(start + TILE).min(range.end), self.tree.dim)?;
            decider.decide(
                active,
                &tile,
                |i, mask| if mask == 0 { Ok(()) } else { sink.some(active[i], start, mask) },
            )?;
        }
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

/// Which rows of a tile lie inside each cap: calls `each(i, mask)` for cap `active[i]`, bit `r` for `tile[r]`.
///
/// The one place where a row is decided: by its float32 dot product, or exactly where that cannot tell.
pub(crate) struct Decider<'a> {
    caps: &'a Caps<'a>,
    queries: Vec<&'a [f32]>,
    tests: Vec<RowTest>,
    dots: Vec<f32>,
    wide: Vec<f32>,
}

impl<'a> Decider<'a> {
    pub fn new(caps: &'a Caps<'a>, active: &[usize]) -> Self {
        Decider {
            caps,
            queries: active.iter().map(|c| caps.center(*c)).collect(),
            tests: active.iter().map(|c| caps.test(*c)).collect(),
            dots: vec![0.0; TILE * active.len()],
            wide: vec![0.0; caps.dim()],
        }
    }

    pub fn decide<E: Element>(
        &mut self,
        active: &[usize],
        tile: &[&[E]],
        mut each: impl FnMut(usize, u64) -> Result<()>,
    ) -> Result<()> {
        let dots = &mut self.dots[..tile.len() * active.len()];
        Kernels::get().dots(tile, &self.queries, dots);
        for (i, (cap, dots)) in active.iter().zip(dots.chunks_exact(tile.len())).enumerate() {
            let test = self.tests[i];
            let mut inside = mask_of(dots, |s| s >= test.inside);
            let unsure = mask_of(dots, |s| s >= test.outside) & !inside;
            for r in positions_of(0, unsure) {
                E::widen(tile[r], &mut self.wide);
                let yes = exact::is_inside(Kernels::get(), self.caps.center(*cap), &self.wide, self.caps.bound(*cap));
                inside |= u64::from(yes) << r;
            }
            each(i, inside)?;
        }
        Ok(())
    }
}
