"""Vectors in: every source becomes C-contiguous numpy slices of bounded size, one after the other.

A source is an object in memory (:mod:`captree._arrays`), a path (:mod:`captree._files`), or an iterable of either, of
single vectors, or of records that hold one, such as the rows of a Hugging Face dataset.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from captree import _arrow
from captree import _core as native
from captree._arrays import arrays, is_buffer, is_path, is_vector, stacked
from captree._files import path_blocks
from captree._progress import Callback, stepping
from captree._rows import Reading, Rows, as_rows, located, slice_rows
from captree.errors import InvalidParameterError, InvalidTypeError, InvalidVectorsError

_PLAIN = Reading()

_HELD = 1024
"""Single vectors that are collected before they are stacked."""


def slices(vectors: Any, how: Reading = _PLAIN) -> Iterator[Rows]:
    """Rows of `vectors` as C-contiguous, native-endian slices of at most 65,536 rows and 64 MiB.

    Raises:
        InvalidVectorsError: not 2-D, no rows, no columns, ragged, nulls, or batches that differ in dimension.
        InvalidTypeError: elements that are not floats, or an object captree cannot read.
        StorageError: a file that cannot be read.
    """
    dim, first = 0, ""
    for (array, bfloat16), where in _blocks(vectors, how):
        if len(array) == 0:
            continue
        if array.shape[1] == 0:
            raise InvalidVectorsError(f"expected vectors with at least one dimension, got shape {array.shape}{where}")
        if dim and array.shape[1] != dim:
            raise InvalidVectorsError(f"expected dim {dim} as{first or ' before'}, got {array.shape[1]}{where}")
        dim, first = array.shape[1], first or where
        step = slice_rows(dim, array.dtype.itemsize)
        for start in range(0, array.shape[0], step):
            part = array[start : start + step]
            yield Rows(np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("=")), bfloat16)
    if not dim:
        raise InvalidVectorsError("expected at least one row of vectors, got none")


def push_all(
    builder: native.Builder, vectors: Any, how: Reading, callback: Callback | None, dim: int | None = None
) -> None:
    """Gives all rows of `vectors` to a builder; they must have `dim` dimensions, if that is given.

    Raises:
        InvalidVectorsError, InvalidTypeError, StorageError: as :func:`slices`.
    """
    step = stepping(callback, "reading", row_count(vectors))
    rows = 0

    def building(phase: str, done: int, total: int) -> None:
        """Between slices a builder may build a segment of those that came; otherwise it has nothing to say."""
        if phase and callback is not None:
            callback(phase, done, total)

    for part in slices(vectors, how):
        if dim not in (None, part.array.shape[1]):
            raise InvalidVectorsError(f"expected vectors of dim {dim}, got {part.array.shape[1]}")
        builder.push(part.array, part.bfloat16, building)
        rows += len(part.array)
        step(rows)


def row_count(vectors: Any) -> int:
    """Number of rows where it is known without reading, else 0; for progress only."""
    shape = getattr(vectors, "shape", None)
    if isinstance(shape, tuple) and shape and isinstance(shape[0], int):
        return shape[0]
    rows = getattr(vectors, "num_rows", None)
    return rows if isinstance(rows, int) else 0


def _blocks(vectors: Any, how: Reading) -> Iterator[tuple[Rows, str]]:
    """2-D blocks of any source, each with the words that say where it came from."""
    if how.column is not None and not isinstance(how.column, str):
        raise InvalidTypeError(f"expected a str, got {type(how.column).__name__}", parameter="column")
    if is_path(vectors):
        yield from ((rows, f" in {file}") for rows, file in path_blocks(vectors, how))
    elif _is_iterable(vectors):
        yield from _batches(vectors, how)
    else:
        yield from ((as_rows(array, flag, how), "") for array, flag in arrays(vectors, how))


def _is_iterable(value: Any) -> bool:
    """Whether `value` is an iterable of sources rather than rows: a generator, or a list of matrices or paths."""
    if isinstance(value, (list, tuple)):
        first = value[0] if value else None
        if is_path(first) or isinstance(first, Mapping) or _arrow.is_pyarrow(first):
            return True
        return len(getattr(first, "shape", ())) == 2
    known = ("__array__", "__array_interface__", "__dlpack__", "__arrow_c_stream__", "__arrow_c_array__")
    if isinstance(value, (np.ndarray, Mapping, set, frozenset, bytes, bytearray, memoryview)) or is_buffer(value):
        return False
    return not (_arrow.is_pyarrow(value) or any(hasattr(value, name) for name in known)) and hasattr(value, "__iter__")


def _batches(items: Iterable[Any], how: Reading) -> Iterator[tuple[Rows, str]]:
    """The blocks of an iterable; single vectors are collected until there are enough for a block."""
    held: list[Any] = []
    index = -1
    for index, given in enumerate(_faster(items, how)):
        item = _vector_of(given, how.column, index) if isinstance(given, Mapping) else given
        if is_vector(item):
            held.append(item)
            if len(held) == _HELD:
                yield from _stacked(held, index, how)
                held = []
            continue
        yield from _stacked(held, index - 1, how)
        held = []
        if is_path(item):
            yield from _blocks(item, how)
            continue
        # A record's vectors were taken out of their column already.
        inner = how._replace(column=None) if isinstance(given, Mapping) else how
        with located(f"batch {index}"):
            yield from ((as_rows(array, flag, inner), f" in batch {index}") for array, flag in arrays(item, inner))
    yield from _stacked(held, index, how)


def _stacked(vectors: list[Any], last: int, how: Reading) -> Iterator[tuple[Rows, str]]:
    """A block of single vectors, if there are any; the last of them was item `last`."""
    if vectors:
        what = f"rows {last - len(vectors) + 1} to {last}"
        with located(what):
            yield as_rows(*stacked(vectors, how), how), f" in {what}"


def _faster(items: Iterable[Any], how: Reading) -> Iterable[Any]:
    """The same vectors, in tables where a Hugging Face dataset or its column would give them one by one."""
    if type(items).__module__.partition(".")[0] != "datasets" or not hasattr(items, "__len__"):
        return items
    source: Any = getattr(items, "source", items)
    column = getattr(items, "column_name", how.column)
    if not hasattr(source, "with_format") or not isinstance(column, str):
        return items
    if column not in source.column_names:
        raise InvalidParameterError(
            f"no column named {column!r}; there is {', '.join(source.column_names)}", parameter="column"
        )
    tables: Iterable[Any] = source.select_columns([column]).with_format("arrow").iter(batch_size=16 * _HELD)
    return tables


def _vector_of(record: Mapping[str, Any], column: str | None, index: int) -> Any:
    """The vector, or the vectors, in a record."""
    if column is not None:
        if column not in record:
            raise InvalidParameterError(
                f"no column named {column!r} in record {index}; it has {', '.join(map(str, record))}",
                parameter="column",
            )
        return record[column]
    found = [name for name, value in record.items() if np.ndim(value) and not isinstance(value, (str, bytes))]
    if len(found) != 1:
        several = f"several columns of vectors in record {index}: name one of {', '.join(map(str, found))}"
        none = f"no column of vectors in record {index}; it has {', '.join(map(str, record)) or 'no columns'}"
        raise InvalidParameterError(several if found else none, parameter="column")
    return record[found[0]]
