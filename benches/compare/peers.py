"""What a peer is, and the list of them."""

import importlib
import importlib.util
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bounds = NDArray[np.float64]
Rows = NDArray[np.int64]

OPERATIONS = ("count", "count one by one", "count ten by ten", "search", "sample k=1", "sample k=100", "nearest k=10")


class Unsupported(Exception):
    """The peer has no such operation, or not on this machine; the message says why."""


class Peer(ABC):
    """One way to answer. Methods take batches of caps; a peer overrides those it can do well."""

    name: ClassVar[str]
    module: ClassVar[str]
    install: ClassVar[str]
    note: ClassVar[str] = ""
    """What a reader of the table should know: settings, threads, accuracy."""
    slow: ClassVar[bool] = False
    """Looks at each cap alone and at most rows: measured on fewer caps."""

    sampler: ClassVar[bool] = False
    """Has a way of its own to draw; the others draw evenly from all rows they find."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @classmethod
    def missing(cls) -> str | None:
        """The line to print when the peer is not installed."""
        if importlib.util.find_spec(cls.module) is None:
            return f"{cls.name}: not installed: pip install {cls.install}"
        return None

    def setup(self) -> None:
        """Imports the library and sets its number of threads; what this takes is not the index's."""
        importlib.import_module(self.module)

    @abstractmethod
    def build(self, vectors: Path) -> None:
        """Reads float32 vectors from a .npy file and makes the index."""

    def count(self, centers: Floats, bounds: Bounds) -> Rows:
        raise Unsupported("no range count")

    def search(self, centers: Floats, bounds: Bounds) -> list[Rows]:
        raise Unsupported("no range search")

    def sample(self, centers: Floats, bounds: Bounds, k: int, seed: int) -> Rows:
        raise Unsupported("no range sampling")

    def nearest(self, queries: Floats, k: int) -> Rows:
        raise Unsupported("no nearest rows")


def draw_from(found: list[Rows], k: int, seed: int) -> Rows:
    """(q, k) independent uniform draws from lists of rows; -1 where a list is empty."""
    rng = np.random.default_rng(seed)
    out = np.full((len(found), k), -1, dtype=np.int64)
    for i, rows in enumerate(found):
        if len(rows):
            out[i] = rows[rng.integers(len(rows), size=k)]
    return out


def load(vectors: Path) -> Any:
    """The vectors in this process's own memory."""
    return np.load(vectors)


def registry() -> dict[str, type[Peer]]:
    """Every peer by its name on the command line, captree first."""
    from benches.compare import peers_captree, peers_indexes, peers_products

    listed: list[type[Peer]] = [
        peers_captree.Exact,
        peers_captree.Approximate,
        peers_products.NumpyProduct,
        peers_products.TorchProduct,
        peers_products.NumpyInt8,
        peers_products.TorchInt8,
        peers_products.TorchBfloat16,
        peers_products.NumKongInt8,
        peers_products.PermutedScan,
        peers_indexes.FaissFlat,
        peers_indexes.FaissPanorama,
        peers_indexes.FaissIvfAll,
        peers_indexes.FaissIvfTenth,
        peers_indexes.FaissHnsw,
        peers_indexes.SklearnBallTree,
        peers_indexes.ScipyKdTree,
        peers_indexes.Usearch,
    ]
    return {peer.name: peer for peer in listed}
