//! Spherical k-means (Dhillon and Modha, *Concept decompositions for large sparse text data*, 2001) on a sample, and
//! the assignment of all rows.

use rayon::prelude::*;

use crate::control::Control;
use crate::distance::{Kernels, TILE};
use crate::element::Element;
use crate::error::Result;
use crate::rng::{Key, Purpose};
use crate::store::Array;
use crate::vectors::row;

/// Rows in the training sample per child.
const SAMPLE_PER_CHILD: usize = 256;
/// Most passes over the training sample; the assignment rarely changes much after these.
const PASSES: usize = 8;
/// Rows one task handles. Partial sums are added in the tasks' order, so threads never change the result.
pub(super) const CHUNK: usize = 2048;

/// Rows of a store, by number.
pub(super) struct Source<'a, E: Element> {
    pub array: &'a Array<E>,
    pub dim: usize,
    pub control: &'a Control,
}

impl<E: Element> Source<'_, E> {
    /// Calls `each(first, dots)` for tiles of `rows`: `dots[c * tile + r]` with every center.
    pub fn tiles(
        &self,
        rows: &[u32],
        centers: &[&[f32]],
        mut each: impl FnMut(usize, usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let mut out = vec![0.0f32; TILE * centers.len()];
        for (t, tile) in rows.chunks(TILE).enumerate() {
            let slices = tile.iter().map(|r| row(self.array, *r as usize, self.dim)).collect::<Result<Vec<_>>>()?;
            let out = &mut out[..tile.len() * centers.len()];
            Kernels::get().dots(&slices, centers, out);
            each(t * TILE, tile.len(), out)?;
        }
        Ok(())
    }

    /// Label (the most similar center, the first of equals) of every row.
    fn labels(&self, rows: &[u32], centers: &[f32]) -> Result<Vec<u16>> {
        let centers: Vec<&[f32]> = centers.chunks_exact(self.dim).collect();
        let mut labels = vec![0u16; rows.len()];
        labels.par_chunks_mut(CHUNK).zip(rows.par_chunks(CHUNK)).try_for_each(|(labels, rows)| {
            self.control.check()?;
            self.tiles(rows, &centers, |first, count, dots| {
                let labels = &mut labels[first..first + count];
                let (start, rest) = dots.split_at(count);
                let mut best = [0.0f32; TILE];
                best[..count].copy_from_slice(start);
                for (c, dots) in rest.chunks_exact(count).enumerate() {
                    for r in 0..count {
                        if dots[r] > best[r] {
                            best[r] = dots[r];
                            labels[r] = (c + 1) as u16;
                        }
                    }
                }
                Ok(())
            })
        })?;
        Ok(labels)
    }

    /// Sums of the rows of each label, and their numbers.
    pub fn sums(&self, rows: &[u32], label: impl Fn(usize) -> usize + Sync, k: usize) -> Result<(Vec<f64>, Vec<u64>)> {
        let d = self.dim;
        let parts: Vec<(Vec<f64>, Vec<u64>)> = rows
            .par_chunks(CHUNK)
            .enumerate()
            .map(|(chunk, rows)| {
                self.control.check()?;
                let (mut sums, mut counts) = (vec![0.0f64; k * d], vec![0u64; k]);
                let mut wide = vec![0.0f32; d];
                for (i, r) in rows.iter().enumerate() {
                    let c = label(chunk * CHUNK + i);
                    E::widen(row(self.array, *r as usize, d)?, &mut wide);
                    sums[c * d..(c + 1) * d].iter_mut().zip(&wide).for_each(|(s, x)| *s += f64::from(*x));
                    counts[c] += 1;
                }
                Ok((sums, counts))
            })
            .collect::<Result<_>>()?;
        let (mut sums, mut counts) = (vec![0.0f64; k * d], vec![0u64; k]);
        for (s, c) in parts {
            sums.iter_mut().zip(s).for_each(|(a, b)| *a += b);
            counts.iter_mut().zip(c).for_each(|(a, b)| *a += b);
        }
        Ok((sums, counts))
    }

    /// Trains `k` centers on a sample of `rows` and labels all of them.
    pub fn cluster(&self, rows: &[u32], k: usize, seed: u64) -> Result<Vec<u16>> {
        let d = self.dim;
        let first = rows.first().map_or(0, |r| *r);
        let mut random = Key::new(Purpose::KMeans, seed, &[&first.to_le_bytes(), &(rows.len() as u64).to_le_bytes()]);
        let sample = spread(rows, k * SAMPLE_PER_CHILD, &mut random);
        let mut centers = vec![0.0f32; k * d];
        for (c, r) in spread(&sample, k, &mut random).iter().enumerate() {
            E::widen(row(self.array, *r as usize, d)?, &mut centers[c * d..(c + 1) * d]);
        }
        let mut before = Vec::new();
        for pass in 0..PASSES {
            let labels = self.labels(&sample, &centers)?;
            if labels == before {
                break;
            }
            let (sums, counts) = self.sums(&sample, |i| usize::from(labels[i]), k)?;
            let mut reseed = random.stream(1000 + pass as u64);
            for c in 0..k {
                let center = &mut centers[c * d..(c + 1) * d];
                if counts[c] == 0 || !normalize(&sums[c * d..(c + 1) * d], center) {
                    let r = sample[reseed.below(sample.len() as u64) as usize];
                    E::widen(row(self.array, r as usize, d)?, center);
                }
            }
            before = labels;
        }
        self.labels(rows, &centers)
    }
}

/// One row from each of `count` equal stretches of `rows`: distinct, and spread over inputs that come sorted.
fn spread(rows: &[u32], count: usize, random: &mut Key) -> Vec<u32> {
    if rows.len() <= count {
        return rows.to_vec();
    }
    let mut stream = random.stream(count as u64);
    let at = |i: usize| (i as u128 * rows.len() as u128 / count as u128) as usize;
    (0..count).map(|i| rows[at(i) + stream.below((at(i + 1) - at(i)) as u64) as usize]).collect()
}

/// Writes the direction of `sum` as float32; false if it has none.
pub(super) fn normalize(sum: &[f64], out: &mut [f32]) -> bool {
    let norm = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    // Sums of unit rows: anything this small is what rounding leaves of rows that cancel.
    if norm < 1e-9 {
        return false;
    }
    out.iter_mut().zip(sum).for_each(|(o, x)| *o = (x / norm) as f32);
    true
}
