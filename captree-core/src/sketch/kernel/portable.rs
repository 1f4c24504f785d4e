//! The tile loop in plain Rust, for any CPU.

use super::generic::{self, Lanes, ROWS};
use super::{Decision, IntKernels, QueryTerms, Tile};
use crate::sketch::TILE;

struct Portable;

impl Lanes for Portable {
    type Sums = [i32; ROWS];
    type Codes = [u8; 4 * ROWS];
    type Four = [i8; 4];

    #[inline(always)]
    unsafe fn zero() -> Self::Sums {
        [0; ROWS]
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
        std::array::from_fn(|r| (0..4).fold(sums[r], |s, d| s + i32::from(rows[4 * r + d]) * i32::from(query[d])))
    }

    #[inline(always)]
    unsafe fn decide(sums: Self::Sums, terms: *const f32, query: &QueryTerms) -> (u16, u16) {
        // SAFETY: the caller promises 16 readable numbers in each of the six runs.
        let term = |field: usize, r: usize| unsafe { *terms.add(field * TILE + r) };
        let (mut inside, mut open) = (0, 0);
        for (r, sum) in sums.iter().enumerate() {
            let scaled = query.step * (term(0, r) * (sum + query.start) as f32);
            let value = query.offset + query.along * term(1, r) + scaled;
            let error = query.length * term(2, r)
                + query.rounding * term(3, r)
                + query.residual * term(4, r)
                + query.spread * term(5, r);
            inside |= u16::from(value - error >= query.inside) << r;
            // Written so that a value that is no number stays open.
            open |= u16::from(!(value + error < query.outside)) << r;
        }
        (inside, open)
    }
}

unsafe fn tile(args: &Tile<'_>, out: &mut [Decision]) {
    // SAFETY: the caller keeps the contract; no CPU feature is needed.
    unsafe { generic::tile::<Portable>(args, out) }
}

unsafe fn dot(row: &[u8], query: &[i8]) -> i32 {
    row.iter().zip(query).map(|(x, q)| i32::from(*x) * i32::from(*q)).sum()
}

pub(super) const KERNELS: IntKernels = IntKernels { name: "portable", tile, dot };
