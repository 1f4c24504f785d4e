//! Masks of 64 rows, or tiles: bit `b` stands for the one at position `start + b`.

use std::ops::Range;

use crate::distance::TILE;

/// Tree positions of a mask's bits.
pub(crate) fn positions_of(start: usize, mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (mask != 0).then(|| {
            let bit = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            start + bit
        })
    })
}

/// Bits `range` of a mask for the 64 positions from `start` on.
pub(crate) fn bits_of(start: usize, range: &Range<usize>) -> u64 {
    let (from, to) = (range.start.max(start) - start, range.end.min(start + TILE).saturating_sub(start));
    let below = |bits: usize| if bits >= 64 { u64::MAX } else { (1u64 << bits) - 1 };
    below(to) & !below(from)
}
