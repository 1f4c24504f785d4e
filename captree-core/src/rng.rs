//! Counter-based random numbers: Philox4x32-10 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, 2011).
//!
//! A draw is a pure function of the seed, the cap's content and the draw's number. So the same seed gives the same rows
//! on any number of threads and however a batch is split, and a GPU can repeat the same function.

use xxhash_rust::xxh3::Xxh3;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// What a stream of random numbers is for; streams of different purposes never share numbers.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub(crate) enum Purpose {
    ApproximateDraws = 2,
    DensitySample = 3,
    Estimate = 4,
    KMeans = 5,
    Sketch = 6,
    Pilots = 7,
}

/// Names a family of streams, one per draw: a 128-bit hash of everything the family depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    key: [u32; 2],
    salt: u32,
}

impl Key {
    /// `parts` are hashed by content and length.
    pub fn new(purpose: Purpose, seed: u64, parts: &[&[u8]]) -> Self {
        let mut hash = Xxh3::with_seed(purpose as u64);
        hash.update(&seed.to_le_bytes());
        for part in parts {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let digest = hash.digest128();
        Key { key: [digest as u32, (digest >> 32) as u32], salt: (digest >> 64) as u32 }
    }

    /// The stream of draw number `draw`.
    pub fn stream(&self, draw: u64) -> Stream {
        Stream { key: self.key, counter: [0, self.salt, draw as u32, (draw >> 32) as u32], block: [0; 4], used: 4 }
    }
}

/// An endless sequence of random numbers (2^34 of 32 bits).
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    key: [u32; 2],
    counter: [u32; 4],
    block: [u32; 4],
    used: usize,
}

impl Stream {
    #[inline]
    fn next_u64(&mut self) -> u64 {
        if self.used == 4 {
            self.block = philox(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        let word = u64::from(self.block[self.used]) | u64::from(self.block[self.used + 1]) << 32;
        self.used += 2;
        word
    }

    /// Uniform over 0..n, exactly (Lemire, *Fast random integer generation in an interval*, 2019).
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        debug_assert!(n > 0);
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(n);
            let low = wide as u64;
            if low >= n || low >= n.wrapping_neg() % n {
                return (wide >> 64) as u64;
            }
        }
    }

    /// Uniform over the multiples of 2^-53 in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_answers() {
        // Known-answer vectors of the Random123 distribution (kat_vectors, philox4x32 10).
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let counter = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
        assert_eq!(philox(counter, [0xa4093822, 0x299f31d0]), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    #[test]
    fn below_is_uniform_and_streams_differ() {
        let key = Key::new(Purpose::ApproximateDraws, 7, &[b"cap"]);
        let mut seen = [0u32; 5];
        for draw in 0..50_000 {
            seen[key.stream(draw).below(5) as usize] += 1;
        }
        // Chi-square with 4 degrees of freedom: 40 has a tail below 1e-7.
        let chi2: f64 = seen.iter().map(|c| (f64::from(*c) - 1e4).powi(2) / 1e4).sum();
        assert!(chi2 < 40.0, "{seen:?}");
        let other = Key::new(Purpose::ApproximateDraws, 8, &[b"cap"]);
        assert_ne!(key.stream(0).next_u64(), other.stream(0).next_u64());
        let unit = key.stream(3).unit();
        assert!((0.0..1.0).contains(&unit));
    }
}
