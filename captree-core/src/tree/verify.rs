//! The structure validator: every checksum and every invariant that answers rely on.

use rayon::prelude::*;

use super::nodes::fault;
use super::{NodeRecord, SKIPPED, Stored, Tree};
use crate::caps::RowTest;
use crate::control::{Call, Control};
use crate::distance::{Kernels, TILE, f32_error};
use crate::element::Element;
use crate::error::Result;
use crate::exact;
use crate::store::Array;
use crate::vectors::{norm, row, rows, with_elements};

impl Tree {
    /// Checks every checksum and invariant of every segment: the links between nodes, that rows and positions are
    /// inverse to each other, that every stored row and every center has the norm the bounds rely on, that no leaf is
    /// larger than `leaf_size`, that every row lies in the cap of every node above it, in exact arithmetic, and that
    /// codes and terms of the sketches keep what their bounds promise; and that as many of its rows are deleted as the
    /// tree says.
    ///
    /// Errors: [`Corrupt`](crate::Error::Corrupt) with the first violation; [`Interrupted`](crate::Error::Interrupted).
    pub fn verify(&self, call: &Call) -> Result<()> {
        for segment in self.segments() {
            call.run(|| segment.stored().verify(call))?;
            segment.dead()?;
        }
        Ok(())
    }
}

impl Stored {
    fn verify(&self, call: &Call) -> Result<()> {
        let bytes = self.vector_bytes() + self.rows.byte_len() + self.positions.byte_len() + self.centers.byte_len();
        call.phase("checksums", bytes);
        with_elements!(&self.vectors, a => a.verify(call))?;
        self.rows.verify(call)?;
        self.stored_nodes.verify(call)?;
        self.positions.verify(call)?;
        self.centers.verify(call)?;
        self.sketch.verify(call)?;
        if let Some(reason) = fault(&self.nodes, self.kept()) {
            return Err(self.corrupt(reason));
        }
        self.verify_permutation()?;
        with_elements!(&self.vectors, a => {
            self.verify_caps(a, call)?;
            self.verify_sketches(a, call)
        })
    }

    fn verify_permutation(&self) -> Result<()> {
        let (rows, positions) = (self.rows.slice(0..self.kept())?, self.positions.slice(0..self.len())?);
        let skipped = positions.iter().filter(|p| **p == SKIPPED).count();
        if skipped != self.len() - self.kept() {
            let reason = format!("expected {} rows without a position, found {skipped}", self.len() - self.kept());
            return Err(self.corrupt(reason));
        }
        // positions[rows[p]] = p for all p makes `rows` one-to-one, and `positions` its inverse where it has one.
        let broken = rows
            .iter()
            .enumerate()
            .find(|(p, r)| usize::try_from(**r).ok().and_then(|r| positions.get(r)).is_none_or(|q| *q != *p as i64));
        match broken {
            Some((p, r)) => Err(self.corrupt(format!("position {p} holds row {r}, which does not point back"))),
            None => Ok(()),
        }
    }

    fn verify_caps<E: Element>(&self, array: &Array<E>, control: &Control) -> Result<()> {
        let centers = self.centers()?;
        control.phase("invariants", self.nodes.iter().map(|n| n.rows as u64).sum());
        self.nodes.par_iter().enumerate().try_for_each(|(i, node)| {
            let center = &centers[i * self.dim..(i + 1) * self.dim];
            let length = norm(center);
            if !(self.norms.centers.low <= length && length <= self.norms.centers.high) {
                return Err(self.corrupt(format!("node {i} has a center of length {length}")));
            }
            if node.is_leaf() && node.rows as usize > self.params.leaf_size {
                let (most, got) = (self.params.leaf_size, node.rows);
                return Err(self.corrupt(format!("leaf {i}: expected at most {most} rows, found {got}")));
            }
            let tiles: Vec<usize> = node.range().step_by(TILE).collect();
            tiles.par_iter().try_for_each(|start| {
                control.check()?;
                let end = (start + TILE).min(node.range().end);
                control.add((end - start) as u64);
                self.verify_tile(array, i, node, center, *start..end)
            })
        })
    }

    fn verify_sketches<E: Element>(&self, array: &Array<E>, control: &Control) -> Result<()> {
        let n = self.kept();
        control.phase("sketches", n as u64);
        let check = |fault: Option<String>| fault.map_or(Ok(()), |reason| Err(self.corrupt(reason)));
        check(self.sketch.basis_fault())?;
        (0..n.div_ceil(TILE)).into_par_iter().try_for_each(|tile| {
            control.check()?;
            let range = tile * TILE..n.min((tile + 1) * TILE);
            control.add(range.len() as u64);
            check(self.sketch.tile_fault(tile, &rows(array, range, self.dim)?)?)
        })
    }

    fn verify_tile<E: Element>(
        &self,
        array: &Array<E>,
        i: usize,
        node: &NodeRecord,
        center: &[f32],
        tile: std::ops::Range<usize>,
    ) -> Result<()> {
        let d = self.dim;
        let mut wide = vec![0.0f32; d];
        if node.is_leaf() {
            for p in tile.clone() {
                E::widen(row(array, p, d)?, &mut wide);
                let length = norm(&wide);
                if !(self.norms.rows.low <= length && length <= self.norms.rows.high) {
                    return Err(self.corrupt(format!("row {} has length {length}", self.rows.get(p)?)));
                }
            }
        }
        let test = RowTest::new(1.0 - node.max_cos_distance, f32_error(d));
        let mut dots = vec![0.0f32; tile.len()];
        Kernels::get().dots(&rows(array, tile.clone(), d)?, &[center], &mut dots);
        for (p, _) in tile.zip(dots).filter(|(_, s)| *s < test.inside) {
            E::widen(row(array, p, d)?, &mut wide);
            if !exact::is_inside(Kernels::get(), center, &wide, node.max_cos_distance) {
                return Err(self.corrupt(format!("row {} lies outside the cap of node {i}", self.rows.get(p)?)));
            }
        }
        Ok(())
    }
}
