//! Changes of a tree for which rows are built into a segment: appending rows, and compacting.
//!
//! Appended rows make a segment of their own. Where the last segments are no larger, they become one with it, so that
//! many small changes leave few segments: each row is built again a number of times that grows with the logarithm of
//! their number.

use std::ops::Range;

use super::{Rows, segment};
use crate::control::Call;
use crate::element::{Element, Storage};
use crate::error::{Error, Result};
use crate::limits::MAX_ROWS;
use crate::memory::AlignedVec;
use crate::store::Array;
use crate::tree::{Change, Params, Segment, Tree};
use crate::vectors::{NormRange, Vectors};

/// A larger segment stays as it is until the tree is compacted: building it again takes seconds.
const MERGED: usize = 1 << 16;

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
        if added.end > MAX_ROWS {
            return Err(Error::vectors(format!("at most {MAX_ROWS} rows in a tree"), added.end));
        }
        let (mut start, mut alive) = (first, rows.vectors.len() / rows.dim);
        for segment in change.tree().segments().iter().rev() {
            if segment.alive() > alive || segment.len() > MERGED {
                break;
            }
            start = segment.range().start;
            alive += segment.alive();
        }
        let rows = if start < first { join(change.tree(), start..first, Some(rows), call)? } else { rows };
        put(&mut change, start, &rows, call)?;
        Ok((change.commit()?, added))
    }

    /// The tree in one segment, without what was deleted: as quick as one that was built of the rows that are left.
    /// Rows keep their numbers. Durable when it returns.
    ///
    /// Errors: as [`Tree::append`].
    pub fn compact(&self, call: &Call) -> Result<Tree> {
        let mut change = Change::start(self, "compact")?;
        let tree = change.tree();
        let all = 0..tree.len();
        match tree.segments() {
            [] => return Ok(change.into_tree()),
            [one] if one.dead_count() == 0 && one.range() == all => return Ok(change.into_tree()),
            _ => {}
        }
        let rows = join(tree, all, None, call)?;
        put(&mut change, 0, &rows, call)?;
        change.commit()
    }
}

/// Builds rows into the segment from row `first` on.
fn put(change: &mut Change, first: usize, rows: &Rows, call: &Call) -> Result<()> {
    let params: Params = change.params();
    let writer = change.writer()?;
    let built = segment(rows, &params, call)?;
    let stored = match writer {
        Some(writer) => built.write(rows, writer, call).map(|()| None),
        None => built.in_memory(rows, call).map(Some),
    }?;
    change.put(first, stored)
}

/// The rows of some numbers, of which those that cannot be found become skipped ones, and `more` behind them.
fn join(tree: &Tree, range: Range<usize>, more: Option<Rows>, call: &Call) -> Result<Rows> {
    let vectors = match tree.storage() {
        Storage::Float16 => Vectors::F16(join_as(tree, &range, more.as_ref(), call)?),
        Storage::Float32 => Vectors::F32(join_as(tree, &range, more.as_ref(), call)?),
    };
    let among = |segment: &&Segment| range.contains(&segment.range().start);
    let segments: Vec<&Segment> = tree.segments().iter().filter(among).collect();
    let mut norms = segments.iter().fold(NormRange::EMPTY, |norms, segment| norms.union(segment.norms.rows));
    let mut skipped = Vec::new();
    let mut next = range.start;
    for segment in segments {
        skipped.extend(next..segment.range().start);
        for row in segment.range() {
            if segment.position(row)?.is_none() {
                skipped.push(row);
            }
        }
        next = segment.range().end;
    }
    skipped.extend(next..range.end);
    let mut skipped: Vec<u32> = skipped.into_iter().map(|row| (row - range.start) as u32).collect();
    if let Some(more) = &more {
        norms = norms.union(more.norms);
        skipped.extend(more.skipped.iter().map(|row| *row + range.len() as u32));
    }
    Ok(Rows { dim: tree.dim(), vectors, norms, skipped })
}

fn join_as<E: Element>(tree: &Tree, range: &Range<usize>, more: Option<&Rows>, call: &Call) -> Result<Array<E>> {
    let d = tree.dim();
    let typed = tree.typed::<E>()?;
    let segments = typed.iter().filter(|typed| range.contains(&typed.segment.range().start));
    let alive: usize = segments.clone().map(|typed| typed.segment.alive()).sum();
    let more: &[E] = match more.and_then(|more| more.vectors.array::<E>()) {
        Some(array) => array.slice(0..array.len())?,
        None => &[],
    };
    let mut out = AlignedVec::<E>::zeroed(alive * d + more.len());
    call.phase("join", alive as u64);
    let mut places = out.chunks_exact_mut(d);
    for typed in segments {
        for row in typed.segment.range() {
            if row % 4096 == 0 {
                call.check()?;
            }
            if let Some(position) = typed.segment.position(row)?
                && let Some(place) = places.next()
            {
                place.copy_from_slice(crate::vectors::row(typed.array, position, d)?);
                call.add(1);
            }
        }
    }
    drop(places);
    let start = out.len() - more.len();
    out[start..].copy_from_slice(more);
    Ok(Array::in_memory(out))
}
