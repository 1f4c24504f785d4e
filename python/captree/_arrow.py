"""Vectors in Arrow memory and in Parquet and Arrow IPC files; pyarrow is imported only here, when it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captree.errors import InvalidParameterError, InvalidTypeError, InvalidVectorsError, MissingDependencyError

PARQUET = (".parquet", ".pq")
IPC = (".arrow", ".arrows", ".feather", ".ipc")
_READ_ROWS = 16_384


def require_pyarrow(what: str) -> Any:
    """The pyarrow module; `what` says in the error what needs it."""
    try:
        import pyarrow
    except ImportError as error:
        raise MissingDependencyError(f"{what} needs pyarrow: pip install 'captree[arrow]'") from error
    return pyarrow


def is_pyarrow(value: Any) -> bool:
    """Whether `value` is an object of pyarrow itself (without importing it)."""
    return type(value).__module__.partition(".")[0] == "pyarrow"


def speaks_arrow(value: Any) -> bool:
    """Whether `value` exports Arrow data through the PyCapsule interface."""
    return hasattr(value, "__arrow_c_stream__") or hasattr(value, "__arrow_c_array__")


def blocks(value: Any, column: str | None) -> Iterator[NDArray[Any]]:
    """2-D numpy views (n, d) of the vectors in a pyarrow object or another Arrow producer, chunk by chunk."""
    pa = require_pyarrow(f"reading {type(value).__name__}")
    if not is_pyarrow(value):
        value = _import(pa, value)
    if isinstance(value, (pa.Table, pa.RecordBatch)):
        yield from blocks(value.column(_choose(pa, value.schema, column, "the table")), None)
    elif isinstance(value, pa.RecordBatchReader):
        name = _choose(pa, value.schema, column, "the stream")
        for batch in value:
            yield from blocks(batch.column(name), None)
    elif hasattr(value, "to_batches") and hasattr(value, "schema"):  # a pyarrow.dataset.Dataset
        name = _choose(pa, value.schema, column, "the dataset")
        for batch in value.to_batches(columns=[name]):
            yield from blocks(batch.column(name), None)
    elif column is not None:
        raise InvalidParameterError(f"column: only tables have columns, got {type(value).__name__}")
    elif isinstance(value, pa.ChunkedArray):
        _check_type(pa, value.type)
        for chunk in value.chunks:
            yield _block(pa, chunk)
    elif isinstance(value, pa.Array):
        yield _block(pa, value)
    else:
        raise InvalidTypeError(f"expected a FixedSizeList array or a table with such a column, got {type(value)}")


def parquet_blocks(path: Path, column: str | None) -> Iterator[NDArray[Any]]:
    """2-D views (n, d) of the vectors in one Parquet file, a few thousand rows at a time."""
    pa = require_pyarrow("reading Parquet")
    import pyarrow.parquet as pq

    with _reading(pa, path), pq.ParquetFile(path, memory_map=True) as file:
        name = _choose(pa, file.schema_arrow, column, str(path))
        for batch in file.iter_batches(batch_size=_READ_ROWS, columns=[name]):
            yield from blocks(batch.column(batch.schema.get_field_index(name)), None)


def ipc_blocks(path: Path, column: str | None) -> Iterator[NDArray[Any]]:
    """2-D views (n, d) of the vectors in one Arrow IPC file or stream, batch by batch."""
    pa = require_pyarrow("reading Arrow IPC")
    with _reading(pa, path), pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            stream = pa.ipc.open_stream(source)
            name = _choose(pa, stream.schema, column, str(path))
            for batch in stream:
                yield from blocks(batch.column(name), None)
            return
        name = _choose(pa, reader.schema, column, str(path))
        for index in range(reader.num_record_batches):
            yield from blocks(reader.get_batch(index).column(name), None)


class _reading:
    """Turns pyarrow's errors while a file is read into one that names the file."""

    def __init__(self, pa: ModuleType, path: Path) -> None:
        self._errors = (pa.ArrowException, EOFError, UnicodeDecodeError)
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        arrow_os_error = kind is OSError and getattr(error, "errno", None) is None
        if isinstance(error, self._errors) or arrow_os_error:
            raise InvalidVectorsError(f"cannot read vectors from {self._path}: {error}") from error


def _import(pa: Any, value: Any) -> Any:
    if not hasattr(value, "__arrow_c_stream__"):
        return pa.array(value)
    try:
        return pa.table(value)
    except (TypeError, ValueError, pa.ArrowException) as error:
        try:
            return pa.chunked_array(value)
        except (TypeError, ValueError, pa.ArrowException):
            raise InvalidTypeError(
                f"cannot read {type(value).__name__} as an Arrow table or column: {error}"
            ) from error


def _storage_type(pa: Any, kind: Any) -> Any:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_vector_type(pa: Any, kind: Any) -> bool:
    kind = _storage_type(pa, kind)
    types = pa.types
    listed = types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind)
    return bool(listed and types.is_floating(kind.value_type))


def _check_type(pa: Any, kind: Any) -> None:
    if not _is_vector_type(pa, kind):
        raise InvalidTypeError(f"expected an Arrow fixed_size_list of float16, float32 or float64, got {kind}")


def _choose(pa: Any, schema: Any, column: str | None, where: str) -> str:
    if column is not None:
        found = len(schema.get_all_field_indices(column))
        if found != 1:
            what = "no column" if found == 0 else f"{found} columns"
            raise InvalidParameterError(f"{what} named {column!r} in {where}; it has {', '.join(schema.names)}")
        _check_type(pa, schema.field(column).type)
        return column
    names = [field.name for field in schema if _is_vector_type(pa, field.type)]
    if len(names) == 1 and len(schema.get_all_field_indices(names[0])) == 1:
        return str(names[0])
    if names:
        raise InvalidParameterError(
            f"several columns of vectors in {where}: name one with column= ({', '.join(names)})"
        )
    listing = ", ".join(f"{field.name}: {field.type}" for field in schema) or "no columns"
    raise InvalidTypeError(f"no column of float vectors (fixed_size_list) in {where}; it has {listing}")


def _block(pa: Any, array: Any) -> NDArray[Any]:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    _check_type(pa, array.type)
    array.validate()
    if array.null_count:
        first = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[:5].tolist()
        raise InvalidVectorsError(f"expected vectors without nulls, got {array.null_count} null rows, first at {first}")
    values = array.flatten()
    if values.null_count:
        raise InvalidVectorsError(f"expected vectors without nulls, got {values.null_count} null elements")
    rows = len(array)
    if pa.types.is_fixed_size_list(array.type):
        dim = array.type.list_size
    else:
        ends = np.asarray(array.offsets, dtype=np.int64)
        lengths = np.diff(ends)
        dim = int(lengths[0]) if rows else 0
        uneven = np.flatnonzero(lengths != dim)
        if uneven.size:
            row = int(uneven[0])
            raise InvalidVectorsError(
                f"expected lists of one length, got {dim} at row 0 and {lengths[row]} at row {row}"
            )
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(rows, dim)
