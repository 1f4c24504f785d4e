//! Writing a folder of arrays: into a temporary sibling, then renamed into place.

use std::fs::{self, File};
use std::io::{self, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::IgnoredAny;
use xxhash_rust::xxh3::xxh3_64;

use super::manifest::{self, ArrayEntry, Body, TableEntry, to_hex};
use super::npy::Layout;
use super::sibling::{NEW, OLD, Sibling, failed, parent, remove_leftovers};
use super::{CHUNK_BYTES, Element, MANIFEST_FILE, TABLE_NAME, file_name, is_valid_name};
use crate::error::{Error, Result};

/// Written bytes are made durable at least this often: one sync of a large file at its end would take minutes in which
/// no one could interrupt it.
const SYNC_BYTES: usize = 128 << 20;

/// Writes arrays one after the other; nothing appears at the path before [`FolderWriter::finish`].
///
/// Dropped before that, it removes what it wrote. A process that is killed leaves a hidden folder `.<name>.new-*`,
/// which the next writer of the same path removes.
#[derive(Debug)]
pub struct FolderWriter {
    target: PathBuf,
    temp: Sibling,
    arrays: Vec<ArrayEntry>,
    checksums: Vec<u64>,
    unfinished: Option<String>,
}

impl FolderWriter {
    /// Starts a folder that will be at `path`. A tree that is there already stays as it is until
    /// [`finish`](FolderWriter::finish) replaces it, and so does an empty folder; a link to one is followed.
    ///
    /// # Errors
    /// [`Error::Io`] if the parent folder is missing or not writable, or if `path` holds anything but a readable
    /// captree tree, which is then left untouched.
    pub fn create(path: &Path) -> Result<Self> {
        let target = match path.canonicalize() {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(e) => return Err(failed(path, e)),
        };
        remove_leftovers(&target);
        occupant(path)?;
        let temp = Sibling::create(&target, NEW)?;
        Ok(FolderWriter { target, temp, arrays: Vec::new(), checksums: Vec::new(), unfinished: None })
    }

    /// Starts the array `name` (lower-case letters, digits, `_`) of this shape, in C order. One array at a time.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for a name that is taken or not allowed, a shape too large, or an earlier array that
    /// was not finished; [`Error::Io`].
    pub fn array<T: Element>(&mut self, name: &str, shape: &[usize]) -> Result<ArrayWriter<'_, T>> {
        self.check_finished()?;
        if !is_valid_name(name) || self.arrays.iter().any(|array| array.name == name) {
            return Err(Error::parameter("array", "a new name of a-z, 0-9 and _", format!("{name:?}")));
        }
        let layout = Layout::of::<T>(shape).ok_or_else(|| {
            Error::parameter("array", "a shape that fits in memory addresses", format!("{shape:?} for {name}"))
        })?;
        let mut out = ChunkedFile::create(self.temp.path(), &file_name(name), &self.target)?;
        out.write(&layout.header)?;
        self.unfinished = Some(name.to_owned());
        let entry =
            ArrayEntry { name: name.to_owned(), dtype: T::DTYPE.name(), shape: shape.to_owned(), bytes: layout.bytes };
        Ok(ArrayWriter { folder: self, entry, out, expected: layout.len, written: 0, element: PhantomData })
    }

    /// Writes the checksums and the manifest with `body`, makes all of it durable and renames it into place.
    ///
    /// An old tree at the path is renamed aside, then removed; between the two renames, for microseconds, there is
    /// none.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] if an array was not finished or `body` cannot be JSON; [`Error::Io`]. The path then
    /// holds what it held before, unless the message says otherwise.
    pub fn finish<B: Serialize>(self, body: &B) -> Result<()> {
        self.check_finished()?;
        let folder = self.temp.path();
        let layout = Layout::of::<u64>(&[self.checksums.len()])
            .ok_or_else(|| Error::parameter("array", "a table that fits in memory addresses", "more checksums"))?;
        let mut table = ChunkedFile::create(folder, &file_name(TABLE_NAME), &self.target)?;
        table.write(&layout.header)?;
        table.write(bytemuck::cast_slice(&self.checksums))?;
        let chunks = table.finish()?.into_iter().map(to_hex).collect();

        let checksums = TableEntry { bytes: layout.bytes, chunks };
        let text = manifest::to_text(&Body { chunk_bytes: CHUNK_BYTES, checksums, arrays: self.arrays, tree: body })?;
        File::create(folder.join(MANIFEST_FILE))
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .map_err(|e| failed(&self.target, e))?;
        sync_folder(folder);
        install(self.temp, &self.target)
    }

    fn check_finished(&self) -> Result<()> {
        match &self.unfinished {
            Some(name) => Err(Error::parameter("array", "every array finished", format!("{name:?}, which is not"))),
            None => Ok(()),
        }
    }
}

/// One array being written.
#[derive(Debug)]
pub struct ArrayWriter<'a, T> {
    folder: &'a mut FolderWriter,
    entry: ArrayEntry,
    out: ChunkedFile,
    expected: usize,
    written: usize,
    element: PhantomData<fn(T)>,
}

impl<T: Element> ArrayWriter<'_, T> {
    /// Appends elements.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] if these are more than the shape holds; [`Error::Io`], for example when the disk is
    /// full.
    pub fn write(&mut self, elements: &[T]) -> Result<()> {
        if elements.len() > self.expected - self.written {
            return Err(self.miscounted("more"));
        }
        self.written += elements.len();
        self.out.write(bytemuck::cast_slice(elements))
    }

    /// Ends the array and makes it durable.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] if fewer elements came than the shape holds; [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        if self.written != self.expected {
            return Err(self.miscounted(&self.written.to_string()));
        }
        self.folder.checksums.extend(self.out.finish()?);
        self.folder.arrays.push(self.entry);
        self.folder.unfinished = None;
        Ok(())
    }

    fn miscounted(&self, came: &str) -> Error {
        let ArrayEntry { name, shape, .. } = &self.entry;
        Error::parameter("array", format!("{} elements for shape {shape:?} of {name}", self.expected), came)
    }
}

/// A file and the checksums of its chunks.
#[derive(Debug)]
struct ChunkedFile {
    file: File,
    /// What is being written, for messages.
    target: PathBuf,
    /// The started chunk, not yet written.
    pending: Vec<u8>,
    checksums: Vec<u64>,
    /// Bytes given to the system since they were last made durable.
    unsynced: usize,
}

impl ChunkedFile {
    fn create(folder: &Path, name: &str, target: &Path) -> Result<Self> {
        let file = File::create_new(folder.join(name)).map_err(|e| failed(target, e))?;
        let pending = Vec::with_capacity(CHUNK_BYTES);
        Ok(ChunkedFile { file, target: target.to_owned(), pending, checksums: Vec::new(), unsynced: 0 })
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        if !self.pending.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(CHUNK_BYTES - self.pending.len()));
            self.pending.extend_from_slice(head);
            bytes = rest;
            if self.pending.len() == CHUNK_BYTES {
                self.flush()?;
            }
        }
        if self.pending.is_empty() {
            // Whole chunks go out as they are, in one call.
            let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % CHUNK_BYTES);
            self.put(whole)?;
            self.pending.extend_from_slice(rest);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let mut pending = std::mem::take(&mut self.pending);
        self.put(&pending)?;
        pending.clear();
        self.pending = pending;
        Ok(())
    }

    fn put(&mut self, chunks: &[u8]) -> Result<()> {
        self.checksums.extend(chunks.chunks(CHUNK_BYTES).map(xxh3_64));
        self.file.write_all(chunks).map_err(|e| failed(&self.target, e))?;
        self.unsynced += chunks.len();
        if self.unsynced >= SYNC_BYTES {
            self.file.sync_data().map_err(|e| failed(&self.target, e))?;
            self.unsynced = 0;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<u64>> {
        if !self.pending.is_empty() {
            self.flush()?;
        }
        self.file.sync_all().map_err(|e| failed(&self.target, e))?;
        Ok(self.checksums)
    }
}

/// What is at a path that a tree may replace.
enum Occupant {
    Nothing,
    EmptyFolder,
    Tree,
}

/// Looks at what is at `path`; fails if it is neither a tree nor an empty folder, or holds files that are not the
/// tree's: replacing a tree removes its folder, and that must not take anything else with it.
fn occupant(path: &Path) -> Result<Occupant> {
    let refused = |reason: String| {
        let source = io::Error::new(io::ErrorKind::AlreadyExists, reason);
        Err(Error::io(format!("cannot write a tree to {}, nothing there was touched", path.display()), source))
    };
    match path.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nothing),
        other => other.map_err(|e| failed(path, e))?,
    };
    if path.read_dir().is_ok_and(|mut entries| entries.next().is_none()) {
        return Ok(Occupant::EmptyFolder);
    }
    let body = match manifest::read::<IgnoredAny>(path) {
        Ok(found) => found.body,
        Err(e) => return refused(format!("it exists and is not a tree that can be replaced ({e})")),
    };
    let mut known: Vec<String> = body.arrays.iter().map(|array| file_name(&array.name)).collect();
    known.extend([file_name(TABLE_NAME), MANIFEST_FILE.to_owned()]);
    for entry in path.read_dir().map_err(|e| failed(path, e))? {
        let name = entry.map_err(|e| failed(path, e))?.file_name();
        if !known.iter().any(|known| name == known.as_str()) {
            return refused(format!("beside the tree, it holds {}", name.display()));
        }
    }
    Ok(Occupant::Tree)
}

/// Renames the finished folder to `target`, replacing the tree that is there.
fn install(temp: Sibling, target: &Path) -> Result<()> {
    let old = match occupant(target)? {
        Occupant::Nothing => None,
        Occupant::EmptyFolder => {
            fs::remove_dir(target).map_err(|e| failed(target, e))?;
            None
        }
        Occupant::Tree => {
            let aside = Sibling::create(target, OLD)?;
            fs::rename(target, aside.tree()).map_err(|e| failed(target, e))?;
            Some(aside)
        }
    };
    if let Err(e) = fs::rename(temp.path(), target) {
        if let Some(aside) = old
            && fs::rename(aside.tree(), target).is_err()
        {
            // Whatever happened, the old tree is not ours to lose.
            let kept = aside.tree();
            aside.keep();
            return Err(failed(
                target,
                io::Error::new(e.kind(), format!("{e}; the old tree is at {}", kept.display())),
            ));
        }
        return Err(failed(target, e));
    }
    // Its name is free again, and not ours to clean up.
    temp.keep();
    sync_folder(parent(target));
    match old.map(|aside| (aside.path().to_owned(), aside.close())) {
        Some((aside, Err(e))) => Err(Error::io(
            format!("the tree {} is written, but its predecessor stays at {}", target.display(), aside.display()),
            e,
        )),
        _ => Ok(()),
    }
}

/// Makes a folder's entries durable where the system can: Windows and some network file systems cannot, and a finished
/// tree is not given up for that.
fn sync_folder(folder: &Path) {
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}
