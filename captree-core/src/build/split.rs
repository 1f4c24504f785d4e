//! The recursive split: which rows lie in which node, and each node's center and bound.

use rayon::prelude::*;

use super::Rows;
use super::kmeans::{CHUNK, Source, normalize};
use crate::control::Control;
use crate::distance::{Kernels, f32_error};
use crate::element::Element;
use crate::error::Result;
use crate::exact;
use crate::store::Array;
use crate::tree::{NodeRecord, Params};
use crate::vectors::{row, with_elements};

/// A split whose largest child keeps more than this share of the rows is no progress: cut evenly instead.
const LARGEST_SHARE: f64 = 0.9;

/// The shape of a tree: nodes in breadth-first order, and the rows in tree order.
pub(crate) struct Layout {
    pub nodes: Vec<NodeRecord>,
    pub centers: Vec<f32>,
    pub order: Vec<u32>,
}

/// Splits `rows`. Errors: [`Interrupted`](crate::Error::Interrupted).
pub(crate) fn layout(rows: &Rows, params: &Params, control: &Control) -> Result<Layout> {
    with_elements!(&rows.vectors, array => split_all(array, rows.dim, params, control))
}

fn split_all<E: Element>(array: &Array<E>, dim: usize, params: &Params, control: &Control) -> Result<Layout> {
    let n = array.len() / dim;
    let source = Source { array, dim, control };
    let mut order: Vec<u32> = (0..n as u32).collect();
    control.phase("root", n as u64);
    let (center, bound) = source.cap(&order)?;
    let mut nodes = vec![NodeRecord::new(-1, 0, 0, n, bound)];
    let mut centers = center;
    let mut level = 0..1;
    while !level.is_empty() {
        let open: Vec<usize> = level.clone().filter(|i| nodes[*i].rows as usize > params.leaf_size).collect();
        control.phase(
            format!("level {}", nodes[level.start].depth + 1),
            open.iter().map(|i| 2 * nodes[*i].rows as u64).sum(),
        );
        // The rows of the open nodes are disjoint stretches of `order`, in rising order.
        let mut stretches = Vec::with_capacity(open.len());
        let (mut rest, mut taken) = (&mut order[..], 0);
        let mut by_start = open.clone();
        by_start.sort_unstable_by_key(|i| nodes[*i].start);
        for i in by_start {
            let (start, count) = (nodes[i].start as usize, nodes[i].rows as usize);
            let (_, tail) = std::mem::take(&mut rest).split_at_mut(start - taken);
            let (own, tail) = tail.split_at_mut(count);
            stretches.push((i, own));
            (rest, taken) = (tail, start + count);
        }
        let mut split: Vec<(usize, Vec<Child>)> = stretches
            .into_par_iter()
            .map(|(i, rows)| source.split(rows, &centers[i * dim..(i + 1) * dim], params).map(|children| (i, children)))
            .collect::<Result<_>>()?;
        split.sort_unstable_by_key(|(i, _)| *i);
        let first = nodes.len();
        for (i, children) in split {
            nodes[i].first_child = nodes.len() as i64;
            nodes[i].children = children.len() as i32;
            let (depth, mut start) = (nodes[i].depth + 1, nodes[i].start as usize);
            for child in children {
                nodes.push(NodeRecord::new(i as i64, depth, start, child.rows, child.bound));
                centers.extend_from_slice(&child.center);
                start += child.rows;
            }
        }
        level = first..nodes.len();
    }
    Ok(Layout { nodes, centers, order })
}

struct Child {
    rows: usize,
    center: Vec<f32>,
    bound: f64,
}

impl<E: Element> Source<'_, E> {
    /// Reorders `rows` so that each child's rows stand together.
    fn split(&self, rows: &mut [u32], parent: &[f32], params: &Params) -> Result<Vec<Child>> {
        let k = params.fanout.min(rows.len());
        let labels = self.cluster(rows, k, params.seed)?;
        self.control.add(rows.len() as u64);
        let mut sizes = vec![0usize; k];
        labels.iter().for_each(|l| sizes[usize::from(*l)] += 1);
        let largest = sizes.iter().copied().max().unwrap_or(0);
        if largest as f64 > LARGEST_SHARE * rows.len() as f64 {
            // Equal rows, or one far heavier cluster: shells around the parent's center, of equal size.
            self.sort_by_similarity(rows, parent)?;
            sizes = (0..k).map(|i| (i + 1) * rows.len() / k - i * rows.len() / k).collect();
        } else {
            let mut next: Vec<usize> = sizes
                .iter()
                .scan(0, |at, s| {
                    *at += s;
                    Some(*at - s)
                })
                .collect();
            let mut sorted = vec![0u32; rows.len()];
            for (r, l) in rows.iter().zip(&labels) {
                let at = &mut next[usize::from(*l)];
                sorted[*at] = *r;
                *at += 1;
            }
            rows.copy_from_slice(&sorted);
        }
        sizes.retain(|s| *s > 0);
        let mut parts = Vec::with_capacity(sizes.len());
        let mut rest = &*rows;
        for size in sizes {
            let (own, tail) = rest.split_at(size);
            parts.push(own);
            rest = tail;
        }
        parts
            .into_par_iter()
            .map(|own| {
                let (center, bound) = self.cap(own)?;
                self.control.add(own.len() as u64);
                Ok(Child { rows: own.len(), center, bound })
            })
            .collect()
    }

    fn sort_by_similarity(&self, rows: &mut [u32], center: &[f32]) -> Result<()> {
        let mut keyed = Vec::with_capacity(rows.len());
        self.tiles(rows, &[center], |first, count, dots| {
            keyed.extend(dots.iter().zip(&rows[first..first + count]).map(|(s, r)| (-s, *r)));
            self.control.check()
        })?;
        keyed.par_sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        rows.iter_mut().zip(keyed).for_each(|(r, (_, k))| *r = k);
        Ok(())
    }

    /// The smallest cap around the rows' mean direction: center, and a bound that holds in exact arithmetic.
    fn cap(&self, rows: &[u32]) -> Result<(Vec<f32>, f64)> {
        let d = self.dim;
        let (sum, _) = self.sums(rows, |_| 0, 1)?;
        let mut center = vec![0.0f32; d];
        if !normalize(&sum, &mut center) {
            // Rows that cancel out have no mean direction: any row of theirs serves.
            E::widen(row(self.array, rows[0] as usize, d)?, &mut center);
            let first: Vec<f64> = center.iter().map(|x| f64::from(*x)).collect();
            normalize(&first, &mut center);
        }
        let lowest: Vec<f32> = rows
            .par_chunks(CHUNK)
            .map(|rows| {
                self.control.check()?;
                let mut low = f32::INFINITY;
                self.tiles(rows, &[&center], |_, _, dots| {
                    low = dots.iter().fold(low, |a, b| a.min(*b));
                    Ok(())
                })?;
                Ok(low)
            })
            .collect::<Result<_>>()?;
        // Only rows whose float32 dot product comes within twice its error of the smallest can be the farthest.
        let limit = f64::from(lowest.iter().copied().fold(f32::INFINITY, f32::min)) + 2.0 * f32_error(d);
        let farthest = rows
            .par_chunks(CHUNK)
            .zip(lowest)
            .filter(|(_, low)| f64::from(*low) <= limit)
            .map(|(rows, _)| {
                let mut far = 0.0f64;
                let mut wide = vec![0.0f32; d];
                self.tiles(rows, &[&center], |first, _, dots| {
                    for (r, _) in dots.iter().enumerate().filter(|(_, s)| f64::from(**s) <= limit) {
                        E::widen(row(self.array, rows[first + r] as usize, d)?, &mut wide);
                        far = far.max(exact::distance(Kernels::get(), &center, &wide).next_up());
                    }
                    Ok(())
                })?;
                Ok(far)
            })
            .collect::<Result<Vec<f64>>>()?;
        Ok((center, farthest.into_iter().fold(0.0, f64::max)))
    }
}
