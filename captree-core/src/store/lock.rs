//! One writer at a time: a lock on a file of the tree, which the system takes back when its process ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use super::sibling::{failed, leads_to};
use super::versions::LOCK;
use crate::error::{Error, Result};

/// A holder's name is not longer.
const MAX_NAME: u64 = 500;

/// The right to change a tree, until it is dropped.
#[derive(Debug)]
pub struct WriterLock {
    _file: File,
}

impl WriterLock {
    /// Takes the lock of the tree at `folder` in order to `what`.
    ///
    /// # Errors
    /// [`Error::Locked`] if another writer has it, with what that one said of itself; [`Error::Io`].
    pub fn take(folder: &Path, what: &str) -> Result<Self> {
        let path = folder.join(LOCK);
        let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open().map_err(|e| failed(folder, e))?;
        match file.try_lock() {
            // A tree that was replaced meanwhile: its lock is not that of the new one.
            Ok(()) if !leads_to(&path, &file) => return WriterLock::take(folder, what),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Who only just took it has not written its name yet.
                let _ = file.take(MAX_NAME).read_to_string(&mut holder);
                let holder = if holder.is_empty() { "another process".into() } else { holder };
                return Err(Error::Locked { path: folder.to_owned(), holder });
            }
            Err(TryLockError::Error(e)) => return Err(failed(folder, e)),
        }
        // For the message above alone.
        let _ = file.set_len(0).and_then(|()| file.write_all(name(what).as_bytes()));
        Ok(WriterLock { _file: file })
    }
}

/// What a writer says of itself.
fn name(what: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let on = if host.is_empty() { String::new() } else { format!(" on {host}") };
    format!("process {}{on} ({what})", std::process::id())
}
