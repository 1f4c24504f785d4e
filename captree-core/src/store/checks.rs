//! Mapped files whose chunks are compared with their checksums on first touch.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::map::Map;
use super::{Array, CHUNK_BYTES};
use crate::control::Control;
use crate::error::{Error, Result};

/// Number of chunks of a file of `bytes` bytes.
pub(super) fn chunk_count(bytes: usize) -> usize {
    bytes.div_ceil(CHUNK_BYTES)
}

/// A mapped file: `start` bytes of header, then data.
#[derive(Debug)]
pub(super) struct MappedFile {
    map: Map,
    start: usize,
    /// None for scratch files, which live no longer than the process that wrote them.
    checks: Option<Checks>,
    random: AtomicBool,
}

/// The checksums of one file and which of its chunks already matched.
#[derive(Debug)]
pub(super) struct Checks {
    /// The tree's folder, for messages.
    pub folder: PathBuf,
    /// The file's name, for messages.
    pub file: String,
    /// Checksums; those of this file start at `first`.
    pub table: Array<u64>,
    /// Position in `table` of this file's first chunk.
    pub first: usize,
    /// One bit per chunk, set (release) once it matched; who sees it set (acquire) need not hash again.
    verified: Box<[AtomicU64]>,
}

impl Checks {
    /// Checks of a file of `bytes` bytes, none of them done yet.
    pub fn new(folder: PathBuf, file: String, table: Array<u64>, first: usize, bytes: usize) -> Self {
        let words = chunk_count(bytes).div_ceil(64);
        Checks { folder, file, table, first, verified: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl MappedFile {
    /// A mapping whose data starts at byte `start`.
    pub fn new(map: Map, start: usize, checks: Option<Checks>) -> Self {
        MappedFile { map, start, checks, random: AtomicBool::new(false) }
    }

    /// The bytes of `range`, counted from the start of the data; the chunks they lie in are checked.
    ///
    /// # Panics
    /// If the range ends past the data: the caller has compared it with the array's length.
    #[inline]
    pub fn data(&self, range: Range<usize>) -> Result<&[u8]> {
        let (start, end) = (self.start + range.start, self.start + range.end);
        if let Some(checks) = &self.checks
            && start < end
        {
            let (first, last) = (start / CHUNK_BYTES, (end - 1) / CHUNK_BYTES);
            let word = first / 64;
            let mask = word_mask(word, first, last);
            let seen = checks.verified[word].load(Ordering::Acquire) & mask == mask;
            if !seen || last / 64 != word {
                self.touch(checks, first, last)?;
            }
        }
        Ok(&self.map.bytes()[start..end])
    }

    /// Checks those of the chunks `first..=last` that were not checked before.
    #[cold]
    fn touch(&self, checks: &Checks, first: usize, last: usize) -> Result<()> {
        for word in first / 64..=last / 64 {
            let mask = word_mask(word, first, last);
            let mut missing = mask & !checks.verified[word].load(Ordering::Acquire);
            while missing != 0 {
                self.check(checks, word * 64 + missing.trailing_zeros() as usize)?;
                missing &= missing - 1;
            }
        }
        Ok(())
    }

    /// Hashes one chunk, whatever is known of it, and remembers the outcome.
    fn check(&self, checks: &Checks, chunk: usize) -> Result<()> {
        let bytes = self.map.bytes();
        let range = chunk * CHUNK_BYTES..((chunk + 1) * CHUNK_BYTES).min(bytes.len());
        if self.random.load(Ordering::Relaxed) {
            self.map.advise_soon(range.start, range.len());
        }
        let expected = checks.table.get(checks.first + chunk)?;
        let found = xxh3_64(&bytes[range.clone()]);
        let (word, bit) = (&checks.verified[chunk / 64], 1u64 << (chunk % 64));
        if found == expected {
            word.fetch_or(bit, Ordering::Release);
            return Ok(());
        }
        word.fetch_and(!bit, Ordering::Release);
        Err(Error::Corrupt {
            path: checks.folder.clone(),
            reason: format!(
                "{}: bytes {}..{}: expected checksum {expected:016x}, found {found:016x}",
                checks.file, range.start, range.end
            ),
        })
    }

    /// Checks every chunk again, the table's too; reports the data bytes done.
    pub fn verify(&self, control: &Control) -> Result<()> {
        let Some(checks) = &self.checks else { return Ok(()) };
        // The table is shared by all arrays and small: its bytes are not part of the caller's total.
        checks.table.verify(&Control::default())?;
        let bytes = self.map.bytes().len();
        (0..chunk_count(bytes)).into_par_iter().try_for_each(|chunk| {
            control.check()?;
            self.check(checks, chunk)?;
            let (start, end) = (chunk * CHUNK_BYTES, ((chunk + 1) * CHUNK_BYTES).min(bytes));
            control.add((end.max(self.start) - start.max(self.start)) as u64);
            Ok(())
        })
    }

    /// Hints that accesses jump around; a chunk's first touch still reads it whole.
    pub fn advise_random(&self) {
        self.map.advise_random();
        self.random.store(true, Ordering::Relaxed);
    }

    /// What to say when elements outside the array are asked for.
    pub fn out_of_range(&self, asked: &Range<usize>, len: usize) -> Error {
        match &self.checks {
            Some(checks) => Error::Corrupt {
                path: checks.folder.clone(),
                reason: format!("{}: elements {}..{} asked for, it has {len}", checks.file, asked.start, asked.end),
            },
            None => out_of_range(asked, len),
        }
    }
}

/// What to say when elements outside an array without a file are asked for.
pub(super) fn out_of_range(asked: &Range<usize>, len: usize) -> Error {
    Error::out_of_range("elements", len, format!("{}..{}", asked.start, asked.end))
}

/// The bits of `word` that stand for chunks `first..=last`, of which the word holds at least one.
#[inline]
fn word_mask(word: usize, first: usize, last: usize) -> u64 {
    let low = first.saturating_sub(word * 64);
    let high = (last - word * 64).min(63);
    (u64::MAX >> (63 - (high - low))) << low
}
