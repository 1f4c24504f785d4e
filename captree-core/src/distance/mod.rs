//! Dot products: one generic loop, one instantiation per instruction set, chosen once at run time.
//!
//! [`dots`] gives float32 dot products of a tile of rows with a tile of centers together with a bound on their error
//! ([`f32_error`]); whatever the bound cannot decide goes to [`crate::exact`].

#![allow(unsafe_code)]

mod element;
mod generic;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub(crate) use element::Element;
use generic::Simd;
pub(crate) use generic::two_sum;

use std::sync::OnceLock;

use half::f16;

use crate::instructions;

/// Rows a tile holds at most: one bit each in the masks that queries work with.
pub const TILE: usize = 64;

/// Largest product of two norms that any accepted row and center can have (unit within 2^-6 each, with room).
pub const NORM_PRODUCT_MAX: f64 = 1.1;

/// Signature of a tile kernel: `out[j * rows.len() + r] = <rows[r], centers[j]>`.
///
/// # Safety
/// The CPU must have the instruction set of the kernel; every row and center must have the same length and `out` must
/// have `rows.len() * centers.len()` elements.
pub(crate) type TileKernel<E> = unsafe fn(rows: &[&[E]], centers: &[&[f32]], out: &mut [f32]);

/// The loops for rows of one type: all rows with all centers, row by row with a center each, and in float64 with one
/// center.
#[derive(Clone, Copy)]
pub(crate) struct Loops<E> {
    tile: TileKernel<E>,
    pairs: TileKernel<E>,
    wide: unsafe fn(rows: &[&[E]], center: &[f64], out: &mut [f64]),
}

/// The kernels of one instruction set. Holding one proves that the CPU has it: only [`Kernels::available`] makes them.
#[derive(Clone, Copy)]
pub struct Kernels {
    name: &'static str,
    f16: Loops<f16>,
    f32: Loops<f32>,
    pair: unsafe fn(&[f32], &[f32]) -> (f64, f64),
}

impl Kernels {
    /// All kernels that this CPU can run, fastest first; the portable one is always last.
    pub fn available() -> Vec<Kernels> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        found.extend(x86_64::available());
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        found.extend([neon::KERNELS]);
        found.push(portable::KERNELS);
        found
    }

    /// The kernels that run: the fastest of this CPU, or those that the environment asks for (`instructions.rs`).
    pub fn get() -> &'static Kernels {
        static BEST: OnceLock<Kernels> = OnceLock::new();
        BEST.get_or_init(|| instructions::choose(&Kernels::available(), |kernels| kernels.name))
    }

    /// The instruction set's name, for reports.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// `out[j * rows.len() + r]` = float32 dot product of `rows[r]` and `centers[j]`, within [`f32_error`].
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub(crate) fn dots<E: Element>(&self, rows: &[&[E]], centers: &[&[f32]], out: &mut [f32]) {
        let Some(d) = centers.first().map(|c| c.len()) else { return };
        assert!(rows.iter().all(|r| r.len() == d) && centers.iter().all(|c| c.len() == d));
        assert_eq!(out.len(), rows.len() * centers.len());
        // SAFETY: `self` exists only where the CPU has the instruction set; the lengths were checked above.
        unsafe { (E::loops(self).tile)(rows, centers, out) }
    }

    /// `out[i]` = float32 dot product of `rows[i]` and `centers[i]`, the same number as [`Kernels::dots`] gives.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub(crate) fn pairs<E: Element>(&self, rows: &[&[E]], centers: &[&[f32]], out: &mut [f32]) {
        let Some(d) = centers.first().map(|c| c.len()) else { return };
        assert!(rows.iter().all(|r| r.len() == d) && centers.iter().all(|c| c.len() == d));
        assert!(rows.len() == centers.len() && out.len() == rows.len());
        // SAFETY: `self` exists only where the CPU has the instruction set; the lengths were checked above.
        unsafe { (E::loops(self).pairs)(rows, centers, out) }
    }

    /// Dot product of two float32 vectors as an unevaluated sum `hi + lo` of float64, compensated: off by about `d^2
    /// 2^-106`.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn dot_pair(&self, a: &[f32], b: &[f32]) -> (f64, f64) {
        assert_eq!(a.len(), b.len());
        // SAFETY: `self` exists only where the CPU has the instruction set; the lengths are equal.
        unsafe { (self.pair)(a, b) }
    }

    /// `out[r]` = float64 dot product of `rows[r]` and a center of float32 numbers, within [`wide_error`].
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub(crate) fn wide<E: Element>(&self, rows: &[&[E]], center: &[f64], out: &mut [f64]) {
        assert!(rows.iter().all(|r| r.len() == center.len()) && out.len() == rows.len());
        // SAFETY: `self` exists only where the CPU has the instruction set; the lengths were checked above.
        unsafe { (E::loops(self).wide)(rows, center, out) }
    }
}

/// Bound on |float64 dot product - real dot product| of [`Kernels::wide`] over vectors of `d` dims.
///
/// As [`f32_error`], with u = 2^-53. Products of numbers that float32 holds are exact, so only sums round.
pub(crate) fn wide_error(d: usize) -> f64 {
    let m = (d.div_ceil(generic::MIN_LANES) + generic::MIN_LANES + 7) as f64;
    let mu = m * f64::EPSILON / 2.0;
    mu / (1.0 - mu) * NORM_PRODUCT_MAX
}

/// Bound on |float32 dot product - real dot product| for any kernel, over vectors of `d` dims.
///
/// Every kernel sums at least [`generic::MIN_LANES`] chains, so one product passes through at most
/// `m = ceil(d / 8) + 8 + 7` roundings of relative size u = 2^-24 (product, chain, tail, reduction); the classical
/// bound (Higham, *Accuracy and Stability of Numerical Algorithms*, section 3.1) is `m u / (1 - m u) * sum |a_i b_i|`,
/// and Cauchy-Schwarz bounds the sum by the product of the norms. Products below the normal range add at most
/// 2^-126 each, whether the CPU flushes them or not.
pub fn f32_error(d: usize) -> f64 {
    let m = (d.div_ceil(generic::MIN_LANES) + generic::MIN_LANES + 7) as f64;
    let mu = m * f64::from(f32::EPSILON) / 2.0;
    mu / (1.0 - mu) * NORM_PRODUCT_MAX + d as f64 * f64::from(f32::MIN_POSITIVE)
}

/// Bound on |hi + lo - real dot product| of [`Kernels::dot_pair`] over vectors of `d` dims.
///
/// Products of two float32 are exact in float64, so only sums round. `TwoSum` keeps each rounding error, and the
/// errors (at most `n u S` in all, u = 2^-53, S = sum |a_i b_i|) are summed in float64, which costs at most
/// `n u` relative: `n^2 u^2 S` (Ogita, Rump and Oishi, *Accurate sum and dot product*, 2005), with room for the lanes.
pub fn pair_error(d: usize) -> f64 {
    let n = (d + 32) as f64;
    n * n * f64::EPSILON * f64::EPSILON * NORM_PRODUCT_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exact;
    use proptest::prelude::*;

    fn unit(mut v: Vec<f32>) -> Vec<f32> {
        let norm = v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        if norm == 0.0 {
            v[0] = 1.0;
        } else {
            v.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
        }
        v
    }

    fn vectors(count: usize) -> impl Strategy<Value = Vec<Vec<f32>>> {
        (1usize..70)
            .prop_flat_map(move |d| prop::collection::vec(prop::collection::vec(-1.0f32..1.0, d).prop_map(unit), count))
    }

    proptest! {
        #[test]
        fn every_kernel_stays_within_its_bound(v in vectors(11)) {
            let d = v[0].len();
            let (rows, centers) = v.split_at(6);
            let half: Vec<Vec<f16>> = rows.iter().map(|r| r.iter().map(|x| f16::from_f32(*x)).collect()).collect();
            let rows32: Vec<&[f32]> = rows.iter().map(|r| &r[..]).collect();
            let rows16: Vec<&[f16]> = half.iter().map(|r| &r[..]).collect();
            let refs: Vec<&[f32]> = centers.iter().map(|c| &c[..]).collect();
            for kernels in Kernels::available() {
                let mut out = vec![0.0; 30];
                kernels.dots(&rows32, &refs, &mut out);
                for (i, got) in out.iter().enumerate() {
                    let want = exact::dot(&centers[i / 6], &rows[i % 6]);
                    prop_assert!((f64::from(*got) - want).abs() <= f32_error(d), "{} {got} {want}", kernels.name());
                }
                // Runs of 6 to 30 pairs that share a center, so that each way to take some of them together comes up.
                let run = |c: usize| (0..6 * (c + 1)).map(move |i| (c, i % 6));
                let pairs: Vec<(usize, usize)> = (0..5).flat_map(run).collect();
                let of_pairs: Vec<&[f32]> = pairs.iter().map(|(_, r)| rows32[*r]).collect();
                let to_centers: Vec<&[f32]> = pairs.iter().map(|(c, _)| refs[*c]).collect();
                let mut dots = vec![0.0; pairs.len()];
                kernels.pairs(&of_pairs, &to_centers, &mut dots);
                pairs.iter().zip(&dots).for_each(|((c, r), dot)| assert_eq!(*dot, out[c * 6 + r]));
                kernels.dots(&rows16, &refs, &mut out);
                for (i, got) in out.iter().enumerate() {
                    let row: Vec<f32> = half[i % 6].iter().map(|x| x.to_f32()).collect();
                    let want = exact::dot(&centers[i / 6], &row);
                    prop_assert!((f64::from(*got) - want).abs() <= f32_error(d), "{} {got} {want}", kernels.name());
                    let (hi, lo) = kernels.dot_pair(&centers[i / 6], &row);
                    prop_assert_eq!(hi + lo, want);
                    let center: Vec<f64> = centers[i / 6].iter().map(|x| f64::from(*x)).collect();
                    // Five rows, so that all ways to take some of them together come up.
                    let (mut wide, mut single) = ([0.0; 5], [0.0; 5]);
                    kernels.wide(&[rows16[i % 6]; 5], &center, &mut wide);
                    kernels.wide(&[&row[..]; 5], &center, &mut single);
                    prop_assert_eq!(wide, single);
                    let error = wide_error(d) + f64::EPSILON / 2.0;
                    prop_assert!(wide.iter().all(|x| (x - want).abs() <= error), "{}", kernels.name());
                }
            }
        }
    }

    #[test]
    fn long_vectors_of_one_sign_stay_within_the_bound() {
        let v = unit((0..4096).map(|i| 1.0 + (i % 7) as f32 * 0.01).collect());
        for kernels in Kernels::available() {
            let mut out = [0.0];
            kernels.dots(&[&v[..]], &[&v[..]], &mut out);
            assert!((f64::from(out[0]) - exact::dot(&v, &v)).abs() <= f32_error(4096), "{}", kernels.name());
            let center: Vec<f64> = v.iter().map(|x| f64::from(*x)).collect();
            let mut wide = [0.0];
            kernels.wide(&[&v[..]], &center, &mut wide);
            assert!((wide[0] - exact::dot(&v, &v)).abs() <= wide_error(4096));
        }
    }
}
