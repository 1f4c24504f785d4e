//! Building a tree: recursive spherical k-means over validated rows.

mod ingest;
mod kmeans;
mod split;

use std::path::Path;

pub use ingest::{Batch, Ingest, Rows};

use crate::control::Call;
use crate::error::Result;
use crate::sketch::Sketch;
use crate::store::{Array, FolderWriter};
use crate::tree::{Arrays, Meta, Norms, Params, Parts, Tree, gather, gather_all, write};
use crate::vectors::{NormRange, Vectors, norm, row, with_elements};
use split::{Layout, layout};

impl Tree {
    /// Builds a tree in memory, or at `out`, where it is written to a temporary folder and renamed.
    ///
    /// Errors: [`Error::Interrupted`], [`Error::Io`], [`Error::InvalidParameter`].
    pub fn build(rows: Rows, params: &Params, out: Option<&Path>, call: &Call) -> Result<Tree> {
        call.run(|| {
            // A path that cannot be written must fail now, not after the work.
            let writer = out.map(FolderWriter::create).transpose()?;
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
            let meta = Meta::new((n, rows.dim), rows.vectors.storage(), params, norms, nodes.len(), &sketch);
            if let (Some(writer), Some(out)) = (writer, out) {
                let arrays = Arrays {
                    rows: &tree_rows,
                    positions: &positions,
                    nodes: &nodes,
                    centers: &centers,
                    sketch: &sketch,
                };
                with_elements!(&rows.vectors, a => write(writer, &meta, &arrays, n, call, |range| {
                    gather(a, &order[range], rows.dim)
                }))?;
                return Tree::open(out);
            }
            let vectors = match &rows.vectors {
                Vectors::F16(a) => Vectors::F16(gather_all(a, &order, rows.dim, call)?),
                Vectors::F32(a) => Vectors::F32(gather_all(a, &order, rows.dim, call)?),
            };
            let parts = Parts {
                vectors,
                rows: Array::from_vec(tree_rows),
                positions: Array::from_vec(positions),
                nodes: Array::from_vec(nodes),
                centers: Array::from_vec(centers),
                sketch,
            };
            Tree::assemble(&meta, parts, None)
        })
    }
}
