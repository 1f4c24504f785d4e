//! What is stored of a row at each level, and what is known of all rows of a tile.

use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Serialize};

use super::TILE;

/// Dimensions are coded in groups of four: one 32-bit lane of the integer dot products.
pub(crate) const GROUP: usize = 4;

/// Leading columns whose codes the fourth level refines: it adds eight bits to those of the row and of the query.
pub(crate) const REFINED: usize = 64;

/// Steps between a column's step and that of its refinement: what a code may lose, half a step, is 127 of these.
pub(crate) const FINER: f64 = 254.0;

/// Most columns of a basis: rows of more dims keep a part that no code stands for.
pub(crate) const MAX_COLUMNS: usize = 4096;

/// Bytes that the wide levels read at a time: a cache line.
const LINE: usize = 64;

/// Numbers that a tile of rows stores per row, and a group of tiles per tile: see [`field`].
const FIELDS: usize = 4;

/// Numbers that hold for a whole tile: [`Bounds`].
const BOUNDS: usize = 16;

/// Numbers of 32 bits stored beside the codes of 64 rows or tiles.
pub(crate) const TERMS: usize = FIELDS * TILE + BOUNDS;

/// Where the numbers of 64 rows, or tiles, start.
pub(crate) mod field {
    use super::TILE;
    /// `<mu, x - mu>`, or the middle of its range.
    pub const SHIFT: usize = 0;
    /// Of rows: what the first level reads beside their codes, two integers ([`super::super::fold`]).
    pub const FOLDED: usize = TILE;
    /// Of tiles: at least the distance of any row's projection from the mean one.
    pub const RADIUS: usize = TILE;
    /// At least what the second level's columns leave over.
    pub const SECOND_RESIDUAL: usize = 2 * TILE;
    /// Of rows: at least what the third level's columns leave over.
    pub const THIRD_RESIDUAL: usize = 3 * TILE;
    /// Of tiles: at least the distance of any row's `shift` from the middle.
    pub const REACH: usize = 3 * TILE;
}

/// Columns that each level reads, all from the first one on; the fourth level reads all columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Widths {
    /// A multiple of four unless it is `second`.
    pub first: usize,
    pub second: usize,
    pub third: usize,
    pub all: usize,
}

/// Code steps, one for the columns that each level adds, the same for all rows of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Steps {
    pub first: f32,
    pub second: f32,
    pub third: f32,
    pub fourth: f32,
}

impl Steps {
    /// In the order of the levels.
    pub fn each(&self) -> [f32; 4] {
        [self.first, self.second, self.third, self.fourth]
    }
}

/// What holds for every row of a tile: norms of what its codes lose, and of what they stand for, rounded up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Bounds {
    /// `|z - s i|` and `|s i|` over the first level's columns.
    pub first_lost: f32,
    pub first_length: f32,
    /// The same over the columns that the second level adds.
    pub second_lost: f32,
    pub second_length: f32,
    /// `|z - s i|`, which nothing reads, and `|i|` over the leading columns, those that are refined; what their
    /// refinement `l` loses, and `|l|`.
    pub leading_lost: f32,
    pub leading_length: f32,
    pub refinement_lost: f32,
    pub refinement_length: f32,
    /// `|z - s i|` and `|s i|` over those columns of the first two levels that are not refined.
    pub unrefined_lost: f32,
    pub unrefined_length: f32,
    /// The same over the columns that the third level adds, and over those that the fourth adds.
    pub third_lost: f32,
    pub third_length: f32,
    pub fourth_lost: f32,
    pub fourth_length: f32,
    /// What all columns leave over.
    pub residual: f32,
    /// Distance of `shift` from what it stands for.
    pub spread: f32,
}

impl Bounds {
    /// The larger of each.
    pub fn max(&self, other: &Bounds) -> Bounds {
        let mut out = *self;
        let (mine, theirs): (&mut [f32; BOUNDS], &[f32; BOUNDS]) =
            (bytemuck::cast_mut(&mut out), bytemuck::cast_ref(other));
        mine.iter_mut().zip(theirs).for_each(|(a, b)| *a = a.max(*b));
        out
    }

    /// The sum of products, in four lanes: a product passes through at most six roundings.
    #[inline(always)]
    pub fn times(&self, other: &Bounds) -> f32 {
        let (mine, theirs): (&[f32; BOUNDS], &[f32; BOUNDS]) = (bytemuck::cast_ref(self), bytemuck::cast_ref(other));
        let mut sums = [0.0; 4];
        for k in 0..BOUNDS {
            sums[k % 4] += mine[k] * theirs[k];
        }
        (sums[0] + sums[1]) + (sums[2] + sums[3])
    }

    /// Stored behind the fields of 64 rows or tiles.
    #[inline(always)]
    pub fn of(terms: &[f32]) -> &Bounds {
        bytemuck::from_bytes(bytemuck::cast_slice(&terms[terms.len() - BOUNDS..]))
    }

    /// Stores them.
    pub fn write(&self, terms: &mut [f32]) {
        let at = terms.len() - BOUNDS;
        terms[at..].copy_from_slice(bytemuck::cast_ref::<Bounds, [f32; BOUNDS]>(self));
    }
}

/// Bytes of the codes of so many columns: whole groups.
pub(crate) fn padded(width: usize) -> usize {
    width.next_multiple_of(GROUP)
}

/// Leading columns, of `width`, that are refined.
pub(crate) fn refined_width(width: usize) -> usize {
    width.min(REFINED)
}

/// Bytes of a wide code that the third level reads: whole lines, so that the loop has no tail.
pub(crate) fn third_bytes(widths: Widths) -> usize {
    (widths.third - widths.second).next_multiple_of(LINE)
}

/// Bytes of one wide code: the columns that the third level adds, the refinement, the columns that the fourth adds.
pub(crate) fn wide_bytes(widths: Widths) -> usize {
    third_bytes(widths) + REFINED + (widths.all - widths.third).next_multiple_of(LINE)
}

/// Bytes per row of all sketches, at most, but for the tiles' small share: every column has one code, and padding is
/// short.
pub(crate) fn sketch_bytes(dim: usize) -> usize {
    dim.min(MAX_COLUMNS) + GROUP + REFINED + 2 * LINE + TERMS * size_of::<f32>() / TILE
}
