"""Batches of pairs from numbered random streams, so that drawing can go on at any of them; what was drawn, in numbers.

A batch depends on the seed, its number, how many pairs are missing, and how often rows may still be given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captree._caps import Caps
from captree._centers import Centers
from captree._draws import CAPS_WITHOUT_ROW, NO_ROWS, Drawn, RowDrawer, take
from captree._priors import stream_key
from captree._radii import Radii
from captree.errors import InvalidParameterError

_CAPS, _ROWS, _MEASURED = 1, 2, 5
"""What random streams are for; training_caps has 0, PairStream 3 and 4."""

BANDS = 10
"""Bands of max cosine distance, of equal width."""

EDGES = np.linspace(0.0, 2.0, BANDS + 1).astype(np.float32).astype(np.float64)
"""float64 (11,): between them lie the bands, closed below; rounded as the bounds of pairs are."""

TENTHS = 10

_MEASURED_CAPS = 100
"""Caps of each tenth of a run for which the used share of their rows is measured."""


class Tally:
    """What a run has drawn so far.

    Attributes:
        bands: int64 (10, 4), for each band of bounds the caps drawn, empty ones, exhausted ones, pairs written.
        skew: float64 (10, 4), for each tenth of the run the measured caps, the sum and the largest of the used shares
            of their rows, and the exhausted caps.
    """

    def __init__(self, saved: dict[str, Any] | None = None) -> None:
        self.bands = np.array(saved["bands"] if saved else np.zeros((BANDS, 4)), np.int64)
        self.skew = np.array(saved["skew"] if saved else np.zeros((TENTHS, 4)), np.float64)

    def saved(self) -> dict[str, Any]:
        """Plain lists, from which an equal tally can be made; every float64 is kept as it is."""
        return {"bands": self.bands.tolist(), "skew": self.skew.tolist()}


@dataclass(frozen=True)
class Batch:
    """Pairs of one batch, and the point from which they can be drawn again.

    Attributes:
        number: the batch's number.
        first: the number of its first pair in the run.
        before: the tally before it.
        rows: int64 (b,); -1 for an empty cap that is kept.
        caps: b caps.
    """

    number: int
    first: int
    before: dict[str, Any]
    rows: NDArray[np.int64]
    caps: Caps


class Batches:
    """Draws batches of caps and one row for each, dropping caps without a row that may be used.

    Args:
        drawer: draws the caps and rows.
        n: pairs of the whole run.
        batch_size: caps drawn at a time.
        seed: the seed.
        radii, centers: the priors.
        tally: what was drawn before, to be continued.
    """

    def __init__(
        self, drawer: RowDrawer, n: int, batch_size: int, seed: int, radii: Radii, centers: Centers | None, tally: Tally
    ) -> None:
        self.tally = tally
        self._drawer = drawer
        self._n = n
        self._batch_size = batch_size
        self._seed = seed
        self._priors = (radii, centers)
        self._measured = _measured_pairs(seed, n) if drawer.left is not None else np.empty(0, np.int64)

    def run(self, number: int = 0, done: int = 0) -> Iterator[Batch]:
        """The batches from this number on, before which there were `done` pairs."""
        n, drawer = self._n, self._drawer
        fruitless = 0
        while done < n:
            # A few caps more than are missing, so that the last empty ones don't cost a call each.
            size = min(self._batch_size, max(n - done, 256))
            keys = [stream_key(self._seed, purpose, number) for purpose in (_CAPS, _ROWS)]
            measured = self._measured[(self._measured >= done) & (self._measured < done + size)]
            left = drawer.left.copy() if drawer.left is not None and measured.size else None
            drawn = drawer.pairs(size, keys[0], keys[1], *self._priors, wanted=n - done)
            worth = drawn.rows >= 0
            if drawer.keep_empty:
                worth |= drawn.empty
            good = np.flatnonzero(worth)[: n - done]
            before = self.tally.saved()
            self._count(drawn, good, stop=int(good[-1]) + 1 if done + good.size == n else size, done=done)
            if left is not None:
                self._measure(drawn, good, measured[measured < done + good.size] - done, left, done)
            fruitless = 0 if good.size else fruitless + size
            if fruitless >= CAPS_WITHOUT_ROW:
                raise InvalidParameterError(f"{fruitless} {NO_ROWS}, after {done} of {n} pairs")
            if good.size:
                yield Batch(number, done, before, drawn.rows[good], drawn.caps[good])
                done += good.size
            number += 1

    def _count(self, drawn: Drawn, good: NDArray[np.int64], stop: int, done: int) -> None:
        """Adds the first `stop` caps to the tally, of which those at the places `good` are written."""
        bands = np.searchsorted(EDGES, drawn.caps.max_cos_distance[:stop], side="right") - 1
        bands = np.minimum(bands, BANDS - 1)
        exhausted = (drawn.rows[:stop] < 0) & ~drawn.empty[:stop]
        groups = (bands, bands[drawn.empty[:stop]], bands[exhausted], bands[good])
        self.tally.bands += np.stack([np.bincount(group, minlength=BANDS) for group in groups], axis=1)
        pairs_before = done + np.searchsorted(good, np.flatnonzero(exhausted))
        self.tally.skew[:, 3] += np.bincount(self._tenth(pairs_before), minlength=TENTHS)

    def _tenth(self, pair: Any) -> Any:
        """In which tenth of the run a pair is, by its number; what comes after the last pair is in the last one."""
        return np.minimum(pair * TENTHS // self._n, TENTHS - 1)

    def _measure(
        self, drawn: Drawn, good: NDArray[np.int64], pairs: NDArray[np.int64], left: NDArray[Any], done: int
    ) -> None:
        """Measures, for some pairs of the batch, the share of the cap's rows that were used when its row was drawn.

        `left` is how often rows might be given before the batch; it is brought forward, cap by cap.
        """
        places = good[pairs]
        places = places[drawn.rows[places] >= 0]
        upto = 0
        for place, rows in self._drawer.listed(drawn.caps, places):
            given = drawn.rows[upto:place]
            take(left, given[given >= 0])
            upto = place
            if self._drawer.exclude:
                rows = rows[~np.isin(rows, drawn.sources[place])]
            share = float((left[rows] == 0).mean())
            skew = self.tally.skew[self._tenth(done + int(np.searchsorted(good, place)))]
            skew[:3] = skew[0] + 1, skew[1] + share, max(skew[2], share)


def tenth_ends(n: int) -> NDArray[np.int64]:
    """int64 (11,): tenth t of a run of n pairs has the pairs from the t-th of these numbers up to the next one."""
    return -(-n * np.arange(TENTHS + 1) // TENTHS)


def _measured_pairs(seed: int, n: int) -> NDArray[np.int64]:
    """Numbers of the pairs whose caps are measured: a random sample of each tenth of the run, sorted."""
    parts = []
    ends = tenth_ends(n).tolist()
    for tenth, (start, stop) in enumerate(pairwise(ends)):
        rng = np.random.default_rng(stream_key(seed, _MEASURED, tenth))
        few = min(_MEASURED_CAPS, stop - start)
        parts.append(start + np.sort(rng.choice(stop - start, few, replace=False)))
    return np.concatenate(parts).astype(np.int64)
