//! Figures about a tree.

use super::{Segment, Tree};
use crate::distance::Kernels;
use crate::error::Result;
use crate::sketch::IntKernels;

/// What [`Tree::stats`] tells.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Number of rows, those that were skipped or deleted included.
    pub rows: usize,
    /// Rows that were skipped.
    pub skipped: usize,
    /// Rows that were deleted.
    pub deleted: usize,
    /// Number of segments.
    pub segments: usize,
    /// Number of dimensions.
    pub dim: usize,
    /// dtype of the stored rows.
    pub storage: &'static str,
    /// Most children of a node.
    pub fanout: usize,
    /// Most rows in a leaf.
    pub leaf_size: usize,
    /// Seed the tree was built with.
    pub seed: u64,
    /// Number of nodes.
    pub nodes: usize,
    /// Number of leaves.
    pub leaves: usize,
    /// Depth of the deepest node; the root has 0.
    pub depth: usize,
    /// Fewest rows in a leaf.
    pub leaf_rows_min: usize,
    /// Mean rows in a leaf.
    pub leaf_rows_mean: f64,
    /// Most rows in a leaf.
    pub leaf_rows_max: usize,
    /// Median bound of the leaves.
    pub leaf_max_cos_distance_median: f64,
    /// Bytes on disk, or in memory if the tree is not on disk.
    pub bytes: u64,
    /// Bytes of the stored vectors alone.
    pub vector_bytes: u64,
    /// Bytes of the sketches alone.
    pub sketch_bytes: u64,
    /// The instruction sets in use, for float32 and for integer dot products.
    pub kernels: String,
}

impl Tree {
    /// Figures about the tree.
    pub fn stats(&self) -> Result<Stats> {
        let each = |of: fn(&Segment) -> u64| self.segments().iter().map(of).sum::<u64>();
        let leaves: Vec<_> =
            self.segments().iter().flat_map(|segment| segment.nodes.iter().filter(|n| n.is_leaf())).collect();
        let mut bounds: Vec<f64> = leaves.iter().map(|n| n.max_cos_distance).collect();
        bounds.sort_unstable_by(f64::total_cmp);
        let depth = |segment: &Segment| segment.nodes.iter().map(|n| n.depth).max();
        Ok(Stats {
            rows: self.len(),
            skipped: self.len() - self.alive() - self.deleted.len() as usize,
            deleted: self.deleted.len() as usize,
            segments: self.segments().len(),
            dim: self.dim,
            storage: self.storage().name(),
            fanout: self.params.fanout,
            leaf_size: self.params.leaf_size,
            seed: self.params.seed,
            nodes: each(|segment| segment.nodes.len() as u64) as usize,
            leaves: leaves.len(),
            depth: self.segments().iter().filter_map(depth).max().unwrap_or(0) as usize,
            leaf_rows_min: leaves.iter().map(|n| n.rows).min().unwrap_or(0) as usize,
            leaf_rows_mean: each(|segment| segment.kept() as u64) as f64 / leaves.len().max(1) as f64,
            leaf_rows_max: leaves.iter().map(|n| n.rows).max().unwrap_or(0) as usize,
            leaf_max_cos_distance_median: bounds.get(bounds.len() / 2).copied().unwrap_or(0.0),
            bytes: match &self.place {
                Some(place) => place.bytes + each(|segment| segment.file_bytes()),
                None => each(|segment| segment.memory_bytes()),
            },
            vector_bytes: each(|segment| segment.vector_bytes()),
            sketch_bytes: each(|segment| segment.sketch.bytes()),
            kernels: format!("{}, {}", Kernels::get().name(), IntKernels::get().name()),
        })
    }
}
