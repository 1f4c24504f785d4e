//! Deleting rows, and removing files that nobody needs.

use super::manifest::Manifest;
use super::{Change, Tree};
use crate::error::{Error, Result};
use crate::store::{self, WriterLock};

impl Tree {
    /// The tree without some rows, whose numbers no other rows get, and how many it had. Durable when it returns.
    ///
    /// Errors: [`Error::RowOutOfRange`] for numbers that no row has, and then no row is deleted;
    /// [`Error::Locked`], [`Error::Io`], and what reading a tree on disk gives.
    pub fn delete(&self, rows: &[i64]) -> Result<(Tree, usize)> {
        let mut change = Change::start(self, "delete")?;
        let tree = change.tree();
        let exists = |row: i64| usize::try_from(row).is_ok_and(|row| row < tree.rows);
        if let Some(row) = rows.iter().find(|row| !exists(**row)) {
            return Err(Error::out_of_range("rows", tree.rows, row));
        }
        let mut there = Vec::with_capacity(rows.len());
        for row in rows.iter().map(|row| *row as usize) {
            if let Some(i) = tree.segment_of(row)
                && tree.segments[i].position(row)?.is_some()
            {
                there.push(row as u32);
            }
        }
        there.sort_unstable();
        there.dedup();
        change.delete(&there);
        Ok((change.commit()?, there.len()))
    }

    /// Removes the files on disk that neither the current state of the tree nor one that is open anywhere needs:
    /// returns their bytes. Nothing to do for a tree in memory.
    ///
    /// Errors: [`Error::Locked`], [`Error::Io`], [`Error::Corrupt`].
    pub fn vacuum(&self) -> Result<u64> {
        let Some(path) = self.path() else { return Ok(0) };
        let _lock = WriterLock::take(path, "vacuum")?;
        store::clean::<Manifest>(path)
    }
}
