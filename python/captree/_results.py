"""What queries return."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from captree._arrow import require_pyarrow
from captree.errors import InvalidParameterError, RowIndexError

if TYPE_CHECKING:
    import pyarrow as pa


class NearestResult(NamedTuple):
    """The nearest rows of each query, nearest first; unpacks as ``rows, distances``."""

    rows: NDArray[np.int64]
    """int64 (q, k); -1 past the last row of the tree."""
    distances: NDArray[np.float64]
    """float64 (q, k), cosine distances in [0, 2]; inf past the last row of the tree."""


class EstimateResult(NamedTuple):
    """Estimated counts with an interval per cap; unpacks as ``count, low, high``."""

    count: NDArray[np.float64]  # type: ignore[assignment]
    """float64 (q,), the estimated number of rows inside each cap."""
    low: NDArray[np.int64]
    """int64 (q,), lower end of the interval."""
    high: NDArray[np.int64]
    """int64 (q,), upper end of the interval."""


Distances = TypeVar("Distances", covariant=True)
"""What a result holds beside rows: an array of float64 or float32, or None."""


class RangeResult(Generic[Distances]):
    """The rows inside each cap of a batch, one after the other (CSR form).

    Rows of cap ``i`` are ``rows[offsets[i]:offsets[i + 1]]``, their cosine distances the same part of ``distances``.
    ``len(result)`` is the number of caps; ``result[i]`` and iteration give ``(rows, distances)`` per cap (without
    distances ``(rows, None)``); a slice gives a RangeResult of those caps. The arrays are read-only.

    Attributes:
        offsets: int64 (q + 1,).
        rows: int64 (total,).
        distances: float64 (total,), the real-number value of ``1 - <center, row>`` rounded once to float64; float32
            and rounded to that, or None, if the search was asked for these.
    """

    __slots__ = ("distances", "offsets", "rows")

    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    distances: Distances

    def __init__(self, offsets: Any, rows: Any, distances: Any) -> None:
        ends, found = _read_only(offsets, np.int64), _read_only(rows, np.int64)
        far = None
        if distances is not None:
            is_short = getattr(distances, "dtype", None) == np.float32
            far = _read_only(distances, np.float32 if is_short else np.float64)
        if ends.size == 0 or ends[0] != 0 or ends[-1] != found.size or bool(np.any(np.diff(ends) < 0)):
            raise InvalidParameterError(f"expected an increasing sequence from 0 to {found.size}", parameter="offsets")
        if far is not None and found.size != far.size:
            raise InvalidParameterError(f"expected as many distances as rows ({found.size}), got {far.size}")
        for name, array in (("offsets", ends), ("rows", found), ("distances", far)):
            object.__setattr__(self, name, array)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a RangeResult is read-only: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a RangeResult is read-only: cannot delete {name!r}")

    @property
    def counts(self) -> NDArray[np.int64]:
        """int64 (q,), the number of rows of each cap."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return self.offsets.size - 1

    @overload
    def __getitem__(self, index: int) -> tuple[NDArray[np.int64], Distances]: ...
    @overload
    def __getitem__(self, index: slice) -> RangeResult[Distances]: ...
    def __getitem__(self, index: int | slice) -> tuple[NDArray[np.int64], Distances] | RangeResult[Distances]:
        distances: Any = self.distances
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                ends = self.offsets[start : max(start, stop) + 1]
                part = slice(ends[0], ends[-1])
                return RangeResult(ends - ends[0], self.rows[part], None if distances is None else distances[part])
            parts = [self[i] for i in range(start, stop, step)]
            ends = np.cumsum([0, *(rows.size for rows, _ in parts)])
            rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in parts)])
            if distances is not None:
                each: list[Any] = [far for _, far in parts]
                distances = np.concatenate([np.empty(0, distances.dtype), *each])
            return RangeResult(ends, rows, distances)
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise RowIndexError(f"cap {index} of a result of {len(self)} caps")
        part = slice(self.offsets[place], self.offsets[place + 1])
        far: Any = None if distances is None else distances[part]
        return self.rows[part], far

    def __iter__(self) -> Iterator[tuple[NDArray[np.int64], Distances]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"RangeResult({len(self):,} caps, {self.rows.size:,} rows)"

    def __reduce__(self) -> tuple[Any, ...]:
        return RangeResult, (self.offsets, self.rows, self.distances)

    def to_arrow(self) -> pa.Table:
        """A pyarrow Table with one line per cap: ``rows`` large_list<int64>, ``distances`` large_list<double or float>.

        Without distances it has no such column.
        """
        pa = require_pyarrow("RangeResult.to_arrow")
        columns = {"rows": self.rows} if self.distances is None else {"rows": self.rows, "distances": self.distances}
        return pa.table({name: pa.LargeListArray.from_arrays(self.offsets, part) for name, part in columns.items()})


def _read_only(values: Any, dtype: type) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(values, dtype=dtype)
    if array.ndim != 1:
        raise InvalidParameterError(f"expected 1-dimensional arrays, got shape {array.shape}")
    array = array.view()
    array.flags.writeable = False
    return array
