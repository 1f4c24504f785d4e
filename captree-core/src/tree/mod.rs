//! The tree: flat arrays of nodes, their centers, and the rows in tree order.

mod nodes;
mod persist;
mod stats;
mod verify;

use std::path::{Path, PathBuf};

pub use nodes::NodeRecord;
pub use stats::Stats;

use crate::build::{Layout, Params, Rows, layout};
use crate::caps::NodeAngle;
use crate::control::{Call, Control};
use crate::element::{Element, Storage};
use crate::error::{Error, Result};
use crate::memory::AlignedVec;
use crate::sketch::Sketch;
use crate::store::Array;
use crate::vectors::{NormRange, Vectors, norm, row, with_elements};

/// Rows that are gathered into tree order at a time.
const GATHER: usize = 4096;

/// An index over unit vectors. Immutable; every method may run on many threads at once.
pub struct Tree {
    pub(crate) dim: usize,
    pub(crate) params: Params,
    pub(crate) vectors: Vectors,
    /// Tree position -> row.
    pub(crate) rows: Array<i64>,
    /// Row -> tree position.
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

impl Tree {
    /// Builds a tree in memory, or at `out`, where it is written to a temporary folder and renamed.
    ///
    /// Errors: [`Error::Interrupted`], [`Error::Io`], [`Error::InvalidParameter`].
    pub fn build(rows: Rows, params: &Params, out: Option<&Path>, call: &Call) -> Result<Tree> {
        call.run(|| {
            // A path that cannot be written must fail now, not after the work.
            let writer = out.map(crate::store::FolderWriter::create).transpose()?;
            let Layout { nodes, centers, order } = layout(&rows, params, call)?;
            let n = order.len();
            let norms = Norms {
                rows: rows.norms,
                centers: centers.chunks_exact(rows.dim).fold(NormRange::EMPTY, |r, c| r.union(NormRange::of(norm(c)))),
            };
            let sketch = with_elements!(&rows.vectors, a => {
                let at = |p: usize| row(a, order[p] as usize, rows.dim);
                Sketch::build(&at, (n, rows.dim), params.seed, call)
            })?;
            call.phase("reorder", n as u64);
            let mut positions = vec![0i64; n];
            order.iter().enumerate().for_each(|(p, r)| positions[*r as usize] = p as i64);
            let tree_rows: Vec<i64> = order.iter().map(|r| i64::from(*r)).collect();
            let meta = persist::Meta::new(&rows, params, norms, nodes.len(), &sketch);
            if let (Some(writer), Some(out)) = (writer, out) {
                let arrays = persist::Arrays {
                    rows: &tree_rows,
                    positions: &positions,
                    nodes: &nodes,
                    centers: &centers,
                    sketch: &sketch,
                };
                with_elements!(&rows.vectors, a => persist::write(writer, &meta, &arrays, n, call, |range| {
                    gather(a, &order[range], rows.dim)
                }))?;
                return Tree::open(out);
            }
            let vectors = match &rows.vectors {
                Vectors::F16(a) => Vectors::F16(gather_all(a, &order, rows.dim, call)?),
                Vectors::F32(a) => Vectors::F32(gather_all(a, &order, rows.dim, call)?),
            };
            let centers = Array::from_vec(centers);
            let (rows, positions) = (Array::from_vec(tree_rows), Array::from_vec(positions));
            Tree::assemble(meta, vectors, rows, positions, Array::from_vec(nodes), centers, sketch, None, 0)
        })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether the tree holds no rows; it always holds one.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
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
        let record = self.nodes.get(node).ok_or_else(|| {
            Error::RowOutOfRange(format!("expected a node between 0 and {}, got {node}", self.nodes.len() - 1))
        })?;
        self.rows.slice(record.range())
    }

    /// Tree positions of rows. Errors: [`Error::RowOutOfRange`].
    pub fn positions_of(&self, rows: &[i64]) -> Result<Vec<usize>> {
        rows.iter()
            .map(|r| match usize::try_from(*r) {
                Ok(i) if i < self.len() => Ok(self.positions.get(i)? as usize),
                _ => Err(Error::RowOutOfRange(format!("expected rows between 0 and {}, got {r}", self.len() - 1))),
            })
            .collect()
    }

    /// The stored coordinates of rows, if the tree stores float16.
    ///
    /// Errors: [`Error::RowOutOfRange`]; [`Error::InvalidParameter`] if the tree stores float32.
    pub fn take_f16(&self, rows: &[i64]) -> Result<Vec<half::f16>> {
        match &self.vectors {
            Vectors::F16(a) => self.take(a, rows),
            Vectors::F32(_) => Err(Error::InvalidParameter("expected a tree that stores float16, got float32".into())),
        }
    }

    /// The stored coordinates of rows, if the tree stores float32.
    ///
    /// Errors: [`Error::RowOutOfRange`]; [`Error::InvalidParameter`] if the tree stores float16.
    pub fn take_f32(&self, rows: &[i64]) -> Result<Vec<f32>> {
        match &self.vectors {
            Vectors::F32(a) => self.take(a, rows),
            Vectors::F16(_) => Err(Error::InvalidParameter("expected a tree that stores float32, got float16".into())),
        }
    }

    fn take<E: Element>(&self, array: &Array<E>, rows: &[i64]) -> Result<Vec<E>> {
        gather(array, &self.positions_of(rows)?, self.dim)
    }

    #[allow(clippy::too_many_arguments)]
    fn assemble(
        meta: persist::Meta,
        vectors: Vectors,
        rows: Array<i64>,
        positions: Array<i64>,
        stored_nodes: Array<NodeRecord>,
        centers: Array<f32>,
        sketch: Sketch,
        path: Option<PathBuf>,
        bytes: u64,
    ) -> Result<Tree> {
        let norms = meta.norms;
        let nodes = stored_nodes.slice(0..stored_nodes.len())?.to_vec();
        if let Some(reason) = nodes::fault(&nodes, rows.len()) {
            return Err(Error::Corrupt { path: path.unwrap_or_default(), reason });
        }
        let angles =
            nodes.iter().map(|n| NodeAngle::new(1.0 - n.max_cos_distance, norms.centers, norms.rows)).collect();
        Ok(Tree {
            dim: meta.dim,
            params: meta.params(),
            vectors,
            rows,
            positions,
            nodes,
            stored_nodes,
            centers,
            angles,
            norms,
            sketch,
            path,
            bytes,
        })
    }
}

/// The rows at some places, one after the other.
fn gather<E: Element, I: Copy + TryInto<usize>>(array: &Array<E>, places: &[I], dim: usize) -> Result<Vec<E>> {
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

fn gather_all<E: Element>(array: &Array<E>, order: &[u32], dim: usize, control: &Control) -> Result<Array<E>> {
    let mut out = AlignedVec::zeroed(order.len() * dim);
    for (out, part) in out.chunks_mut(GATHER * dim).zip(order.chunks(GATHER)) {
        control.check()?;
        gather_into(out, array, part, dim)?;
        control.add(part.len() as u64);
    }
    Ok(Array::in_memory(out))
}
