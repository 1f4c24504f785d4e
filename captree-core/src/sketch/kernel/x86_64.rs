//! AVX-512 VNNI and AVX2 instantiations.

use std::arch::x86_64::*;

use super::generic::{self, Lanes};
use super::{Decision, IntKernels, QueryTerms, Tile};
use crate::sketch::TILE;

struct Vnni;

impl Lanes for Vnni {
    type Sums = __m512i;
    type Codes = __m512i;
    type Four = __m512i;

    #[inline(always)]
    unsafe fn zero() -> Self::Sums {
        // SAFETY: the caller has AVX-512F.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn load(p: *const u8) -> Self::Codes {
        // SAFETY: the caller has AVX-512F and 64 readable bytes.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn four(p: *const i8) -> Self::Four {
        // SAFETY: the caller has AVX-512F and four readable codes.
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn add(sums: Self::Sums, rows: Self::Codes, query: Self::Four) -> Self::Sums {
        // SAFETY: the caller has AVX-512 VNNI.
        unsafe { _mm512_dpbusd_epi32(sums, rows, query) }
    }

    #[inline(always)]
    unsafe fn decide(sums: Self::Sums, terms: *const f32, query: &QueryTerms) -> (u16, u16) {
        // SAFETY: the caller has AVX-512F and 16 readable numbers in each of the six runs.
        unsafe {
            let term = |field: usize| _mm512_loadu_ps(terms.add(field * TILE));
            let all = |x: f32| _mm512_set1_ps(x);
            let sum = _mm512_cvtepi32_ps(_mm512_add_epi32(sums, _mm512_set1_epi32(query.start)));
            let start = _mm512_fmadd_ps(all(query.along), term(1), all(query.offset));
            let value = _mm512_fmadd_ps(_mm512_mul_ps(all(query.step), term(0)), sum, start);
            let error = _mm512_mul_ps(all(query.length), term(2));
            let error = _mm512_fmadd_ps(all(query.rounding), term(3), error);
            let error = _mm512_fmadd_ps(all(query.residual), term(4), error);
            let error = _mm512_fmadd_ps(all(query.spread), term(5), error);
            let inside = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(_mm512_sub_ps(value, error), all(query.inside));
            let open = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_add_ps(value, error), all(query.outside));
            (inside, open)
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn tile_512(args: &Tile<'_>, out: &mut [Decision]) {
    // SAFETY: the caller keeps the contract and has the features.
    unsafe { generic::tile::<Vnni>(args, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn dot_512(row: &[u8], query: &[i8]) -> i32 {
    // SAFETY: both have the same length, a multiple of 64, and the caller has the features.
    unsafe {
        let mut sums = [_mm512_setzero_si512(); 4];
        for (i, at) in (0..row.len()).step_by(64).enumerate() {
            let x = _mm512_loadu_si512(row.as_ptr().add(at).cast());
            let q = _mm512_loadu_si512(query.as_ptr().add(at).cast());
            sums[i % 4] = _mm512_dpbusd_epi32(sums[i % 4], x, q);
        }
        let (a, b) = (_mm512_add_epi32(sums[0], sums[1]), _mm512_add_epi32(sums[2], sums[3]));
        _mm512_reduce_add_epi32(_mm512_add_epi32(a, b))
    }
}

struct Avx2;

impl Lanes for Avx2 {
    type Sums = [__m256i; 2];
    type Codes = [__m256i; 2];
    /// Even and odd dims as 16-bit numbers: exact, where the 8-bit multiply of AVX2 would saturate.
    type Four = [__m256i; 2];

    #[inline(always)]
    unsafe fn zero() -> Self::Sums {
        // SAFETY: the caller has AVX2.
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    unsafe fn load(p: *const u8) -> Self::Codes {
        // SAFETY: the caller has AVX2 and 64 readable bytes.
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn four(p: *const i8) -> Self::Four {
        // SAFETY: the caller has AVX2 and four readable codes.
        unsafe {
            let q = _mm256_set1_epi32(p.cast::<i32>().read_unaligned());
            [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(q)), _mm256_srai_epi16::<8>(q)]
        }
    }

    #[inline(always)]
    unsafe fn add(sums: Self::Sums, rows: Self::Codes, query: Self::Four) -> Self::Sums {
        // SAFETY: the caller has AVX2.
        unsafe {
            let low = _mm256_set1_epi16(0xff);
            let half = |sum, rows| {
                let even = _mm256_madd_epi16(_mm256_and_si256(rows, low), query[0]);
                let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(rows), query[1]);
                _mm256_add_epi32(sum, _mm256_add_epi32(even, odd))
            };
            [half(sums[0], rows[0]), half(sums[1], rows[1])]
        }
    }

    #[inline(always)]
    unsafe fn decide(sums: Self::Sums, terms: *const f32, query: &QueryTerms) -> (u16, u16) {
        let (mut inside, mut open) = (0, 0);
        for (h, sums) in sums.into_iter().enumerate() {
            // SAFETY: the caller has AVX2 and FMA, and 16 readable numbers in each of the six runs.
            unsafe {
                let term = |field: usize| _mm256_loadu_ps(terms.add(field * TILE + 8 * h));
                let all = |x: f32| _mm256_set1_ps(x);
                let sum = _mm256_cvtepi32_ps(_mm256_add_epi32(sums, _mm256_set1_epi32(query.start)));
                let start = _mm256_fmadd_ps(all(query.along), term(1), all(query.offset));
                let value = _mm256_fmadd_ps(_mm256_mul_ps(all(query.step), term(0)), sum, start);
                let error = _mm256_mul_ps(all(query.length), term(2));
                let error = _mm256_fmadd_ps(all(query.rounding), term(3), error);
                let error = _mm256_fmadd_ps(all(query.residual), term(4), error);
                let error = _mm256_fmadd_ps(all(query.spread), term(5), error);
                let is_in = _mm256_cmp_ps::<_CMP_GE_OQ>(_mm256_sub_ps(value, error), all(query.inside));
                let is_open = _mm256_cmp_ps::<_CMP_NLT_UQ>(_mm256_add_ps(value, error), all(query.outside));
                inside |= (_mm256_movemask_ps(is_in) as u16) << (8 * h);
                open |= (_mm256_movemask_ps(is_open) as u16) << (8 * h);
            }
        }
        (inside, open)
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn tile_256(args: &Tile<'_>, out: &mut [Decision]) {
    // SAFETY: the caller keeps the contract and has the features.
    unsafe { generic::tile::<Avx2>(args, out) }
}

#[target_feature(enable = "avx2")]
unsafe fn dot_256(row: &[u8], query: &[i8]) -> i32 {
    // SAFETY: both have the same length, a multiple of 64, and the caller has AVX2.
    unsafe {
        let mut sum = _mm256_setzero_si256();
        for at in (0..row.len()).step_by(16) {
            let x = _mm256_cvtepu8_epi16(_mm_loadu_si128(row.as_ptr().add(at).cast()));
            let q = _mm256_cvtepi8_epi16(_mm_loadu_si128(query.as_ptr().add(at).cast()));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x, q));
        }
        let half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
        let pair = _mm_add_epi32(half, _mm_shuffle_epi32::<0b01_00_11_10>(half));
        _mm_cvtsi128_si32(_mm_add_epi32(pair, _mm_shuffle_epi32::<0b10_11_00_01>(pair)))
    }
}

/// Hints that `codes` will be read soon.
#[inline]
pub(super) fn prefetch(codes: &[u8]) {
    for line in codes.chunks(64) {
        // SAFETY: a prefetch reads nothing, whatever its address; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
}

/// The kernels that this CPU has, widest first.
pub(super) fn available() -> Vec<IntKernels> {
    let mut found = Vec::new();
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    if avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
    {
        found.push(IntKernels { name: "avx512vnni", tile: tile_512, dot: dot_512 });
    }
    if avx2 {
        found.push(IntKernels { name: "avx2", tile: tile_256, dot: dot_256 });
    }
    found
}
