//! What may watch a scan and switch its steps off: nothing, but for measurement.

/// The steps, in the order in which pairs of a cap and a row meet them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Nodes,
    Tiles,
    First,
    Second,
    Third,
    Fourth,
    /// The stored rows in float32, which cannot be switched off; what they leave open is decided exactly.
    Rows,
}

/// Watches a scan. Queries pass `()`, for which all of this compiles to nothing; [`crate::ablation`] is the other one.
pub(crate) trait Observer: Copy + Send + Sync {
    /// Whether a step is made at all.
    #[inline(always)]
    fn makes(self, _step: Step) -> bool {
        true
    }

    /// Whether what a step finds counts as decided. One that is made and does not count is made for a later step, which
    /// goes on from its sums.
    #[inline(always)]
    fn counts(self, _step: Step) -> bool {
        true
    }

    /// Hears how many pairs a task starts with.
    #[inline(always)]
    fn start(self, _pairs: usize) {}

    /// Hears how many of its pairs a step leaves open.
    #[inline(always)]
    fn left_open(self, _step: Step, _pairs: impl FnOnce() -> usize) {}
}

impl Observer for () {}
