//! Read-only file mappings: the only `unsafe` of the store.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::{Mmap, MmapOptions};

/// A read-only mapping of a file's first bytes.
#[derive(Debug)]
pub(super) struct Map(Mmap);

impl Map {
    /// Maps the `len` bytes of `file`, which must be its whole length before and after.
    ///
    /// The file must not be truncated or rewritten while it is mapped (see the module `store`); its length
    /// is checked on both sides of the call, so that a short file is an error and not a bus error.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file has another length; else the system's error.
    pub fn new(file: &File, len: usize) -> io::Result<Map> {
        let check = || match file.metadata()?.len() {
            found if found == len as u64 => Ok(()),
            found => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("expected {len} bytes, found {found}: the file changed while it was opened"),
            )),
        };
        check()?;
        // SAFETY: the mapping is read-only and private to this process's view, and only plain bytes, for which every
        // value is valid, are read through it. That no one changes the file meanwhile is the documented contract of the
        // store: its own writer never touches a file after it was renamed into place, and scratch files have no name.
        let map = unsafe { MmapOptions::new().len(len).map_copy_read_only(file)? };
        check()?;
        Ok(Map(map))
    }

    /// The mapped bytes, at an address that is a multiple of the page size.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Hints that accesses jump around, so that reading ahead is of no use.
    pub fn advise_random(&self) {
        // A hint: where the system refuses, everything still works.
        #[cfg(unix)]
        let _ = self.0.advise(memmap2::Advice::Random);
    }

    /// Hints that these bytes are read next, in one request rather than page by page.
    pub fn advise_soon(&self, start: usize, len: usize) {
        #[cfg(unix)]
        let _ = self.0.advise_range(memmap2::Advice::WillNeed, start, len);
        #[cfg(not(unix))]
        let _ = (start, len);
    }
}
