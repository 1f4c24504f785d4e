//! Random rows of caps: exactly uniform, or by the two-stage scheme with density estimates.

mod approximate;
mod exact;
mod order;
mod pilots;

#[cfg(feature = "python")]
pub(crate) use exact::draw_keys;

use std::collections::HashMap;

use crate::caps::Caps;
use crate::error::{Error, Result};

/// What to draw.
#[derive(Clone, Copy, Debug)]
pub struct SampleOptions {
    /// Draws per cap, at least 1.
    pub k: usize,
    /// Whether a row may come more than once per cap.
    pub replace: bool,
    /// Same seed, same rows.
    pub seed: u64,
    /// Rows that an exact draw of a cap may test in each of two rounds before the rows inside are listed; as many as
    /// pay if `None`. It decides the time, never the answer.
    pub tries: Option<usize>,
}

impl SampleOptions {
    /// `k` draws per cap, made whichever way is quicker.
    pub fn new(k: usize, replace: bool, seed: u64) -> Self {
        SampleOptions { k, replace, seed, tries: None }
    }

    fn check(&self) -> Result<()> {
        if self.k == 0 {
            return Err(Error::parameter("k", "at least 1", 0));
        }
        Ok(())
    }
}

/// Of each cap a hash of its center and bound, and how many equal caps stand before it in the batch.
///
/// So a cap's draws depend neither on its place in the batch nor on caps that differ from it, and equal caps still get
/// independent draws.
fn occurrences(caps: &Caps<'_>) -> impl Iterator<Item = (u128, u64)> {
    let mut seen: HashMap<u128, u64> = HashMap::with_capacity(caps.len());
    (0..caps.len()).map(move |i| {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(bytemuck::cast_slice(caps.center(i)));
        hash.update(&caps.bound(i).to_le_bytes());
        let content = hash.digest128();
        let before = seen.entry(content).or_default();
        *before += 1;
        (content, *before - 1)
    })
}
