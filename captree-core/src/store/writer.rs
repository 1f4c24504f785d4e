//! Writing a segment: a new folder of arrays. Whoever asks for it says when it counts, and removes what did not.

use std::fs::{self, File};
use std::io::Write;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::manifest::{self, ArrayEntry, Body, TableEntry, to_hex};
use super::npy::Layout;
use super::sibling::{failed, sync_folder};
use super::{CHUNK_BYTES, Element, MANIFEST_FILE, TABLE_NAME, file_name, is_valid_name};
use crate::error::{Error, Result};

/// Written bytes are made durable at least this often: one sync of a large file at its end would take minutes in which
/// no one could interrupt it.
const SYNC_BYTES: usize = 128 << 20;

/// Writes arrays one after the other; without the manifest that [`FolderWriter::finish`] writes, a folder is nothing.
#[derive(Debug)]
pub struct FolderWriter {
    folder: PathBuf,
    /// What is being written, for messages.
    about: PathBuf,
    arrays: Vec<ArrayEntry>,
    checksums: Vec<u64>,
    unfinished: Option<String>,
}

impl FolderWriter {
    /// Starts the folder `folder`, which must not be there yet, as a part of the tree `about`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(folder: &Path, about: &Path) -> Result<Self> {
        fs::create_dir(folder).map_err(|e| failed(about, e))?;
        let (folder, about) = (folder.to_owned(), about.to_owned());
        Ok(FolderWriter { folder, about, arrays: Vec::new(), checksums: Vec::new(), unfinished: None })
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
        let mut out = ChunkedFile::create(&self.folder, &file_name(name), &self.about)?;
        out.write(&layout.header)?;
        self.unfinished = Some(name.to_owned());
        let entry =
            ArrayEntry { name: name.to_owned(), dtype: T::DTYPE.name(), shape: shape.to_owned(), bytes: layout.bytes };
        Ok(ArrayWriter { folder: self, entry, out, expected: layout.len, written: 0, element: PhantomData })
    }

    /// Writes the checksums and the manifest with `body`, and makes all of it durable.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] if an array was not finished or `body` cannot be JSON; [`Error::Io`].
    pub fn finish<B: Serialize>(self, body: &B) -> Result<()> {
        self.check_finished()?;
        let layout = Layout::of::<u64>(&[self.checksums.len()])
            .ok_or_else(|| Error::parameter("array", "a table that fits in memory addresses", "more checksums"))?;
        let mut table = ChunkedFile::create(&self.folder, &file_name(TABLE_NAME), &self.about)?;
        table.write(&layout.header)?;
        table.write(bytemuck::cast_slice(&self.checksums))?;
        let chunks = table.finish()?.into_iter().map(to_hex).collect();

        let checksums = TableEntry { bytes: layout.bytes, chunks };
        let text = manifest::to_text(&Body { chunk_bytes: CHUNK_BYTES, checksums, arrays: self.arrays, tree: body })?;
        File::create(self.folder.join(MANIFEST_FILE))
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .map_err(|e| failed(&self.about, e))?;
        sync_folder(&self.folder);
        Ok(())
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
