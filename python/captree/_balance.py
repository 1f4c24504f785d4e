"""Weights that even out how densely the rows lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from captree import _params
from captree._caps import Caps
from captree._centers import absent_rows, unit
from captree._progress import Progress, reporting, stepping

if TYPE_CHECKING:
    from captree._tree import Tree


def balancing_weights(
    tree: Tree,
    max_cos_distance: Any,
    exponent: float = 0.5,
    *,
    batch_size: int = 4096,
    threads: int | None = None,
    progress: Progress = False,
) -> NDArray[np.float64]:
    """Weights that make rows in crowded places rarer: ``count ** -exponent``, of the exact count around each row.

    The count is that of the rows in the cap of `max_cos_distance` around the row's direction, the row itself included
    (1 at least). With exponent 1 a cluster of near duplicates weighs about as much as one lonely row, with 0 all rows
    weigh alike. One count for each row: on a large tree this is worth keeping in a file.

    Args:
        tree: the tree.
        max_cos_distance: how near a row must be to count as crowding, in [0, 2].
        exponent: at least 0.
        batch_size: rows whose caps are counted at a time.
        threads: at most this many.
        progress: True for a bar on a terminal (plain lines elsewhere), or a callable ``(phase, done, total)``.

    Returns:
        float64 (n,), in (0, 1], and 0 for rows that were skipped; for ``PairStream(weights=)``.

    Raises:
        InvalidParameterError: a parameter outside its domain.
    """
    bound = _params.fraction("max_cos_distance", max_cos_distance, 0.0, 2.0)
    exponent = _params.fraction("exponent", exponent, 0.0, 100.0)
    batch_size = _params.integer("batch_size", batch_size, 1, 1 << 24)
    threads = _params.threads(threads)
    kept = np.setdiff1d(np.arange(len(tree)), absent_rows(tree))
    weights = np.zeros(len(tree))
    with reporting(progress) as callback:
        step = stepping(callback, "counting", kept.size)
        for start in range(0, kept.size, batch_size):
            rows = kept[start : start + batch_size]
            centers = unit(tree.take(rows)).astype(np.float32)
            counts = tree.count(Caps._wrap(centers, np.full(rows.size, bound)), threads=threads)
            weights[rows] = np.maximum(counts, 1).astype(np.float64) ** -exponent
            step(start + rows.size)
    return weights
