//! The tree: a list of segments, each a tree of spherical caps over the next row numbers, and the deleted rows.
//!
//! A [`Tree`] never changes: [`Tree::append`], [`Tree::delete`] and [`Tree::compact`] give another one, which shares
//! what stayed as it was. Every query asks the segments one after the other and adds, joins or compares what they give.

mod commit;
mod dead;
mod delete;
mod manifest;
mod meta;
mod nodes;
mod open;
mod params;
mod persist;
mod segment;
mod stats;
mod verify;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use roaring::RoaringBitmap;

pub(crate) use commit::Change;
pub(crate) use dead::Dead;
pub(crate) use meta::{Extent, Meta};
pub use nodes::NodeRecord;
pub use params::Params;
pub(crate) use persist::{Arrays, write};
pub(crate) use segment::{Norms, Parts, SKIPPED, Segment, Stored, gather, gather_all};
pub use stats::Stats;

use crate::element::{Element, Storage};
use crate::error::{Error, Result};
use crate::store::Array;
use crate::vectors::row;
use open::Place;
pub(crate) use open::{FIRST, NewFolders, NewSegment, NewSegments};

/// An index over unit vectors. Immutable; every method may run on many threads at once.
pub struct Tree {
    rows: usize,
    pub(crate) dim: usize,
    storage: Storage,
    params: Params,
    /// In the order of their rows; numbers between them have no vectors.
    segments: Vec<Segment>,
    deleted: Arc<RoaringBitmap>,
    /// Where it lies, if it is on disk.
    place: Option<Place>,
}

/// A segment and its vectors.
pub(crate) struct Typed<'a, E: Element> {
    pub segment: &'a Segment,
    pub array: &'a Array<E>,
}

/// Runs `$body` with `$list` bound to the segments of `$tree` with their vectors, whatever the element type.
macro_rules! with_segments {
    ($tree:expr, $list:ident => $body:expr) => {
        match $tree.storage() {
            $crate::element::Storage::Float16 => {
                let $list = $tree.typed::<half::f16>()?;
                $body
            }
            $crate::element::Storage::Float32 => {
                let $list = $tree.typed::<f32>()?;
                $body
            }
        }
    };
}
pub(crate) use with_segments;

impl Tree {
    /// How many row numbers there are: rows are 0 to one less, those that were skipped or deleted included.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are no row numbers; there always is one.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// How many rows can lie in a cap: all but those that were skipped or deleted.
    pub fn alive(&self) -> usize {
        self.segments.iter().map(Segment::alive).sum()
    }

    /// Number of dimensions.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Dtype of the stored rows.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// Where the tree lies on disk, if it does.
    pub fn path(&self) -> Option<&Path> {
        self.place.as_ref().map(Place::path)
    }

    /// Which of the states that the tree on disk has had this is.
    pub fn version(&self) -> Option<u64> {
        self.place.as_ref().map(Place::version)
    }

    /// The same without its place on disk.
    fn shared(&self) -> Tree {
        Tree { segments: self.segments.clone(), deleted: Arc::clone(&self.deleted), place: None, ..*self }
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    pub(crate) fn typed<E: Element>(&self) -> Result<Vec<Typed<'_, E>>> {
        let mixed = || self.corrupt("its segments have vectors of several types".into());
        let typed = self
            .segments
            .iter()
            .map(|segment| segment.vectors.array().map(|array| Typed { segment, array }).ok_or_else(mixed));
        typed.collect()
    }

    /// What to say of a tree that cannot be as it is.
    pub(crate) fn corrupt(&self, reason: String) -> Error {
        Error::Corrupt { path: self.path().unwrap_or(Path::new("(memory)")).to_owned(), reason }
    }

    /// The rows that were skipped when they came, in rising order: they keep their number and lie in no cap.
    pub fn skipped(&self) -> Result<Vec<i64>> {
        let mut skipped = Vec::new();
        if self.alive() + self.deleted.len() as usize == self.rows {
            return Ok(skipped);
        }
        let mut next = 0;
        let gap = |range: Range<usize>| range.map(|row| row as i64).collect::<Vec<_>>();
        for segment in &self.segments {
            let range = segment.range();
            skipped.extend(gap(next..range.start));
            if segment.kept() < segment.len() {
                let positions = segment.positions.slice(0..segment.len())?;
                let rows = range.clone().zip(positions).filter(|(_, position)| **position == SKIPPED);
                skipped.extend(rows.map(|(row, _)| row as i64));
            }
            next = range.end;
        }
        skipped.extend(gap(next..self.rows));
        skipped.retain(|row| !self.deleted.contains(*row as u32));
        Ok(skipped)
    }

    /// The rows that were deleted, in rising order: they keep their number and lie in no cap.
    pub fn deleted(&self) -> Vec<i64> {
        self.deleted.iter().map(i64::from).collect()
    }

    /// The nodes of all segments, segment after segment, each breadth first from its root, which has no parent. Deleted
    /// rows stand below their nodes until the tree is compacted.
    pub fn nodes(&self) -> Vec<NodeRecord> {
        let (mut nodes, mut rows) = (Vec::new(), 0);
        for segment in &self.segments {
            let before = nodes.len() as i64;
            nodes.extend(segment.nodes.iter().map(|node| node.moved(before, rows)));
            rows += segment.kept() as i64;
        }
        nodes
    }

    /// The nodes' centers, `dim` coordinates each.
    pub fn centers(&self) -> Result<Vec<f32>> {
        Ok(self.segments.iter().map(|segment| segment.centers()).collect::<Result<Vec<_>>>()?.concat())
    }

    /// The rows below a node, without deleted ones, in tree order. Errors: [`Error::RowOutOfRange`] for no such node.
    pub fn node_rows(&self, node: usize) -> Result<Vec<i64>> {
        let mut before = 0;
        for segment in &self.segments {
            if let Some(record) = segment.nodes.get(node - before) {
                let dead = segment.dead()?;
                return record.range().filter(|p| !dead.contains(*p)).map(|p| segment.row_at(p)).collect();
            }
            before += segment.nodes.len();
        }
        Err(Error::out_of_range("a node", before, node))
    }

    /// The segment whose row numbers hold a row.
    #[inline]
    pub(crate) fn segment_of(&self, row: usize) -> Option<usize> {
        let after = match self.segments.len() {
            1 => 1,
            _ => self.segments.partition_point(|segment| segment.range().start <= row),
        };
        after.checked_sub(1).filter(|i| self.segments[*i].range().contains(&row))
    }

    /// Segments and tree positions of rows. Errors: [`Error::RowOutOfRange`], for rows without vectors too.
    fn places_of(&self, rows: &[i64]) -> Result<Vec<(usize, usize)>> {
        let place = |row: &i64| {
            let number = match usize::try_from(*row) {
                Ok(number) if number < self.rows => number,
                _ => return Err(Error::out_of_range("rows", self.rows, row)),
            };
            if let Some(i) = self.segment_of(number)
                && let Some(position) = self.segments[i].position(number)?
            {
                return Ok((i, position));
            }
            let what = if self.deleted.contains(number as u32) { "deleted" } else { "skipped when it came" };
            Err(Error::RowOutOfRange { expected: "rows with vectors".into(), got: format!("{row}, which was {what}") })
        };
        rows.iter().map(place).collect()
    }

    /// The stored coordinates of rows, if the tree stores float16.
    ///
    /// Errors: [`Error::RowOutOfRange`]; [`Error::InvalidParameter`] if the tree stores float32.
    pub fn take_f16(&self, rows: &[i64]) -> Result<Vec<half::f16>> {
        match self.storage {
            Storage::Float16 => self.take(rows),
            Storage::Float32 => Err(Error::parameter("storage", "float16", "float32")),
        }
    }

    /// The stored coordinates of rows, if the tree stores float32.
    ///
    /// Errors: [`Error::RowOutOfRange`]; [`Error::InvalidParameter`] if the tree stores float16.
    pub fn take_f32(&self, rows: &[i64]) -> Result<Vec<f32>> {
        match self.storage {
            Storage::Float32 => self.take(rows),
            Storage::Float16 => Err(Error::parameter("storage", "float32", "float16")),
        }
    }

    fn take<E: Element>(&self, rows: &[i64]) -> Result<Vec<E>> {
        let typed = self.typed::<E>()?;
        let mut out = Vec::with_capacity(rows.len() * self.dim);
        for (segment, position) in self.places_of(rows)? {
            out.extend_from_slice(row(typed[segment].array, position, self.dim)?);
        }
        Ok(out)
    }

    /// A row's coordinates in float32. Errors: as [`Tree::take_f32`].
    pub(crate) fn widen(&self, row: i64, out: &mut [f32]) -> Result<()> {
        let (segment, position) = self.places_of(&[row])?[0];
        self.segments[segment].vectors.widen(position, out)
    }
}
