//! `captree._core.Builder`.

use std::path::PathBuf;
use std::sync::Mutex;

use half::{bf16, f16};
use numpy::{PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::errors::to_py;
use super::run::run;
use super::tree::Tree;
use crate::build::{Batch, Ingest, Invalid};
use crate::element::Storage;
use crate::error::Error;
use crate::tree::Params;

/// Collects rows and builds a tree of them.
#[pyclass(frozen, module = "captree._core")]
pub(super) struct Builder {
    ingest: Mutex<Option<Ingest>>,
    threads: Option<usize>,
}

#[pymethods]
impl Builder {
    #[new]
    #[pyo3(signature = (storage = "float16", normalize = false, skip = false, memory_limit = None, on_disk = false,
                        threads = None))]
    fn new(
        py: Python<'_>,
        storage: &str,
        normalize: bool,
        skip: bool,
        memory_limit: Option<u64>,
        on_disk: bool,
        threads: Option<usize>,
    ) -> PyResult<Self> {
        let storage = match storage {
            "float16" => Storage::Float16,
            "float32" => Storage::Float32,
            other => {
                let wrong = Error::parameter("storage", "\"float16\" or \"float32\"", format!("{other:?}"));
                return Err(to_py(py, &wrong));
            }
        };
        let mut ingest = Ingest::new(storage, normalize);
        if skip {
            ingest.set_invalid(Invalid::Skip);
        }
        if let Some(limit) = memory_limit {
            ingest.limit_memory(limit, on_disk);
        }
        Ok(Builder { ingest: Mutex::new(Some(ingest)), threads })
    }

    #[pyo3(signature = (batch, bfloat16 = false))]
    fn push(&self, py: Python<'_>, batch: &Bound<'_, PyAny>, bfloat16: bool) -> PyResult<()> {
        let mut guard = self.ingest.lock().unwrap_or_else(|e| e.into_inner());
        let ingest = guard.as_mut().ok_or_else(|| to_py(py, &finished()))?;
        let mut add = |batch: Batch<'_>, dim: usize| run(py, self.threads, None, |call| ingest.push(batch, dim, call));
        if bfloat16 {
            let array: PyReadonlyArray2<'_, u16> = batch.extract()?;
            return add(Batch::BF16(bytemuck::cast_slice::<u16, bf16>(array.as_slice()?)), array.shape()[1]);
        }
        if let Ok(array) = batch.extract::<PyReadonlyArray2<'_, f32>>() {
            add(Batch::F32(array.as_slice()?), array.shape()[1])
        } else if let Ok(array) = batch.extract::<PyReadonlyArray2<'_, f16>>() {
            add(Batch::F16(array.as_slice()?), array.shape()[1])
        } else {
            let array: PyReadonlyArray2<'_, f64> = batch.extract()?;
            add(Batch::F64(array.as_slice()?), array.shape()[1])
        }
    }

    #[pyo3(signature = (out = None, fanout = 64, leaf_size = None, seed = 0, threads = None, progress = None))]
    #[allow(clippy::too_many_arguments)]
    fn finish(
        &self,
        py: Python<'_>,
        out: Option<PathBuf>,
        fanout: usize,
        leaf_size: Option<usize>,
        seed: u64,
        threads: Option<usize>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Tree> {
        let fail = |e| to_py(py, &e);
        let params = Params::new(fanout, leaf_size, seed).map_err(fail)?;
        let ingest = self.ingest.lock().unwrap_or_else(|e| e.into_inner()).take().ok_or_else(|| fail(finished()))?;
        let rows = ingest.finish().map_err(fail)?;
        run(py, threads.or(self.threads), progress, |call| {
            crate::tree::Tree::build(rows, &params, out.as_deref(), call)
        })
        .map(Tree::from)
    }

    /// Appends the rows to a tree instead; returns the first of their numbers and the one behind the last.
    #[pyo3(signature = (tree, threads = None, progress = None))]
    fn append(
        &self,
        py: Python<'_>,
        tree: &Tree,
        threads: Option<usize>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<(usize, usize)> {
        let fail = |e| to_py(py, &e);
        let ingest = self.ingest.lock().unwrap_or_else(|e| e.into_inner()).take().ok_or_else(|| fail(finished()))?;
        let rows = ingest.finish().map_err(fail)?;
        let added =
            run(py, threads.or(self.threads), progress, |call| tree.change(|tree| tree.append(rows, call)))?;
        Ok((added.start, added.end))
    }
}

fn finished() -> Error {
    Error::parameter("builder", "one in use", "one that has finished")
}
