//! Dot products of four bytes at a time, for three generations of processors.

use std::arch::aarch64::*;
use std::arch::asm;

/// Products of sixteen unsigned codes with sixteen signed ones, each four of them added to a 32-bit sum.
///
/// # Safety
/// All methods need the CPU feature of the implementing instruction set.
pub(super) trait Products {
    type WideRows: Copy;
    type Query: Copy;
    /// What `add` leaves out of sums.
    type Lack: Copy;
    unsafe fn rows(codes: uint8x16_t) -> Self::WideRows;
    unsafe fn query(codes: int8x16_t) -> Self::Query;
    unsafe fn add(sum: int32x4_t, rows: Self::WideRows, query: Self::Query) -> int32x4_t;
    unsafe fn no_lack() -> Self::Lack;
    /// Notes what `add` leaves out with this query.
    unsafe fn lack(lack: Self::Lack, query: Self::Query) -> Self::Lack;
    /// The sum with what it lacks.
    unsafe fn whole(sum: int32x4_t, lack: Self::Lack) -> int32x4_t;
}

pub(super) struct Mixed;

impl Products for Mixed {
    type WideRows = uint8x16_t;
    type Query = int8x16_t;
    type Lack = ();

    #[inline(always)]
    unsafe fn rows(codes: uint8x16_t) -> Self::WideRows {
        codes
    }

    #[inline(always)]
    unsafe fn query(codes: int8x16_t) -> Self::Query {
        codes
    }

    #[inline(always)]
    unsafe fn add(mut sum: int32x4_t, rows: Self::WideRows, query: Self::Query) -> int32x4_t {
        // SAFETY: the caller has i8mm; the instruction touches only these registers. Its intrinsic is not stable.
        unsafe {
            asm!(
                "usdot {sum:v}.4s, {rows:v}.16b, {query:v}.16b",
                sum = inout(vreg) sum,
                rows = in(vreg) rows,
                query = in(vreg) query,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }

    #[inline(always)]
    unsafe fn no_lack() -> Self::Lack {}

    #[inline(always)]
    unsafe fn lack(_: Self::Lack, _: Self::Query) -> Self::Lack {}

    #[inline(always)]
    unsafe fn whole(sum: int32x4_t, _: Self::Lack) -> int32x4_t {
        sum
    }
}

pub(super) struct Signed;

impl Products for Signed {
    /// Less 128, which makes them signed.
    type WideRows = int8x16_t;
    type Query = int8x16_t;
    /// Half of 128 times the query's sum: 128 is no signed code.
    type Lack = int32x4_t;

    #[inline(always)]
    unsafe fn rows(codes: uint8x16_t) -> Self::WideRows {
        // SAFETY: the caller has NEON.
        unsafe { vreinterpretq_s8_u8(veorq_u8(codes, vdupq_n_u8(0x80))) }
    }

    #[inline(always)]
    unsafe fn query(codes: int8x16_t) -> Self::Query {
        codes
    }

    #[inline(always)]
    unsafe fn add(mut sum: int32x4_t, rows: Self::WideRows, query: Self::Query) -> int32x4_t {
        // SAFETY: the caller has dotprod; the instruction touches only these registers. Its intrinsic is not stable.
        unsafe {
            asm!(
                "sdot {sum:v}.4s, {rows:v}.16b, {query:v}.16b",
                sum = inout(vreg) sum,
                rows = in(vreg) rows,
                query = in(vreg) query,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }

    #[inline(always)]
    unsafe fn no_lack() -> Self::Lack {
        // SAFETY: the caller has NEON.
        unsafe { vdupq_n_s32(0) }
    }

    #[inline(always)]
    unsafe fn lack(lack: Self::Lack, query: Self::Query) -> Self::Lack {
        // SAFETY: the caller has dotprod.
        unsafe { Self::add(lack, vdupq_n_s8(64), query) }
    }

    #[inline(always)]
    unsafe fn whole(sum: int32x4_t, lack: Self::Lack) -> int32x4_t {
        // SAFETY: the caller has NEON.
        unsafe { vaddq_s32(sum, vshlq_n_s32::<1>(lack)) }
    }
}

pub(super) struct Plain;

impl Products for Plain {
    /// Even and odd dims as 16-bit numbers: a product of codes fits in 16 bits, the sum of two may not.
    type WideRows = [int16x8_t; 2];
    type Query = [int16x8_t; 2];
    type Lack = ();

    #[inline(always)]
    unsafe fn rows(codes: uint8x16_t) -> Self::WideRows {
        // SAFETY: the caller has NEON.
        unsafe {
            let pairs = vreinterpretq_u16_u8(codes);
            let (even, odd) = (vandq_u16(pairs, vdupq_n_u16(0xff)), vshrq_n_u16::<8>(pairs));
            [vreinterpretq_s16_u16(even), vreinterpretq_s16_u16(odd)]
        }
    }

    #[inline(always)]
    unsafe fn query(codes: int8x16_t) -> Self::Query {
        // SAFETY: the caller has NEON.
        unsafe {
            let pairs = vreinterpretq_s16_s8(codes);
            [vshrq_n_s16::<8>(vshlq_n_s16::<8>(pairs)), vshrq_n_s16::<8>(pairs)]
        }
    }

    #[inline(always)]
    unsafe fn add(sum: int32x4_t, rows: Self::WideRows, query: Self::Query) -> int32x4_t {
        // SAFETY: the caller has NEON.
        unsafe { vpadalq_s16(vpadalq_s16(sum, vmulq_s16(rows[0], query[0])), vmulq_s16(rows[1], query[1])) }
    }

    #[inline(always)]
    unsafe fn no_lack() -> Self::Lack {}

    #[inline(always)]
    unsafe fn lack(_: Self::Lack, _: Self::Query) -> Self::Lack {}

    #[inline(always)]
    unsafe fn whole(sum: int32x4_t, _: Self::Lack) -> int32x4_t {
        sum
    }
}
