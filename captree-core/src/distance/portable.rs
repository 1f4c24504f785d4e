//! Kernels in plain Rust, for any CPU; the compiler vectorizes the lane loops where it can.

use half::f16;

use super::generic::{self, MIN_LANES, Simd};
use super::{Kernels, Loops};

struct Portable;

impl Simd for Portable {
    type V = [f32; MIN_LANES];
    const LANES: usize = MIN_LANES;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [0.0; MIN_LANES]
    }

    #[inline(always)]
    unsafe fn load_f32(p: *const f32) -> Self::V {
        // SAFETY: the caller promises LANES readable elements.
        std::array::from_fn(|i| unsafe { *p.add(i) })
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self::V {
        // SAFETY: the caller promises LANES readable elements.
        std::array::from_fn(|i| unsafe { (*p.add(i)).to_f32() })
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        v.iter().sum()
    }

    type W = [f64; MIN_LANES];

    #[inline(always)]
    unsafe fn wide_zero() -> Self::W {
        [0.0; MIN_LANES]
    }

    #[inline(always)]
    unsafe fn wide_mul_add(a: Self::V, b: *const f64, c: Self::W) -> Self::W {
        // SAFETY: the caller promises LANES readable numbers.
        std::array::from_fn(|i| f64::from(a[i]) * unsafe { *b.add(i) } + c[i])
    }

    #[inline(always)]
    unsafe fn wide_sum(v: Self::W) -> f64 {
        v.iter().sum()
    }
}

unsafe fn tile_f16(rows: &[&[f16]], centers: &[&[f32]], out: &mut [f32]) {
    // SAFETY: the caller keeps the contract of TileKernel; no CPU feature is needed.
    unsafe { generic::tile::<Portable, f16>(rows, centers, out) }
}

unsafe fn tile_f32(rows: &[&[f32]], centers: &[&[f32]], out: &mut [f32]) {
    // SAFETY: the caller keeps the contract of TileKernel; no CPU feature is needed.
    unsafe { generic::tile::<Portable, f32>(rows, centers, out) }
}

unsafe fn pairs_f16(rows: &[&[f16]], centers: &[&[f32]], out: &mut [f32]) {
    // SAFETY: as above.
    unsafe { generic::pairs::<Portable, f16>(rows, centers, out) }
}

unsafe fn pairs_f32(rows: &[&[f32]], centers: &[&[f32]], out: &mut [f32]) {
    // SAFETY: as above.
    unsafe { generic::pairs::<Portable, f32>(rows, centers, out) }
}

unsafe fn wide_f16(rows: &[&[f16]], center: &[f64], out: &mut [f64]) {
    // SAFETY: the caller keeps the contract of Kernels::wide; no CPU feature is needed.
    unsafe { generic::wide::<Portable, f16>(rows, center, out) }
}

unsafe fn wide_f32(rows: &[&[f32]], center: &[f64], out: &mut [f64]) {
    // SAFETY: as above.
    unsafe { generic::wide::<Portable, f32>(rows, center, out) }
}

pub(super) const KERNELS: Kernels = Kernels {
    name: "portable",
    f16: Loops { tile: tile_f16, pairs: pairs_f16, wide: wide_f16 },
    f32: Loops { tile: tile_f32, pairs: pairs_f32, wide: wide_f32 },
    pair: generic::pair,
};
