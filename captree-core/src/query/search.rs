//! Which rows lie inside each cap, and how far they are.

use std::cmp::Ordering;
use std::ops::Range;

use super::distances::{Bits, DistanceType, Distances, Exact, Measure, Omitted, Rounded};
use crate::caps::Caps;
use crate::control::Call;
use crate::distance::{Kernels, TILE};
use crate::error::Result;
use crate::exact;
use crate::scan::{BATCH, CapByCap, Scan, Sink, bits_of};
use crate::tree::{Segment, Tree};

/// The rows inside each cap of a batch, in compressed sparse row form.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RangeResult {
    /// Rows of cap `i` stand at `offsets[i]..offsets[i + 1]`.
    pub offsets: Vec<i64>,
    /// Row numbers.
    pub rows: Vec<i64>,
    /// Their distances, of the type that was asked for.
    pub distances: Distances,
}

/// How [`Tree::search`] orders and cuts its answer, and what it reports.
#[derive(Clone, Copy, Debug, Default)]
pub struct SearchOptions {
    /// Nearest first, equal float64 distances by row; otherwise in tree order.
    pub sort: bool,
    /// At most this many rows per cap: the nearest ones with `sort`, otherwise the first in tree order.
    pub limit: Option<usize>,
    /// The distances that are reported.
    pub distances: DistanceType,
}

/// Rows of a cap and their distances.
struct Found<D> {
    rows: Vec<i64>,
    distances: Vec<D>,
}

/// The order of the rows of a cap.
type Order<D> = fn(&(D, i64), &(D, i64)) -> Ordering;

fn nearest_first(a: &(f64, i64), b: &(f64, i64)) -> Ordering {
    a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
}

impl<D: Copy> Found<D> {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn append(&mut self, other: &mut Self) {
        self.rows.append(&mut other.rows);
        self.distances.append(&mut other.distances);
    }

    fn truncate(&mut self, len: usize) {
        self.rows.truncate(len);
        self.distances.truncate(len);
    }

    /// Of what stands from place `start` on, keeps what comes first in an order, at most `limit`, `sorted` or not.
    fn keep_first(&mut self, start: usize, limit: usize, order: Order<D>, sorted: bool) {
        let pairs = self.distances[start..].iter().copied().zip(self.rows[start..].iter().copied());
        let mut pairs: Vec<(D, i64)> = pairs.collect();
        if limit < pairs.len() {
            pairs.select_nth_unstable_by(limit, order);
            pairs.truncate(limit);
        }
        if sorted {
            pairs.sort_unstable_by(order);
        }
        self.truncate(start);
        self.rows.extend(pairs.iter().map(|pair| pair.1));
        self.distances.extend(pairs.iter().map(|pair| pair.0));
    }
}

/// All caps' rows, and where those of each begin and end.
struct List<D> {
    offsets: Vec<i64>,
    found: Found<D>,
}

struct Rows<'a, M: Measure> {
    segment: &'a Segment,
    caps: &'a Caps<'a>,
    block: Vec<usize>,
    limit: usize,
    order: Option<Order<M::Distance>>,
    found: Vec<Found<M::Distance>>,
    measure: M,
    /// The cap that it measures for.
    current: Option<usize>,
}

impl<M: Measure> Rows<'_, M> {
    fn extend(&mut self, i: usize, bits: Bits) -> Result<()> {
        let (found, center, limit) = (&mut self.found[i], self.caps.center(self.block[i]), self.limit);
        let bits = if self.order.is_none() { bits.first(limit.saturating_sub(found.len())) } else { bits };
        if bits.mask == 0 {
            return Ok(());
        }
        if self.current != Some(i) {
            self.current = Some(i);
            self.measure.start(center);
        }
        self.measure.extend(self.segment, center, bits, &mut found.distances)?;
        let (rows, first) = (self.segment.rows.slice(bits.range())?, self.segment.range().start as i64);
        if bits.mask == u64::MAX {
            found.rows.extend(rows.iter().map(|row| row + first));
        } else {
            found.rows.extend(bits.positions().map(|position| rows[position - bits.start] + first));
        }
        // With twice the rows that are wanted, the farther half can go: memory stays in proportion to the limit.
        if let Some(order) = self.order
            && found.len() >= limit.saturating_mul(2).max(1024)
        {
            found.keep_first(0, limit, order, false);
        }
        Ok(())
    }
}

impl<M: Measure> Sink for Rows<'_, M> {
    fn all(&mut self, i: usize, positions: Range<usize>) -> Result<()> {
        for start in positions.clone().step_by(TILE) {
            self.extend(i, Bits { start, mask: bits_of(start, &positions) })?;
        }
        Ok(())
    }

    fn some(&mut self, i: usize, start: usize, mask: u64) -> Result<()> {
        self.extend(i, Bits { start, mask })
    }

    fn is_done(&self, i: usize) -> bool {
        self.order.is_none() && self.found[i].len() >= self.limit
    }
}

impl Tree {
    /// The rows inside each cap and their distances, exactly.
    ///
    /// Errors: as [`Tree::count`].
    pub fn search(&self, caps: &Caps<'_>, options: SearchOptions, call: &Call) -> Result<RangeResult> {
        self.check_dim(caps)?;
        let SearchOptions { sort, limit, distances } = options;
        if limit == Some(0) {
            let (offsets, distances) = (vec![0; caps.len() + 1], Distances::empty(distances));
            return Ok(RangeResult { offsets, rows: Vec::new(), distances });
        }
        call.phase("search", self.scan_units(caps.len()));
        // The order is that of the float64 distances, whatever is reported.
        if sort || distances == DistanceType::Float64 {
            let order: Option<Order<f64>> = if sort { Some(nearest_first) } else { None };
            let list = self.list(caps, limit, order, Exact::default, call)?;
            let distances = match distances {
                DistanceType::Float32 => Distances::Float32(self.rounded(caps, &list)?),
                DistanceType::None => Distances::None,
                DistanceType::Float64 => Distances::Float64(list.found.distances),
            };
            return Ok(RangeResult { offsets: list.offsets, rows: list.found.rows, distances });
        }
        if distances == DistanceType::Float32 {
            let List { offsets, found } = self.list(caps, limit, None, Rounded::default, call)?;
            return Ok(RangeResult { offsets, rows: found.rows, distances: Distances::Float32(found.distances) });
        }
        let List { offsets, found } = self.list(caps, limit, None, || Omitted, call)?;
        Ok(RangeResult { offsets, rows: found.rows, distances: Distances::None })
    }

    fn list<M: Measure + Send>(
        &self,
        caps: &Caps<'_>,
        limit: Option<usize>,
        order: Option<Order<M::Distance>>,
        measure: impl Fn() -> M + Sync,
        call: &Call,
    ) -> Result<List<M::Distance>> {
        let limit = limit.unwrap_or(usize::MAX);
        let empty = || Found { rows: Vec::new(), distances: Vec::new() };
        let mut list = List { offsets: vec![0], found: empty() };
        let all: Vec<usize> = (0..caps.len()).collect();
        for batch in all.chunks(BATCH) {
            let mut parts = Vec::with_capacity(self.segments().len());
            for segment in self.segments() {
                let sink = |block: &[usize]| Rows {
                    segment,
                    caps,
                    block: block.to_vec(),
                    limit,
                    order,
                    found: block.iter().map(|_| empty()).collect(),
                    measure: measure(),
                    current: None,
                };
                let blocks = call.run(|| Scan::new(segment, caps, batch, call)?.run(sink, |caps| call.add(caps)))?;
                parts.push(CapByCap::new(blocks));
            }
            for _ in batch {
                let start = list.found.len();
                for part in &mut parts {
                    part.next(|rows, i| list.found.append(&mut rows.found[i]));
                }
                match order {
                    Some(order) => list.found.keep_first(start, limit, order, true),
                    None => list.found.truncate(start.saturating_add(limit)),
                }
                list.offsets.push(list.found.len() as i64);
            }
        }
        Ok(list)
    }

    /// Float32 distances of rows whose float64 ones are known.
    fn rounded(&self, caps: &Caps<'_>, list: &List<f64>) -> Result<Vec<f32>> {
        let (kernels, mut row, mut distances) =
            (Kernels::get(), vec![0.0; self.dim], Vec::with_capacity(list.found.rows.len()));
        for (i, ends) in list.offsets.windows(2).enumerate() {
            for at in ends[0] as usize..ends[1] as usize {
                distances.push(match exact::narrowed(list.found.distances[at]) {
                    Some(rounded) => rounded,
                    None => {
                        self.widen(list.found.rows[at], &mut row)?;
                        exact::distance32(kernels, caps.center(i), &row)
                    }
                });
            }
        }
        Ok(distances)
    }
}
