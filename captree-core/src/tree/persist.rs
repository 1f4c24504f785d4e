//! Trees on disk: what the arrays of a folder mean (the folder itself is [`crate::store`]'s).

use std::ops::Range;
use std::path::Path;

use super::nodes::fault;
use super::{GATHER, NodeRecord, Norms, Tree};
use crate::build::{Params, Rows};
use crate::control::Control;
use crate::element::{Element, Storage};
use crate::error::{Error, Result};
use crate::store::{Folder, FolderWriter};
use crate::threads::Threads;
use crate::vectors::{NormRange, Precision, Vectors, with_elements};

/// The manifest's description of a tree.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Meta {
    writer: String,
    pub rows: usize,
    pub dim: usize,
    storage: Storage,
    nodes: usize,
    fanout: usize,
    leaf_size: usize,
    seed: u64,
    pub norms: Norms,
}

impl Meta {
    pub fn new(rows: &Rows, params: &Params, norms: Norms, nodes: usize) -> Self {
        Meta {
            writer: concat!("captree ", env!("CARGO_PKG_VERSION")).into(),
            rows: rows.vectors.len() / rows.dim,
            dim: rows.dim,
            storage: rows.vectors.storage(),
            nodes,
            fanout: params.fanout,
            leaf_size: params.leaf_size,
            seed: params.seed,
            norms,
        }
    }

    pub fn params(&self) -> Params {
        Params { fanout: self.fanout, leaf_size: self.leaf_size, seed: self.seed }
    }

    /// Says what no tree can have, if anything.
    fn fault(&self) -> Option<String> {
        let unit =
            |r: NormRange| (r.low - 1.0).abs().max((r.high - 1.0).abs()) <= 2.0 * Precision::BFloat16.tolerance();
        if self.rows == 0 || self.dim == 0 || self.nodes == 0 {
            return Some(format!("expected rows, dims and nodes, found {self:?}"));
        }
        if Params::new(self.fanout, Some(self.leaf_size), self.seed).is_err() {
            return Some(format!("expected a fanout of 2 to 4096 and a leaf size, found {self:?}"));
        }
        if !unit(self.norms.rows) || !unit(self.norms.centers) {
            return Some(format!("expected unit norms, found {:?}", self.norms));
        }
        None
    }
}

/// The small arrays of a tree.
pub(super) struct Arrays<'a> {
    pub rows: &'a [i64],
    pub positions: &'a [i64],
    pub nodes: &'a [NodeRecord],
    pub centers: &'a [f32],
}

/// Writes a tree; `chunk` gives the stored rows of a range of tree positions.
pub(super) fn write<E: Element>(
    mut writer: FolderWriter,
    meta: &Meta,
    arrays: &Arrays<'_>,
    n: usize,
    control: &Control,
    chunk: impl Fn(Range<usize>) -> Result<Vec<E>>,
) -> Result<()> {
    control.phase("write", n as u64);
    let mut vectors = writer.array::<E>("vectors", &[n, meta.dim])?;
    for start in (0..n).step_by(GATHER) {
        control.check()?;
        let end = (start + GATHER).min(n);
        vectors.write(&chunk(start..end)?)?;
        control.add((end - start) as u64);
    }
    vectors.finish()?;
    let mut out = writer.array("rows", &[n])?;
    out.write(arrays.rows)?;
    out.finish()?;
    let mut out = writer.array("positions", &[n])?;
    out.write(arrays.positions)?;
    out.finish()?;
    let mut out = writer.array("nodes", &[arrays.nodes.len()])?;
    out.write(arrays.nodes)?;
    out.finish()?;
    let mut out = writer.array("centers", &[arrays.nodes.len(), meta.dim])?;
    out.write(arrays.centers)?;
    out.finish()?;
    writer.finish(meta)
}

impl Tree {
    /// Maps the tree at `path`. Takes milliseconds whatever its size: rows are checked as they are first read.
    ///
    /// Errors: [`Error::NotFound`], [`Error::Corrupt`], [`Error::NewerVersion`], [`Error::Io`].
    pub fn open(path: &Path) -> Result<Tree> {
        let (folder, meta): (Folder, Meta) = Folder::open(path)?;
        let corrupt = |reason| Error::Corrupt { path: path.to_owned(), reason };
        if let Some(reason) = meta.fault() {
            return Err(corrupt(reason));
        }
        let vectors = match meta.storage {
            Storage::Float16 => Vectors::F16(folder.array("vectors", &[meta.rows, meta.dim])?),
            Storage::Float32 => Vectors::F32(folder.array("vectors", &[meta.rows, meta.dim])?),
        };
        let rows = folder.array("rows", &[meta.rows])?;
        let positions = folder.array("positions", &[meta.rows])?;
        let nodes = folder.array::<NodeRecord>("nodes", &[meta.nodes])?.slice(0..meta.nodes)?.to_vec();
        let centers = folder.array("centers", &[meta.nodes, meta.dim])?;
        if let Some(reason) = fault(&nodes, meta.rows) {
            return Err(corrupt(reason));
        }
        Tree::assemble(meta, vectors, rows, positions, nodes, centers, Some(path.to_owned()), folder.bytes())
    }

    /// Writes the tree to `path`: to a temporary folder that is renamed when complete.
    ///
    /// Errors: [`Error::Io`], [`Error::InvalidParameter`] if something that is no tree lies there, and what reading gives.
    pub fn save(&self, path: &Path, threads: &Threads, control: &Control) -> Result<()> {
        let n = self.len();
        let meta = Meta {
            writer: concat!("captree ", env!("CARGO_PKG_VERSION")).into(),
            rows: n,
            dim: self.dim,
            storage: self.storage(),
            nodes: self.nodes.len(),
            fanout: self.params.fanout,
            leaf_size: self.params.leaf_size,
            seed: self.params.seed,
            norms: self.norms,
        };
        let arrays = Arrays {
            rows: self.rows.slice(0..n)?,
            positions: self.positions.slice(0..n)?,
            nodes: &self.nodes,
            centers: self.centers()?,
        };
        let d = self.dim;
        threads.run(|| {
            with_elements!(&self.vectors, a => write(FolderWriter::create(path)?, &meta, &arrays, n, control, |range| {
                Ok(a.slice(range.start * d..range.end * d)?.to_vec())
            }))
        })
    }
}
