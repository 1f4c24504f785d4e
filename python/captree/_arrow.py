"""Vectors in Arrow memory and in Parquet and Arrow IPC files; pyarrow is imported only here, when it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captree._rows import Reading, with_gaps
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


def blocks(value: Any, how: Reading) -> Iterator[NDArray[Any]]:
    """2-D numpy views (n, d) of the vectors in a pyarrow object or another Arrow producer, chunk by chunk."""
    pa = require_pyarrow(f"reading {type(value).__name__}")
    if not is_pyarrow(value):
        value = _import(pa, value)
    if isinstance(value, (pa.Table, pa.RecordBatch)):
        yield from _batch_blocks(pa, [value], value.schema, how, "the table")
    elif isinstance(value, pa.RecordBatchReader):
        yield from _batch_blocks(pa, value, value.schema, how, "the stream")
    elif hasattr(value, "to_batches") and hasattr(value, "schema"):  # a pyarrow.dataset.Dataset
        try:
            name = _choose(pa, value.schema, how, "the dataset")
        except (InvalidParameterError, InvalidTypeError):
            if value.count_rows():
                raise
            return
        for batch in value.to_batches(columns=[name]):
            yield from _column_blocks(pa, batch.column(name), how)
    elif how.column is not None:
        raise InvalidParameterError(f"only tables have columns, got {type(value).__name__}", parameter="column")
    elif isinstance(value, (pa.ChunkedArray, pa.Array)):
        yield from _column_blocks(pa, value, how)
    else:
        raise InvalidTypeError(f"expected a FixedSizeList array or a table with such a column, got {type(value)}")


def parquet_blocks(path: Path, how: Reading) -> Iterator[NDArray[Any]]:
    """2-D views (n, d) of the vectors in one Parquet file, a few thousand rows at a time."""
    pa = require_pyarrow("reading Parquet")
    import pyarrow.parquet as pq

    with _reading(pa, path), pq.ParquetFile(path, memory_map=True) as file:
        if file.metadata.num_rows == 0:
            return
        name = _choose(pa, file.schema_arrow, how, str(path))
        for batch in file.iter_batches(batch_size=_READ_ROWS, columns=[name]):
            yield from _column_blocks(pa, batch.column(batch.schema.get_field_index(name)), how)


def ipc_blocks(path: Path, how: Reading) -> Iterator[NDArray[Any]]:
    """2-D views (n, d) of the vectors in one Arrow IPC file or stream, batch by batch."""
    pa = require_pyarrow("reading Arrow IPC")
    with _reading(pa, path), pa.memory_map(str(path)) as source:
        schema, batches = ipc_batches(pa, source)
        yield from _batch_blocks(pa, batches, schema, how, str(path))


def ipc_batches(pa: Any, source: Any) -> tuple[Any, Iterable[Any]]:
    """The schema and the batches of an opened Arrow IPC file or stream."""
    try:
        reader = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        stream = pa.ipc.open_stream(source)
        return stream.schema, stream
    return reader.schema, (reader.get_batch(index) for index in range(reader.num_record_batches))


def _batch_blocks(pa: Any, batches: Iterable[Any], schema: Any, how: Reading, where: str) -> Iterator[NDArray[Any]]:
    """The chosen column of tables of one schema. Where there are no rows, no column is missed."""
    for batch in batches:
        if batch.num_rows:
            yield from _column_blocks(pa, batch.column(_choose(pa, schema, how, where)), how)


def _column_blocks(pa: Any, column: Any, how: Reading) -> Iterator[NDArray[Any]]:
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    yield from (_block(pa, chunk, how) for chunk in chunks if len(chunk))


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


def _is_vector_type(pa: Any, kind: Any, elements: str = "floating") -> bool:
    kind = _storage_type(pa, kind)
    types = pa.types
    listed = types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind)
    return bool(listed and getattr(types, f"is_{elements}")(kind.value_type))


def _is_byte_type(pa: Any, kind: Any) -> bool:
    return _is_vector_type(pa, kind, "int8") or _is_vector_type(pa, kind, "uint8")


def _check_type(pa: Any, kind: Any, how: Reading) -> None:
    if _is_vector_type(pa, kind) or (how.scaled and _is_byte_type(pa, kind)):
        return
    advice = "normalize" if _is_byte_type(pa, kind) else None
    raise InvalidTypeError(
        f"expected an Arrow fixed_size_list of float16, float32 or float64, got {kind}", advice=advice
    )


def _choose(pa: Any, schema: Any, how: Reading, where: str) -> str:
    column = how.column
    if column is not None:
        found = len(schema.get_all_field_indices(column))
        if found != 1:
            what = "no column" if found == 0 else f"{found} columns"
            problem = f"{what} named {column!r} in {where}; it has {', '.join(schema.names)}"
            raise InvalidParameterError(problem, parameter="column")
        return column
    names = [field.name for field in schema if _is_vector_type(pa, field.type)]
    if not names:
        names = [field.name for field in schema if _is_byte_type(pa, field.type)]
    if len(names) == 1 and len(schema.get_all_field_indices(names[0])) == 1:
        return str(names[0])
    if names:
        raise InvalidParameterError(
            f"several columns of vectors in {where}: name one of {', '.join(names)}", parameter="column"
        )
    listing = ", ".join(f"{field.name}: {field.type}" for field in schema) or "no columns"
    raise InvalidTypeError(f"no column of float vectors (fixed_size_list) in {where}; it has {listing}")


def _block(pa: Any, array: Any, how: Reading) -> NDArray[Any]:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    _check_type(pa, array.type, how)
    array.validate()
    given = None
    if array.null_count:
        missing = np.asarray(array.is_null().to_numpy(zero_copy_only=False))
        if not how.skip:
            first = np.flatnonzero(missing)[:5].tolist()
            raise InvalidVectorsError(
                f"expected vectors without nulls, got {array.null_count} null rows, first at {first}"
            )
        array, given = array.drop_null(), ~missing
    values = array.flatten()
    if values.null_count and not how.skip:
        raise InvalidVectorsError(f"expected vectors without nulls, got {values.null_count} null elements")
    # Elements that are null come as NaN.
    block = np.asarray(values.to_numpy(zero_copy_only=False)).reshape(len(array), _dim(pa, array))
    return block if given is None else with_gaps(block, given)


def _dim(pa: Any, array: Any) -> int:
    """The one length of an array's lists."""
    if pa.types.is_fixed_size_list(array.type):
        return int(array.type.list_size)
    lengths = np.diff(np.asarray(array.offsets, dtype=np.int64))
    dim = int(lengths[0]) if len(lengths) else 0
    uneven = np.flatnonzero(lengths != dim)
    if uneven.size:
        row = int(uneven[0])
        raise InvalidVectorsError(f"expected lists of one length, got {dim} at row 0 and {lengths[row]} at row {row}")
    return dim
