"""Trees: build one, open one."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any, Literal

from captree import _core as native
from captree import _params
from captree._inputs import push_all
from captree._paths import absolute
from captree._progress import Progress, reporting
from captree._rows import Reading
from captree._tree import Tree


def build(
    vectors: Any,
    out: str | os.PathLike[str] | None = None,
    fanout: int = 64,
    leaf_size: int | None = None,
    storage: Literal["float16", "float32"] = "float16",
    seed: int = 0,
    normalize: bool = False,
    memory_limit: int | str | None = None,
    threads: int | None = None,
    progress: Progress = False,
    column: str | None = None,
    invalid: Literal["error", "skip"] = "error",
) -> Tree:
    """Builds a tree of spherical caps over unit vectors, by recursive spherical k-means.

    Args:
        vectors: (n, d) unit rows, float16, bfloat16, float32 or float64: a numpy, torch or CuPy array, anything with
            DLPack or the buffer protocol, a pyarrow FixedSizeList array, chunked array, table or reader, a column of
            pandas or of a Hugging Face dataset, lists of lists; a path to ``.npy``, Parquet or Arrow IPC: a file, a
            glob, or a folder, whose subfolders are read too; or an iterable of batches of any of these, of single
            vectors, or of records that hold one. int8 and uint8 rows are taken with `normalize`. Files come in the
            natural order of their names (``part-9`` before ``part-10``); names that begin with ``.`` or ``_`` are
            left out. They are read once, slice by slice.
        out: where the tree is written; without it the tree lives in memory. A tree that is there is replaced once the
            new one is whole; an empty folder is taken; anything else there is an error. A build of several segments
            that was interrupted or killed goes on with the next one when it is called again with the same rows and
            arguments, and ends with the same files.
        fanout: children of a node, 2 to 4096.
        leaf_size: most rows of a node that is not split; 512 by default.
        storage: ``"float16"`` or ``"float32"``, how vectors are kept. Every answer is exact about the kept vectors.
        seed: of the k-means; the same vectors and seed give the same tree on any number of threads.
        normalize: normalize the rows. Without it rows that are not unit within the tolerance of their dtype are an
            error; zero rows always are.
        memory_limit: bytes that the build may hold, or a string such as ``"8GiB"``. With `out` it is half of what the
            machine, or the container, has free unless said otherwise; where the rows are more, the tree gets several
            segments, each of the rows that fit. In memory there is no limit unless one is given, and rows that do not
            fit are an error.
        threads: at most this many; all cores by default.
        progress: True for a bar on a terminal (plain lines elsewhere), or a callable ``(phase, done, total)``.
        column: the column of vectors in a table or file; by default the only one that holds vectors.
        invalid: ``"error"``, or ``"skip"``: rows that are not finite, zero, not unit, or null keep their number and
            lie in no cap; :attr:`Tree.skipped` lists them. At least one row must be left.

    Returns:
        The tree, opened from `out` when that is given.

    Raises:
        InvalidVectorsError: shapes that do not fit, or rows that are not finite, not unit, or zero; names how many
            and the first few. Also rows that are not those which an interrupted build at `out` began with.
        InvalidTypeError: element types captree does not take, or objects it cannot read.
        InvalidParameterError: a parameter outside its domain.
        MissingDependencyError: Arrow or Parquet input without pyarrow.
        MemoryLimitError: the rows, or with `out` a thousand of them, do not fit in `memory_limit`.
        TreeLockedError: another process is changing the tree that is to be replaced.
        StorageError: reading or writing failed.
    """
    target = None if out is None else absolute("out", out)
    fanout = _params.fanout(fanout)
    leaf_size = None if leaf_size is None else _params.integer("leaf_size", leaf_size, 1)
    limit = _params.memory_limit(memory_limit)
    seed = _params.integer("seed", seed, 0, 2**64 - 1)
    threads = _params.threads(threads)
    skip = _params.one_of("invalid", invalid, ("error", "skip")) == "skip"
    how = Reading(column, bool(normalize), skip)
    builder = native.Builder(
        _params.storage(storage), how.scaled, skip, target, fanout, leaf_size, seed, limit, threads
    )
    with reporting(progress) as callback, closing(builder):
        if callback is not None and builder.rows_before:
            callback("built before", builder.rows_before, builder.rows_before)
        push_all(builder, vectors, how, callback)
        return Tree(builder.finish(callback))


def open(path: str | os.PathLike[str]) -> Tree:
    """Opens a tree from disk by memory mapping, in milliseconds whatever its size.

    It is opened in its current state, and stays in that state whatever other processes append, delete or compact; open
    it again to see that. ``Tree.path`` is absolute from then on, so the tree can be pickled after the program has
    changed folder.

    Raises:
        TreeNotFoundError: nothing there, or not a captree tree.
        CorruptTreeError: truncated or altered files (``Tree.verify`` also reads all data).
        FormatVersionError: written by a newer captree.
    """
    return Tree(native.Tree.open(absolute("path", path)))
