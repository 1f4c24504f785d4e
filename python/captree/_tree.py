"""The tree: ask it, change it, save it."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from captree import _arrays, _params
from captree import _core as native
from captree._arrow import require_pyarrow
from captree._caps import Caps, as_caps, fixed_size_list, unit_rows
from captree._caps import CapsLike as CapsLike
from captree._inputs import push_all
from captree._paths import absolute
from captree._progress import Progress, reporting
from captree._results import EstimateResult, NearestResult, RangeResult
from captree._rows import Reading
from captree.errors import InvalidParameterError, InvalidTypeError, InvalidVectorsError, RowIndexError

if TYPE_CHECKING:
    import pyarrow as pa

_HISTOGRAM_CAPS = 4096
"""Caps that a histogram counts at once."""


def _open_version(path: str, version: int) -> Tree:
    """The state of a tree that a pickled one was in."""
    return Tree(native.Tree.open_version(path, version))


class Tree:
    """Unit vectors in a tree of spherical caps; made by :func:`captree.build` and :func:`captree.open`.

    Rows are numbered by input order. Methods release the GIL, may be called from several threads at once, and take
    ``threads=`` (all cores by default). What "exact" means: a row is inside a cap when
    ``1 - <center, row> <= max_cos_distance`` holds for the real-number value of the dot product of the kept vectors
    and the float32 centers as given. ``len(tree)`` is how many row numbers there are, those of skipped and deleted
    rows included. Pickling stores the path and the state, so only a tree on disk can be pickled.

    :meth:`append`, :meth:`delete` and :meth:`compact` change the tree. Queries that run meanwhile go on with the rows
    that they found.
    """

    __slots__ = ("__weakref__", "_absent_rows", "_core")

    _core: native.Tree
    _absent_rows: tuple[tuple[int, int], NDArray[np.int64]] | None

    def __init__(self, core: native.Tree) -> None:
        if not isinstance(core, native.Tree):
            raise InvalidTypeError("a Tree is made by captree.build and captree.open")
        self._core = core
        self._absent_rows = None

    def __len__(self) -> int:
        return self._core.n

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self._core.dim

    @property
    def storage(self) -> str:
        """``"float16"`` or ``"float32"``: how the vectors are kept."""
        return self._core.storage

    @property
    def path(self) -> str | None:
        """Where the tree is on disk; None in memory."""
        return self._core.path

    @property
    def skipped(self) -> NDArray[np.int64]:
        """int64, sorted: rows that were left out by ``invalid="skip"``; they lie in no cap."""
        return self._core.skipped()

    @property
    def deleted(self) -> NDArray[np.int64]:
        """int64, sorted: rows that were deleted; they lie in no cap, and no other rows get their numbers."""
        return self._core.deleted()

    def _absent(self) -> NDArray[np.int64]:
        """int64, sorted, read-only: skipped and deleted rows together."""
        # Appending changes the first number and deleting the second; nothing else changes the rows.
        state = (self._core.n, self._core.alive)
        if self._absent_rows is None or self._absent_rows[0] != state:
            rows = np.union1d(self._core.skipped(), self._core.deleted())
            rows.flags.writeable = False
            self._absent_rows = (state, rows)
        return self._absent_rows[1]

    @property
    def fanout(self) -> int:
        """Children of a node at most."""
        return int(self._core.stats()["fanout"])

    @property
    def leaf_size(self) -> int:
        """Rows of a leaf at most, but for rows that cannot be told apart."""
        return int(self._core.stats()["leaf_size"])

    @property
    def depth(self) -> int:
        """Depth of the deepest leaf; 0 when the root is a leaf."""
        return int(self._core.stats()["depth"])

    def stats(self) -> dict[str, Any]:
        """Figures about the tree.

        Rows, skipped and deleted ones, segments, dim, storage, fanout, leaf_size, seed, nodes, leaves, depth, leaf
        rows, bytes, path.
        """
        return self._core.stats()

    def nodes(self) -> pa.Table:
        """The nodes as a pyarrow Table, the root first.

        Each :meth:`append` adds a segment with a root of its own, whose nodes follow; deleted rows stay below theirs
        until :meth:`compact`.

        Columns: ``parent`` int64 (-1 at the root), ``depth`` int32, ``center`` fixed_size_list<float>[d],
        ``max_cos_distance`` double (the node's cap holds all its rows), ``rows`` int64 (how many), ``first_child``
        int64 (-1 at a leaf), ``children`` int32, ``start`` int64 (place of its first row in the stored order).

        Raises:
            MissingDependencyError: pyarrow is not installed.
        """
        pa = require_pyarrow("Tree.nodes")
        columns = self._core.nodes()
        first = ("parent", "depth", "center", "max_cos_distance", "rows")
        names = [*first, *(name for name in columns if name not in first)]
        centers = fixed_size_list(pa, columns["center"])
        return pa.table({name: centers if name == "center" else pa.array(columns[name]) for name in names})

    def node_rows(self, node: int) -> NDArray[np.int64]:
        """int64, the rows below a node that are not deleted, by its place in :meth:`nodes`."""
        return self._core.node_rows(_params.integer("node", node, 0, 2**63 - 1))

    def count(self, caps: CapsLike, at_least: int | None = None, threads: int | None = None) -> NDArray[np.int64]:
        """How many rows lie inside each cap: int64 (q,), exact.

        Args:
            caps: the caps.
            at_least: where it only matters whether a cap holds so many rows: the result is the smaller of the count and
                this number, and caps that hold more are done after a part of the tree.
            threads: at most this many.

        Raises:
            InvalidCapsError: caps of another dimension, or bad ones in a tuple.
            InvalidParameterError: at_least or threads outside their domain.
        """
        caps = as_caps(caps, self.dim)
        at_least = None if at_least is None else _params.integer("at_least", at_least, 0, _params.MACHINE_INTEGER)
        return self._core.count(caps.centers, caps.max_cos_distance, at_least, _params.threads(threads))

    @overload
    def search(
        self,
        caps: CapsLike,
        sort: bool = False,
        limit: int | None = None,
        distances: Literal["float64"] = "float64",
        threads: int | None = None,
    ) -> RangeResult[NDArray[np.float64]]: ...
    @overload
    def search(
        self,
        caps: CapsLike,
        sort: bool = False,
        limit: int | None = None,
        *,
        distances: Literal["float32"],
        threads: int | None = None,
    ) -> RangeResult[NDArray[np.float32]]: ...
    @overload
    def search(
        self,
        caps: CapsLike,
        sort: bool = False,
        limit: int | None = None,
        *,
        distances: None,
        threads: int | None = None,
    ) -> RangeResult[None]: ...
    def search(
        self,
        caps: CapsLike,
        sort: bool = False,
        limit: int | None = None,
        distances: Literal["float64", "float32"] | None = "float64",
        threads: int | None = None,
    ) -> RangeResult[Any]:
        """Which rows lie inside each cap, and how far they are, exactly.

        Args:
            caps: the caps.
            sort: order the rows of each cap by float64 distance, then row; otherwise the order is fixed but means
                nothing.
            limit: at most this many rows per cap: the nearest ones with `sort`, any rows inside without it.
            distances: ``"float64"``, ``"float32"``, or None for rows alone. In caps of many rows float64 distances
                cost more than finding the rows, float32 ones a part of that, and none nothing; with `sort` all cost
                the same.
            threads: at most this many.

        Returns:
            Offsets, rows and distances; each distance is the real-number value rounded once to its type. It can be
            slightly negative, and as a bound it can miss its row: see :class:`Caps` for what to do.

        Raises:
            InvalidCapsError: caps of another dimension, or bad ones in a tuple.
            InvalidParameterError: limit or distances outside their domain.
        """
        caps = as_caps(caps, self.dim)
        limit = None if limit is None else _params.integer("limit", limit, 0)
        if distances is not None:
            _params.one_of("distances", distances, ("float64", "float32"), "None")
        threads = _params.threads(threads)
        found = self._core.search(caps.centers, caps.max_cos_distance, bool(sort), limit, distances, threads)
        return RangeResult(*found)

    def sample(
        self,
        caps: CapsLike,
        k: int = 1,
        replace: bool = True,
        method: Literal["exact", "approximate"] = "exact",
        seed: int | None = None,
        density_samples: int = 512,
        threads: int | None = None,
    ) -> NDArray[np.int64]:
        """Random rows of each cap: int64 (q, k), -1 where a cap has no (further) row.

        ``method="exact"`` draws every row inside with the same probability, independently between draws, between
        caps (equal ones too) and between calls with different seeds.

        ``method="approximate"`` is the published two-stage scheme: children of the root that lie wholly inside a cap
        count with all their rows; in each child that crosses it the number of rows inside is estimated from
        `density_samples` random rows of the child, drawn once for the whole batch; a child is drawn in proportion to
        its count, then a row of it: any row of a child inside, one of the sampled rows inside of a crossing child. It
        is biased: the other rows of crossing children can never be drawn in that call, draws for several caps share
        the same few rows, and a child whose sample misses the cap is left out. Only where all estimates are zero and
        a child crosses is the exact method used. Children of at most `density_samples` rows are sampled whole, and
        then it is as uniform as the exact method.

        Args:
            caps: the caps.
            k: rows per cap.
            replace: False draws distinct rows within a cap; a cap with m < k rows gives them all and then -1
                (``"approximate"``: all rows that it can draw).
            method: ``"exact"`` or ``"approximate"``.
            seed: an integer in [0, 2**64); the same seed gives the same rows, whatever the thread count and
                however a batch of distinct caps is split. None draws a fresh one.
            density_samples: rows of each crossing child that ``"approximate"`` tests.
            threads: at most this many.

        Raises:
            InvalidCapsError: caps of another dimension, or bad ones in a tuple.
            InvalidParameterError: k, seed, density_samples or method outside its domain.
        """
        caps = as_caps(caps, self.dim)
        k = _params.integer("k", k, 0, _params.MACHINE_INTEGER)
        seed = _params.seed(seed)
        density_samples = _params.integer("density_samples", density_samples, 1, _params.MACHINE_INTEGER)
        threads = _params.threads(threads)
        _params.one_of("method", method, ("exact", "approximate"))
        if k == 0 or len(caps) == 0:
            return np.empty((len(caps), k), np.int64)
        centers, bounds, core = caps.centers, caps.max_cos_distance, self._core
        if method == "exact":
            return core.sample(centers, bounds, k, bool(replace), seed, threads)
        return core.sample_approximate(centers, bounds, k, bool(replace), density_samples, seed, threads)

    def estimate(
        self,
        caps: CapsLike,
        samples: int = 4096,
        confidence: float = 0.95,
        seed: int | None = None,
        threads: int | None = None,
    ) -> EstimateResult:
        """About how many rows lie inside each cap, with an interval, without looking at all rows.

        Args:
            caps: the caps.
            samples: random rows that are tested; they are shared by the batch.
            confidence: probability, in (0, 1), with which the interval of a cap holds its count.
            seed: an integer in [0, 2**64); None draws a fresh one.
            threads: at most this many.

        Returns:
            ``count`` float64 (q,), ``low`` and ``high`` int64 (q,).

        Raises:
            InvalidCapsError: caps of another dimension, or bad ones in a tuple.
            InvalidParameterError: samples, confidence or seed outside its domain.
        """
        caps = as_caps(caps, self.dim)
        samples = _params.integer("samples", samples, 1, _params.MACHINE_INTEGER)
        confidence = _params.fraction("confidence", confidence, 0.0, 1.0, open_ends=True)
        seed, threads = _params.seed(seed), _params.threads(threads)
        core = self._core
        return EstimateResult(*core.estimate(caps.centers, caps.max_cos_distance, samples, confidence, seed, threads))

    def nearest(self, queries: Any, k: int, threads: int | None = None) -> NearestResult:
        """The `k` nearest rows of each query, exactly; equal distances go to the lower row.

        Args:
            queries: (q, d) unit vectors, or one (d,), of the kinds and within the tolerances of :class:`Caps`.
            k: rows per query, at least 1; past the last row of the tree come row -1 and distance inf.
            threads: at most this many.

        Returns:
            ``rows`` int64 (q, k) and ``distances`` float64 (q, k), nearest first.

        Raises:
            InvalidVectorsError: queries of another dimension, or not unit.
        """
        array = self._unit_rows(queries, "queries")
        k = _params.integer("k", k, 1, _params.MACHINE_INTEGER)
        real = max(min(k, self._core.alive), 1)
        rows, far = self._core.nearest(array, real, _params.threads(threads))
        if real < k:
            rows = np.pad(rows, ((0, 0), (0, k - real)), constant_values=-1)
            far = np.pad(far, ((0, 0), (0, k - real)), constant_values=np.inf)
        return NearestResult(rows, far)

    def histogram(self, centers: Any, edges: Any, threads: int | None = None) -> NDArray[np.int64]:
        """How many rows lie between bounds around each center: int64 (q, len(edges) - 1), exact.

        Column ``j`` counts the rows farther away than ``edges[j]`` and not farther than ``edges[j + 1]``: the
        differences between counts of caps, which hold the rows at their bound. Rows that lie exactly at the first edge,
        or closer, are in no column.

        Args:
            centers: (q, d) unit vectors, or one (d,), of the kinds and within the tolerances of :class:`Caps`.
            edges: at least two numbers in [0, 2], each larger than the one before.
            threads: at most this many.

        Raises:
            InvalidVectorsError: centers of another dimension, or not unit.
            InvalidParameterError: edges outside [0, 2], too few, or not increasing.
            InvalidTypeError: edges that are no numbers.
        """
        array = self._unit_rows(centers, "centers")
        bounds = _arrays.on_host(edges)
        if bounds.dtype.kind not in "fiu" and bounds.size:
            raise InvalidTypeError(f"expected real numbers, got {bounds.dtype.name}", parameter="edges")
        bounds = bounds.astype(np.float64)
        is_right = bounds.ndim == 1 and bounds.size >= 2 and bool((np.diff(bounds) > 0).all())
        if not is_right or not 0.0 <= bounds[0] <= bounds[-1] <= 2.0:
            raise InvalidParameterError(
                f"expected at least two increasing numbers in [0, 2], got {edges!r:.200}", parameter="edges"
            )
        counts = np.empty(len(array) * bounds.size, np.int64)
        for start in range(0, counts.size, _HISTOGRAM_CAPS):
            place, edge = np.divmod(np.arange(start, min(start + _HISTOGRAM_CAPS, counts.size)), bounds.size)
            counts[start : start + place.size] = self.count(Caps._wrap(array[place], bounds[edge]), threads=threads)
        return np.diff(counts.reshape(len(array), bounds.size), axis=1)

    def radius_for_mass(self, centers: Any, mass: Any, threads: int | None = None) -> NDArray[np.float64]:
        """The bound whose cap holds a given share of the rows that were kept: float64 (q,), exact.

        It is the smallest float64 in [0, 2] with which :meth:`count` gives at least ``ceil(mass * n)`` rows, in float64
        arithmetic and at least 1. Where rows lie equally far the cap may hold more. (Rows and centers that are a
        little longer than 1 and opposite are more than 2 apart; where not even 2 holds so many rows, it is 2.)

        Args:
            centers: (q, d) unit vectors, or one (d,), of the kinds and within the tolerances of :class:`Caps`.
            mass: (q,) shares in (0, 1], or one for every center; one center may come with several shares.
            threads: at most this many.

        Raises:
            InvalidVectorsError: centers of another dimension, or not unit.
            InvalidParameterError: shares outside (0, 1], or not as many as centers.
            InvalidTypeError: shares that are no numbers.
        """
        array = self._unit_rows(centers, "centers")
        shares = _arrays.on_host(mass)
        if shares.dtype.kind not in "fiu" and shares.size:
            raise InvalidTypeError(f"expected real numbers, got {shares.dtype.name}", parameter="mass")
        shares = shares.astype(np.float64)
        if shares.ndim > 1 or not bool(((shares > 0.0) & (shares <= 1.0)).all()):
            raise InvalidParameterError(
                f"expected a share or (q,) shares in (0, 1], got {shares!r:.200}", parameter="mass"
            )
        if shares.ndim == 0:
            shares = np.full(len(array), float(shares))
        elif np.ndim(centers) == 1 and len(array) == 1:
            array = np.repeat(array, shares.size, axis=0)
        if shares.size != len(array):
            raise InvalidParameterError(
                f"expected {len(array)} shares, one per center, or one, got {shares.size}", parameter="mass"
            )
        alive = self._core.alive
        if alive == 0:
            raise InvalidParameterError(
                "expected a tree with rows, got one whose rows are all deleted", parameter="mass"
            )
        counts = np.clip(np.ceil(shares * alive), 1, alive).astype(np.int64)
        return self._core.radius_for_count(array, counts, _params.threads(threads))

    def _unit_rows(self, value: Any, what: str) -> NDArray[np.float32]:
        """Unit vectors of the tree's dimension; `what` names the parameter."""
        array = unit_rows(value, what)
        if array.shape == (0, 0):
            array = array.reshape(0, self.dim)
        if array.shape[1] != self.dim:
            raise InvalidVectorsError(f"expected dim {self.dim}, got {array.shape[1]}", parameter=what)
        return array

    def take(self, rows: Any) -> NDArray[Any]:
        """The kept vectors of `rows` (integers of any shape s): float16 or float32, shape s + (dim,).

        Raises:
            RowIndexError: a row outside [0, n), or one that was skipped or deleted; -1, "no row", is outside too.
            InvalidTypeError: not integers.
        """
        index = self._row_numbers(rows)
        return self._core.take(index.reshape(-1)).reshape(*index.shape, self.dim)

    def _row_numbers(self, rows: Any) -> NDArray[np.int64]:
        """Integers of any shape that are rows of the tree."""
        index = _arrays.on_host(rows)
        if index.size == 0 and index.dtype.kind == "f":
            index = index.astype(np.int64)
        if index.dtype.kind not in "iu":
            raise InvalidTypeError(f"expected integers, got {index.dtype.name}", parameter="rows")
        outside = (index < 0) | (index >= len(self))
        if bool(outside.any()):
            raise RowIndexError(f"expected rows in [0, {len(self)}), got {index[outside].flat[0]}", parameter="rows")
        return index.astype(np.int64, order="C")

    def append(
        self,
        vectors: Any,
        normalize: bool = False,
        memory_limit: int | str | None = None,
        threads: int | None = None,
        progress: Progress = False,
        column: str | None = None,
        invalid: Literal["error", "skip"] = "error",
    ) -> range:
        """Adds rows behind all others. Durable when it returns, and seen by every query from then on.

        The rows make a segment of their own, a tree beside the others; small ones at the end become one, so that many
        small appends leave few of them. Answers are exact as ever; :meth:`compact` brings the speed of a tree that is
        built anew. Where it fails or is interrupted, the tree stays what it was.

        Args:
            vectors: (m, d) unit rows, of everything that :func:`build` takes. They are stored in the tree's dtype.
            normalize: as in :func:`build`.
            memory_limit: as in :func:`build`, where the tree is on disk.
            threads: at most this many.
            progress: as in :func:`build`.
            column: as in :func:`build`.
            invalid: as in :func:`build`; at least one row must be left.

        Returns:
            The numbers of the new rows.

        Raises:
            InvalidVectorsError: rows of another dimension, or bad ones.
            InvalidTypeError: element types captree does not take, or objects it cannot read.
            TreeLockedError: another process or thread is changing the tree.
            StorageError: reading or writing failed.
        """
        skip = _params.one_of("invalid", invalid, ("error", "skip")) == "skip"
        how = Reading(column, bool(normalize), skip)
        limit, threads = _params.memory_limit(memory_limit), _params.threads(threads)
        builder = native.Builder.appending(self._core, how.scaled, skip, limit, threads)
        with reporting(progress) as callback, closing(builder):
            push_all(builder, vectors, how, callback)
            added = builder.append(callback)
        return range(*added)

    def delete(self, rows: Any) -> int:
        """Deletes rows: they lie in no cap from then on. Durable when it returns.

        Other rows keep their numbers, and no new row gets the number of a deleted one. Rows that were skipped or
        deleted before change nothing. The vectors stay on disk until :meth:`compact`.

        Args:
            rows: integers of any shape.

        Returns:
            How many rows were deleted that had not been before.

        Raises:
            RowIndexError: a row outside [0, n); then none is deleted.
            InvalidTypeError: not integers.
            TreeLockedError: another process or thread is changing the tree.
            StorageError: writing failed.
        """
        return self._core.delete(self._row_numbers(rows).reshape(-1))

    def compact(
        self, memory_limit: int | str | None = None, threads: int | None = None, progress: Progress = False
    ) -> None:
        """Builds the segments into as few as :func:`build` would make, without deleted rows. Durable when it returns.

        Rows keep their numbers and all exact answers, draws included, stay the same; nodes, and with them the draws of
        ``method="approximate"``, are new. A tree that is compact already stays as it is. Files that no open tree needs
        are removed.

        Args:
            memory_limit: as in :func:`build`; where one segment of all rows would take more, they are several.
            threads: at most this many.
            progress: as in :func:`build`.

        Raises:
            TreeLockedError: another process or thread is changing the tree.
            MemoryLimitError: a thousand rows do not fit in `memory_limit`.
            StorageError: reading or writing failed.
        """
        limit = _params.memory_limit(memory_limit)
        with reporting(progress) as callback:
            self._core.compact(limit, _params.threads(threads), callback)

    def vacuum(self) -> int:
        """Removes files that no open tree needs any more, here or in another process.

        Every change does so for those that are not needed then; this is for those that were still open. The tree itself
        stays as it is.

        Returns:
            Bytes of the files.

        Raises:
            TreeLockedError: another process or thread is changing the tree.
            StorageError: reading or writing failed.
        """
        return self._core.vacuum()

    def verify(self, threads: int | None = None, progress: Progress = False) -> None:
        """Checks every checksum and every invariant of the tree; returns None when all hold.

        Raises:
            CorruptTreeError: names the first thing that does not hold.
        """
        with reporting(progress) as callback:
            self._core.verify(_params.threads(threads), callback)

    def save(self, path: str | os.PathLike[str], progress: Progress = False) -> None:
        """Writes the tree to `path`, under a temporary name first; open it with :func:`captree.open`.

        Raises:
            StorageError: writing failed.
        """
        with reporting(progress) as callback:
            self._core.save(absolute("path", path), callback)

    def __repr__(self) -> str:
        stats = self._core.stats()
        where = "in memory" if self.path is None else repr(self.path)
        return (
            f"Tree({len(self):,} rows x {self.dim}, {self.storage}, {stats['nodes']:,} nodes, "
            f"{stats['leaves']:,} leaves, depth {stats['depth']}, {where})"
        )

    def __copy__(self) -> Tree:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Tree:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is None:
            raise InvalidTypeError("a tree in memory cannot be pickled: save(path) it and captree.open(path) it")
        return _open_version, (self.path, self._core.version)
