//! The codes of one query, and what the levels need to know beside them.

use super::encode::{Sketch, Split, inverse, nearest};
use super::fold::{self, FirstCodes, FirstThreshold};
use super::kernel::{FirstTerms, RefinementTerms, SecondTerms, WideTerms};
use super::levels::{Bounds, FINER, REFINED, padded, refined_width, third_bytes};
use super::{Widths, up};
use crate::vectors::NORM_SLACK;

/// Slack for the float32 arithmetic of a test: what all operations up to the fourth level round, with lengths, steps
/// and a mean that [`crate::tree`] accepts, is less than 400 units of 2^-24 (counted in docs/exactness.md). `<q', mu>`,
/// which is zero but for rounding, and the float64 arithmetic are in it too.
const FLOAT_SLACK: f64 = 2.5e-5;

/// At least |x - mu| of any row and |q'| of any center: both are unit within 2^-6, the mean is at most 1.1 long.
pub(crate) const LONGEST: f64 = 2.2;

/// Rounded up, with room for the rounding of the sum of squares.
pub(super) fn norm<'a>(values: impl IntoIterator<Item = &'a f64>) -> f32 {
    up(values.into_iter().map(|x| x * x).sum::<f64>().sqrt() * (1.0 + NORM_SLACK))
}

pub(super) fn largest<'a>(values: impl IntoIterator<Item = &'a f64>) -> f64 {
    values.into_iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// Codes `values` with one step; returns what that loses and the sum of the codes.
fn code(values: &[f64], step: f64, codes: &mut [i8]) -> (Vec<f64>, i32) {
    code_each(values, |_| step, codes)
}

/// The same with a step for each value, by its number.
pub(super) fn code_each(values: &[f64], step: impl Fn(usize) -> f64, codes: &mut [i8]) -> (Vec<f64>, i32) {
    let mut sum = 0;
    let lost = values.iter().zip(codes).enumerate().map(|(k, (x, code))| {
        let step = step(k);
        let i = nearest(x * inverse(step)).clamp(-127.0, 127.0);
        *code = i as i32 as i8;
        sum += i as i32;
        x - step * i
    });
    (lost.collect(), sum)
}

/// At least what the first `width` columns leave over of a query.
pub(super) fn left_over(sketch: &Sketch, split: &Split, width: usize) -> f32 {
    up(sketch.basis.residual(split.square, &split.z[..width]) * (1.0 + NORM_SLACK))
}

/// The terms of a query, but for the threshold.
pub(super) struct Terms {
    pub slack: f64,
    pub first: FirstTerms,
    pub first_threshold: FirstThreshold,
    pub second: SecondTerms,
    pub refinement: RefinementTerms,
    pub wide: WideTerms,
}

/// Where the codes of a query go.
pub(super) struct Codes<'a> {
    /// Of the first two levels.
    pub interleaved: &'a mut [i8],
    pub refinement: &'a mut [i8],
    /// Of the third and fourth.
    pub wide: &'a mut [i8],
}

/// Codes of a query and its terms; for a matrix unit with the number of leading columns that have a sum of their own.
pub(super) fn encode(
    sketch: &Sketch,
    split: &Split,
    along: f64,
    unit_split: Option<usize>,
    Codes { interleaved, refinement, wide }: Codes<'_>,
) -> Terms {
    let (basis, steps) = (&sketch.basis, sketch.steps);
    let [_, second_step, third_step, fourth_step] = steps.each().map(f64::from);
    let Widths { first, second, third, all: _ } = basis.widths;
    let leading = refined_width(second);
    let step_of = |k: usize| steps.of(basis.widths, k);
    let residual = |width: usize| left_over(sketch, split, width);
    let a: Vec<f64> = split.z.iter().map(|x| f64::from(*x)).collect();
    let (offset, spread) = (along * basis.mean_square, up(along.abs()));
    let defect = basis.defect(f64::from(norm(&a)), sketch.farthest);
    let slack = FLOAT_SLACK + defect + 2e-7 * (offset.abs() + along.abs() * LONGEST);
    let FirstCodes {
        terms: first_terms,
        threshold,
        scales: [first_scale, mut scale],
        mut lost,
        others: mut others_sum,
    } = fold::encode(sketch, split, (along, slack), unit_split, interleaved);
    if unit_split.is_none() {
        scale = up(largest(&a[first..second]) * second_step / 127.0);
        let codes = &mut interleaved[padded(first)..];
        let (second_lost, sum) = code(&a[first..second], f64::from(scale) * inverse(second_step), codes);
        lost.extend(second_lost);
        others_sum = sum;
    }
    // What the leading codes lose, in units of the rows' steps.
    let missing: Vec<f64> = lost[..leading].iter().enumerate().map(|(k, x)| x * step_of(k)).collect();
    let refinement_scale = up(largest(&missing) / 127.0);
    let (leading_lost, refinement_sum) = code(&missing, f64::from(refinement_scale), refinement);
    let (third_codes, others) = wide.split_at_mut(third_bytes(basis.widths));
    let third_scale = up(largest(&a[second..third]) * third_step / 127.0);
    let (third_lost, third_sum) = code(&a[second..third], f64::from(third_scale) * inverse(third_step), third_codes);
    // One integer sum serves the refinement of the rows' codes and the fourth level's columns.
    let finer: Vec<f64> = a[..leading].iter().enumerate().map(|(k, x)| x * (step_of(k) / FINER)).collect();
    let fourth_scale = up(largest(&finer).max(largest(&a[third..]) * fourth_step) / 127.0);
    let (finer_codes, fourth_codes) = others.split_at_mut(REFINED);
    let (finer_lost, finer_sum) = code(&finer, f64::from(fourth_scale), finer_codes);
    let (fourth_lost, fourth_sum) = code(&a[third..], f64::from(fourth_scale) * inverse(fourth_step), fourth_codes);
    let at_second = SecondTerms {
        start: -128 * others_sum,
        first_scale,
        scale,
        offset: offset as f32,
        along: along as f32,
        residual: residual(second),
        spread,
        first_lost: norm(&a[..first]),
        first_length: norm(&lost[..first]),
        second_lost: norm(&a[first..second]),
        second_length: norm(&lost[first..]),
        length: norm(&a[..second]),
        inside: 0.0,
        outside: 0.0,
    };
    let third_costs = Bounds {
        first_lost: at_second.first_lost,
        first_length: at_second.first_length,
        second_lost: at_second.second_lost,
        second_length: at_second.second_length,
        third_lost: norm(&a[second..third]),
        third_length: norm(&third_lost),
        spread,
        ..Bounds::default()
    };
    let fourth_costs = Bounds {
        leading_length: norm(&leading_lost),
        refinement_lost: norm(&a[..leading]),
        refinement_length: norm(&finer_lost),
        unrefined_lost: norm(&a[leading..second]),
        unrefined_length: norm(&lost[leading..]),
        third_lost: third_costs.third_lost,
        third_length: third_costs.third_length,
        fourth_lost: norm(&a[third..]),
        fourth_length: norm(&fourth_lost),
        residual: residual(split.z.len()),
        spread,
        ..Bounds::default()
    };
    Terms {
        slack,
        first: first_terms,
        first_threshold: threshold,
        second: at_second,
        refinement: RefinementTerms { scale: refinement_scale, start: -128 * refinement_sum },
        wide: WideTerms {
            third_scale,
            third_start: -128 * third_sum,
            fourth_scale,
            fourth_start: -128 * (finer_sum + fourth_sum),
            third_residual: residual(third),
            third_costs,
            fourth_costs,
            inside: 0.0,
            outside: 0.0,
        },
    }
}
