//! AVX-512 VNNI and AVX2 instantiations.

use std::arch::x86_64::*;

use super::generic::{self, Lanes, ROWS};
use super::{Asked, Asking, Decision, Dense, First, IntKernels, Prefix, Rows, Test, WideTest};
use crate::sketch::TILE;
use crate::sketch::levels::field;

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
        // SAFETY: the caller has AVX-512F, 16 sums and as many numbers at each field of the level, and room for 16 values.
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

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn wide_512(rows: &Rows<'_>, query: &[i8], mask: u16, values: &mut [f32; ROWS], test: &WideTest) -> (u16, u16) {
    let (mut sums, mut left) = ([test.start; ROWS], mask);
    // Plain loops: a closure would not have this function's features.
    while left != 0 {
        // Four rows at once; the last one stands in for those that are missing.
        let mut four = [left.trailing_zeros() as usize; 4];
        left &= left - 1;
        for f in 1..4 {
            four[f] = if left == 0 { four[f - 1] } else { left.trailing_zeros() as usize };
            left &= left.wrapping_sub(1);
        }
        // SAFETY: the rows of the mask are there, each as long as the query, a multiple of 64; the caller has the features.
        unsafe {
            let mut at = [rows.codes.as_ptr(); 4];
            for f in 0..4 {
                at[f] = at[f].add(four[f] * rows.stride);
            }
            let mut acc = [_mm512_setzero_si512(); 4];
            let mut i = 0;
            while i < query.len() {
                let q = _mm512_loadu_si512(query.as_ptr().add(i).cast());
                for f in 0..4 {
                    acc[f] = _mm512_dpbusd_epi32(acc[f], _mm512_loadu_si512(at[f].add(i).cast()), q);
                }
                i += 64;
            }
            // Four sums of sixteen at once: after two rounds each 128-bit lane holds a part of all four.
            let low = _mm512_add_epi32(_mm512_unpacklo_epi32(acc[0], acc[1]), _mm512_unpackhi_epi32(acc[0], acc[1]));
            let high = _mm512_add_epi32(_mm512_unpacklo_epi32(acc[2], acc[3]), _mm512_unpackhi_epi32(acc[2], acc[3]));
            let all = _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
            let half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
            let each = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
            let mut each_sum = [0i32; 4];
            _mm_storeu_si128(each_sum.as_mut_ptr().cast(), each);
            for f in 0..4 {
                sums[four[f]] = each_sum[f].wrapping_add(test.start);
            }
        }
    }
    // SAFETY: sixteen sums, values and residuals; the caller has AVX-512F.
    let (inside, open) = unsafe {
        let sums = _mm512_loadu_si512(sums.as_ptr().cast());
        Vnni::wide_test(sums, values.as_mut_ptr(), rows.residuals.as_ptr(), test)
    };
    (inside & mask, open & !inside & mask)
}

/// Sixteen rows by sixteen groups of four bytes at a time, turned over in registers.
#[target_feature(enable = "avx512f")]
unsafe fn interleave_512(rows: &Rows<'_>, bytes: usize, into: &mut [u8]) {
    let there = rows.codes.len().div_ceil(rows.stride).min(ROWS);
    for from in (0..bytes).step_by(64) {
        // SAFETY: `there` rows have `bytes` bytes each, a multiple of 64; `into` has room for the groups of sixteen rows.
        unsafe {
            let mut x = [_mm512_setzero_si512(); ROWS];
            for r in 0..there {
                x[r] = _mm512_loadu_si512(rows.codes.as_ptr().add(r * rows.stride + from).cast());
            }
            let mut y = x;
            for i in 0..8 {
                y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
                y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
            }
            // x[4 i + j]: in each 128-bit lane, group j of the lane from rows 4 i to 4 i + 3.
            for i in 0..4 {
                x[4 * i] = _mm512_unpacklo_epi64(y[4 * i], y[4 * i + 2]);
                x[4 * i + 1] = _mm512_unpackhi_epi64(y[4 * i], y[4 * i + 2]);
                x[4 * i + 2] = _mm512_unpacklo_epi64(y[4 * i + 1], y[4 * i + 3]);
                x[4 * i + 3] = _mm512_unpackhi_epi64(y[4 * i + 1], y[4 * i + 3]);
            }
            for j in 0..4 {
                let (a, b, c, d) = (x[j], x[4 + j], x[8 + j], x[12 + j]);
                let low = [_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d)];
                let high = [_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d)];
                let groups = [
                    _mm512_shuffle_i32x4::<0x88>(low[0], low[1]),
                    _mm512_shuffle_i32x4::<0x88>(high[0], high[1]),
                    _mm512_shuffle_i32x4::<0xdd>(low[0], low[1]),
                    _mm512_shuffle_i32x4::<0xdd>(high[0], high[1]),
                ];
                for (lane, group) in groups.into_iter().enumerate() {
                    let at = (from / 4 + 4 * lane + j) * TILE * 4;
                    _mm512_storeu_si512(into.as_mut_ptr().add(at).cast(), group);
                }
            }
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
            // SAFETY: the caller has AVX2 and FMA, 16 sums and as many numbers at each field of the level, and room for 16 values.
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
            pub(super) unsafe fn group(prefix: &Prefix<'_>, queries: &[u32], out: &mut [Decision]) {
                // SAFETY: the caller keeps the contract and has the features.
                unsafe { generic::group::<$lanes>(prefix, queries, out) }
            }

            #[target_feature(enable = $features)]
            pub(super) unsafe fn second(
                prefix: &Prefix<'_>,
                asked: &Asked<'_>,
                out: &mut [Decision],
                values: &mut [[f32; TILE]],
                asking: &mut Asking,
            ) {
                // SAFETY: the caller keeps the contract and has the features.
                unsafe { generic::second::<$lanes>(prefix, asked, out, values, asking) }
            }

            #[target_feature(enable = $features)]
            pub(super) unsafe fn refine(
                prefix: &Prefix<'_>,
                queries: &[u32],
                asking: &Asking,
                values: &mut [[f32; TILE]],
            ) {
                // SAFETY: the caller keeps the contract and has the features.
                unsafe { generic::refine::<$lanes>(prefix, queries, asking, values) }
            }

            #[target_feature(enable = $features)]
            pub(super) unsafe fn dense(dense: &Dense<'_>, values: &mut [[f32; TILE]], out: &mut [Decision]) {
                // SAFETY: the caller keeps the contract and has the features.
                unsafe { generic::dense::<$lanes>(dense, values, out) }
            }
        }
    };
}

levels!(vnni, Vnni, "avx512f,avx512bw,avx512vl,avx512vnni,fma");
levels!(avx2, Avx2, "avx2,fma");

macro_rules! kernels {
    ($name:literal, $levels:ident, $wide:ident, $interleave:expr) => {
        IntKernels {
            name: $name,
            first: $levels::first,
            second: $levels::second,
            refine: $levels::refine,
            dense: $levels::dense,
            group: $levels::group,
            wide: $wide,
            interleave: $interleave,
        }
    };
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

#[target_feature(enable = "avx2,fma")]
unsafe fn wide_256(rows: &Rows<'_>, query: &[i8], mask: u16, values: &mut [f32; ROWS], test: &WideTest) -> (u16, u16) {
    let mut sums = [test.start; ROWS];
    for (r, (row, sum)) in rows.codes.chunks(rows.stride).zip(&mut sums).enumerate() {
        if mask >> r & 1 == 1 {
            // SAFETY: both have the same length, a multiple of 64, and the caller has AVX2.
            *sum = sum.wrapping_add(unsafe { dot_256(&row[..query.len()], query) });
        }
    }
    test.decide(&sums, values, rows.residuals, mask)
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
        found.push(kernels!("avx512vnni", vnni, wide_512, interleave_512));
    }
    if avx2 {
        found.push(kernels!("avx2", avx2, wide_256, generic::interleave));
    }
    found
}
