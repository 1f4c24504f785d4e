//! What the tree does not exclude of a cap: the rows that its tries choose among.
//!
//! Nodes are asked from the root's children on, as long as that costs less than the tries that it may spare. Draws must be the
//! same on every processor, so what decides about a node is a dot product that is: the compensated one, whose sums are float64
//! in one fixed order. Float32 ones, which differ, only spare it where the answer cannot hang on them.

use std::ops::Range;

use rayon::prelude::*;

use crate::caps::Caps;
use crate::distance::{Kernels, f32_error, pair_error};
use crate::error::Result;
use crate::tree::Tree;

/// Caps that are asked together.
const BLOCK: usize = 64;

/// Nodes that are asked for the price of one try, about.
const NODES_PER_TRY: usize = 2;

/// Far above what rounding does to the bound on a node's dot products (1e-14 in docs/exactness.md).
const MARGIN: f64 = 1e-12;

/// Stretches of tree positions; all rows inside a cap are among them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Open {
    /// First position of each, and how many positions the ones before it have.
    stretches: Vec<(usize, usize)>,
    rows: usize,
}

impl Open {
    /// All rows of a tree.
    pub fn all(tree: &Tree) -> Self {
        Open { stretches: vec![(0, 0)], rows: tree.len() }
    }

    /// What a tree does not exclude of caps, each given by its number and how many tries among all rows it would take.
    pub fn of(tree: &Tree, caps: &Caps<'_>, wanted: &[(usize, usize)]) -> Result<Vec<Self>> {
        Open::with(Kernels::get(), tree, caps, wanted)
    }

    /// The same with kernels of the caller's choice.
    fn with(kernels: &Kernels, tree: &Tree, caps: &Caps<'_>, wanted: &[(usize, usize)]) -> Result<Vec<Self>> {
        let asking = Asking { kernels, tree, caps, centers: tree.centers()?, error: f32_error(tree.dim) };
        let found: Vec<Vec<Open>> = wanted.par_chunks(BLOCK).map(|block| asking.block(block)).collect();
        Ok(found.into_iter().flatten().collect())
    }

    fn push(&mut self, range: Range<usize>) {
        self.stretches.push((range.start, self.rows));
        self.rows += range.len();
    }

    /// Number of positions.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Position number `i` of them.
    pub fn at(&self, i: usize) -> usize {
        let (start, before) = self.stretches[self.stretches.partition_point(|(_, before)| *before <= i) - 1];
        start + (i - before)
    }
}

struct Asking<'a> {
    kernels: &'a Kernels,
    tree: &'a Tree,
    caps: &'a Caps<'a>,
    centers: &'a [f32],
    error: f64,
}

impl Asking<'_> {
    fn block(&self, block: &[(usize, usize)]) -> Vec<Open> {
        let children: Vec<usize> = self.tree.nodes[0].child_range().collect();
        let pays = |tries: usize| !children.is_empty() && children.len() < tries.saturating_mul(NODES_PER_TRY);
        let asked: Vec<usize> = block.iter().filter(|(_, tries)| pays(*tries)).map(|(cap, _)| *cap).collect();
        let mut left = self.ask(&asked, &children).into_iter();
        let mut open = |(cap, tries): &(usize, usize)| {
            let left = if pays(*tries) { left.next() } else { None };
            left.map_or_else(|| Open::all(self.tree), |left| self.deeper(*cap, *tries, left))
        };
        block.iter().map(&mut open).collect()
    }

    /// Goes down from nodes that a cap does not exclude, unless more than half of what was asked stays: then more would, too.
    fn deeper(&self, cap: usize, tries: usize, mut left: Vec<usize>) -> Open {
        let nodes = &self.tree.nodes;
        let below = |node: &usize| if nodes[*node].is_leaf() { *node..*node + 1 } else { nodes[*node].child_range() };
        let mut before = self.tree.len();
        loop {
            let rows: usize = left.iter().map(|node| nodes[*node].rows as usize).sum();
            let tries = (tries as u128 * rows as u128 / self.tree.len() as u128) as usize;
            let next: Vec<usize> = left.iter().flat_map(below).collect();
            let pays = 2 * rows <= before && next.len() < tries.saturating_mul(NODES_PER_TRY);
            if !pays || next.len() == left.len() {
                break;
            }
            before = rows;
            left = self.ask(&[cap], &next).remove(0);
        }
        let mut open = Open { stretches: Vec::new(), rows: 0 };
        left.iter().for_each(|node| open.push(nodes[*node].range()));
        open
    }

    /// Of each cap, the nodes that it does not exclude.
    fn ask(&self, block: &[usize], nodes: &[usize]) -> Vec<Vec<usize>> {
        let d = self.tree.dim;
        let rows: Vec<&[f32]> = nodes.iter().map(|node| &self.centers[node * d..(node + 1) * d]).collect();
        let queries: Vec<&[f32]> = block.iter().map(|cap| self.caps.center(*cap)).collect();
        let mut dots = vec![0.0f32; rows.len() * queries.len()];
        self.kernels.dots(&rows, &queries, &mut dots);
        let each = block.iter().zip(dots.chunks_exact(rows.len().max(1)));
        each.map(|(cap, dots)| {
            let kept = |(node, dot): &(&usize, &f32)| !self.excludes(*cap, **node, f64::from(**dot));
            nodes.iter().zip(dots).filter(kept).map(|(node, _)| *node).collect()
        })
        .collect()
    }

    /// Whether no row of a node can lie inside a cap, given the float32 dot product of their centers: what the compensated
    /// one says, which differs from it by less than `error`. The bound on the dot products of rows rises with that of the
    /// center, up to what [`MARGIN`] has room for.
    fn excludes(&self, cap: usize, node: usize, dot: f64) -> bool {
        let (norms, d) = (&self.tree.norms, self.tree.dim);
        let most = |dot: f64| {
            let error = pair_error(d) + f64::EPSILON;
            self.tree.angles[node].dot_bounds(dot, error, self.caps.norm(cap), norms.centers, norms.rows).1
        };
        let least = 1.0 - self.caps.bound(cap) - f64::EPSILON;
        if most(dot - self.error) > least + MARGIN {
            return false;
        }
        if most(dot + self.error) < least - MARGIN {
            return true;
        }
        let (hi, _) = self.kernels.dot_pair(self.caps.center(cap), &self.centers[node * d..(node + 1) * d]);
        most(hi) < least
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, Call, Ingest, Params, SearchOptions, Storage};
    use proptest::prelude::*;

    fn tree(rows: &[f32], dim: usize, fanout: usize) -> Tree {
        let call = Call::new(Some(1)).unwrap();
        let mut ingest = Ingest::new(Storage::Float32, true);
        ingest.push(Batch::F32(rows), dim, &call).unwrap();
        let params = Params::new(fanout, Some(4), 0).unwrap();
        Tree::build(ingest.finish().unwrap(), &params, None, &call).unwrap()
    }

    fn positions(open: &Open) -> Vec<usize> {
        (0..open.rows()).map(|i| open.at(i)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn rows_inside_stay_open_and_every_processor_says_the_same(
            (dim, rows) in (2usize..9).prop_flat_map(|d| (Just(d), prop::collection::vec(100i16..1000, d * 20..d * 400))),
            (fanout, share, signs, tries) in (2usize..9, 0.0f64..1.0, any::<u32>(), 0usize..200),
        ) {
            let sign = |i: usize| if signs.rotate_left(i as u32 * 7) & 1 == 0 { 1.0 } else { -1.0 };
            let rows: Vec<f32> = rows[..rows.len() / dim * dim].iter().enumerate().map(|(i, x)| f32::from(*x) * sign(i)).collect();
            let tree = tree(&rows, dim, fanout);
            let call = Call::new(Some(1)).unwrap();
            let centers = tree.take_f32(&[0, 1, 2, 3]).unwrap();
            // The last bounds are where some node is only just excluded, or only just not.
            let some = (share * (tree.nodes.len() - 1) as f64) as usize + usize::from(tree.nodes.len() > 1);
            let (hi, _) = Kernels::get().dot_pair(&centers[3 * dim..], &tree.centers().unwrap()[some * dim..][..dim]);
            let plain = Caps::new(dim, &centers, &[0.0; 4]).unwrap();
            let (norms, error) = (&tree.norms, pair_error(dim) + f64::EPSILON);
            let most = tree.angles[some].dot_bounds(hi, error, plain.norm(3), norms.centers, norms.rows).1;
            for at_border in [f64::next_down, |x| x, f64::next_up].map(|step: fn(f64) -> f64| step(1.0 - most)) {
                let bounds = [0.0, share * 0.2, share * 2.0, at_border.clamp(0.0, 2.0)];
                let caps = Caps::new(dim, &centers, &bounds).unwrap();
                let wanted = [(0, tries), (1, tries), (2, tries), (3, 1 << 20)];
                let open = Open::of(&tree, &caps, &wanted).unwrap();
                for kernels in Kernels::available() {
                    prop_assert_eq!(&open, &Open::with(&kernels, &tree, &caps, &wanted).unwrap());
                }
                let found = tree.search(&caps, SearchOptions::default(), &call).unwrap();
                for (cap, open) in open.iter().enumerate() {
                    let positions = positions(open);
                    prop_assert!(positions.is_sorted_by(|a, b| a < b) && positions.iter().all(|p| *p < tree.len()));
                    let range = found.offsets[cap] as usize..found.offsets[cap + 1] as usize;
                    for row in &found.rows[range] {
                        let position = tree.positions.get(*row as usize).unwrap() as usize;
                        prop_assert!(positions.binary_search(&position).is_ok());
                    }
                }
            }
        }
    }

    #[test]
    fn narrow_caps_of_few_dims_leave_little_open() {
        let n = 4096;
        let rows: Vec<f32> =
            (0..n).map(|i| f64::from(i) * std::f64::consts::TAU / f64::from(n)).fold(Vec::new(), |mut rows, angle| {
                rows.extend([angle.cos() as f32, angle.sin() as f32]);
                rows
            });
        let tree = tree(&rows, 2, 8);
        let centers = [1.0, 0.0].repeat(4);
        let caps = Caps::new(2, &centers, &[1e-4, 1e-4, 1e-4, 2.0]).unwrap();
        let open = Open::of(&tree, &caps, &[(0, 10_000), (1, 5), (2, 4), (3, 10_000)]).unwrap();
        assert!(open[0].rows() < n as usize / 16, "{} rows", open[0].rows());
        assert!(open[1].rows() > open[0].rows() && open[1].rows() < n as usize / 2, "{} rows", open[1].rows());
        // Not worth asking, and nothing to exclude.
        assert_eq!(open[2], Open::all(&tree));
        assert_eq!(positions(&open[3]), (0..n as usize).collect::<Vec<_>>());
    }
}
