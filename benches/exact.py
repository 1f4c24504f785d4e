"""The true answers, without captree: float64 products with a bound of their error, exact sums where it cannot decide.

The same truth as `captree.testing.oracle`, for counts over large data; `make_expected` compares the two.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 8192

Rows = NDArray[np.int64]


def blocks(
    vectors: NDArray[Any], centers: NDArray[np.float32], bounds: NDArray[np.float64]
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """First row and (rows, caps) membership of one block of rows after another."""
    asked = centers.astype(np.float64)
    # Float64 sums of dim exact products and two terms, each at most about 1 in size: generous by a factor.
    error = (vectors.shape[1] + 3) * 2.0**-52 * 5
    for start in range(0, len(vectors), BLOCK):
        wide = vectors[start : start + BLOCK].astype(np.float64)
        value = wide @ asked.T + (bounds - 1.0)
        inside = value >= 0
        for row, cap in np.argwhere(np.abs(value) <= error):
            products = (wide[row] * asked[cap]).tolist()
            inside[row, cap] = math.fsum([*products, float(bounds[cap]), -1.0]) >= 0
        yield start, inside


def count(vectors: NDArray[Any], centers: NDArray[np.float32], bounds: NDArray[np.float64]) -> Rows:
    """int64 (q,), rows inside each cap."""
    total = np.zeros(len(centers), dtype=np.int64)
    for _, inside in blocks(vectors, centers, bounds):
        total += np.count_nonzero(inside, axis=0)
    return total


def search(vectors: NDArray[Any], centers: NDArray[np.float32], bounds: NDArray[np.float64]) -> list[Rows]:
    """The rows of each cap, ascending."""
    parts: list[list[Rows]] = [[] for _ in centers]
    for start, inside in blocks(vectors, centers, bounds):
        for cap in np.flatnonzero(inside.any(axis=0)):
            parts[cap].append(np.flatnonzero(inside[:, cap]) + start)
    return [np.concatenate(part) if part else np.empty(0, dtype=np.int64) for part in parts]
