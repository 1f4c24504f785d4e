"""Small functions that several test files use."""

from __future__ import annotations

import numpy as np

from captree import _inputs
from captree._rows import Reading


def unit(rows, dtype=np.float32):
    """Rows scaled to length 1 in float64, then rounded to `dtype`."""
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(dtype)


def random_units(n, d, seed=0, dtype=np.float32):
    """Directions uniform on the sphere."""
    return unit(np.random.default_rng(seed).standard_normal((n, d)), dtype)


def all_rows(tree):
    """The kept rows of a tree."""
    return tree.take(np.arange(len(tree)))


def by_row(result):
    """A RangeResult as one list of (row, distance) pairs per cap, ordered by row."""
    return [sorted(zip(rows.tolist(), far.tolist(), strict=True)) for rows, far in result]


def read(vectors, column=None, **how):
    """All rows of a source as one float32 array, and the set of dtypes seen."""
    parts = list(_inputs.slices(vectors, Reading(column, **how)))
    for part in parts:
        assert part.array.flags.c_contiguous
        assert part.array.dtype.isnative
        assert part.array.ndim == 2
    return np.concatenate([part.float32() for part in parts]), {part.dtype for part in parts}


def assert_reads(vectors, expected, column=None, dtype="float32"):
    """A source holds exactly these rows, in this element type."""
    rows, dtypes = read(vectors, column)
    assert dtypes == {dtype}
    np.testing.assert_array_equal(rows, expected)
