//! The limits of what captree takes, in one place. Python asks for them as `captree._core.limits()`.

/// Most threads that a call may ask for: more than any machine has, few enough for the system to start.
pub const MAX_THREADS: usize = 4096;

/// Fewest and most children of an inner node: labels of a split are 16 bits, and a split compares every row with every
/// child.
pub const MIN_FANOUT: usize = 2;
/// See [`MIN_FANOUT`].
pub const MAX_FANOUT: usize = 4096;

/// Rows in a leaf unless said otherwise: eight tiles, so that a leaf's node costs little beside its rows.
pub const DEFAULT_LEAF_SIZE: usize = 512;

/// Most rows in one tree: row numbers are 32 bits while a tree is built.
pub const MAX_ROWS: usize = u32::MAX as usize;

/// Most dims of a row: integer dot products of whole codes stay within 32 bits.
pub const MAX_DIM: usize = 1 << 16;

/// Largest bound of a cap: the cosine distance of opposite directions. The smallest is 0.
pub const MAX_COS_DISTANCE: f64 = 2.0;

/// How far from length 1 a row or a center may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// IEEE half precision.
    Float16,
    /// bfloat16.
    BFloat16,
    /// IEEE single precision.
    Float32,
    /// IEEE double precision.
    Float64,
}

impl Precision {
    /// Largest accepted | |x| - 1 |.
    ///
    /// Rounding every coordinate of a unit vector changes its length by at most one unit roundoff: 2^-11 for
    /// float16, 2^-8 for bfloat16. Vectors that were normalized in that dtype carry about as much again, so the
    /// tolerance is four roundoffs there. Wider dtypes are allowed 5e-4, so that vectors which were rounded to float16
    /// once and then widened pass.
    pub fn tolerance(self) -> f64 {
        match self {
            Precision::Float16 => 2f64.powi(-9),
            Precision::BFloat16 => 2f64.powi(-6),
            Precision::Float32 | Precision::Float64 => 5e-4,
        }
    }

    /// numpy's name of the dtype.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Float16 => "float16",
            Precision::BFloat16 => "bfloat16",
            Precision::Float32 => "float32",
            Precision::Float64 => "float64",
        }
    }
}
