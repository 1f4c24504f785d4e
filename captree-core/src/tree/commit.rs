//! Changing a tree: what a change starts from, where its new segments go, and how it comes to count.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::manifest::{DeletedEntry, Manifest, segment_path};
use super::open::write_deleted;
use super::{Params, Segment, Stored, Tree};
use crate::error::{Error, Result};
use crate::limits::MAX_ROWS;
use crate::store::{self, FolderWriter, WriterLock};

/// A change of a tree that is being made. Dropped before [`Change::commit`], it leaves the tree as it was.
pub(crate) struct Change {
    tree: Tree,
    /// The same with another list of segments, and rows that are deleted.
    segments: Vec<(u64, Segment)>,
    rows: usize,
    deleted: Arc<RoaringBitmap>,
    disk: Option<Disk>,
}

/// What a change of a tree on disk needs.
struct Disk {
    path: PathBuf,
    _lock: WriterLock,
    /// Folders of new segments, until they count.
    new: Vec<PathBuf>,
    next: u64,
    deleted: Option<DeletedEntry>,
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whatever is left, the next writer removes.
        self.new.iter().for_each(|folder| drop(fs::remove_dir_all(folder)));
    }
}

impl Change {
    /// Starts from the newest state of a tree: on disk another process may have changed it since it was opened. `what`
    /// tells others what is going on.
    ///
    /// Errors: [`Locked`](crate::Error::Locked) while another one changes it, [`Io`](crate::Error::Io), and what
    /// opening gives.
    pub fn start(tree: &Tree, what: &str) -> Result<Self> {
        let Some(place) = &tree.place else {
            let segments = (0..).zip(tree.segments.iter().cloned()).collect();
            let (rows, deleted) = (tree.rows, Arc::clone(&tree.deleted));
            return Ok(Change { tree: tree.shared(), segments, rows, deleted, disk: None });
        };
        let path = place.path().to_owned();
        let lock = WriterLock::take(&path, what)?;
        // Segments that are open already serve again, unless they are those of a tree that was there before.
        let open = if place.is_there() { tree.open_segments() } else { Vec::new() };
        let tree = Tree::of_version(&path, store::read(&path)?, &open)?;
        // What a process that was killed left behind.
        store::clean::<Manifest>(&path)?;
        let segments = tree.open_segments();
        let next = store::next_segment(&path);
        let deleted = tree.place.as_ref().and_then(|place| place.deleted.clone());
        let disk = Disk { path, _lock: lock, new: Vec::new(), next, deleted };
        Ok(Change { segments, rows: tree.rows, deleted: Arc::clone(&tree.deleted), tree, disk: Some(disk) })
    }

    /// What the change starts from.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// How its segments are built.
    pub fn params(&self) -> Params {
        self.tree.params
    }

    /// A writer for a new segment; none for a tree in memory.
    pub fn writer(&mut self) -> Result<Option<FolderWriter>> {
        let Some(disk) = &mut self.disk else { return Ok(None) };
        let folder = disk.path.join(segment_path(disk.next));
        disk.new.push(folder.clone());
        Ok(Some(FolderWriter::create(&folder, &disk.path)?))
    }

    /// The segment that was written with [`Change::writer`], or `stored` for a tree in memory, as the rows from `first`
    /// on. Segments among these rows go.
    pub fn put(&mut self, first: usize, stored: Option<Stored>) -> Result<()> {
        let (number, stored) = match (&mut self.disk, stored) {
            (Some(disk), _) => {
                let number = disk.next;
                disk.next += 1;
                (number, Stored::open(&disk.path.join(segment_path(number)), &disk.path)?)
            }
            (None, Some(stored)) => (0, stored),
            (None, None) => return Ok(()),
        };
        // It was made of rows that are not deleted.
        let segment = Segment::new(Arc::new(stored), first, Arc::clone(&self.deleted), 0);
        let range = segment.range();
        self.remove(range.clone());
        let at = self.segments.partition_point(|(_, other)| other.range().start < range.start);
        self.segments.insert(at, (number, segment));
        Ok(())
    }

    /// Errors unless a tree may have so many rows.
    pub fn check_room(&self, rows: usize) -> Result<()> {
        match rows {
            0..=MAX_ROWS => Ok(()),
            _ => Err(Error::vectors(format!("at most {MAX_ROWS} rows in a tree"), rows)),
        }
    }

    /// Row numbers below this are those of the tree, with or without vectors.
    pub fn reach(&mut self, rows: usize) -> Result<()> {
        self.rows = self.rows.max(rows);
        self.check_room(self.rows)
    }

    /// Takes out the segments among some rows.
    pub fn remove(&mut self, rows: Range<usize>) {
        let among = |segment: &Segment| rows.start <= segment.range().start && segment.range().end <= rows.end;
        self.segments.retain(|(_, segment)| !among(segment));
    }

    /// Deletes rows, which come in rising order, have vectors and were not deleted before.
    pub fn delete(&mut self, rows: &[u32]) {
        let mut deleted = RoaringBitmap::clone(&self.deleted);
        deleted.extend(rows);
        self.deleted = Arc::new(deleted);
        for (_, segment) in &mut self.segments {
            let below = |end: usize| rows.partition_point(|row| (*row as usize) < end);
            let more = below(segment.range().end) - below(segment.range().start);
            *segment = segment.with_deleted(Arc::clone(&self.deleted), more);
        }
        // A segment without rows that can be found is of no use.
        self.segments.retain(|(_, segment)| segment.alive() > 0);
    }

    /// Gives the change up.
    pub fn into_tree(self) -> Tree {
        self.tree
    }

    /// Makes the change count; durable when it returns.
    pub fn commit(mut self) -> Result<Tree> {
        let (numbers, segments): (Vec<u64>, Vec<Segment>) = std::mem::take(&mut self.segments).into_iter().unzip();
        let (rows, deleted) = (self.rows, Arc::clone(&self.deleted));
        let before = &self.tree;
        let tree = Tree {
            rows,
            dim: before.dim,
            storage: before.storage,
            params: before.params,
            segments,
            deleted,
            place: None,
        };
        let Some(disk) = &mut self.disk else { return Ok(tree) };
        let version = before.version().unwrap_or(0) + 1;
        let entry = match &disk.deleted {
            Some(entry) if tree.deleted.len() == before.deleted.len() => Some(entry.clone()),
            _ => write_deleted(&disk.path, &disk.path, version, &tree.deleted)?,
        };
        store::commit(&disk.path, &disk.path, version, &tree.manifest(&numbers, entry))?;
        disk.new.clear();
        let open: Vec<(u64, Segment)> = numbers.into_iter().zip(tree.segments).collect();
        Tree::of_version(&disk.path, store::read(&disk.path)?, &open)
    }
}
