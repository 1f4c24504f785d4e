"""Rows on their way in: numpy arrays, the dtypes they may have, and what a caller wants done with odd ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captree.errors import InvalidTypeError, InvalidVectorsError

SLICE_ROWS = 65_536
SLICE_BYTES = 64 << 20
EXPECTED = "float16, bfloat16, float32 or float64"
_FLOATS = ("float16", "float32", "float64")
_BYTES = ("int8", "uint8")


class Reading(NamedTuple):
    """How a source is read."""

    column: str | None = None
    """The column of vectors; None for the only one."""
    scaled: bool = False
    """Rows will be scaled to unit length, so int8 and uint8 make sense."""
    skip: bool = False
    """Rows that are missing (nulls, masked elements) become rows of NaN."""


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
            return widened(self.array)
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(self.array, dtype=np.float32)


def no_rows() -> Rows:
    """Rows of no dimension, none of them."""
    return Rows(np.empty((0, 0)), False)


def widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Bit patterns of bfloat16 as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def with_gaps(rows: NDArray[Any], given: NDArray[np.bool_]) -> NDArray[Any]:
    """`rows` at the places that are `given`, rows of NaN at the others."""
    every = np.full((len(given), rows.shape[1]), np.nan, np.result_type(rows.dtype, np.float16))
    every[given] = rows
    return every


@contextmanager
def located(where: str) -> Iterator[None]:
    """Errors about vectors begin with where these came from, unless they name it already."""
    try:
        yield
    except (InvalidVectorsError, InvalidTypeError) as error:
        if where in error.problem:
            raise
        raise type(error)(f"{where}: {error.problem}", parameter=error.parameter, advice=error.advice) from error


def slice_rows(dim: int, itemsize: int) -> int:
    """Rows per slice, so that a slice stays within its bytes."""
    return max(1, min(SLICE_ROWS, SLICE_BYTES // (dim * itemsize)))


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether numpy calls it bfloat16, or V2, which is what a .npy file makes of ml_dtypes.bfloat16."""
    return dtype.name == "bfloat16" or dtype == np.dtype("V2")


def as_rows(array: NDArray[Any], bfloat16: bool, how: Reading, *, vector: bool = False) -> Rows:
    """Checks the element type and that there are two dimensions (or one, made one row, when `vector`).

    An array without rows may have any element type.
    """
    if isinstance(array, np.ma.MaskedArray) and bool(np.ma.is_masked(array)):
        if not how.skip:
            raise InvalidVectorsError("expected vectors without masked elements")
        array = array.filled(np.nan)
    array = np.asarray(array)
    if array.ndim and len(array) == 0:
        known = bfloat16 or array.dtype.name in _FLOATS
        return Rows(array if known else array.astype(np.float64), bfloat16) if array.ndim == 2 else no_rows()
    if is_bfloat16(array.dtype):
        array, bfloat16 = array.view(np.uint16), True
    if array.dtype.name in _BYTES and how.scaled:
        array = array.astype(np.float32)
    if not bfloat16 and array.dtype.name not in _FLOATS:
        advice = "normalize" if array.dtype.name in _BYTES else None
        raise InvalidTypeError(f"expected {EXPECTED}, got {array.dtype.name}", advice=advice)
    if vector and array.ndim == 1:
        array = array[None, :]
    if array.ndim != 2:
        raise InvalidVectorsError(f"expected a 2-dimensional array (rows, dim), got shape {array.shape}")
    return Rows(array, bfloat16)
