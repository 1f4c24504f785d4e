//! Figures about a tree.

use super::Tree;
use crate::distance::Kernels;
use crate::error::Result;
use crate::sketch::IntKernels;

/// What [`Tree::stats`] tells.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Number of rows, those that were skipped included.
    pub rows: usize,
    /// Rows that were skipped.
    pub skipped: usize,
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
        let leaves: Vec<_> = self.nodes.iter().filter(|n| n.is_leaf()).collect();
        let mut bounds: Vec<f64> = leaves.iter().map(|n| n.max_cos_distance).collect();
        bounds.sort_unstable_by(f64::total_cmp);
        let vector_bytes = (self.vectors.len() * self.storage().bytes()) as u64;
        let links = self.rows.byte_len() + self.positions.byte_len() + self.centers.byte_len();
        let in_memory = vector_bytes + links + self.sketch.bytes();
        Ok(Stats {
            rows: self.len(),
            skipped: self.len() - self.kept(),
            dim: self.dim,
            storage: self.storage().name(),
            fanout: self.params.fanout,
            leaf_size: self.params.leaf_size,
            seed: self.params.seed,
            nodes: self.nodes.len(),
            leaves: leaves.len(),
            depth: self.nodes.iter().map(|n| n.depth).max().unwrap_or(0) as usize,
            leaf_rows_min: leaves.iter().map(|n| n.rows).min().unwrap_or(0) as usize,
            leaf_rows_mean: self.kept() as f64 / leaves.len() as f64,
            leaf_rows_max: leaves.iter().map(|n| n.rows).max().unwrap_or(0) as usize,
            leaf_max_cos_distance_median: bounds[bounds.len() / 2],
            bytes: if self.path.is_some() { self.bytes } else { in_memory + size_of_val(&self.nodes[..]) as u64 },
            vector_bytes,
            sketch_bytes: self.sketch.bytes(),
            kernels: format!("{}, {}", Kernels::get().name(), IntKernels::get().name()),
        })
    }
}
