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

use serde::{Deserialize, Serialize};

use super::encode::{Sketch, Split, inverse, nearest};
use super::kernel::FirstTerms;
use super::levels::{Bounds, TERMS, field};
use super::terms::{code, largest, norm};
use super::{TILE, up};

/// Steps between the least and the largest of a tree's residuals or shifts: what a row's rounding loses is about what
/// the rounding of a query's factors does.
const STEPS: f64 = 255.0;

/// Largest magnitude of a row's second integer.
const FARTHEST: f64 = 128.0;

/// Least unit of the sums: a query that needs none gets it.
const LEAST_SCALE: f64 = 1.0 / (1u32 << 30) as f64;

/// Largest factor of a query: with one of the integers above, far from what a sum holds.
const MOST: f64 = 32_000.0;

/// How the rows' `shift`, and what the first level's columns leave over, become integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fold {
    pub residual_least: f32,
    pub residual_step: f32,
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
        let ((least, most), (low, high)) = (range(field::FOLDED), range(field::SHIFT));
        let mut fold = Fold {
            residual_least: least as f32,
            residual_step: up((most - least) / STEPS),
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
        let mut up_to =
            steps(residual - f64::from(self.residual_least), self.residual_step).clamp(0.0, STEPS + 1.0) as i16;
        while up_to as f64 <= STEPS && self.residual([up_to, 0]) < residual {
            up_to += 1;
        }
        let shift = steps(shift - f64::from(self.shift_middle), self.shift_step).clamp(-FARTHEST, FARTHEST);
        [up_to, shift as i16]
    }

    /// At least what the first level's columns leave of a row.
    pub fn residual(&self, integers: [i16; 2]) -> f64 {
        f64::from(self.residual_least) + f64::from(self.residual_step) * f64::from(integers[0])
    }

    /// About the row's shift: within `shift_lost`.
    pub fn shift(&self, integers: [i16; 2]) -> f64 {
        f64::from(self.shift_middle) + f64::from(self.shift_step) * f64::from(integers[1])
    }

    /// Says what is wrong with the numbers, if anything.
    pub fn fault(&self) -> Option<String> {
        let Fold { residual_least, residual_step, shift_middle, shift_step, shift_lost } = *self;
        let sizes = [residual_least, residual_step, shift_step, shift_lost];
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
}

/// Codes a query for the first level: to reject rows, with the threshold still to be set. Returns also what a unit of
/// its sums is worth, and what its codes lose.
pub(super) fn encode(
    sketch: &Sketch,
    split: &Split,
    (along, residual, slack): (f64, f32, f64),
    codes: &mut [i8],
) -> (FirstTerms, FirstThreshold, f32, Vec<f64>) {
    let (basis, fold) = (&sketch.basis, &sketch.fold);
    let a: Vec<f64> = split.z[..basis.widths.first].iter().map(|x| f64::from(*x)).collect();
    let (step, residual) = (f64::from(sketch.steps.first), f64::from(residual));
    // Of the sum of the rows' two integers.
    let factors = [residual * f64::from(fold.residual_step), along * f64::from(fold.shift_step)];
    let least = LEAST_SCALE.max(factors[0].max(factors[1].abs()) / MOST);
    let unit = up((largest(&a) * step / 127.0).max(least));
    let scale = f64::from(unit);
    let (lost, sum) = code(&a, scale * inverse(step), codes);
    let (up_to, nearby) = ((factors[0] / scale).ceil(), (factors[1] / scale).round());
    let rounded = (factors[1] - nearby * scale).abs() * FARTHEST;
    let error = slack + residual * f64::from(fold.residual_least) + along.abs() * f64::from(fold.shift_lost) + rounded;
    let per_scale = 1.0 / scale;
    let terms = FirstTerms {
        start: -128 * sum,
        pair: pair([up_to as i16, nearby as i16]),
        least: 0.0,
        lost: up(f64::from(norm(&a)) * per_scale),
        length: up(f64::from(norm(&lost)) * per_scale),
        inside: 0,
    };
    let middle = along * (basis.mean_square + f64::from(fold.shift_middle));
    (terms, FirstThreshold { middle, error, per_scale }, unit, lost)
}

impl FirstThreshold {
    /// Moves the threshold to `real dot >= threshold`, and turns the query around where that asks the better question.
    pub fn set(&self, threshold: f64, terms: &mut FirstTerms, scale: &mut f32, codes: &mut [i8]) {
        let inside = if self.middle >= threshold { u64::MAX } else { 0 };
        if inside != terms.inside {
            terms.inside = inside;
            let [up_to, nearby] = unpair(terms.pair);
            (terms.start, terms.pair) = (-terms.start, pair([up_to, -nearby]));
            codes.iter_mut().for_each(|code| *code = -*code);
            *scale = -*scale;
        }
        let distance = if inside == 0 { threshold - self.middle } else { self.middle - threshold };
        terms.least = -up((self.error - distance) * self.per_scale);
    }
}
