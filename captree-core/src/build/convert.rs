//! Input coordinates become stored ones: checked, scaled if asked for, rounded once.

use bytemuck::Pod;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::error::RowFault;
use crate::memory::AlignedVec;
use crate::vectors::{NormRange, norm};

/// Rows one task converts.
pub(super) const CHUNK: usize = 1024;

/// An input coordinate.
pub(super) trait Source: Copy + Send + Sync {
    fn to_f64(self) -> f64;
}

macro_rules! source {
    ($($t:ty),*) => { $(impl Source for $t {
        #[inline]
        fn to_f64(self) -> f64 {
            f64::from(self)
        }
    })* };
}
source!(f16, bf16, f32, f64);

/// A stored coordinate made from the input, rounded once.
pub(super) trait Target: Copy + Send + Sync {
    fn from_f64(x: f64) -> Self;
    fn widen(self) -> f32;
}

impl Target for f16 {
    #[inline]
    fn from_f64(x: f64) -> Self {
        // By way of float32 rounded to odd, so that the second rounding still sees on which side of a midpoint `x`
        // lies.
        let nearest = x as f32;
        let single = match f64::from(nearest) == x {
            true => nearest,
            false if f64::from(nearest).abs() > x.abs() => f32::from_bits((nearest.to_bits() - 1) | 1),
            false => f32::from_bits(nearest.to_bits() | 1),
        };
        f16::from_f32(single)
    }
    #[inline]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

impl Target for f32 {
    #[inline]
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    #[inline]
    fn widen(self) -> f32 {
        self
    }
}

pub(super) struct Report {
    pub norms: NormRange,
    pub bad: Vec<(usize, RowFault)>,
}

/// Takes the bad rows out of those that start at `start`.
pub(super) fn remove<T: Pod>(stored: &mut AlignedVec<T>, start: usize, dim: usize, bad: &[(usize, RowFault)]) {
    let (mut bad, mut end) = (bad.iter().map(|(r, _)| *r).peekable(), start);
    for r in 0..(stored.len() - start) / dim {
        if bad.next_if_eq(&r).is_none() {
            let from = start + r * dim;
            stored.copy_within(from..from + dim, end);
            end += dim;
        }
    }
    stored.resize(end);
}

pub(super) fn convert<S: Source, T: Target>(
    from: &[S],
    to: &mut [T],
    dim: usize,
    tolerance: f64,
    normalize: bool,
) -> Vec<Report> {
    from.par_chunks(CHUNK * dim)
        .zip(to.par_chunks_mut(CHUNK * dim))
        .map(|(from, to)| {
            let mut report = Report { norms: NormRange::EMPTY, bad: Vec::new() };
            let mut stored = vec![0.0f32; dim];
            for (r, (from, to)) in from.chunks_exact(dim).zip(to.chunks_exact_mut(dim)).enumerate() {
                match scale(from, tolerance, normalize) {
                    Ok(scale) => {
                        for (x, y) in from.iter().zip(to.iter_mut()) {
                            *y = T::from_f64(scale.apply(x.to_f64()));
                        }
                        stored.iter_mut().zip(to.iter()).for_each(|(x, y)| *x = y.widen());
                        report.norms = report.norms.union(NormRange::of(norm(&stored)));
                    }
                    Err(fault) => report.bad.push((r, fault)),
                }
            }
            report
        })
        .collect()
}

/// Division in two steps, so that a row of huge or tiny coordinates neither overflows nor vanishes.
struct Scale {
    largest: f64,
    norm: f64,
}

impl Scale {
    #[inline]
    fn apply(&self, x: f64) -> f64 {
        x / self.largest / self.norm
    }
}

fn scale<S: Source>(row: &[S], tolerance: f64, normalize: bool) -> Result<Scale, RowFault> {
    let mut sums = [0.0f64; 8];
    for (i, x) in row.iter().enumerate() {
        sums[i % 8] += x.to_f64() * x.to_f64();
    }
    let length = sums.iter().sum::<f64>().sqrt();
    if (length - 1.0).abs() <= tolerance {
        return Ok(Scale { largest: 1.0, norm: if normalize { length } else { 1.0 } });
    }
    let largest = row.iter().fold(0.0f64, |m, x| m.max(x.to_f64().abs()));
    if row.iter().any(|x| !x.to_f64().is_finite()) {
        Err(RowFault::NotFinite)
    } else if largest == 0.0 {
        Err(RowFault::Zero)
    } else if normalize {
        let norm = row.iter().map(|x| (x.to_f64() / largest).powi(2)).sum::<f64>().sqrt();
        Ok(Scale { largest, norm })
    } else {
        Err(RowFault::Norm(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_round_once() {
        // Just above or below the midpoint of two halves by less than a float32 can tell.
        let (low, high) = (1.0, 1.0 + 2f64.powi(-10));
        let middle = (low + high) / 2.0;
        let rounded = |x: f64| <f16 as Target>::from_f64(x).to_f64();
        assert_eq!(rounded(middle + 2f64.powi(-40)), high);
        assert_eq!(rounded(-middle - 2f64.powi(-40)), -high);
        assert_eq!(rounded(middle - 2f64.powi(-40)), low);
        // A tie goes to the even one.
        assert_eq!(rounded(middle), low);
        assert_eq!(rounded(high + 2f64.powi(-11)), 1.0 + 2f64.powi(-9));
        // Below the normal range of float16.
        assert_eq!(rounded(2f64.powi(-25) + 2f64.powi(-60)), 2f64.powi(-24));
        assert_eq!(rounded(2f64.powi(-25)), 0.0);
    }
}
