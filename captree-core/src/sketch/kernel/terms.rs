//! What the levels need of one query beside its codes, and the tests that come of it for the rows of a tile.

use crate::sketch::levels::Bounds;

/// What the first level needs of one query beside its code: see [`crate::sketch::Fold`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct FirstTerms {
    /// Where the integer sum starts, which takes away that codes of rows are stored plus 128.
    pub start: i32,
    /// The same of a matrix unit's sum over the columns of both levels.
    pub joint_start: i32,
    /// What the rows' two integers are multiplied with.
    pub pair: u32,
    /// By how many powers of two the sum of the leading columns counts more than that of the others, where a matrix
    /// unit takes two sums.
    pub shift: u32,
    /// A sum at least this large leaves a row open, less what each of the 64 rows' [`Bounds`] costs.
    pub least: f32,
    pub lost: f32,
    pub length: f32,
    /// The same of the second level's columns, where a matrix unit takes both levels' together.
    pub second_lost: f32,
    pub second_length: f32,
    /// All bits, if rows that the level decides lie inside, none if outside.
    pub inside: u64,
}

impl FirstTerms {
    /// The least sum that leaves a row of a tile open. Rounding towards zero is right: whole numbers below the result
    /// are below what was rounded.
    #[inline(always)]
    pub(super) fn least_open(&self, bounds: &Bounds) -> i32 {
        /// Farther from zero than any sum.
        const FAR: f32 = 2e9;
        let first = self.lost * bounds.first_lost + self.length * bounds.first_length;
        let second = self.second_lost * bounds.second_lost + self.second_length * bounds.second_length;
        let least = self.least - (first + second);
        let least = if least > -FAR { least } else { -FAR };
        let least = if least < FAR { least } else { FAR };
        // SAFETY: between the two, which 32 bits hold; `as` would test for what cannot be, a thousand times per tile.
        unsafe { least.to_int_unchecked() }
    }
}

/// What the second level, and tiles, need of one query beside its code; the counterpart of [`Bounds`], norms are
/// rounded up. One cache line: the loops meet all queries of a block for every tile.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct SecondTerms {
    /// Where the integer sum of the columns that the level adds starts, which takes away that codes of rows are stored
    /// plus 128.
    pub start: i32,
    /// What the first level's sum is worth, and that of the columns that the level adds.
    pub first_scale: f32,
    pub scale: f32,
    /// `<q, mu>`.
    pub offset: f32,
    /// `lambda`.
    pub along: f32,
    /// What the level's columns leave over.
    pub residual: f32,
    /// What each of the 64 rows' or tiles' [`Bounds`] costs, and a tile's reach.
    pub spread: f32,
    pub first_lost: f32,
    pub first_length: f32,
    pub second_lost: f32,
    pub second_length: f32,
    /// `|a|`, which a tile's radius is multiplied with.
    pub length: f32,
    /// A value this large, less its error, is inside; one below the other, plus its error, is outside.
    pub inside: f32,
    pub outside: f32,
}

/// What the wide levels need of one query beside its code.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WideTerms {
    pub third_scale: f32,
    pub third_start: i32,
    pub fourth_scale: f32,
    pub fourth_start: i32,
    /// What the third level's columns leave over.
    pub third_residual: f32,
    /// What each of a tile's [`Bounds`] costs.
    pub third_costs: Bounds,
    pub fourth_costs: Bounds,
    pub inside: f32,
    pub outside: f32,
}

/// What the refinement of a query's code is worth, and where its sum starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RefinementTerms {
    pub scale: f32,
    pub start: i32,
}

/// The second level's test of one query.
pub(super) struct Test {
    pub first_scale: f32,
    pub scale: f32,
    pub offset: f32,
    pub along: f32,
    pub residual: f32,
    pub length: f32,
    pub spread: f32,
    pub inside: f32,
    pub outside: f32,
}

impl SecondTerms {
    /// Errors that all rows of a tile share are part of the thresholds.
    #[inline(always)]
    pub(super) fn test(&self, bounds: &Bounds) -> Test {
        let error = self.spread * bounds.spread
            + self.first_lost * bounds.first_lost
            + self.first_length * bounds.first_length
            + (self.second_lost * bounds.second_lost + self.second_length * bounds.second_length);
        Test {
            first_scale: self.first_scale,
            scale: self.scale,
            offset: self.offset,
            along: self.along,
            residual: self.residual,
            length: self.length,
            spread: self.spread,
            inside: self.inside + error,
            outside: self.outside - error,
        }
    }
}

impl WideTerms {
    /// The third level's test for the rows of a tile.
    #[inline]
    pub fn third(&self, bounds: &Bounds) -> WideTest {
        let error = self.third_costs.times(bounds);
        WideTest {
            scale: self.third_scale,
            start: self.third_start,
            residual: self.third_residual,
            inside: self.inside + error,
            outside: self.outside - error,
        }
    }

    /// The fourth level's test for the rows of a tile.
    #[inline]
    pub fn fourth(&self, bounds: &Bounds) -> WideTest {
        let error = self.fourth_costs.times(bounds);
        WideTest {
            scale: self.fourth_scale,
            start: self.fourth_start,
            residual: 0.0,
            inside: self.inside + error,
            outside: self.outside - error,
        }
    }
}

/// The test of one query at one of the wide levels: with `value + scale sum`, summed from `start`, for the new value of
/// a row, and `residual` times what the level's columns leave of it for the error that is the row's alone, a value of
/// at least `inside` is inside, below `outside` it is outside.
#[derive(Clone, Copy, Default)]
pub(crate) struct WideTest {
    pub scale: f32,
    pub start: i32,
    pub residual: f32,
    pub inside: f32,
    pub outside: f32,
}

impl WideTest {
    /// The same test, which decides nothing.
    pub fn undecided(self) -> WideTest {
        WideTest { inside: f32::INFINITY, outside: f32::NEG_INFINITY, ..self }
    }

    /// Whether a row is inside, and whether it is not outside, given the sum without its start; updates its value.
    #[inline(always)]
    pub(super) fn decide(&self, sum: i32, value: &mut f32, residual: f32) -> (bool, bool) {
        self.decide_sum(sum.wrapping_add(self.start), value, residual)
    }

    /// The same, given the sum with its start.
    #[inline(always)]
    pub(super) fn decide_sum(&self, sum: i32, value: &mut f32, residual: f32) -> (bool, bool) {
        let error = self.residual * residual;
        *value += self.scale * sum as f32;
        // Written so that a value that is no number stays open.
        (*value - error >= self.inside, !(*value + error < self.outside))
    }
}
