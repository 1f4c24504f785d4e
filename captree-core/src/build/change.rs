//! Changes of a tree for which rows are built into a segment: appending rows, and compacting.
//!
//! Appended rows make a segment of their own. Where the last segments are no larger, they become one with it, so that
//! many small changes leave few segments: each row is built again a number of times that grows with the logarithm of
//! their number.

use std::ops::Range;
use std::sync::Arc;

use super::ingest::{Batch, Ingest, Invalid};
use super::pieces::{Piece, Pieces, most_rows};
use super::{Rows, segment};
use crate::control::Call;
use crate::element::{Element, Storage};
use crate::error::{Error, Result};
use crate::memory::AlignedVec;
use crate::store::Array;
use crate::tree::{Change, Tree, Typed};
use crate::vectors::{NormRange, Vectors, row};

/// Segments stay as they are until the tree is compacted where more row numbers would be joined: building takes
/// seconds.
const MERGED: usize = 1 << 16;

/// Rows that are copied between two looks at whether to stop.
const CHECKED: usize = 4096;

/// Rows that are appended to a tree, batch by batch; those of a tree on disk may be more than memory holds.
pub struct Appending {
    pieces: Pieces,
    /// Begun with the first piece that is full.
    change: Option<Change>,
    base: Arc<Tree>,
}

impl Appending {
    /// Starts with no rows. `memory_limit` is the bytes that building may hold, if that is limited; rows are stored
    /// like those of the tree.
    pub fn start(base: Arc<Tree>, normalize: bool, invalid: Invalid, memory_limit: Option<u64>) -> Self {
        let mut ingest = Ingest::new(base.storage(), normalize);
        ingest.set_invalid(invalid);
        let memory_limit = memory_limit.filter(|_| base.path().is_some());
        Appending { pieces: Pieces::new(ingest, memory_limit), change: None, base }
    }

    /// Adds a batch of rows of `dim` dims. Errors: as [`Ingest::push`], and those of [`Tree::append`].
    pub fn push(&mut self, batch: Batch<'_>, dim: usize, call: &Call) -> Result<()> {
        if dim != self.base.dim() {
            return Err(Error::vectors(format!("vectors of dim {}", self.base.dim()), dim));
        }
        let Appending { pieces, change, base } = self;
        pieces.push(batch, dim, call, |piece| {
            let change = match change {
                Some(change) => change,
                None => change.insert(Change::start(base, "append")?),
            };
            add(change, &piece, call)
        })
    }

    /// The tree `now`, which the one that this started from has become, with the rows; and their numbers.
    ///
    /// Errors: those of [`Tree::append`].
    pub fn finish(mut self, now: &Tree, call: &Call) -> Result<(Tree, Range<usize>)> {
        let mut change = match self.change.take() {
            Some(change) => change,
            None => Change::start(now, "append")?,
        };
        let first = change.tree().len();
        let most = self.pieces.most.unwrap_or(usize::MAX);
        let whole = self.pieces.ingest.rows() == self.pieces.ingest.waiting();
        self.pieces.finish(|piece| {
            if whole { add_merged(&mut change, piece.rows, most, call) } else { add(&mut change, &piece, call) }
        })?;
        let added = first..first + self.pieces.ingest.rows();
        change.reach(added.end)?;
        call.last_check()?;
        Ok((change.commit()?, added))
    }
}

impl Tree {
    /// The tree with more rows behind all others, and their numbers. Durable when it returns.
    ///
    /// Errors: [`Error::InvalidVectors`] for rows of another dimension or dtype, or too many; [`Error::Locked`],
    /// [`Error::Io`], [`Error::Interrupted`], and what reading a tree on disk gives. The tree is then what it was.
    pub fn append(&self, rows: Rows, call: &Call) -> Result<(Tree, Range<usize>)> {
        let (expected, got) = ((self.dim(), self.storage().name()), (rows.dim, rows.vectors.storage().name()));
        if expected != got {
            let text = |(dim, storage)| format!("{storage} vectors of dim {dim}");
            return Err(Error::vectors(text(expected), text(got)));
        }
        let mut change = Change::start(self, "append")?;
        let first = change.tree().len();
        let added = first..first + rows.len();
        add_merged(&mut change, rows, usize::MAX, call)?;
        change.reach(added.end)?;
        call.last_check()?;
        Ok((change.commit()?, added))
    }

    /// The tree without what was deleted, in as few segments as can be built within `memory_limit` bytes, if that is
    /// given: as quick as one that was built of the rows that are left. Rows keep their numbers. Durable when it
    /// returns.
    ///
    /// Errors: as [`Tree::append`], and [`Error::MemoryLimit`].
    pub fn compact(&self, memory_limit: Option<u64>, call: &Call) -> Result<Tree> {
        let mut change = Change::start(self, "compact")?;
        let most = match memory_limit {
            Some(limit) if self.path().is_some() => most_rows(limit, self.dim(), self.storage())?,
            _ => usize::MAX,
        };
        let groups = groups(change.tree(), most);
        if groups.is_empty() {
            return Ok(change.into_tree());
        }
        for Group { rows, parts } in groups {
            change.remove(rows.clone());
            for part in 0..parts {
                let cut = |part: usize| rows.start + (rows.len() as u128 * part as u128 / parts as u128) as usize;
                let range = cut(part)..cut(part + 1);
                if let Some(joined) = join(change.tree(), range.clone(), None, call)? {
                    put(&mut change, range.start, &joined, call)?;
                }
            }
        }
        call.last_check()?;
        change.commit()
    }
}

/// Row numbers of neighboring segments that are built anew when a tree is compacted, as so many segments.
struct Group {
    rows: Range<usize>,
    parts: usize,
}

/// What is to be built anew so that segments have at most so many rows that are not deleted: neighbors are joined as
/// long as they fit; a segment that has no deleted rows and fits with none is left alone.
fn groups(tree: &Tree, most: usize) -> Vec<Group> {
    let (mut groups, mut at) = (Vec::new(), 0);
    let segments = tree.segments();
    while at < segments.len() {
        let (mut end, mut alive) = (at, 0);
        while end < segments.len() && (end == at || alive + segments[end].alive() <= most) {
            alive += segments[end].alive();
            end += 1;
        }
        let (rows, parts) = (segments[at].range().start..segments[end - 1].range().end, alive.div_ceil(most));
        if parts > 1 || end - at > 1 || segments[at].dead_count() > 0 {
            groups.push(Group { rows, parts });
        }
        at = end;
    }
    groups
}

/// Adds a piece behind all other rows.
fn add(change: &mut Change, piece: &Piece, call: &Call) -> Result<()> {
    let first = change.tree().len() + piece.first;
    change.check_room(first + piece.rows.len())?;
    put(change, first, &piece.rows, call)
}

/// Adds rows behind all others, in one segment with those before them that are no larger, if that has at most so many.
fn add_merged(change: &mut Change, rows: Rows, most: usize, call: &Call) -> Result<()> {
    let tree = change.tree();
    let first = tree.len();
    change.check_room(first + rows.len())?;
    let (mut start, mut alive) = (first, rows.kept());
    for segment in tree.segments().iter().rev() {
        if segment.alive() > alive || start - segment.range().start > MERGED || alive + segment.alive() > most {
            break;
        }
        start = segment.range().start;
        alive += segment.alive();
    }
    let rows = if start < first { join(tree, start..first, Some(rows), call)? } else { Some(rows) };
    match rows {
        Some(rows) => put(change, start, &rows, call),
        None => Ok(()),
    }
}

/// Builds rows into the segment from row `first` on.
fn put(change: &mut Change, first: usize, rows: &Rows, call: &Call) -> Result<()> {
    let params = change.params();
    let writer = change.writer()?;
    let built = segment(rows, &params, call)?;
    let stored = match writer {
        Some(writer) => built.write(rows, writer, call).map(|()| None),
        None => built.in_memory(rows, call).map(Some),
    }?;
    change.put(first, stored)
}

/// The rows of some numbers, of which those that cannot be found become skipped ones, and `more` behind them; nothing
/// if no row is left.
fn join(tree: &Tree, range: Range<usize>, more: Option<Rows>, call: &Call) -> Result<Option<Rows>> {
    match tree.storage() {
        Storage::Float16 => join_as(tree, range, more, call, Vectors::F16),
        Storage::Float32 => join_as(tree, range, more, call, Vectors::F32),
    }
}

fn join_as<E: Element>(
    tree: &Tree,
    range: Range<usize>,
    more: Option<Rows>,
    call: &Call,
    vectors: impl Fn(Array<E>) -> Vectors,
) -> Result<Option<Rows>> {
    let d = tree.dim();
    let mut typed = tree.typed::<E>()?;
    typed.retain(|typed| typed.segment.range().start < range.end && range.start < typed.segment.range().end);
    let (mut norms, mut skipped, mut alive) = (NormRange::EMPTY, Vec::new(), 0);
    let each = |place: &mut dyn FnMut(usize, Option<&[E]>)| {
        let mut next = range.start;
        for Typed { segment, array } in &typed {
            let own = segment.range();
            let own = own.start.max(range.start)..own.end.min(range.end);
            (next..own.start).for_each(|row| place(row, None));
            for number in own.clone() {
                if number % CHECKED == 0 {
                    call.check()?;
                }
                let position = segment.position(number)?;
                place(number, position.map(|position| row(array, position, d)).transpose()?);
            }
            next = own.end;
        }
        (next..range.end).for_each(|row| place(row, None));
        Result::Ok(())
    };
    each(&mut |number, vector| match vector {
        Some(_) => alive += 1,
        None => skipped.push((number - range.start) as u32),
    })?;
    let more_vectors: &[E] = match more.as_ref().and_then(|more| more.vectors.array::<E>()) {
        Some(array) => array.slice(0..array.len())?,
        None => &[],
    };
    if alive == 0 && more_vectors.is_empty() {
        return Ok(None);
    }
    call.phase("join", alive as u64);
    let mut out = AlignedVec::<E>::zeroed(alive * d + more_vectors.len());
    let mut at = 0;
    each(&mut |_, vector| {
        if let Some(vector) = vector {
            out[at..at + d].copy_from_slice(vector);
            at += d;
            call.add(1);
        }
    })?;
    out[at..].copy_from_slice(more_vectors);
    for typed in &typed {
        norms = norms.union(typed.segment.norms.rows);
    }
    if let Some(more) = &more {
        norms = norms.union(more.norms);
        skipped.extend(more.skipped.iter().map(|row| *row + range.len() as u32));
    }
    Ok(Some(Rows { dim: d, vectors: vectors(Array::in_memory(out)), norms, skipped }))
}
