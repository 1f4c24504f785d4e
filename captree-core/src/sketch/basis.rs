//! The basis: orthonormal directions, first those that hold most of the rows' energy around their mean.

use rayon::prelude::*;

use crate::control::Control;
use crate::distance::{Kernels, f32_error};
use crate::element::Element;
use crate::error::Result;
use crate::rng::{Key, Purpose, Stream};
use crate::vectors::norm;

use super::levels::Widths;
use super::plan;

/// Rows that mean and basis are trained on.
const SAMPLE: usize = 8192;

/// Passes of the subspace iteration. The basis only has to be good: no bound relies on it.
const PASSES: usize = 5;

/// A mean shorter than this is not worth a term.
const SHORTEST_MEAN: f64 = 0.05;

/// Dims of a vector that are summed in float32: the sums of such pieces are added in float64.
const PIECE: usize = 256;

/// Mean and basis, with what their bounds need.
pub(crate) struct Basis {
    pub dim: usize,
    pub widths: Widths,
    /// `dim` coordinates; zero if the rows have no common direction.
    pub mean: Vec<f32>,
    /// |mean|^2.
    pub mean_square: f64,
    /// `widths.all` columns of `dim` coordinates each.
    pub columns: Vec<f32>,
    /// `<column, mean>` of each column.
    pub offsets: Vec<f64>,
    /// At least the norm of `W^T x - (its float32 value)` for a row or center `x`.
    pub projection_error: f64,
    /// At least the norm of `W^T W - 1`.
    pub skew: f64,
}

impl Basis {
    /// Trains on a sample of the rows, with widths that fit them.
    pub fn train<'a, E: Element>(
        at: &impl Fn(usize) -> Result<&'a [E]>,
        shape: (usize, usize),
        seed: u64,
        control: &Control,
    ) -> Result<Self> {
        let choose = |mean: &[f32], columns: &[f32]| plan::choose(at, shape, mean, columns, seed);
        Basis::train_with(at, shape, plan::most(shape.0, shape.1), choose, seed, control)
    }

    /// The same with widths that `choose` gives for a mean and the leading columns, `most` of them.
    pub fn train_with<'a, E: Element>(
        at: &impl Fn(usize) -> Result<&'a [E]>,
        (n, dim): (usize, usize),
        most: usize,
        choose: impl Fn(&[f32], &[f32]) -> Result<Widths>,
        seed: u64,
        control: &Control,
    ) -> Result<Self> {
        let count = n.min(SAMPLE);
        let mut stream = Key::new(Purpose::Sketch, seed, &[]).stream(0);
        let mut sample = vec![0.0f32; count * dim];
        for (i, out) in sample.chunks_exact_mut(dim).enumerate() {
            // One row from each of `count` stretches: spread over the whole tree.
            let (from, to) = (i * n / count, (i + 1) * n / count);
            E::widen(at(from + stream.below((to - from) as u64) as usize)?, out);
        }
        let mut mean = vec![0.0f64; dim];
        for x in sample.chunks_exact(dim) {
            mean.iter_mut().zip(x).for_each(|(m, x)| *m += f64::from(*x) / count as f64);
        }
        let keep = mean.iter().map(|m| m * m).sum::<f64>().sqrt() >= SHORTEST_MEAN;
        let mean: Vec<f32> = mean.iter().map(|m| if keep { *m as f32 } else { 0.0 }).collect();
        let mean_square = norm(&mean).powi(2);
        // What the mean's term accounts for is left out of the basis.
        for x in sample.chunks_exact_mut(dim) {
            let along = if keep { dot(x, &mean) / mean_square } else { 0.0 };
            x.iter_mut().zip(&mean).for_each(|(x, m)| *x = (f64::from(*x) - along * f64::from(*m)) as f32);
        }
        let mut stream = stream_of(seed);
        let leading = subspace(&sample, dim, most, &mut stream, control)?;
        let widths = choose(&mean, &leading.iter().map(|x| *x as f32).collect::<Vec<f32>>())?;
        let columns = complete(&leading, dim, widths, &mut stream);
        let skew = skew(&columns, dim);
        Ok(Basis::new(dim, widths, mean, columns, skew, 0.0))
    }

    /// From what a tree stores. `skew` is at least the norm of `W^T W - 1`; `projection_error` that of the writer of
    /// the tree, whose kernels may have been less accurate than today's.
    pub fn new(
        dim: usize,
        widths: Widths,
        mean: Vec<f32>,
        columns: Vec<f32>,
        skew: f64,
        projection_error: f64,
    ) -> Self {
        // All pieces together are off by no more than one piece of a whole vector's length could be
        // (docs/exactness.md). Each coordinate is rounded to float32 once more, from at most 2.2.
        let error = (widths.all as f64).sqrt() * (f32_error(dim.min(PIECE)) + 2e-7);
        Basis {
            dim,
            widths,
            mean_square: norm(&mean).powi(2),
            offsets: columns.chunks_exact(dim).map(|c| dot(c, &mean)).collect(),
            projection_error: projection_error.max(error),
            skew,
            mean,
            columns,
        }
    }

    /// Whether the mean is one that training gives: the slack of the bounds counts on `lambda` being of moderate size.
    pub fn has_valid_mean(&self) -> bool {
        self.mean_square == 0.0 || (0.9 * SHORTEST_MEAN..=1.1).contains(&self.mean_square.sqrt())
    }

    /// How far the columns are from orthonormal.
    pub fn measured_skew(&self) -> f64 {
        skew(&self.columns, self.dim)
    }

    /// At least the norm `|t|` of what the projection `z` on the first `z.len()` columns leaves over, given the square
    /// of the length of what was projected. (The projection error and the skew of some columns are at most those of
    /// all.)
    ///
    /// `|t|^2 = |x - mu|^2 - 2 <W^T (x - mu), z> + |W z|^2`, where `W^T (x - mu)` is `z` but for the projection's error
    /// and `|W z|^2 <= (1 + skew) |z|^2`.
    pub fn residual(&self, square: f64, z: &[f32]) -> f64 {
        let z_square: f64 = z.iter().map(|z| f64::from(*z) * f64::from(*z)).sum();
        let rest = square - z_square + 2.0 * self.projection_error * z_square.sqrt() + self.skew * z_square;
        // Room for the rounding of these sums.
        (rest + 1e-9).max(0.0).sqrt()
    }

    /// Bound on `|<W a, W z> - <a, z> + <W a, t> + <p, W z>|`, given the length of `a` and a bound on `|x - mu|`.
    ///
    /// The sum is `<a, e> + <z, f> + <a, (1 - W^T W) z>`, where `e` and `f` are what the projections `z` and `a` are
    /// off by, and `z` is no longer than `sqrt(1 + skew) |x - mu|` plus its error.
    pub fn defect(&self, a: f64, farthest: f64) -> f64 {
        let (error, skew) = (self.projection_error, self.skew);
        let z = farthest * (1.0 + skew) + error;
        a * error + z * (error + skew * a)
    }

    /// Writes the projections `W^T (x - along mu)` of vectors, one number per column each.
    pub fn project(&self, vectors: &[&[f32]], along: impl Fn(usize) -> f64, out: &mut [f32]) {
        let (all, count) = (self.widths.all, vectors.len());
        let mut sums = vec![0.0f64; count * all];
        let mut dots = vec![0.0f32; count * all];
        for from in (0..self.dim).step_by(PIECE) {
            let piece = from..(from + PIECE).min(self.dim);
            let columns: Vec<&[f32]> = self.columns.chunks_exact(self.dim).map(|c| &c[piece.clone()]).collect();
            let pieces: Vec<&[f32]> = vectors.iter().map(|x| &x[piece.clone()]).collect();
            Kernels::get().dots(&pieces, &columns, &mut dots);
            sums.iter_mut().zip(&dots).for_each(|(s, x)| *s += f64::from(*x));
        }
        for (v, out) in out.chunks_exact_mut(all).enumerate() {
            let along = along(v);
            for (c, out) in out.iter_mut().enumerate() {
                *out = (sums[c * count + v] - along * self.offsets[c]) as f32;
            }
        }
    }
}

fn stream_of(seed: u64) -> Stream {
    Key::new(Purpose::Sketch, seed, &[]).stream(1)
}

/// Float64 dot product, in lanes that a compiler can keep in registers.
fn wide_dot(a: &[f64], b: &[f64]) -> f64 {
    let (mut sums, rest) = ([0.0; 8], a.len() - a.len() % 8);
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(s, (a, b))| *s += a * b);
    }
    let tail: f64 = a[rest..].iter().zip(&b[rest..]).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + tail
}

/// Float64 dot product of float32 vectors.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let (mut sums, rest) = ([0.0f64; 8], a.len() - a.len() % 8);
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(s, (a, b))| *s += f64::from(*a) * f64::from(*b));
    }
    let tail: f64 = a[rest..].iter().zip(&b[rest..]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    sums.iter().sum::<f64>() + tail
}

/// At least the norm of `W^T W - 1`.
fn skew(columns: &[f32], dim: usize) -> f64 {
    let each: Vec<&[f32]> = columns.chunks_exact(dim).collect();
    let rows: Vec<f64> = each
        .par_iter()
        .enumerate()
        .map(|(i, a)| {
            let off: f64 = each[..i].iter().map(|b| dot(a, b).powi(2)).sum();
            2.0 * off + (dot(a, a) - 1.0).powi(2)
        })
        .collect();
    // The Frobenius norm bounds the spectral one; the float64 sums are off by far less than 1e-9.
    rows.iter().sum::<f64>().sqrt() + 1e-9
}

/// Orthonormal columns that span nearly the top of the sample's spectrum, in energy order (subspace iteration: Halko,
/// Martinsson and Tropp, *Finding structure with randomness*, 2011).
fn subspace(sample: &[f32], dim: usize, width: usize, stream: &mut Stream, control: &Control) -> Result<Vec<f64>> {
    let count = sample.len() / dim;
    let mut turned = vec![0.0f32; sample.len()];
    for (r, x) in sample.chunks_exact(dim).enumerate() {
        x.iter().enumerate().for_each(|(c, v)| turned[c * count + r] = *v);
    }
    let mut columns: Vec<f64> = (0..width * dim).map(|_| stream.unit() - 0.5).collect();
    orthonormalize(&mut columns, dim, stream);
    for _ in 0..PASSES {
        control.check()?;
        let single: Vec<f32> = columns.iter().map(|x| *x as f32).collect();
        let scores = products(sample, &single, dim);
        columns = products(&turned, &scores, count).iter().map(|x| f64::from(*x)).collect();
        orthonormalize(&mut columns, dim, stream);
    }
    Ok(columns)
}

/// A whole basis from its leading columns: those of a level are turned at random among themselves, since codes of equal
/// step are tightest where no coordinate dominates; behind the third level's, any columns complete it.
fn complete(leading: &[f64], dim: usize, widths: Widths, stream: &mut Stream) -> Vec<f32> {
    let width = widths.third;
    let mut out = vec![0.0f64; width * dim];
    for part in [0..widths.first, widths.first..widths.second, widths.second..width] {
        let mut turn: Vec<f64> = (0..part.len() * part.len()).map(|_| normal(stream)).collect();
        orthonormalize(&mut turn, part.len(), stream);
        let turned = &mut out[part.start * dim..part.end * dim];
        for (turn, out) in turn.chunks_exact(part.len().max(1)).zip(turned.chunks_exact_mut(dim)) {
            for (t, column) in turn.iter().zip(leading[part.start * dim..part.end * dim].chunks_exact(dim)) {
                out.iter_mut().zip(column).for_each(|(o, c)| *o += t * c);
            }
        }
    }
    let others = complement(out.clone(), dim, widths.all - width);
    out.iter().chain(&others).map(|x| *x as f32).collect()
}

/// `count` more orthonormal columns, orthogonal to the given ones: the Householder reflections that take the given
/// columns to the first axes, the other way round, take the other axes to such columns (Golub and Van Loan, *Matrix
/// Computations*, section 5.2).
fn complement(mut columns: Vec<f64>, dim: usize, count: usize) -> Vec<f64> {
    let width = columns.len() / dim;
    for i in 0..width {
        let (before, rest) = columns.split_at_mut(i * dim);
        let column = &mut rest[..dim];
        before.chunks_exact(dim).for_each(|normal| reflect(normal, column));
        // The column becomes the reflection's unit normal.
        column[..i].fill(0.0);
        let length = column.iter().map(|x| x * x).sum::<f64>().sqrt();
        column[i] += length.copysign(column[i]);
        let length = column.iter().map(|x| x * x).sum::<f64>().sqrt();
        column.iter_mut().for_each(|x| *x /= length);
    }
    let mut out = vec![0.0; count * dim];
    out.par_chunks_exact_mut(dim).enumerate().for_each(|(i, axis)| {
        axis[width + i] = 1.0;
        columns.chunks_exact(dim).rev().for_each(|normal| reflect(normal, axis));
    });
    out
}

/// Reflects `x` at the plane with a unit normal.
fn reflect(normal: &[f64], x: &mut [f64]) {
    let twice = 2.0 * wide_dot(normal, x);
    x.iter_mut().zip(normal).for_each(|(x, n)| *x -= twice * n);
}

/// A normal number (Box and Muller).
fn normal(stream: &mut Stream) -> f64 {
    let radius = (-2.0 * (1.0 - stream.unit()).ln()).sqrt();
    radius * (std::f64::consts::TAU * stream.unit()).cos()
}

/// All dot products: `out[c * rows + r]`.
fn products(rows: &[f32], columns: &[f32], dim: usize) -> Vec<f32> {
    let rows: Vec<&[f32]> = rows.chunks_exact(dim).collect();
    let mut out = vec![0.0f32; rows.len() * (columns.len() / dim)];
    out.par_chunks_mut(rows.len() * 4).zip(columns.par_chunks(dim * 4)).for_each(|(out, columns)| {
        let columns: Vec<&[f32]> = columns.chunks_exact(dim).collect();
        Kernels::get().dots(&rows, &columns, out);
    });
    out
}

/// Gram-Schmidt, each vector twice; a vector that vanishes is replaced by a random one.
fn orthonormalize(vectors: &mut [f64], dim: usize, stream: &mut Stream) {
    for i in 0..vectors.len() / dim.max(1) {
        let (before, rest) = vectors.split_at_mut(i * dim);
        let column = &mut rest[..dim];
        loop {
            let start = column.iter().map(|x| x * x).sum::<f64>().sqrt();
            for _ in 0..2 {
                for other in before.chunks_exact(dim) {
                    let along = wide_dot(column, other);
                    column.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
                }
            }
            let left = column.iter().map(|x| x * x).sum::<f64>().sqrt();
            if left > 1e-6 * start {
                column.iter_mut().for_each(|x| *x /= left);
                break;
            }
            column.iter_mut().for_each(|x| *x = stream.unit() - 0.5);
        }
    }
}
