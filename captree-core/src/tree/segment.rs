//! A segment: a tree of spherical caps over consecutive row numbers. Flat arrays of nodes, their centers, and the rows
//! in tree order; none of it changes once it is written.

use std::ops::{Deref, Range};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use roaring::RoaringBitmap;

use super::nodes;
use super::{Dead, Extent, Meta, NodeRecord, Params};
use crate::caps::NodeAngle;
use crate::control::Control;
use crate::element::{Element, Storage};
use crate::error::{Error, Result};
use crate::memory::AlignedVec;
use crate::sketch::Sketch;
use crate::store::Array;
use crate::vectors::{NormRange, Vectors, row};

/// Rows that are gathered into tree order at a time.
pub(super) const GATHER: usize = 4096;

/// The tree position of a row that was skipped.
pub(crate) const SKIPPED: i64 = -1;

/// What a segment keeps in memory or on disk. It numbers its rows from 0.
pub(crate) struct Stored {
    pub(crate) dim: usize,
    pub(crate) params: Params,
    pub(crate) vectors: Vectors,
    /// Tree position -> row.
    pub(crate) rows: Array<i64>,
    /// Row -> tree position, or [`SKIPPED`].
    pub(crate) positions: Array<i64>,
    pub(crate) nodes: Vec<NodeRecord>,
    /// The nodes where they came from, to check them again.
    pub(super) stored_nodes: Array<NodeRecord>,
    pub(crate) centers: Array<f32>,
    pub(crate) angles: Vec<NodeAngle>,
    pub(crate) norms: Norms,
    pub(crate) sketch: Sketch,
    path: Option<PathBuf>,
    bytes: u64,
}

/// Norms of what a segment holds, over real arithmetic.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Norms {
    pub rows: NormRange,
    pub centers: NormRange,
}

/// What a segment is made of.
pub(crate) struct Parts {
    pub vectors: Vectors,
    pub rows: Array<i64>,
    pub positions: Array<i64>,
    pub nodes: Array<NodeRecord>,
    pub centers: Array<f32>,
    pub sketch: Sketch,
}

impl Stored {
    /// How many row numbers there are, those of rows without vectors included.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// How many rows have vectors.
    pub fn kept(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn extent(&self) -> Extent {
        Extent { rows: self.len(), skipped: self.len() - self.kept(), dim: self.dim }
    }

    /// Dtype of the stored rows.
    pub fn storage(&self) -> Storage {
        self.vectors.storage()
    }

    /// Bytes of its files.
    pub fn file_bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of its vectors.
    pub fn vector_bytes(&self) -> u64 {
        (self.vectors.len() * self.storage().bytes()) as u64
    }

    /// Bytes that it takes in memory, or would take.
    pub fn memory_bytes(&self) -> u64 {
        let links = self.rows.byte_len() + self.positions.byte_len() + self.centers.byte_len();
        self.vector_bytes() + links + self.sketch.bytes() + size_of_val(&self.nodes[..]) as u64
    }

    /// What to say of a segment that cannot be as it is.
    pub(crate) fn corrupt(&self, reason: String) -> Error {
        Error::Corrupt { path: self.path.clone().unwrap_or_else(|| "(memory)".into()), reason }
    }

    /// The nodes' centers, `dim` coordinates each.
    pub fn centers(&self) -> Result<&[f32]> {
        self.centers.slice(0..self.centers.len())
    }

    /// `stored`: where the parts lie on disk, if they do, and how many bytes.
    pub(crate) fn assemble(meta: &Meta, parts: Parts, stored: Option<(PathBuf, u64)>) -> Result<Stored> {
        let (norms, (path, bytes)) = (meta.norms, stored.map_or((None, 0), |(path, bytes)| (Some(path), bytes)));
        let nodes = parts.nodes.slice(0..parts.nodes.len())?.to_vec();
        if let Some(reason) = nodes::fault(&nodes, parts.rows.len()) {
            return Err(Error::Corrupt { path: path.unwrap_or_default(), reason });
        }
        let angles =
            nodes.iter().map(|n| NodeAngle::new(1.0 - n.max_cos_distance, norms.centers, norms.rows)).collect();
        Ok(Stored {
            dim: meta.dim,
            params: meta.params(),
            vectors: parts.vectors,
            rows: parts.rows,
            positions: parts.positions,
            nodes,
            stored_nodes: parts.nodes,
            centers: parts.centers,
            angles,
            norms,
            sketch: parts.sketch,
            path,
            bytes,
        })
    }
}

/// A segment in the numbering of its tree, and which of its rows are deleted.
#[derive(Clone)]
pub(crate) struct Segment {
    stored: Arc<Stored>,
    first: usize,
    deleted: Arc<RoaringBitmap>,
    /// How many of the stored rows are among the deleted ones.
    dead_count: usize,
    /// Made when a query first asks for it: that reads a position for each deleted row.
    dead: Arc<OnceLock<Dead>>,
}

impl Deref for Segment {
    type Target = Stored;

    fn deref(&self) -> &Stored {
        &self.stored
    }
}

impl Segment {
    /// From row `first` of a tree on. Of the rows `deleted` from the tree, `dead_count` are stored here.
    pub fn new(stored: Arc<Stored>, first: usize, deleted: Arc<RoaringBitmap>, dead_count: usize) -> Self {
        Segment { stored, first, deleted, dead_count, dead: Arc::new(OnceLock::new()) }
    }

    /// The same where more rows are deleted, of which so many are stored here.
    pub fn with_deleted(&self, deleted: Arc<RoaringBitmap>, more: usize) -> Self {
        let dead = if more == 0 { Arc::clone(&self.dead) } else { Arc::default() };
        Segment { stored: self.stored(), deleted, dead_count: self.dead_count + more, dead, ..*self }
    }

    /// What it stores, which segments of other states may share.
    pub fn stored(&self) -> Arc<Stored> {
        Arc::clone(&self.stored)
    }

    /// The row numbers of the tree that belong to it.
    pub fn range(&self) -> Range<usize> {
        self.first..self.first + self.len()
    }

    /// How many of its rows have vectors and are not deleted.
    pub fn alive(&self) -> usize {
        self.kept() - self.dead_count
    }

    /// How many of its stored rows are deleted.
    pub fn dead_count(&self) -> usize {
        self.dead_count
    }

    /// Its deleted rows. Errors: what reading a tree on disk gives.
    pub fn dead(&self) -> Result<&Dead> {
        if let Some(dead) = self.dead.get() {
            return Ok(dead);
        }
        let mut positions = Vec::new();
        let Range { start, end } = self.range();
        for row in self.deleted.range(start as u32..=(end - 1) as u32) {
            match self.local_position(row as usize - start)? {
                SKIPPED => {}
                position => positions.push(position as usize),
            }
        }
        if positions.len() != self.dead_count {
            let (expected, found) = (self.dead_count, positions.len());
            return Err(self.corrupt(format!("expected {expected} deleted rows among its own, found {found}")));
        }
        Ok(self.dead.get_or_init(|| Dead::of(self.kept(), positions.into_iter())))
    }

    /// Where the segment's row `row`, numbered from 0, stands, or [`SKIPPED`].
    fn local_position(&self, row: usize) -> Result<i64> {
        match self.positions.get(row)? {
            SKIPPED => Ok(SKIPPED),
            position if (0..self.kept() as i64).contains(&position) => Ok(position),
            position => Err(self.corrupt(format!("row {row} stands at position {position} of {}", self.kept()))),
        }
    }

    /// Where a row of the tree stands, if it lies here, has a vector and is not deleted.
    pub fn position(&self, row: usize) -> Result<Option<usize>> {
        if !self.range().contains(&row) {
            return Ok(None);
        }
        match self.local_position(row - self.first)? {
            SKIPPED => Ok(None),
            position if self.dead()?.contains(position as usize) => Ok(None),
            position => Ok(Some(position as usize)),
        }
    }

    /// The row at a tree position, in the tree's numbering. Errors: [`Error::Corrupt`] for a number that no row has.
    pub fn row_at(&self, position: usize) -> Result<i64> {
        let row = self.rows.get(position)?;
        match usize::try_from(row) {
            Ok(i) if i < self.len() => Ok(row + self.first as i64),
            _ => Err(self.corrupt(format!("position {position} holds row {row} of {}", self.len()))),
        }
    }
}

/// The rows at some places, one after the other.
pub(crate) fn gather<E: Element, I: Copy + TryInto<usize>>(
    array: &Array<E>,
    places: &[I],
    dim: usize,
) -> Result<Vec<E>> {
    let mut out = vec![E::zeroed(); places.len() * dim];
    gather_into(&mut out, array, places, dim)?;
    Ok(out)
}

fn gather_into<E: Element, I: Copy + TryInto<usize>>(
    out: &mut [E],
    array: &Array<E>,
    places: &[I],
    dim: usize,
) -> Result<()> {
    for (out, place) in out.chunks_exact_mut(dim).zip(places) {
        // A number that is no usize is beyond every array, and reported as such.
        out.copy_from_slice(row(array, (*place).try_into().unwrap_or(usize::MAX / dim - 1), dim)?);
    }
    Ok(())
}

pub(crate) fn gather_all<E: Element>(
    array: &Array<E>,
    order: &[u32],
    dim: usize,
    control: &Control,
) -> Result<Array<E>> {
    let mut out = AlignedVec::zeroed(order.len() * dim);
    for (out, part) in out.chunks_mut(GATHER * dim).zip(order.chunks(GATHER)) {
        control.check()?;
        gather_into(out, array, part, dim)?;
        control.add(part.len() as u64);
    }
    Ok(Array::in_memory(out))
}
