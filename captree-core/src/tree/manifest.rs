//! What a manifest says of a tree, and whether it can be true.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Params;
use crate::element::Storage;
use crate::limits::{MAX_DIM, MAX_ROWS};
use crate::store::{DELETED, MAX_NUMBER, Names, SEGMENTS, SET, numbered};

/// The body of a tree's manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub writer: String,
    /// Row numbers, those of skipped and deleted rows included.
    pub rows: usize,
    pub dim: usize,
    pub storage: Storage,
    /// Of segments that are built from now on.
    pub fanout: usize,
    pub leaf_size: usize,
    pub seed: u64,
    pub segments: Vec<SegmentEntry>,
    pub deleted: Option<DeletedEntry>,
}

/// A segment.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SegmentEntry {
    /// Its folder.
    pub number: u64,
    /// Its first row number, and how many it has.
    pub first: usize,
    pub rows: usize,
    /// How many of its stored rows are deleted.
    pub dead: usize,
}

/// The deleted rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeletedEntry {
    /// Its file.
    pub number: u64,
    pub rows: usize,
    /// XXH3-64 of the file, 16 hexadecimal digits.
    pub checksum: String,
}

/// Path of a segment within a tree.
pub(super) fn segment_path(number: u64) -> PathBuf {
    Path::new(SEGMENTS).join(numbered("", number, ""))
}

/// Path of a set of deleted rows within a tree.
pub(super) fn deleted_path(number: u64) -> PathBuf {
    Path::new(DELETED).join(numbered("", number, SET))
}

impl Names for Manifest {
    fn names(&self) -> Vec<PathBuf> {
        let segments = self.segments.iter().map(|segment| segment_path(segment.number));
        segments.chain(self.deleted.as_ref().map(|deleted| deleted_path(deleted.number))).collect()
    }
}

impl Manifest {
    /// Of a tree of so many rows and dims.
    pub fn new(
        (rows, dim, storage): (usize, usize, Storage),
        params: &Params,
        segments: Vec<SegmentEntry>,
        deleted: Option<DeletedEntry>,
    ) -> Self {
        let writer = concat!("captree ", env!("CARGO_PKG_VERSION")).into();
        let Params { fanout, leaf_size, seed } = *params;
        Manifest { writer, rows, dim, storage, fanout, leaf_size, seed, segments, deleted }
    }

    pub fn params(&self) -> Params {
        Params { fanout: self.fanout, leaf_size: self.leaf_size, seed: self.seed }
    }

    /// Says what no tree can have, if anything.
    pub fn fault(&self) -> Option<String> {
        if self.rows == 0 || self.rows > MAX_ROWS || !(1..=MAX_DIM).contains(&self.dim) {
            return Some(format!("expected rows and 1 to {MAX_DIM} dims, found {} and {}", self.rows, self.dim));
        }
        if let Err(e) = Params::new(self.fanout, Some(self.leaf_size), self.seed) {
            return Some(e.to_string());
        }
        let (mut next, mut numbers) = (0, HashSet::new());
        for segment in &self.segments {
            if segment.number > MAX_NUMBER || !numbers.insert(segment.number) {
                return Some(format!("expected a folder of its own for each segment, found {segment:?}"));
            }
            let end = segment.first.checked_add(segment.rows).filter(|end| *end <= self.rows);
            match end {
                Some(end) if segment.first >= next && segment.rows > 0 && segment.dead < segment.rows => next = end,
                _ => return Some(format!("expected segments one behind the other, found {segment:?}")),
            }
        }
        match &self.deleted {
            Some(set) if set.number > MAX_NUMBER || set.rows == 0 || set.rows > self.rows => {
                Some(format!("expected 1 to {} deleted rows, found {set:?}", self.rows))
            }
            _ => None,
        }
    }
}
