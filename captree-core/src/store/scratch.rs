//! Arrays on disk that no one else sees, for builds that do not fit in memory.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use super::checks::MappedFile;
use super::map::Map;
use super::{Array, Element};
use crate::error::{Error, Result};

const BUFFER_BYTES: usize = 1 << 20;

/// Writes an array once to a temporary file without a name and maps it. There are no checksums: the file is gone with
/// the array's last clone, or with the process, however it ends.
#[derive(Debug)]
pub struct ScratchWriter<T> {
    file: BufWriter<File>,
    folder: PathBuf,
    len: usize,
    element: PhantomData<fn(T)>,
}

impl<T: Element> ScratchWriter<T> {
    /// Starts an array on the file system of the folder `dir`.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder is missing or not writable.
    pub fn create(dir: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(dir).map_err(|e| failed(dir, e))?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(ScratchWriter { file, folder: dir.to_owned(), len: 0, element: PhantomData })
    }

    /// Appends elements.
    ///
    /// # Errors
    /// [`Error::Io`], for example when the disk is full.
    pub fn write(&mut self, elements: &[T]) -> Result<()> {
        self.file.write_all(bytemuck::cast_slice(elements)).map_err(|e| failed(&self.folder, e))?;
        self.len += elements.len();
        Ok(())
    }

    /// Number of elements written so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written so far.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The array of everything written.
    ///
    /// # Errors
    /// [`Error::Io`], for example when the disk is full.
    pub fn finish(self) -> Result<Array<T>> {
        let ScratchWriter { file, folder, len, .. } = self;
        if len == 0 {
            return Ok(Array::from_vec(Vec::new()));
        }
        let file = file.into_inner().map_err(|e| failed(&folder, e.into_error()))?;
        let map = Map::new(&file, len * size_of::<T>()).map_err(|e| failed(&folder, e))?;
        Ok(Array::mapped(MappedFile::new(map, 0, None), len))
    }
}

fn failed(folder: &Path, source: std::io::Error) -> Error {
    Error::io(format!("cannot write a temporary file in {}", folder.display()), source)
}
