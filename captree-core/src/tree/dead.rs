//! The deleted rows of a segment, by tree position.

use std::ops::Range;

/// A bit for each position, or none at all where no row is deleted.
#[derive(Debug, Default)]
pub(crate) struct Dead {
    words: Vec<u64>,
    count: usize,
}

impl Dead {
    /// These positions of `n`, each named once.
    pub fn of(n: usize, positions: impl Iterator<Item = usize>) -> Self {
        let mut dead = Dead::default();
        for position in positions {
            dead.words.resize(n.div_ceil(64), 0);
            dead.words[position / 64] |= 1 << (position % 64);
            dead.count += 1;
        }
        dead
    }

    /// Bit `b` of the result: position `start + b` is deleted.
    #[inline]
    pub fn mask(&self, start: usize) -> u64 {
        if self.count == 0 {
            return 0;
        }
        let word = |i: usize| self.words.get(i).copied().unwrap_or(0);
        match (start / 64, start % 64) {
            (i, 0) => word(i),
            (i, shift) => word(i) >> shift | word(i + 1) << (64 - shift),
        }
    }

    /// Whether a position is deleted.
    #[inline]
    pub fn contains(&self, position: usize) -> bool {
        self.mask(position) & 1 != 0
    }

    /// How many of a range are deleted.
    pub fn count_in(&self, range: &Range<usize>) -> usize {
        if self.count == 0 {
            return 0;
        }
        let in_word = |start: usize| {
            let bits = (range.end - start).min(64);
            (self.mask(start) & (u64::MAX >> (64 - bits))).count_ones() as usize
        };
        range.clone().step_by(64).map(in_word).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_counts_agree_with_a_set() {
        let dead = Dead::of(300, (0..300).filter(|p| p % 7 == 3 || (100..170).contains(p)));
        let is = |p: usize| p < 300 && (p % 7 == 3 || (100..170).contains(&p));
        for start in 0..300 {
            let mask = (0..64).fold(0, |m, b| m | u64::from(is(start + b)) << b);
            assert_eq!(dead.mask(start), mask, "from {start}");
            assert_eq!(dead.contains(start), is(start));
            for end in start..300 {
                assert_eq!(dead.count_in(&(start..end)), (start..end).filter(|p| is(*p)).count(), "{start}..{end}");
            }
        }
        assert_eq!((Dead::default().mask(5), Dead::default().count_in(&(0..900))), (0, 0));
    }
}
