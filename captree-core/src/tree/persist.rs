//! Trees on disk: what the arrays of a folder mean (the folder itself is [`crate::store`]'s).

use std::ops::Range;
use std::path::Path;

use super::{GATHER, NodeRecord, Norms, Tree};
use crate::build::{MAX_DIM, Params, Rows};
use crate::control::{Call, Control};
use crate::element::{Element, Storage};
use crate::error::{Error, Result};
use crate::sketch::{
    Basis, Fold, LONGEST, MAX_SECOND, MAX_STEP, Sketch, Steps, TERMS, TILE, Widths, padded, wide_bytes,
};
use crate::store::{Array, Folder, FolderWriter};
use crate::vectors::{NormRange, Precision, Vectors, row, with_elements};

/// First format version with the sketches of today.
const SKETCHES: u64 = 4;

/// Bytes that are written between two looks at whether to stop.
const PART_BYTES: usize = 16 << 20;

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
    #[serde(default)]
    first: usize,
    prefix: usize,
    #[serde(default)]
    third: usize,
    #[serde(default)]
    columns: usize,
    #[serde(default)]
    steps: Steps,
    #[serde(default)]
    fold: Fold,
    #[serde(default)]
    farthest: f64,
    skew: f64,
    projection_error: f64,
    pub norms: Norms,
}

impl Meta {
    pub fn new(rows: &Rows, params: &Params, norms: Norms, nodes: usize, sketch: &Sketch) -> Self {
        let count = rows.vectors.len() / rows.dim;
        Meta::of((count, rows.dim), rows.vectors.storage(), params, norms, nodes, sketch)
    }

    fn of(
        (rows, dim): (usize, usize),
        storage: Storage,
        params: &Params,
        norms: Norms,
        nodes: usize,
        sketch: &Sketch,
    ) -> Self {
        let basis = &sketch.basis;
        Meta {
            writer: concat!("captree ", env!("CARGO_PKG_VERSION")).into(),
            rows,
            dim,
            storage,
            nodes,
            fanout: params.fanout,
            leaf_size: params.leaf_size,
            seed: params.seed,
            first: basis.widths.first,
            prefix: basis.widths.second,
            third: basis.widths.third,
            columns: basis.widths.all,
            steps: sketch.steps,
            fold: sketch.fold,
            farthest: sketch.farthest,
            skew: basis.skew,
            projection_error: basis.projection_error,
            norms,
        }
    }

    pub fn params(&self) -> Params {
        Params { fanout: self.fanout, leaf_size: self.leaf_size, seed: self.seed }
    }

    fn widths(&self) -> Widths {
        Widths { first: self.first, second: self.prefix, third: self.third, all: self.columns }
    }

    fn sketch_shapes(&self) -> SketchShapes {
        let (tiles, groups) = (self.rows.div_ceil(TILE), padded(self.prefix) / 4);
        SketchShapes {
            tile_codes: [tiles.div_ceil(TILE), groups, TILE, 4],
            tile_terms: [tiles.div_ceil(TILE), TERMS],
            row_codes: [tiles, groups, TILE, 4],
            row_terms: [tiles, TERMS],
            wide_codes: [self.rows, wide_bytes(self.widths())],
        }
    }

    /// Says what no tree can have, if anything.
    fn fault(&self) -> Option<String> {
        let unit =
            |r: NormRange| (r.low - 1.0).abs().max((r.high - 1.0).abs()) <= 2.0 * Precision::BFloat16.tolerance();
        if self.rows == 0 || self.nodes == 0 || !(1..=MAX_DIM).contains(&self.dim) {
            return Some(format!("expected rows, nodes and 1 to {MAX_DIM} dims, found {self:?}"));
        }
        if Params::new(self.fanout, Some(self.leaf_size), self.seed).is_err() {
            return Some(format!("expected a fanout of 2 to 4096 and a leaf size, found {self:?}"));
        }
        if !unit(self.norms.rows) || !unit(self.norms.centers) {
            return Some(format!("expected unit norms, found {:?}", self.norms));
        }
        None
    }

    /// Says what no sketch can have, if anything.
    fn sketch_fault(&self) -> Option<String> {
        if self.prefix == 0 || self.prefix > self.dim || self.prefix > MAX_SECOND {
            return Some(format!("expected a sketch of 1 to {} dims, found {self:?}", self.dim.min(MAX_SECOND)));
        }
        if self.first == 0 || self.first > self.prefix || (!self.first.is_multiple_of(4) && self.first != self.prefix) {
            let found = (self.first, self.prefix);
            return Some(format!("expected a first level of whole groups of four dims of the prefix, found {found:?}"));
        }
        if !(self.prefix <= self.third && self.third <= self.columns && self.columns <= self.dim) {
            return Some(format!("expected levels each as wide as the one before, found {:?}", self.widths()));
        }
        // Anything near these ends is no sketch that was ever made; the bounds' slack counts on it.
        if self.steps.each().iter().any(|s| !(0.0..MAX_STEP).contains(s)) {
            return Some(format!("expected code steps from 0 to {MAX_STEP}, found {:?}", self.steps));
        }
        if let Some(what) = self.fold.fault() {
            return Some(what);
        }
        if !(0.0..LONGEST).contains(&self.farthest) {
            return Some(format!("expected rows less than {LONGEST} from their mean, found {}", self.farthest));
        }
        if !(0.0..0.01).contains(&self.skew) || !(0.0..0.01).contains(&self.projection_error) {
            let found = (self.skew, self.projection_error);
            return Some(format!("expected a skew and a projection error below 0.01, found {found:?}"));
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
    pub sketch: &'a Sketch,
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
    let shapes = meta.sketch_shapes();
    let Sketch { basis, steps: _, fold: _, tile_codes, tile_terms, row_codes, row_terms, wide_codes, farthest: _ } =
        arrays.sketch;
    put(&mut writer, "rows", &[n], arrays.rows, control)?;
    put(&mut writer, "positions", &[n], arrays.positions, control)?;
    put(&mut writer, "nodes", &[arrays.nodes.len()], arrays.nodes, control)?;
    put(&mut writer, "centers", &[arrays.nodes.len(), meta.dim], arrays.centers, control)?;
    put(&mut writer, "sketch_mean", &[meta.dim], &basis.mean, control)?;
    put(&mut writer, "sketch_basis", &[basis.widths.all, meta.dim], &basis.columns, control)?;
    put(&mut writer, "tile_codes", &shapes.tile_codes, whole(tile_codes)?, control)?;
    put(&mut writer, "tile_terms", &shapes.tile_terms, whole(tile_terms)?, control)?;
    put(&mut writer, "prefix_codes", &shapes.row_codes, whole(row_codes)?, control)?;
    put(&mut writer, "prefix_terms", &shapes.row_terms, whole(row_terms)?, control)?;
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
    let columns = folder.array::<f32>("sketch_basis", &[meta.columns, meta.dim])?;
    let mean = mean.slice(0..mean.len())?.to_vec();
    let columns = columns.slice(0..columns.len())?.to_vec();
    let basis = Basis::new(meta.dim, meta.widths(), mean, columns, meta.skew, meta.projection_error);
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
        row_codes: folder.array("prefix_codes", &shapes.row_codes)?,
        row_terms: folder.array("prefix_terms", &shapes.row_terms)?,
        wide_codes: folder.array("wide_codes", &shapes.wide_codes)?,
    })
}

/// Shapes of the sketch's arrays: tiles, groups of four dims, rows of a tile, four bytes.
struct SketchShapes {
    tile_codes: [usize; 4],
    tile_terms: [usize; 2],
    row_codes: [usize; 4],
    row_terms: [usize; 2],
    wide_codes: [usize; 2],
}

impl Tree {
    /// Maps the tree at `path`. Takes milliseconds whatever its size: rows are checked as they are first read. (A tree of
    /// format version 1 to 3 takes as long as making its sketches anew.)
    ///
    /// Errors: [`Error::NotFound`], [`Error::Corrupt`], [`Error::NewerVersion`], [`Error::Io`].
    pub fn open(path: &Path) -> Result<Tree> {
        let (folder, meta): (Folder, Meta) = Folder::open(path)?;
        if let Some(reason) = meta.fault() {
            return Err(Error::Corrupt { path: path.to_owned(), reason });
        }
        let vectors = match meta.storage {
            Storage::Float16 => Vectors::F16(folder.array("vectors", &[meta.rows, meta.dim])?),
            Storage::Float32 => Vectors::F32(folder.array("vectors", &[meta.rows, meta.dim])?),
        };
        let rows = folder.array("rows", &[meta.rows])?;
        let positions = folder.array("positions", &[meta.rows])?;
        let nodes = folder.array("nodes", &[meta.nodes])?;
        let centers = folder.array("centers", &[meta.nodes, meta.dim])?;
        let sketch = if folder.version() < SKETCHES {
            // The sketches of older trees have no reader any more: they are made anew, in memory.
            let control = Control::default();
            let shape = (meta.rows, meta.dim);
            with_elements!(&vectors, a => Sketch::build(&|p| row(a, p, meta.dim), shape, meta.seed, &control))?
        } else {
            read_sketch(&folder, &meta)?
        };
        Tree::assemble(meta, vectors, rows, positions, nodes, centers, sketch, Some(path.to_owned()), folder.bytes())
    }

    /// Writes the tree to `path`: to a temporary folder that is renamed when complete.
    ///
    /// Errors: [`Error::Io`], [`Error::InvalidParameter`] if something that is no tree lies there, and what reading gives.
    pub fn save(&self, path: &Path, call: &Call) -> Result<()> {
        let n = self.len();
        let meta = Meta::of((n, self.dim), self.storage(), &self.params, self.norms, self.nodes.len(), &self.sketch);
        let arrays = Arrays {
            rows: self.rows.slice(0..n)?,
            positions: self.positions.slice(0..n)?,
            nodes: &self.nodes,
            centers: self.centers()?,
            sketch: &self.sketch,
        };
        let d = self.dim;
        call.run(|| {
            with_elements!(&self.vectors, a => write(FolderWriter::create(path)?, &meta, &arrays, n, call, |range| {
                Ok(a.slice(range.start * d..range.end * d)?.to_vec())
            }))
        })
    }
}
