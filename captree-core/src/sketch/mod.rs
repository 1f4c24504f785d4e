//! Certified sketches: short integer codes of the rows, with bounds that decide most rows without reading them.
//!
//! With the mean direction `mu`, a query `q = lambda mu + q'` and any row `x`,
//!
//! ```text
//! <q, x> = lambda |mu|^2 + lambda <mu, x - mu> + <q', x - mu> + <q', mu>.
//! ```
//!
//! `lambda` is chosen so that `q'` is orthogonal to `mu`; what rounding leaves of `<q', mu>` is covered by the slack.
//! The first term belongs to the query, the second is one number per row (`shift`), and the third is what a code stands
//! for. Let `W` have (nearly) orthonormal columns, `z` be the float32 projection of `x - mu` on them, `i` its integer code
//! with step `s`, and `a`, `j`, `s_q` the same for `q'`. Writing `x - mu = W z + t` and `q' = W a + p`,
//!
//! ```text
//! | <q', x - mu> - s s_q <i, j> |  <=  |a| |z - s i|  +  |a - s_q j| |s i|  +  |p| |t|  +  defect
//! ```
//!
//! by Cauchy-Schwarz on each part. Nothing here needs `W` to be exact: `t` and `p` are *defined* as what is left over, and
//! the cross terms `<W a, t>`, `<p, W z>` and `<W a, W z> - <a, z>`, which vanish for exactly orthonormal columns and
//! exact projections, are bounded by `defect` ([`basis::Basis::defect`]). Norms are rounded up, so the inequality holds for real numbers.
//!
//! Three levels use it: tiles of 64 neighbors in tree order (their mean's code, with the radius of the tile added to
//! the first norm), rows in the same energy-ordered prefix, and rows at full width, where `W` is the identity and the
//! third term vanishes. What no level decides meets the stored vector.

mod basis;
mod check;
mod encode;
mod kernel;
mod query;
#[cfg(test)]
mod tests;

pub(crate) use basis::Basis;
pub(crate) use encode::{Sketch, full_width, padded, sketch_bytes};
pub(crate) use kernel::{Decision, IntKernels};
pub(crate) use query::{Full, Interleaved, Queries};

use bytemuck::{Pod, Zeroable};

use crate::store::{Dtype, Element};

/// Most dims of a prefix; also what keeps its integer sums exact in float32.
pub(crate) const MAX_PREFIX: usize = 512;

/// Rows per tile.
pub(crate) const TILE: usize = crate::distance::TILE;

/// What a level knows of one row (or of a tile of rows) beside its code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Terms {
    /// Step `s` of the code.
    pub step: f32,
    /// `<mu, x - mu>`, or the middle of its range.
    pub shift: f32,
    /// At least `|z - s i|`.
    pub rounding: f32,
    /// At least `|s i|`.
    pub length: f32,
    /// At least `|t|`.
    pub residual: f32,
    /// At least the distance of `shift` from any value it stands for.
    pub spread: f32,
}

impl Element for Terms {
    const DTYPE: Dtype = Dtype::Record(&[
        ("step", "<f4"),
        ("shift", "<f4"),
        ("rounding", "<f4"),
        ("length", "<f4"),
        ("residual", "<f4"),
        ("spread", "<f4"),
    ]);
}

/// Number of [`Terms`] fields.
pub(crate) const TERMS: usize = 6;

/// The terms of 64 rows, field by field, as the vector loop reads them.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct TileTerms {
    pub step: [f32; TILE],
    pub shift: [f32; TILE],
    pub rounding: [f32; TILE],
    pub length: [f32; TILE],
    pub residual: [f32; TILE],
    pub spread: [f32; TILE],
}

/// The least float32 that is at least `x`.
pub(crate) fn up(x: f64) -> f32 {
    let y = x as f32;
    if f64::from(y) < x { y.next_up() } else { y }
}
