"""Training batches: image tokens and conditions, and nothing else.

A *source* says which rows and which caps come next; :class:`Batches` looks the rows' tokens up and makes the model's
condition of the caps. Sources:

- :class:`captree.PairStream`: caps from a prior, each with a random row inside it, drawn while the model trains;
- :class:`WrittenPairs`: pairs that ``captree.write_pairs`` wrote before;
- :class:`OwnEmbeddings`: every row with its own embedding, for the baseline that needs no caps.

Of the shards, only the columns of embeddings and tokens are read; captions have no way in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import captree
import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmodel.condition import Condition
from genmodel.errors import ConfigError, DataError, InputError

PRIORS = ("slerp", "slerp-noise", "uniform", "gap-shift", "given", "own")
"""Where training centers come from.

``slerp`` between two random rows; ``slerp-noise`` the same with noise added; ``uniform`` uniform by area in a cap
around the row itself; ``gap-shift`` slerp with noise, shifted by a vector; ``given`` drawn from an array; ``own`` the
row's own embedding.
"""


@dataclass
class Batch:
    """What a training step sees.

    Attributes:
        tokens: int64 (n, length) image tokens.
        condition: n rows.
        weight: float32 (n,), 0 for rows that must not be learned from; None weighs all alike.
    """

    tokens: Tensor
    condition: Condition
    weight: Tensor | None = None

    def __post_init__(self) -> None:
        if self.tokens.dtype != torch.int64 or self.tokens.ndim != 2 or len(self.tokens) != len(self.condition):
            raise InputError(f"expected int64 tokens (n, length), got {self.tokens.dtype} {tuple(self.tokens.shape)}")

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`."""
        weight = None if self.weight is None else self.weight.to(device, non_blocking=True)
        return Batch(self.tokens.to(device, non_blocking=True), self.condition.to(device, non_blocking=True), weight)

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, size: int) -> Iterator[Batch]:
        """Parts of at most `size` rows."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            weight = None if self.weight is None else self.weight[part]
            yield Batch(self.tokens[part], self.condition[part], weight)


class Pairs(Protocol):
    """A batch of pairs, as :class:`captree.PairBatch` is."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """int64 (b,)."""

    @property
    def centers(self) -> NDArray[np.float32]:
        """float32 (b, d)."""

    @property
    def max_cos_distance(self) -> NDArray[np.float32]:
        """float32 (b,)."""


class Source(Protocol):
    """Endless batches of pairs, with a state to go on from."""

    def __next__(self) -> Pairs:
        """The next batch."""

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the batches given so far; plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state`."""


@dataclass(frozen=True)
class RowPairs:
    """Pairs held as arrays; see :class:`Pairs`."""

    rows: NDArray[np.int64]
    centers: NDArray[np.float32]
    max_cos_distance: NDArray[np.float32]


class OwnEmbeddings:
    """Rows in a fresh random order each epoch, each with its own embedding as the center.

    Args:
        embeddings: (n, d) of the rows, unit.
        batch_size: rows of a global batch; each rank takes its share.
        seed: of the order.
        radii: bounds, ``radii(rng, n)`` or a number; 0 for the embedding condition.
        weights: (n,) makes draws with replacement in proportion to them, in place of epochs.
        rank, world: which share of each batch this process takes.
    """

    def __init__(
        self,
        embeddings: NDArray[Any],
        batch_size: int,
        seed: int,
        radii: Any = 0.0,
        weights: NDArray[np.float64] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._embeddings, self._batch, self._seed, self._radii = embeddings, batch_size, seed, radii
        self._mine = share(batch_size, rank, world)
        self._totals = None if weights is None else np.cumsum(weights / np.sum(weights))
        self._step = 0
        self._orders: dict[int, NDArray[np.int64]] = {}

    def __next__(self) -> RowPairs:
        rng = np.random.default_rng([self._seed, 1, self._step])
        if self._totals is None:
            rows = self._epoch_rows(self._step * self._batch)
        else:
            rows = np.searchsorted(self._totals, rng.random(self._batch), side="right")
            rows = np.minimum(rows, len(self._totals) - 1)
        bounds = np.full(self._batch, self._radii) if np.isscalar(self._radii) else self._radii(rng, self._batch)
        self._step += 1
        rows = rows[self._mine].astype(np.int64)
        return RowPairs(rows, unit(self._embeddings[rows]), np.asarray(bounds, np.float32)[self._mine])

    def _epoch_rows(self, start: int) -> NDArray[np.int64]:
        n = len(self._embeddings)
        epochs = range(start // n, (start + self._batch - 1) // n + 1)
        kept = {e: self._orders[e] for e in epochs if e in self._orders}
        self._orders = {e: kept[e] if e in kept else self._order(e) for e in epochs}
        joined = np.concatenate([self._orders[e] for e in epochs])
        return joined[start - epochs[0] * n :][: self._batch]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, 0, epoch]).permutation(len(self._embeddings))

    def state_dict(self) -> dict[str, Any]:
        """The number of batches given."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after ``state["step"]`` batches."""
        self._step = int(state["step"])


class WrittenPairs:
    """Pairs from the Parquet files of ``captree.write_pairs``, in their order, over and over; they are random already.

    Args:
        folder: the folder of files; columns row, center and max_cos_distance are read.
        batch_size: pairs of a global batch; each rank takes its share, so the batches do not depend on the ranks.
        rank, world: which share.

    Raises:
        DataError: no such files, other columns, or empty caps.
    """

    def __init__(self, folder: str | Path, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self._files = sorted(Path(folder).glob("*.parquet"))
        if not self._files:
            raise DataError(f"no Parquet files in {folder}")
        self._batch, self._mine, self._step = batch_size, share(batch_size, rank, world), 0
        try:
            self._ends = np.cumsum([pq.ParquetFile(file).metadata.num_rows for file in self._files])
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} holds a file that is no Parquet: {error}") from error
        if self._ends[-1] == 0:
            raise DataError(f"{folder} holds no pairs")
        self._held: tuple[int, RowPairs] | None = None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __next__(self) -> RowPairs:
        mine = range(self._batch)[self._mine]
        place = (self._step * self._batch + np.array(mine, np.int64)) % len(self)
        self._step += 1
        files = np.searchsorted(self._ends, place, side="right")
        parts = []
        # In the order of the places: a batch may run over the end of a file, or of all.
        for start, stop in runs(files):
            held = self._file(int(files[start]))
            inside = place[start:stop] - (self._ends[files[start]] - len(held.rows))
            parts.append((held.rows[inside], held.centers[inside], held.max_cos_distance[inside]))
        rows, centers, bounds = (np.concatenate(column) for column in zip(*parts, strict=True))
        return RowPairs(rows, centers, bounds)

    def _file(self, number: int) -> RowPairs:
        if self._held is None or self._held[0] != number:
            file = self._files[number]
            try:
                table = pq.read_table(file, columns=["row", "center", "max_cos_distance"])
                centers = table["center"].combine_chunks()
                made = RowPairs(
                    table["row"].to_numpy(),
                    centers.flatten().to_numpy().reshape(len(table), -1),
                    table["max_cos_distance"].to_numpy().astype(np.float32),
                )
            except (OSError, ValueError, KeyError) as error:
                raise DataError(f"{file} holds no pairs: {error}") from error
            empty = int((made.rows < 0).sum())
            if empty:
                raise DataError(
                    f'{file}: expected a row in every cap, as empty="redraw" writes them, got {empty} without'
                )
            self._held = (number, made)
        return self._held[1]

    def state_dict(self) -> dict[str, Any]:
        """The number of batches given."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after ``state["step"]`` batches."""
        self._step = int(state["step"])


class Portions:
    """A stream's large batches in smaller portions: captree draws a few thousand pairs at once far cheaper than a few.

    Args:
        stream: a :class:`captree.PairStream` whose batch size is a multiple of `size`.
        size: pairs of a portion.
    """

    def __init__(self, stream: Any, size: int) -> None:
        if stream.batch_size % size:
            raise ConfigError(f"expected a stream whose batches are a multiple of {size}, got {stream.batch_size}")
        self._stream, self._size, self._count = stream, size, stream.batch_size // size
        # The state before the batch that portions are taken from now, and how many of them are gone.
        self._before, self._given = stream.state_dict(), 0
        self._now: Pairs | None = None

    def __next__(self) -> RowPairs:
        if self._now is None or self._given == self._count:
            self._before, self._given = self._stream.state_dict(), 0
            self._now = next(self._stream)
        part = slice(self._given * self._size, (self._given + 1) * self._size)
        self._given += 1
        return RowPairs(self._now.rows[part], self._now.centers[part], self._now.max_cos_distance[part])

    def state_dict(self) -> dict[str, Any]:
        """The stream's state before the batch in hand, and the portions taken from it."""
        return {"stream": self._before, "given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state`; draws the batch that was in hand again."""
        self._stream.load_state_dict(state["stream"])
        self._before, self._given, self._now = state["stream"], int(state["given"]), None
        if self._given:
            self._now = next(self._stream)

    def close(self) -> None:
        """Stops the stream's thread."""
        self._stream.close()


class Batches:
    """Endless training batches from a source and the shards' arrays.

    Args:
        source: gives the pairs.
        tokens: integer (n, length) of all rows.
        embeddings: (n, d) of all rows; read for the kinds that need the row's distance from the center.
        kind: the model's condition kind.
        seed: of the ranges' lower ends.
        rows: maps the source's row numbers to rows of `tokens`; None where they are the same.
        hidden: bool (n,), rows whose weight is 0.
    """

    def __init__(
        self,
        source: Source,
        tokens: NDArray[Any],
        embeddings: NDArray[Any],
        kind: str = "cap",
        seed: int = 0,
        rows: NDArray[np.int64] | None = None,
        hidden: NDArray[np.bool_] | None = None,
    ) -> None:
        self.source, self._tokens, self._embeddings, self._kind = source, tokens, embeddings, kind
        self._seed, self._rows, self._hidden, self._count = seed, rows, hidden, 0

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        pairs = next(self.source)
        rows = pairs.rows if self._rows is None else self._rows[pairs.rows]
        self._count += 1
        tokens = torch.from_numpy(self._tokens[rows].astype(np.int64))
        center, high = torch.from_numpy(pairs.centers), torch.from_numpy(pairs.max_cos_distance)
        low = torch.zeros_like(high)
        if self._kind in ("distance", "range"):
            own = torch.from_numpy(unit(self._embeddings[rows]))
            apart = (1 - (own * center).sum(1)).clamp(0, 2)
            if self._kind == "distance":
                low = high = apart
            else:
                rng = np.random.default_rng([self._seed, 2, self._count])
                low = apart * torch.from_numpy(rng.random(len(rows), dtype=np.float32))
                high = torch.maximum(high, apart)
        weight = None if self._hidden is None else torch.from_numpy((~self._hidden[rows]).astype(np.float32))
        return Batch(tokens, Condition(center, high, low), weight)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands; plain values."""
        return {"count": self._count, "source": self.source.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state`."""
        self._count = int(state["count"])
        self.source.load_state_dict(state["source"])


def parse_radii(text: str, prior: str | None = None) -> Any:
    """The prior of bounds that `text` names.

    ``mixture`` (95% U[0, 1], 5% U[1, 2]), ``fixed:R``, ``uniform:LOW:HIGH``, ``loguniform:LOW:HIGH``, or
    ``mass:LOW:HIGH`` (the radius that holds a share of the rows, log-uniform between the two).

    Args:
        text: the name.
        prior: the prior of centers that it goes with, if known: "own" and "uniform" take no mass, since they need
            the bound before there is a center to hold rows around.

    Raises:
        ConfigError: none of these, or a mass for such a prior.
    """
    name, *given = text.split(":")
    if name == "mass" and prior in ("own", "uniform"):
        raise ConfigError(f"radii: the prior {prior!r} takes no mass; use fixed:R, uniform, loguniform or mixture")
    try:
        numbers = [float(number) for number in given]
        match name, numbers:
            case "mixture", []:
                return captree.DEFAULT_RADII
            case "fixed", [radius]:
                return captree.FixedRadius(radius)
            case "uniform", [low, high]:
                return captree.RadiusMixture(((1.0, low, high),))
            case "loguniform", [low, high]:
                return captree.LogUniformRadius(low, high)
            case "mass", [low, high]:
                return captree.ByMass(low, high)
    except ValueError as error:
        raise ConfigError(f"radii: {error}") from error
    known = "mixture, fixed:R, uniform:LOW:HIGH, loguniform:LOW:HIGH or mass:LOW:HIGH"
    raise ConfigError(f"radii: expected {known}, got {text!r}")


def center_prior(
    prior: str,
    noise: float = 0.5,
    shift: str | Path | None = None,
    shift_scale: float = 1.0,
    centers: str | Path | None = None,
) -> Any:
    """The captree prior of centers that `prior` names, one of :data:`PRIORS` but "own".

    Args:
        prior: the name.
        noise: length of the noise of ``slerp-noise`` and ``gap-shift``.
        shift: .npy of the vector (d,) that ``gap-shift`` adds, times `shift_scale`.
        shift_scale: see `shift`.
        centers: .npy of the unit vectors (m, d) that ``given`` draws from.

    Raises:
        ConfigError: an unknown name, or a file that it needs and that is not given.
    """
    match prior:
        case "slerp":
            return captree.Slerp()
        case "slerp-noise":
            return captree.SlerpNoise(noise)
        case "uniform":
            return captree.UniformInCap()
        case "gap-shift":
            return captree.Shifted(captree.SlerpNoise(noise), _array("shift", shift), shift_scale)
        case "given":
            return captree.GivenCenters(_array("centers", centers))
    raise ConfigError(f"prior: expected one of {PRIORS}, got {prior!r}")


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Float32 unit rows (n, d) of embeddings that were stored in half precision."""
    wide = np.asarray(rows, dtype=np.float32)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True), dtype=np.float32)


def share(batch_size: int, rank: int, world: int) -> slice:
    """The part of a global batch that belongs to `rank`."""
    if batch_size % world:
        raise ConfigError(f"batch_size: expected a multiple of the {world} processes, got {batch_size}")
    size = batch_size // world
    return slice(rank * size, (rank + 1) * size)


def runs(values: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(start, stop) of the stretches of equal values."""
    cuts = np.flatnonzero(np.diff(values)) + 1
    return list(zip([0, *cuts.tolist()], [*cuts.tolist(), len(values)], strict=True))


def _array(name: str, path: str | Path | None) -> NDArray[np.float32]:
    if path is None:
        raise ConfigError(f"{name}: this prior needs a .npy file, got none")
    try:
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: cannot read {path}: {error}") from error
