//! Manifests: what a folder holds, in which version of the format, under which checksum.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64;

use super::checks::chunk_count;
use super::{CHUNK_BYTES, FORMAT_VERSION, MANIFEST_FILE, is_valid_name};
use crate::error::{Error, Result};

const FORMAT: &str = "captree";

/// A manifest larger than this is not one: a petabyte of arrays needs less.
pub(super) const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// What every version of the manifest has, read before anything else.
#[derive(Deserialize)]
struct Tag<'a> {
    format: String,
    #[serde(borrow)]
    version: Option<&'a RawValue>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    format: String,
    version: u64,
    checksum: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// The body of a segment's manifest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body<B> {
    pub chunk_bytes: usize,
    pub checksums: TableEntry,
    pub arrays: Vec<ArrayEntry>,
    /// What the caller of [`super::FolderWriter::finish`] keeps beside the arrays.
    pub tree: B,
}

/// The checksum table's own checksums.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TableEntry {
    /// Bytes of `checksums.npy`.
    pub bytes: usize,
    /// XXH3-64 of its chunks, 16 hexadecimal digits each (JSON numbers lose bits in many readers).
    pub chunks: Vec<String>,
}

/// One array.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ArrayEntry {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    /// Bytes of the file, header included.
    pub bytes: usize,
}

/// A checksum as the manifest shows it.
pub(super) fn to_hex(checksum: u64) -> String {
    format!("{checksum:016x}")
}

pub(crate) fn from_hex(text: &str) -> Option<u64> {
    let valid = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// A manifest's text.
///
/// # Errors
/// [`Error::InvalidParameter`] if the body cannot be JSON or is too large.
pub(super) fn to_text<B: Serialize>(body: &B) -> Result<String> {
    let json = |e: serde_json::Error| Error::parameter("body", "something that JSON can hold", e);
    let body = serde_json::to_string_pretty(body).map_err(json)?;
    let body = RawValue::from_string(body).map_err(json)?;
    let envelope = Envelope {
        format: FORMAT.to_owned(),
        version: FORMAT_VERSION,
        checksum: to_hex(xxh3_64(body.get().as_bytes())),
        body: &body,
    };
    let text = serde_json::to_string_pretty(&envelope).map_err(json)? + "\n";
    match text.len() as u64 {
        n if n > MAX_MANIFEST_BYTES => {
            Err(Error::parameter("body", format!("a manifest of at most {MAX_MANIFEST_BYTES} bytes"), n))
        }
        _ => Ok(text),
    }
}

/// The body that the text of the manifest `file` of a folder holds.
///
/// # Errors
/// [`Error::NotFound`] if it is someone else's, [`Error::NewerVersion`], [`Error::Corrupt`] if it is damaged.
pub(super) fn parse<B: DeserializeOwned>(folder: &Path, file: &str, text: &[u8]) -> Result<B> {
    let corrupt = |reason: String| Error::Corrupt { path: folder.to_owned(), reason: format!("{file}: {reason}") };
    let foreign = || Error::NotFound { path: folder.to_owned(), reason: format!("its {file} is not one of captree") };
    let tag: Tag = match serde_json::from_slice(text) {
        Ok(tag) => tag,
        // JSON of another kind is someone else's manifest; what is not even JSON may have been ours.
        Err(e) if e.is_data() => return Err(foreign()),
        Err(e) => return Err(corrupt(format!("not JSON: {e}"))),
    };
    if tag.format != FORMAT {
        return Err(foreign());
    }
    let version = tag.version.map_or("none", RawValue::get);
    match version.parse() {
        Ok(FORMAT_VERSION) => (),
        Ok(found) if found > FORMAT_VERSION => {
            return Err(Error::NewerVersion { path: folder.to_owned(), found, supported: FORMAT_VERSION });
        }
        _ => return Err(corrupt(format!("expected version {FORMAT_VERSION}, found {version}"))),
    }
    let envelope: Envelope = serde_json::from_slice(text).map_err(|e| corrupt(e.to_string()))?;
    let found = to_hex(xxh3_64(envelope.body.get().as_bytes()));
    if envelope.checksum != found {
        return Err(corrupt(format!("expected checksum {:?}, found {found:?}", envelope.checksum)));
    }
    serde_json::from_str(envelope.body.get()).map_err(|e| corrupt(e.to_string()))
}

/// A manifest that was read.
pub(super) struct Manifest<B> {
    pub body: Body<B>,
    /// Size of the manifest itself.
    pub bytes: u64,
    /// Checksums of the table's chunks.
    pub table_chunks: Vec<u64>,
}

/// Reads and checks the manifest of the segment at `folder`.
///
/// # Errors
/// [`Error::NotFound`] if this is no segment, [`Error::NewerVersion`], [`Error::Corrupt`] if anything does not add up.
pub(super) fn read<B: DeserializeOwned>(folder: &Path) -> Result<Manifest<B>> {
    let text = read_text(folder, MANIFEST_FILE)?;
    let body: Body<B> = parse(folder, MANIFEST_FILE, &text)?;
    let table_chunks = check(&body)
        .map_err(|reason| Error::Corrupt { path: folder.to_owned(), reason: format!("{MANIFEST_FILE}: {reason}") })?;
    Ok(Manifest { body, bytes: text.len() as u64, table_chunks })
}

/// The text of a small file of a tree.
///
/// # Errors
/// [`Error::NotFound`] if the folder or the file is missing, [`Error::Corrupt`] if the file is too large,
/// [`Error::Io`].
pub(super) fn read_text(folder: &Path, name: &str) -> Result<Vec<u8>> {
    let missing = |reason: String| Error::NotFound { path: folder.to_owned(), reason };
    let context = |e| Error::io(format!("cannot read the tree at {}", folder.display()), e);
    let is_missing = |e: &std::io::Error| matches!(e.kind(), std::io::ErrorKind::NotFound);
    match folder.metadata() {
        Ok(found) if !found.is_dir() => return Err(missing("it is not a folder".into())),
        Err(e) if is_missing(&e) => return Err(missing("there is no such folder".into())),
        other => other.map_err(context)?,
    };
    let path = folder.join(name);
    // Looked at before it is opened: opening a named pipe would wait for a writer.
    let bytes = match path.metadata() {
        Ok(found) if !found.is_file() => return Err(missing(format!("{name} is not a file"))),
        Err(e) if is_missing(&e) => return Err(missing(format!("the folder has no {name}"))),
        other => other.map_err(context)?.len(),
    };
    let mut text = Vec::new();
    if bytes <= MAX_MANIFEST_BYTES {
        let file = File::open(&path).map_err(context)?;
        file.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut text).map_err(context)?;
    }
    if text.len() as u64 > MAX_MANIFEST_BYTES || bytes > MAX_MANIFEST_BYTES {
        let reason = format!("{name}: expected at most {MAX_MANIFEST_BYTES} bytes, found {bytes}");
        return Err(Error::Corrupt { path: folder.to_owned(), reason });
    }
    Ok(text)
}

/// Checks what the body says about itself; returns the table's checksums, or what is wrong.
fn check<B>(body: &Body<B>) -> Result<Vec<u64>, String> {
    if body.chunk_bytes != CHUNK_BYTES {
        return Err(format!("expected chunks of {CHUNK_BYTES} bytes, found {}", body.chunk_bytes));
    }
    let mut names = HashSet::new();
    for array in &body.arrays {
        if !is_valid_name(&array.name) || !names.insert(&array.name) {
            return Err(format!("{:?} is listed twice or is not a name for an array", array.name));
        }
    }
    let table = &body.checksums;
    if table.chunks.len() != chunk_count(table.bytes) {
        let (expected, found) = (chunk_count(table.bytes), table.chunks.len());
        return Err(format!("expected {expected} checksums of the checksum table, found {found}"));
    }
    let chunks = table.chunks.iter().map(|text| from_hex(text).ok_or_else(|| format!("{text:?} is not a checksum")));
    chunks.collect()
}
