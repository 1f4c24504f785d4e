//! Random rows of caps: exactly uniform, or by the two-stage scheme with density estimates.

mod approximate;
mod exact;
mod open;
mod pilots;

use std::collections::HashMap;

use crate::caps::Caps;
use crate::error::{Error, Result};
use crate::rng::{Key, Purpose};

/// What to draw.
#[derive(Clone, Copy, Debug)]
pub struct SampleOptions {
    /// Draws per cap, at least 1.
    pub k: usize,
    /// Whether a row may come more than once per cap.
    pub replace: bool,
    /// Same seed, same rows.
    pub seed: u64,
}

impl SampleOptions {
    fn check(&self) -> Result<()> {
        if self.k == 0 {
            return Err(Error::InvalidParameter("expected k of at least 1, got 0".into()));
        }
        Ok(())
    }
}

/// One key per cap: a hash of the seed, the cap's content, and how many equal caps stand before it in the batch.
///
/// So a cap's draws depend neither on its place in the batch nor on caps that differ from it, and equal caps still get
/// independent draws.
fn keys(caps: &Caps<'_>, purpose: Purpose, seed: u64) -> Vec<Key> {
    let mut seen: HashMap<u128, u64> = HashMap::with_capacity(caps.len());
    (0..caps.len())
        .map(|i| {
            let (center, bound) = (bytemuck::cast_slice(caps.center(i)), caps.bound(i).to_le_bytes());
            let mut hash = xxhash_rust::xxh3::Xxh3::new();
            hash.update(center);
            hash.update(&bound);
            let content = hash.digest128();
            let before = seen.entry(content).or_default();
            let key = Key::new(purpose, seed, &[&content.to_le_bytes(), &before.to_le_bytes()]);
            *before += 1;
            key
        })
        .collect()
}
