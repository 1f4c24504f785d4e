//! The tile loop in plain Rust, for any CPU.

use super::generic::{self, Lanes, ROWS};
use super::rows::{interleave, one_by_one};
use super::{Decision, First, IntKernels, OpenRows, Quarters, Second, Test, WideRows, WideTest, WideTile};
use crate::sketch::TILE;
use crate::sketch::fold::unpair;
use crate::sketch::levels::field;

pub(super) struct Portable;

impl Lanes for Portable {
    type Sums = [i32; ROWS];
    type Codes = [u8; 4 * ROWS];
    type Four = [i8; 4];

    #[inline(always)]
    unsafe fn start(sum: i32) -> Self::Sums {
        [sum; ROWS]
    }

    #[inline(always)]
    unsafe fn load(p: *const u8) -> Self::Codes {
        // SAFETY: the caller promises 64 readable bytes.
        unsafe { *p.cast() }
    }

    #[inline(always)]
    unsafe fn four(p: *const i8) -> Self::Four {
        // SAFETY: the caller promises four readable codes.
        unsafe { *p.cast() }
    }

    #[inline(always)]
    unsafe fn add(sums: Self::Sums, rows: Self::Codes, query: Self::Four) -> Self::Sums {
        // Like the registers of other instruction sets, sums may wrap around before their start is added.
        std::array::from_fn(|r| {
            (0..4).fold(sums[r], |s, d| s.wrapping_add(i32::from(rows[4 * r + d]) * i32::from(query[d])))
        })
    }

    #[inline(always)]
    unsafe fn add_pairs(sums: Self::Sums, rows: *const f32, query: u32) -> Self::Sums {
        let query = unpair(query);
        std::array::from_fn(|r| {
            // SAFETY: the caller promises 16 readable numbers.
            let row = unpair(unsafe { (*rows.add(r)).to_bits() });
            (0..2).fold(sums[r], |s, i| s.wrapping_add(i32::from(row[i]) * i32::from(query[i])))
        })
    }

    #[inline(always)]
    unsafe fn at_least(sums: Self::Sums, least: i32) -> u16 {
        sums.iter().enumerate().fold(0, |m, (r, s)| m | u16::from(*s >= least) << r)
    }

    #[inline(always)]
    unsafe fn store(sums: Self::Sums, into: *mut i32) {
        // SAFETY: the caller promises room for 16 numbers.
        unsafe { *into.cast() = sums }
    }

    #[inline(always)]
    unsafe fn test<const GROUP: bool>(
        sums: Self::Sums,
        first: *const i32,
        terms: *const f32,
        test: &Test,
        values: *mut f32,
    ) -> (u16, u16) {
        // SAFETY: the caller promises 16 readable numbers at each field of the level.
        let term = |field: usize, r: usize| unsafe { *terms.add(field + r) };
        let (mut inside, mut open) = (0, 0);
        for (r, sum) in sums.iter().enumerate() {
            // SAFETY: the caller promises 16 sums.
            let first = unsafe { *first.add(r) } as f32;
            let start = test.offset + test.along * term(field::SHIFT, r);
            let value = start + test.first_scale * first + test.scale * *sum as f32;
            let mut error = test.residual * term(field::SECOND_RESIDUAL, r);
            if GROUP {
                error += test.length * term(field::RADIUS, r) + test.spread * term(field::REACH, r);
            }
            inside |= u16::from(value - error >= test.inside) << r;
            // Written so that a value that is no number stays open.
            open |= u16::from(!(value + error < test.outside)) << r;
            if !values.is_null() {
                // SAFETY: the caller promises 16 writable numbers.
                unsafe { *values.add(r) = value };
            }
        }
        (inside, open)
    }

    #[inline(always)]
    unsafe fn wide_test(sums: Self::Sums, values: *mut f32, residuals: *const f32, test: &WideTest) -> (u16, u16) {
        let (mut inside, mut open) = (0, 0);
        for (r, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller promises 16 writable values and 16 readable residuals.
            let (is_in, is_open) = unsafe { test.decide_sum(sum, &mut *values.add(r), *residuals.add(r)) };
            inside |= u16::from(is_in) << r;
            open |= u16::from(is_open) << r;
        }
        (inside, open)
    }

    #[inline(always)]
    unsafe fn add_values(sums: Self::Sums, scale: f32, values: *mut f32) {
        for (r, sum) in sums.iter().enumerate() {
            // SAFETY: the caller promises 16 writable numbers.
            unsafe { *values.add(r) += scale * *sum as f32 };
        }
    }
}

unsafe fn first(first: &First<'_>, queries: &[u32], open: &mut [u64], sums: &mut [[i32; TILE]]) {
    // SAFETY: the caller keeps the contract; no CPU feature is needed.
    unsafe { generic::first::<Portable>(first, queries, open, sums) }
}

unsafe fn group(second: &Second<'_>, queries: &[u32], out: &mut [Decision]) {
    // SAFETY: as above.
    unsafe { generic::group::<Portable>(second, queries, out) }
}

unsafe fn second(
    second: &Second<'_>,
    rows: &OpenRows<'_>,
    out: &mut [Decision],
    values: &mut [[f32; TILE]],
    quarters: &mut Quarters,
) {
    // SAFETY: as above.
    unsafe { generic::second::<Portable>(second, rows, out, values, quarters) }
}

unsafe fn refine(second: &Second<'_>, queries: &[u32], quarters: &Quarters, values: &mut [[f32; TILE]]) {
    // SAFETY: as above.
    unsafe { generic::refine::<Portable>(second, queries, quarters, values) }
}

unsafe fn wide_tile(tile: &WideTile<'_>, values: &mut [[f32; TILE]], out: &mut [Decision]) {
    // SAFETY: as above.
    unsafe { generic::wide_tile::<Portable>(tile, values, out) }
}

fn dot(row: &[u8], query: &[i8]) -> i32 {
    row.iter().zip(query).map(|(x, q)| i32::from(*x) * i32::from(*q)).sum()
}

unsafe fn wide_rows(
    rows: &WideRows<'_>,
    query: &[i8],
    mask: u64,
    values: &mut [f32; TILE],
    test: &WideTest,
) -> Decision {
    // SAFETY: as above.
    unsafe { one_by_one(rows, query, mask, values, test, dot) }
}

pub(super) const KERNELS: IntKernels =
    IntKernels { name: "portable", first, second, refine, wide_tile, group, wide_rows, interleave, blocks: None };
