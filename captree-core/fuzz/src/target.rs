//! What is asked of a damaged folder, and what no answer may be: a panic, memory that the files cannot need, or, once
//! `verify` has found nothing wrong, an answer that differs from brute force over the vectors that `take` gives.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use captree_core::{Call, Caps, Error, NodeRecord, Result, SampleOptions, SearchOptions, Storage, Tree};

use crate::allocation;
use crate::bases::Files;
use crate::mutate::{Damage, Gone};

/// Bytes that a case may hold beyond what it had at its start: so many, and so many for each byte of the folder.
const ALLOWED: usize = 32 << 20;
const ALLOWED_EACH: usize = 64;

/// A float64 sum of float32 products is closer to the real number than this: such rows are decided by nobody here.
const CLOSE: f64 = 1e-9;

/// A tree of more rows is not asked which of them were skipped.
const MOST_ROWS: usize = 1 << 20;

/// How far a case got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// `open` said what is wrong.
    Refused,
    /// `verify` said what is wrong.
    Faulty,
    /// Every answer was right.
    Sound,
}

/// The folders that are damaged and mended, one for each base.
pub struct Target<'a> {
    folders: Vec<PathBuf>,
    bases: &'a [Files],
    call: Call,
}

impl<'a> Target<'a> {
    /// Writes the bases below `place`.
    pub fn new(place: &Path, bases: &'a [Files]) -> io::Result<Self> {
        let mut folders = Vec::new();
        for (number, files) in bases.iter().enumerate() {
            let folder = place.join(format!("case-{number}"));
            fs::create_dir_all(&folder)?;
            for (name, bytes) in files {
                let path = folder.join(name);
                fs::create_dir_all(path.parent().unwrap_or(&folder))?;
                fs::write(path, bytes)?;
            }
            folders.push(folder);
        }
        let call = Call::new(Some(1)).map_err(io::Error::other)?;
        Ok(Target { folders, bases, call })
    }

    /// Tries a case. The message says what must not be.
    pub fn run(&self, damage: &Damage) -> Result<Outcome, String> {
        let folder = &self.folders[damage.base];
        self.damage(damage).map_err(|e| format!("the folder cannot be written: {e}"))?;
        let bytes: usize = self.bases[damage.base].values().chain(damage.changed.values()).map(Vec::len).sum();
        let before = allocation::start();
        let outcome = catch_unwind(AssertUnwindSafe(|| self.ask(folder)));
        let held = allocation::most() - before;
        self.mend(damage).map_err(|e| format!("the folder cannot be mended: {e}"))?;
        match outcome {
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                Err(format!("panic: {}", text.unwrap_or_default()))
            }
            Ok(_) if held > ALLOWED + ALLOWED_EACH * bytes => Err(format!("{held} bytes held for a folder of {bytes}")),
            Ok(outcome) => outcome,
        }
    }

    fn damage(&self, damage: &Damage) -> io::Result<()> {
        let folder = &self.folders[damage.base];
        // Files are replaced, not written over: a mapping of an earlier case may be alive for another moment.
        for (name, bytes) in &damage.changed {
            replace(&folder.join(name), bytes)?;
        }
        for (name, gone) in &damage.gone {
            let path = folder.join(name);
            remove(&path)?;
            match gone {
                Gone::Missing => {}
                Gone::Folder => fs::create_dir(&path)?,
                Gone::DeadLink => link(&path)?,
            }
        }
        Ok(())
    }

    fn mend(&self, damage: &Damage) -> io::Result<()> {
        let (folder, base) = (&self.folders[damage.base], &self.bases[damage.base]);
        for name in damage.changed.keys().chain(damage.gone.iter().map(|(name, _)| name)) {
            match base.get(name) {
                Some(bytes) => replace(&folder.join(name), bytes)?,
                None => remove(&folder.join(name))?,
            }
        }
        Ok(())
    }

    fn ask(&self, folder: &Path) -> Result<Outcome, String> {
        let tree = match Tree::open(folder) {
            Ok(tree) => tree,
            Err(error) => return told(error, Outcome::Refused),
        };
        let verified = tree.verify(&self.call);
        // Whatever verify says, no question may end in anything but an answer or an error.
        let answered = self.questions(&tree, verified.is_ok());
        match (verified, answered) {
            (Ok(()), answered) => answered.map(|()| Outcome::Sound),
            (Err(error), Ok(())) => told(error, Outcome::Faulty),
            (Err(_), Err(wrong)) => Err(wrong),
        }
    }

    /// Asks everything. The answers are compared with brute force if the tree is `sound`.
    fn questions(&self, tree: &Tree, sound: bool) -> Result<(), String> {
        let (d, call) = (tree.dim(), &self.call);
        let fail = |what: &str| Err(format!("{what}, though verify found nothing wrong"));
        let centers = centers(d);
        let bounds: Vec<f64> = [0.05, 0.6, 1.1, 2.0].into_iter().cycle().take(centers.len() / d).collect();
        let caps = Caps::new(d, &centers, &bounds).map_err(|e| e.to_string())?;
        let counts = tree.count(&caps, call);
        let found = tree.search(&caps, SearchOptions { sort: true, ..SearchOptions::default() }, call);
        let draws = [true, false].map(|replace| tree.sample(&caps, SampleOptions::new(3, replace, 1), call));
        let near = tree.nearest(&centers, 3.min(tree.alive()).max(1), call);
        let nodes = tree.nodes();
        let below: Result<Vec<Vec<i64>>> = (0..nodes.len()).map(|node| tree.node_rows(node)).collect();
        let radii = tree.radius_for_count(&centers, &vec![1; bounds.len()], call);
        let others = [
            tree.sample_approximate(&caps, SampleOptions::new(2, true, 1), 16, call).map(|_| ()),
            tree.estimate(&caps, 20, 0.9, 1, call).map(|_| ()),
            tree.stats().map(|_| ()),
            tree.centers().map(|_| ()),
            tree.take_f16(&[0, 1, -1]).map(|_| ()),
            tree.take_f32(&[0]).map(|_| ()),
        ];
        // Its answer is as long as the manifest says that the tree is, and no file need be.
        let skipped = if tree.len() <= MOST_ROWS { tree.skipped() } else { return Ok(()) };
        if !sound {
            return Ok(());
        }
        let (Ok(counts), Ok(found), Ok(near), Ok(skipped), Ok(below)) = (counts, found, near, skipped, below) else {
            return fail("a question had no answer");
        };
        if others[..4].iter().any(Result::is_err)
            || draws.iter().any(Result::is_err)
            || radii.is_ok() != (tree.alive() > 0)
        {
            return fail("a question had no answer");
        }
        let deleted = tree.deleted();
        let is_gone = |row: &i64| skipped.binary_search(row).is_ok() || deleted.binary_search(row).is_ok();
        let kept: Vec<i64> = (0..tree.len() as i64).filter(|row| !is_gone(row)).collect();
        if kept.len() != tree.alive() || kept.len() + skipped.len() + deleted.len() != tree.len() {
            return fail("rows are counted wrong");
        }
        if !below_is_whole(&nodes, &below, &kept) {
            return fail("the rows below a node are wrong");
        }
        let Ok(rows) = widened(tree, &kept) else { return fail("rows could not be taken") };
        for (c, center) in centers.chunks_exact(d).enumerate() {
            let distances: Vec<f64> = rows.chunks_exact(d).map(|row| 1.0 - dot(center, row)).collect();
            let inside = |slack: f64| distances.iter().filter(|far| **far <= bounds[c] + slack).count() as i64;
            let listed = &found.rows[found.offsets[c] as usize..found.offsets[c + 1] as usize];
            if !(inside(-CLOSE)..=inside(CLOSE)).contains(&counts[c]) || listed.len() as i64 != counts[c] {
                return fail("a count is wrong");
            }
            let is_inside =
                |row: &i64| kept.binary_search(row).is_ok_and(|place| distances[place] <= bounds[c] + CLOSE);
            if !listed.iter().all(is_inside) {
                return fail("a row is listed that lies outside");
            }
            for (replace, drawn) in [true, false].into_iter().zip(draws.iter().flatten()) {
                let drawn = &drawn[3 * c..3 * c + 3];
                // With replacement all draws have a row if one is there, without as many as there are.
                let expected = if replace { 3 * counts[c].min(1) } else { counts[c].min(3) };
                let rows: Vec<&i64> = drawn.iter().filter(|row| **row >= 0).collect();
                if rows.len() as i64 != expected || !rows.iter().all(|row| listed.contains(row)) {
                    return fail("a draw is wrong");
                }
            }
            let least = distances.iter().copied().fold(f64::INFINITY, f64::min);
            if (near.distances[c * near.distances.len() / bounds.len()] - least).abs() > CLOSE {
                return fail("a nearest row is wrong");
            }
        }
        Ok(())
    }
}

/// Whether below the roots lie all rows, and below every other node those of its children.
fn below_is_whole(nodes: &[NodeRecord], below: &[Vec<i64>], kept: &[i64]) -> bool {
    let roots = (0..nodes.len()).filter(|node| nodes[*node].parent < 0);
    let mut all: Vec<i64> = roots.flat_map(|node| below[node].iter().copied()).collect();
    all.sort_unstable();
    let is_whole = |node: usize| nodes[node].is_leaf() || below[nodes[node].child_range()].concat() == below[node];
    all == kept && (0..nodes.len()).all(is_whole)
}

/// An error that says what is wrong with the folder; any other one should not be.
fn told(error: Error, outcome: Outcome) -> Result<Outcome, String> {
    match error {
        Error::Corrupt { .. } | Error::NotFound { .. } | Error::NewerVersion { .. } | Error::Io { .. } => Ok(outcome),
        other => Err(format!("an error of the wrong kind: {other:?}")),
    }
}

/// A few directions: axes, a diagonal and its opposite, and one of both.
fn centers(d: usize) -> Vec<f32> {
    let even = (1.0 / d as f64).sqrt() as f32;
    let mut out = vec![0.0; 4 * d];
    (out[0], out[2 * d - 1]) = (1.0, -1.0);
    out[2 * d..3 * d].fill(even);
    (3 * d..4 * d).for_each(|i| out[i] = if i % 2 == 0 { even } else { -even });
    out
}

fn widened(tree: &Tree, rows: &[i64]) -> Result<Vec<f32>> {
    match tree.storage() {
        Storage::Float16 => Ok(tree.take_f16(rows)?.into_iter().map(half::f16::to_f32).collect()),
        Storage::Float32 => tree.take_f32(rows),
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    remove(path)?;
    fs::write(path, bytes)
}

fn remove(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

#[cfg(unix)]
fn link(path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink("nowhere", path)
}

#[cfg(not(unix))]
fn link(_path: &Path) -> io::Result<()> {
    Ok(())
}
