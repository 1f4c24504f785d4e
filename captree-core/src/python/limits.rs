//! `captree._core.limits`.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::limits as of_core;
use crate::limits::Precision;

/// The limits of what captree takes, by name; tolerances of lengths under the names of their dtypes.
#[pyfunction]
pub(super) fn limits(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("threads", of_core::MAX_THREADS)?;
    out.set_item("fanout_least", of_core::MIN_FANOUT)?;
    out.set_item("fanout", of_core::MAX_FANOUT)?;
    out.set_item("leaf_size", of_core::DEFAULT_LEAF_SIZE)?;
    out.set_item("rows", of_core::MAX_ROWS)?;
    out.set_item("dim", of_core::MAX_DIM)?;
    out.set_item("max_cos_distance", of_core::MAX_COS_DISTANCE)?;
    let tolerances = PyDict::new(py);
    for precision in [Precision::Float16, Precision::BFloat16, Precision::Float32, Precision::Float64] {
        tolerances.set_item(precision.name(), precision.tolerance())?;
    }
    out.set_item("tolerances", tolerances)?;
    Ok(out)
}
