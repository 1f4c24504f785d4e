//! The core's errors as exceptions of `captree.errors`: which class stands for which, and which argument would help.

use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::Error;

/// Name of the class that stands for an error.
fn class(error: &Error) -> &'static str {
    match error {
        Error::InvalidVectors { .. } | Error::BadRows(_) => "InvalidVectorsError",
        Error::InvalidCaps { .. } => "InvalidCapsError",
        Error::InvalidParameter { .. } => "InvalidParameterError",
        Error::RowOutOfRange { .. } => "RowIndexError",
        Error::NotFound { .. } => "TreeNotFoundError",
        Error::Corrupt { .. } => "CorruptTreeError",
        Error::NewerVersion { .. } => "FormatVersionError",
        Error::Locked { .. } => "TreeLockedError",
        Error::Io { .. } => "StorageError",
        Error::MemoryLimit { .. } | Error::TooLarge { .. } => "MemoryLimitError",
        Error::Interrupted => "KeyboardInterrupt",
    }
}

/// Name of the argument that would have helped, if one would.
fn advice(error: &Error) -> Option<&'static str> {
    match error {
        Error::BadRows(rows) if rows.unit_within.is_some() => Some("normalize"),
        Error::MemoryLimit { on_disk: false, .. } => Some("out"),
        _ => None,
    }
}

/// The exception for an error of the core.
pub(super) fn to_py(py: Python<'_>, error: &Error) -> PyErr {
    match error {
        Error::Interrupted => PyKeyboardInterrupt::new_err(()),
        Error::InvalidParameter { name, expected, got } => {
            raised(py, class(error), &format!("expected {expected}, got {got}"), Some(name), None)
        }
        _ => raised(py, class(error), &error.to_string(), None, advice(error)),
    }
}

/// The exception for a panic.
pub(super) fn defect(py: Python<'_>, what: &str) -> PyErr {
    raised(py, "InternalError", &format!("a defect in captree, please report it: {what}"), None, None)
}

fn raised(py: Python<'_>, class: &str, problem: &str, parameter: Option<&str>, advice: Option<&str>) -> PyErr {
    let make = || {
        let names = PyDict::new(py);
        names.set_item("parameter", parameter)?;
        names.set_item("advice", advice)?;
        py.import("captree.errors")?.getattr(class)?.call((problem,), Some(&names))
    };
    match make() {
        Ok(exception) => PyErr::from_value(exception),
        Err(e) => e,
    }
}
