//! The codes of one query, and what the levels need to know beside them.

use super::encode::{Sketch, Split, inverse, nearest};
use super::fold::{self, Aim};
use super::kernel::{FirstTerms, LeadTerms, PrefixTerms, WideTerms};
use super::levels::{Bounds, FINE, FINER, fine_width, padded, third_bytes};
use super::{Widths, up};
use crate::vectors::NORM_SLACK;

/// Slack for the float32 arithmetic of a test: what all operations up to the last level round, with lengths, steps and a
/// mean that [`crate::tree`] accepts, is less than 400 units of 2^-24 (counted in docs/exactness.md). `<q', mu>`, which is
/// zero but for rounding, and the float64 arithmetic are in it too.
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
pub(super) fn code(values: &[f64], step: f64, codes: &mut [i8]) -> (Vec<f64>, i32) {
    let (per_step, mut sum) = (inverse(step), 0);
    let lost = values.iter().zip(codes).map(|(x, code)| {
        let i = nearest(x * per_step).clamp(-127.0, 127.0);
        *code = i as i32 as i8;
        sum += i as i32;
        x - step * i
    });
    (lost.collect(), sum)
}

/// The terms of a query, but for the threshold.
pub(super) struct Terms {
    pub slack: f64,
    pub first: FirstTerms,
    pub aim: Aim,
    pub second: PrefixTerms,
    pub lead: LeadTerms,
    pub wide: WideTerms,
}

/// Where the codes of a query go.
pub(super) struct Codes<'a> {
    pub prefix: &'a mut [i8],
    pub lead: &'a mut [i8],
    pub wide: &'a mut [i8],
}

/// Codes of a query and its terms.
pub(super) fn encode(sketch: &Sketch, split: &Split, along: f64, Codes { prefix, lead, wide }: Codes<'_>) -> Terms {
    let (basis, steps) = (&sketch.basis, sketch.steps);
    let [_, second_step, third_step, rest_step] = steps.each().map(f64::from);
    let Widths { first, second, third, all: _ } = basis.widths;
    let leading = fine_width(second);
    let step_of = |k: usize| steps.of(basis.widths, k);
    let residual = |z: &[f32]| up(basis.residual(split.square, z) * (1.0 + NORM_SLACK));
    let a: Vec<f64> = split.z.iter().map(|x| f64::from(*x)).collect();
    let (offset, spread) = (along * basis.mean_square, up(along.abs()));
    let defect = basis.defect(f64::from(norm(&a)), sketch.farthest);
    let slack = FLOAT_SLACK + defect + 2e-7 * (offset.abs() + along.abs() * LONGEST);
    let (first_terms, aim, first_scale, mut lost) =
        fold::encode(sketch, split, (along, residual(&split.z[..first]), slack), &mut prefix[..padded(first)]);
    let scale = up(largest(&a[first..second]) * second_step / 127.0);
    let (second_lost, second_sum) =
        code(&a[first..second], f64::from(scale) * inverse(second_step), &mut prefix[padded(first)..]);
    lost.extend(second_lost);
    // What the leading codes lose, in units of the rows' steps.
    let missing: Vec<f64> = lost[..leading].iter().enumerate().map(|(k, x)| x * step_of(k)).collect();
    let lead_scale = up(largest(&missing) / 127.0);
    let (lead_lost, lead_sum) = code(&missing, f64::from(lead_scale), lead);
    let (third_codes, others) = wide.split_at_mut(third_bytes(basis.widths));
    let third_scale = up(largest(&a[second..third]) * third_step / 127.0);
    let (third_lost, third_sum) = code(&a[second..third], f64::from(third_scale) * inverse(third_step), third_codes);
    // One integer sum serves the refinement and the rest.
    let finer: Vec<f64> = a[..leading].iter().enumerate().map(|(k, x)| x * (step_of(k) / FINER)).collect();
    let last_scale = up(largest(&finer).max(largest(&a[third..]) * rest_step) / 127.0);
    let (fine, rest) = others.split_at_mut(FINE);
    let (finer_lost, fine_sum) = code(&finer, f64::from(last_scale), fine);
    let (rest_lost, rest_sum) = code(&a[third..], f64::from(last_scale) * inverse(rest_step), rest);
    let at_second = PrefixTerms {
        start: -128 * second_sum,
        first_scale,
        scale,
        offset: offset as f32,
        along: along as f32,
        residual: residual(&split.z[..second]),
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
    let last_costs = Bounds {
        lead_length: norm(&lead_lost),
        fine_lost: norm(&a[..leading]),
        fine_length: norm(&finer_lost),
        plain_lost: norm(&a[leading..second]),
        plain_length: norm(&lost[leading..]),
        third_lost: third_costs.third_lost,
        third_length: third_costs.third_length,
        rest_lost: norm(&a[third..]),
        rest_length: norm(&rest_lost),
        residual: residual(&split.z),
        spread,
        ..Bounds::default()
    };
    Terms {
        slack,
        first: first_terms,
        aim,
        second: at_second,
        lead: LeadTerms { scale: lead_scale, start: -128 * lead_sum },
        wide: WideTerms {
            third_scale,
            third_start: -128 * third_sum,
            last_scale,
            last_start: -128 * (fine_sum + rest_sum),
            third_residual: residual(&split.z[..third]),
            third_costs,
            last_costs,
            inside: 0.0,
            outside: 0.0,
        },
    }
}
