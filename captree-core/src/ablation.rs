//! For measurement: switches parts of the walk off and tallies what each part decides.
//!
//! Every answer stays exact, for what no part decides meets the stored rows. A level that is switched off decides nothing,
//! but still sums up its columns where a later level that is on reads on from its sums.

use std::sync::Mutex;

use crate::error::{Error, Result};
use crate::sketch::Decision;

/// What a part that is switched off says of a tile.
pub(crate) const OPEN: Decision = Decision { inside: 0, unsure: u64::MAX };

/// The parts of the walk, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Caps of large subtrees, by the triangle inequality.
    Nodes,
    /// Tiles, by the code of their mean.
    Tiles,
    First,
    Second,
    Third,
    Last,
    /// The stored rows in float32, which cannot be switched off; what they leave open is decided exactly.
    Float32,
}

/// Which parts are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts(u8);

impl Parts {
    /// As queries use them.
    pub const ALL: Parts = Parts(u8::MAX);

    const NAMES: [&'static str; 6] = ["nodes", "tiles", "first", "second", "third", "last"];

    /// Only the parts of these names. Errors: [`Error::InvalidParameter`] for any other name.
    pub fn named(names: &[String]) -> Result<Self> {
        names.iter().try_fold(Parts(0), |parts, name| match Parts::NAMES.iter().position(|known| known == name) {
            Some(part) => Ok(Parts(parts.0 | 1 << part)),
            None => Err(Error::InvalidParameter(format!("expected parts among {:?}, got {name:?}", Parts::NAMES))),
        })
    }

    pub(crate) fn has(self, part: Part) -> bool {
        self.0 >> part as u8 & 1 != 0
    }

    /// Whether this level or one that reads on from its sums is on.
    pub(crate) fn reach(self, level: Part) -> bool {
        self.0 >> level as u8 != 0
    }
}

/// (cap, row) pairs: all of them, and those that each part leaves open.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    all: u64,
    open: [u64; 7],
}

impl Tally {
    pub(crate) fn start(&mut self, pairs: usize) {
        self.all += pairs as u64;
    }

    pub(crate) fn pass(&mut self, part: Part, pairs: usize) {
        self.open[part as usize] += pairs as u64;
    }

    pub(crate) fn pass_rows(&mut self, level: Part, decisions: &[Decision]) {
        self.pass(level, decisions.iter().map(|d| d.unsure.count_ones() as usize).sum());
    }

    /// Pairs by the name of what decided them.
    pub fn decided(&self) -> Vec<(&'static str, u64)> {
        let names = Parts::NAMES.into_iter().chain(["float32", "exact"]);
        let before = std::iter::once(self.all).chain(self.open);
        let after = self.open.into_iter().chain([0]);
        names.zip(before.zip(after)).map(|(name, (before, after))| (name, before - after)).collect()
    }
}

/// A walk with some parts only, and what its tasks tallied.
pub(crate) struct Ablation {
    pub parts: Parts,
    pub tally: Mutex<Tally>,
}

impl Ablation {
    pub fn new(parts: Parts) -> Self {
        Ablation { parts, tally: Mutex::default() }
    }

    /// Adds what one task tallied.
    pub fn add(&self, task: &Tally) {
        let mut tally = self.tally.lock().unwrap_or_else(|e| e.into_inner());
        tally.all += task.all;
        tally.open.iter_mut().zip(task.open).for_each(|(sum, open)| *sum += open);
    }

    pub fn total(&self) -> Tally {
        *self.tally.lock().unwrap_or_else(|e| e.into_inner())
    }
}
