//! The wide levels' codes, which lie row by row.

use std::arch::x86_64::*;

use super::super::generic::ROWS;
use super::super::rows::one_by_one;
use super::super::{Decision, WideRows, WideTest};
use crate::sketch::TILE;

/// Four rows at a time; tests sixteen at once.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,bmi2")]
pub(super) unsafe fn wide_rows_512(
    rows: &WideRows<'_>,
    query: &[i8],
    mask: u64,
    values: &mut [f32; TILE],
    test: &WideTest,
) -> Decision {
    // Numbers of the mask's rows, then the first row's, which is there, for what the last four or sixteen lack.
    let (mut at, mut sums, mut count) = ([0i32; TILE + ROWS], [0i32; TILE + ROWS], 0);
    // SAFETY: the rows of the mask and the first one are there, each as long as the query, a multiple of 64; lists have
    // room for sixteen more than a tile has rows; the caller has the features.
    unsafe {
        let mut numbers = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        for part in 0..TILE / ROWS {
            let part_mask = (mask >> (part * ROWS)) as u16;
            _mm512_storeu_si512(at.as_mut_ptr().add(count).cast(), _mm512_maskz_compress_epi32(part_mask, numbers));
            count += part_mask.count_ones() as usize;
            numbers = _mm512_add_epi32(numbers, _mm512_set1_epi32(ROWS as i32));
        }
        for first in (0..count).step_by(4) {
            let mut four = [rows.codes.as_ptr(); 4];
            for f in 0..4 {
                four[f] = four[f].add(*at.get_unchecked(first + f) as usize * rows.stride);
            }
            let mut acc = [_mm512_setzero_si512(); 4];
            let mut i = 0;
            while i < query.len() {
                let q = _mm512_loadu_si512(query.as_ptr().add(i).cast());
                for f in 0..4 {
                    acc[f] = _mm512_dpbusd_epi32(acc[f], _mm512_loadu_si512(four[f].add(i).cast()), q);
                }
                i += 64;
            }
            // Four sums of sixteen at once: after two rounds each 128-bit lane holds a part of all four.
            let low = _mm512_add_epi32(_mm512_unpacklo_epi32(acc[0], acc[1]), _mm512_unpackhi_epi32(acc[0], acc[1]));
            let high = _mm512_add_epi32(_mm512_unpacklo_epi32(acc[2], acc[3]), _mm512_unpackhi_epi32(acc[2], acc[3]));
            let all = _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
            let half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
            let each = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
            _mm_storeu_si128(sums.as_mut_ptr().add(first).cast(), each);
        }
        let (mut inside, mut open) = (0, 0);
        let all = |x: f32| _mm512_set1_ps(x);
        for first in (0..count).step_by(ROWS) {
            let lanes = (u32::MAX >> (32 - (count - first).min(ROWS))) as u16;
            let at = _mm512_loadu_si512(at.as_ptr().add(first).cast());
            let sums = _mm512_loadu_si512(sums.as_ptr().add(first).cast());
            let sums = _mm512_cvtepi32_ps(_mm512_add_epi32(sums, _mm512_set1_epi32(test.start)));
            let value = _mm512_fmadd_ps(all(test.scale), sums, _mm512_i32gather_ps::<4>(at, values.as_ptr()));
            _mm512_mask_i32scatter_ps::<4>(values.as_mut_ptr(), lanes, at, value);
            let (by, residual) = (all(test.residual), _mm512_i32gather_ps::<4>(at, rows.residuals.as_ptr()));
            let (low, high) = (_mm512_fnmadd_ps(by, residual, value), _mm512_fmadd_ps(by, residual, value));
            let is_in = _mm512_mask_cmp_ps_mask::<_CMP_GE_OQ>(lanes, low, all(test.inside));
            let is_open = _mm512_mask_cmp_ps_mask::<_CMP_NLT_UQ>(lanes, high, all(test.outside));
            inside |= u64::from(is_in) << first;
            open |= u64::from(is_open & !is_in) << first;
        }
        Decision { inside: _pdep_u64(inside, mask), unsure: _pdep_u64(open, mask) }
    }
}

/// Sixteen rows by sixteen groups of four bytes at a time, turned over in registers.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn interleave_512(codes: &[u8], stride: usize, bytes: usize, into: &mut [u8]) {
    let there = codes.len().div_ceil(stride).min(ROWS);
    for from in (0..bytes).step_by(64) {
        // SAFETY: `there` rows have `bytes` bytes each, a multiple of 64; `into` has room for the groups of sixteen
        // rows.
        unsafe {
            let mut x = [_mm512_setzero_si512(); ROWS];
            for r in 0..there {
                x[r] = _mm512_loadu_si512(codes.as_ptr().add(r * stride + from).cast());
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
pub(super) unsafe fn wide_rows_256(
    rows: &WideRows<'_>,
    query: &[i8],
    mask: u64,
    values: &mut [f32; TILE],
    test: &WideTest,
) -> Decision {
    // SAFETY: the caller keeps the contract and has the features.
    unsafe { one_by_one(rows, query, mask, values, test, dot_256) }
}
