"""Caps: batches of spherical caps, checked once when they are made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from captree import _arrays, _params
from captree._arrow import require_pyarrow
from captree.errors import InvalidCapsError, InvalidTypeError, InvalidVectorsError, RowIndexError

if TYPE_CHECKING:
    import pyarrow as pa

TOLERANCE = _params.LIMITS["tolerances"]
"""How far the norm of a center may be from 1, by the element type it comes in."""

_CHUNK = 8192
_SHOWN = 5


class Caps:
    """A batch of closed spherical caps ``{x : 1 - <center, x> <= max_cos_distance}``; it cannot be changed.

    ``len(caps)`` is their number. An index gives a batch of one, a slice or an array of indices a batch; iteration
    gives batches of one. The cap with bound 2 is the whole sphere, the cap with bound 0 the vectors at distance 0.

    Stored vectors and centers are floats, so their lengths differ a little from 1, and exact answers show it:

    - A row around itself is at distance ``1 - |row|**2``, not 0. About half of all float16 rows are a little shorter
      than 1 and so not inside the cap of bound 0 around themselves. A bound of 0.002 holds every one of them.
    - Distances can be slightly negative, for rows longer than 1: take ``np.sqrt(np.maximum(distances, 0))``.
    - A row opposite the center that is longer than 1 is more than 2 away, so a bound of 2 can miss it.
    - A distance that captree reports is rounded to float64. As a bound it can miss its own row, when it was rounded
      down; ``np.nextafter(distance, 3)`` never does.

    Args:
        centers: (q, d) unit vectors, or one (d,): numpy, torch, CuPy, Arrow fixed_size_list, or lists; float16,
            bfloat16, float32 or float64. They become float32 as they are, not renormalized; each norm must be within
            2**-9 (float16), 2**-6 (bfloat16) or 5e-4 (float32, float64, lists) of 1.
        max_cos_distance: (q,) numbers in [0, 2], or one number for every cap; kept as float64. One center with
            several bounds gives one cap per bound.

    Raises:
        InvalidCapsError: names how many caps are bad, the first few, and what was expected.
        InvalidTypeError: elements that are not floats.
    """

    __slots__ = ("_bounds", "_centers")

    _centers: NDArray[np.float32]
    _bounds: NDArray[np.float64]

    def __init__(self, centers: Any, max_cos_distance: Any) -> None:
        self._set(*_checked(centers, _numbers(max_cos_distance, "max_cos_distance", 0.0, 2.0)))

    @classmethod
    def from_radius(cls, centers: Any, radius: Any) -> Caps:
        """Caps from angles in radians in [0, pi], (q,) or a scalar; the bound is ``1 - cos(radius)``."""
        angles = _numbers(radius, "radius", 0.0, np.pi)
        return Caps._wrap(*_checked(centers, np.minimum(2.0 * np.sin(angles / 2.0) ** 2, 2.0)))

    @classmethod
    def from_min_cosine(cls, centers: Any, min_cosine: Any) -> Caps:
        """Caps from least cosines in [-1, 1], (q,) or a scalar; the bound is ``1 - min_cosine``."""
        return Caps._wrap(*_checked(centers, 1.0 - _numbers(min_cosine, "min_cosine", -1.0, 1.0)))

    @classmethod
    def from_arrow(cls, table: Any) -> Caps:
        """Caps from the columns ``center`` and ``max_cos_distance`` of a pyarrow Table or RecordBatch."""
        pa = require_pyarrow("Caps.from_arrow")
        if not isinstance(table, (pa.Table, pa.RecordBatch)):
            table = pa.table(table)
        missing = {"center", "max_cos_distance"} - set(table.schema.names)
        if missing:
            raise InvalidCapsError(f"expected columns center and max_cos_distance, got {', '.join(table.schema.names)}")
        bounds = table.column("max_cos_distance")
        if bounds.null_count:
            raise InvalidCapsError(f"expected no nulls, got {bounds.null_count}", parameter="max_cos_distance")
        return Caps(table.column("center"), bounds.to_numpy())

    @staticmethod
    def concat(batches: Iterable[Caps]) -> Caps:
        """One batch out of several of the same dimension, in order."""
        parts = list(batches)
        for part in parts:
            if not isinstance(part, Caps):
                raise InvalidTypeError(f"expected Caps to concatenate, got {type(part).__name__}")
        return _concat_plain(parts)

    @property
    def centers(self) -> NDArray[np.float32]:
        """float32 (q, d), read-only."""
        return self._centers

    @property
    def max_cos_distance(self) -> NDArray[np.float64]:
        """float64 (q,), the bounds in [0, 2], read-only."""
        return self._bounds

    @property
    def radius(self) -> NDArray[np.float64]:
        """float64 (q,), the bounds as angles in radians in [0, pi]."""
        return 2.0 * np.arcsin(np.sqrt(self._bounds / 2.0))

    @property
    def min_cosine(self) -> NDArray[np.float64]:
        """float64 (q,), the bounds as least cosines in [-1, 1]."""
        return 1.0 - self._bounds

    @property
    def dim(self) -> int:
        """Dimension of the centers; 0 for an empty batch made from empty lists."""
        return int(self._centers.shape[1])

    def to_arrow(self) -> pa.Table:
        """A pyarrow Table: ``center`` fixed_size_list<float>[d], ``max_cos_distance`` double."""
        pa = require_pyarrow("Caps.to_arrow")
        return pa.table({"center": fixed_size_list(pa, self._centers), "max_cos_distance": self._bounds})

    def __len__(self) -> int:
        return self._bounds.size

    def __getitem__(self, index: Any) -> Self:
        return self._pick(_place(index, len(self)))

    def __iter__(self) -> Iterator[Self]:
        return (self._pick(slice(i, i + 1)) for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        mine, theirs = self._state(), other._state()
        return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        text = f"{type(self).__name__}({len(self):,} caps, dim {self.dim}"
        if len(self):
            low, high = float(self._bounds.min()), float(self._bounds.max())
            text += f", max_cos_distance {low:.6g}" + ("" if low == high else f" to {high:.6g}")
        return text + ")"

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed: cannot delete {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._wrap, self._state()

    @classmethod
    def _wrap(cls, *arrays: NDArray[Any]) -> Self:
        """A batch of arrays that are known to be good; they are not copied."""
        caps = cls.__new__(cls)
        caps._set(*arrays)
        return caps

    def _set(self, *arrays: NDArray[Any]) -> None:
        for name, array in zip(("_centers", "_bounds"), arrays, strict=True):
            object.__setattr__(self, name, _frozen(array))

    def _state(self) -> tuple[NDArray[Any], ...]:
        return self._centers, self._bounds

    def _pick(self, part: Any) -> Self:
        return type(self)._wrap(*(np.ascontiguousarray(array[part]) for array in self._state()))


CapsLike = Caps | tuple[Any, Any]
"""Caps, or the tuple ``(centers, max_cos_distance)`` that makes them."""


def as_caps(caps: Any, dim: int) -> Caps:
    """`caps` (Caps, or a tuple of centers and bounds) as Caps of dimension `dim`."""
    if isinstance(caps, tuple) and len(caps) == 2:
        caps = Caps(*caps)
    if not isinstance(caps, Caps):
        raise InvalidTypeError(f"expected captree.Caps or (centers, max_cos_distance), got {type(caps).__name__}")
    if caps.dim == dim:
        return caps
    if len(caps) == 0 and caps.dim == 0:
        return Caps._wrap(np.empty((0, dim), np.float32), caps.max_cos_distance)
    raise InvalidCapsError(f"expected dim {dim}, got {caps.dim}")


def unit_rows(value: Any, what: str) -> NDArray[np.float32]:
    """(q, d) unit vectors, or one (d,), as C-contiguous float32; `what` names them in errors."""
    rows = _arrays.matrix(value, what)
    array = rows.float32()
    if array.size == 0:
        if len(array):
            raise InvalidVectorsError(f"{what}: expected at least one dimension, got shape {array.shape}")
        return array
    tolerance = TOLERANCE[rows.dtype]
    bad: list[tuple[int, float]] = []
    count = 0
    for start in range(0, len(array), _CHUNK):
        part = rows.array[start : start + _CHUNK] if rows.dtype == "float64" else array[start : start + _CHUNK]
        wide = part.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
            wrong = np.flatnonzero(~(np.abs(norms - 1.0) <= tolerance))
        count += wrong.size
        bad += [(start + int(i), float(norms[i])) for i in wrong[: _SHOWN - len(bad)]]
    if count:
        shown = ", ".join(f"{place} (norm {norm:.6g})" for place, norm in bad)
        raise InvalidVectorsError(
            f"{what}: expected finite vectors of norm 1 within {tolerance:g} ({rows.dtype}), "
            f"got {count} that are not; first at {shown}"
        )
    return array


def _checked(centers: Any, bounds: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    single = np.ndim(centers) == 1 if isinstance(centers, np.ndarray) else _is_single(centers)
    try:
        array = unit_rows(centers, "centers")
    except InvalidVectorsError as error:
        raise InvalidCapsError(str(error)) from error
    if bounds.ndim == 0:
        bounds = np.full(len(array), float(bounds))
    elif single and len(array) == 1:
        array = np.repeat(array, bounds.size, axis=0)
    if bounds.size != len(array):
        raise InvalidCapsError(f"expected {len(array)} bounds, one per center, or a scalar, got {bounds.size}")
    return (array.copy() if array is centers or array.base is not None else array), bounds


def _is_single(centers: Any) -> bool:
    shape = getattr(centers, "shape", None)
    if shape is not None:
        return len(shape) == 1
    return isinstance(centers, (list, tuple)) and len(centers) > 0 and np.ndim(centers[0]) == 0


def _numbers(value: Any, name: str, low: float, high: float) -> NDArray[np.float64]:
    """(q,) or 0-d float64 numbers within [low, high]."""
    try:
        array = _arrays.on_host(value)
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(f"{name}: expected numbers, got {type(value).__name__} ({error})") from error
    if array.size and (array.dtype.kind not in "fiu" or array.dtype.itemsize > 8):
        raise InvalidTypeError(f"{name}: expected real numbers, got {array.dtype.name}")
    if array.ndim > 1:
        raise InvalidCapsError(f"{name}: expected shape (q,) or a scalar, got {array.shape}")
    numbers = np.array(array, dtype=np.float64)
    bad = np.flatnonzero(~((numbers >= low) & (numbers <= high)))
    if bad.size:
        flat = numbers.reshape(-1)
        shown = ", ".join(f"{i} ({flat[i]!s})" for i in bad[:_SHOWN])
        limits = f"[{low:g}, {'pi' if high == np.pi else f'{high:g}'}]"
        raise InvalidCapsError(f"{name}: expected numbers in {limits}, got {bad.size} outside; first at caps {shown}")
    return numbers


def _concat_plain(parts: list[Caps]) -> Caps:
    full = [part for part in parts if part.dim] or parts
    dims = sorted({part.dim for part in full})
    if len(dims) > 1:
        raise InvalidCapsError(f"expected caps of one dimension, got {', '.join(map(str, dims))}")
    if not full:
        return Caps._wrap(np.empty((0, 0), np.float32), np.empty(0))
    same = {type(part) for part in full}
    kind = same.pop() if len(same) == 1 else Caps
    states = [part._state() if kind is not Caps else (part.centers, part.max_cos_distance) for part in full]
    return kind._wrap(*(np.concatenate(arrays) for arrays in zip(*states, strict=True)))


def _place(index: Any, size: int) -> Any:
    if isinstance(index, slice):
        return index
    if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
        place = int(index) + size if index < 0 else int(index)
        if not 0 <= place < size:
            raise RowIndexError(f"cap {index} of a batch of {size}")
        return slice(place, place + 1)
    array = np.asarray(index)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iub"):
        raise InvalidTypeError(f"expected an integer, a slice or an array of indices, got {type(index).__name__}")
    if array.dtype.kind == "b":
        if array.size != size:
            raise RowIndexError(f"expected a mask of {size} caps, got {array.size}")
        return array
    array = array.astype(np.int64)
    if array.size and not (-size <= int(array.min()) and int(array.max()) < size):
        raise RowIndexError(f"cap indices from {array.min()} to {array.max()} in a batch of {size}")
    return array


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array = array.view()
    array.flags.writeable = False
    return array


def fixed_size_list(pa: Any, array: NDArray[np.float32]) -> Any:
    """(q, d) float32 as a pyarrow FixedSizeListArray."""
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), type=pa.list_(pa.float32(), array.shape[1]))
