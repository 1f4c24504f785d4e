//! The tree: flat arrays of nodes, their centers, and the rows in tree order.

mod meta;
mod nodes;
mod params;
mod persist;
mod stats;
mod verify;

use std::path::{Path, PathBuf};

pub(crate) use meta::{Extent, Meta};
pub use nodes::NodeRecord;
pub use params::Params;
pub(crate) use persist::{Arrays, write};
pub use stats::Stats;

use crate::caps::NodeAngle;
use crate::control::Control;
use crate::element::{Element, Storage};
use crate::error::{Error, Result};
use crate::memory::AlignedVec;
use crate::sketch::Sketch;
use crate::store::Array;
use crate::vectors::{NormRange, Vectors, row};

/// Rows that are gathered into tree order at a time.
const GATHER: usize = 4096;

/// The tree position of a row that was skipped.
pub(crate) const SKIPPED: i64 = -1;

/// An index over unit vectors. Immutable; every method may run on many threads at once.
pub struct Tree {
    pub(crate) dim: usize,
    pub(crate) params: Params,
    pub(crate) vectors: Vectors,
    /// Tree position -> row.
    pub(crate) rows: Array<i64>,
    /// Row -> tree position, or [`SKIPPED`].
    pub(crate) positions: Array<i64>,
    pub(crate) nodes: Vec<NodeRecord>,
    /// The nodes where they came from, to check them again.
    stored_nodes: Array<NodeRecord>,
    pub(crate) centers: Array<f32>,
    pub(crate) angles: Vec<NodeAngle>,
    pub(crate) norms: Norms,
    pub(crate) sketch: Sketch,
    path: Option<PathBuf>,
    bytes: u64,
}

/// Norms of what the tree holds, over real arithmetic.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Norms {
    pub rows: NormRange,
    pub centers: NormRange,
}

/// What a tree is made of.
pub(crate) struct Parts {
    pub vectors: Vectors,
    pub rows: Array<i64>,
    pub positions: Array<i64>,
    pub nodes: Array<NodeRecord>,
    pub centers: Array<f32>,
    pub sketch: Sketch,
}

impl Tree {
    /// How many row numbers there are: rows are 0 to one less, those that were skipped included.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there are no rows; there always is one.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// How many rows were kept, which are all but those that were skipped.
    pub fn kept(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn extent(&self) -> Extent {
        Extent { rows: self.len(), skipped: self.len() - self.kept(), dim: self.dim }
    }

    /// The rows that were skipped when the tree was built, in rising order: they keep their number and lie in no cap.
    pub fn skipped(&self) -> Result<Vec<i64>> {
        if self.kept() == self.len() {
            return Ok(Vec::new());
        }
        let positions = self.positions.slice(0..self.len())?;
        Ok((0..).zip(positions).filter(|(_, p)| **p == SKIPPED).map(|(row, _)| row).collect())
    }

    /// Number of dimensions.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Dtype of the stored rows.
    pub fn storage(&self) -> Storage {
        self.vectors.storage()
    }

    /// Where the tree lies on disk, if it does.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What to say of a tree that cannot be as it is.
    pub(crate) fn corrupt(&self, reason: String) -> Error {
        Error::Corrupt { path: self.path.clone().unwrap_or_else(|| "(memory)".into()), reason }
    }

    /// The nodes, breadth first; node 0 is the root.
    pub fn nodes(&self) -> &[NodeRecord] {
        &self.nodes
    }

    /// The nodes' centers, `dim` coordinates each.
    pub fn centers(&self) -> Result<&[f32]> {
        self.centers.slice(0..self.centers.len())
    }

    /// The rows below a node, in tree order. Errors: [`Error::RowOutOfRange`] for no such node.
    pub fn node_rows(&self, node: usize) -> Result<&[i64]> {
        let record = self.nodes.get(node).ok_or_else(|| Error::out_of_range("a node", self.nodes.len(), node))?;
        self.rows.slice(record.range())
    }

    /// The row at a tree position. Errors: [`Error::Corrupt`] for a number that no row has.
    pub(crate) fn row_at(&self, position: usize) -> Result<i64> {
        let row = self.rows.get(position)?;
        match usize::try_from(row) {
            Ok(i) if i < self.len() => Ok(row),
            _ => Err(self.corrupt(format!("position {position} holds row {row} of {}", self.len()))),
        }
    }

    /// Tree positions of rows. Errors: [`Error::RowOutOfRange`], for rows that were skipped too.
    pub fn positions_of(&self, rows: &[i64]) -> Result<Vec<usize>> {
        rows.iter()
            .map(|row| match usize::try_from(*row) {
                Ok(i) if i < self.len() => match self.positions.get(i)? {
                    SKIPPED => Err(Error::RowOutOfRange {
                        expected: "rows with vectors".into(),
                        got: format!("{row}, which was skipped when the tree was built"),
                    }),
                    position => Ok(position as usize),
                },
                _ => Err(Error::out_of_range("rows", self.len(), row)),
            })
            .collect()
    }

    /// The stored coordinates of rows, if the tree stores float16.
    ///
    /// Errors: [`Error::RowOutOfRange`]; [`Error::InvalidParameter`] if the tree stores float32.
    pub fn take_f16(&self, rows: &[i64]) -> Result<Vec<half::f16>> {
        match &self.vectors {
            Vectors::F16(a) => self.take(a, rows),
            Vectors::F32(_) => Err(Error::parameter("storage", "float16", "float32")),
        }
    }

    /// The stored coordinates of rows, if the tree stores float32.
    ///
    /// Errors: [`Error::RowOutOfRange`]; [`Error::InvalidParameter`] if the tree stores float16.
    pub fn take_f32(&self, rows: &[i64]) -> Result<Vec<f32>> {
        match &self.vectors {
            Vectors::F32(a) => self.take(a, rows),
            Vectors::F16(_) => Err(Error::parameter("storage", "float32", "float16")),
        }
    }

    fn take<E: Element>(&self, array: &Array<E>, rows: &[i64]) -> Result<Vec<E>> {
        gather(array, &self.positions_of(rows)?, self.dim)
    }

    /// `stored`: where the parts lie on disk, if they do, and how many bytes.
    pub(crate) fn assemble(meta: &Meta, parts: Parts, stored: Option<(PathBuf, u64)>) -> Result<Tree> {
        let (norms, (path, bytes)) = (meta.norms, stored.map_or((None, 0), |(path, bytes)| (Some(path), bytes)));
        let nodes = parts.nodes.slice(0..parts.nodes.len())?.to_vec();
        if let Some(reason) = nodes::fault(&nodes, parts.rows.len()) {
            return Err(Error::Corrupt { path: path.unwrap_or_default(), reason });
        }
        let angles =
            nodes.iter().map(|n| NodeAngle::new(1.0 - n.max_cos_distance, norms.centers, norms.rows)).collect();
        Ok(Tree {
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
