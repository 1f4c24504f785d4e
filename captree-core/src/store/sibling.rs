//! Hidden folders beside a tree: where a new one is written and an old one is moved aside. Each is locked by the
//! process that uses it, so that the next writer can tell what a killed one left behind, and removes it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::versions::{CURRENT, is_of_tree};
use crate::error::{Error, Result};

/// The tree inside a folder of kind [`OLD`].
const TREE: &str = "tree";
/// Folders in which a tree is written.
pub(super) const NEW: &str = "new";
/// Folders in which the tree that is replaced waits for its end.
pub(super) const OLD: &str = "old";

/// A folder beside a tree, on its file system; removed when dropped, unless it may stay.
#[derive(Debug)]
pub(super) struct Sibling {
    folder: PathBuf,
    stays: bool,
    /// Holds the lock; none where the system cannot lock folders.
    _lock: Option<File>,
}

impl Drop for Sibling {
    fn drop(&mut self) {
        if !self.stays {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

impl Sibling {
    /// A new one, named after the tree at `target`.
    pub fn create(target: &Path, kind: &str) -> Result<Self> {
        let failed = |e| failed(target, e);
        let prefix = prefix(target, kind)
            .ok_or_else(|| failed(io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name")))?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix);
        // It becomes the tree, so it is as open to others as any new folder, unlike other temporary ones.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        loop {
            let folder = builder.tempdir_in(parent(target)).map_err(failed)?;
            let lock = File::open(folder.path());
            let taken = lock.as_ref().is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)));
            // Another writer that looked between the two steps took it for a leftover.
            if !taken && folder.path().exists() {
                return Ok(Sibling { folder: folder.keep(), stays: false, _lock: lock.ok() });
            }
        }
    }

    /// One that a process left behind, of which `read` tells something.
    pub fn left_behind<R>(target: &Path, kind: &str, read: impl Fn(&Path) -> Option<R>) -> Option<(Self, R)> {
        let prefix = prefix(target, kind)?;
        for entry in parent(target).read_dir().ok()?.flatten() {
            if !entry.file_name().to_string_lossy().starts_with(&prefix) {
                continue;
            }
            let folder = entry.path();
            let lock = File::open(&folder).ok().filter(|lock| lock.try_lock().is_ok());
            if let Some(lock) = lock
                && let Some(told) = read(&folder)
            {
                return Some((Sibling { folder, stays: true, _lock: Some(lock) }, told));
            }
        }
        None
    }

    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Where a tree that is replaced waits.
    pub fn tree(&self) -> PathBuf {
        self.path().join(TREE)
    }

    /// The folder, or whatever has its name by then, stays where it is.
    pub fn stay(&mut self) {
        self.stays = true;
    }

    /// Removes the folder.
    pub fn close(mut self) -> io::Result<()> {
        self.stays = true;
        fs::remove_dir_all(&self.folder)
    }
}

/// Removes what killed writers of the tree at `target` left beside it. One that was killed between the two renames that
/// replace a tree left the old tree aside and none in its place: it is put back.
pub(super) fn remove_leftovers(target: &Path) {
    let Ok(entries) = parent(target).read_dir() else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is = |kind| prefix(target, kind).is_some_and(|prefix| name.to_string_lossy().starts_with(&prefix));
        let path = entry.path();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_folder || !(is(NEW) || is(OLD)) || !holds_a_tree(&path) {
            continue;
        }
        let Ok(lock) = File::open(&path) else { continue };
        if lock.try_lock().is_err() {
            continue;
        }
        let old = path.join(TREE);
        if is(OLD) && old.join(CURRENT).exists() && target.symlink_metadata().is_err() {
            let _ = fs::rename(old, target);
        }
        // What cannot be removed is in nobody's way.
        let _ = fs::remove_dir_all(path);
    }
}

/// Whether nothing but what writers put there is in a folder: a name alone is no proof that it is one of theirs.
fn holds_a_tree(folder: &Path) -> bool {
    let old = folder.join(TREE);
    let whole = match old.symlink_metadata() {
        Ok(found) => found.is_dir() && folder.read_dir().is_ok_and(|entries| entries.count() == 1),
        Err(_) => return matches!(stranger(folder), Ok(None)),
    };
    whole && matches!(stranger(&old), Ok(None))
}

/// Something in the folder of a tree, or in a folder of that, which no tree has.
pub(super) fn stranger(tree: &Path) -> io::Result<Option<PathBuf>> {
    let mut folders = vec![PathBuf::new()];
    while let Some(inside) = folders.pop() {
        for entry in tree.join(&inside).read_dir()? {
            let entry = entry?;
            let path = inside.join(entry.file_name());
            match entry.file_type()?.is_dir() {
                is_folder if !is_of_tree(&path, is_folder) => return Ok(Some(path)),
                true => folders.push(path),
                false => {}
            }
        }
    }
    Ok(None)
}

/// How the names of such folders begin.
fn prefix(target: &Path, kind: &str) -> Option<String> {
    target.file_name().map(|name| format!(".{}.{kind}-", name.to_string_lossy()))
}

/// The folder that holds a path.
pub(super) fn parent(target: &Path) -> &Path {
    target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether a path leads to this open file, and not to one that has taken its name since.
pub(super) fn leads_to(path: &Path, file: &File) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        match (path.metadata(), file.metadata()) {
            (Ok(there), Ok(held)) => (there.dev(), there.ino()) == (held.dev(), held.ino()),
            (Err(e), _) => e.kind() != io::ErrorKind::NotFound,
            _ => true,
        }
    }
    // Elsewhere a folder with an open file cannot be renamed.
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

/// What to say when a tree cannot be written.
pub(super) fn failed(target: &Path, source: io::Error) -> Error {
    Error::io(format!("cannot write the tree {}", target.display()), source)
}

/// Makes a folder's entries durable where the system can: Windows and some network file systems cannot, and a finished
/// tree is not given up for that.
pub(super) fn sync_folder(folder: &Path) {
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}
