//! Exact arithmetic: the last word on every answer.
//!
//! Products of two float32 are exact in float64, so a dot product is a sum of float64 numbers. A compensated sum with
//! a proven error bound decides almost always; where it cannot, the sum is carried out exactly as a non-overlapping
//! expansion (Shewchuk, *Adaptive precision floating-point arithmetic*, 1997), the method behind Python's `math.fsum`.

use crate::distance::{Kernels, pair_error, two_sum, wide_error};

/// An exact running sum: non-overlapping float64 of increasing magnitude.
#[derive(Default)]
struct Expansion(Vec<f64>);

impl Expansion {
    fn add(&mut self, mut x: f64) {
        let mut kept = 0;
        for i in 0..self.0.len() {
            let (s, e) = two_sum(self.0[i], x);
            if e != 0.0 {
                self.0[kept] = e;
                kept += 1;
            }
            x = s;
        }
        self.0.truncate(kept);
        if x != 0.0 {
            self.0.push(x);
        }
    }

    /// The sum rounded to the nearest float64, ties to even.
    fn round(&self) -> f64 {
        let mut parts = self.0.iter().rev().copied();
        let Some(mut hi) = parts.next() else { return 0.0 };
        let mut lo = 0.0;
        for x in parts.by_ref() {
            let (s, e) = two_sum(hi, x);
            hi = s;
            if e != 0.0 {
                lo = e;
                break;
            }
        }
        // `hi` is the sum of the leading parts, rounded with remainder `lo`. If `lo` is exactly half an ulp, what
        // follows breaks the tie: the true sum lies beyond the midpoint when the next part has the sign of `lo`.
        if let Some(next) = parts.next()
            && lo != 0.0
            && (lo < 0.0) == (next < 0.0)
        {
            let doubled = lo * 2.0;
            let moved = hi + doubled;
            if moved - hi == doubled {
                hi = moved;
            }
        }
        hi
    }

    fn sign(&self) -> f64 {
        self.0.last().copied().unwrap_or(0.0)
    }
}

fn expand(a: &[f32], b: &[f32], sign: f64, start: &[f64]) -> Expansion {
    let mut sum = Expansion::default();
    start.iter().for_each(|x| sum.add(*x));
    a.iter().zip(b).for_each(|(x, y)| sum.add(sign * f64::from(*x) * f64::from(*y)));
    sum
}

/// The real dot product rounded to float64.
///
/// # Panics
/// If the lengths differ.
#[cfg(test)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    expand(a, b, 1.0, &[]).round()
}

/// The cosine distance 1 - <center, row> of the real dot product, rounded to float64.
pub fn distance(kernels: &Kernels, center: &[f32], row: &[f32]) -> f64 {
    let (hi, lo) = kernels.dot_pair(center, row);
    let (s, e) = two_sum(1.0, -hi);
    let (s, e) = two_sum(s, e - lo);
    // `e - lo` rounds once, relative to at most 2^-52: far below the doubled bound.
    let slack = 2.0 * pair_error(center.len()) + f64::EPSILON * f64::EPSILON;
    let (low, high) = (s + (e - slack), s + (e + slack));
    if low == high {
        return low;
    }
    // Mostly a tie. All numbers above are whole multiples of the unit; two that lie closer than that are equal.
    if slack < unit(center) * unit(row) { s } else { expand(center, row, -1.0, &[1.0]).round() }
}

/// A real number rounded to float32, given what it is rounded to float64; none if that lies halfway between two float32
/// numbers, and so does not say on which side the real number is.
pub(crate) fn narrowed(rounded: f64) -> Option<f32> {
    let nearest = rounded as f32;
    let between = rounded - f64::from(nearest);
    (between == 0.0 || f64::from(next_towards(nearest, rounded)) - rounded != between).then_some(nearest)
}

/// The float32 number beyond `x`, in the direction of a number next to it.
fn next_towards(x: f32, towards: f64) -> f32 {
    if towards > f64::from(x) { x.next_up() } else { x.next_down() }
}

/// The cosine distance of the real dot product, rounded to float32 once.
pub fn distance32(kernels: &Kernels, center: &[f32], row: &[f32]) -> f32 {
    let middle = distance(kernels, center, row);
    narrowed(middle).unwrap_or_else(|| {
        let (nearest, next) = (middle as f32, next_towards(middle as f32, middle));
        let side = expand(center, row, -1.0, &[1.0, -middle]).sign();
        // Exactly in the middle: `as` has taken the even one.
        let is_beyond = side != 0.0 && (side > 0.0) == (next > nearest);
        if is_beyond { next } else { nearest }
    })
}

/// The distance rounded to float32, if the float64 sum over `d` dims can tell ([`Kernels::wide`]): hardly ever not.
pub(crate) fn distance32_of(dot: f64, d: usize) -> Option<f32> {
    let distance = 1.0 - dot;
    // The difference rounds once, and so do both sums below; none is above 4.
    let slack = wide_error(d) + 4.0 * f64::EPSILON;
    let (low, high) = ((distance - slack) as f32, (distance + slack) as f32);
    (low == high).then_some(low)
}

/// The largest power of two that all coordinates are multiples of, at most 1.
fn unit(vector: &[f32]) -> f64 {
    let exponent = |x: &f32| {
        let bits = x.to_bits() & 0x7fff_ffff;
        let (exponent, mantissa) = ((bits >> 23) as i32, bits & 0x7f_ffff);
        // Subnormal numbers have the exponent of the smallest normal ones, and no implicit bit.
        let mantissa = if exponent == 0 { mantissa } else { mantissa | 0x80_0000 };
        if mantissa == 0 { 0 } else { exponent.max(1) - 150 + mantissa.trailing_zeros() as i32 }
    };
    2f64.powi(vector.iter().map(exponent).min().unwrap_or(0).min(0))
}

/// Whether 1 - <center, row> <= bound holds for the real dot product.
pub fn is_inside(kernels: &Kernels, center: &[f32], row: &[f32], bound: f64) -> bool {
    let (hi, lo) = kernels.dot_pair(center, row);
    // <center, row> + bound - 1 as an unevaluated sum of three.
    let (t, e1) = two_sum(bound, -1.0);
    let (s, e2) = two_sum(hi, t);
    let rest = e1 + e2 + lo;
    let value = s + rest;
    // The second `pair_error` pays for the rounding of `e1 + e2`, which is below 2^-51 even where `lo` cancels it.
    let slack = 2.0 * pair_error(center.len()) + 8.0 * f64::EPSILON * (rest.abs() + value.abs());
    if value.abs() > slack { value > 0.0 } else { expand(center, row, 1.0, &[bound, -1.0]).sign() >= 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Real numbers as integers: every product of two float32 of exponent >= -40 is a multiple of 2^-126.
    fn scaled(a: f32, b: f32) -> i128 {
        let part = |x: f32| (f64::from(x) * 2f64.powi(63)) as i128;
        assert_eq!(part(a) as f64 / 2f64.powi(63), f64::from(a));
        part(a) * part(b)
    }

    fn coordinate() -> impl Strategy<Value = f32> {
        (-0.25f32..0.25).prop_map(|x| ((x * 1e6).round() / 1e6 * 2f32.powi(20)).round() / 2f32.powi(20))
    }

    #[test]
    fn float32_distances_halfway_between_two_are_rounded_by_the_real_number() {
        // 1 - (1/4 + 2^-25) lies halfway between two float32 numbers, of which 3/4 is the even one.
        let (far, tiny) = (0.25 + 2f32.powi(-25), 2f32.powi(-40));
        let below = 0.75f32.next_down();
        for (last, want) in [(tiny, below), (0.0, 0.75), (-tiny, 0.75)] {
            assert_eq!(distance(Kernels::get(), &[1.0, tiny], &[far, last]), 0.75 - 2f64.powi(-25));
            assert_eq!(distance32(Kernels::get(), &[1.0, tiny], &[far, last]), want, "{last}");
            assert_eq!(distance32_of(f64::from(far), 2), None);
        }
        // With 3 * 2^-25 the even one is below.
        let far = 0.25 + 3.0 * 2f32.powi(-25);
        for (last, want) in [(tiny, below.next_down()), (0.0, below.next_down()), (-tiny, below)] {
            assert_eq!(distance32(Kernels::get(), &[1.0, tiny], &[far, last]), want, "{last}");
        }
        assert_eq!(narrowed(0.75 - 2f64.powi(-25)), None);
        assert_eq!(narrowed((0.75 - 2f64.powi(-25)).next_up()), Some(0.75));
    }

    proptest! {
        #[test]
        fn decisions_agree_with_integers(
            a in prop::collection::vec(coordinate(), 1..12),
            b in prop::collection::vec(coordinate(), 12),
            ulps in -2i64..3,
        ) {
            let b = &b[..a.len()];
            let exact: i128 = a.iter().zip(b).map(|(x, y)| scaled(*x, *y)).sum();
            let one = 1i128 << 126;
            let kernels = Kernels::get();
            let rounded = distance(kernels, &a, b);
            let bound = f64::from_bits((rounded.to_bits() as i64 + ulps) as u64);
            let bound_scaled = (bound * 2f64.powi(63)) * 2f64.powi(63);
            prop_assume!(bound > 0.5 && bound < 2.0);
            prop_assert_eq!(is_inside(kernels, &a, b, bound), one - exact <= bound_scaled as i128);
            // The conversion of an i128 to f64 rounds to nearest, ties to even.
            prop_assert_eq!(rounded, (one - exact) as f64 / 2f64.powi(63) / 2f64.powi(63));
            prop_assert_eq!(dot(&a, b), exact as f64 / 2f64.powi(63) / 2f64.powi(63));
        }
    }

    proptest! {
        #[test]
        fn ties_round_to_even(
            // Products are multiples of 2^-54, half the spacing of float64 below 1: every other distance is a tie.
            a in prop::collection::vec(-(1i32 << 23)..1 << 23, 1..12),
            b in prop::collection::vec(-(1i32 << 23)..1 << 23, 12),
        ) {
            let part = |v: &[i32]| v.iter().map(|k| *k as f32 / 2f32.powi(27)).collect::<Vec<_>>();
            let (x, y) = (part(&a), part(&b[..a.len()]));
            let exact: i128 = x.iter().zip(&y).map(|(x, y)| scaled(*x, *y)).sum();
            let want = ((1i128 << 126) - exact) as f64 / 2f64.powi(126);
            prop_assert_eq!(distance(Kernels::get(), &x, &y), want);
        }
    }

    #[test]
    fn units_divide_every_coordinate() {
        assert_eq!(unit(&[0.75, -0.0, 5.0]), 0.25);
        assert_eq!(unit(&[f32::MIN_POSITIVE, 1.0]), 2f64.powi(-126));
        assert_eq!(unit(&[f32::from_bits(6), 1.0]), 2f64.powi(-148));
        assert_eq!(unit(&[f32::from_bits(0x0080_0001)]), 2f64.powi(-149));
        assert_eq!((unit(&[4.0]), unit(&[0.0]), unit(&[])), (1.0, 1.0, 1.0));
    }

    #[test]
    fn a_bound_equal_to_the_distance_is_inside_and_one_ulp_less_is_not() {
        let (a, b) = ([1.0f32, 0.0], [0.5f32, 0.25]);
        let kernels = Kernels::get();
        assert!(is_inside(kernels, &a, &b, 0.5));
        assert!(!is_inside(kernels, &a, &b, 0.5f64.next_down()));
        // 1 - 2^-60 is not a float64: only exact arithmetic tells these two apart.
        let tiny = [1.0f32, 2f32.powi(-30)];
        assert!(is_inside(kernels, &tiny, &tiny, 0.0));
        assert!(!is_inside(kernels, &[1.0, 2f32.powi(-30)], &[1.0, -(2f32.powi(-30))], 0.0));
        assert_eq!(distance(kernels, &tiny, &tiny), -(2f64.powi(-60)));
    }

    #[test]
    fn ties_round_as_the_whole_sum_says() {
        let mut sum = Expansion::default();
        [1.0, f64::EPSILON / 2.0, 2f64.powi(-110)].iter().for_each(|x| sum.add(*x));
        assert_eq!(sum.round(), 1.0 + f64::EPSILON);
        sum.add(-(2f64.powi(-109)));
        assert_eq!(sum.round(), 1.0);
        assert_eq!(Expansion::default().round(), 0.0);
    }
}
