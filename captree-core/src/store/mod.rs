//! Trees on disk: segments, each a folder of a few large flat arrays of open formats, mapped in milliseconds and
//! checked as they are read; and manifests that say which segments make a tree (`versions.rs`).
//!
//! The folder of a segment:
//!
//! | file | what it holds |
//! |---|---|
//! | `<name>.npy` | one array; NumPy format 1.0, C order, little-endian, data at a multiple of 64 bytes |
//! | `checksums.npy` | `uint64`: XXH3-64 of each 64 KiB chunk of the array files, in the manifest's order |
//! | `manifest.json` | `{"format": "captree", "version": 1, "checksum": ..., "body": ...}` |
//!
//! A file of `n` bytes has `ceil(n / 65536)` chunks; its header is part of the first one.
//!
//! The manifest's `checksum` is the XXH3-64 (16 hexadecimal digits) of the body's text, exactly as it stands in the
//! file. The body lists the arrays (`name`, `dtype`, `shape`, file `bytes`), the checksums of `checksums.npy` itself in
//! chunks of the same size, and under `tree` whatever the caller gave [`FolderWriter::finish`]. So each bit of each
//! file is covered: manifest -> table -> chunks.
//!
//! **Why chunks are checked lazily.** Hashing 38 GB takes tens of seconds from a fast disk, and a tree must open in
//! milliseconds. [`Folder::open`] therefore reads the manifest and the files' sizes only; the first touch of a chunk
//! (and of the part of the table that covers it) hashes it and sets a bit, and later touches cost one atomic load.
//! Nothing leaves an [`Array`] unchecked, and [`Array::verify`] checks everything again on demand.
//!
//! **What checksums are not.** They catch damage, not forgery: whoever alters a file can recompute them. Sizes, names
//! and shapes are validated here regardless; what the numbers mean is for the reader of the arrays to validate.
//!
//! **Outside the contract.** Files must not change while they are mapped. A file that another process truncates then
//! ends this one with a bus error, and one that it rewrites in place may change under chunks already checked; no
//! operating system offers a mapping without this. [`FolderWriter`] never touches files in place, so replacing a tree
//! is safe.

#[cfg(target_endian = "big")]
compile_error!("captree stores and maps little-endian arrays and does not support big-endian targets");

mod array;
mod checks;
mod element;
mod folder;
mod install;
mod lock;
mod manifest;
mod map;
mod npy;
mod scratch;
mod sibling;
mod versions;
mod writer;

pub use array::Array;
pub use element::{Dtype, Element};
pub use folder::Folder;
pub use install::NewTree;
pub use lock::WriterLock;
pub(crate) use manifest::from_hex;
pub use scratch::ScratchWriter;
pub use versions::{
    DELETED, JOB, MAX_NUMBER, Names, SEGMENTS, SET, Version, checksum_of, clean, commit, is_in_place, next_segment,
    numbered, read, read_file, read_version, write_file,
};
pub use writer::{ArrayWriter, FolderWriter};

/// The version of the folder format that this build writes, and the only one it reads.
pub const FORMAT_VERSION: u64 = 1;

/// Bytes covered by one checksum (the last chunk of a file may be shorter).
pub const CHUNK_BYTES: usize = 64 * 1024;

/// The manifest's file name.
const MANIFEST_FILE: &str = "manifest.json";

/// Name of the checksum table, reserved among the arrays' names.
const TABLE_NAME: &str = "checksums";

/// File name of the array `name`.
fn file_name(name: &str) -> String {
    format!("{name}.npy")
}

/// Whether `name` can name an array: it becomes a file name, so nothing that could leave the folder.
fn is_valid_name(name: &str) -> bool {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    (1..=64).contains(&name.len()) && name.bytes().all(ok) && name != TABLE_NAME
}

#[cfg(test)]
mod tests;
