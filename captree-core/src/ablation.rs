//! For measurement: switches steps of a scan off and tallies what each step decides.
//!
//! Every answer stays exact, for what no step decides meets the stored rows. A level that is switched off decides
//! nothing, but still sums up its columns where a later level that is on goes on from its sums.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::scan::{Observer, Step};

/// Which steps are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepSet(u8);

impl StepSet {
    const NAMES: [&'static str; 6] = ["nodes", "tiles", "first", "second", "third", "fourth"];

    /// Only the steps of these names. Errors: [`Error::InvalidParameter`] for any other name.
    pub fn named(names: &[String]) -> Result<Self> {
        names.iter().try_fold(StepSet(0), |steps, name| match StepSet::NAMES.iter().position(|known| known == name) {
            Some(step) => Ok(StepSet(steps.0 | 1 << step)),
            None => Err(Error::parameter("steps", format!("some of {:?}", StepSet::NAMES), format!("{name:?}"))),
        })
    }

    fn has(self, step: Step) -> bool {
        self.0 >> step as u8 & 1 != 0
    }
}

/// (cap, row) pairs: all of them, and those that each step leaves open.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    all: u64,
    open: [u64; 7],
}

impl Tally {
    /// Pairs by the name of what decided them.
    pub fn decided(&self) -> Vec<(&'static str, u64)> {
        let names = StepSet::NAMES.into_iter().chain(["float32", "exact"]);
        let before = std::iter::once(self.all).chain(self.open);
        let after = self.open.into_iter().chain([0]);
        names.zip(before.zip(after)).map(|(name, (before, after))| (name, before - after)).collect()
    }
}

/// Observes a scan with some steps only.
pub(crate) struct Ablation {
    steps: StepSet,
    all: AtomicU64,
    open: [AtomicU64; 7],
}

impl Ablation {
    pub fn new(steps: StepSet) -> Self {
        Ablation { steps, all: AtomicU64::new(0), open: Default::default() }
    }

    /// What all tasks tallied.
    pub fn tally(self) -> Tally {
        Tally { all: self.all.into_inner(), open: self.open.map(AtomicU64::into_inner) }
    }
}

impl Observer for &Ablation {
    fn makes(self, step: Step) -> bool {
        match step {
            // Levels go on from each other's sums.
            Step::Second | Step::Third | Step::Fourth => self.steps.0 >> step as u8 != 0,
            step => self.steps.has(step),
        }
    }

    fn counts(self, step: Step) -> bool {
        self.steps.has(step)
    }

    fn start(self, pairs: usize) {
        self.all.fetch_add(pairs as u64, Ordering::Relaxed);
    }

    fn left_open(self, step: Step, pairs: impl FnOnce() -> usize) {
        self.open[step as usize].fetch_add(pairs() as u64, Ordering::Relaxed);
    }
}
