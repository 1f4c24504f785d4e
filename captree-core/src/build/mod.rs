//! Building a tree: recursive spherical k-means over validated rows.

mod ingest;
mod kmeans;
mod split;

pub use ingest::{Batch, Ingest, Rows};
pub(crate) use split::{Layout, layout};

use crate::error::{Error, Result};

/// How to build.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// Children of an inner node, 2 to 4096.
    pub fanout: usize,
    /// Most rows in a leaf.
    pub leaf_size: usize,
    /// Seed of the k-means.
    pub seed: u64,
}

impl Params {
    /// Checks the domain; `leaf_size` of `None` takes [`DEFAULT_LEAF_SIZE`]. Errors: [`Error::InvalidParameter`].
    pub fn new(fanout: usize, leaf_size: Option<usize>, seed: u64) -> Result<Self> {
        let leaf_size = leaf_size.unwrap_or(DEFAULT_LEAF_SIZE);
        if !(2..=4096).contains(&fanout) {
            return Err(Error::InvalidParameter(format!("expected fanout between 2 and 4096, got {fanout}")));
        }
        if leaf_size == 0 {
            return Err(Error::InvalidParameter("expected leaf_size of at least 1, got 0".into()));
        }
        Ok(Params { fanout, leaf_size, seed })
    }
}

/// Rows in a leaf unless said otherwise: eight tiles, so that a leaf's node costs little beside its rows.
pub const DEFAULT_LEAF_SIZE: usize = 512;

/// Most rows in one tree: row numbers are 32 bits while a tree is built.
pub const MAX_ROWS: usize = u32::MAX as usize;

/// Most dims of a row: integer dot products of whole codes stay within 32 bits.
pub const MAX_DIM: usize = 1 << 16;
