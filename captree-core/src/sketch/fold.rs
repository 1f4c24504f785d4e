//! The first level, in integers alone: whatever a row and a query contribute to its test is folded into one sum.
//!
//! A row lies surely outside a cap if, in real numbers,
//!
//! ```text
//! lambda |mu|^2 + lambda shift + <a, z> + |p| |t| + errors  <  threshold,
//! ```
//!
//! over the level's columns, with the errors that a tile's rows share. `<a, z>` is `scale` times an integer sum. With
//! two integers per row, `|t| <= least + step r` and `shift ~ middle + step s` (the same steps for all rows of a tree),
//! the second and the fourth term are integers times `scale`, too: their factors of the query are rounded to whole
//! multiples of it, upwards or with what that loses among the errors. So the sum goes on over `r` and `s`, and one
//! comparison with an integer per query and tile decides.
//!
//! That a row lies surely *inside* is the same for the query's negative, and no sum serves both: a query asks the
//! question that a row near the mean suggests, and leaves the other to the second level.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::encode::{Sketch, Split, inverse, nearest};
use super::kernel::{FirstTerms, SecondTerms};
use super::levels::{Bounds, TERMS, field};
use super::terms::{code_each, left_over, norm};
use super::{TILE, Widths, up};

/// Steps between the least and the largest of a tree's residuals or shifts: what a row's rounding loses is about what
/// the rounding of a query's factors does.
const STEPS: f64 = 255.0;

/// At least the first integer of any row.
pub(super) const MOST_STEPS: i16 = 256;

/// Largest magnitude of a row's second integer.
const FARTHEST: f64 = 128.0;

/// Most binary places between the units of a matrix unit's two sums: keeps what is shifted far from what 32 bits hold.
const MOST_SHIFT: u32 = 6;

/// Least unit of the sums: a query that needs none gets it.
const LEAST_SCALE: f64 = 1.0 / (1u32 << 30) as f64;

/// Largest factor of a query: with one of the integers above, far from what a sum holds.
const MOST: f64 = 32_000.0;

/// How what some columns leave over becomes an integer `i`: it is at most `least + step i`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FoldedResiduals {
    pub least: f32,
    pub step: f32,
}

impl FoldedResiduals {
    /// For residuals in this range.
    fn of((least, most): (f64, f64)) -> Self {
        FoldedResiduals { least: least as f32, step: up((most - least) / STEPS) }
    }

    /// What an integer stands for.
    pub fn residual(&self, integer: i16) -> f64 {
        f64::from(self.least) + f64::from(self.step) * f64::from(integer)
    }
}

/// How the rows' `shift`, and what the first level's columns leave over, become integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fold {
    /// What the first level's columns leave over.
    pub first: FoldedResiduals,
    /// What the second level's columns leave over, which rows store: [`Fold::pairs`].
    pub second: FoldedResiduals,
    pub shift_middle: f32,
    pub shift_step: f32,
    /// At least the distance of any row's shift from what its integer stands for.
    pub shift_lost: f32,
}

/// Two signed 16-bit integers as they are stored.
pub(super) fn pair([low, high]: [i16; 2]) -> u32 {
    u32::from(low as u16) | u32::from(high as u16) << 16
}

/// The two integers of [`pair`].
pub(super) fn unpair(pair: u32) -> [i16; 2] {
    [pair as i16, (pair >> 16) as i16]
}

impl Fold {
    /// Folds the residuals (in the place of the integers) and shifts of `n` rows.
    pub fn rows(n: usize, terms: &mut [f32]) -> Fold {
        let each = |place: usize| {
            let terms = &*terms;
            (0..n).map(move |p| f64::from(terms[p / TILE * TERMS + place + p % TILE]))
        };
        let range =
            |place: usize| each(place).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
        let (low, high) = range(field::SHIFT);
        let mut fold = Fold {
            first: FoldedResiduals::of(range(field::FOLDED)),
            second: FoldedResiduals::of(range(field::SECOND_RESIDUAL)),
            shift_middle: ((low + high) / 2.0) as f32,
            shift_step: up((high - low) / STEPS),
            shift_lost: 0.0,
        };
        let mut lost = 0.0f64;
        for (tile, terms) in terms.chunks_exact_mut(TERMS).enumerate() {
            let spread = f64::from(Bounds::of(terms).spread);
            for r in 0..TILE.min(n - tile * TILE) {
                let shift = f64::from(terms[field::SHIFT + r]);
                let integers = fold.integers(f64::from(terms[field::FOLDED + r]), shift);
                lost = lost.max((shift - fold.shift(integers)).abs() + spread);
                terms[field::FOLDED + r] = f32::from_bits(pair(integers));
            }
        }
        fold.shift_lost = up(lost);
        fold
    }

    fn integers(&self, residual: f64, shift: f64) -> [i16; 2] {
        let steps = |x: f64, step: f32| nearest(x * inverse(f64::from(step)));
        let first = self.first;
        let mut up_to = steps(residual - f64::from(first.least), first.step).clamp(0.0, STEPS + 1.0) as i16;
        while up_to as f64 <= STEPS && first.residual(up_to) < residual {
            up_to += 1;
        }
        let shift = steps(shift - f64::from(self.shift_middle), self.shift_step).clamp(-FARTHEST, FARTHEST);
        [up_to, shift as i16]
    }

    /// The two integers of the rows of a tile by the second level's columns, given its terms.
    pub fn pairs(&self, terms: &[f32], pairs: &mut [u32; TILE]) {
        let (least, per_step) = (f64::from(self.second.least), inverse(f64::from(self.second.step)));
        let fields = terms[field::SECOND_RESIDUAL..][..TILE].iter().zip(&terms[field::FOLDED..][..TILE]);
        for (pair, (residual, folded)) in pairs.iter_mut().zip(fields) {
            // Rounded up, with room for the rounding of the product, which is at most about 256.
            let up_to = ((f64::from(*residual) - least) * per_step + 1e-9).ceil();
            *pair = folded.to_bits() & 0xffff_0000 | u32::from(up_to.clamp(0.0, 32_767.0) as u16);
        }
    }

    /// About the row's shift: within `shift_lost`.
    pub fn shift(&self, integers: [i16; 2]) -> f64 {
        f64::from(self.shift_middle) + f64::from(self.shift_step) * f64::from(integers[1])
    }

    /// Says what is wrong with the numbers, if anything.
    pub fn fault(&self) -> Option<String> {
        let Fold { first, second, shift_middle, shift_step, shift_lost } = *self;
        let sizes = [first.least, first.step, second.least, second.step, shift_step, shift_lost];
        // A shift is never known exactly, so trees without these numbers have none that is right.
        let is_right = sizes.iter().all(|x| (0.0..4.0).contains(x)) && shift_lost > 0.0 && shift_middle.abs() < 8.0;
        (!is_right).then(|| format!("expected small residuals and shifts, found {self:?}"))
    }
}

/// What moves the threshold of a query's first level.
#[derive(Clone, Copy, Debug)]
pub(super) struct FirstThreshold {
    /// The value of a row that the mean stands for.
    middle: f64,
    /// Errors that all rows share.
    error: f64,
    /// Integers per unit.
    per_scale: f64,
    /// Whether the codes are those of the second level, too.
    joint: bool,
}

/// A query, coded for the first level.
pub(super) struct FirstCodes {
    /// To reject rows, with the threshold still to be set.
    pub terms: FirstTerms,
    pub threshold: FirstThreshold,
    /// What a unit of its sums is worth: of the leading columns, and of the others.
    pub scales: [f32; 2],
    /// What the codes lose.
    pub lost: Vec<f64>,
    /// The sum of the codes of the other columns.
    pub others: i32,
}

/// Codes a query for the first level. With a number of leading columns it does so for a matrix unit, which reads the
/// second level's columns too, and has a sum for the leading ones and one for the others: one sum's unit is a power of
/// two of the other's, because leading columns are much larger.
pub(super) fn encode(
    sketch: &Sketch,
    split: &Split,
    (along, slack): (f64, f64),
    unit_split: Option<usize>,
    codes: &mut [i8],
) -> FirstCodes {
    let (basis, fold, Widths { first, second, .. }) = (&sketch.basis, &sketch.fold, sketch.basis.widths);
    let (end, leading, folded) = match unit_split {
        Some(leading) => (second, leading, fold.second),
        None => (first, first, fold.first),
    };
    let a: Vec<f64> = split.z[..end].iter().map(|x| f64::from(*x)).collect();
    let steps: Vec<f64> = (0..end).map(|k| sketch.steps.of(basis.widths, k)).collect();
    let residual = f64::from(left_over(sketch, split, end));
    // Of the sum of the rows' two integers.
    let factors = [residual * f64::from(folded.step), along * f64::from(fold.shift_step)];
    let least = LEAST_SCALE.max(factors[0].max(factors[1].abs()) / MOST);
    let most = |columns: Range<usize>| columns.map(|k| (a[k] * steps[k]).abs()).fold(0.0, f64::max) / 127.0;
    let (of_leading, of_others) = (most(0..leading), most(leading..end));
    // A single sum has a single unit.
    let most_shift = if unit_split.is_some() { MOST_SHIFT } else { 0 };
    let unit = up(of_others.max(of_leading / f64::from(1 << most_shift)).max(least));
    let reaches = |shift: &u32| f64::from(unit) * f64::from(1 << shift) >= of_leading;
    let shift = (0..most_shift).find(reaches).unwrap_or(most_shift);
    let leading_unit = unit * (1 << shift) as f32;
    let (scale, leading_scale) = (f64::from(unit), f64::from(leading_unit));
    let (leading_codes, other_codes) = codes.split_at_mut(leading);
    let (mut lost, sum) = code_each(&a[..leading], |k| leading_scale * inverse(steps[k]), leading_codes);
    let (others_lost, others) =
        code_each(&a[leading..], |k| scale * inverse(steps[leading + k]), &mut other_codes[..end - leading]);
    lost.extend(others_lost);
    let (up_to, nearby) = ((factors[0] / scale).ceil(), (factors[1] / scale).round());
    let rounded = (factors[1] - nearby * scale).abs() * FARTHEST;
    let error = slack + residual * f64::from(folded.least) + along.abs() * f64::from(fold.shift_lost) + rounded;
    let per_scale = 1.0 / scale;
    let costs = |values: &[f64]| up(f64::from(norm(values)) * per_scale);
    let terms = FirstTerms {
        start: -128 * sum,
        joint_start: -128 * ((sum << shift) + others),
        pair: pair([up_to as i16, nearby as i16]),
        shift,
        least: 0.0,
        lost: costs(&a[..first]),
        length: costs(&lost[..first]),
        second_lost: costs(&a[first..]),
        second_length: costs(&lost[first..]),
        inside: 0,
    };
    let middle = along * (basis.mean_square + f64::from(fold.shift_middle));
    let threshold = FirstThreshold { middle, error, per_scale, joint: unit_split.is_some() };
    FirstCodes { terms, threshold, scales: [leading_unit, unit], lost, others }
}

impl FirstThreshold {
    /// Moves the threshold to `real dot >= threshold`, and turns the query around where that asks the better question.
    pub fn set(&self, threshold: f64, terms: &mut FirstTerms, second: &mut SecondTerms, codes: &mut [i8]) {
        let inside = if self.middle >= threshold { u64::MAX } else { 0 };
        if inside != terms.inside {
            terms.inside = inside;
            let [up_to, nearby] = unpair(terms.pair);
            (terms.start, terms.joint_start) = (-terms.start, -terms.joint_start);
            terms.pair = pair([up_to, -nearby]);
            codes.iter_mut().for_each(|code| *code = -*code);
            second.first_scale = -second.first_scale;
            if self.joint {
                (second.start, second.scale) = (-second.start, -second.scale);
            }
        }
        let distance = if inside == 0 { threshold - self.middle } else { self.middle - threshold };
        terms.least = -up((self.error - distance) * self.per_scale);
    }
}
