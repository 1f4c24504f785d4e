"""Vectors in: everything that holds rows becomes C-contiguous numpy slices of bounded size, one kind after the other.

Sources and what they turn into:

- numpy arrays, anything with ``__array__``, ``__array_interface__`` or the buffer protocol: views;
- DLPack producers (torch, JAX, CuPy): views on the host, slice by slice copies from a device;
- pyarrow arrays, chunked arrays, tables, batches, readers, datasets, and other Arrow producers: views per chunk;
- ``str`` / ``os.PathLike``: ``.npy`` (mapped), Parquet, Arrow IPC (file or stream), or a folder of one of them in
  sorted order;
- lists of lists of numbers (taken as float64), and iterables whose items are any of the above.

bfloat16 travels as uint16 bit patterns with a flag.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captree import _arrow, _params
from captree._dlpack import from_dlpack
from captree.errors import CaptreeError, InvalidParameterError, InvalidTypeError, InvalidVectorsError, StorageError

SLICE_ROWS = 65_536
SLICE_BYTES = 64 << 20
_HOST_DEVICES = (1, 3)  # kDLCPU, kDLCUDAHost
_FLOATS = ("float16", "float32", "float64")
_FORMATS = ((".npy",), _arrow.PARQUET, _arrow.IPC)
_SUFFIXES = ", ".join(suffix for kind in _FORMATS for suffix in kind)
_EXPECTED = "float16, bfloat16, float32 or float64"


class Rows(NamedTuple):
    """Rows as a 2-D array: float16, float32 or float64, or uint16 bit patterns of bfloat16."""

    array: NDArray[Any]
    bfloat16: bool

    @property
    def dtype(self) -> str:
        """Name of the element type."""
        return "bfloat16" if self.bfloat16 else self.array.dtype.name

    def float32(self) -> NDArray[np.float32]:
        """The rows as C-contiguous float32 (a copy unless they are that already)."""
        if self.bfloat16:
            return (self.array.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(self.array, dtype=np.float32)


def slices(vectors: Any, column: str | None = None) -> Iterator[Rows]:
    """Rows of `vectors` as C-contiguous, native-endian slices of at most 65,536 rows and 64 MiB.

    Raises:
        InvalidVectorsError: not 2-D, no rows, no columns, ragged, nulls, or batches that differ in dimension.
        InvalidTypeError: elements that are not floats, or an object captree cannot read.
        StorageError: a file that cannot be read.
    """
    dim = 0
    rows = 0
    for index, (array, bfloat16) in enumerate(_blocks(vectors, column)):
        if array.shape == (0, 0):
            continue
        if array.shape[1] == 0:
            raise InvalidVectorsError(f"expected vectors with at least one dimension, got shape {array.shape}")
        if dim and array.shape[1] != dim:
            raise InvalidVectorsError(
                f"expected dim {dim} as in the rows before, got {array.shape[1]} in batch {index}"
            )
        dim = array.shape[1]
        rows += array.shape[0]
        step = slice_rows(dim, array.dtype.itemsize)
        for start in range(0, array.shape[0], step):
            part = array[start : start + step]
            yield Rows(np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("=")), bfloat16)
    if not rows:
        raise InvalidVectorsError("expected at least one row of vectors, got none")


def slice_rows(dim: int, itemsize: int) -> int:
    """Rows per slice, so that a slice stays within its bytes."""
    return max(1, min(SLICE_ROWS, SLICE_BYTES // (dim * itemsize)))


def matrix(value: Any, what: str) -> Rows:
    """All rows of an array-like (not a path, not a generator) at once; a single vector counts as one row.

    `what` names the argument in errors. No rows is fine.
    """
    if isinstance(value, (list, tuple)) and len(value) == 0:
        return Rows(np.empty((0, 0)), False)
    if _is_path(value) or hasattr(value, "__next__"):
        raise InvalidTypeError(f"{what}: expected an array, got {type(value).__name__}")
    try:
        blocks = [_as_rows(array, flag, vector=True) for array, flag in _arrays(value, None)]
    except CaptreeError as error:
        raise type(error)(f"{what}: {error}") from error
    if not blocks:
        return Rows(np.empty((0, 0)), False)
    if len(blocks) == 1:
        return blocks[0]
    if len({(block.array.shape[1], block.dtype) for block in blocks}) != 1:
        raise InvalidVectorsError(f"{what}: expected rows of one dimension and one dtype")
    return Rows(np.concatenate([block.array for block in blocks]), blocks[0].bfloat16)


def on_host(value: Any) -> NDArray[Any]:
    """An array-like of any shape and dtype as numpy, from a device too; for small arguments such as bounds."""
    if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
        value = _detached(value)
        for name in ("cpu", "get"):
            if callable(getattr(value, name, None)):
                value = getattr(value, name)()
                break
    return np.asarray(value)


def row_count(vectors: Any) -> int:
    """Number of rows where it is known without reading, else 0; for progress only."""
    shape = getattr(vectors, "shape", None)
    if isinstance(shape, tuple) and shape and isinstance(shape[0], int):
        return shape[0]
    rows = getattr(vectors, "num_rows", None)
    return rows if isinstance(rows, int) else 0


def _blocks(vectors: Any, column: str | None) -> Iterator[Rows]:
    """2-D blocks of any source, iterables of sources included."""
    if column is not None and not isinstance(column, str):
        raise InvalidTypeError(f"column: expected a str, got {type(column).__name__}")
    if _is_path(vectors):
        yield from _path_blocks(Path(_params.path("vectors", vectors)), column)
    elif _is_batches(vectors):
        for index, batch in enumerate(vectors):
            if _is_path(batch):
                yield from _blocks(batch, column)
                continue
            try:
                for array, flag in _arrays(batch, column):
                    yield _as_rows(array, flag)
            except (InvalidVectorsError, InvalidTypeError) as error:
                raise type(error)(f"batch {index}: {error}") from error
    else:
        for array, flag in _arrays(vectors, column):
            yield _as_rows(array, flag)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) or hasattr(value, "__fspath__")


def _is_batches(value: Any) -> bool:
    """Whether `value` is an iterable of batches rather than rows: a generator, or a list of matrices or paths."""
    if isinstance(value, (list, tuple)):
        first = value[0] if value else None
        if _is_path(first) or _arrow.is_pyarrow(first):
            return True
        return len(getattr(first, "shape", ())) == 2
    known = ("__array__", "__array_interface__", "__dlpack__", "__arrow_c_stream__", "__arrow_c_array__")
    if isinstance(value, (np.ndarray, dict, set, frozenset, bytes, bytearray, memoryview)) or _is_buffer(value):
        return False
    return not (_arrow.is_pyarrow(value) or any(hasattr(value, name) for name in known)) and hasattr(value, "__iter__")


def _is_buffer(value: Any) -> bool:
    try:
        memoryview(value).release()
    except (TypeError, BufferError, ValueError):
        return False
    return True


def _arrays(value: Any, column: str | None) -> Iterator[tuple[NDArray[Any], bool]]:
    """Numpy arrays of any shape and dtype out of one array-like, with the bfloat16 flag."""
    if column is not None and not (_arrow.is_pyarrow(value) or _arrow.speaks_arrow(value)):
        raise InvalidParameterError(f"column: only tables and files have columns, got {type(value).__name__}")
    if isinstance(value, np.ndarray):
        yield value, False
    elif _arrow.is_pyarrow(value):
        yield from ((block, False) for block in _arrow.blocks(value, column))
    elif hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        yield from _tensor_arrays(value)
    elif _arrow.speaks_arrow(value) and (column is not None or not hasattr(value, "__array__")):
        yield from ((block, False) for block in _arrow.blocks(value, column))
    elif hasattr(value, "__array__") or hasattr(value, "__array_interface__") or _is_buffer(value):
        array = np.asarray(value)
        if array.dtype == object and _arrow.speaks_arrow(value):
            yield from ((block, False) for block in _arrow.blocks(value, column))
        else:
            yield array, False
    elif isinstance(value, (list, tuple)):
        yield from _list_arrays(value)
    else:
        raise InvalidTypeError(
            "expected an array, an Arrow column, a path or an iterable of batches, "
            f"got {type(value).__module__}.{type(value).__name__}"
        )


def _list_arrays(value: list[Any] | tuple[Any, ...]) -> Iterator[tuple[NDArray[Any], bool]]:
    """A list of lists of numbers (float64), or a list of row arrays of one dtype."""
    if not value:
        yield np.empty((0, 0)), False
        return
    if all(hasattr(row, "dtype") for row in value):
        pieces = [piece for row in value for piece in _arrays(row, None)]
        arrays = [array for array, _ in pieces]
        if len({array.shape for array in arrays}) == 1 and len({(a.dtype, flag) for a, flag in pieces}) == 1:
            yield np.stack(arrays), pieces[0][1]
            return
        raise InvalidVectorsError("expected a list of arrays of one shape and one dtype")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidVectorsError(f"expected lists of one length, got ragged lists ({error})") from error
    if array.dtype == object:
        raise InvalidTypeError("expected lists of numbers, got other objects in them")
    if array.dtype.kind in "iu" or array.size == 0:
        array = array.astype(np.float64)
    yield array, False


def _tensor_arrays(value: Any) -> Iterator[tuple[NDArray[Any], bool]]:
    """Host arrays of a DLPack producer; a device array is copied slice by slice."""
    value = _detached(value)
    try:
        device = int(value.__dlpack_device__()[0])
    except Exception as error:
        raise InvalidTypeError(f"cannot read {type(value).__name__} through DLPack: {error}") from error
    if device in _HOST_DEVICES:
        yield from_dlpack(value)
        return
    shape = tuple(value.shape)
    if len(shape) != 2 or 0 in shape:
        yield _to_host(value)
        return
    step = slice_rows(shape[1], 8)
    for start in range(0, shape[0], step):
        yield _to_host(value[start : start + step])


def _detached(value: Any) -> Any:
    """A torch tensor without its gradient and with the values that its lazy negation stands for."""
    for name in ("detach", "resolve_neg"):
        if callable(getattr(value, name, None)):
            value = getattr(value, name)()
    return value


def _to_host(value: Any) -> tuple[NDArray[Any], bool]:
    for name in ("cpu", "get"):  # torch; CuPy
        if callable(getattr(value, name, None)):
            moved = getattr(value, name)()
            return (moved, False) if isinstance(moved, np.ndarray) else from_dlpack(moved)
    if hasattr(value, "__array__"):
        return np.asarray(value), False
    raise InvalidTypeError(f"cannot copy {type(value).__name__} to host memory: it has no cpu() and no get()")


def _as_rows(array: NDArray[Any], bfloat16: bool, *, vector: bool = False) -> Rows:
    """Checks the element type and that there are two dimensions (or one, made one row, when `vector`)."""
    if isinstance(array, np.ma.MaskedArray) and bool(np.ma.is_masked(array)):
        raise InvalidVectorsError("expected vectors without masked elements")
    array = np.asarray(array)
    if array.shape == (0,):
        array = array.reshape(0, 0)
    if array.dtype.name == "bfloat16" or array.dtype == np.dtype("V2"):  # V2: ml_dtypes.bfloat16 out of a .npy
        array, bfloat16 = array.view(np.uint16), True
    if not bfloat16 and array.dtype.name not in _FLOATS:
        raise InvalidTypeError(f"expected {_EXPECTED}, got {array.dtype.name}")
    if vector and array.ndim == 1 and array.size:
        array = array[None, :]
    if array.ndim != 2:
        raise InvalidVectorsError(f"expected a 2-dimensional array (rows, dim), got shape {array.shape}")
    return Rows(array, bfloat16)


def _path_blocks(path: Path, column: str | None) -> Iterator[Rows]:
    """Blocks of one file, or of the files of a folder in sorted order."""
    try:
        if not path.exists():
            raise StorageError(f"no file or folder of vectors at {path}")
        if not path.is_dir():
            yield from _file_blocks(path, column)
            return
        for file in _files(path):
            yield from _file_blocks(file, column)
    except OSError as error:
        if isinstance(error, CaptreeError):
            raise
        raise StorageError(f"cannot read {path}: {error}") from error


def _files(folder: Path) -> list[Path]:
    """The data files of a folder and its subfolders, which must be of one format."""
    formats: dict[tuple[str, ...], list[Path]] = {}
    for entry in sorted(folder.rglob("*")):
        kind = next((kind for kind in _FORMATS if entry.suffix.lower() in kind), None)
        if kind and entry.is_file() and not _hidden(entry.relative_to(folder)):
            formats.setdefault(kind, []).append(entry)
    if not formats:
        raise InvalidVectorsError(f"no {_SUFFIXES} files in the folder {folder}")
    if len(formats) > 1:
        names = ", ".join(files[0].name for files in formats.values())
        raise InvalidVectorsError(f"files of several formats in the folder {folder}: {names}; keep one format in it")
    return next(iter(formats.values()))


def _hidden(relative: Path) -> bool:
    return any(part.startswith((".", "_")) for part in relative.parts)


def _file_blocks(path: Path, column: str | None) -> Iterator[Rows]:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        if column is not None:
            raise InvalidParameterError(f"column: only tables have columns, got {path}")
        arrays: Iterable[NDArray[Any]] = (_load_npy(path),)
    elif suffix in _arrow.PARQUET:
        arrays = _arrow.parquet_blocks(path, column)
    elif suffix in _arrow.IPC:
        arrays = _arrow.ipc_blocks(path, column)
    else:
        raise InvalidVectorsError(f"cannot tell the format of {path}: expected a name in {_SUFFIXES}, or a folder")
    iterator = iter(arrays)
    while True:
        try:
            array = next(iterator)
            rows = _as_rows(array, False)
        except StopIteration:
            return
        except (InvalidVectorsError, InvalidTypeError) as error:
            if str(path) in str(error):
                raise
            raise type(error)(f"{path}: {error}") from error
        yield rows


def _load_npy(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header ends in errors of the parser, of the tokenizer, of mmap, ...
        raise InvalidVectorsError(f"cannot read {path} as .npy: {error}") from error
    return array
