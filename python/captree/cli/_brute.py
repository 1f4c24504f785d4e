"""Brute force with numpy: the answers that the tree's are checked against, and the speed they are compared with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

import captree
from captree._centers import absent_rows

_BLOCK_BYTES = 128 << 20
_PAIRS = 8192


def blocks(tree: captree.Tree) -> Iterator[NDArray[np.float32]]:
    """The stored vectors as float32, in blocks of bounded size."""
    step = max(1, _BLOCK_BYTES // (4 * tree.dim))
    kept = np.setdiff1d(np.arange(len(tree)), absent_rows(tree))
    for start in range(0, kept.size, step):
        yield tree.take(kept[start : start + step]).astype(np.float32)


def count(
    tree: captree.Tree, centers: NDArray[np.float32], bounds: NDArray[np.float64]
) -> tuple[NDArray[np.int64], float]:
    """Exact counts of all caps by looking at every row, and the seconds that numpy took.

    A float32 matrix product decides all rows but those within its rounding error of the bound; these are decided in
    rational arithmetic, outside the time taken, which is that of the plain float32 scan.
    """
    least = 1.0 - bounds[:, None]
    # |float32 dot - exact| <= d u / (1 - d u) |center| |row| with u = 2**-24; doubled, it also covers vectors a little
    # longer than one and the rounding of the thresholds themselves.
    margin = 2.0 * (tree.dim + 8) * 2.0**-24
    surely, maybe = (least + margin).astype(np.float32), (least - margin).astype(np.float32)
    counts = np.zeros(len(bounds), dtype=np.int64)
    seconds = 0.0
    for block in blocks(tree):
        began = time.perf_counter()
        dots = centers @ block.T
        counts += np.count_nonzero(dots >= surely, axis=1)
        seconds += time.perf_counter() - began
        cap, row = np.nonzero((dots >= maybe) & (dots < surely))
        for start in range(0, len(cap), _PAIRS):
            part = slice(start, start + _PAIRS)
            inside = _inside(centers[cap[part]], block[row[part]], bounds[cap[part]])
            counts += np.bincount(cap[part][inside], minlength=len(bounds))
    return counts, seconds


def _inside(centers: NDArray[np.float32], rows: NDArray[np.float32], bounds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether 1 - <center, row> <= bound holds, pair by pair, for the real numbers that the floats stand for."""
    # float64 holds every product exactly; only their sum needs more digits, and only very near the bound.
    products = centers.astype(np.float64) * rows.astype(np.float64)
    distances = 1.0 - products.sum(axis=1)
    inside: NDArray[np.bool_] = distances <= bounds
    for i in np.flatnonzero(np.abs(distances - bounds) <= 1e-9):
        inside[i] = 1 - sum(map(Fraction, products[i].tolist()), Fraction(0)) <= Fraction(float(bounds[i]))
    return inside
