//! `captree._core.Tree`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock, TryLockError};

use half::f16;
use numpy::ndarray::Array2;
use numpy::{IntoPyArray, PyArray1, PyArray2, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::errors::to_py;
use super::run::{is_short, run, run_short};
use crate::ablation::StepSet;
use crate::caps::Caps;
use crate::control::Call;
use crate::element::Storage;
use crate::error::{Error, Result};
use crate::memory::half_of_free;
use crate::query::{DistanceType, Distances, SearchOptions};
use crate::sample::SampleOptions;

/// A tree of spherical caps. Changes put another tree in the place of this one; calls go on with the one they found.
#[pyclass(frozen, module = "captree._core")]
pub(super) struct Tree {
    tree: RwLock<Arc<crate::tree::Tree>>,
    /// Held while a change is made.
    change: Mutex<()>,
}

impl From<crate::tree::Tree> for Tree {
    fn from(tree: crate::tree::Tree) -> Self {
        Tree { tree: RwLock::new(Arc::new(tree)), change: Mutex::new(()) }
    }
}

type Centers<'py> = PyReadonlyArray2<'py, f32>;
type Bounds<'py> = PyReadonlyArray1<'py, f64>;
type Column<'py, T> = Bound<'py, PyArray1<T>>;
type Table<'py, T> = Bound<'py, PyArray2<T>>;

impl Tree {
    /// The tree as it is now.
    pub fn now(&self) -> Arc<crate::tree::Tree> {
        Arc::clone(&self.tree.read().unwrap_or_else(|e| e.into_inner()))
    }

    /// Puts what `change` makes of the tree in its place. Errors: [`Error::Locked`] while another change is made.
    pub fn change<R>(&self, change: impl FnOnce(&crate::tree::Tree) -> Result<(crate::tree::Tree, R)>) -> Result<R> {
        // Not waited for: this is a thread of the pool, which the other change may need to go on.
        let _one = match self.change.try_lock() {
            Ok(one) => one,
            Err(TryLockError::Poisoned(e)) => e.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let path = self.now().path().map_or_else(|| "(memory)".into(), Path::to_owned);
                return Err(Error::Locked { path, holder: "another thread".into() });
            }
        };
        let (tree, told) = change(&self.now())?;
        *self.tree.write().unwrap_or_else(|e| e.into_inner()) = Arc::new(tree);
        // Files that the tree before needed. What cannot be removed now is removed by the next change.
        let _ = self.now().vacuum();
        Ok(told)
    }

    /// Unpacks a batch of caps and runs a query on it.
    fn query<R: Send>(
        &self,
        py: Python<'_>,
        centers: &Centers<'_>,
        bounds: &Bounds<'_>,
        threads: Option<usize>,
        query: impl FnOnce(&crate::tree::Tree, &Caps<'_>, &Call) -> Result<R> + Send,
    ) -> PyResult<R> {
        let (tree, dim) = (&*self.now(), centers.shape()[1]);
        let (centers, bounds) = (centers.as_slice()?, bounds.as_slice()?);
        let short = is_short(bounds.len(), tree.len(), tree.dim());
        let work = |call: &Call| {
            // An empty batch may come without a dimension; it has an answer all the same.
            let caps = Caps::new(if bounds.is_empty() { tree.dim() } else { dim }, centers, bounds)?;
            query(tree, &caps, call)
        };
        if short { run_short(py, threads, work) } else { run(py, threads, None, work) }
    }
}

/// A flat vector as a 2-d array of `columns`.
fn table<T: numpy::Element>(py: Python<'_>, values: Vec<T>, columns: usize) -> PyResult<Table<'_, T>> {
    let rows = values.len().checked_div(columns).unwrap_or(0);
    let array = Array2::from_shape_vec((rows, columns), values)
        .map_err(|e| to_py(py, &Error::parameter("columns", "whole rows", e)))?;
    Ok(array.into_pyarray(py))
}

/// The keys of the orders that define the caps' draws, (q, 2): the lower 64 bits of each, then the upper ones.
#[pyfunction]
pub(super) fn draw_keys<'py>(
    py: Python<'py>,
    centers: Centers<'py>,
    bounds: Bounds<'py>,
    seed: u64,
) -> PyResult<Table<'py, u64>> {
    let caps =
        Caps::new(centers.shape()[1].max(1), centers.as_slice()?, bounds.as_slice()?).map_err(|e| to_py(py, &e))?;
    let keys = crate::sample::draw_keys(&caps, seed);
    table(py, keys.into_iter().flat_map(|key| [key as u64, (key >> 64) as u64]).collect(), 2)
}

#[pymethods]
impl Tree {
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        run_short(py, None, |_| crate::tree::Tree::open(&path)).map(Tree::from)
    }

    #[staticmethod]
    fn open_version(py: Python<'_>, path: PathBuf, version: u64) -> PyResult<Self> {
        run_short(py, None, |_| crate::tree::Tree::open_version(&path, version)).map(Tree::from)
    }

    /// Deletes rows; returns how many there were.
    fn delete(&self, py: Python<'_>, rows: PyReadonlyArray1<'_, i64>) -> PyResult<usize> {
        let rows = rows.as_slice()?;
        run_short(py, None, |_| self.change(|tree| tree.delete(rows)))
    }

    #[pyo3(signature = (memory_limit = None, threads = None, progress = None))]
    fn compact(
        &self,
        py: Python<'_>,
        memory_limit: Option<u64>,
        threads: Option<usize>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let limit = memory_limit.or_else(half_of_free);
        run(py, threads, progress, |call| self.change(|tree| Ok((tree.compact(limit, call)?, ()))))
    }

    /// Removes files that nobody needs; returns their bytes.
    fn vacuum(&self, py: Python<'_>) -> PyResult<u64> {
        run_short(py, None, |_| self.now().vacuum())
    }

    /// The state on disk that this is; None in memory.
    #[getter]
    fn version(&self) -> Option<u64> {
        self.now().version()
    }

    #[getter]
    fn n(&self) -> usize {
        self.now().len()
    }

    #[getter]
    fn alive(&self) -> usize {
        self.now().alive()
    }

    fn skipped<'py>(&self, py: Python<'py>) -> PyResult<Column<'py, i64>> {
        Ok(run_short(py, None, |_| self.now().skipped())?.into_pyarray(py))
    }

    fn deleted<'py>(&self, py: Python<'py>) -> PyResult<Column<'py, i64>> {
        Ok(run_short(py, None, |_| Ok(self.now().deleted()))?.into_pyarray(py))
    }

    #[getter]
    fn dim(&self) -> usize {
        self.now().dim()
    }

    #[getter]
    fn storage(&self) -> &'static str {
        self.now().storage().name()
    }

    #[getter]
    fn path(&self) -> Option<String> {
        self.now().path().map(|p| p.to_string_lossy().into_owned())
    }

    #[pyo3(signature = (centers, bounds, at_least = None, threads = None))]
    fn count<'py>(
        &self,
        py: Python<'py>,
        centers: Centers<'py>,
        bounds: Bounds<'py>,
        at_least: Option<u64>,
        threads: Option<usize>,
    ) -> PyResult<Column<'py, i64>> {
        let counts = self.query(py, &centers, &bounds, threads, |tree, caps, call| match at_least {
            Some(least) => tree.count_at_least(caps, least, call),
            None => tree.count(caps, call),
        })?;
        Ok(counts.into_pyarray(py))
    }

    /// For measurement: counts with some steps of the scan only, and which step decided how many (cap, row) pairs.
    #[pyo3(signature = (centers, bounds, steps, threads = None))]
    fn ablate<'py>(
        &self,
        py: Python<'py>,
        centers: Centers<'py>,
        bounds: Bounds<'py>,
        steps: Vec<String>,
        threads: Option<usize>,
    ) -> PyResult<(Column<'py, i64>, Bound<'py, PyDict>)> {
        let (counts, tally) = self.query(py, &centers, &bounds, threads, |tree, caps, call| {
            tree.ablate(caps, StepSet::named(&steps)?, call)
        })?;
        let decided = PyDict::new(py);
        for (step, pairs) in tally.decided() {
            decided.set_item(step, pairs)?;
        }
        Ok((counts.into_pyarray(py), decided))
    }

    #[pyo3(signature = (centers, bounds, sort = false, limit = None, distances = None, threads = None))]
    #[allow(clippy::too_many_arguments, clippy::type_complexity)]
    fn search<'py>(
        &self,
        py: Python<'py>,
        centers: Centers<'py>,
        bounds: Bounds<'py>,
        sort: bool,
        limit: Option<usize>,
        distances: Option<&str>,
        threads: Option<usize>,
    ) -> PyResult<(Column<'py, i64>, Column<'py, i64>, Option<Bound<'py, PyAny>>)> {
        let distances = match distances {
            Some("float64") => DistanceType::Float64,
            Some("float32") => DistanceType::Float32,
            None => DistanceType::None,
            Some(other) => {
                let wanted = "\"float64\", \"float32\" or None";
                return Err(to_py(py, &Error::parameter("distances", wanted, other)));
            }
        };
        let options = SearchOptions { sort, limit, distances };
        let found = self.query(py, &centers, &bounds, threads, |tree, caps, call| tree.search(caps, options, call))?;
        let distances = match found.distances {
            Distances::Float64(distances) => Some(distances.into_pyarray(py).into_any()),
            Distances::Float32(distances) => Some(distances.into_pyarray(py).into_any()),
            Distances::None => None,
        };
        Ok((found.offsets.into_pyarray(py), found.rows.into_pyarray(py), distances))
    }

    #[pyo3(signature = (queries, k, threads = None))]
    fn nearest<'py>(
        &self,
        py: Python<'py>,
        queries: Centers<'py>,
        k: usize,
        threads: Option<usize>,
    ) -> PyResult<(Table<'py, i64>, Table<'py, f64>)> {
        let (tree, dim, rows) = (&*self.now(), queries.shape()[1], queries.shape()[0]);
        if dim != tree.dim() && rows > 0 {
            return Err(to_py(py, &Error::caps(format!("queries of dim {}", tree.dim()), dim)));
        }
        let queries = queries.as_slice()?;
        let work = |call: &Call| tree.nearest(queries, k, call);
        let found =
            if is_short(rows, tree.len(), dim) { run_short(py, threads, work) } else { run(py, threads, None, work) }?;
        Ok((table(py, found.rows, k)?, table(py, found.distances, k)?))
    }

    #[pyo3(signature = (centers, counts, threads = None))]
    fn radius_for_count<'py>(
        &self,
        py: Python<'py>,
        centers: Centers<'py>,
        counts: PyReadonlyArray1<'py, i64>,
        threads: Option<usize>,
    ) -> PyResult<Column<'py, f64>> {
        let (tree, dim, rows) = (&*self.now(), centers.shape()[1], centers.shape()[0]);
        if rows > 0 && (dim != tree.dim() || counts.shape()[0] != rows) {
            let expected = format!("{rows} counts and centers of dim {}", tree.dim());
            return Err(to_py(py, &Error::caps(expected, dim)));
        }
        // A negative count is no usize; 0 is refused with the number of rows.
        let counts: Vec<usize> = counts.as_slice()?.iter().map(|k| usize::try_from(*k).unwrap_or(0)).collect();
        let centers = centers.as_slice()?;
        let work = |call: &Call| tree.radius_for_count(centers, &counts, call);
        let found =
            if is_short(rows, tree.len(), dim) { run_short(py, threads, work) } else { run(py, threads, None, work) }?;
        Ok(found.into_pyarray(py))
    }

    /// `tries`, for tests: see [`SampleOptions::tries`].
    #[pyo3(signature = (centers, bounds, k, replace, seed, threads = None, tries = None))]
    #[allow(clippy::too_many_arguments)]
    fn sample<'py>(
        &self,
        py: Python<'py>,
        centers: Centers<'py>,
        bounds: Bounds<'py>,
        k: usize,
        replace: bool,
        seed: u64,
        threads: Option<usize>,
        tries: Option<usize>,
    ) -> PyResult<Table<'py, i64>> {
        let options = SampleOptions { tries, ..SampleOptions::new(k, replace, seed) };
        let rows = self.query(py, &centers, &bounds, threads, |tree, caps, call| tree.sample(caps, options, call))?;
        table(py, rows, k)
    }

    #[pyo3(signature = (centers, bounds, k, replace, density_samples, seed, threads = None))]
    #[allow(clippy::too_many_arguments)]
    fn sample_approximate<'py>(
        &self,
        py: Python<'py>,
        centers: Centers<'py>,
        bounds: Bounds<'py>,
        k: usize,
        replace: bool,
        density_samples: usize,
        seed: u64,
        threads: Option<usize>,
    ) -> PyResult<Table<'py, i64>> {
        let options = SampleOptions::new(k, replace, seed);
        let rows = self.query(py, &centers, &bounds, threads, |tree, caps, call| {
            tree.sample_approximate(caps, options, density_samples, call)
        })?;
        table(py, rows, k)
    }

    #[pyo3(signature = (centers, bounds, samples, confidence, seed, threads = None))]
    #[allow(clippy::too_many_arguments, clippy::type_complexity)]
    fn estimate<'py>(
        &self,
        py: Python<'py>,
        centers: Centers<'py>,
        bounds: Bounds<'py>,
        samples: usize,
        confidence: f64,
        seed: u64,
        threads: Option<usize>,
    ) -> PyResult<(Column<'py, f64>, Column<'py, i64>, Column<'py, i64>)> {
        let found = self.query(py, &centers, &bounds, threads, |tree, caps, call| {
            tree.estimate(caps, samples, confidence, seed, call)
        })?;
        Ok((found.counts.into_pyarray(py), found.low.into_pyarray(py), found.high.into_pyarray(py)))
    }

    fn take<'py>(&self, py: Python<'py>, rows: PyReadonlyArray1<'py, i64>) -> PyResult<Bound<'py, PyAny>> {
        let (tree, rows) = (&*self.now(), rows.as_slice()?);
        match tree.storage() {
            Storage::Float16 => {
                let values: Vec<f16> = run_short(py, None, |_| tree.take_f16(rows))?;
                Ok(table(py, values, tree.dim())?.into_any())
            }
            Storage::Float32 => {
                let values: Vec<f32> = run_short(py, None, |_| tree.take_f32(rows))?;
                Ok(table(py, values, tree.dim())?.into_any())
            }
        }
    }

    fn nodes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (tree, out) = (self.now(), PyDict::new(py));
        let nodes = tree.nodes();
        let long =
            |get: fn(&crate::tree::NodeRecord) -> i64| nodes.iter().map(get).collect::<Vec<_>>().into_pyarray(py);
        out.set_item("parent", long(|n| n.parent))?;
        out.set_item("first_child", long(|n| n.first_child))?;
        out.set_item("start", long(|n| n.start))?;
        out.set_item("rows", long(|n| n.rows))?;
        let short =
            |get: fn(&crate::tree::NodeRecord) -> i32| nodes.iter().map(get).collect::<Vec<_>>().into_pyarray(py);
        out.set_item("depth", short(|n| n.depth))?;
        out.set_item("children", short(|n| n.children))?;
        let bounds: Vec<f64> = nodes.iter().map(|n| n.max_cos_distance).collect();
        out.set_item("max_cos_distance", bounds.into_pyarray(py))?;
        let centers = run_short(py, None, |_| tree.centers())?;
        out.set_item("center", table(py, centers, tree.dim())?)?;
        Ok(out)
    }

    fn node_rows<'py>(&self, py: Python<'py>, node: usize) -> PyResult<Column<'py, i64>> {
        Ok(run_short(py, None, |_| self.now().node_rows(node))?.into_pyarray(py))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (stats, out) = (run_short(py, None, |_| self.now().stats())?, PyDict::new(py));
        out.set_item("rows", stats.rows)?;
        out.set_item("skipped", stats.skipped)?;
        out.set_item("deleted", stats.deleted)?;
        out.set_item("segments", stats.segments)?;
        out.set_item("dim", stats.dim)?;
        out.set_item("storage", stats.storage)?;
        out.set_item("fanout", stats.fanout)?;
        out.set_item("leaf_size", stats.leaf_size)?;
        out.set_item("seed", stats.seed)?;
        out.set_item("nodes", stats.nodes)?;
        out.set_item("leaves", stats.leaves)?;
        out.set_item("depth", stats.depth)?;
        out.set_item("leaf_rows_min", stats.leaf_rows_min)?;
        out.set_item("leaf_rows_mean", stats.leaf_rows_mean)?;
        out.set_item("leaf_rows_max", stats.leaf_rows_max)?;
        out.set_item("leaf_max_cos_distance_median", stats.leaf_max_cos_distance_median)?;
        out.set_item("bytes", stats.bytes)?;
        out.set_item("vector_bytes", stats.vector_bytes)?;
        out.set_item("sketch_bytes", stats.sketch_bytes)?;
        out.set_item("kernels", stats.kernels)?;
        out.set_item("path", self.path())?;
        Ok(out)
    }

    #[pyo3(signature = (threads = None, progress = None))]
    fn verify(&self, py: Python<'_>, threads: Option<usize>, progress: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        run(py, threads, progress, |call| self.now().verify(call))
    }

    #[pyo3(signature = (path, progress = None))]
    fn save(&self, py: Python<'_>, path: PathBuf, progress: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        run(py, None, progress, |call| self.now().save(&path, call))
    }
}
