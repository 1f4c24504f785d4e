"""Pairs to train on: a cap and a random row inside it, written to Parquet."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from captree import _params
from captree._arrow import require_pyarrow
from captree._caps import Caps, fixed_size_list
from captree._centers import Centers
from captree._draws import CAPS_WITHOUT_ROW, NO_ROWS, RowDrawer
from captree._paths import absolute
from captree._priors import stream_key
from captree._progress import Progress, reporting, stepping
from captree._radii import DEFAULT_RADII, Radii
from captree.errors import InvalidParameterError, StorageError

if TYPE_CHECKING:
    from captree._tree import Tree


@dataclass(frozen=True)
class PairsReport:
    """What :func:`write_pairs` did. ``caps_drawn == pairs + empty_caps + exhausted_caps``.

    Attributes:
        pairs: pairs written.
        caps_drawn: caps tried for them.
        empty_caps: caps that hold no row.
        exhausted_caps: caps that hold rows, but none that may still be used (source rows, rows used before).
        files: the Parquet files, in order.
        seconds: wall time.
    """

    pairs: int
    caps_drawn: int
    empty_caps: int
    exhausted_caps: int
    files: tuple[str, ...]
    seconds: float


def write_pairs(
    tree: Tree,
    out: str | os.PathLike[str],
    n: int,
    seed: int = 0,
    replace: bool = True,
    progress: Progress = False,
    batch_size: int = 16_384,
    rows_per_file: int = 131_072,
    exclude_sources: bool = False,
    radii: Radii = DEFAULT_RADII,
    centers: Centers | None = None,
    threads: int | None = None,
) -> PairsReport:
    """Writes `n` pairs, each a fresh random cap and a uniformly random row inside it, as Parquet files in `out`.

    Columns: ``row`` int64, ``center`` fixed_size_list<float>[d], ``max_cos_distance`` float32. Bounds are rounded to
    float32 before a row is drawn (those of :class:`captree.ByMass` up), so that each stored pair is true as it
    stands. Caps come from the priors of :func:`captree.training_caps`; an empty cap is dropped and another drawn in
    its place.

    Files are ``part-00000.parquet`` and so on, each written under a temporary name and renamed when it is whole.

    Args:
        tree: the tree whose rows are drawn.
        out: a folder, made when missing; it must be empty.
        n: pairs to write, at least 1.
        seed: an integer in [0, 2**64); the same seed and batch_size give the same pairs.
        replace: False uses every row at most once over the whole run: each cap's row is uniform over its rows that
            no earlier pair used, and a cap without such rows is dropped (so is one whose row the prior of centers
            knows, if that is used). Keeps one byte per row of the tree.
        progress: True for a bar on a terminal (plain lines elsewhere), or a callable ``(phase, done, total)``.
        batch_size: caps drawn at a time; also the Parquet row groups.
        rows_per_file: pairs per file.
        exclude_sources: never pair a cap with one of the two rows its center was made from. A draw that hits one is
            discarded and drawn again from three distinct random rows of the cap, of which a random one that is no
            source is kept (at most two are); so the row is uniform over the cap's other rows. A cap without any is
            dropped. Not with centers that know their rows, such as :class:`captree.UniformInCap`.
        radii: the prior of max cosine distances, as in :func:`captree.training_caps`.
        centers: the prior of centers, as in :func:`captree.training_caps`.
        threads: at most this many.

    Raises:
        InvalidParameterError: `out` is not empty, `n` is larger than the tree with ``replace=False``, or 100,000
            caps in a row gave no pair. Whole files written before stay.
        StorageError: writing failed.
        MissingDependencyError: pyarrow is not installed.
    """
    pa = require_pyarrow("write_pairs")
    n = _params.integer("n", n, 1)
    seed = _params.integer("seed", seed, 0, 2**64 - 1)
    batch_size = _params.integer("batch_size", batch_size, 1, 1 << 24)
    rows_per_file = _params.integer("rows_per_file", rows_per_file, 1)
    kept = len(tree) - tree.skipped.size
    if not replace and n > kept:
        raise InvalidParameterError(
            f"expected at most {kept} pairs, one per row (replace=False), got {n}", parameter="n"
        )
    began = time.monotonic()
    used = None if replace else np.zeros(len(tree), np.bool_)
    drawer = _Batches(
        RowDrawer(tree, exclude_sources, used=used, threads=_params.threads(threads)), seed, radii, centers
    )
    folder = Path(absolute("out", out))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InvalidParameterError(
                f"expected an empty folder, got {folder}, which has files in it", parameter="out"
            )
        about = {"seed": seed, "tree_rows": len(tree), "replace": bool(replace), "exclude_sources": exclude_sources}
        with reporting(progress) as callback, _Shards(pa, folder, tree.dim, rows_per_file, about) as shards:
            step = stepping(callback, "pairs", n)
            for rows, caps in drawer.batches(n, batch_size):
                shards.write(rows, caps)
                step(shards.written)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot write pairs to {folder}: {error}") from error
    return PairsReport(
        pairs=n,
        caps_drawn=n + drawer.empty + drawer.exhausted,
        empty_caps=drawer.empty,
        exhausted_caps=drawer.exhausted,
        files=tuple(str(file) for file in shards.files),
        seconds=time.monotonic() - began,
    )


class _Batches:
    """Draws batches of caps and one row for each, dropping caps without a row that may be used."""

    def __init__(self, drawer: RowDrawer, seed: int, radii: Radii, centers: Centers | None) -> None:
        self.empty = 0
        self.exhausted = 0
        self._drawer = drawer
        self._seed = seed
        self._priors = (radii, centers)

    def batches(self, n: int, batch_size: int) -> Iterator[tuple[NDArray[np.int64], Caps]]:
        """Rows and their caps, batch by batch, `n` in all."""
        done = fruitless = 0
        for index in range(2**62):
            if done == n:
                return
            # A few caps more than are missing, so that the last empty ones don't cost a call each.
            size = min(batch_size, max(n - done, 256))
            keys = stream_key(self._seed, 1, index), stream_key(self._seed, 2, index)
            rows, caps, empty = self._drawer.pairs(size, *keys, *self._priors, wanted=n - done)
            good = np.flatnonzero(rows >= 0)[: n - done]
            stop = int(good[-1]) + 1 if done + good.size == n else size
            self.empty += int(empty[:stop].sum())
            self.exhausted += stop - good.size - int(empty[:stop].sum())
            fruitless = 0 if good.size else fruitless + size
            if fruitless >= CAPS_WITHOUT_ROW:
                raise InvalidParameterError(f"{fruitless} {NO_ROWS}; wrote {done} of {n} pairs")
            if good.size:
                done += good.size
                yield rows[good], caps[good]


class _Shards:
    """Parquet files of at most `rows_per_file` pairs, each renamed to its name when it is whole."""

    def __init__(self, pa: Any, folder: Path, dim: int, rows_per_file: int, about: dict[str, Any]) -> None:
        self._pa = pa
        self._folder = folder
        self._limit = rows_per_file
        self._schema = pa.schema(
            [
                pa.field("row", pa.int64(), nullable=False),
                pa.field("center", pa.list_(pa.float32(), dim), nullable=False),
                pa.field("max_cos_distance", pa.float32(), nullable=False),
            ],
            metadata={"captree": json.dumps(about)},
        )
        self._writer: Any = None
        self._in_file = 0
        self.files: list[Path] = []
        self.written = 0

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self._finish_file()
        elif self._writer is not None:
            with suppress(Exception):
                self._writer.close()
            self._temporary().unlink(missing_ok=True)

    def write(self, rows: NDArray[np.int64], caps: Caps) -> None:
        """Appends pairs."""
        while len(rows):
            fits = self._limit - self._in_file
            self._append(rows[:fits], caps[:fits])
            rows, caps = rows[fits:], caps[fits:]
            if self._in_file == self._limit:
                self._finish_file()

    def _append(self, rows: NDArray[np.int64], caps: Caps) -> None:
        pa = self._pa
        import pyarrow.parquet as pq

        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._temporary(), self._schema, compression="none", use_dictionary=False, write_statistics=["row"]
            )
        columns = [
            pa.array(rows),
            fixed_size_list(pa, caps.centers),
            pa.array(caps.max_cos_distance.astype(np.float32)),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._in_file += len(rows)
        self.written += len(rows)

    def _finish_file(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        file = self._folder / f"part-{len(self.files):05}.parquet"
        self._temporary().replace(file)
        self.files.append(file)
        self._writer, self._in_file = None, 0

    def _temporary(self) -> Path:
        return self._folder / f".part-{len(self.files):05}.parquet.tmp"
