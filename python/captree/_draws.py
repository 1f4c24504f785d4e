"""A random row for each cap of a block: uniform, without used rows or sources, or in proportion to weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captree._caps import Caps
from captree._centers import Centers
from captree._priors import cap_block
from captree._radii import Radii
from captree.errors import InvalidParameterError

if TYPE_CHECKING:
    from captree._tree import Tree

CAPS_WITHOUT_ROW = 100_000
"""Fruitless caps in a row after which nobody expects another one to help."""

NO_ROWS = "caps one after the other had no row that may be paired"

_FEW = 64

# Draws per cap and round; a cap whose draws are all refused is listed.
_ROUNDS = (8, 32, 128)

_LISTED = 1 << 22


class Drawn(NamedTuple):
    """Caps and a row of each."""

    rows: NDArray[np.int64]
    """(n,); -1 where no row may be paired."""
    caps: Caps
    """n caps."""
    empty: NDArray[np.bool_]
    """(n,), which caps hold no row."""
    sources: NDArray[np.int64]
    """(n, 2), the rows that the centers were made from; -1 where there is none."""


class RowDrawer:
    """Draws caps and a row for each; -1 where no row may be paired.

    Args:
        tree: the tree.
        exclude: never give a cap one of its source rows.
        left: unsigned (n,), how often each row may still be given; counted down as rows are given. None: any number
            of times.
        weights: float64 (n,), rows of a cap are drawn in proportion to them; None draws them alike.
        keep_empty: whether empty caps are kept, which centers that know their rows cannot tell from others.
        threads: at most this many.
    """

    def __init__(
        self,
        tree: Tree,
        exclude: bool = False,
        left: NDArray[Any] | None = None,
        weights: NDArray[np.float64] | None = None,
        keep_empty: bool = False,
        threads: int | None = None,
    ) -> None:
        self.tree = tree
        self.exclude = exclude
        self.left = left
        self.keep_empty = keep_empty
        self.threads = threads
        self._weights = weights
        self._most = 1.0 if weights is None else float(weights.max())

    def pairs(
        self,
        n: int,
        caps_key: tuple[int, ...],
        rows_key: tuple[int, ...],
        radii: Radii,
        centers: Centers | None,
        wanted: int,
    ) -> Drawn:
        """A row or -1 for each of `n` caps; no more than the first `wanted` rows count as given."""
        block = cap_block(self.tree, n, caps_key, radii, centers, single=True, threads=self.threads)
        caps = Caps._wrap(block.centers, block.bounds)
        rng = np.random.default_rng(rows_key)
        if block.rows is not None:
            rows = self._known(block.rows, rng)
            return Drawn(self._unused_known(rows, wanted), caps, block.rows < 0, block.sources)
        if self._weights is not None:
            rows, empty = self._weighted(caps, block.sources, rng)
            return Drawn(rows, caps, empty, block.sources)
        rows = self._sample(caps, 1, rng)[:, 0]
        empty = rows < 0
        if self.exclude:
            again = np.flatnonzero((rows[:, None] == block.sources).any(axis=1) & ~empty)
            drawn = self._sample(caps[again], 3, rng)
            allowed = (drawn >= 0) & (drawn[:, :, None] != block.sources[again][:, None, :]).all(axis=2)
            rows[again] = _pick(drawn, allowed, rng)
        if self.left is not None:
            rows = self._draw_unused(caps, block.sources, rows, rng, wanted)
        return Drawn(rows, caps, empty, block.sources)

    def _draw_unused(
        self,
        caps: Caps,
        sources: NDArray[np.int64],
        rows: NDArray[np.int64],
        rng: np.random.Generator,
        wanted: int,
    ) -> NDArray[np.int64]:
        """Turns draws into rows that are unused, cap after cap, each uniform over what the caps before it left."""
        left = self.left
        assert left is not None
        candidates = np.flatnonzero(rows >= 0)
        retry = candidates[occurrences(rows[candidates]) >= left[rows[candidates]]]
        few = dict(zip(retry.tolist(), self._sample(caps[retry], _FEW, rng), strict=True))
        found = 0
        for i in candidates.tolist():
            if found == wanted:
                rows[i] = -1
            elif not left[rows[i]]:
                rows[i] = self._unused_row(caps[i], sources[i], few.get(i), rng)
            if rows[i] >= 0:
                left[rows[i]] -= 1
                found += 1
        return rows

    def _unused_row(
        self, cap: Caps, sources: NDArray[np.int64], few: NDArray[np.int64] | None, rng: np.random.Generator
    ) -> int:
        """A uniform unused row of one cap: among a few distinct random rows, else among all its rows."""
        if few is not None:
            rows = few[few >= 0]
            free = self._free(rows, sources)
            if free.size:
                return int(rng.choice(free))
            if rows.size < _FEW:
                return -1  # these were all rows of the cap
        # Sorted, so that the choice does not depend on the tree's shape.
        free = np.sort(self._free(self.tree.search(cap, distances=None, threads=self.threads).rows, sources))
        return int(rng.choice(free)) if free.size else -1

    def _free(self, rows: NDArray[np.int64], sources: NDArray[np.int64]) -> NDArray[np.int64]:
        assert self.left is not None
        free = rows[self.left[rows] > 0]
        return free[~np.isin(free, sources)] if self.exclude else free

    def _known(self, known: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Rows that came with their caps, thinned in proportion to their weights."""
        if self.exclude:
            raise InvalidParameterError(
                "expected centers that know no rows, since these are sources", parameter="exclude_sources"
            )
        if self.keep_empty:
            raise InvalidParameterError(
                'expected "redraw" with centers that know their rows: a cap whose row they do not know may hold others',
                parameter="empty",
            )
        if self._weights is None:
            return known.copy()
        kept = rng.random(known.size) * self._most < self._weights[known]
        return np.where(kept & (known >= 0), known, -1)

    def _unused_known(self, rows: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
        if self.left is None:
            return rows
        given = np.flatnonzero((rows >= 0) & (occurrences(rows) < self.left[rows]))[:wanted]
        take(self.left, rows[given])
        made = np.full(rows.size, -1, np.int64)
        made[given] = rows[given]
        return made

    def _weighted(
        self, caps: Caps, sources: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """A row of each cap in proportion to its weight, and which caps are empty.

        A uniform draw is accepted with probability weight / largest weight, so the first accepted one follows the
        law, given that there is one among so many draws; a cap where there is none is listed, and one of its rows
        drawn by the same law.
        """
        assert self._weights is not None
        rows, empty = np.full(len(caps), -1, np.int64), np.zeros(len(caps), np.bool_)
        left = np.arange(len(caps))
        for k in _ROUNDS:
            part = caps[left]
            seed = int(rng.integers(2**63))
            drawn = self.tree.sample(part, k=k, replace=True, seed=seed, threads=self.threads)
            accepted = rng.random(drawn.shape) * self._most < self._weights[drawn]
            if self.exclude:
                accepted &= (drawn[:, :, None] != sources[left][:, None, :]).all(axis=2)
            none = drawn[:, 0] < 0
            empty[left[none]] = True
            some = accepted.any(axis=1) & ~none
            rows[left[some]] = drawn[some, accepted[some].argmax(axis=1)]
            left = left[~(some | none)]
            if not left.size:
                return rows, empty
        for i, found in self.listed(caps, left):
            inside = np.sort(found)  # so that the choice does not depend on the tree's shape
            weights = self._weights[inside]
            if self.exclude:
                weights = np.where(np.isin(inside, sources[i]), 0.0, weights)
            total = np.cumsum(weights / self._most)
            if total[-1] > 0.0:
                place = int(np.searchsorted(total, rng.random() * total[-1], side="right"))
                rows[i] = inside[min(place, inside.size - 1)]
        return rows, empty

    def listed(self, caps: Caps, places: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Places of caps, in order, each with all rows inside; caps are searched together as far as memory allows."""
        counts = self.tree.count(caps[places], threads=self.threads)
        start = held = 0
        for i, count in enumerate([*counts.tolist(), _LISTED + 1]):
            if i > start and held + count > _LISTED:
                group = places[start:i]
                found = self.tree.search(caps[group], distances=None, threads=self.threads)
                yield from ((place, rows) for place, (rows, _) in zip(group.tolist(), found, strict=True))
                start, held = i, 0
            held += count

    def _sample(self, caps: Caps, k: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """`k` distinct rows of each cap, from a seed of their own."""
        seed = int(rng.integers(2**63))
        return self.tree.sample(caps, k=k, replace=k == 1, seed=seed, threads=self.threads)


def _pick(rows: NDArray[np.int64], allowed: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """One allowed entry of each line of `rows`, uniformly; -1 where none is."""
    order = np.where(allowed, rng.random(rows.shape), 2.0).argmin(axis=1)
    lines = np.arange(len(rows))
    return np.where(allowed[lines, order], rows[lines, order], -1)


def occurrences(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many equal entries stand before each one: int64, of the shape (n,) of `rows`."""
    order = np.argsort(rows, kind="stable")
    _, first, sizes = np.unique(rows[order], return_index=True, return_counts=True)
    made = np.empty(rows.size, np.int64)
    made[order] = np.arange(rows.size) - np.repeat(first, sizes)
    return made


def take(left: NDArray[Any], rows: NDArray[np.int64]) -> None:
    """Counts down, in place, how often rows may still be given; a row may come several times."""
    np.subtract.at(left, rows, left.dtype.type(1))
