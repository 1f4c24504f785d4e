//! Attempts to break the certified inequality: adversarial rows, caps whose bound is the distance of a row, every level,
//! every instruction set. One violation is a wrong answer, so none is allowed.

mod terms;

use half::f16;
use proptest::prelude::*;

use super::kernel::{Decision, First, FirstTerms, IntKernels, WideRows, WideTest};
use super::levels::{Bounds, Steps};
use super::{Basis, QueryCodes, Settling, Sketch, TILE, Widths, fold};
use crate::caps::Caps;
use crate::control::Control;
use crate::exact;

/// Rows with what makes bounds tight or loose: a common direction, equal rows, one heavy coordinate, tiny ones, an outlier.
/// Of fewer than `most` dims.
fn rows(most: usize) -> impl Strategy<Value = (usize, Vec<f32>)> {
    (1..most, 1usize..200, any::<u64>(), 0usize..7).prop_map(|(dim, n, seed, kind)| {
        let mut state = seed | 1;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        };
        let mut out = Vec::with_capacity(n * dim);
        for r in 0..n {
            let mut x: Vec<f64> = (0..dim).map(|_| next()).collect();
            match kind {
                0 => x.iter_mut().enumerate().for_each(|(c, v)| *v = *v * 0.3 + if c % 3 == 0 { 1.0 } else { 0.0 }),
                1 if r > 0 && r % 2 == 0 => x = out[(r - 1) * dim..r * dim].iter().map(|v| f64::from(*v)).collect(),
                2 => x[r % dim] += 100.0 * (1.0 - 2.0 * (r % 2) as f64),
                3 => x.iter_mut().enumerate().for_each(|(c, v)| *v *= 0.5f64.powi(c as i32 % 40)),
                // One row far from all others, which lie close together.
                5 => x
                    .iter_mut()
                    .enumerate()
                    .for_each(|(c, v)| *v = *v * 0.01 + if c == 0 { if r == n / 2 { -1.0 } else { 1.0 } } else { 0.0 }),
                4 => x.iter_mut().for_each(|v| *v *= 1e-3 / (1.0 + v.abs() * 1e6)),
                _ => {}
            }
            let norm = x.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-30);
            // Rows that are off unit length as far as any dtype allows.
            let stretch = 1.0 + if r % 5 == 0 { 0.0155 * 2.0 * next() } else { 0.0 };
            out.extend(x.iter().map(|v| f16::from_f64(v / norm * stretch).to_f32()));
        }
        (dim, out)
    })
}

fn check(decision: Option<bool>, dot: f64, threshold: f64) -> Result<(), TestCaseError> {
    // `dot` is rounded to float64; what differs by that little is settled nowhere but in exact arithmetic.
    match decision {
        Some(true) => prop_assert!(dot >= threshold - 1e-15, "accepted {dot} below {threshold}"),
        Some(false) => prop_assert!(dot <= threshold + 1e-15, "rejected {dot} above {threshold}"),
        None => {}
    }
    Ok(())
}

fn bit(decision: &Decision, b: usize) -> Option<bool> {
    if decision.unsure >> b & 1 == 1 { None } else { Some(decision.inside >> b & 1 == 1) }
}

/// What a sketch is made with, good or bad: no bound may rely on it.
#[derive(Clone, Debug)]
struct Making {
    /// Columns of the first level, in groups of four, and what the others add.
    first: usize,
    more: [usize; 3],
    /// Factors of the steps that fit: small ones clip nearly every coordinate, 0 codes nothing, large ones are coarse.
    steps: [f32; 4],
    /// Noise on the columns, which leaves them only nearly orthonormal.
    bend: f32,
    /// Whether the mean is far from all rows instead of among them.
    is_far: bool,
}

fn making() -> impl Strategy<Value = Making> {
    let factor = || prop::sample::select(vec![1.0f32, 1.0, 0.7, 0.1, 0.001, 0.0, 5.0]);
    let widths = (1usize..30, [0usize..90, 0usize..90, 0usize..170]);
    let bend = prop::sample::select(vec![0.0f32, 1e-6, 1e-4]);
    (widths, [factor(), factor(), factor(), factor()], bend, any::<bool>())
        .prop_map(|((first, more), steps, bend, is_far)| Making { first: 4 * first, more, steps, bend, is_far })
}

impl Making {
    fn sketch(&self, dim: usize, rows: &[f32]) -> Sketch {
        let n = rows.len() / dim;
        let at = |p: usize| Ok(&rows[p * dim..(p + 1) * dim]);
        let control = Control::default();
        let first = self.first.min(dim);
        let mut end = first;
        let [second, third, all] = self.more.map(|more| {
            end = (end + more).min(dim);
            end
        });
        let widths = Widths { first, second, third, all };
        let mut basis = Basis::train_with(&at, (n, dim), third, |_, _| Ok(widths), 3, &control).unwrap();
        let mut state = 7u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1u32 << 24) as f32 - 0.5
        };
        let columns = basis.columns.iter().map(|c| c + self.bend * noise()).collect();
        let mean = if self.is_far { rows[..dim].iter().map(|x| -1.06 * x).collect() } else { basis.mean.clone() };
        basis = Basis::new(dim, widths, mean, columns, 0.0, 0.0);
        basis.skew = basis.measured_skew();
        let mut steps = super::encode::steps(&basis, &at, n).unwrap();
        let each = [&mut steps.first, &mut steps.second, &mut steps.third, &mut steps.fourth];
        for (step, factor) in each.into_iter().zip(self.steps) {
            *step = (*step * factor).min(0.99 * super::MAX_STEP);
        }
        Sketch::with(basis, steps, &at, n, &control).unwrap()
    }
}

/// Centers: rows, their negatives, and mixtures of two.
fn centers(dim: usize, rows: &[f32], start: usize) -> Option<Vec<f32>> {
    let n = rows.len() / dim;
    let mut centers: Vec<f32> = Vec::new();
    for i in 0..8 {
        let at = |p: usize| &rows[p % n * dim..(p % n + 1) * dim];
        let (a, b) = (at(start + i), at(start + 7 * i));
        let mix: Vec<f64> = a
            .iter()
            .zip(b)
            .map(|(a, b)| match i % 3 {
                0 => f64::from(*a),
                1 => -f64::from(*a),
                _ => f64::from(*a) + 0.7 * f64::from(*b),
            })
            .collect();
        let norm = mix.iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm <= 1e-3 {
            return None;
        }
        centers.extend(mix.iter().map(|x| (x / norm) as f32));
    }
    Some(centers)
}

/// Every level of every instruction set, with thresholds at, or next to, the dot product of some row: where a wrong bound
/// shows.
fn attack(
    sketch: &Sketch,
    (dim, rows): (usize, &[f32]),
    centers: &[f32],
    aim: impl Fn(usize) -> usize,
    nudge: f64,
) -> Result<(), TestCaseError> {
    let n = rows.len() / dim;
    let bounds = vec![1.0; 8];
    let caps = Caps::new(dim, centers, &bounds).unwrap();
    let active: Vec<usize> = (0..8).collect();
    let numbers: Vec<u32> = (0..8).collect();
    let exact: Vec<Vec<f64>> = active
        .iter()
        .map(|q| (0..n).map(|r| exact::dot(caps.center(*q), &rows[r * dim..(r + 1) * dim])).collect())
        .collect();
    for kernels in IntKernels::available() {
        let mut queries = QueryCodes::with(kernels, sketch, &caps, &active);
        for shift in [0.0, 1e-12, -1e-12, nudge, 10.0 * nudge, 100.0 * nudge] {
            let aims: Vec<f64> = active.iter().map(|q| exact[*q][aim(*q)] + shift).collect();
            aims.iter().enumerate().for_each(|(q, t)| queries.set_threshold(q, *t));
            let mut out = vec![Decision::default(); 8];
            let mut settling = Settling::default();
            for tile in 0..n.div_ceil(TILE) {
                queries.tiles(tile / TILE, &numbers, &mut out).unwrap();
                let whole: Vec<Option<bool>> = out.iter().map(|d| bit(d, tile % TILE)).collect();
                let levels = queries.first_and_second(tile, &numbers).unwrap();
                let valid = u64::MAX >> (64 - TILE.min(n - tile * TILE));
                queries.settle(tile, &numbers, valid, &mut settling, &mut out).unwrap();
                for r in tile * TILE..n.min((tile + 1) * TILE) {
                    for q in 0..8 {
                        check(whole[q], exact[q][r], aims[q])?;
                        for level in &levels {
                            check(bit(&level[q], r % TILE), exact[q][r], aims[q])?;
                        }
                        check(bit(&out[q], r % TILE), exact[q][r], aims[q])?;
                    }
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn no_level_ever_decides_wrongly(
        (dim, rows) in rows(90), pick in any::<prop::sample::Index>(), nudge in -1e-3f64..1e-3,
    ) {
        let n = rows.len() / dim;
        let at = |p: usize| Ok(&rows[p * dim..(p + 1) * dim]);
        let sketch = Sketch::build(&at, (n, dim), 3, &Control::default()).unwrap();
        let centers = centers(dim, &rows, pick.index(n));
        prop_assume!(centers.is_some());
        attack(&sketch, (dim, &rows), &centers.unwrap(), |_| pick.index(n), nudge)?;
    }

    #[test]
    fn bad_sketches_decide_less_but_never_wrongly(
        (dim, rows) in rows(170), making in making(), pick in any::<prop::sample::Index>(), nudge in -1e-3f64..1e-3,
    ) {
        let n = rows.len() / dim;
        let sketch = making.sketch(dim, &rows);
        let each: Vec<&[f32]> = rows.chunks_exact(dim).collect();
        for (tile, rows) in each.chunks(TILE).enumerate() {
            prop_assert_eq!(sketch.tile_fault(tile, rows).unwrap(), None);
        }
        let centers = centers(dim, &rows, pick.index(n));
        prop_assume!(centers.is_some());
        attack(&sketch, (dim, &rows), &centers.unwrap(), |q| (pick.index(n) + q / 2) % n, nudge)?;
    }

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
        codes in prop::collection::vec(any::<u8>(), TILE * 12), folded in prop::collection::vec(any::<[i16; 2]>(), TILE),
        queries in prop::collection::vec((prop::collection::vec(-127i8..=127, 12), any::<[i16; 2]>(), 0usize..TILE), 1..10),
    ) {
        let alone = |r: usize, query: &[i8]| {
            let products = (0..12).map(|k| i32::from(codes[(k / 4 * TILE + r) * 4 + k % 4]) * i32::from(query[k]));
            products.sum::<i32>()
        };
        let sum = |r: usize, (query, [a, b], _): &(Vec<i8>, [i16; 2], usize)| {
            let pairs = i32::from(*a).wrapping_mul(i32::from(folded[r][0]));
            alone(r, query).wrapping_add(pairs).wrapping_add(i32::from(*b).wrapping_mul(i32::from(folded[r][1])))
        };
        let pairs: Vec<f32> = folded.iter().map(|p| f32::from_bits(fold::pair(*p))).collect();
        // The threshold is a row's sum, or what float32 makes of it.
        let terms: Vec<FirstTerms> = queries
            .iter()
            .map(|q| {
                let least = sum(q.2, q) as f32;
                FirstTerms { start: 0, pair: fold::pair(q.1), least, lost: 0.0, length: 0.0, inside: 0 }
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

#[test]
fn sums_of_the_widest_second_level_are_right() {
    // The widest second level, all codes at their ends.
    let (dim, first) = (512, 508);
    let mut row = vec![1.0 / (first as f32).sqrt(); dim];
    row[first..].fill(1e-6);
    let rows = [row.clone(), row.iter().map(|x| -x).collect()].concat();
    let at = |p: usize| Ok(&rows[p * dim..(p + 1) * dim]);
    let columns = (0..dim * dim).map(|i| if i % (dim + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let widths = Widths { first, second: dim, third: dim, all: dim };
    let basis = Basis::new(dim, widths, vec![0.0; dim], columns, 1e-9, 0.0);
    let steps = Steps { first: row[0] / 127.0, second: 1e-6 / 127.0, third: 0.0, fourth: 0.0 };
    let sketch = Sketch::with(basis, steps, &at, 2, &Control::default()).unwrap();
    let caps = Caps::new(dim, &row, &[0.0]).unwrap();
    for kernels in IntKernels::available() {
        let mut queries = QueryCodes::with(kernels, &sketch, &caps, &[0]);
        for threshold in [-0.97, 0.0, 0.97] {
            queries.set_threshold(0, threshold);
            let levels = queries.first_and_second(0, &[0]).unwrap();
            let decided: Vec<Option<bool>> = (0..2).map(|r| bit(&levels[1][0], r)).collect();
            assert_eq!(decided, [Some(true), Some(false)], "{} {threshold}", kernels.name());
        }
    }
}

#[test]
fn sketches_decide_most_rows() {
    // Bounds that decide nothing would pass every test above.
    let (dim, n) = (48, 4096);
    let mut stream = crate::rng::Key::new(crate::rng::Purpose::Sketch, 9, &[]).stream(0);
    let mut rows = vec![0.0f32; n * dim];
    for x in rows.chunks_exact_mut(dim) {
        x.iter_mut().for_each(|v| *v = (stream.unit() - 0.5) as f32);
        let norm = crate::vectors::norm(x) as f32;
        x.iter_mut().for_each(|v| *v /= norm);
    }
    let at = |p: usize| Ok(&rows[p * dim..(p + 1) * dim]);
    let sketch = Sketch::build(&at, (n, dim), 3, &Control::default()).unwrap();
    let bounds = [0.9];
    let caps = Caps::new(dim, &rows[..dim], &bounds).unwrap();
    let queries = QueryCodes::new(&sketch, &caps, &[0]);
    let mut unsure = [0; 2];
    let mut settling = Settling::default();
    for tile in 0..n / TILE {
        unsure[0] += queries.first_and_second(tile, &[0]).unwrap()[1][0].unsure.count_ones();
        let mut out = [Decision::default()];
        queries.settle(tile, &[0], u64::MAX, &mut settling, &mut out).unwrap();
        unsure[1] += out[0].unsure.count_ones();
    }
    assert!(unsure[0] < n as u32 / 10 && unsure[1] < n as u32 / 50, "{unsure:?} of {n}");
}
