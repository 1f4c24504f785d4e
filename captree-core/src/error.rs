//! The crate's error type: every message says what was expected and what came.

use std::path::PathBuf;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. Each variant maps to one Python exception class (see [`Error::class`]).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Rows that are not finite, not unit length, zero, or of the wrong shape.
    #[error("{0}")]
    InvalidVectors(String),
    /// Caps with a wrong dimension, a center that is not unit, or a bound outside [0, 2].
    #[error("{0}")]
    InvalidCaps(String),
    /// A parameter outside its domain.
    #[error("{0}")]
    InvalidParameter(String),
    /// A row number outside the tree.
    #[error("{0}")]
    RowOutOfRange(String),
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
    /// A file written by a newer version of the format.
    #[error(
        "the tree at {} has format version {found}; this captree reads versions up to {supported}: upgrade captree to open it",
        path.display()
    )]
    NewerVersion {
        /// The tree's path.
        path: PathBuf,
        /// The version found.
        found: u64,
        /// The newest version this build reads.
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
    /// The memory limit does not allow this build.
    #[error("{0}")]
    MemoryLimit(String),
    /// The caller asked to stop (Ctrl-C).
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// Name of the Python exception class (in `captree.errors`) that stands for this variant.
    pub fn class(&self) -> &'static str {
        match self {
            Error::InvalidVectors(_) => "InvalidVectorsError",
            Error::InvalidCaps(_) => "InvalidCapsError",
            Error::InvalidParameter(_) => "InvalidParameterError",
            Error::RowOutOfRange(_) => "RowIndexError",
            Error::NotFound { .. } => "TreeNotFoundError",
            Error::Corrupt { .. } => "CorruptTreeError",
            Error::NewerVersion { .. } => "FormatVersionError",
            Error::Io { .. } => "StorageError",
            Error::MemoryLimit(_) => "MemoryLimitError",
            Error::Interrupted => "KeyboardInterrupt",
        }
    }

    /// Wraps a system error with what was being done.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        Error::Io { context: context.into(), source }
    }
}
