//! Matrix units agree with plain integer arithmetic: whatever number of queries, next to each other or not.

use super::*;
use crate::sketch::kernel::{FullTile, Joint, RefinementTerms, WideTerms, Workspace};

/// Numbers of some of `count` queries, ascending.
fn numbers(count: usize) -> impl Strategy<Value = Vec<u32>> {
    let some = prop::collection::vec(prop::bool::weighted(0.8), count);
    (some, any::<bool>()).prop_map(move |(some, all)| (0..count as u32).filter(|q| all || some[*q as usize]).collect())
}

/// Codes of a tile's rows, interleaved, and the sum of their products with a query's, for some of their columns.
fn sum(codes: &[u8], row: usize, query: &[i8], columns: std::ops::Range<usize>) -> i32 {
    columns.map(|k| i32::from(codes[(k / 4 * TILE + row) * 4 + k % 4]) * i32::from(query[k])).sum()
}

fn units() -> Vec<IntKernels> {
    IntKernels::tested().into_iter().filter(IntKernels::has_unit).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn first_levels_agree(
        (codes, query_codes, pairs, terms, numbers) in (1usize..80).prop_flat_map(|count| (
            prop::collection::vec(any::<u8>(), TILE * 128),
            prop::collection::vec(-127i8..=127, count * 128),
            prop::collection::vec((0i16..=256, -128i16..=128), TILE),
            prop::collection::vec((any::<[i16; 2]>(), 0usize..TILE, -1000i32..1000), count),
            numbers(count),
        )),
        bytes in prop::sample::select(vec![64usize, 128]), split in prop::sample::select(vec![64usize, 128]),
        shift in 0u32..=6, among in any::<u64>(), few in 0u32..=60,
    ) {
        let split = split.min(bytes);
        let codes = &codes[..TILE * bytes];
        let query = |q: usize| &query_codes[q * bytes..(q + 1) * bytes];
        let start = |q: usize| terms[q].2;
        let alone = |q: usize, r: usize| {
            start(q) + (sum(codes, r, query(q), 0..split) << shift) + sum(codes, r, query(q), split..bytes)
        };
        let whole = |q: usize, r: usize| {
            let [a, b] = terms[q].0;
            alone(q, r) + i32::from(a) * i32::from(pairs[r].0) + i32::from(b) * i32::from(pairs[r].1)
        };
        // Thresholds are the sums of some row, or what float32 makes of them.
        let query_terms: Vec<FirstTerms> = (0..terms.len())
            .map(|q| FirstTerms {
                joint_start: start(q), pair: pair(terms[q].0), shift, least: whole(q, terms[q].1) as f32,
                ..FirstTerms::default()
            })
            .collect();
        let words: Vec<u32> = pairs.iter().map(|(a, b)| pair([*a, *b])).collect();
        let (bounds, used) = (Bounds::default(), terms.len() * bytes);
        let joint = Joint {
            codes, bytes, split, pairs: words[..].try_into().unwrap(), bounds: &bounds,
            query_codes: &query_codes[..used], query_terms: &query_terms,
        };
        for kernels in units() {
            let (mut open, mut sums) = (vec![0; numbers.len()], vec![[0; TILE]; numbers.len()]);
            kernels.unit_first(&joint, &numbers, None, &mut Workspace::default(), &mut open, &mut sums);
            for (i, q) in numbers.iter().map(|q| *q as usize).enumerate() {
                let least = query_terms[q].least as i32;
                let want = (0..TILE).fold(0, |m, r| m | u64::from(whole(q, r) >= least) << r);
                prop_assert_eq!(open[i], want, "{} query {}", kernels.name(), q);
                let want: [i32; TILE] = std::array::from_fn(|r| alone(q, r));
                prop_assert_eq!(sums[i], want, "{} query {}", kernels.name(), q);
            }
            // Sums of queries with open rows alone, among many rows or few.
            let (among, mut some) = (among >> few, vec![[0; TILE]; numbers.len()]);
            let mut again = vec![0; numbers.len()];
            kernels.unit_first(&joint, &numbers, Some(among), &mut Workspace::default(), &mut again, &mut some);
            prop_assert_eq!(&again, &open);
            let kept: Vec<[i32; TILE]> =
                open.iter().zip(sums).filter(|(open, _)| *open & among != 0).map(|(_, sums)| sums).collect();
            prop_assert_eq!(&some[..kept.len()], &kept[..], "{}", kernels.name());
        }
    }

    #[test]
    fn full_levels_agree(
        (codes, query_codes, terms, numbers) in (1usize..80).prop_flat_map(|count| (
            prop::collection::vec(any::<u8>(), TILE * 256),
            prop::collection::vec(-127i8..=127, count * 256),
            prop::collection::vec((-9000i32..9000, -9000i32..9000), count),
            numbers(count),
        )),
        third in prop::sample::select(vec![0usize, 64]),
    ) {
        // Small integers are exact in float32, so decisions must be what the sums say.
        let (count, stride, leading) = (terms.len(), 128, 64);
        let (wide, leading_codes) = (&codes[..TILE * stride], &codes[TILE * 128..][..TILE * leading]);
        let (wide_queries, refinements) = query_codes.split_at(count * stride);
        let refinements = &refinements[..count * leading];
        let values: Vec<[f32; TILE]> = (0..numbers.len()).map(|i| [(7 * i) as f32; TILE]).collect();
        // Values of a query stand where its place says: here, in the opposite order.
        let places: Vec<usize> = (0..numbers.len()).rev().collect();
        let (bounds, none) = (Bounds::default(), Bounds::default());
        let wide_terms: Vec<WideTerms> = terms
            .iter()
            .map(|(a, b)| WideTerms {
                third_scale: 1.0, third_start: *a, fourth_scale: 2.0, fourth_start: *b, third_residual: 0.0,
                third_costs: none, fourth_costs: none, inside: 50_000.0, outside: -50_000.0,
            })
            .collect();
        let refinement_terms = vec![RefinementTerms { scale: 1.0, start: 5 }; count];
        let tile = FullTile {
            codes: wide, stride, third, leading_codes, leading, bounds: &bounds, query_codes: wide_queries,
            terms: &wide_terms, refinement_codes: refinements, refinement_terms: &refinement_terms,
            queries: &numbers, places: &places,
        };
        let value = |i: usize, q: usize, r: usize| {
            let query = &wide_queries[q * stride..(q + 1) * stride];
            let refined = sum(leading_codes, r, &refinements[q * leading..(q + 1) * leading], 0..leading) + 5;
            let of_third = if third > 0 { sum(wide, r, query, 0..third) + terms[q].0 } else { 0 };
            7 * places[i] as i32 + refined + of_third + 2 * (sum(wide, r, query, third..stride) + terms[q].1)
        };
        for kernels in units() {
            let mut out = vec![crate::sketch::Decision::default(); numbers.len()];
            kernels.unit_full(&tile, &mut Workspace::default(), &values, &mut out);
            for (i, q) in numbers.iter().map(|q| *q as usize).enumerate() {
                let bits = |is: fn(i32) -> bool| (0..TILE).fold(0, |m, r| m | u64::from(is(value(i, q, r))) << r);
                prop_assert_eq!(out[i].inside, bits(|v| v >= 50_000), "{} query {}", kernels.name(), q);
                prop_assert_eq!(out[i].unsure, bits(|v| (-50_000..50_000).contains(&v)), "{}", kernels.name());
            }
        }
    }
}
