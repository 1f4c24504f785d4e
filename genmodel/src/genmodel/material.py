"""What a run trains on, from its settings: the shards' arrays, the tree, the stream of caps, the rows held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import captree
import numpy as np
from numpy.typing import NDArray

from genmodel.data import Batch, Batches, OwnEmbeddings, Portions, WrittenPairs, center_prior, parse_radii, unit
from genmodel.distributed import World
from genmodel.errors import ConfigError

if TYPE_CHECKING:
    from genmodel.shards import Shards
    from genmodel.train import TrainConfig

_PAIRS_AT_ONCE = 2048
"""Pairs the stream draws at a time, or a batch if that is more."""
_FEWEST_TO_HOLD_OUT = 64
_SPLIT, _HELD_OUT = 0x5917, 0x4E1D


@dataclass
class Material:
    """Batches to train on, and a fixed one to measure on.

    Attributes:
        batches: endless training batches of this process.
        heldout: a fixed batch of rows that are never trained on; None where there are too few rows.
        heldout_rows: int64, these rows.
        meta: the shards' metadata.
    """

    batches: Batches
    heldout: Batch | None
    heldout_rows: NDArray[np.int64]
    meta: dict[str, Any]

    def close(self) -> None:
        """Stops the stream's thread."""
        if isinstance(self.batches.source, Portions):
            self.batches.source.close()


def split_rows(n: int, heldout: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and rows held out, both int64 ascending; at most a tenth is held out, none of very few rows."""
    count = min(heldout, n // 10) if n >= _FEWEST_TO_HOLD_OUT else 0
    order = np.random.default_rng([seed, _SPLIT]).permutation(n)
    return np.sort(order[count:]), np.sort(order[:count])


def prepare(config: TrainConfig, shards: Shards, world: World) -> Material:
    """Opens what `config` names.

    Raises:
        ConfigError: settings that contradict each other or the shards.
    """
    _check(config, world)
    n, meta = len(shards.tokens), dict(shards.meta)
    train_rows, held_rows = split_rows(n, config.heldout, config.seed)
    tokens, embeddings = shards.tokens, shards.embeddings
    tree, rows = None, None
    if config.prior != "own" and config.pairs is None:
        if config.tree is None:
            # Without the rows held out, so no cap and no draw knows of them.
            tree, rows = captree.build(unit(embeddings[train_rows]), threads=config.threads), train_rows
        else:
            tree = _opened(config.tree, embeddings)
    local = config.batch_size // world.size
    source: Any
    if config.pairs is not None:
        source = WrittenPairs(config.pairs, config.batch_size, world.rank, world.size)
    elif tree is not None:
        source = Portions(_stream(config, tree, local, config.seed, world.rank, world.size), local)
    else:
        rows = train_rows
        source = _own(config, embeddings[train_rows], config.batch_size, config.seed, world)
    hidden = None
    if rows is None and len(held_rows):
        hidden = np.zeros(n, np.bool_)
        hidden[held_rows] = True
    batches = Batches(source, tokens, embeddings, config.condition, config.seed, rows, hidden)
    heldout = _fixed_batch(config, tokens, embeddings, held_rows) if len(held_rows) else None
    return Material(batches, heldout, held_rows, meta)


def _stream(
    config: TrainConfig, tree: captree.Tree, size: int, seed: int, rank: int = 0, world: int = 1
) -> captree.PairStream:
    weights = None
    if config.balance_exponent > 0:
        weights = captree.balancing_weights(tree, config.balance_max_cos_distance, config.balance_exponent)
    return captree.PairStream(
        tree,
        batch_size=size * max(1, _PAIRS_AT_ONCE // size),
        seed=seed,
        centers=center_prior(config.prior, config.noise, config.shift, config.shift_scale, config.centers),
        radii=parse_radii(config.radii, config.prior),
        weights=weights,
        rank=rank,
        world=world,
        threads=config.threads,
    )


def _own(config: TrainConfig, embeddings: NDArray[Any], size: int, seed: int, world: World | None) -> OwnEmbeddings:
    weights = None
    if config.balance_exponent > 0:
        tree = captree.build(unit(embeddings), threads=config.threads)
        weights = captree.balancing_weights(tree, config.balance_max_cos_distance, config.balance_exponent)
    radii = 0.0 if config.condition == "embedding" else parse_radii(config.radii, "own")
    rank, count = (world.rank, world.size) if world is not None else (0, 1)
    return OwnEmbeddings(embeddings, size, seed, radii, weights, rank, count)


def _fixed_batch(
    config: TrainConfig, tokens: NDArray[Any], embeddings: NDArray[Any], held_rows: NDArray[np.int64]
) -> Batch:
    """Pairs as in training, drawn among the rows held out alone."""
    own = embeddings[held_rows]
    source: Any
    if config.prior == "own" or config.condition == "embedding":
        source = _own(config, own, len(own), _HELD_OUT, None)
    else:
        # Written pairs do not say which prior they came from; the settings do, and fit by default.
        source = _stream(config, captree.build(unit(own), threads=config.threads), len(own), _HELD_OUT)
    batch = next(Batches(source, tokens[held_rows], own, config.condition, _HELD_OUT))
    if isinstance(source, captree.PairStream):
        source.close()
    return Batch(batch.tokens[: len(own)], batch.condition[: len(own)])


def _opened(path: str, embeddings: NDArray[Any]) -> captree.Tree:
    tree = captree.open(path)
    n, dim = embeddings.shape
    if len(tree) != n or tree.dim != dim:
        raise ConfigError(
            f"tree: expected one of the shards' {n} rows of dimension {dim}, got {len(tree)} of {tree.dim}"
        )
    some = np.linspace(0, n - 1, min(n, 64)).astype(np.int64)
    apart = np.abs(tree.take(some).astype(np.float32) - unit(embeddings[some])).max()
    if apart > 4e-3:
        raise ConfigError(
            f"tree: expected the shards' embeddings in their order, got others (they differ by {apart:.2g})"
        )
    return tree


def _check(config: TrainConfig, world: World) -> None:
    if config.batch_size % world.size:
        raise ConfigError(f"batch_size: expected a multiple of the {world.size} processes, got {config.batch_size}")
    if config.condition == "embedding" and (config.prior != "own" or config.pairs is not None):
        raise ConfigError("condition 'embedding' is the image's own: expected prior 'own' and no pairs")
    if config.condition in ("distance", "range") and config.prior == "own":
        raise ConfigError(f"condition {config.condition!r} needs centers apart from the rows, got prior 'own'")
    if config.pairs is not None and config.balance_exponent > 0:
        raise ConfigError("balance_exponent: written pairs cannot be balanced; draw them online")
