//! Step 7, stored rows: in float32 where its error bound allows, otherwise exactly.
//!
//! Reads the stored coordinates of rows, two or four bytes each, and the centers of caps. Decides everything: a float32
//! dot product tells nearly all rows ([`crate::caps::RowTest`]), and real arithmetic the others ([`crate::exact`]).
//! Costs all dimensions of a row, and its way from memory or disk: more than all other steps together, per row.

use std::ops::Range;

use super::masks::positions_of;
use super::tiles::{TILES_TOGETHER, TileDecisions};
use crate::caps::{Caps, RowTest};
use crate::distance::{Kernels, TILE};
use crate::element::Element;
use crate::error::Result;
use crate::exact;
use crate::sketch::IntKernels;
use crate::store::Array;

/// Bit `r` of the result: `test(dots[r])`.
#[inline]
fn mask_of(dots: &[f32], test: impl Fn(f32) -> bool) -> u64 {
    dots.iter().enumerate().fold(0, |m, (r, s)| m | u64::from(test(*s)) << r)
}

/// Decides stored rows: by float32 dot products, or exactly where those cannot tell.
pub(crate) struct RowDecider<'a> {
    caps: &'a Caps<'a>,
    active: &'a [usize],
    queries: Vec<&'a [f32]>,
    centers: Vec<&'a [f32]>,
    tests: Vec<RowTest>,
    dots: Vec<f32>,
    wide: Vec<f32>,
    /// Rows that float32 could not decide.
    pub decided_exactly: usize,
}

impl<'a> RowDecider<'a> {
    /// For the caps numbered `active`.
    pub fn new(caps: &'a Caps<'a>, active: &'a [usize]) -> Self {
        RowDecider::with(caps, active, active.iter().map(|c| caps.center(*c)).collect())
    }

    /// The same, with copies of their centers.
    pub fn with(caps: &'a Caps<'a>, active: &'a [usize], queries: Vec<&'a [f32]>) -> Self {
        RowDecider {
            caps,
            active,
            queries,
            centers: Vec::new(),
            tests: active.iter().map(|c| caps.test(*c)).collect(),
            dots: Vec::new(),
            wide: vec![0.0; caps.dim()],
            decided_exactly: 0,
        }
    }

    /// Bit `r` of the mask given to `each(i, mask)`: `tile[r]` lies inside cap `active[i]`.
    pub fn decide<E: Element>(&mut self, tile: &[&[E]], mut each: impl FnMut(usize, u64)) {
        self.dots.resize(tile.len() * self.queries.len(), 0.0);
        Kernels::get().dots(tile, &self.queries, &mut self.dots);
        for i in 0..self.queries.len() {
            let dots = i * tile.len()..(i + 1) * tile.len();
            let mask = self.mask(i, dots, |r| tile[r]);
            each(i, mask);
        }
    }

    /// Calls `inside(l)` for every `rows[l]` that lies inside cap `active[cap(l)]`.
    pub fn decide_pairs<E: Element>(
        &mut self,
        rows: &[&[E]],
        cap: impl Fn(usize) -> usize,
        mut inside: impl FnMut(usize),
    ) {
        self.centers.clear();
        self.centers.extend((0..rows.len()).map(|l| self.queries[cap(l)]));
        self.dots.resize(rows.len(), 0.0);
        Kernels::get().pairs(rows, &self.centers, &mut self.dots);
        for (l, row) in rows.iter().enumerate() {
            let (i, dot) = (cap(l), self.dots[l]);
            let test = self.tests[i];
            if dot >= test.inside || (dot >= test.outside && self.is_inside(i, row)) {
                inside(l);
            }
        }
    }

    /// Decides the rows named by the bits of `mask` for cap `active[i]`; `at` gives them by bit.
    pub fn decide_some<'b, E: Element>(
        &mut self,
        i: usize,
        mask: u64,
        at: impl Fn(usize) -> Result<&'b [E]>,
    ) -> Result<u64> {
        let rows = positions_of(0, mask).map(at).collect::<Result<Vec<_>>>()?;
        rows.iter().for_each(|row| IntKernels::get().prefetch(bytemuck::cast_slice(row)));
        self.dots.resize(rows.len(), 0.0);
        Kernels::get().dots(&rows, &self.queries[i..i + 1], &mut self.dots);
        let found = self.mask(i, 0..rows.len(), |r| rows[r]);
        Ok(positions_of(0, mask).enumerate().fold(0, |m, (r, bit)| m | (found >> r & 1) << bit))
    }

    fn mask<'b, E: Element>(&mut self, i: usize, dots: Range<usize>, at: impl Fn(usize) -> &'b [E]) -> u64 {
        let (dots, test) = (&self.dots[dots], self.tests[i]);
        let mut inside = mask_of(dots, |s| s >= test.inside);
        let unsure = mask_of(dots, |s| s >= test.outside) & !inside;
        for r in positions_of(0, unsure) {
            inside |= u64::from(self.is_inside(i, at(r))) << r;
        }
        inside
    }

    /// Whether a row lies inside cap `active[i]`, exactly.
    fn is_inside<E: Element>(&mut self, i: usize, row: &[E]) -> bool {
        self.decided_exactly += 1;
        E::widen(row, &mut self.wide);
        exact::is_inside(Kernels::get(), self.queries[i], &self.wide, self.caps.bound(self.active[i]))
    }
}

/// Decides what the codes leave open of some tiles, one cap after the other: its center is read once for all of them.
pub(super) struct OpenRows<'a, E: Element> {
    dim: usize,
    array: &'a Array<E>,
    decider: RowDecider<'a>,
    /// Cap by cap: places in the list of caps, numbers among the tiles' rows, rows.
    places: Vec<(usize, usize)>,
    rows: Vec<&'a [E]>,
    /// Which rows of the last tiles were asked for.
    fetched: [(usize, u64); TILES_TOGETHER],
}

impl<'a, E: Element> OpenRows<'a, E> {
    pub fn new(dim: usize, array: &'a Array<E>, decider: RowDecider<'a>) -> Self {
        let fetched = [(usize::MAX, 0); TILES_TOGETHER];
        OpenRows { dim, array, decider, places: Vec::new(), rows: Vec::new(), fetched }
    }

    /// Rows that float32 could not decide so far.
    pub fn decided_exactly(&self) -> usize {
        self.decider.decided_exactly
    }

    /// Decides the open rows of some tiles, of which the first numbers count, for some caps.
    pub fn decide(&mut self, tiles: &[(usize, usize)], caps: &[u32], found: &mut [TileDecisions]) -> Result<()> {
        let tile_rows = self.fetch(tiles, found)?;
        self.places.clear();
        self.rows.clear();
        for (place, found) in found.iter().enumerate() {
            for slot in positions_of(0, u64::from(found.open)) {
                for r in positions_of(0, found.decisions[slot].unsure) {
                    self.places.push((place, slot * TILE + r));
                    self.rows.push(&tile_rows[slot][r * self.dim..(r + 1) * self.dim]);
                }
            }
        }
        let places = &self.places;
        let inside = |l: usize| {
            let (place, row) = places[l];
            found[place].add(row / TILE, 1 << (row % TILE));
        };
        self.decider.decide_pairs(&self.rows, |l| caps[places[l].0] as usize, inside);
        Ok(())
    }

    /// The rows of those tiles that have open ones; asks for these rows, unless they were asked for before.
    fn fetch(&mut self, tiles: &[(usize, usize)], found: &[TileDecisions]) -> Result<[&'a [E]; TILES_TOGETHER]> {
        let d = self.dim;
        let mut wanted = [0; TILES_TOGETHER];
        for found in found {
            for slot in positions_of(0, u64::from(found.open)) {
                wanted[slot] |= found.decisions[slot].unsure;
            }
        }
        let mut rows: [&[E]; TILES_TOGETHER] = [&[]; TILES_TOGETHER];
        for ((tile, _), (wanted, rows)) in tiles.iter().zip(wanted.into_iter().zip(&mut rows)) {
            if wanted == 0 {
                continue;
            }
            let fetched = &mut self.fetched[tile % TILES_TOGETHER];
            if fetched.0 != *tile {
                *fetched = (*tile, 0);
            }
            *rows = self.array.slice(tile * TILE * d..self.array.len().min((tile + 1) * TILE * d))?;
            for r in positions_of(0, wanted & !fetched.1) {
                IntKernels::get().prefetch(bytemuck::cast_slice(&rows[r * d..(r + 1) * d]));
            }
            fetched.1 |= wanted;
        }
        Ok(rows)
    }
}

/// Tests rows against caps: `each(i, first, mask)` for cap `active[i]` and the rows from number `first` of the list on.
pub(crate) fn hits<E: Element>(
    rows: &[&[E]],
    caps: &Caps<'_>,
    active: &[usize],
    mut each: impl FnMut(usize, usize, u64),
) {
    let mut decider = RowDecider::new(caps, active);
    for (t, tile) in rows.chunks(TILE).enumerate() {
        decider.decide(tile, |i, mask| each(i, t * TILE, mask));
    }
}
