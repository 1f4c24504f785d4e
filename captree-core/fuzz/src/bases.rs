//! The trees that get damaged: small ones, of every kind of sketch. Built anew by each run, so they are of the present
//! format.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use captree_core::{Batch, Call, Ingest, Invalid, Params, Result, Storage, Tree};

/// The files of a tree's folder, by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Rows, dims, dtype of the stored rows, leaf size, and every how many rows one is skipped (0: none).
const KINDS: [(usize, usize, Storage, usize, usize); 8] = [
    (1, 1, Storage::Float32, 512, 0),
    (3, 2, Storage::Float16, 1, 0),
    (70, 3, Storage::Float16, 8, 5),
    (130, 17, Storage::Float32, 512, 0),
    (300, 40, Storage::Float16, 32, 3),
    (200, 150, Storage::Float32, 64, 0),
    (90, 600, Storage::Float16, 30, 0),
    // Enough rows for a complete basis, and so for codes of all columns.
    (4200, 20, Storage::Float16, 512, 0),
];

/// Builds every kind in a folder of `place`, and gives their files.
pub fn build(place: &Path, call: &Call) -> Result<Vec<Files>> {
    let mut bases = Vec::new();
    for (number, (rows, dim, storage, leaf_size, skipped)) in KINDS.into_iter().enumerate() {
        let path = place.join(format!("base-{number}"));
        let mut ingest = Ingest::new(storage, true);
        ingest.set_invalid(Invalid::Skip);
        ingest.push(Batch::F32(&vectors(rows, dim, skipped)), dim, call)?;
        Tree::build(ingest.finish()?, &Params::new(4, Some(leaf_size), 0)?, Some(&path), call)?;
        bases.push(read(&path).map_err(|e| captree_core::Error::io("reading a base", e))?);
    }
    Ok(bases)
}

/// Clustered rows; every `skipped`-th one is zero.
fn vectors(rows: usize, dim: usize, skipped: usize) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed((rows * 1000 + dim) as u64);
    let middles: Vec<f32> = (0..4 * dim).map(|_| random.f32() - 0.4).collect();
    let mut out = Vec::with_capacity(rows * dim);
    for row in 0..rows {
        let middle = &middles[row % 4 * dim..][..dim];
        let zero = skipped > 0 && row % skipped == 1;
        out.extend(middle.iter().map(|m| if zero { 0.0 } else { m + 0.3 * (random.f32() - 0.5) + 1e-3 }));
    }
    out
}

fn read(path: &Path) -> io::Result<Files> {
    let mut files = Files::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?);
    }
    Ok(files)
}
