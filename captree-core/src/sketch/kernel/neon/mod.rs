//! NEON instantiations: with the mixed products of `i8mm`, with the signed ones of `dotprod`, and without either.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::marker::PhantomData;

mod products;

use products::{Mixed, Plain, Products, Signed};

use super::generic::{self, Lanes, ROWS};
use super::rows::interleave;
use super::{Decision, First, IntKernels, OpenRows, Quarters, Second, Test, WideRows, WideTest, WideTile};
use crate::sketch::TILE;
use crate::sketch::levels::field;

/// The bit of each row.
const BITS: [u32; ROWS] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768];

/// The rows of which one comparison holds, four in a register.
///
/// # Safety
/// All methods need NEON.
#[derive(Clone, Copy)]
struct Mask(uint32x4_t);

impl Mask {
    #[inline(always)]
    unsafe fn new() -> Mask {
        // SAFETY: the caller has NEON.
        Mask(unsafe { vdupq_n_u32(0) })
    }

    /// For rows `4 part` to `4 part + 3`.
    #[inline(always)]
    unsafe fn or(self, part: usize, rows: uint32x4_t) -> Mask {
        // SAFETY: the caller has NEON, and a slice of four is four readable numbers.
        unsafe {
            let bits = vld1q_u32(BITS[4 * part..4 * part + 4].as_ptr());
            Mask(vorrq_u32(self.0, vandq_u32(rows, bits)))
        }
    }

    #[inline(always)]
    unsafe fn bits(self) -> u16 {
        // SAFETY: the caller has NEON.
        unsafe { vaddvq_u32(self.0) as u16 }
    }
}

/// Sums of sixteen rows, four in a register, and what they all lack.
struct Sums<P: Products> {
    rows: [int32x4_t; 4],
    lack: P::Lack,
}

impl<P: Products> Clone for Sums<P> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Products> Copy for Sums<P> {}

impl<P: Products> Sums<P> {
    /// # Safety
    /// As for [`Products`].
    #[inline(always)]
    unsafe fn whole(self) -> [int32x4_t; 4] {
        // SAFETY: the processor has the instructions of `P`; only registers are touched.
        self.rows.map(|sum| unsafe { P::whole(sum, self.lack) })
    }
}

struct Neon<P>(PhantomData<P>);

impl<P: Products> Lanes for Neon<P> {
    type Sums = Sums<P>;
    type Codes = [P::WideRows; 4];
    type Four = P::Query;

    #[inline(always)]
    unsafe fn start(sum: i32) -> Self::Sums {
        // SAFETY: the caller has the features.
        unsafe { Sums { rows: [vdupq_n_s32(sum); 4], lack: P::no_lack() } }
    }

    #[inline(always)]
    unsafe fn load(p: *const u8) -> Self::Codes {
        // SAFETY: the caller has the features and 64 readable bytes.
        std::array::from_fn(|part| unsafe { P::rows(vld1q_u8(p.add(16 * part))) })
    }

    #[inline(always)]
    unsafe fn four(p: *const i8) -> Self::Four {
        // SAFETY: the caller has the features and four readable codes.
        unsafe { P::query(vreinterpretq_s8_s32(vdupq_n_s32(p.cast::<i32>().read_unaligned()))) }
    }

    #[inline(always)]
    unsafe fn add(sums: Self::Sums, rows: Self::Codes, query: Self::Four) -> Self::Sums {
        // SAFETY: the processor has the instructions of `P`; only registers are touched.
        unsafe {
            Sums {
                rows: std::array::from_fn(|part| P::add(sums.rows[part], rows[part], query)),
                lack: P::lack(sums.lack, query),
            }
        }
    }

    #[inline(always)]
    unsafe fn add_pairs(sums: Self::Sums, rows: *const f32, query: u32) -> Self::Sums {
        // SAFETY: the caller has the features and 16 readable numbers.
        unsafe {
            let query = vreinterpretq_s16_u32(vdupq_n_u32(query));
            let added = |part: usize| {
                let rows = vld1q_s16(rows.add(4 * part).cast());
                let low = vmull_s16(vget_low_s16(rows), vget_low_s16(query));
                vaddq_s32(sums.rows[part], vpaddq_s32(low, vmull_high_s16(rows, query)))
            };
            Sums { rows: std::array::from_fn(added), lack: sums.lack }
        }
    }

    #[inline(always)]
    unsafe fn at_least(sums: Self::Sums, least: i32) -> u16 {
        // SAFETY: the caller has the features.
        unsafe {
            let mut mask = Mask::new();
            for (part, sums) in sums.whole().into_iter().enumerate() {
                mask = mask.or(part, vcgeq_s32(sums, vdupq_n_s32(least)));
            }
            mask.bits()
        }
    }

    #[inline(always)]
    unsafe fn store(sums: Self::Sums, into: *mut i32) {
        // SAFETY: the caller has the features and room for 16 numbers.
        unsafe { sums.whole().into_iter().enumerate().for_each(|(part, sums)| vst1q_s32(into.add(4 * part), sums)) }
    }

    #[inline(always)]
    unsafe fn test<const GROUP: bool>(
        sums: Self::Sums,
        first: *const i32,
        terms: *const f32,
        test: &Test,
        values: *mut f32,
    ) -> (u16, u16) {
        // SAFETY: the caller has the features, 16 sums and as many numbers at each field of the level, and room for 16
        // values.
        unsafe {
            let (mut inside, mut open) = (Mask::new(), Mask::new());
            for (part, sums) in sums.whole().into_iter().enumerate() {
                let term = |field: usize| vld1q_f32(terms.add(field + 4 * part));
                let first = vcvtq_f32_s32(vld1q_s32(first.add(4 * part)));
                let start = vfmaq_n_f32(vdupq_n_f32(test.offset), term(field::SHIFT), test.along);
                let start = vfmaq_n_f32(start, first, test.first_scale);
                let value = vfmaq_n_f32(start, vcvtq_f32_s32(sums), test.scale);
                let residual = term(field::SECOND_RESIDUAL);
                let mut error = vmulq_n_f32(residual, test.residual);
                if GROUP {
                    error = vfmaq_n_f32(error, term(field::RADIUS), test.length);
                    error = vfmaq_n_f32(error, term(field::REACH), test.spread);
                }
                if !values.is_null() {
                    vst1q_f32(values.add(4 * part), value);
                }
                (inside, open) = decide(part, value, error, (test.inside, test.outside), (inside, open));
            }
            (inside.bits(), open.bits())
        }
    }

    #[inline(always)]
    unsafe fn wide_test(sums: Self::Sums, values: *mut f32, residuals: *const f32, test: &WideTest) -> (u16, u16) {
        // SAFETY: the caller has the features, 16 writable values and 16 readable residuals.
        unsafe {
            let (mut inside, mut open) = (Mask::new(), Mask::new());
            for (part, sums) in sums.whole().into_iter().enumerate() {
                let at = values.add(4 * part);
                let value = vfmaq_n_f32(vld1q_f32(at), vcvtq_f32_s32(sums), test.scale);
                vst1q_f32(at, value);
                let error = vmulq_n_f32(vld1q_f32(residuals.add(4 * part)), test.residual);
                (inside, open) = decide(part, value, error, (test.inside, test.outside), (inside, open));
            }
            (inside.bits(), open.bits())
        }
    }

    #[inline(always)]
    unsafe fn add_values(sums: Self::Sums, scale: f32, values: *mut f32) {
        // SAFETY: the caller has the features and 16 writable numbers.
        unsafe {
            for (part, sums) in sums.whole().into_iter().enumerate() {
                let at = values.add(4 * part);
                vst1q_f32(at, vfmaq_n_f32(vld1q_f32(at), vcvtq_f32_s32(sums), scale));
            }
        }
    }
}

/// Which of four rows are surely inside, and which not surely outside: `limits` are the two thresholds.
///
/// # Safety
/// Needs NEON.
#[inline(always)]
unsafe fn decide(
    part: usize,
    value: float32x4_t,
    error: float32x4_t,
    limits: (f32, f32),
    (inside, open): (Mask, Mask),
) -> (Mask, Mask) {
    // SAFETY: the caller has NEON.
    unsafe {
        let is_in = vcgeq_f32(vsubq_f32(value, error), vdupq_n_f32(limits.0));
        // Written so that a value that is no number stays open.
        let is_open = vmvnq_u32(vcltq_f32(vaddq_f32(value, error), vdupq_n_f32(limits.1)));
        (inside.or(part, is_in), open.or(part, is_open))
    }
}

/// Four rows at a time, each with one sum per 16 bytes.
///
/// # Safety
/// As for [`Products`], and the lengths that [`IntKernels::wide_rows`] checks.
#[inline(always)]
unsafe fn wide_rows<P: Products>(
    rows: &WideRows<'_>,
    query: &[i8],
    mask: u64,
    values: &mut [f32; TILE],
    test: &WideTest,
) -> Decision {
    let (mut decision, mut left) = (Decision::default(), mask);
    while left != 0 {
        // The last row stands in for those that are missing.
        let (mut four, mut count) = ([0; 4], 0);
        while count < 4 && left != 0 {
            four[count..].fill(left.trailing_zeros() as usize);
            left &= left - 1;
            count += 1;
        }
        // SAFETY: the rows of the mask are there, each as long as the query, a multiple of 64; the caller has the
        // features.
        let sums: [i32; 4] = unsafe {
            let at = four.map(|f| rows.codes.as_ptr().add(f * rows.stride));
            let (mut acc, mut lack) = ([vdupq_n_s32(0); 4], P::no_lack());
            for i in (0..query.len()).step_by(16) {
                let q = P::query(vld1q_s8(query.as_ptr().add(i)));
                for f in 0..4 {
                    acc[f] = P::add(acc[f], P::rows(vld1q_u8(at[f].add(i))), q);
                }
                lack = P::lack(lack, q);
            }
            std::array::from_fn(|f| vaddvq_s32(P::whole(acc[f], lack)))
        };
        for (r, sum) in four.into_iter().zip(sums).take(count) {
            decision.add(r, test.decide(sum, &mut values[r], rows.residuals[r]));
        }
    }
    decision
}

macro_rules! kernels {
    ($module:ident, $name:literal, $products:ty, $features:literal, $kernels:ident) => {
        mod $module {
            use super::*;

            type L = Neon<$products>;

            #[target_feature(enable = $features)]
            pub(super) unsafe fn first(first: &First<'_>, queries: &[u32], open: &mut [u64], sums: &mut [[i32; TILE]]) {
                // SAFETY: the caller keeps the contract and has the features.
                unsafe { generic::first::<L>(first, queries, open, sums) }
            }

            #[target_feature(enable = $features)]
            pub(super) unsafe fn group(second: &Second<'_>, queries: &[u32], out: &mut [Decision]) {
                // SAFETY: the caller keeps the contract and has the features.
                unsafe { generic::group::<L>(second, queries, out) }
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
                unsafe { generic::second::<L>(second, rows, out, values, quarters) }
            }

            #[target_feature(enable = $features)]
            pub(super) unsafe fn refine(
                second: &Second<'_>,
                queries: &[u32],
                quarters: &Quarters,
                values: &mut [[f32; TILE]],
            ) {
                // SAFETY: the caller keeps the contract and has the features.
                unsafe { generic::refine::<L>(second, queries, quarters, values) }
            }

            #[target_feature(enable = $features)]
            pub(super) unsafe fn wide_tile(tile: &WideTile<'_>, values: &mut [[f32; TILE]], out: &mut [Decision]) {
                // SAFETY: the caller keeps the contract and has the features.
                unsafe { generic::wide_tile::<L>(tile, values, out) }
            }

            #[target_feature(enable = $features)]
            pub(super) unsafe fn wide_rows(
                rows: &WideRows<'_>,
                query: &[i8],
                mask: u64,
                values: &mut [f32; TILE],
                test: &WideTest,
            ) -> Decision {
                // SAFETY: the caller keeps the contract and has the features.
                unsafe { super::wide_rows::<$products>(rows, query, mask, values, test) }
            }
        }

        const $kernels: IntKernels = IntKernels {
            name: $name,
            first: $module::first,
            second: $module::second,
            refine: $module::refine,
            wide_tile: $module::wide_tile,
            group: $module::group,
            wide_rows: $module::wide_rows,
            interleave,
            blocks: None,
        };
    };
}

kernels!(mixed, "neon-i8mm", Mixed, "neon,i8mm", MIXED);
kernels!(signed, "neon-dotprod", Signed, "neon,dotprod", SIGNED);
kernels!(plain, "neon", Plain, "neon", PLAIN);

/// Hints that `codes` will be read soon.
#[inline]
pub(super) fn prefetch(codes: &[u8]) {
    for line in codes.chunks(64) {
        // SAFETY: a prefetch reads nothing, whatever its address. Its intrinsic is not stable.
        unsafe {
            asm!("prfm pldl1keep, [{0}]", in(reg) line.as_ptr(), options(readonly, nostack, preserves_flags));
        }
    }
}

/// The kernels that this CPU has, fastest first.
pub(super) fn available() -> Vec<IntKernels> {
    let mut found = Vec::new();
    if is_aarch64_feature_detected!("i8mm") {
        found.push(MIXED);
    }
    if is_aarch64_feature_detected!("dotprod") {
        found.push(SIGNED);
    }
    found.push(PLAIN);
    found
}
