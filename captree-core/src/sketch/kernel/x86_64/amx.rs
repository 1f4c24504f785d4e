//! The matrix unit of x86-64, AMX: sums of 16 x 16 blocks of products of bytes.
//!
//! `std::arch` has these instructions on nightly compilers only, so they are written in assembly. The shapes of the
//! registers belong to a thread; they are set and given back around the work on one tile, so that nothing of them stays
//! behind.

use std::arch::asm;

use super::super::blocks::{Blocks, QUERIES, Sums};
use crate::sketch::TILE;

/// Shapes of the registers, as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight registers: 16 rows of 64 bytes.
static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

pub(super) struct Amx;

impl Blocks for Amx {
    #[inline(always)]
    unsafe fn enter() {
        // SAFETY: the caller has the unit and may use it; the shapes are valid ones.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, readonly)) }
    }

    #[inline(always)]
    unsafe fn leave() {
        // SAFETY: the caller has the unit and may use it.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }

    #[inline(always)]
    unsafe fn sums(queries: *const i8, stride: usize, rows: *const u8, bytes: usize, out: &mut Sums) {
        const { assert!(QUERIES == 32 && TILE == 64) };
        for half in 0..2 {
            // SAFETY: the caller entered, and has `bytes` codes, a positive multiple of 64, of 32 queries, `stride`
            // from one to the next, and of 64 rows, interleaved by groups of four, 256 bytes from one group to the
            // next. Sums of a query are 64 numbers, 256 bytes, of which each half takes 32.
            unsafe {
                let out = out.0.as_mut_ptr().cast::<i32>().add(32 * half);
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "2:",
                    "tileloadd tmm4, [{first} + {stride}]",
                    "tileloadd tmm6, [{rows} + {group}]",
                    "tdpbsud tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{rows} + {group} + 64]",
                    "tdpbsud tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{second} + {stride}]",
                    "tdpbsud tmm2, tmm5, tmm6",
                    "tdpbsud tmm3, tmm5, tmm7",
                    "add {first}, 64",
                    "add {second}, 64",
                    "add {rows}, 4096",
                    "sub {bytes}, 64",
                    "jnz 2b",
                    "tilestored [{out} + {group}], tmm0",
                    "tilestored [{out} + {group} + 64], tmm1",
                    "tilestored [{others} + {group}], tmm2",
                    "tilestored [{others} + {group} + 64], tmm3",
                    first = inout(reg) queries => _,
                    second = inout(reg) queries.add(16 * stride) => _,
                    stride = in(reg) stride,
                    rows = inout(reg) rows.add(128 * half) => _,
                    group = in(reg) 256usize,
                    bytes = inout(reg) bytes => _,
                    out = in(reg) out,
                    others = in(reg) out.add(16 * TILE),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }
}
