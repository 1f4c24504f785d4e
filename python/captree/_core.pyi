"""The Rust core. Private: use the names of :mod:`captree`."""

from collections.abc import Callable
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__version__: str

# (phase, units done, units in all); called about ten times a second from the calling thread.
_Progress = Callable[[str, int, int], object]

def draw_keys(centers: NDArray[np.float32], bounds: NDArray[np.float64], seed: int) -> NDArray[np.uint64]: ...

@final
class Tree:
    @staticmethod
    def open(path: str) -> Tree: ...
    @property
    def n(self) -> int: ...
    @staticmethod
    def open_version(path: str, version: int) -> Tree: ...
    def delete(self, rows: NDArray[np.int64]) -> int: ...
    def compact(
        self, memory_limit: int | None = None, threads: int | None = None, progress: _Progress | None = None
    ) -> None: ...
    def vacuum(self) -> int: ...
    @property
    def version(self) -> int | None: ...
    @property
    def alive(self) -> int: ...
    def skipped(self) -> NDArray[np.int64]: ...
    def deleted(self) -> NDArray[np.int64]: ...
    @property
    def dim(self) -> int: ...
    @property
    def storage(self) -> str: ...
    @property
    def path(self) -> str | None: ...
    def count(
        self,
        centers: NDArray[np.float32],
        bounds: NDArray[np.float64],
        at_least: int | None = None,
        threads: int | None = None,
    ) -> NDArray[np.int64]: ...
    def ablate(
        self,
        centers: NDArray[np.float32],
        bounds: NDArray[np.float64],
        steps: list[str],
        threads: int | None = None,
    ) -> tuple[NDArray[np.int64], dict[str, int]]: ...
    def search(
        self,
        centers: NDArray[np.float32],
        bounds: NDArray[np.float64],
        sort: bool = False,
        limit: int | None = None,
        distances: str | None = None,
        threads: int | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64] | NDArray[np.float32] | None]: ...
    def nearest(
        self, queries: NDArray[np.float32], k: int, threads: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]: ...
    def radius_for_count(
        self, centers: NDArray[np.float32], counts: NDArray[np.int64], threads: int | None = None
    ) -> NDArray[np.float64]: ...
    def sample(
        self,
        centers: NDArray[np.float32],
        bounds: NDArray[np.float64],
        k: int,
        replace: bool,
        seed: int,
        threads: int | None = None,
        tries: int | None = None,
    ) -> NDArray[np.int64]: ...
    def sample_approximate(
        self,
        centers: NDArray[np.float32],
        bounds: NDArray[np.float64],
        k: int,
        replace: bool,
        density_samples: int,
        seed: int,
        threads: int | None = None,
    ) -> NDArray[np.int64]: ...
    def estimate(
        self,
        centers: NDArray[np.float32],
        bounds: NDArray[np.float64],
        samples: int,
        confidence: float,
        seed: int,
        threads: int | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]: ...
    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]: ...
    def nodes(self) -> dict[str, NDArray[Any]]: ...
    def node_rows(self, node: int) -> NDArray[np.int64]: ...
    def stats(self) -> dict[str, Any]: ...
    def verify(self, threads: int | None = None, progress: _Progress | None = None) -> None: ...
    def save(self, path: str, progress: _Progress | None = None) -> None: ...

def limits() -> dict[str, Any]: ...

@final
class Builder:
    def __new__(
        cls,
        storage: str = "float16",
        normalize: bool = False,
        skip: bool = False,
        out: str | None = None,
        fanout: int = 64,
        leaf_size: int | None = None,
        seed: int = 0,
        memory_limit: int | None = None,
        threads: int | None = None,
    ) -> Builder: ...
    @staticmethod
    def appending(
        tree: Tree,
        normalize: bool = False,
        skip: bool = False,
        memory_limit: int | None = None,
        threads: int | None = None,
    ) -> Builder: ...
    @property
    def rows_before(self) -> int: ...
    def push(self, batch: NDArray[Any], bfloat16: bool = False, progress: _Progress | None = None) -> None: ...
    def close(self) -> None: ...
    def finish(self, progress: _Progress | None = None) -> Tree: ...
    def append(self, progress: _Progress | None = None) -> tuple[int, int]: ...
