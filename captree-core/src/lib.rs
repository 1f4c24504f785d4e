//! Exact counting, searching and fair sampling of unit vectors inside spherical caps.
//!
//! A *cap* is a unit vector, its center, and a maximum cosine distance in [0, 2]; a row of the tree is inside when
//! `1 - <center, row> <= max_cos_distance` holds for the real-number value of the dot product of the stored floats.
//! Every answer is exactly what real arithmetic gives, whatever the instruction set and the number of threads.
//!
//! ```text
//! rows -> build (validate, spherical k-means) -> tree -> query  (count, search, nearest, estimate)
//!                                                  |  -> sample (exact, approximate)
//!                                                store (open formats on disk, mapped and checked)
//! ```
//!
//! ```
//! use captree_core::{Batch, Call, Caps, Ingest, Params, Storage, Tree};
//!
//! # fn main() -> captree_core::Result<()> {
//! let call = Call::new(None)?;
//! let mut ingest = Ingest::new(Storage::Float32, false);
//! ingest.push(Batch::F32(&[1.0, 0.0, 0.0, 1.0, -1.0, 0.0]), 2, &call)?;
//! let tree = Tree::build(ingest.finish()?, &Params::new(64, None, 0)?, None, &call)?;
//! let caps = Caps::new(2, &[1.0, 0.0], &[1.0])?;
//! assert_eq!(tree.count(&caps, &call)?, [2]);
//! # Ok(())
//! # }
//! ```

mod ablation;
mod build;
mod caps;
mod control;
mod distance;
mod element;
mod error;
mod exact;
mod instructions;
mod limits;
mod matrix_unit;
mod memory;
#[cfg(feature = "python")]
mod python;
mod query;
mod rng;
mod sample;
mod scan;
mod sketch;
pub mod store;
#[cfg(test)]
mod tests;
mod tree;
mod vectors;

#[doc(hidden)]
pub use ablation::{StepSet, Tally};
pub use build::{Appending, Batch, BuildOptions, Building, Ingest, Invalid, Rows};
pub use caps::Caps;
pub use control::{Call, Control};
pub use distance::Kernels;
pub use element::Storage;
pub use error::{BadRows, Error, Result, RowFault};
pub use limits::{
    DEFAULT_LEAF_SIZE, MAX_COS_DISTANCE, MAX_DIM, MAX_FANOUT, MAX_ROWS, MAX_THREADS, MIN_FANOUT, Precision,
};
pub use memory::half_of_free;
pub use query::{DistanceType, Distances, Estimate, Nearest, RangeResult, SearchOptions};
pub use sample::SampleOptions;
pub use tree::{NodeRecord, Params, Stats, Tree};
pub use vectors::{NormRange, Vectors};
