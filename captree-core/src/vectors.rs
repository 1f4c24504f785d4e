//! Validated unit rows, float16 or float32, in memory or mapped; and the norms every bound relies on.

use std::any::Any;
use std::ops::Range;

use half::f16;

use crate::element::{Element, Storage};
use crate::error::Result;
use crate::store::Array;

/// Runs `$body` with `$a` bound to the [`Array`] inside `$vectors`, whatever its element type.
macro_rules! with_elements {
    ($vectors:expr, $a:ident => $body:expr) => {
        match $vectors {
            $crate::vectors::Vectors::F16($a) => $body,
            $crate::vectors::Vectors::F32($a) => $body,
        }
    };
}
pub(crate) use with_elements;

/// Stored rows, one after the other.
#[derive(Clone)]
pub enum Vectors {
    /// Half precision.
    F16(Array<f16>),
    /// Single precision.
    F32(Array<f32>),
}

impl Vectors {
    /// The dtype.
    pub fn storage(&self) -> Storage {
        match self {
            Vectors::F16(_) => Storage::Float16,
            Vectors::F32(_) => Storage::Float32,
        }
    }

    /// Coordinates in all.
    pub fn len(&self) -> usize {
        with_elements!(self, a => a.len())
    }

    /// Whether there are no coordinates.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The array, if its elements are of this type.
    pub(crate) fn array<E: Element>(&self) -> Option<&Array<E>> {
        let array: &dyn Any = match self {
            Vectors::F16(array) => array,
            Vectors::F32(array) => array,
        };
        array.downcast_ref()
    }

    /// Writes row `row` of `out.len()` dims as float32, exactly.
    pub fn widen(&self, row: usize, out: &mut [f32]) -> Result<()> {
        with_elements!(self, a => widen(a, row, out))
    }
}

/// The `d` coordinates of row `row`, which may be a number out of a file: too large ones are an error.
#[inline]
pub(crate) fn row<E: Element>(array: &Array<E>, row: usize, d: usize) -> Result<&[E]> {
    let start = row.saturating_mul(d);
    array.slice(start..start.saturating_add(d))
}

/// The rows of a range, each as a slice.
pub(crate) fn rows<E: Element>(array: &Array<E>, range: Range<usize>, d: usize) -> Result<Vec<&[E]>> {
    Ok(array.slice(range.start * d..range.end * d)?.chunks_exact(d).collect())
}

fn widen<E: Element>(array: &Array<E>, index: usize, out: &mut [f32]) -> Result<()> {
    E::widen(row(array, index, out.len())?, out);
    Ok(())
}

/// Euclidean norm in float64; off by at most [`NORM_SLACK`] relative for up to 2^20 dims.
pub(crate) fn norm(row: &[f32]) -> f64 {
    // Eight chains: the compiler may use vector registers, and the order is fixed.
    let mut sums = [0.0f64; 8];
    for (i, x) in row.iter().enumerate() {
        sums[i % 8] += f64::from(*x) * f64::from(*x);
    }
    sums.iter().sum::<f64>().sqrt()
}

/// Relative slack that covers the rounding of [`norm`].
pub(crate) const NORM_SLACK: f64 = 1e-9;

/// The smallest and largest norm of some vectors, widened so that they hold for the real norms.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct NormRange {
    /// At most every norm.
    pub low: f64,
    /// At least every norm.
    pub high: f64,
}

impl NormRange {
    /// The range of no vectors: narrower than any other.
    pub const EMPTY: NormRange = NormRange { low: f64::INFINITY, high: 0.0 };

    /// The range of one norm as [`norm`] computes it.
    pub(crate) fn of(norm: f64) -> Self {
        NormRange { low: norm * (1.0 - NORM_SLACK), high: norm * (1.0 + NORM_SLACK) }
    }

    /// The smallest range holding both.
    pub fn union(self, other: Self) -> Self {
        NormRange { low: self.low.min(other.low), high: self.high.max(other.high) }
    }
}
