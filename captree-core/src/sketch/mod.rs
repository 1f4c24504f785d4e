//! Certified sketches: short integer codes of the rows, with bounds that decide most rows without reading them.
//!
//! With the mean direction `mu`, a query `q = lambda mu + q'` and any row `x`,
//!
//! ```text
//! <q, x> = lambda |mu|^2 + lambda <mu, x - mu> + <q', x - mu> + <q', mu>.
//! ```
//!
//! `lambda` is chosen so that `q'` is orthogonal to `mu`; what rounding leaves of `<q', mu>` is covered by the slack.
//! The first term belongs to the query, the second is one number per row (`shift`), and the third is what codes stand
//! for. Let `W` have (nearly) orthonormal columns, let `z` be the float32 projection of `x - mu` on them and `a` that
//! of `q'`, and let `t = x - mu - W z` and `p = q' - W a` be *defined* as what is left over. Then
//!
//! ```text
//! <q', x - mu> = <a, z> + <p, t> + ( <W a, W z> - <a, z> + <W a, t> + <p, W z> ).
//! ```
//!
//! The bracket vanishes for exactly orthonormal columns and exact projections, and is bounded by `defect`
//! ([`basis::Basis::defect`]) for others: nothing here needs `W` to be exact. A product that an integer sum stands for
//! costs what both codes lose: for a part of the coordinates, coded as `z ~ s i` and `a ~ r j`,
//!
//! ```text
//! | <a, z> - s r <i, j> |  <=  |a| |z - s i|  +  |a - r j| |s i|
//! ```
//!
//! by Cauchy-Schwarz, and a product that nothing stands for costs `|p| |t|`. Norms are rounded up, so the inequalities
//! hold for real numbers. `W` is a whole basis (of at most 4096 columns), the leading columns in energy order from
//! level to level. Four levels read more and more of them ([`levels`]; [`plan`] chooses how many):
//!
//! - *first*: a few leading columns, 8 bits; `|p| |t|` for the others; one question, in integers alone ([`fold`]).
//! - *second*: more columns, 8 bits; `|p| |t|` for the others.
//! - *third*: more columns again, 8 bits; `|p| |t|` for the others.
//! - *fourth*: all columns, 8 bits, and the *refinement*: 8 bits more for the leading 64 columns of the row, and of the
//!   query; `|p| |t|` for what even these leave over.
//!
//! The codes of the first two levels, which are read for every tile, lie *interleaved*: tile by tile, four columns at a
//! time of all 64 rows. Those of the third and fourth, the *wide* levels, which few rows need, lie row by row. Tiles of
//! 64 neighbors in tree order have codes of their own: of their mean, with the tile's radius added to the error.
//!
//! This module makes the codes of rows ([`encode`]) and of queries ([`queries`]) and multiplies them ([`kernel`]); in
//! which order they decide what is [`crate::scan`]'s. The proof is in docs/exactness.md, the layout in docs/format.md.

mod basis;
mod check;
mod encode;
mod fold;
pub(crate) mod kernel;
pub(crate) mod levels;
mod plan;
mod queries;
mod terms;

pub(crate) use basis::Basis;
pub(crate) use encode::Sketch;
#[cfg(test)]
pub(crate) use encode::steps;
pub(crate) use fold::Fold;
pub(crate) use kernel::{Decision, IntKernels};
pub(crate) use levels::{Steps, TERMS, Widths, padded, sketch_bytes, wide_bytes};
pub(crate) use plan::MANY_ROWS;
pub(crate) use queries::QueryCodes;
pub(crate) use terms::LONGEST;

/// Most columns of the second level; also what keeps its integer sums small enough.
pub(crate) const MAX_SECOND: usize = 512;

/// Above every step of a code: no coordinate is longer than 2.2, which 127 steps reach.
pub(crate) const MAX_STEP: f32 = 0.02;

/// Rows per tile.
pub(crate) const TILE: usize = crate::distance::TILE;

/// The least float32 that is at least `x`.
pub(crate) fn up(x: f64) -> f32 {
    let y = x as f32;
    if f64::from(y) < x { y.next_up() } else { y }
}
