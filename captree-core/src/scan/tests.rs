//! Attempts to break the certified inequality: adversarial rows, caps whose bound is the distance of a row, every
//! level, every instruction set. One violation is a wrong answer, so none is allowed.

mod terms;

use half::f16;
use proptest::prelude::*;

use super::{Levels, tiles};
use crate::caps::Caps;
use crate::control::Control;
use crate::exact;
use crate::sketch::kernel::{Decision, IntKernels, OpenRows, Quarters, Workspace};
use crate::sketch::levels::Steps;
use crate::sketch::{Basis, MAX_STEP, QueryCodes, Sketch, TILE, Widths};

/// Rows with what makes bounds tight or loose: a common direction, equal rows, one heavy coordinate, tiny ones, an
/// outlier. Of fewer than `most` dims.
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
    /// Whether the second level ends where a matrix unit wants it, if there are so many dims.
    is_rounded: bool,
    /// Factors of the steps that fit: small ones clip nearly every coordinate, 0 codes nothing, large ones are coarse.
    steps: [f32; 4],
    /// Noise on the columns, which leaves them only nearly orthonormal.
    bend: f32,
    /// Whether the mean is far from all rows instead of among them.
    is_far: bool,
}

fn making() -> impl Strategy<Value = Making> {
    let factor = || prop::sample::select(vec![1.0f32, 1.0, 0.7, 0.1, 0.001, 0.0, 5.0]);
    let widths = (1usize..30, [0usize..90, 0usize..90, 0usize..170], any::<bool>());
    let bend = prop::sample::select(vec![0.0f32, 1e-6, 1e-4]);
    (widths, [factor(), factor(), factor(), factor()], bend, any::<bool>()).prop_map(
        |((first, more, is_rounded), steps, bend, is_far)| Making {
            first: 4 * first,
            more,
            is_rounded,
            steps,
            bend,
            is_far,
        },
    )
}

impl Making {
    fn sketch(&self, dim: usize, rows: &[f32]) -> Sketch {
        let n = rows.len() / dim;
        let at = |p: usize| Ok(&rows[p * dim..(p + 1) * dim]);
        let control = Control::default();
        let first = self.first.min(dim);
        let mut end = first;
        let rounded = (first + self.more[0]).next_multiple_of(64);
        let [second, third, all] = self.more.map(|more| {
            end = (end + more).min(dim);
            if self.is_rounded && rounded <= dim {
                end = end.max(rounded);
            }
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
        let mut steps = crate::sketch::steps(&basis, &at, n).unwrap();
        let each = [&mut steps.first, &mut steps.second, &mut steps.third, &mut steps.fourth];
        for (step, factor) in each.into_iter().zip(self.steps) {
            *step = (*step * factor).min(0.99 * MAX_STEP);
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

/// What the first and the second level say of a tile's rows, each alone.
fn first_and_second(codes: &QueryCodes<'_>, tile: usize, queries: &[u32]) -> [Vec<Decision>; 2] {
    let (rows, count) = (codes.rows(tile).unwrap(), queries.len());
    let (mut masks, mut sums, mut values) = (vec![0; count], vec![[0; TILE]; count], vec![[0.0; TILE]; count]);
    let (kernels, mut pairs) = (codes.kernels(), [0; TILE]);
    if codes.unit_split().is_some() {
        codes.pairs(&rows, &mut pairs);
        let joint = codes.joint(&rows, &pairs);
        kernels.unit_first(&joint, queries, None, &mut Workspace::default(), &mut masks, &mut sums);
    } else {
        kernels.first(&codes.first(&rows), queries, &mut masks, &mut sums);
    }
    let decision = |(query, open): (&u32, &u64)| Decision { inside: !open & codes.first_inside(*query), unsure: *open };
    let first = queries.iter().zip(&masks).map(decision).collect();
    masks.fill(u64::MAX);
    let places: Vec<usize> = (0..count).collect();
    let open = OpenRows { queries, masks: &masks, places: &places, sums: &sums };
    let mut second = vec![Decision::default(); count];
    if codes.unit_split().is_some() {
        kernels.unit_second(&rows, &open, &mut second, &mut values);
    } else {
        kernels.second(&rows, &open, &mut second, &mut values, &mut Quarters::default());
    }
    [first, second]
}

/// Every level of every instruction set, with thresholds at, or next to, the dot product of some row: where a wrong
/// bound shows.
fn attack(
    sketch: &Sketch,
    (dim, rows): (usize, &[f32]),
    centers: &[f32],
    row_of: impl Fn(usize) -> usize,
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
    for kernels in IntKernels::tested() {
        let mut queries = QueryCodes::with(kernels, sketch, &caps, &active);
        for shift in [0.0, 1e-12, -1e-12, nudge, 10.0 * nudge, 100.0 * nudge] {
            let thresholds: Vec<f64> = active.iter().map(|q| exact[*q][row_of(*q)] + shift).collect();
            thresholds.iter().enumerate().for_each(|(q, t)| queries.set_threshold(q, *t));
            let mut out = vec![Decision::default(); 8];
            let levels = Levels::new(());
            let mut levels = if shift > 0.0 { levels.eager() } else { levels };
            for tile in 0..n.div_ceil(TILE) {
                tiles::decide(&queries, tile / TILE, &numbers, (), &mut out).unwrap();
                let whole: Vec<Option<bool>> = out.iter().map(|d| bit(d, tile % TILE)).collect();
                let alone = first_and_second(&queries, tile, &numbers);
                let valid = u64::MAX >> (64 - TILE.min(n - tile * TILE));
                levels.decide(&queries, tile, &numbers, valid, &mut out).unwrap();
                for r in tile * TILE..n.min((tile + 1) * TILE) {
                    for q in 0..8 {
                        check(whole[q], exact[q][r], thresholds[q])?;
                        for level in &alone {
                            check(bit(&level[q], r % TILE), exact[q][r], thresholds[q])?;
                        }
                        check(bit(&out[q], r % TILE), exact[q][r], thresholds[q])?;
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
    for kernels in IntKernels::tested() {
        let mut queries = QueryCodes::with(kernels, &sketch, &caps, &[0]);
        for threshold in [-0.97, 0.0, 0.97] {
            queries.set_threshold(0, threshold);
            let levels = first_and_second(&queries, 0, &[0]);
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
    let mut levels = Levels::new(());
    for tile in 0..n / TILE {
        unsure[0] += first_and_second(&queries, tile, &[0])[1][0].unsure.count_ones();
        let mut out = [Decision::default()];
        levels.decide(&queries, tile, &[0], u64::MAX, &mut out).unwrap();
        unsure[1] += out[0].unsure.count_ones();
    }
    assert!(unsure[0] < n as u32 / 10 && unsure[1] < n as u32 / 50, "{unsure:?} of {n}");
}
