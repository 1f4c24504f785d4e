//! Building a tree: recursive spherical k-means over validated rows.

mod ingest;
mod kmeans;
mod split;

use std::path::Path;

pub use ingest::{Batch, Ingest, Invalid, Rows};

use crate::control::Call;
use crate::error::Result;
use crate::sketch::Sketch;
use crate::store::{Array, FolderWriter};
use crate::tree::{Arrays, Extent, Meta, Norms, Params, Parts, SKIPPED, Tree, gather, gather_all, write};
use crate::vectors::{NormRange, Vectors, norm, row, with_elements};
use split::{Layout, layout};

impl Tree {
    /// Builds a tree in memory, or at `out`, where it is written to a temporary folder and renamed.
    ///
    /// Errors: [`Interrupted`](crate::Error::Interrupted), [`Io`](crate::Error::Io),
    /// [`InvalidParameter`](crate::Error::InvalidParameter).
    pub fn build(rows: Rows, params: &Params, out: Option<&Path>, call: &Call) -> Result<Tree> {
        call.run(|| {
            // A path that cannot be written must fail now, not after the work.
            let writer = out.map(FolderWriter::create).transpose()?;
            let Layout { nodes, centers, order } = layout(&rows, params, call)?;
            let (n, kept) = (rows.len(), order.len());
            let norms = Norms {
                rows: rows.norms,
                centers: centers.chunks_exact(rows.dim).fold(NormRange::EMPTY, |r, c| r.union(NormRange::of(norm(c)))),
            };
            let sketch = with_elements!(&rows.vectors, a => {
                let at = |p: usize| row(a, order[p] as usize, rows.dim);
                Sketch::build(&at, (kept, rows.dim), params.seed, call)
            })?;
            call.phase("reorder", kept as u64);
            let tree_rows: Vec<i64> = numbers(&order, &rows.skipped);
            let mut positions = vec![SKIPPED; n];
            tree_rows.iter().enumerate().for_each(|(p, row)| positions[*row as usize] = p as i64);
            let extent = Extent { rows: n, skipped: rows.skipped.len(), dim: rows.dim };
            let meta = Meta::new(extent, rows.vectors.storage(), params, norms, nodes.len(), &sketch);
            if let (Some(writer), Some(out)) = (writer, out) {
                let arrays = Arrays {
                    rows: &tree_rows,
                    positions: &positions,
                    nodes: &nodes,
                    centers: &centers,
                    sketch: &sketch,
                };
                with_elements!(&rows.vectors, a => write(writer, &meta, &arrays, call, |range| {
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

/// The row numbers of kept rows, which `order` counts without those that were skipped (in rising order).
fn numbers(order: &[u32], skipped: &[u32]) -> Vec<i64> {
    let all = 0..(order.len() + skipped.len()) as u32;
    let kept: Vec<i64> = all.filter(|row| skipped.binary_search(row).is_err()).map(i64::from).collect();
    order.iter().map(|r| kept[*r as usize]).collect()
}
