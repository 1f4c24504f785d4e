//! The last step: stored rows, in float32 where its error bound allows, otherwise exactly.

use std::ops::Range;

use super::masks::positions_of;
use crate::caps::{Caps, RowTest};
use crate::distance::{Kernels, TILE};
use crate::element::Element;
use crate::error::Result;
use crate::exact;
use crate::sketch::IntKernels;
use crate::tree::Tree;
use crate::vectors::{row, with_elements};

/// Bit `r` of the result: `test(dots[r])`.
#[inline]
fn mask_of(dots: &[f32], test: impl Fn(f32) -> bool) -> u64 {
    dots.iter().enumerate().fold(0, |m, (r, s)| m | u64::from(test(*s)) << r)
}

/// Decides stored rows: by float32 dot products, or exactly where those cannot tell.
pub(crate) struct Decider<'a> {
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

impl<'a> Decider<'a> {
    /// For the caps numbered `active`.
    pub fn new(caps: &'a Caps<'a>, active: &'a [usize]) -> Self {
        Decider::with(caps, active, active.iter().map(|c| caps.center(*c)).collect())
    }

    /// The same, with copies of their centers.
    pub fn with(caps: &'a Caps<'a>, active: &'a [usize], queries: Vec<&'a [f32]>) -> Self {
        Decider {
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
            let mask = self.settle(i, dots, |r| tile[r]);
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
        let found = self.settle(i, 0..rows.len(), |r| rows[r]);
        Ok(positions_of(0, mask).enumerate().fold(0, |m, (r, bit)| m | (found >> r & 1) << bit))
    }

    fn settle<'b, E: Element>(&mut self, i: usize, dots: Range<usize>, at: impl Fn(usize) -> &'b [E]) -> u64 {
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

/// Tests the rows at some tree positions against caps: `each(i, first, mask)` for cap `active[i]` and the positions
/// from number `first` of the list on.
pub(crate) fn hits(
    tree: &Tree,
    caps: &Caps<'_>,
    active: &[usize],
    positions: &[usize],
    mut each: impl FnMut(usize, usize, u64),
) -> Result<()> {
    let mut decider = Decider::new(caps, active);
    with_elements!(&tree.vectors, array => {
        for (t, tile) in positions.chunks(TILE).enumerate() {
            let rows = tile.iter().map(|p| row(array, *p, tree.dim())).collect::<Result<Vec<_>>>()?;
            decider.decide(&rows, |i, mask| each(i, t * TILE, mask));
        }
        Ok(())
    })
}
