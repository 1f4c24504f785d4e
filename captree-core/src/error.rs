//! The crate's error type: data about what was expected and what came. The texts here are plain and name no interface;
//! who shows an error to a user adds that user's words (`python/errors.rs`, captree's command line).

use std::fmt;
use std::path::PathBuf;

use crate::limits::Precision;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Vectors of the wrong shape, or none at all.
    #[error("expected {expected}, got {got}")]
    InvalidVectors {
        /// What vectors are wanted.
        expected: String,
        /// What came.
        got: String,
    },
    /// Rows that are not finite, zero, or not of unit length.
    #[error("{0}")]
    BadRows(BadRows),
    /// Caps with a wrong dimension, a center that is not unit, or a bound outside [0, 2].
    #[error("expected {expected}, got {got}")]
    InvalidCaps {
        /// What caps are wanted.
        expected: String,
        /// What came.
        got: String,
    },
    /// A parameter outside its domain.
    #[error("{name}: expected {expected}, got {got}")]
    InvalidParameter {
        /// The parameter.
        name: &'static str,
        /// Its domain.
        expected: String,
        /// What came.
        got: String,
    },
    /// A row or a node that the tree does not have.
    #[error("expected {expected}, got {got}")]
    RowOutOfRange {
        /// The numbers there are.
        expected: String,
        /// What came.
        got: String,
    },
    /// No tree at this path.
    #[error("no captree tree at {}: {reason}", path.display())]
    NotFound {
        /// The path that was asked for.
        path: PathBuf,
        /// What is missing there.
        reason: String,
    },
    /// A file that is truncated or altered.
    #[error("the tree at {} is damaged: {reason}", path.display())]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// What was expected and what came.
        reason: String,
    },
    /// A folder of another version of the format.
    #[error(
        "the tree at {} has format version {found}; this captree reads version {supported}: upgrade captree to open it",
        path.display()
    )]
    NewerVersion {
        /// The tree's path.
        path: PathBuf,
        /// The version found.
        found: u64,
        /// The version that this build reads.
        supported: u64,
    },
    /// The operating system refused.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, with the path.
        context: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// Another process is changing the tree.
    #[error("the tree at {} is being changed by {holder}; one writer at a time", path.display())]
    Locked {
        /// The tree's path.
        path: PathBuf,
        /// What the other one says of itself.
        holder: String,
    },
    /// The memory limit does not allow this build.
    #[error("expected a memory limit of at least {needed} bytes for {rows} rows of dim {dim}, got {limit}")]
    MemoryLimit {
        /// Bytes that the build takes.
        needed: u64,
        /// Bytes that it may take.
        limit: u64,
        /// Rows so far.
        rows: usize,
        /// Their dims.
        dim: usize,
        /// Whether the tree is written to disk, for which less memory is needed.
        on_disk: bool,
    },
    /// An answer that no memory holds.
    #[error("expected an answer that fits in memory, got {bytes} bytes")]
    TooLarge {
        /// Its size.
        bytes: u128,
    },
    /// The caller asked to stop (Ctrl-C).
    #[error("interrupted")]
    Interrupted,
}

/// Rows that cannot be in a tree.
#[derive(Clone, Debug, PartialEq)]
pub struct BadRows {
    /// How many there are.
    pub bad: usize,
    /// Rows in all.
    pub rows: usize,
    /// The first of them.
    pub first: Vec<(usize, RowFault)>,
    /// The dtype whose tolerance their lengths had to keep; `None` if rows are scaled to unit length.
    pub unit_within: Option<Precision>,
}

/// What is wrong with a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RowFault {
    /// A coordinate is infinite or no number.
    NotFinite,
    /// It has no direction.
    Zero,
    /// Its length is not 1.
    Norm(f64),
}

impl fmt::Display for RowFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RowFault::NotFinite => write!(f, "not finite"),
            RowFault::Zero => write!(f, "zero"),
            RowFault::Norm(n) => write!(f, "norm {n:.6}"),
        }
    }
}

impl fmt::Display for BadRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.unit_within {
            Some(precision) => {
                let (tolerance, name) = (precision.tolerance(), precision.name());
                write!(f, "expected finite rows of unit length (within {tolerance:.2e} for {name})")?;
            }
            None => write!(f, "expected finite rows that are not zero")?,
        }
        write!(f, ", got {} bad {} of {}: ", self.bad, if self.bad == 1 { "row" } else { "rows" }, self.rows)?;
        for (i, (row, fault)) in self.first.iter().enumerate() {
            write!(f, "{}row {row} ({fault})", if i == 0 { "" } else { ", " })?;
        }
        if self.bad > self.first.len() { write!(f, ", ...") } else { Ok(()) }
    }
}

impl Error {
    /// [`Error::InvalidVectors`].
    pub fn vectors(expected: impl Into<String>, got: impl fmt::Display) -> Self {
        Error::InvalidVectors { expected: expected.into(), got: got.to_string() }
    }

    /// [`Error::InvalidCaps`].
    pub fn caps(expected: impl Into<String>, got: impl fmt::Display) -> Self {
        Error::InvalidCaps { expected: expected.into(), got: got.to_string() }
    }

    /// [`Error::InvalidParameter`].
    pub fn parameter(name: &'static str, expected: impl Into<String>, got: impl fmt::Display) -> Self {
        Error::InvalidParameter { name, expected: expected.into(), got: got.to_string() }
    }

    /// [`Error::RowOutOfRange`], for one of `n` things called `what`.
    pub fn out_of_range(what: &str, n: usize, got: impl fmt::Display) -> Self {
        Error::RowOutOfRange { expected: format!("{what} between 0 and {}", n.saturating_sub(1)), got: got.to_string() }
    }

    /// Wraps a system error with what was being done.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        Error::Io { context: context.into(), source }
    }
}
