//! How a tree is built.

use crate::error::{Error, Result};
use crate::limits::{DEFAULT_LEAF_SIZE, MAX_FANOUT, MIN_FANOUT};

/// How a tree is built.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Params {
    /// Children of an inner node, [`MIN_FANOUT`] to [`MAX_FANOUT`].
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
        if !(MIN_FANOUT..=MAX_FANOUT).contains(&fanout) {
            let expected = format!("a number between {MIN_FANOUT} and {MAX_FANOUT}");
            return Err(Error::parameter("fanout", expected, fanout));
        }
        if leaf_size == 0 {
            return Err(Error::parameter("leaf_size", "at least 1", 0));
        }
        Ok(Params { fanout, leaf_size, seed })
    }
}
