//! The trees that get damaged: small ones, of every kind of sketch, of one segment and of several. Built anew by each
//! run, so they are of the present format.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use captree_core::{Batch, Call, Ingest, Invalid, Params, Result, Rows, Storage, Tree};

/// The files of a tree, by their paths within it.
pub type Files = BTreeMap<String, Vec<u8>>;

/// A tree before its changes.
struct Kind {
    rows: usize,
    dim: usize,
    storage: Storage,
    leaf_size: usize,
    /// Every how many rows one is skipped; 0: none.
    skipped: usize,
    changes: &'static [Change],
}

enum Change {
    /// So many rows more.
    Append(usize),
    /// Every so many of the rows from one number to another.
    Delete(usize, usize, usize),
    /// A state that stays in the folder, as if a reader held it.
    Hold,
}
use Change::{Append, Delete, Hold};

const fn kind(rows: usize, dim: usize, storage: Storage, leaf_size: usize, skipped: usize) -> Kind {
    Kind { rows, dim, storage, leaf_size, skipped, changes: &[] }
}

/// The corpus names them by their place here, but for the last one.
const KINDS: [Kind; 12] = [
    kind(1, 1, Storage::Float32, 512, 0),
    kind(3, 2, Storage::Float16, 1, 0),
    kind(70, 3, Storage::Float16, 8, 5),
    kind(130, 17, Storage::Float32, 512, 0),
    kind(300, 40, Storage::Float16, 32, 3),
    kind(200, 150, Storage::Float32, 64, 0),
    kind(90, 600, Storage::Float16, 30, 0),
    // Segments behind each other, the last ones smaller than those before, with deleted rows in all of them.
    Kind { changes: &[Append(30), Append(7), Delete(5, 107, 3)], ..kind(70, 3, Storage::Float16, 8, 5) },
    // Two states; the rows of the second segment are gone, and the third one stands behind a gap.
    Kind {
        changes: &[Append(20), Delete(90, 110, 1), Append(9), Delete(3, 4, 1), Hold, Delete(0, 70, 2)],
        ..kind(90, 20, Storage::Float32, 16, 0)
    },
    // Deleted rows within a segment that was built without them.
    Kind { changes: &[Delete(1, 5, 1), Append(40), Delete(30, 45, 4)], ..kind(6, 5, Storage::Float32, 4, 3) },
    // Nothing but deleted rows.
    Kind { changes: &[Delete(0, 9, 1)], ..kind(9, 4, Storage::Float16, 512, 0) },
    // Enough rows for a complete basis, and so for codes of all columns.
    kind(4200, 20, Storage::Float16, 512, 0),
];

/// Builds every kind in a folder of `place`, and gives their files.
pub fn build(place: &Path, call: &Call) -> Result<Vec<Files>> {
    let mut bases = Vec::new();
    for (number, kind) in KINDS.iter().enumerate() {
        let path = place.join(format!("base-{number}"));
        let params = Params::new(4, Some(kind.leaf_size), 0)?;
        let mut tree = Tree::build(ingested(kind, kind.rows, call)?, &params, Some(&path), call)?;
        let mut held = Vec::new();
        for change in kind.changes {
            tree = match change {
                Append(rows) => tree.append(ingested(kind, *rows, call)?, call)?.0,
                Delete(start, end, step) => {
                    let rows: Vec<i64> = (*start as i64..*end as i64).step_by(*step).collect();
                    tree.delete(&rows)?.0
                }
                Hold => {
                    held.push(Tree::open(&path)?);
                    continue;
                }
            };
        }
        bases.push(read(&path).map_err(|e| captree_core::Error::io("reading a base", e))?);
    }
    Ok(bases)
}

fn ingested(kind: &Kind, rows: usize, call: &Call) -> Result<Rows> {
    let mut ingest = Ingest::new(kind.storage, true);
    ingest.set_invalid(Invalid::Skip);
    ingest.push(Batch::F32(&vectors(rows, kind.dim, kind.skipped)), kind.dim, call)?;
    ingest.finish()
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

/// All files of a tree, but for the lock, which nobody reads.
fn read(path: &Path) -> io::Result<Files> {
    let mut files = Files::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(path.join(&folder))? {
            let entry = entry?;
            let name = format!("{folder}{}", entry.file_name().to_string_lossy());
            match entry.file_type()?.is_dir() {
                true => folders.push(name + "/"),
                false if name == "LOCK" => {}
                false => drop(files.insert(name, fs::read(entry.path())?)),
            }
        }
    }
    Ok(files)
}
