//! Building a tree: recursive spherical k-means over validated rows.

mod building;
mod change;
mod convert;
mod ingest;
mod kmeans;
mod pieces;
mod split;

use std::path::Path;

pub use building::{BuildOptions, Building};
pub use change::Appending;
pub use ingest::{Batch, Ingest, Invalid, Rows};

use crate::control::Call;
use crate::error::Result;
use crate::sketch::Sketch;
use crate::store::{Array, FolderWriter};
use crate::tree::{
    Arrays, Extent, FIRST, Meta, NewFolders, NewSegment, NewSegments, NodeRecord, Norms, Params, Parts, SKIPPED,
    Stored, Tree, gather, gather_all, write,
};
use crate::vectors::{NormRange, Vectors, norm, row, with_elements};
use split::{Layout, layout};

impl Tree {
    /// Builds a tree in memory, or at `out`, where it is written to a temporary folder and renamed.
    ///
    /// Errors: [`Interrupted`](crate::Error::Interrupted), [`Io`](crate::Error::Io),
    /// [`InvalidParameter`](crate::Error::InvalidParameter).
    pub fn build(rows: Rows, params: &Params, out: Option<&Path>, call: &Call) -> Result<Tree> {
        let Some(out) = out else {
            return segment(&rows, params, call).and_then(|parts| parts.in_memory(&rows, call)).map(Tree::in_memory);
        };
        // A path that cannot be written must fail now, not after the work.
        let new = NewFolders::create(out)?;
        let writer = new.segment(FIRST)?;
        segment(&rows, params, call)?.write(&rows, writer, call)?;
        let segments = vec![NewSegment { first: 0, rows: rows.len() }];
        let done = NewSegments { dim: rows.dim, rows: rows.len(), segments, ..NewSegments::default() };
        new.finish_with(&done, rows.vectors.storage(), params)?;
        Tree::open(out)
    }
}

/// A segment that was built, but for its vectors, which are the rows in another order.
struct Built {
    meta: Meta,
    order: Vec<u32>,
    rows: Vec<i64>,
    positions: Vec<i64>,
    nodes: Vec<NodeRecord>,
    centers: Vec<f32>,
    sketch: Sketch,
}

fn segment(rows: &Rows, params: &Params, call: &Call) -> Result<Built> {
    call.run(|| {
        let Layout { nodes, centers, order } = layout(rows, params, call)?;
        let norms = Norms {
            rows: rows.norms,
            centers: centers.chunks_exact(rows.dim).fold(NormRange::EMPTY, |r, c| r.union(NormRange::of(norm(c)))),
        };
        let sketch = with_elements!(&rows.vectors, a => {
            let at = |p: usize| row(a, order[p] as usize, rows.dim);
            Sketch::build(&at, (order.len(), rows.dim), params.seed, call)
        })?;
        let tree_rows: Vec<i64> = numbers(&order, &rows.skipped);
        let mut positions = vec![SKIPPED; rows.len()];
        tree_rows.iter().enumerate().for_each(|(p, row)| positions[*row as usize] = p as i64);
        let extent = Extent { rows: rows.len(), skipped: rows.skipped.len(), dim: rows.dim };
        let meta = Meta::new(extent, rows.vectors.storage(), params, norms, nodes.len(), &sketch);
        Ok(Built { meta, order, rows: tree_rows, positions, nodes, centers, sketch })
    })
}

impl Built {
    /// Writes the segment of these rows.
    fn write(self, rows: &Rows, writer: FolderWriter, call: &Call) -> Result<()> {
        let arrays = Arrays {
            rows: &self.rows,
            positions: &self.positions,
            nodes: &self.nodes,
            centers: &self.centers,
            sketch: &self.sketch,
        };
        call.run(|| {
            with_elements!(&rows.vectors, a => write(writer, &self.meta, &arrays, call, |range| {
                gather(a, &self.order[range], rows.dim)
            }))
        })
    }

    /// The segment of these rows in memory.
    fn in_memory(self, rows: &Rows, call: &Call) -> Result<Stored> {
        call.phase("reorder", self.order.len() as u64);
        let vectors = match &rows.vectors {
            Vectors::F16(a) => Vectors::F16(gather_all(a, &self.order, rows.dim, call)?),
            Vectors::F32(a) => Vectors::F32(gather_all(a, &self.order, rows.dim, call)?),
        };
        let parts = Parts {
            vectors,
            rows: Array::from_vec(self.rows),
            positions: Array::from_vec(self.positions),
            nodes: Array::from_vec(self.nodes),
            centers: Array::from_vec(self.centers),
            sketch: self.sketch,
        };
        Stored::assemble(&self.meta, parts, None)
    }
}

/// The row numbers of kept rows, which `order` counts without those that were skipped (in rising order).
fn numbers(order: &[u32], skipped: &[u32]) -> Vec<i64> {
    let all = 0..(order.len() + skipped.len()) as u32;
    let kept: Vec<i64> = all.filter(|row| skipped.binary_search(row).is_err()).map(i64::from).collect();
    order.iter().map(|r| kept[*r as usize]).collect()
}
