//! Segments on disk: what the arrays of a folder mean (the folder itself is [`crate::store`]'s).

use std::ops::Range;
use std::path::Path;

use super::segment::GATHER;
use super::{Meta, NodeRecord, Parts, Stored};
use crate::control::{Call, Control};
use crate::element::{Element, Storage};
use crate::error::{Error, Result};
use crate::sketch::{Basis, Sketch};
use crate::store::{Array, Folder, FolderWriter};
use crate::vectors::{Vectors, with_elements};

/// Bytes that are written between two looks at whether to stop.
const PART_BYTES: usize = 16 << 20;

/// The small arrays of a segment.
pub(crate) struct Arrays<'a> {
    pub rows: &'a [i64],
    pub positions: &'a [i64],
    pub nodes: &'a [NodeRecord],
    pub centers: &'a [f32],
    pub sketch: &'a Sketch,
}

/// Writes a segment; `chunk` gives the stored rows of a range of tree positions.
pub(crate) fn write<E: Element>(
    mut writer: FolderWriter,
    meta: &Meta,
    arrays: &Arrays<'_>,
    control: &Control,
    chunk: impl Fn(Range<usize>) -> Result<Vec<E>>,
) -> Result<()> {
    let n = meta.kept();
    control.phase("write", n as u64);
    let mut vectors = writer.array::<E>("vectors", &[n, meta.dim])?;
    for start in (0..n).step_by(GATHER) {
        control.check()?;
        let end = (start + GATHER).min(n);
        vectors.write(&chunk(start..end)?)?;
        control.add((end - start) as u64);
    }
    vectors.finish()?;
    let shapes = meta.sketch_shapes();
    let Sketch { basis, steps: _, fold: _, tile_codes, tile_terms, row_codes, row_terms, wide_codes, farthest: _ } =
        arrays.sketch;
    put(&mut writer, "rows", &[n], arrays.rows, control)?;
    put(&mut writer, "positions", &[meta.rows], arrays.positions, control)?;
    put(&mut writer, "nodes", &[arrays.nodes.len()], arrays.nodes, control)?;
    put(&mut writer, "centers", &[arrays.nodes.len(), meta.dim], arrays.centers, control)?;
    put(&mut writer, "sketch_mean", &[meta.dim], &basis.mean, control)?;
    put(&mut writer, "sketch_basis", &[basis.widths.all, meta.dim], &basis.columns, control)?;
    put(&mut writer, "tile_codes", &shapes.tile_codes, whole(tile_codes)?, control)?;
    put(&mut writer, "tile_terms", &shapes.tile_terms, whole(tile_terms)?, control)?;
    put(&mut writer, "row_codes", &shapes.row_codes, whole(row_codes)?, control)?;
    put(&mut writer, "row_terms", &shapes.row_terms, whole(row_terms)?, control)?;
    put(&mut writer, "wide_codes", &shapes.wide_codes, whole(wide_codes)?, control)?;
    writer.finish(meta)
}

fn whole<T: crate::store::Element>(array: &Array<T>) -> Result<&[T]> {
    array.slice(0..array.len())
}

/// Writes one array, in parts small enough that an interrupt is soon noticed.
fn put<T: crate::store::Element>(
    writer: &mut FolderWriter,
    name: &str,
    shape: &[usize],
    values: &[T],
    control: &Control,
) -> Result<()> {
    let mut out = writer.array(name, shape)?;
    for part in values.chunks((PART_BYTES / size_of::<T>()).max(1)) {
        control.check()?;
        out.write(part)?;
    }
    out.finish()
}

fn read_sketch(folder: &Folder, meta: &Meta) -> Result<Sketch> {
    if let Some(reason) = meta.sketch_fault() {
        return Err(Error::Corrupt { path: folder.path().to_owned(), reason });
    }
    let shapes = meta.sketch_shapes();
    let mean = folder.array::<f32>("sketch_mean", &[meta.dim])?;
    let columns = folder.array::<f32>("sketch_basis", &[meta.widths.all, meta.dim])?;
    let mean = mean.slice(0..mean.len())?.to_vec();
    let columns = columns.slice(0..columns.len())?.to_vec();
    let basis = Basis::new(meta.dim, meta.widths, mean, columns, meta.skew, meta.projection_error);
    if !basis.has_valid_mean() {
        let (path, reason) = (folder.path().to_owned(), "expected a mean that is zero or a direction".into());
        return Err(Error::Corrupt { path, reason });
    }
    Ok(Sketch {
        basis,
        steps: meta.steps,
        fold: meta.fold,
        farthest: meta.farthest,
        tile_codes: folder.array("tile_codes", &shapes.tile_codes)?,
        tile_terms: folder.array("tile_terms", &shapes.tile_terms)?,
        row_codes: folder.array("row_codes", &shapes.row_codes)?,
        row_terms: folder.array("row_terms", &shapes.row_terms)?,
        wide_codes: folder.array("wide_codes", &shapes.wide_codes)?,
    })
}

impl Stored {
    /// Maps the segment at `folder`, a part of the tree at `tree`.
    ///
    /// Errors: [`Error::Corrupt`], [`Error::NewerVersion`], [`Error::Io`].
    pub fn open(path: &Path, tree: &Path) -> Result<Stored> {
        let (folder, meta): (Folder, Meta) = Folder::open(path).map_err(|e| match e {
            // The tree is there, and names it.
            Error::NotFound { path, reason } => Error::Corrupt {
                path: tree.to_owned(),
                reason: format!("{}: {reason}", path.strip_prefix(tree).unwrap_or(&path).display()),
            },
            e => e,
        })?;
        if let Some(reason) = meta.fault() {
            return Err(Error::Corrupt { path: path.to_owned(), reason });
        }
        let kept = meta.kept();
        let vectors = match meta.storage {
            Storage::Float16 => Vectors::F16(folder.array("vectors", &[kept, meta.dim])?),
            Storage::Float32 => Vectors::F32(folder.array("vectors", &[kept, meta.dim])?),
        };
        let parts = Parts {
            vectors,
            rows: folder.array("rows", &[kept])?,
            positions: folder.array("positions", &[meta.rows])?,
            nodes: folder.array("nodes", &[meta.nodes])?,
            centers: folder.array("centers", &[meta.nodes, meta.dim])?,
            sketch: read_sketch(&folder, &meta)?,
        };
        Stored::assemble(&meta, parts, Some((path.to_owned(), folder.bytes())))
    }

    /// Writes a copy.
    ///
    /// Errors: [`Error::Io`], and what reading gives.
    pub fn save(&self, writer: FolderWriter, call: &Call) -> Result<()> {
        let meta = Meta::new(self.extent(), self.storage(), &self.params, self.norms, self.nodes.len(), &self.sketch);
        let arrays = Arrays {
            rows: self.rows.slice(0..self.kept())?,
            positions: self.positions.slice(0..self.len())?,
            nodes: &self.nodes,
            centers: self.centers()?,
            sketch: &self.sketch,
        };
        let d = self.dim;
        with_elements!(&self.vectors, a => write(writer, &meta, &arrays, call, |range| {
            Ok(a.slice(range.start * d..range.end * d)?.to_vec())
        }))
    }
}
