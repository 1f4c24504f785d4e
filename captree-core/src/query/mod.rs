//! Queries: what each does with the rows that a scan finds inside caps ([`crate::scan`]).

mod count;
mod distances;
mod estimate;
mod mass;
mod nearest;
mod search;

pub use distances::{DistanceType, Distances};
pub use estimate::Estimate;
pub use nearest::Nearest;
pub use search::{RangeResult, SearchOptions};

use crate::caps::Caps;
use crate::error::{Error, Result};
use crate::tree::Tree;

impl Tree {
    /// Errors with [`Error::InvalidCaps`] unless the caps have the tree's dimension.
    pub(crate) fn check_dim(&self, caps: &Caps<'_>) -> Result<()> {
        if caps.dim() == self.dim {
            return Ok(());
        }
        Err(Error::caps(format!("caps of dim {}", self.dim), caps.dim()))
    }
}
