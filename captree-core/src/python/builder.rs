//! `captree._core.Builder`.

use std::path::PathBuf;
use std::sync::Mutex;

use half::{bf16, f16};
use numpy::{PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::errors::to_py;
use super::run::run;
use super::tree::Tree;
use crate::build::{Appending, Batch, BuildOptions, Building, Ingest, Invalid};
use crate::control::Call;
use crate::element::Storage;
use crate::error::{Error, Result};
use crate::memory::half_of_free;
use crate::tree::Params;

/// Collects rows and builds a tree of them, or appends them to one.
#[pyclass(frozen, module = "captree._core")]
pub(super) struct Builder {
    work: Mutex<Option<Work>>,
    threads: Option<usize>,
}

enum Work {
    InMemory(Box<Ingest>, Params),
    OnDisk(Box<Building>),
    Append(Box<Appending>, Py<Tree>),
}

impl Work {
    fn push(&mut self, batch: Batch<'_>, dim: usize, call: &Call) -> Result<()> {
        match self {
            Work::InMemory(ingest, _) => ingest.push(batch, dim, call),
            Work::OnDisk(building) => building.push(batch, dim, call),
            Work::Append(appending, _) => appending.push(batch, dim, call),
        }
    }
}

fn invalid(skip: bool) -> Invalid {
    if skip { Invalid::Skip } else { Invalid::Error }
}

#[pymethods]
impl Builder {
    /// A tree at `out`, or in memory.
    #[new]
    #[pyo3(signature = (storage = "float16", normalize = false, skip = false, out = None, fanout = 64, leaf_size = None,
                        seed = 0, memory_limit = None, threads = None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        storage: &str,
        normalize: bool,
        skip: bool,
        out: Option<PathBuf>,
        fanout: usize,
        leaf_size: Option<usize>,
        seed: u64,
        memory_limit: Option<u64>,
        threads: Option<usize>,
    ) -> PyResult<Self> {
        let fail = |e| to_py(py, &e);
        let storage = match storage {
            "float16" => Storage::Float16,
            "float32" => Storage::Float32,
            other => {
                return Err(fail(Error::parameter("storage", "\"float16\" or \"float32\"", format!("{other:?}"))));
            }
        };
        let (params, invalid) = (Params::new(fanout, leaf_size, seed).map_err(fail)?, invalid(skip));
        let work = match out {
            Some(out) => {
                let options = BuildOptions { storage, normalize, invalid, params, memory_limit };
                let building = run(py, threads, None, |_| Building::start(&out, options, half_of_free()))?;
                Work::OnDisk(Box::new(building))
            }
            None => {
                let mut ingest = Ingest::new(storage, normalize);
                ingest.set_invalid(invalid);
                if let Some(limit) = memory_limit {
                    ingest.limit_memory(limit);
                }
                Work::InMemory(Box::new(ingest), params)
            }
        };
        Ok(Builder { work: Mutex::new(Some(work)), threads })
    }

    /// More rows of a tree.
    #[staticmethod]
    #[pyo3(signature = (tree, normalize = false, skip = false, memory_limit = None, threads = None))]
    fn appending(
        tree: Py<Tree>,
        normalize: bool,
        skip: bool,
        memory_limit: Option<u64>,
        threads: Option<usize>,
    ) -> Self {
        let limit = memory_limit.or_else(half_of_free);
        let appending = Appending::start(tree.get().now(), normalize, invalid(skip), limit);
        Builder { work: Mutex::new(Some(Work::Append(Box::new(appending), tree))), threads }
    }

    /// Rows that an interrupted build has built already, which come again and are passed over.
    #[getter]
    fn rows_before(&self) -> usize {
        match self.work.lock().unwrap_or_else(|e| e.into_inner()).as_ref() {
            Some(Work::OnDisk(building)) => building.rows_before(),
            _ => 0,
        }
    }

    #[pyo3(signature = (batch, bfloat16 = false, progress = None))]
    fn push(
        &self,
        py: Python<'_>,
        batch: &Bound<'_, PyAny>,
        bfloat16: bool,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let mut guard = self.work.lock().unwrap_or_else(|e| e.into_inner());
        let work = guard.as_mut().ok_or_else(|| to_py(py, &finished()))?;
        let mut add =
            |batch: Batch<'_>, dim: usize| run(py, self.threads, progress, |call| work.push(batch, dim, call));
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

    /// Ends the work, wherever it is: what a later build can go on with stays.
    fn close(&self) {
        drop(self.work.lock().unwrap_or_else(|e| e.into_inner()).take());
    }

    /// The tree.
    #[pyo3(signature = (progress = None))]
    fn finish(&self, py: Python<'_>, progress: Option<&Bound<'_, PyAny>>) -> PyResult<Tree> {
        match self.take(py)? {
            Work::InMemory(ingest, params) => {
                let rows = ingest.finish().map_err(|e| to_py(py, &e))?;
                run(py, self.threads, progress, |call| crate::tree::Tree::build(rows, &params, None, call))
            }
            Work::OnDisk(building) => run(py, self.threads, progress, |call| building.finish(call)),
            Work::Append(..) => return Err(to_py(py, &finished())),
        }
        .map(Tree::from)
    }

    /// Appends the rows; returns the first of their numbers and the one behind the last.
    #[pyo3(signature = (progress = None))]
    fn append(&self, py: Python<'_>, progress: Option<&Bound<'_, PyAny>>) -> PyResult<(usize, usize)> {
        let Work::Append(appending, tree) = self.take(py)? else { return Err(to_py(py, &finished())) };
        let tree = tree.get();
        let added = run(py, self.threads, progress, |call| tree.change(|tree| appending.finish(tree, call)))?;
        Ok((added.start, added.end))
    }
}

impl Builder {
    fn take(&self, py: Python<'_>) -> PyResult<Work> {
        self.work.lock().unwrap_or_else(|e| e.into_inner()).take().ok_or_else(|| to_py(py, &finished()))
    }
}

fn finished() -> Error {
    Error::parameter("builder", "one in use", "one that has finished")
}
