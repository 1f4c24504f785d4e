//! A new tree: written into a hidden folder beside its path, then renamed into place.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;

use super::lock::WriterLock;
use super::sibling::{NEW, OLD, Sibling, failed, parent, remove_leftovers, stranger, sync_folder};
use super::versions::{self, JOB};
use crate::error::{Error, Result};

/// A folder that becomes a tree; nothing appears at the tree's path before [`NewTree::finish`].
///
/// Dropped before that, it is removed. A process that is killed leaves a hidden folder `.<name>.new-*`, which the next
/// one that writes to the same path removes.
#[derive(Debug)]
pub struct NewTree {
    target: PathBuf,
    temp: Sibling,
}

impl NewTree {
    /// Starts a folder that will be at `path`. A tree that is there already stays as it is until
    /// [`finish`](NewTree::finish) replaces it, and so does an empty folder; a link to one is followed.
    ///
    /// # Errors
    /// [`Error::Io`] if the parent folder is missing or not writable, or if `path` holds anything but a readable
    /// captree tree, which is then left untouched.
    pub fn create(path: &Path) -> Result<Self> {
        let target = target_of(path)?;
        remove_leftovers(&target);
        occupant(path)?;
        let temp = Sibling::create(&target, NEW)?;
        Ok(NewTree { target, temp })
    }

    /// Goes on with a folder that a process left behind, of which `read` tells something.
    ///
    /// # Errors
    /// As [`NewTree::create`].
    pub fn resume<R>(path: &Path, read: impl Fn(&Path) -> Option<R>) -> Result<Option<(Self, R)>> {
        let target = target_of(path)?;
        occupant(path)?;
        let found = Sibling::left_behind(&target, NEW, read);
        // All others; this one is locked by now.
        remove_leftovers(&target);
        Ok(found.map(|(temp, told)| (NewTree { target, temp }, told)))
    }

    /// From here on the folder stays when it is dropped, for [`NewTree::resume`].
    pub fn stay(&mut self) {
        self.temp.stay();
    }

    /// The hidden folder.
    pub fn folder(&self) -> &Path {
        self.temp.path()
    }

    /// Where the tree will be, for messages.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Renames the folder, whose files are durable, into place.
    ///
    /// An old tree at the path is renamed aside, then removed; between the two renames, for microseconds, there is
    /// none.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Locked`] if another process changes the old tree. The path then holds what it held
    /// before, unless the message says otherwise.
    pub fn finish(self) -> Result<()> {
        install(self.temp, &self.target)?;
        // Not before: a build that found its place locked can be gone on with.
        let _ = fs::remove_file(self.target.join(JOB));
        Ok(())
    }
}

/// The path itself, or what a link there leads to.
fn target_of(path: &Path) -> Result<PathBuf> {
    match path.canonicalize() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        found => found.map_err(|e| failed(path, e)),
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
    if let Err(e) = versions::read::<IgnoredAny>(path) {
        return refused(format!("it exists and is not a tree that can be replaced ({e})"));
    }
    if let Some(other) = stranger(path).map_err(|e| failed(path, e))? {
        return refused(format!("beside the tree, it holds {}", other.display()));
    }
    Ok(Occupant::Tree)
}

/// Renames the finished folder to `target`, replacing the tree that is there.
fn install(mut temp: Sibling, target: &Path) -> Result<()> {
    let old = match occupant(target)? {
        Occupant::Nothing => None,
        Occupant::EmptyFolder => {
            fs::remove_dir(target).map_err(|e| failed(target, e))?;
            None
        }
        Occupant::Tree => {
            let _lock = WriterLock::take(target, "build")?;
            let aside = Sibling::create(target, OLD)?;
            fs::rename(target, aside.tree()).map_err(|e| failed(target, e))?;
            Some(aside)
        }
    };
    if let Err(e) = fs::rename(temp.path(), target) {
        if let Some(mut aside) = old
            && fs::rename(aside.tree(), target).is_err()
        {
            // Whatever happened, the old tree is not ours to lose.
            let kept = aside.tree();
            aside.stay();
            return Err(failed(
                target,
                io::Error::new(e.kind(), format!("{e}; the old tree is at {}", kept.display())),
            ));
        }
        return Err(failed(target, e));
    }
    // Its name is free again, and not ours to clean up.
    temp.stay();
    sync_folder(parent(target));
    match old.map(|aside| (aside.path().to_owned(), aside.close())) {
        Some((aside, Err(e))) => Err(Error::io(
            format!("the tree {} is written, but its predecessor stays at {}", target.display(), aside.display()),
            e,
        )),
        _ => Ok(()),
    }
}
