//! Rows cut into pieces, each of which becomes a segment and can be built within a memory limit.

use xxhash_rust::xxh3::Xxh3;

use super::Rows;
use super::ingest::{Batch, Ingest, build_bytes};
use crate::control::Call;
use crate::element::Storage;
use crate::error::{Error, Result};

/// Fewer rows than this are not worth a segment.
const LEAST_ROWS: usize = 1024;

/// Bytes that stay free for what does not grow with the rows: batches on their way in, the program itself. Of small
/// limits a quarter.
const APART: u64 = 256 << 20;

/// Collects rows and gives them on piece by piece.
pub(super) struct Pieces {
    pub ingest: Ingest,
    limit: Option<u64>,
    /// Rows of a piece; none while all rows make one.
    pub most: Option<usize>,
    /// Of all rows as they came, where these are cut.
    pub input: Xxh3,
}

/// Rows that become a segment.
pub(super) struct Piece {
    /// The number of the first one.
    pub first: usize,
    pub rows: Rows,
    /// XXH3-64 of all rows up to the last one, as they came.
    pub input: u64,
}

/// How many rows of a dimension can be built within so many bytes. Errors: [`Error::MemoryLimit`] if too few.
pub(super) fn most_rows(limit: u64, dim: usize, storage: Storage) -> Result<usize> {
    let for_rows = limit - APART.min(limit / 4);
    let bytes = |rows| build_bytes(rows, dim, storage, true);
    match (for_rows / bytes(1)) as usize {
        rows if rows >= LEAST_ROWS => Ok(rows),
        _ => {
            let needed = (bytes(LEAST_ROWS) * 4).div_ceil(3);
            Err(Error::MemoryLimit { needed, limit, rows: LEAST_ROWS, dim, on_disk: true })
        }
    }
}

impl Pieces {
    /// Without a limit all rows are one piece.
    pub fn new(ingest: Ingest, limit: Option<u64>) -> Self {
        Pieces { ingest, limit, most: None, input: Xxh3::new() }
    }

    /// Adds rows; `full` is given each piece that is full.
    ///
    /// Errors: as [`Ingest::push`], [`Error::MemoryLimit`], and those of `full`.
    pub fn push(
        &mut self,
        batch: Batch<'_>,
        dim: usize,
        call: &Call,
        mut full: impl FnMut(Piece) -> Result<()>,
    ) -> Result<()> {
        if let (None, Some(limit), 1..) = (self.most, self.limit, dim) {
            self.most = Some(most_rows(limit, dim, self.ingest.storage())?);
        }
        let Some(most) = self.most else { return self.ingest.push(batch, dim, call) };
        let mut rest = batch;
        while rest.len() > 0 {
            let room = (most - self.ingest.waiting()).saturating_mul(dim);
            let (head, tail) = rest.split_at(room.min(rest.len()));
            self.ingest.reserve(room_for(self.ingest.waiting() + head.len() / dim, most), dim);
            self.input.update(head.bytes());
            self.ingest.push(head, dim, call)?;
            rest = tail;
            // A piece that is full waits for the next row: the last one is dealt with at the end.
            if self.ingest.waiting() == most && rest.len() > 0 {
                self.give(&mut full)?;
            }
        }
        Ok(())
    }

    /// Gives what is left.
    pub fn finish(&mut self, mut full: impl FnMut(Piece) -> Result<()>) -> Result<()> {
        self.ingest.check()?;
        self.give(&mut full)
    }

    fn give(&mut self, full: &mut impl FnMut(Piece) -> Result<()>) -> Result<()> {
        let first = self.ingest.rows() - self.ingest.waiting();
        let rows = self.ingest.take();
        match rows {
            Some(rows) if !self.ingest.is_refused() => full(Piece { first, rows, input: self.input.digest() }),
            _ => Ok(()),
        }
    }
}

/// Rows to make room for: halves of a whole piece, so that what is copied when there is more never takes more memory
/// than that.
fn room_for(rows: usize, most: usize) -> usize {
    let mut room = most;
    while room / 2 >= rows.max(1) {
        room /= 2;
    }
    room
}
