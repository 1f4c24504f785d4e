//! A matrix unit in plain Rust, for tests: real ones are compared with it, and what surrounds them is tested with it on
//! processors that have none.

use super::blocks::{self, BlockKernels, BlockLanes, Blocks, Sums, Workspace};
use super::generic::ROWS;
use super::portable::{self, Portable};
use super::{Decision, FullTile, IntKernels, Joint, OpenRows, Second, WideTest};
use crate::sketch::TILE;

struct Plain;

impl Blocks for Plain {
    unsafe fn enter() {}
    unsafe fn leave() {}

    unsafe fn sums(queries: *const i8, stride: usize, rows: *const u8, bytes: usize, out: &mut Sums) {
        for (q, sums) in out.0.iter_mut().enumerate() {
            for (r, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller promises so many codes of queries and rows.
                let product = |k: usize| unsafe {
                    i32::from(*queries.add(q * stride + k)) * i32::from(*rows.add((k / 4 * TILE + r) * 4 + k % 4))
                };
                *sum = (0..bytes).fold(0, |sum: i32, k| sum.wrapping_add(product(k)));
            }
        }
    }
}

impl BlockLanes for Portable {
    type Values = [f32; ROWS];

    #[inline(always)]
    unsafe fn add_shifted(sums: [i32; ROWS], stored: *const i32, shift: u32) -> [i32; ROWS] {
        // SAFETY: the caller promises 16 readable numbers.
        std::array::from_fn(|r| sums[r].wrapping_add(unsafe { *stored.add(r) } << shift))
    }

    #[inline(always)]
    unsafe fn values(stored: *const f32) -> Self::Values {
        // SAFETY: the caller promises 16 readable numbers.
        unsafe { *stored.cast() }
    }

    #[inline(always)]
    unsafe fn plus(values: Self::Values, sums: [i32; ROWS], scale: f32) -> Self::Values {
        std::array::from_fn(|r| values[r] + scale * sums[r] as f32)
    }

    #[inline(always)]
    unsafe fn decide(values: Self::Values, test: &WideTest) -> (u16, u16) {
        values.iter().enumerate().fold((0, 0), |(inside, open), (r, value)| {
            // Written so that a value that is no number stays open.
            let is_open = !(*value < test.outside);
            (inside | u16::from(*value >= test.inside) << r, open | u16::from(is_open) << r)
        })
    }
}

unsafe fn first(
    joint: &Joint<'_>,
    queries: &[u32],
    kept_if_open: Option<u64>,
    workspace: &mut Workspace,
    open: &mut [u64],
    sums: &mut [[i32; TILE]],
) {
    // SAFETY: the caller keeps the contract; no CPU feature is needed.
    unsafe { blocks::first::<Portable, Plain>(joint, queries, kept_if_open, workspace, open, sums) }
}

unsafe fn second(second: &Second<'_>, rows: &OpenRows<'_>, out: &mut [Decision], values: &mut [[f32; TILE]]) {
    // SAFETY: the caller keeps the contract; no CPU feature is needed.
    unsafe { blocks::second::<Portable>(second, rows, out, values) }
}

unsafe fn full(tile: &FullTile<'_>, workspace: &mut Workspace, values: &[[f32; TILE]], out: &mut [Decision]) {
    // SAFETY: the caller keeps the contract; no CPU feature is needed.
    unsafe { blocks::full::<Portable, Plain>(tile, workspace, values, out) }
}

pub(super) const KERNELS: IntKernels = IntKernels {
    name: "portable with a plain matrix unit",
    blocks: Some(BlockKernels { first, second, full }),
    ..portable::KERNELS
};
