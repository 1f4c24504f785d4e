//! Reading a folder of arrays.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::checks::{Checks, MappedFile, chunk_count};
use super::manifest::{self, ArrayEntry};
use super::map::Map;
use super::npy::Layout;
use super::{Array, Element, TABLE_NAME, file_name};
use crate::error::{Error, Result};

/// An opened folder: its manifest is read and the sizes of its files are right; arrays are mapped on request.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    arrays: Vec<Listed>,
    table: Array<u64>,
    bytes: u64,
}

/// An array of the manifest and where its checksums start in the table.
#[derive(Debug)]
struct Listed {
    entry: ArrayEntry,
    first_chunk: usize,
}

impl Folder {
    /// Where the folder lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the folder at `path` and gives what its writer passed to [`finish`](super::FolderWriter::finish).
    ///
    /// Reads the manifest and looks at the files' sizes; takes milliseconds whatever these are.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no tree at `path`, [`Error::NewerVersion`], [`Error::Corrupt`] if the manifest
    /// is damaged or a file is missing or has another size, [`Error::Io`] if the system does not let us read.
    pub fn open<B: DeserializeOwned>(path: &Path) -> Result<(Self, B)> {
        let manifest::Manifest { body, mut bytes, table_chunks } = manifest::read::<B>(path)?;
        let mut chunks = 0usize;
        let mut arrays = Vec::with_capacity(body.arrays.len());
        for entry in body.arrays {
            check_file(path, &file_name(&entry.name), entry.bytes)?;
            let first_chunk = chunks;
            // Saturates only over sparse or linked files of exabytes, whose table then has the wrong size.
            chunks = chunks.saturating_add(chunk_count(entry.bytes));
            bytes = bytes.saturating_add(entry.bytes as u64);
            arrays.push(Listed { entry, first_chunk });
        }
        let layout = Layout::of::<u64>(&[chunks]);
        let (table_bytes, file) = (body.checksums.bytes, file_name(TABLE_NAME));
        let Some(layout) = layout.filter(|layout| layout.bytes == table_bytes) else {
            let reason = format!("{file}: expected {chunks} checksums, found a file of {table_bytes} bytes");
            return Err(Error::Corrupt { path: path.to_owned(), reason });
        };
        bytes = bytes.saturating_add(table_bytes as u64);
        let checks = Checks::new(path.to_owned(), file, Array::from_vec(table_chunks), 0, table_bytes);
        let table = map_array::<u64>(layout, checks)?;
        Ok((Folder { path: path.to_owned(), arrays, table, bytes }, body.tree))
    }

    /// Maps the array `name` of this shape, in C order. Its header is compared; its data is checked as it is touched.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the folder has no such array, or one of another dtype, shape, size or header.
    pub fn array<T: Element>(&self, name: &str, shape: &[usize]) -> Result<Array<T>> {
        let Listed { entry, first_chunk } = self.listed(name)?;
        let file = file_name(name);
        let corrupt = |expected: String, found: String| Error::Corrupt {
            path: self.path.clone(),
            reason: format!("{file}: expected {expected}, found {found}"),
        };
        let dtype = T::DTYPE.name();
        if entry.dtype != dtype {
            return Err(corrupt(format!("dtype {dtype}"), entry.dtype.clone()));
        }
        if entry.shape != shape {
            return Err(corrupt(format!("shape {shape:?}"), format!("{:?}", entry.shape)));
        }
        let Some(layout) = Layout::of::<T>(shape) else {
            return Err(corrupt("a shape that fits in memory addresses".into(), format!("{shape:?}")));
        };
        if entry.bytes != layout.bytes {
            return Err(corrupt(format!("{} bytes", layout.bytes), entry.bytes.to_string()));
        }
        let checks = Checks::new(self.path.clone(), file, self.table.clone(), *first_chunk, layout.bytes);
        map_array(layout, checks)
    }

    /// The shape of the array `name`, as the manifest has it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the folder has no such array.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.listed(name)?.entry.shape)
    }

    /// Bytes of all files of the folder.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn listed(&self, name: &str) -> Result<&Listed> {
        self.arrays.iter().find(|array| array.entry.name == name).ok_or_else(|| Error::Corrupt {
            path: self.path.clone(),
            reason: format!("the manifest lists no array {name:?}"),
        })
    }
}

/// Maps the file that `checks` is about and compares its size and header with the layout.
fn map_array<T: Element>(layout: Layout, checks: Checks) -> Result<Array<T>> {
    let path = checks.folder.join(&checks.file);
    let corrupt =
        |reason: String| Error::Corrupt { path: checks.folder.clone(), reason: format!("{}: {reason}", checks.file) };
    check_file(&checks.folder, &checks.file, layout.bytes)?;
    let map = File::open(&path).and_then(|file| Map::new(&file, layout.bytes)).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => corrupt(e.to_string()),
        _ => Error::io(format!("cannot map {}", path.display()), e),
    })?;
    let start = layout.header.len();
    let (header, data) = map.bytes().split_at(start);
    if header != layout.header {
        let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[10..]).trim_end().to_owned();
        return Err(corrupt(format!("expected the header {}, found {}", text(&layout.header), text(header))));
    }
    // True by the layout; asked once here, so that slices can rely on it.
    if bytemuck::try_cast_slice::<u8, T>(data).is_err() {
        return Err(corrupt("its data is not aligned".into()));
    }
    Ok(Array::mapped(MappedFile::new(map, start, Some(checks)), layout.len))
}

/// Fails unless `file` is a regular file of `expected` bytes.
fn check_file(folder: &Path, file: &str, expected: usize) -> Result<()> {
    let corrupt = |found: &str| Error::Corrupt {
        path: folder.to_owned(),
        reason: format!("{file}: expected {expected} bytes, found {found}"),
    };
    match folder.join(file).metadata() {
        Ok(found) if !found.is_file() => Err(corrupt("something that is not a file")),
        Ok(found) if found.len() != expected as u64 => Err(corrupt(&found.len().to_string())),
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(corrupt("no such file")),
        Err(e) => Err(Error::io(format!("cannot read {}", folder.join(file).display()), e)),
    }
}
