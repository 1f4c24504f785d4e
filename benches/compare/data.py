"""The vectors, the caps and the true answers that every peer is measured on."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import captree
from benches import exact
from captree import testing
from captree.data import wordnet

SPECTRA = {"steep": testing.STEEP, "flat": testing.FLAT}
"""Exponents of `clip_like`: the first 64 of 768 dims hold about 83% and about 68% of the energy."""

NEAREST_K = 10
JUDGED_PER_GROUP = 16
"""Caps of each group whose rows, not only their number, are compared with the truth."""

CHECKED_PER_GROUP = 16
"""Caps of each group whose counts are compared with exact arithmetic before anything is measured."""


@dataclass(frozen=True)
class Group:
    """Caps that are timed together: all caps as they come, or one decade of selectivity."""

    name: str
    caps: NDArray[np.int64]
    """Positions in the file of caps."""
    share: float
    """The part of all training caps that is like these."""


@dataclass(frozen=True)
class Problem:
    """A folder of .npy files; arrays are mapped when first asked for."""

    folder: Path

    def _load(self, name: str) -> NDArray[Any]:
        array: NDArray[Any] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return array

    @property
    def vectors_path(self) -> Path:
        """float32 (n, d): the stored (float16) values, so that every peer indexes the same vectors."""
        return self.folder / "vectors.npy"

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        return self._load("vectors")

    @cached_property
    def centers(self) -> NDArray[np.float32]:
        return np.array(self._load("centers"))

    @cached_property
    def bounds(self) -> NDArray[np.float64]:
        return np.array(self._load("bounds"))

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """The true number of rows inside every cap."""
        return np.array(self._load("counts"))

    @cached_property
    def nearest(self) -> NDArray[np.int64]:
        """The true nearest rows of the first centers."""
        return np.array(self._load("nearest"))

    def groups(self, most: int) -> list[Group]:
        """All caps, then the caps by decade of selectivity, at most `most` caps in each."""
        n = len(self.vectors)
        selectivity = self.counts / n
        everything = np.arange(len(self.counts))
        groups = [Group("all", everything[:most], 1.0)]
        edges = [0.0]
        edge = 1.0
        while edge > 1.5 / n:
            edges.insert(1, edge)
            edge /= 10
        for low, high in zip([-1.0, *edges[:-1]], edges, strict=True):
            inside = everything[(selectivity > low) & (selectivity <= high)]
            name = "none" if high == 0 else f"<= {100 * high:g}%"
            if len(inside):
                groups.append(Group(name, inside[:most], len(inside) / len(everything)))
        return groups


def make(folder: Path, kind: str, rows: int, dim: int, caps: int, threads: int, seed: int) -> Problem:
    """Makes vectors, caps and answers; answers come from captree and are compared with the oracle on a part."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "wordnet":
        vectors = wordnet(rows).vectors
    else:
        vectors = testing.clip_like(rows, dim, seed=seed, exponent=SPECTRA[kind])
    stored = np.ascontiguousarray(vectors, dtype=np.float16)
    np.save(folder / "vectors.npy", stored.astype(np.float32))

    tree = captree.build(stored, storage="float16", seed=seed, threads=threads)
    drawn = captree.training_caps(tree, caps, seed=seed)
    counts = tree.count(drawn, threads=threads)
    np.save(folder / "centers.npy", drawn.centers)
    np.save(folder / "bounds.npy", drawn.max_cos_distance)
    np.save(folder / "counts.npy", counts)
    queries = drawn.centers[:JUDGED_PER_GROUP]
    nearest, _ = tree.nearest(queries, NEAREST_K, threads=threads)
    np.save(folder / "nearest.npy", nearest)

    problem = Problem(folder)
    check(problem, tree, threads)
    return problem


def check(problem: Problem, tree: captree.Tree, threads: int) -> None:
    """Stops the run if captree does not give the true counts, on some caps of every group."""
    for group in problem.groups(CHECKED_PER_GROUP):
        caps = captree.Caps(problem.centers[group.caps], problem.bounds[group.caps])
        truth = exact.count(problem.vectors, caps.centers, caps.max_cos_distance)
        if not np.array_equal(truth, tree.count(caps, threads=threads)):
            raise AssertionError(f"captree's counts are not the true ones for caps of group {group.name!r}")
