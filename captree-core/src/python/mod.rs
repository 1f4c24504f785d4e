//! The Python extension module `captree._core`: unpacks arguments, releases the GIL, calls the core, maps errors.

mod builder;
mod errors;
mod limits;
mod run;
mod tree;

use pyo3::prelude::*;

/// The Rust core. Private: use the names of `captree`.
#[pymodule(gil_used = false)]
mod _core {
    use numpy::{PyArray1, PyArrayMethods};
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::builder::Builder;
    #[pymodule_export]
    use super::limits::limits;
    #[pymodule_export]
    use super::tree::Tree;
    #[pymodule_export]
    use super::tree::draw_keys;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        // NumPy's interface is looked up when it is first used. Ctrl-C in the middle of that would come out as a panic.
        let _ = PyArray1::<i64>::zeros(module.py(), 0, false).try_readonly();
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
