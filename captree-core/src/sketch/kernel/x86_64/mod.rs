//! AVX-512 VNNI and AVX2 instantiations.

mod amx;
mod rows;

use std::arch::x86_64::*;

use super::blocks::{self, BlockKernels, BlockLanes, Workspace};
use super::generic::{self, Lanes};
use super::{Decision, First, FullTile, IntKernels, Joint, OpenRows, Quarters, Second, Test, WideTest, WideTile};
use crate::sketch::TILE;
use crate::sketch::levels::field;
use amx::Amx;

struct Vnni;

impl Lanes for Vnni {
    type Sums = __m512i;
    type Codes = __m512i;
    type Four = __m512i;

    #[inline(always)]
    unsafe fn start(sum: i32) -> Self::Sums {
        // SAFETY: the caller has AVX-512F.
        unsafe { _mm512_set1_epi32(sum) }
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
    unsafe fn add_pairs(sums: Self::Sums, rows: *const f32, query: u32) -> Self::Sums {
        // SAFETY: the caller has AVX-512 VNNI and 16 readable numbers.
        unsafe { _mm512_dpwssd_epi32(sums, _mm512_loadu_si512(rows.cast()), _mm512_set1_epi32(query as i32)) }
    }

    #[inline(always)]
    unsafe fn at_least(sums: Self::Sums, least: i32) -> u16 {
        // SAFETY: the caller has AVX-512F.
        unsafe { _mm512_cmpge_epi32_mask(sums, _mm512_set1_epi32(least)) }
    }

    #[inline(always)]
    unsafe fn store(sums: Self::Sums, into: *mut i32) {
        // SAFETY: the caller has AVX-512F and room for 16 numbers.
        unsafe { _mm512_storeu_si512(into.cast(), sums) }
    }

    #[inline(always)]
    unsafe fn test<const GROUP: bool>(
        sums: Self::Sums,
        first: *const i32,
        terms: *const f32,
        test: &Test,
        values: *mut f32,
    ) -> (u16, u16) {
        // SAFETY: the caller has AVX-512F, 16 sums and as many numbers at each field of the level, and room for 16
        // values.
        unsafe {
            let term = |field: usize| _mm512_loadu_ps(terms.add(field));
            let all = |x: f32| _mm512_set1_ps(x);
            let sum = _mm512_cvtepi32_ps(sums);
            let first = _mm512_cvtepi32_ps(_mm512_loadu_si512(first.cast()));
            let start = _mm512_fmadd_ps(all(test.along), term(field::SHIFT), all(test.offset));
            let start = _mm512_fmadd_ps(all(test.first_scale), first, start);
            let value = _mm512_fmadd_ps(all(test.scale), sum, start);
            let residual = term(field::SECOND_RESIDUAL);
            let (low, high) = if GROUP {
                let error = _mm512_mul_ps(all(test.residual), residual);
                let error = _mm512_fmadd_ps(all(test.length), term(field::RADIUS), error);
                let error = _mm512_fmadd_ps(all(test.spread), term(field::REACH), error);
                (_mm512_sub_ps(value, error), _mm512_add_ps(value, error))
            } else {
                let by = all(test.residual);
                (_mm512_fnmadd_ps(by, residual, value), _mm512_fmadd_ps(by, residual, value))
            };
            if !values.is_null() {
                _mm512_storeu_ps(values, value);
            }
            let inside = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(low, all(test.inside));
            let open = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(high, all(test.outside));
            (inside, open)
        }
    }

    #[inline(always)]
    unsafe fn wide_test(sums: Self::Sums, values: *mut f32, residuals: *const f32, test: &WideTest) -> (u16, u16) {
        // SAFETY: the caller has AVX-512F, 16 writable values and 16 readable residuals.
        unsafe {
            let all = |x: f32| _mm512_set1_ps(x);
            let sums = _mm512_cvtepi32_ps(sums);
            let value = _mm512_fmadd_ps(all(test.scale), sums, _mm512_loadu_ps(values));
            _mm512_storeu_ps(values, value);
            let (by, residual) = (all(test.residual), _mm512_loadu_ps(residuals));
            let low = _mm512_fnmadd_ps(by, residual, value);
            let high = _mm512_fmadd_ps(by, residual, value);
            let inside = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(low, all(test.inside));
            let open = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(high, all(test.outside));
            (inside, open)
        }
    }

    #[inline(always)]
    unsafe fn add_values(sums: Self::Sums, scale: f32, values: *mut f32) {
        // SAFETY: the caller has AVX-512F and 16 writable numbers.
        unsafe {
            let sum = _mm512_cvtepi32_ps(sums);
            _mm512_storeu_ps(values, _mm512_fmadd_ps(_mm512_set1_ps(scale), sum, _mm512_loadu_ps(values)));
        }
    }
}

impl BlockLanes for Vnni {
    type Values = __m512;

    #[inline(always)]
    unsafe fn add_shifted(sums: Self::Sums, stored: *const i32, shift: u32) -> Self::Sums {
        // SAFETY: the caller has AVX-512F and 16 readable numbers.
        unsafe {
            let stored = _mm512_loadu_si512(stored.cast());
            _mm512_add_epi32(sums, _mm512_sll_epi32(stored, _mm_cvtsi32_si128(shift as i32)))
        }
    }

    #[inline(always)]
    unsafe fn values(stored: *const f32) -> Self::Values {
        // SAFETY: the caller has AVX-512F and 16 readable numbers.
        unsafe { _mm512_loadu_ps(stored) }
    }

    #[inline(always)]
    unsafe fn plus(values: Self::Values, sums: Self::Sums, scale: f32) -> Self::Values {
        // SAFETY: the caller has AVX-512F.
        unsafe { _mm512_fmadd_ps(_mm512_set1_ps(scale), _mm512_cvtepi32_ps(sums), values) }
    }

    #[inline(always)]
    unsafe fn decide(values: Self::Values, test: &WideTest) -> (u16, u16) {
        // SAFETY: the caller has AVX-512F.
        unsafe {
            let inside = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(values, _mm512_set1_ps(test.inside));
            (inside, _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(values, _mm512_set1_ps(test.outside)))
        }
    }
}

struct Avx2;

impl Lanes for Avx2 {
    type Sums = [__m256i; 2];
    type Codes = [__m256i; 2];
    /// Even and odd dims as 16-bit numbers: exact, where the 8-bit multiply of AVX2 would saturate.
    type Four = [__m256i; 2];

    #[inline(always)]
    unsafe fn start(sum: i32) -> Self::Sums {
        // SAFETY: the caller has AVX2.
        unsafe { [_mm256_set1_epi32(sum); 2] }
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
    unsafe fn add_pairs(sums: Self::Sums, rows: *const f32, query: u32) -> Self::Sums {
        // SAFETY: the caller has AVX2 and 16 readable numbers.
        unsafe {
            let query = _mm256_set1_epi32(query as i32);
            let half = |sum, rows: *const f32| {
                _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_loadu_si256(rows.cast()), query))
            };
            [half(sums[0], rows), half(sums[1], rows.add(8))]
        }
    }

    #[inline(always)]
    unsafe fn at_least(sums: Self::Sums, least: i32) -> u16 {
        // SAFETY: the caller has AVX2.
        unsafe {
            let least = _mm256_set1_epi32(least);
            let below = |sum| _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(least, sum))) as u16;
            !(below(sums[0]) | below(sums[1]) << 8)
        }
    }

    #[inline(always)]
    unsafe fn store(sums: Self::Sums, into: *mut i32) {
        // SAFETY: the caller has AVX2 and room for 16 numbers.
        unsafe {
            _mm256_storeu_si256(into.cast(), sums[0]);
            _mm256_storeu_si256(into.add(8).cast(), sums[1]);
        }
    }

    #[inline(always)]
    unsafe fn test<const GROUP: bool>(
        sums: Self::Sums,
        first: *const i32,
        terms: *const f32,
        test: &Test,
        values: *mut f32,
    ) -> (u16, u16) {
        let (mut inside, mut open) = (0, 0);
        for (h, sums) in sums.into_iter().enumerate() {
            // SAFETY: the caller has AVX2 and FMA, 16 sums and as many numbers at each field of the level, and room for
            // 16 values.
            unsafe {
                let term = |field: usize| _mm256_loadu_ps(terms.add(field + 8 * h));
                let all = |x: f32| _mm256_set1_ps(x);
                let sum = _mm256_cvtepi32_ps(sums);
                let first = _mm256_cvtepi32_ps(_mm256_loadu_si256(first.add(8 * h).cast()));
                let start = _mm256_fmadd_ps(all(test.along), term(field::SHIFT), all(test.offset));
                let start = _mm256_fmadd_ps(all(test.first_scale), first, start);
                let value = _mm256_fmadd_ps(all(test.scale), sum, start);
                let residual = term(field::SECOND_RESIDUAL);
                let mut error = _mm256_mul_ps(all(test.residual), residual);
                if GROUP {
                    error = _mm256_fmadd_ps(all(test.length), term(field::RADIUS), error);
                    error = _mm256_fmadd_ps(all(test.spread), term(field::REACH), error);
                }
                if !values.is_null() {
                    _mm256_storeu_ps(values.add(8 * h), value);
                }
                let is_in = _mm256_cmp_ps::<_CMP_GE_OQ>(_mm256_sub_ps(value, error), all(test.inside));
                let is_open = _mm256_cmp_ps::<_CMP_NLT_UQ>(_mm256_add_ps(value, error), all(test.outside));
                inside |= (_mm256_movemask_ps(is_in) as u16) << (8 * h);
                open |= (_mm256_movemask_ps(is_open) as u16) << (8 * h);
            }
        }
        (inside, open)
    }

    #[inline(always)]
    unsafe fn wide_test(sums: Self::Sums, values: *mut f32, residuals: *const f32, test: &WideTest) -> (u16, u16) {
        let (mut inside, mut open) = (0, 0);
        for (h, sums) in sums.into_iter().enumerate() {
            // SAFETY: the caller has AVX2 and FMA, 16 writable values and 16 readable residuals.
            unsafe {
                let all = |x: f32| _mm256_set1_ps(x);
                let sums = _mm256_cvtepi32_ps(sums);
                let value = _mm256_fmadd_ps(all(test.scale), sums, _mm256_loadu_ps(values.add(8 * h)));
                _mm256_storeu_ps(values.add(8 * h), value);
                let error = _mm256_mul_ps(all(test.residual), _mm256_loadu_ps(residuals.add(8 * h)));
                let is_in = _mm256_cmp_ps::<_CMP_GE_OQ>(_mm256_sub_ps(value, error), all(test.inside));
                let is_open = _mm256_cmp_ps::<_CMP_NLT_UQ>(_mm256_add_ps(value, error), all(test.outside));
                inside |= (_mm256_movemask_ps(is_in) as u16) << (8 * h);
                open |= (_mm256_movemask_ps(is_open) as u16) << (8 * h);
            }
        }
        (inside, open)
    }

    #[inline(always)]
    unsafe fn add_values(sums: Self::Sums, scale: f32, values: *mut f32) {
        for (h, sums) in sums.into_iter().enumerate() {
            // SAFETY: the caller has AVX2 and FMA, and 16 writable numbers.
            unsafe {
                let at = values.add(8 * h);
                let sum = _mm256_cvtepi32_ps(sums);
                _mm256_storeu_ps(at, _mm256_fmadd_ps(_mm256_set1_ps(scale), sum, _mm256_loadu_ps(at)));
            }
        }
    }
}

macro_rules! levels {
    ($module:ident, $lanes:ty, $features:literal) => {
        mod $module {
            use super::*;

            #[target_feature(enable = $features)]
            pub(super) unsafe fn first(first: &First<'_>, queries: &[u32], open: &mut [u64], sums: &mut [[i32; TILE]]) {
                // SAFETY: the caller keeps the contract and has the features.
                unsafe { generic::first::<$lanes>(first, queries, open, sums) }
            }

            #[target_feature(enable = $features)]
            pub(super) unsafe fn group(second: &Second<'_>, queries: &[u32], out: &mut [Decision]) {
                // SAFETY: the caller keeps the contract and has the features.
                unsafe { generic::group::<$lanes>(second, queries, out) }
            }

            #[target_feature(enable = $features)]
            pub(super) unsafe fn second(
                second: &Second<'_>,
                rows: &OpenRows<'_>,
                out: &mut [Decision],
                values: &mut [[f32; TILE]],
                quarters: &mut Quarters,
            ) {
                // SAFETY: the caller keeps the contract and has the features.
                unsafe { generic::second::<$lanes>(second, rows, out, values, quarters) }
            }

            #[target_feature(enable = $features)]
            pub(super) unsafe fn refine(
                second: &Second<'_>,
                queries: &[u32],
                quarters: &Quarters,
                values: &mut [[f32; TILE]],
            ) {
                // SAFETY: the caller keeps the contract and has the features.
                unsafe { generic::refine::<$lanes>(second, queries, quarters, values) }
            }

            #[target_feature(enable = $features)]
            pub(super) unsafe fn wide_tile(tile: &WideTile<'_>, values: &mut [[f32; TILE]], out: &mut [Decision]) {
                // SAFETY: the caller keeps the contract and has the features.
                unsafe { generic::wide_tile::<$lanes>(tile, values, out) }
            }
        }
    };
}

levels!(vnni, Vnni, "avx512f,avx512bw,avx512vl,avx512vnni,fma");
levels!(avx2, Avx2, "avx2,fma");

macro_rules! kernels {
    ($name:literal, $levels:ident, $wide:expr, $interleave:expr) => {
        IntKernels {
            name: $name,
            first: $levels::first,
            second: $levels::second,
            refine: $levels::refine,
            wide_tile: $levels::wide_tile,
            group: $levels::group,
            wide_rows: $wide,
            interleave: $interleave,
            blocks: None,
        }
    };
}

/// The levels of the matrix unit.
mod unit {
    use super::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
    unsafe fn first(
        joint: &Joint<'_>,
        queries: &[u32],
        kept_if_open: Option<u64>,
        workspace: &mut Workspace,
        open: &mut [u64],
        sums: &mut [[i32; TILE]],
    ) {
        // SAFETY: the caller keeps the contract and has the features.
        unsafe { blocks::first::<Vnni, Amx>(joint, queries, kept_if_open, workspace, open, sums) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
    unsafe fn second(second: &Second<'_>, rows: &OpenRows<'_>, out: &mut [Decision], values: &mut [[f32; TILE]]) {
        // SAFETY: the caller keeps the contract and has the features.
        unsafe { blocks::second::<Vnni>(second, rows, out, values) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
    unsafe fn full(tile: &FullTile<'_>, workspace: &mut Workspace, values: &[[f32; TILE]], out: &mut [Decision]) {
        // SAFETY: the caller keeps the contract and has the features.
        unsafe { blocks::full::<Vnni, Amx>(tile, workspace, values, out) }
    }

    pub(super) const KERNELS: BlockKernels = BlockKernels { first, second, full };
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
        && is_x86_feature_detected!("bmi2")
    {
        let vnni = kernels!("avx512vnni", vnni, rows::wide_rows_512, rows::interleave_512);
        if crate::matrix_unit::is_available() {
            found.push(IntKernels { name: "amx", blocks: Some(unit::KERNELS), ..vnni });
        }
        found.push(vnni);
    }
    if avx2 {
        found.push(kernels!("avx2", avx2, rows::wide_rows_256, super::rows::interleave));
    }
    found
}
