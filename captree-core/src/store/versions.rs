//! The states that a tree on disk goes through.
//!
//! | in the folder | what it is |
//! |---|---|
//! | `CURRENT` | the name of the manifest that counts, and the XXH3-64 of that file |
//! | `manifest-000017.json` | a manifest: which segments and deleted rows make up the tree |
//! | `segments/000004/` | a segment, which never changes |
//! | `deleted/000009.roaring` | a set of deleted rows, which never changes |
//! | `LOCK` | the lock of the one process that may write ([`super::WriterLock`]) |
//!
//! A change writes new files, makes them durable, and renames a new `CURRENT` over the old one: before that the tree is
//! what it was, afterwards what it has become, whatever happens in between. A reader holds a shared lock on its
//! manifest; files are removed once no manifest names them that is current or held.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::xxh3_64;

use super::MANIFEST_FILE;
use super::manifest::{MAX_MANIFEST_BYTES, from_hex, parse, read_text, to_hex, to_text};
use super::sibling::{failed, leads_to, sync_folder};
use crate::error::{Error, Result};

/// Names the manifest that counts.
pub(super) const CURRENT: &str = "CURRENT";
/// Locked by the writer.
pub(super) const LOCK: &str = "LOCK";
/// The folder of segments.
pub const SEGMENTS: &str = "segments";
/// The folder of sets of deleted rows.
pub const DELETED: &str = "deleted";
/// What a build notes that can be gone on with; only in folders that are no trees yet.
pub const JOB: &str = "job.json";
/// Ends the names of sets of deleted rows.
pub const SET: &str = ".roaring";
/// Ends the names of files that are not whole yet.
const ASIDE: &str = ".tmp";

/// No tree counts so far: the numbers above are there so that one more is always a number.
pub const MAX_NUMBER: u64 = 1 << 60;

/// A reader that finds one manifest after the other gone tries again for so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// A manifest's body that tells what else must stay.
pub trait Names: DeserializeOwned {
    /// The segments and sets of deleted rows that it names: paths within the tree.
    fn names(&self) -> Vec<PathBuf>;
}

/// A state of a tree.
#[derive(Debug)]
pub struct Version<B> {
    /// The manifest's number: each change counts one on.
    pub number: u64,
    /// What the manifest says.
    pub body: B,
    /// Bytes of the manifest.
    pub bytes: u64,
    /// Locked, so that writers know that what the manifest names is in use.
    pub hold: File,
}

/// Whether a path within a tree is one that a tree has.
pub(super) fn is_of_tree(path: &Path, is_folder: bool) -> bool {
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    let whole = |name: &str| name.strip_suffix(ASIDE).unwrap_or(name).to_owned();
    match parts.iter().map(AsRef::as_ref).collect::<Vec<&str>>()[..] {
        [name] if is_folder => name == SEGMENTS || name == DELETED,
        [LOCK] => true,
        [name] => whole(name) == CURRENT || whole(name) == JOB || number_of(&whole(name)).is_some(),
        [SEGMENTS, name] => is_folder && number_in(name, "", "").is_some(),
        [SEGMENTS, _, name] => !is_folder && (name == MANIFEST_FILE || name.ends_with(".npy")),
        [DELETED, name] => !is_folder && number_in(&whole(name), "", SET).is_some(),
        _ => false,
    }
}

/// A number as the names of files and folders have it.
pub fn numbered(start: &str, number: u64, end: &str) -> String {
    format!("{start}{number:06}{end}")
}

/// The number in a name, which is what [`numbered`] gives for it.
fn number_in(name: &str, start: &str, end: &str) -> Option<u64> {
    let number = name.strip_prefix(start)?.strip_suffix(end)?.parse().ok()?;
    (number <= MAX_NUMBER && numbered(start, number, end) == name).then_some(number)
}

fn manifest_name(number: u64) -> String {
    numbered("manifest-", number, ".json")
}

fn number_of(manifest: &str) -> Option<u64> {
    number_in(manifest, "manifest-", ".json")
}

/// The number of a new folder of a segment: higher than those of all that are there.
pub fn next_segment(folder: &Path) -> u64 {
    let found = folder.join(SEGMENTS).read_dir().into_iter().flatten().flatten();
    let numbers = found.filter_map(|entry| number_in(&entry.file_name().to_string_lossy(), "", ""));
    numbers.max().unwrap_or(0) + 1
}

/// Reads the current state of the tree at `folder`.
///
/// # Errors
/// [`Error::NotFound`] if there is no tree, [`Error::NewerVersion`], [`Error::Corrupt`], [`Error::Io`].
pub fn read<B: DeserializeOwned>(folder: &Path) -> Result<Version<B>> {
    let start = Instant::now();
    loop {
        let (number, checksum) = current(folder)?;
        match held(folder, number)? {
            Some(hold) => match open(folder, number, hold, Some(checksum)) {
                // A build put another tree in its place in between.
                Err(Error::Corrupt { .. }) if start.elapsed() < PATIENCE && current(folder)? != (number, checksum) => {}
                opened => return opened,
            },
            // A writer removed it after it was named here: by now another one is.
            None if start.elapsed() < PATIENCE && current(folder)?.0 != number => {}
            None => return Err(gone(folder, number)),
        }
    }
}

/// Reads a certain state, which someone holds.
///
/// # Errors
/// As [`read`]; [`Error::NotFound`] if it is gone.
pub fn read_version<B: DeserializeOwned>(folder: &Path, number: u64) -> Result<Version<B>> {
    let (newest, checksum) = current(folder)?;
    match held(folder, number)? {
        Some(hold) => open(folder, number, hold, (number == newest).then_some(checksum)),
        None => {
            let reason = format!("its state {number} is gone, {newest} is the current one");
            Err(Error::NotFound { path: folder.to_owned(), reason })
        }
    }
}

fn gone(folder: &Path, number: u64) -> Error {
    let reason = format!("{CURRENT} names {}, which is missing", manifest_name(number));
    Error::Corrupt { path: folder.to_owned(), reason }
}

/// The number and the checksum of the current manifest.
fn current(folder: &Path) -> Result<(u64, u64)> {
    let text = match read_text(folder, CURRENT) {
        Err(Error::NotFound { path, .. }) if folder.join(MANIFEST_FILE).is_file() => {
            let reason = format!("the folder has no {CURRENT}; a segment of a tree opens with its tree alone");
            return Err(Error::NotFound { path, reason });
        }
        text => text?,
    };
    let text = String::from_utf8_lossy(&text);
    let parts = text.strip_suffix('\n').and_then(|line| line.split_once(' '));
    let found = parts.and_then(|(name, checksum)| Some((number_of(name)?, from_hex(checksum)?)));
    // Each state has one text: a damaged one must not pass for another way to write it.
    found.filter(|(number, checksum)| *text == line_of(*number, *checksum)).ok_or_else(|| {
        let reason = format!("{CURRENT}: expected a manifest's name and checksum, found {:?}", text.trim_end());
        Error::Corrupt { path: folder.to_owned(), reason }
    })
}

/// What `CURRENT` holds.
fn line_of(number: u64, checksum: u64) -> String {
    format!("{} {}\n", manifest_name(number), to_hex(checksum))
}

/// The manifest's file with a shared lock; nothing if it is gone or about to go.
fn held(folder: &Path, number: u64) -> Result<Option<File>> {
    let path = folder.join(manifest_name(number));
    // Looked at before it is opened: opening a named pipe would wait for a writer.
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        let reason = format!("{} is not a file", manifest_name(number));
        return Err(Error::Corrupt { path: folder.to_owned(), reason });
    }
    let file = match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|e| Error::io(format!("cannot read {}", path.display()), e))?,
    };
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => return Ok(None),
        // Where the system cannot lock, open maps keep removed files alive all the same.
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    Ok(leads_to(&path, &file).then_some(file))
}

/// Whether the tree at `folder` is still the one in which the manifest `hold` of this number was opened: a build may
/// put another one in its place, which numbers its states and segments anew.
pub fn is_in_place(folder: &Path, number: u64, hold: &File) -> bool {
    leads_to(&folder.join(manifest_name(number)), hold)
}

fn open<B: DeserializeOwned>(folder: &Path, number: u64, hold: File, checksum: Option<u64>) -> Result<Version<B>> {
    let name = manifest_name(number);
    let text = read_at_most(&hold, MAX_MANIFEST_BYTES)
        .map_err(|e| Error::io(format!("cannot read {}", folder.join(&name).display()), e))?
        .ok_or_else(|| {
            let reason = format!("{name}: expected at most {MAX_MANIFEST_BYTES} bytes, found more");
            Error::Corrupt { path: folder.to_owned(), reason }
        })?;
    let body = parse(folder, &name, &text)?;
    match checksum {
        Some(expected) if expected != xxh3_64(&text) => {
            let (expected, found) = (to_hex(expected), to_hex(xxh3_64(&text)));
            let reason = format!("{name}: {CURRENT} expects checksum {expected:?}, found {found:?}");
            Err(Error::Corrupt { path: folder.to_owned(), reason })
        }
        _ => Ok(Version { number, body, bytes: text.len() as u64, hold }),
    }
}

/// What a file holds; nothing if that is more than `most` bytes, of which no more are read.
fn read_at_most(file: &File, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    if file.metadata()?.len() <= most {
        file.take(most + 1).read_to_end(&mut bytes)?;
        return Ok((bytes.len() as u64 <= most).then_some(bytes));
    }
    Ok(None)
}

/// Makes `body` the current state of the tree at `folder`, under a number that is higher than any before.
///
/// # Errors
/// [`Error::Io`], [`Error::InvalidParameter`] if `body` cannot be JSON; the state before then stays the current one.
pub fn commit<B: Serialize>(folder: &Path, about: &Path, number: u64, body: &B) -> Result<()> {
    let (name, text) = (manifest_name(number), to_text(body)?);
    write_file(folder, about, &name, text.as_bytes())?;
    let line = line_of(number, xxh3_64(text.as_bytes()));
    write_file(folder, about, CURRENT, line.as_bytes())
}

/// Writes a small file aside, makes it durable and renames it to `name`, within the folder of the tree `about`.
///
/// # Errors
/// [`Error::Io`].
pub fn write_file(folder: &Path, about: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let (path, aside) = (folder.join(name), folder.join(format!("{name}{ASIDE}")));
    let write = || {
        let mut file = File::create(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, &path)
    };
    write().map_err(|e| failed(about, e))?;
    sync_folder(path.parent().unwrap_or(folder));
    Ok(())
}

/// Reads a file of at most `most` bytes of the tree at `folder` that a manifest names, with the checksum that this has
/// for it.
///
/// # Errors
/// [`Error::Corrupt`] if it is missing or another one; [`Error::Io`].
pub fn read_file(folder: &Path, name: &str, checksum: u64, most: u64) -> Result<Vec<u8>> {
    let corrupt = |reason: String| Error::Corrupt { path: folder.to_owned(), reason: format!("{name}: {reason}") };
    let path = folder.join(name);
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        return Err(corrupt("it is not a file".into()));
    }
    let bytes = match File::open(&path).and_then(|file| read_at_most(&file, most)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(corrupt("no such file".into())),
        bytes => bytes.map_err(|e| Error::io(format!("cannot read {}", path.display()), e))?,
    };
    let bytes = bytes.ok_or_else(|| corrupt(format!("expected at most {most} bytes, found more")))?;
    match xxh3_64(&bytes) {
        found if found == checksum => Ok(bytes),
        found => Err(corrupt(format!("expected checksum {:?}, found {:?}", to_hex(checksum), to_hex(found)))),
    }
}

/// Removes what neither the current state of the tree, nor one that a reader holds, names; the caller has the lock.
/// Returns the bytes that went.
pub fn clean<B: Names>(folder: &Path) -> Result<u64> {
    let (newest, _) = current(folder)?;
    let (mut kept, mut freed) = (Vec::new(), 0);
    let entries = |folder: &Path| -> Vec<PathBuf> {
        folder.read_dir().map_or_else(|_| Vec::new(), |found| found.flatten().map(|entry| entry.path()).collect())
    };
    for path in entries(folder) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name == JOB || (name.ends_with(ASIDE) && is_of_tree(Path::new(&name), false)) {
            freed += remove(&path);
        }
        let Some(number) = number_of(&name).filter(|_| path.is_file()) else { continue };
        if number != newest {
            // Locked until it is gone: a reader that comes meanwhile looks for the current one instead.
            let lock = File::open(&path);
            if lock.as_ref().is_ok_and(|file| !matches!(file.try_lock(), Err(TryLockError::WouldBlock))) {
                freed += remove(&path);
                continue;
            }
        }
        // One that cannot be read may name anything: then everything stays.
        let text = read_text(folder, &name)?;
        kept.extend(parse::<B>(folder, &name, &text)?.names());
    }
    for kind in [SEGMENTS, DELETED] {
        for path in entries(&folder.join(kind)) {
            let inside = Path::new(kind).join(path.file_name().unwrap_or_default());
            if is_of_tree(&inside, path.is_dir()) && !kept.contains(&inside) {
                freed += remove(&path);
            }
        }
    }
    Ok(freed)
}

/// Removes a file or a folder; returns its bytes. What cannot be removed is in nobody's way.
fn remove(path: &Path) -> u64 {
    if path.is_dir() {
        let files = path
            .read_dir()
            .map_or(0, |files| files.flatten().filter_map(|file| file.metadata().ok()).map(|found| found.len()).sum());
        return fs::remove_dir_all(path).map_or(0, |()| files);
    }
    let bytes = path.metadata().map_or(0, |found| found.len());
    fs::remove_file(path).map_or(0, |()| bytes)
}

/// The checksum of a small file as a manifest has it.
pub fn checksum_of(bytes: &[u8]) -> String {
    to_hex(xxh3_64(bytes))
}
