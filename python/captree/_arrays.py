"""One object in memory that holds vectors, whatever library made it, as numpy arrays.

- numpy arrays, anything with ``__array__``, ``__array_interface__`` or the buffer protocol: views;
- DLPack producers (torch, JAX, CuPy): views on the host, slice by slice copies from a device;
- pyarrow arrays, chunked arrays, tables, batches, readers, datasets, and other Arrow producers: views per chunk;
- lists of lists of numbers (taken as float64), lists and object arrays of vectors, such as a column of pandas.

bfloat16 travels as uint16 bit patterns with a flag.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captree import _arrow
from captree._dlpack import from_dlpack
from captree._rows import Reading, Rows, as_rows, is_bfloat16, no_rows, slice_rows, widened, with_gaps
from captree.errors import CaptreeError, InvalidParameterError, InvalidTypeError, InvalidVectorsError

_HOST_DEVICES = (1, 3)  # kDLCPU, kDLCUDAHost


def matrix(value: Any, what: str) -> Rows:
    """All rows of an array-like (not a path, not a generator) at once; a single vector counts as one row.

    `what` names the argument in errors. No rows is fine.
    """
    if isinstance(value, (list, tuple)) and len(value) == 0:
        return no_rows()
    if is_path(value) or hasattr(value, "__next__"):
        raise InvalidTypeError(f"expected an array, got {type(value).__name__}", parameter=what)
    how = Reading()
    try:
        blocks = [as_rows(array, flag, how, vector=True) for array, flag in arrays(value, how)]
    except CaptreeError as error:
        raise type(error)(error.problem, parameter=what, advice=None) from error
    if not blocks:
        return no_rows()
    if len(blocks) == 1:
        return blocks[0]
    if len({(block.array.shape[1], block.dtype) for block in blocks}) != 1:
        raise InvalidVectorsError("expected rows of one dimension and one dtype", parameter=what)
    return Rows(np.concatenate([block.array for block in blocks]), blocks[0].bfloat16)


def on_host(value: Any) -> NDArray[Any]:
    """An array-like of any shape and dtype as numpy, from a device too, bfloat16 as float32; for small arguments."""
    if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
        array, bfloat16 = _to_host(_detached(value))
        return widened(array) if bfloat16 else array
    array = np.asarray(value)
    return widened(array.view(np.uint16)) if is_bfloat16(array.dtype) else array


def is_path(value: Any) -> bool:
    """Whether `value` is a str or an os.PathLike."""
    return isinstance(value, str) or hasattr(value, "__fspath__")


def is_buffer(value: Any) -> bool:
    """Whether `value` speaks the buffer protocol."""
    try:
        memoryview(value).release()
    except (TypeError, BufferError, ValueError):
        return False
    return True


def is_vector(value: Any) -> bool:
    """Whether `value` is one vector: a 1-D array, a list of numbers; or None, which stands for a missing one."""
    if value is None:
        return True
    if isinstance(value, (list, tuple)):
        return bool(value) and np.ndim(value[0]) == 0 and not isinstance(value[0], (str, bytes, dict, type(None)))
    return (
        len(getattr(value, "shape", ())) == 1
        and not _arrow.is_pyarrow(value)
        and getattr(getattr(value, "dtype", None), "kind", None) != "O"
    )


def stacked(vectors: Sequence[Any], how: Reading) -> tuple[NDArray[Any], bool]:
    """A list of single vectors as rows; those that are None become NaN where missing ones are skipped."""
    given = np.array([vector is not None for vector in vectors])
    if not given.all() and not how.skip:
        missing, first = np.count_nonzero(~given), int(np.argmin(given))
        raise InvalidVectorsError(f"expected vectors without nulls, got {missing} that are None, first at {first}")
    if not given.any():
        raise InvalidVectorsError(f"expected vectors, got {len(vectors)} times None")
    pieces = [piece for vector in vectors if vector is not None for piece in arrays(vector, Reading())]
    kinds = {(array.dtype, flag) for array, flag in pieces}
    if len({array.shape for array, _ in pieces}) != 1 or len(kinds) != 1:
        raise InvalidVectorsError("expected a list of arrays of one shape and one dtype")
    rows, bfloat16 = np.stack([array for array, _ in pieces]), pieces[0][1]
    if given.all():
        return rows, bfloat16
    kept = as_rows(rows, bfloat16, how)
    return with_gaps(kept.float32() if kept.bfloat16 else kept.array, given), False


def arrays(value: Any, how: Reading) -> Iterator[tuple[NDArray[Any], bool]]:
    """Numpy arrays of any shape and dtype out of one array-like, with the bfloat16 flag."""
    speaks = _arrow.speaks_arrow(value)
    if how.column is not None and not (_arrow.is_pyarrow(value) or speaks):
        raise InvalidParameterError(
            f"only tables and files have columns, got {type(value).__name__}", parameter="column"
        )
    if isinstance(value, np.ndarray):
        yield from _numpy_arrays(value, how)
    elif _arrow.is_pyarrow(value):
        yield from ((block, False) for block in _arrow.blocks(value, how))
    elif hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        yield from _tensor_arrays(value)
    elif speaks and (how.column is not None or not hasattr(value, "__array__")):
        yield from ((block, False) for block in _arrow.blocks(value, how))
    elif hasattr(value, "__array__") or hasattr(value, "__array_interface__") or is_buffer(value):
        array = np.asarray(value)
        if array.dtype == object and array.ndim == 2 and speaks:  # a data frame with a column of vectors
            yield from ((block, False) for block in _arrow.blocks(value, how))
        else:
            yield from _numpy_arrays(array, how)
    elif isinstance(value, (list, tuple)):
        yield from _list_arrays(value, how)
    else:
        raise InvalidTypeError(
            "expected an array, an Arrow column, a path or an iterable of batches, "
            f"got {type(value).__module__}.{type(value).__name__}"
        )


def _numpy_arrays(array: NDArray[Any], how: Reading) -> Iterator[tuple[NDArray[Any], bool]]:
    """The array, or the vectors that a 1-D array of objects holds."""
    if array.dtype != object or array.ndim != 1 or not array.size:
        yield array, False
        return
    odd = next((item for item in array if not is_vector(item)), None)
    if odd is not None:
        raise InvalidTypeError(f"expected an object array of vectors, got {type(odd).__name__} in it")
    first = next((len(item) for item in array if item is not None), 1)
    step = slice_rows(max(first, 1), 8)
    yield from (stacked(array[start : start + step].tolist(), how) for start in range(0, array.size, step))


def _list_arrays(value: Sequence[Any], how: Reading) -> Iterator[tuple[NDArray[Any], bool]]:
    """A list of lists of numbers (float64), or a list of row arrays of one dtype."""
    if not value:
        yield np.empty((0, 0)), False
        return
    missing = any(row is None for row in value)
    if missing or all(hasattr(row, "dtype") for row in value):
        yield stacked(value, how)
        return
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
    shape = tuple(value.shape)
    if _device(value) in _HOST_DEVICES or len(shape) != 2 or 0 in shape:
        yield _to_host(value)
        return
    step = slice_rows(shape[1], 8)
    for start in range(0, shape[0], step):
        yield _to_host(value[start : start + step])


def _device(value: Any) -> int:
    try:
        return int(value.__dlpack_device__()[0])
    except Exception as error:
        raise InvalidTypeError(f"cannot read {type(value).__name__} through DLPack: {error}") from error


def _detached(value: Any) -> Any:
    """A torch tensor without its gradient and with the values that its lazy negation stands for."""
    for name in ("detach", "resolve_neg"):
        if callable(getattr(value, name, None)):
            value = getattr(value, name)()
    return value


def _to_host(value: Any) -> tuple[NDArray[Any], bool]:
    if _device(value) in _HOST_DEVICES:
        return from_dlpack(value)
    for name in ("cpu", "get"):  # torch; CuPy
        if callable(getattr(value, name, None)):
            moved = getattr(value, name)()
            return (moved, False) if isinstance(moved, np.ndarray) else from_dlpack(moved)
    if hasattr(value, "__array__"):
        return np.asarray(value), False
    raise InvalidTypeError(f"cannot copy {type(value).__name__} to host memory: it has no cpu() and no get()")
