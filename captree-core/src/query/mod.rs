//! Queries: one walk over the tree that decides rows for a block of caps, and what each query does with the decisions.

mod count;
mod decider;
mod estimate;
mod mass;
mod nearest;
mod search;
mod walk;

pub(crate) use decider::Decider;
pub use estimate::Estimate;
pub use nearest::Nearest;
pub use search::{RangeResult, SearchOptions};
pub(crate) use walk::{BATCH, Sink, Walk, positions_of, relations};

use crate::caps::Caps;
use crate::error::{Error, Result};
use crate::tree::Tree;

impl Tree {
    /// Errors with [`Error::InvalidCaps`] unless the caps have the tree's dimension.
    pub(crate) fn check_dim(&self, caps: &Caps<'_>) -> Result<()> {
        if caps.dim() == self.dim {
            return Ok(());
        }
        Err(Error::InvalidCaps(format!("expected caps of dim {}, got {}", self.dim, caps.dim())))
    }
}
