//! Trees on disk: opening one, and writing a new one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use roaring::RoaringBitmap;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::manifest::{DeletedEntry, Manifest, SegmentEntry, deleted_path, segment_path};
use super::{Params, Segment, Stored, Tree};
use crate::control::Call;
use crate::element::Storage;
use crate::error::{Error, Result};
use crate::store::{self, DELETED, FolderWriter, JOB, NewTree, SEGMENTS, Version, from_hex};

/// Where a tree lies, and in which state it was opened.
pub(super) struct Place {
    path: PathBuf,
    version: u64,
    /// Of each segment the number of its folder.
    pub numbers: Vec<u64>,
    pub deleted: Option<DeletedEntry>,
    /// Tells writers that the files of this state are in use.
    hold: File,
    /// Bytes of the manifest and the set of deleted rows.
    pub bytes: u64,
}

impl Place {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether the tree at the path is still this one, in this or a later state, and not one that was built anew.
    pub fn is_there(&self) -> bool {
        store::is_in_place(&self.path, self.version, &self.hold)
    }
}

/// More than the bits of all row numbers there can be.
const MAX_SET_BYTES: u64 = 1 << 30;

/// The number of the first segment, and of the first state, of a new tree.
pub(crate) const FIRST: u64 = 1;

impl Tree {
    /// Maps the tree at `path` in its current state. Takes milliseconds whatever its size: rows are checked as they are
    /// first read. What others write later does not change this tree.
    ///
    /// Errors: [`Error::NotFound`], [`Error::Corrupt`], [`Error::NewerVersion`], [`Error::Io`].
    pub fn open(path: &Path) -> Result<Tree> {
        loop {
            let version = store::read(path)?;
            let (number, hold) = (version.number, version.hold.try_clone());
            let opened = Tree::of_version(path, version, &[]);
            // Otherwise a build put another tree in its place, and what was opened may be of both.
            if hold.map_or(true, |hold| store::is_in_place(path, number, &hold)) {
                return opened;
            }
        }
    }

    /// The same in a state of which [`Tree::version`] told, and which a tree that is open, here or in another process,
    /// still has.
    ///
    /// Errors: as [`Tree::open`]; [`Error::NotFound`] if that state is gone.
    pub fn open_version(path: &Path, version: u64) -> Result<Tree> {
        Tree::of_version(path, store::read_version(path, version)?, &[])
    }

    /// A state of a tree; segments that are open already are taken from `open`.
    pub(super) fn of_version(path: &Path, version: Version<Manifest>, open: &[(u64, Segment)]) -> Result<Tree> {
        let corrupt = |reason: String| Error::Corrupt { path: path.to_owned(), reason };
        let Version { number, body: manifest, mut bytes, hold } = version;
        if let Some(reason) = manifest.fault() {
            return Err(corrupt(reason));
        }
        let deleted = match &manifest.deleted {
            Some(entry) => {
                let (set, size) = read_deleted(path, entry, manifest.rows)?;
                bytes += size;
                Arc::new(set)
            }
            None => Arc::default(),
        };
        let mut segments = Vec::with_capacity(manifest.segments.len());
        for entry in &manifest.segments {
            let found = open.iter().find(|(number, _)| *number == entry.number);
            let stored = match found {
                Some((_, segment)) => segment.stored(),
                None => Arc::new(Stored::open(&path.join(segment_path(entry.number)), path)?),
            };
            if stored.len() != entry.rows || stored.dim != manifest.dim || stored.storage() != manifest.storage {
                let found = (stored.len(), stored.dim, stored.storage().name());
                let expected = (entry.rows, manifest.dim, manifest.storage.name());
                return Err(corrupt(format!("segment {}: expected {expected:?}, found {found:?}", entry.number)));
            }
            let last = entry.first + entry.rows - 1;
            let deleted_here = deleted.range_cardinality(entry.first as u32..=last as u32) as usize;
            // Rows that were deleted before the segment was built are skipped ones in it.
            let skipped = deleted_here.checked_sub(entry.dead);
            if entry.dead >= stored.kept() || skipped.is_none_or(|n| n > stored.len() - stored.kept()) {
                let found = format!("{deleted_here} of {} rows, {} with vectors", stored.len(), stored.kept());
                let (number, dead) = (entry.number, entry.dead);
                return Err(corrupt(format!("segment {number}: expected {dead} deleted with vectors, found {found}")));
            }
            segments.push(Segment::new(stored, entry.first, Arc::clone(&deleted), entry.dead));
        }
        let place = Place {
            path: path.to_owned(),
            version: number,
            numbers: manifest.segments.iter().map(|entry| entry.number).collect(),
            deleted: manifest.deleted.clone(),
            hold,
            bytes,
        };
        Ok(Tree {
            rows: manifest.rows,
            dim: manifest.dim,
            storage: manifest.storage,
            params: manifest.params(),
            segments,
            deleted,
            place: Some(place),
        })
    }

    /// A tree in memory of one segment.
    pub(crate) fn in_memory(stored: Stored) -> Tree {
        let (rows, dim, storage, params) = (stored.len(), stored.dim, stored.storage(), stored.params);
        let deleted: Arc<RoaringBitmap> = Arc::default();
        let segments = vec![Segment::new(Arc::new(stored), 0, Arc::clone(&deleted), 0)];
        Tree { rows, dim, storage, params, segments, deleted, place: None }
    }

    /// The segments that are open, by the numbers of their folders.
    pub(super) fn open_segments(&self) -> Vec<(u64, Segment)> {
        let numbers = self.place.iter().flat_map(|place| place.numbers.iter().copied());
        numbers.zip(self.segments.iter().cloned()).collect()
    }

    /// What the manifest of this tree says, its segments standing in folders of these numbers.
    pub(super) fn manifest(&self, numbers: &[u64], deleted: Option<DeletedEntry>) -> Manifest {
        let entry = |(segment, number): (&Segment, &u64)| SegmentEntry {
            number: *number,
            first: segment.range().start,
            rows: segment.len(),
            dead: segment.dead_count(),
        };
        let segments = self.segments.iter().zip(numbers).map(entry).collect();
        Manifest::new((self.rows, self.dim, self.storage), &self.params, segments, deleted)
    }

    /// Writes the tree to `path`: to a temporary folder that is renamed when complete.
    ///
    /// Errors: [`Error::Io`] also if something that is no tree lies there, and what reading gives.
    pub fn save(&self, path: &Path, call: &Call) -> Result<()> {
        let new = NewFolders::create(path)?;
        let numbers: Vec<u64> = (FIRST..).take(self.segments.len()).collect();
        for (segment, number) in self.segments.iter().zip(&numbers) {
            call.run(|| segment.save(new.segment(*number)?, call))?;
        }
        new.finish(self, &numbers)
    }
}

/// A new tree on its way to disk.
pub(crate) struct NewFolders(NewTree);

impl NewFolders {
    /// Starts a tree that will be at `path`. Errors: [`Error::Io`].
    pub fn create(path: &Path) -> Result<Self> {
        let new = NewTree::create(path)?;
        for kind in [SEGMENTS, DELETED] {
            fs::create_dir(new.folder().join(kind)).map_err(|e| cannot_write(path, e))?;
        }
        Ok(NewFolders(new))
    }

    /// The hidden folder that the tree grows in.
    pub fn folder(&self) -> &Path {
        self.0.folder()
    }

    /// Starts the folder of a segment.
    pub fn segment(&self, number: u64) -> Result<FolderWriter> {
        FolderWriter::create(&self.0.folder().join(segment_path(number)), self.0.target())
    }

    /// Writes the manifest of `tree`, whose segments have these folders, and puts everything into its place.
    pub fn finish(self, tree: &Tree, numbers: &[u64]) -> Result<()> {
        let (folder, about) = (self.0.folder(), self.0.target());
        let deleted = write_deleted(folder, about, FIRST, &tree.deleted)?;
        store::commit(folder, about, FIRST, &tree.manifest(numbers, deleted))?;
        self.0.finish()
    }

    /// The same for a new tree of these segments.
    pub fn finish_with(self, new: &NewSegments, storage: Storage, params: &Params) -> Result<()> {
        let (folder, about) = (self.0.folder(), self.0.target());
        let entry = |(number, segment): (u64, &NewSegment)| SegmentEntry {
            number,
            first: segment.first,
            rows: segment.rows,
            dead: 0,
        };
        let segments = (FIRST..).zip(&new.segments).map(entry).collect();
        store::commit(folder, about, FIRST, &Manifest::new((new.rows, new.dim, storage), params, segments, None))?;
        self.0.finish()
    }

    /// Starts a tree at `path`, or goes on with one that was started for the same `job` and has not become whole.
    pub fn resume<J: Serialize + DeserializeOwned + PartialEq>(path: &Path, job: &J) -> Result<(Self, NewSegments)> {
        let found = NewTree::resume(path, |folder| {
            let text = fs::read(folder.join(JOB)).ok()?;
            let (found, done): (J, NewSegments) = serde_json::from_slice(&text).ok()?;
            // A segment that is not whole would be found too late.
            let opens = |number| Stored::open(&folder.join(segment_path(number)), path).is_ok();
            (found == *job && (FIRST..).zip(&done.segments).all(|(number, _)| opens(number))).then_some(done)
        })?;
        match found {
            Some((new, done)) => {
                let folders = fs::read_dir(new.folder().join(SEGMENTS)).into_iter().flatten().flatten();
                for entry in folders {
                    let number = entry.file_name().to_string_lossy().parse::<u64>().ok();
                    if number.is_none_or(|number| number >= FIRST + done.segments.len() as u64) {
                        fs::remove_dir_all(entry.path()).map_err(|e| cannot_write(path, e))?;
                    }
                }
                Ok((NewFolders(new), done))
            }
            None => Ok((NewFolders::create(path)?, NewSegments::default())),
        }
    }

    /// Notes for [`NewFolders::resume`] what is done; from then on the folder stays if the build ends before its time.
    pub fn note<J: Serialize>(&mut self, job: &J, done: &NewSegments) -> Result<()> {
        let text = serde_json::to_vec(&(job, done)).map_err(|e| Error::parameter("job", "JSON", e))?;
        store::write_file(self.0.folder(), self.0.target(), JOB, &text)?;
        self.0.stay();
        Ok(())
    }
}

/// Segments of a tree that is being built, in folders numbered from [`FIRST`] on, and what they were made from.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct NewSegments {
    pub dim: usize,
    /// Rows that came so far, those without vectors included.
    pub rows: usize,
    /// Rows of a segment at most; none if the number was not limited.
    pub most: Option<usize>,
    /// XXH3-64 of these rows as they came.
    pub input: u64,
    pub segments: Vec<NewSegment>,
}

/// One of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NewSegment {
    pub first: usize,
    pub rows: usize,
}

fn cannot_write(path: &Path, source: std::io::Error) -> Error {
    Error::io(format!("cannot write the tree {}", path.display()), source)
}

fn read_deleted(folder: &Path, entry: &DeletedEntry, rows: usize) -> Result<(RoaringBitmap, u64)> {
    let name = deleted_path(entry.number).to_string_lossy().into_owned();
    let corrupt = |reason: String| Error::Corrupt { path: folder.to_owned(), reason: format!("{name}: {reason}") };
    let Some(checksum) = from_hex(&entry.checksum) else {
        return Err(corrupt(format!("expected a checksum, found {:?}", entry.checksum)));
    };
    // For each row no more than a container of its own.
    let most = MAX_SET_BYTES.min(16 * (entry.rows as u64 + 1));
    let bytes = store::read_file(folder, &name, checksum, most)?;
    let set = RoaringBitmap::deserialize_from(&bytes[..]).map_err(|e| corrupt(e.to_string()))?;
    if set.len() != entry.rows as u64 || set.max().is_some_and(|last| last as usize >= rows) {
        return Err(corrupt(format!("expected {} rows below {rows}, found {set:?}", entry.rows)));
    }
    Ok((set, bytes.len() as u64))
}

/// Writes the set of deleted rows, if there are any.
pub(super) fn write_deleted(
    folder: &Path,
    about: &Path,
    number: u64,
    deleted: &RoaringBitmap,
) -> Result<Option<DeletedEntry>> {
    if deleted.is_empty() {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(deleted.serialized_size());
    deleted.serialize_into(&mut bytes).map_err(|e| cannot_write(about, e))?;
    store::write_file(folder, about, &deleted_path(number).to_string_lossy(), &bytes)?;
    Ok(Some(DeletedEntry { number, rows: deleted.len() as usize, checksum: store::checksum_of(&bytes) }))
}
