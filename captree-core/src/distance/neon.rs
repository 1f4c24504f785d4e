//! The NEON instantiation, which every 64-bit Arm processor can run.

use std::arch::aarch64::*;
use std::arch::asm;

use half::f16;

use super::generic::{self, Simd};
use super::{Kernels, Loops};

struct Neon;

impl Simd for Neon {
    /// Two registers: one alone would sum fewer chains than the error bound counts on.
    type V = [float32x4_t; 2];
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: the caller has NEON.
        unsafe { [vdupq_n_f32(0.0); 2] }
    }

    #[inline(always)]
    unsafe fn load_f32(p: *const f32) -> Self::V {
        // SAFETY: the caller has NEON and 8 readable elements; the loads need no more alignment than those.
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4))] }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self::V {
        let (low, high);
        // SAFETY: the caller has NEON and 8 readable elements; the conversion touches only its registers. Its
        // intrinsics came with Rust 1.94.
        unsafe {
            let x = vld1q_u16(p.cast());
            asm!(
                "fcvtl {low:v}.4s, {x:v}.4h",
                "fcvtl2 {high:v}.4s, {x:v}.8h",
                x = in(vreg) x,
                low = out(vreg) low,
                high = lateout(vreg) high,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        [low, high]
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: the caller has NEON.
        unsafe { [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        // SAFETY: the caller has NEON.
        unsafe { vaddvq_f32(vaddq_f32(v[0], v[1])) }
    }

    type W = [float64x2_t; 4];

    #[inline(always)]
    unsafe fn wide_zero() -> Self::W {
        // SAFETY: the caller has NEON.
        unsafe { [vdupq_n_f64(0.0); 4] }
    }

    #[inline(always)]
    unsafe fn wide_mul_add(a: Self::V, b: *const f64, c: Self::W) -> Self::W {
        // SAFETY: the caller has NEON and 8 readable numbers; the loads need no more alignment than those.
        unsafe {
            [
                vfmaq_f64(c[0], vcvt_f64_f32(vget_low_f32(a[0])), vld1q_f64(b)),
                vfmaq_f64(c[1], vcvt_high_f64_f32(a[0]), vld1q_f64(b.add(2))),
                vfmaq_f64(c[2], vcvt_f64_f32(vget_low_f32(a[1])), vld1q_f64(b.add(4))),
                vfmaq_f64(c[3], vcvt_high_f64_f32(a[1]), vld1q_f64(b.add(6))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn wide_sum(v: Self::W) -> f64 {
        // SAFETY: the caller has NEON.
        unsafe { vaddvq_f64(vaddq_f64(vaddq_f64(v[0], v[1]), vaddq_f64(v[2], v[3]))) }
    }
}

unsafe fn tile_f16(rows: &[&[f16]], centers: &[&[f32]], out: &mut [f32]) {
    // SAFETY: the caller keeps the contract of TileKernel; every processor of this architecture has NEON.
    unsafe { generic::tile::<Neon, f16>(rows, centers, out) }
}

unsafe fn tile_f32(rows: &[&[f32]], centers: &[&[f32]], out: &mut [f32]) {
    // SAFETY: as above.
    unsafe { generic::tile::<Neon, f32>(rows, centers, out) }
}

unsafe fn pairs_f16(rows: &[&[f16]], centers: &[&[f32]], out: &mut [f32]) {
    // SAFETY: as above.
    unsafe { generic::pairs::<Neon, f16>(rows, centers, out) }
}

unsafe fn pairs_f32(rows: &[&[f32]], centers: &[&[f32]], out: &mut [f32]) {
    // SAFETY: as above.
    unsafe { generic::pairs::<Neon, f32>(rows, centers, out) }
}

unsafe fn wide_f16(rows: &[&[f16]], center: &[f64], out: &mut [f64]) {
    // SAFETY: the caller keeps the contract of Kernels::wide; every processor of this architecture has NEON.
    unsafe { generic::wide::<Neon, f16>(rows, center, out) }
}

unsafe fn wide_f32(rows: &[&[f32]], center: &[f64], out: &mut [f64]) {
    // SAFETY: as above.
    unsafe { generic::wide::<Neon, f32>(rows, center, out) }
}

pub(super) const KERNELS: Kernels = Kernels {
    name: "neon",
    f16: Loops { tile: tile_f16, pairs: pairs_f16, wide: wide_f16 },
    f32: Loops { tile: tile_f32, pairs: pairs_f32, wide: wide_f32 },
    pair: generic::pair,
};
