//! The kernels of all instruction sets agree with plain integer arithmetic.

mod units;

use proptest::prelude::*;

use super::{First, FirstTerms, IntKernels, WideRows, WideTest};
use crate::sketch::TILE;
use crate::sketch::fold::pair;
use crate::sketch::levels::Bounds;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn kernels_agree_on_integers(
        rows in prop::collection::vec(any::<u8>(), TILE * 192), query in prop::collection::vec(-127i8..=127, 192),
        mask in any::<u64>(), thinner in any::<u64>(), there in 1usize..=TILE, middle in -100_000i32..100_000,
    ) {
        let sum = |row: &[u8]| row.iter().zip(&query).map(|(x, q)| i32::from(*x) * i32::from(*q)).sum::<i32>();
        // Small integers are exact in float32, so the masks must be what the sums say.
        let sums: Vec<i32> = rows.chunks_exact(192).map(|row| sum(row) - middle).collect();
        let test = WideTest { scale: 1.0, start: -middle, residual: 2.0, inside: 50_000.0, outside: -50_000.0 };
        let residuals = std::array::from_fn(|r| 1000.0 * r as f32);
        // A last tile has fewer rows.
        let (rows, mask) = (&rows[..there * 192], mask & thinner & u64::MAX >> (TILE - there));
        let bits = |is: fn(i32, i32) -> bool| {
            sums.iter().enumerate().fold(0, |m, (r, s)| m | u64::from(is(*s, 2000 * r as i32)) << r) & mask
        };
        for kernels in IntKernels::available() {
            let tile = WideRows { codes: rows, stride: 192, residuals: &residuals };
            let mut values = [0.0; TILE];
            let decision = kernels.wide_rows(&tile, &query, mask, &mut values, &test);
            prop_assert_eq!(decision.inside, bits(|s, e| s - e >= 50_000), "{}", kernels.name());
            prop_assert_eq!(decision.unsure, bits(|s, e| s - e < 50_000 && s + e >= -50_000), "{}", kernels.name());
            for (r, (sum, value)) in sums.iter().zip(&values).enumerate() {
                prop_assert!(mask >> r & 1 == 0 || *value == *sum as f32, "{}", kernels.name());
            }
        }
    }

    #[test]
    fn kernels_fold_alike(
        codes in prop::collection::vec(any::<u8>(), TILE * 12),
        folded in prop::collection::vec(any::<[i16; 2]>(), TILE),
        queries in prop::collection::vec(
            (prop::collection::vec(-127i8..=127, 12), any::<[i16; 2]>(), 0usize..TILE),
            1..10,
        ),
    ) {
        let alone = |r: usize, query: &[i8]| {
            let products = (0..12).map(|k| i32::from(codes[(k / 4 * TILE + r) * 4 + k % 4]) * i32::from(query[k]));
            products.sum::<i32>()
        };
        let sum = |r: usize, (query, [a, b], _): &(Vec<i8>, [i16; 2], usize)| {
            let pairs = i32::from(*a).wrapping_mul(i32::from(folded[r][0]));
            alone(r, query).wrapping_add(pairs).wrapping_add(i32::from(*b).wrapping_mul(i32::from(folded[r][1])))
        };
        let pairs: Vec<f32> = folded.iter().map(|p| f32::from_bits(pair(*p))).collect();
        // The threshold is a row's sum, or what float32 makes of it.
        let terms: Vec<FirstTerms> = queries
            .iter()
            .map(|q| {
                let least = sum(q.2, q) as f32;
                FirstTerms { pair: pair(q.1), least, ..FirstTerms::default() }
            })
            .collect();
        let (bounds, numbers) = (Bounds::default(), (0..queries.len() as u32).collect::<Vec<_>>());
        let first = First {
            codes: &codes,
            bytes: 12,
            stride: 12,
            folded: &pairs,
            bounds: &bounds,
            query_codes: &queries.iter().flat_map(|q| q.0.clone()).collect::<Vec<_>>(),
            query_terms: &terms,
        };
        let least = |q: usize| terms[q].least as i32;
        let want: Vec<u64> = (0..queries.len())
            .map(|q| (0..TILE).fold(0, |m, r| m | u64::from(sum(r, &queries[q]) >= least(q)) << r))
            .collect();
        for kernels in IntKernels::available() {
            let mut open = vec![0; queries.len()];
            let mut sums = vec![[0; TILE]; queries.len()];
            kernels.first(&first, &numbers, &mut open, &mut sums);
            prop_assert_eq!(&open, &want, "{}", kernels.name());
            for (query, sums) in queries.iter().zip(&sums) {
                let want: [i32; TILE] = std::array::from_fn(|r| alone(r, &query.0));
                prop_assert_eq!(sums, &want, "{}", kernels.name());
            }
        }
    }

    #[test]
    fn kernels_interleave_alike(
        rows in prop::collection::vec(any::<u8>(), 16 * 192), count in 1usize..=16, from in 0usize..=64,
    ) {
        let codes = &rows[from..count * 192];
        let mut want = vec![0u8; TILE * 128];
        for (r, row) in codes.chunks(192).enumerate() {
            row[..128].iter().enumerate().for_each(|(k, x)| want[(k / 4 * TILE + r) * 4 + k % 4] = *x);
        }
        for kernels in IntKernels::available() {
            let mut got = vec![0u8; TILE * 128];
            kernels.interleave(codes, 192, 128, &mut got);
            for r in (0..count).flat_map(|r| (0..32).map(move |g| (g * TILE + r) * 4)) {
                prop_assert_eq!(&got[r..r + 4], &want[r..r + 4], "{}", kernels.name());
            }
        }
    }
}
