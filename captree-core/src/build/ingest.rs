//! Input rows: validation, optional normalization, conversion to the storage dtype.

use half::{bf16, f16};

use super::convert::{CHUNK, convert, remove};
use crate::control::Call;
use crate::element::Storage;
use crate::error::{BadRows, Error, Result, RowFault};
use crate::limits::{MAX_DIM, MAX_ROWS, Precision};
use crate::memory::AlignedVec;
use crate::sketch::sketch_bytes;
use crate::store::Array;
use crate::vectors::{NormRange, Vectors};

/// Rows of one input batch, row by row.
#[derive(Clone, Copy, Debug)]
pub enum Batch<'a> {
    /// Half precision.
    F16(&'a [f16]),
    /// bfloat16.
    BF16(&'a [bf16]),
    /// Single precision.
    F32(&'a [f32]),
    /// Double precision.
    F64(&'a [f64]),
}

impl Batch<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Batch::F16(x) => x.len(),
            Batch::BF16(x) => x.len(),
            Batch::F32(x) => x.len(),
            Batch::F64(x) => x.len(),
        }
    }

    /// The bytes as they came.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Batch::F16(x) => bytemuck::cast_slice(x),
            Batch::BF16(x) => bytemuck::cast_slice(x),
            Batch::F32(x) => bytemuck::cast_slice(x),
            Batch::F64(x) => bytemuck::cast_slice(x),
        }
    }

    /// So many coordinates, and those behind them.
    pub(super) fn split_at(self, at: usize) -> (Self, Self) {
        fn both<'a, T>(x: &'a [T], at: usize, of: impl Fn(&'a [T]) -> Batch<'a>) -> (Batch<'a>, Batch<'a>) {
            let (head, tail) = x.split_at(at);
            (of(head), of(tail))
        }
        match self {
            Batch::F16(x) => both(x, at, Batch::F16),
            Batch::BF16(x) => both(x, at, Batch::BF16),
            Batch::F32(x) => both(x, at, Batch::F32),
            Batch::F64(x) => both(x, at, Batch::F64),
        }
    }

    fn precision(&self) -> Precision {
        match self {
            Batch::F16(_) => Precision::Float16,
            Batch::BF16(_) => Precision::BFloat16,
            Batch::F32(_) => Precision::Float32,
            Batch::F64(_) => Precision::Float64,
        }
    }
}

/// What becomes of rows that are not finite, zero or not of unit length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Invalid {
    /// They are an error.
    #[default]
    Error,
    /// They keep their number, have no vector and lie in no cap.
    Skip,
}

/// How many bad rows an error names.
const NAMED: usize = 5;

enum Stored {
    F16(AlignedVec<f16>),
    F32(AlignedVec<f32>),
}

/// Collects batches of rows as they come.
pub struct Ingest {
    normalize: bool,
    invalid: Invalid,
    dim: Option<usize>,
    /// Rows that came, and how many of them were taken away again.
    rows: usize,
    taken: usize,
    storage: Storage,
    stored: Stored,
    norms: NormRange,
    bad: usize,
    named: Vec<(usize, RowFault)>,
    /// Counted from the first row that was not taken.
    skipped: Vec<u32>,
    precision: Precision,
    limit: Option<u64>,
}

/// All rows, in input order, validated.
pub struct Rows {
    /// Number of dimensions.
    pub dim: usize,
    /// The stored rows.
    pub vectors: Vectors,
    /// Norms of the stored rows.
    pub norms: NormRange,
    /// Rows that are not stored, in rising order.
    pub skipped: Vec<u32>,
}

impl Rows {
    /// How many rows came, those that are not stored included.
    pub fn len(&self) -> usize {
        self.kept() + self.skipped.len()
    }

    /// How many of them are stored.
    pub fn kept(&self) -> usize {
        self.vectors.len() / self.dim
    }

    /// Whether no rows came; some always did.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Bytes that building a segment of so many rows takes: the rows, their sketches and the links between rows and
/// positions; and the rows a second time, in tree order, unless the segment is written to disk.
pub(super) fn build_bytes(rows: usize, dim: usize, storage: Storage, on_disk: bool) -> u64 {
    let stored = dim * storage.bytes() * if on_disk { 1 } else { 2 };
    (rows * (stored + sketch_bytes(dim) + 28)) as u64
}

impl Stored {
    fn new(storage: Storage) -> Self {
        match storage {
            Storage::Float16 => Stored::F16(AlignedVec::default()),
            Storage::Float32 => Stored::F32(AlignedVec::default()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Stored::F16(v) => v.len(),
            Stored::F32(v) => v.len(),
        }
    }

    fn resize(&mut self, len: usize) {
        match self {
            Stored::F16(v) => v.resize(len),
            Stored::F32(v) => v.resize(len),
        }
    }

    fn into_vectors(self) -> Vectors {
        match self {
            Stored::F16(v) => Vectors::F16(Array::in_memory(v)),
            Stored::F32(v) => Vectors::F32(Array::in_memory(v)),
        }
    }

    fn reserve(&mut self, len: usize) {
        match self {
            Stored::F16(v) => v.reserve(len),
            Stored::F32(v) => v.reserve(len),
        }
    }
}

impl Ingest {
    /// Rows will be stored as `storage`; with `normalize`, scaled to length 1 first.
    pub fn new(storage: Storage, normalize: bool) -> Self {
        Ingest {
            normalize,
            invalid: Invalid::Error,
            dim: None,
            rows: 0,
            taken: 0,
            storage,
            stored: Stored::new(storage),
            norms: NormRange::EMPTY,
            bad: 0,
            named: Vec::new(),
            skipped: Vec::new(),
            precision: Precision::Float32,
            limit: None,
        }
    }

    /// From here on, rows whose tree could not be built in memory within `bytes` are an error as soon as they come.
    pub fn limit_memory(&mut self, bytes: u64) {
        self.limit = Some(bytes);
    }

    /// What becomes of bad rows from here on.
    pub fn set_invalid(&mut self, invalid: Invalid) {
        self.invalid = invalid;
    }

    fn check_memory(&self, more: usize, dim: usize) -> Result<()> {
        let rows = self.rows + more;
        let needed = build_bytes(rows, dim, self.storage, false);
        match self.limit {
            Some(limit) if needed > limit => Err(Error::MemoryLimit { needed, limit, rows, dim, on_disk: false }),
            _ => Ok(()),
        }
    }

    /// Rows pushed so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Rows that were not taken yet.
    pub(super) fn waiting(&self) -> usize {
        self.rows - self.taken
    }

    /// Their dtype.
    pub(super) fn storage(&self) -> Storage {
        self.storage
    }

    /// Counts rows that were dealt with before, good ones, before any come.
    pub(super) fn pass_over(&mut self, rows: usize, dim: usize) {
        (self.rows, self.taken, self.dim) = (self.rows + rows, self.taken + rows, Some(dim));
    }

    /// Room for so many rows, so that the memory for them is asked for once.
    pub(super) fn reserve(&mut self, rows: usize, dim: usize) {
        self.stored.reserve(rows * dim);
    }

    /// Adds a batch of rows of `dim` dims.
    ///
    /// Bad rows are counted, and reported by [`Ingest::finish`], so that the error can tell how many there are in all.
    /// Errors: [`Error::InvalidVectors`] if `dim` differs from the batches before, [`Error::MemoryLimit`].
    pub fn push(&mut self, batch: Batch<'_>, dim: usize, call: &Call) -> Result<()> {
        let expected = *self.dim.get_or_insert(dim);
        if dim == 0 || dim > MAX_DIM || dim != expected || !batch.len().is_multiple_of(dim) {
            let expected = match expected {
                1..=MAX_DIM => expected.to_string(),
                _ => format!("1 to {MAX_DIM}"),
            };
            return Err(Error::vectors(format!("vectors of dim {expected}"), dim));
        }
        if self.rows + batch.len() / dim > MAX_ROWS {
            let got = self.rows + batch.len() / dim;
            return Err(Error::vectors(format!("at most {MAX_ROWS} rows in a tree"), got));
        }
        self.check_memory(batch.len() / dim, dim)?;
        self.precision = batch.precision();
        let (start, first) = (self.stored.len(), self.rows - self.taken);
        self.stored.resize(start + batch.len());
        let (normalize, tolerance) = (self.normalize, batch.precision().tolerance());
        let reports = call.run(|| match (&mut self.stored, batch) {
            (Stored::F16(to), Batch::F16(from)) => convert(from, &mut to[start..], dim, tolerance, normalize),
            (Stored::F16(to), Batch::BF16(from)) => convert(from, &mut to[start..], dim, tolerance, normalize),
            (Stored::F16(to), Batch::F32(from)) => convert(from, &mut to[start..], dim, tolerance, normalize),
            (Stored::F16(to), Batch::F64(from)) => convert(from, &mut to[start..], dim, tolerance, normalize),
            (Stored::F32(to), Batch::F16(from)) => convert(from, &mut to[start..], dim, tolerance, normalize),
            (Stored::F32(to), Batch::BF16(from)) => convert(from, &mut to[start..], dim, tolerance, normalize),
            (Stored::F32(to), Batch::F32(from)) => convert(from, &mut to[start..], dim, tolerance, normalize),
            (Stored::F32(to), Batch::F64(from)) => convert(from, &mut to[start..], dim, tolerance, normalize),
        });
        let mut bad = Vec::new();
        for (chunk, report) in reports.into_iter().enumerate() {
            self.norms = self.norms.union(report.norms);
            bad.extend(report.bad.into_iter().map(|(r, fault)| (chunk * CHUNK + r, fault)));
        }
        self.bad += bad.len();
        let room = NAMED - self.named.len();
        self.named.extend(bad.iter().take(room).map(|(r, fault)| (self.rows + r, *fault)));
        if self.invalid == Invalid::Skip && !bad.is_empty() {
            self.skipped.extend(bad.iter().map(|(r, _)| (first + r) as u32));
            match &mut self.stored {
                Stored::F16(v) => remove(v, start, dim, &bad),
                Stored::F32(v) => remove(v, start, dim, &bad),
            }
        }
        self.rows += batch.len() / dim;
        if self.is_refused() {
            // They are only counted from here on.
            self.stored = Stored::new(self.storage);
        }
        Ok(())
    }

    /// Whether bad rows came that are an error.
    pub(super) fn is_refused(&self) -> bool {
        self.bad > 0 && self.invalid == Invalid::Error
    }

    /// The rows that came since the last ones were taken; nothing if none of them has a vector.
    pub(super) fn take(&mut self) -> Option<Rows> {
        let dim = self.dim?;
        let stored = std::mem::replace(&mut self.stored, Stored::new(self.storage));
        let (norms, skipped) = (self.norms, std::mem::take(&mut self.skipped));
        (self.norms, self.taken) = (NormRange::EMPTY, self.rows);
        let is_empty = stored.len() == 0;
        let rows = Rows { dim, vectors: stored.into_vectors(), norms, skipped };
        (!is_empty).then_some(rows)
    }

    /// Says which rows are bad, if that is an error, and whether there are any others.
    ///
    /// Errors: [`Error::InvalidVectors`] if none came, [`Error::BadRows`].
    pub(super) fn check(&self) -> Result<()> {
        if self.rows == 0 {
            return Err(Error::vectors("at least one row", "none"));
        }
        if self.is_refused() || self.bad == self.rows {
            return Err(Error::BadRows(BadRows {
                bad: self.bad,
                rows: self.rows,
                first: self.named.clone(),
                unit_within: (!self.normalize).then_some(self.precision),
            }));
        }
        Ok(())
    }

    /// The rows. Errors: [`Error::InvalidVectors`] if there are none or some are bad, naming the first of them.
    pub fn finish(mut self) -> Result<Rows> {
        self.check()?;
        self.take().ok_or_else(|| Error::vectors("at least one row", "none"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ingest(batch: Batch<'_>, dim: usize, normalize: bool) -> Result<Rows> {
        let mut ingest = Ingest::new(Storage::Float16, normalize);
        ingest.push(batch, dim, &Call::new(Some(2)).unwrap())?;
        ingest.finish()
    }

    #[test]
    fn bad_rows_are_counted_and_named() {
        let mut rows = vec![0.0f32; 4000];
        rows.chunks_exact_mut(2).for_each(|r| r[0] = 1.0);
        rows[3 * 2] = 0.0;
        rows[1500 * 2] = f32::NAN;
        (1600..1700).for_each(|r| rows[r * 2] = 2.5);
        let message = ingest(Batch::F32(&rows), 2, false).err().unwrap().to_string();
        assert!(message.contains("102 bad rows of 2000: row 3 (zero), row 1500 (not finite), row 1600 (norm 2.5"));
        let message = ingest(Batch::F32(&rows), 2, true).err().unwrap().to_string();
        assert!(message.contains("2 bad rows of 2000: row 3 (zero), row 1500 (not finite)"), "{message}");
    }

    #[test]
    fn bad_rows_can_be_skipped() {
        let call = Call::new(Some(2)).unwrap();
        let mut ingest = Ingest::new(Storage::Float32, false);
        ingest.set_invalid(Invalid::Skip);
        ingest.push(Batch::F32(&[0.0, 0.0, 1.0, 0.0, f32::INFINITY, 0.0]), 2, &call).unwrap();
        ingest.push(Batch::F32(&[0.0, 1.0, 3.0, 0.0, -1.0, 0.0, 0.0, 0.0]), 2, &call).unwrap();
        let rows = ingest.finish().unwrap();
        assert_eq!((rows.len(), &rows.skipped[..]), (7, &[0, 2, 4, 6][..]));
        let Vectors::F32(kept) = &rows.vectors else { panic!("float32 was asked for") };
        assert_eq!(kept.slice(0..6).unwrap(), [1.0, 0.0, 0.0, 1.0, -1.0, 0.0]);
        let mut nothing = Ingest::new(Storage::Float32, true);
        nothing.set_invalid(Invalid::Skip);
        nothing.push(Batch::F32(&[0.0, 0.0]), 2, &call).unwrap();
        assert!(nothing.finish().err().unwrap().to_string().contains("1 bad row of 1: row 0 (zero)"));
    }

    #[test]
    fn extreme_rows_normalize() {
        let rows = ingest(Batch::F64(&[3e-200, 4e-200, 3e200, 4e200, -3.0, 4.0]), 2, true).unwrap();
        let mut out = [0.0; 2];
        for (row, sign) in [(0, 1.0), (1, 1.0), (2, -1.0)] {
            rows.vectors.widen(row, &mut out).unwrap();
            assert_eq!(out, [f16::from_f64(0.6).to_f32() * sign, f16::from_f64(0.8).to_f32()]);
        }
        assert!(rows.norms.low > 0.999 && rows.norms.high < 1.001);
    }

    #[test]
    fn a_memory_limit_stops_rows_as_they_come() {
        let call = Call::new(Some(1)).unwrap();
        let mut ingest = Ingest::new(Storage::Float32, false);
        ingest.limit_memory(2000);
        ingest.push(Batch::F32(&[1.0, 0.0]), 2, &call).unwrap();
        let rows: Vec<f32> = [1.0, 0.0].repeat(100);
        let error = ingest.push(Batch::F32(&rows), 2, &call).err().unwrap();
        assert!(error.to_string().contains("for 101 rows of dim 2, got 2000"), "{error}");
    }

    #[test]
    fn no_rows_and_changing_dims_are_errors() {
        let empty = Ingest::new(Storage::Float32, false).finish().err().unwrap();
        assert!(empty.to_string().contains("at least one row"));
        let call = Call::new(Some(1)).unwrap();
        let mut ingest = Ingest::new(Storage::Float32, false);
        ingest.push(Batch::F32(&[1.0, 0.0]), 2, &call).unwrap();
        let error = ingest.push(Batch::F32(&[1.0, 0.0, 0.0]), 3, &call).err().unwrap();
        assert!(error.to_string().contains("expected vectors of dim 2, got 3"));
        let long = vec![0.0f32; MAX_DIM + 1];
        let error = Ingest::new(Storage::Float32, false).push(Batch::F32(&long), long.len(), &call).err().unwrap();
        assert!(error.to_string().contains("expected vectors of dim 1 to 65536, got 65537"), "{error}");
    }
}
