//! AVX-512 and AVX2 instantiations.

use std::arch::x86_64::*;

use half::f16;

use super::generic::{self, Simd};
use super::{Element, Kernels, Loops};

struct Avx512;

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: the caller has AVX-512F.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load_f32(p: *const f32) -> Self::V {
        // SAFETY: the caller has AVX-512F and 16 readable elements; the load needs no alignment.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self::V {
        // SAFETY: the caller has AVX-512F and 16 readable elements; the load needs no alignment.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: the caller has AVX-512F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        // SAFETY: the caller has AVX-512F.
        unsafe { _mm512_reduce_add_ps(v) }
    }

    type W = [__m512d; 2];

    #[inline(always)]
    unsafe fn wide_zero() -> Self::W {
        // SAFETY: the caller has AVX-512F.
        unsafe { [_mm512_setzero_pd(); 2] }
    }

    #[inline(always)]
    unsafe fn wide_mul_add(a: Self::V, b: *const f64, c: Self::W) -> Self::W {
        // SAFETY: the caller has AVX-512F and 16 readable numbers; the loads need no alignment.
        unsafe {
            let low = _mm512_cvtps_pd(_mm512_castps512_ps256(a));
            let high = _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(a))));
            [_mm512_fmadd_pd(low, _mm512_loadu_pd(b), c[0]), _mm512_fmadd_pd(high, _mm512_loadu_pd(b.add(8)), c[1])]
        }
    }

    #[inline(always)]
    unsafe fn wide_sum(v: Self::W) -> f64 {
        // SAFETY: the caller has AVX-512F.
        unsafe { _mm512_reduce_add_pd(_mm512_add_pd(v[0], v[1])) }
    }
}

struct Avx2;

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: the caller has AVX2.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load_f32(p: *const f32) -> Self::V {
        // SAFETY: the caller has AVX2 and 8 readable elements; the load needs no alignment.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self::V {
        // SAFETY: the caller has F16C and 8 readable elements; the load needs no alignment.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: the caller has FMA.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        // SAFETY: the caller has AVX2.
        unsafe {
            let half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
            let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)))
        }
    }

    type W = [__m256d; 2];

    #[inline(always)]
    unsafe fn wide_zero() -> Self::W {
        // SAFETY: the caller has AVX2.
        unsafe { [_mm256_setzero_pd(); 2] }
    }

    #[inline(always)]
    unsafe fn wide_mul_add(a: Self::V, b: *const f64, c: Self::W) -> Self::W {
        // SAFETY: the caller has AVX2, FMA and 8 readable numbers; the loads need no alignment.
        unsafe {
            let low = _mm256_cvtps_pd(_mm256_castps256_ps128(a));
            let high = _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(a));
            [_mm256_fmadd_pd(low, _mm256_loadu_pd(b), c[0]), _mm256_fmadd_pd(high, _mm256_loadu_pd(b.add(4)), c[1])]
        }
    }

    #[inline(always)]
    unsafe fn wide_sum(v: Self::W) -> f64 {
        // SAFETY: the caller has AVX2.
        unsafe {
            let four = _mm256_add_pd(v[0], v[1]);
            let two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd::<1>(four));
            _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
        }
    }
}

macro_rules! instantiate {
    ($simd:ty, $features:literal, $name:literal, $kernels:ident, $module:ident) => {
        mod $module {
            use super::*;

            #[target_feature(enable = $features)]
            pub(super) unsafe fn tile<E: Element>(rows: &[&[E]], centers: &[&[f32]], out: &mut [f32]) {
                // SAFETY: the caller keeps the contract of TileKernel and has the features.
                unsafe { generic::tile::<$simd, E>(rows, centers, out) }
            }
            #[target_feature(enable = $features)]
            pub(super) unsafe fn pairs<E: Element>(rows: &[&[E]], centers: &[&[f32]], out: &mut [f32]) {
                // SAFETY: the caller keeps the contract of TileKernel and has the features.
                unsafe { generic::pairs::<$simd, E>(rows, centers, out) }
            }
            #[target_feature(enable = $features)]
            pub(super) unsafe fn pair(a: &[f32], b: &[f32]) -> (f64, f64) {
                generic::pair(a, b)
            }
            #[target_feature(enable = $features)]
            pub(super) unsafe fn wide<E: Element>(rows: &[&[E]], center: &[f64], out: &mut [f64]) {
                // SAFETY: the caller keeps the contract of Kernels::wide and has the features.
                unsafe { generic::wide::<$simd, E>(rows, center, out) }
            }
        }
        const $kernels: Kernels = Kernels {
            name: $name,
            f16: Loops { tile: $module::tile::<f16>, pairs: $module::pairs::<f16>, wide: $module::wide::<f16> },
            f32: Loops { tile: $module::tile::<f32>, pairs: $module::pairs::<f32>, wide: $module::wide::<f32> },
            pair: $module::pair,
        };
    };
}

instantiate!(Avx512, "avx512f,avx512vl,avx2,fma,f16c", "avx512", AVX512, avx512);
instantiate!(Avx2, "avx2,fma,f16c", "avx2", AVX2, avx2);

/// The kernels that this CPU has, widest first.
pub(super) fn available() -> Vec<Kernels> {
    let mut found = Vec::new();
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    if avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
        found.push(AVX512);
    }
    if avx2 {
        found.push(AVX2);
    }
    found
}
