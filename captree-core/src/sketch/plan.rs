//! Widths of the levels, chosen for the rows at hand: a model of what counting costs, over a sample of the rows and of
//! caps like those of the published training mixture. Widths decide how fast answers come, not which.

use rayon::prelude::*;

use super::TILE;
use super::basis::dot;
use super::levels::{MAX_COLUMNS, REFINED, Widths};
use crate::element::Element;
use crate::error::Result;
use crate::rng::{Key, Purpose, Stream};

/// Widths that are tried for each level; a matrix unit reads the first two levels' columns together, 64 at a time.
const FIRST: [usize; 5] = [16, 32, 48, 64, 96];
const SECOND: [usize; 3] = [64, 128, 192];
const THIRD: [usize; 3] = [192, 256, 384];

/// All of these, in order.
const ENDS: [usize; 9] = [16, 32, 48, 64, 96, 128, 192, 256, 384];

/// Trees of fewer rows, or dims, are too small for a choice to matter.
const LEAST_ROWS: usize = 16 * 1024;

/// Trees of fewer rows are not worth a complete basis, which would take longer than all queries.
const FEW_ROWS: usize = 4096;

/// Leading columns that a choice for `n` rows of `dim` dims may ask for.
pub(super) fn most(n: usize, dim: usize) -> usize {
    if n < LEAST_ROWS { usual(n, dim).third } else { ENDS[ENDS.len() - 1].min(dim) }
}

/// Tiles of neighbors that the model looks at, few for small trees, whose build they would delay: between these
/// numbers, one of so many.
const TILES: std::ops::RangeInclusive<usize> = 24..=96;
const ONE_OF: usize = 128;

/// Caps that it looks at.
const CAPS: usize = 256;

/// Rows that the loops of the first two levels take together.
const PART: usize = 16;

/// Costs in 64-byte dot-product instructions per row, fitted to the times of trees with other widths: of the first
/// level's test, of the second one's, of the query's refinement, of a wide level's test, of what surrounds them; and
/// how many times as much some sixteen rows of a tile cost as in a tile where all are open, and a row alone as in such
/// a tile.
const FIRST_TEST: f64 = 0.2;
const SECOND_TEST: f64 = 0.7;
const REFINE: f64 = 1.25;
const WIDE_TEST: f64 = 1.0;
const WALK: f64 = 0.7;
const APART: f64 = 3.5;
const ALONE: f64 = 3.5;

/// What codes lose makes errors larger than what the columns leave over, by about this.
const CODED: f64 = 1.05;

/// Open rows of a tile from which all its rows together cost a wide level less than one by one.
pub(crate) const MANY_ROWS: u32 = 12;

/// Caps of fewer of the sample's rows are too narrow for draws to hit by chance.
const NARROW: usize = 4;

/// What each level would have to look at, for one cap and one tile: rows that as many leading columns as each width
/// says leave open.
#[derive(Clone, Copy, Default)]
struct Open {
    /// At the first level, which asks one question.
    first: [u64; ENDS.len()],
    later: [u64; ENDS.len()],
    /// Rows that lie inside, as far as the widest tells.
    inside: usize,
}

/// The cheapest widths for `n` rows of `dim` dims; `columns` are leading ones, in energy order, `dim` coordinates each.
pub(super) fn choose<'a, E: Element>(
    at: &impl Fn(usize) -> Result<&'a [E]>,
    (n, dim): (usize, usize),
    mean: &[f32],
    columns: &[f32],
    seed: u64,
) -> Result<Widths> {
    let usual = usual(n, dim);
    if n < LEAST_ROWS || dim <= SECOND[0] {
        return Ok(usual);
    }
    let looked_at = (n / TILE / ONE_OF).clamp(*TILES.start(), *TILES.end());
    let mut tiles = Vec::with_capacity(looked_at * TILE);
    for t in 0..looked_at {
        let start = t * (n / looked_at) / TILE * TILE;
        for p in start..start + TILE {
            let mut x = vec![0.0f32; dim];
            E::widen(at(p)?, &mut x);
            tiles.push(x);
        }
    }
    let ends: Vec<usize> = ENDS.into_iter().filter(|end| *end <= columns.len() / dim).collect();
    let rows: Vec<Projection> = tiles.par_iter().map(|x| Projection::new(x, mean, 1.0, columns, &ends)).collect();
    let mut stream = Key::new(Purpose::Sketch, seed, &[]).stream(2);
    let caps: Vec<(Vec<f32>, f64)> = (0..CAPS).map(|_| cap(&tiles, &mut stream)).collect();
    let open: Vec<Open> =
        caps.par_iter().flat_map_iter(|cap| opens(cap, mean, columns, &ends, &tiles, &rows)).collect();
    let place = |width: usize| ends.iter().position(|end| *end == width);
    let mut best = (f64::INFINITY, usual);
    for (first, second, third) in
        FIRST.into_iter().flat_map(|a| SECOND.map(|b| (a, b))).flat_map(|(a, b)| THIRD.map(|c| (a, b, c)))
    {
        let (Some(a), Some(b), Some(c)) = (place(first), place(second), place(third)) else { continue };
        if first < second && second < third {
            let widths = Widths { first, second, third, all: dim.min(MAX_COLUMNS) };
            let of_cap =
                |tiles: &[Open]| tiles.iter().map(|o| cost(widths, [o.first[a], o.later[b], o.later[c]])).sum::<f64>();
            let (mut all, mut narrow) = (0.0, 0.0);
            for tiles in open.chunks_exact(looked_at) {
                let cost = of_cap(tiles);
                all += cost;
                if tiles.iter().map(|o| o.inside).sum::<usize>() < NARROW {
                    narrow += cost;
                }
            }
            // Counting all caps, and listing the narrow ones for draws, matter alike.
            let cost = f64::ln(all) + f64::ln(1.0 + narrow);
            if cost < best.0 {
                best = (cost, widths);
            }
        }
    }
    Ok(best.1)
}

/// Widths without a look at the rows.
fn usual(n: usize, dim: usize) -> Widths {
    if n < FEW_ROWS {
        return Widths { first: dim.min(32), second: dim.min(64), third: dim.min(128), all: dim.min(128) };
    }
    Widths { first: dim.min(32), second: dim.min(128), third: dim.min(256), all: dim.min(MAX_COLUMNS) }
}

/// What settling a tile costs for one cap, given the rows that each of three levels leaves open.
fn cost(widths: Widths, [first, second, third]: [u64; 3]) -> f64 {
    let reads = |width: usize| width as f64 / 64.0;
    let parts = |open: u64| (0..TILE / PART).filter(|p| open >> (p * PART) & 0xffff != 0).count();
    let share = |open: u64| parts(open) as f64 / (TILE / PART) as f64;
    let times = if parts(first) * PART < TILE { APART } else { 1.0 };
    let wide = |open: u64, width: usize| {
        let (rows, each) = (open.count_ones() as usize, reads(width.next_multiple_of(64)) + WIDE_TEST);
        if rows < MANY_ROWS as usize { rows as f64 / TILE as f64 * ALONE * each } else { each }
    };
    WALK + reads(widths.first)
        + FIRST_TEST
        + share(first) * times * (reads(widths.second - widths.first) + SECOND_TEST)
        + REFINE * share(third)
        + wide(second, widths.third - widths.second)
        + wide(third, REFINED + widths.all - widths.third)
}

/// A vector's coordinates, and what leading columns leave of it.
struct Projection {
    z: Vec<f32>,
    residuals: Vec<f32>,
}

impl Projection {
    fn new(x: &[f32], mean: &[f32], along: f64, columns: &[f32], ends: &[usize]) -> Self {
        let rest: Vec<f32> = x.iter().zip(mean).map(|(x, m)| (f64::from(*x) - along * f64::from(*m)) as f32).collect();
        let most = ends.last().copied().unwrap_or(0);
        let z: Vec<f32> = columns.chunks_exact(x.len()).take(most).map(|c| dot(&rest, c) as f32).collect();
        let square = dot(&rest, &rest);
        let left = |end: &usize| (square - dot(&z[..*end], &z[..*end])).max(0.0).sqrt() as f32;
        let residuals = ends.iter().map(left).collect();
        Projection { z, residuals }
    }
}

/// A cap like those that generators are trained on: its center lies between two rows, its bound in most cases below 1.
fn cap(rows: &[Vec<f32>], stream: &mut Stream) -> (Vec<f32>, f64) {
    let pick = |stream: &mut Stream| &rows[stream.below(rows.len() as u64) as usize];
    let (a, b, t) = (pick(stream), pick(stream), stream.unit());
    // Interpolated along the sphere; nearly along the chord if the two are nearly the same.
    let angle = dot(a, b).clamp(-1.0, 1.0).acos().max(1e-3);
    let (wa, wb) = (((1.0 - t) * angle).sin(), (t * angle).sin());
    let mixed: Vec<f64> = a.iter().zip(b).map(|(a, b)| wa * f64::from(*a) + wb * f64::from(*b)).collect();
    let norm = mixed.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
    let bound = if stream.unit() < 0.95 { stream.unit() } else { 1.0 + stream.unit() };
    (mixed.iter().map(|x| (x / norm) as f32).collect(), bound)
}

/// Per tile, the rows that each width leaves open for a cap.
fn opens(
    (center, bound): &(Vec<f32>, f64),
    mean: &[f32],
    columns: &[f32],
    ends: &[usize],
    tiles: &[Vec<f32>],
    rows: &[Projection],
) -> Vec<Open> {
    let square = dot(mean, mean);
    let along = if square > 0.0 { dot(center, mean) / square } else { 0.0 };
    let query = Projection::new(center, mean, along, columns, ends);
    let each = tiles.chunks_exact(TILE).zip(rows.chunks_exact(TILE));
    each.map(|(tile, rows)| {
        let mut open = Open::default();
        let least = 1.0 - bound;
        for (r, (x, row)) in tile.iter().zip(rows).enumerate() {
            let shift = dot(x, mean) - square;
            let mut value = along * square + along * shift - least;
            let mut from = 0;
            for (e, end) in ends.iter().enumerate() {
                value += dot(&query.z[from..*end], &row.z[from..*end]);
                from = *end;
                let error = CODED * f64::from(query.residuals[e] * row.residuals[e]);
                // The answer that a row near the mean suggests.
                let suggested = if along * square < least { value } else { -value };
                open.first[e] |= u64::from(suggested >= -error) << r;
                open.later[e] |= u64::from(value.abs() <= error) << r;
            }
            open.inside += usize::from(value >= 0.0);
        }
        open
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Control;
    use crate::sketch::Basis;

    /// Widths for rows whose coordinates get smaller by a factor from one to the next.
    fn widths(factor: f64) -> Widths {
        let (n, dim) = (LEAST_ROWS, 256);
        let mut stream = Key::new(Purpose::Sketch, 5, &[]).stream(0);
        let mut rows = vec![0.0f32; n * dim];
        for x in rows.chunks_exact_mut(dim) {
            x.iter_mut().enumerate().for_each(|(k, v)| *v = ((stream.unit() - 0.5) * factor.powi(k as i32)) as f32);
            let norm = crate::vectors::norm(x) as f32;
            x.iter_mut().for_each(|v| *v /= norm);
        }
        Basis::train(&|p| Ok(&rows[p * dim..(p + 1) * dim]), (n, dim), 1, &Control::default()).unwrap().widths
    }

    #[test]
    fn rows_decide_the_widths() {
        let (steep, flat) = (widths(0.9), widths(1.0));
        for found in [steep, flat] {
            assert!(FIRST.contains(&found.first) && SECOND.contains(&found.second) && THIRD.contains(&found.third));
            assert!(found.first < found.second && found.second < found.third && found.all == 256);
        }
        // Nearly all of the steep rows' energy is in the first 32 columns: wide levels would only cost time.
        assert_eq!((steep.second, steep.third), (SECOND[0], THIRD[0]), "{steep:?}");
        assert!(flat.second > steep.second, "{flat:?} {steep:?}");
    }
}
