"""The list of workloads: which data, which caps, which operation, and the answer that must come out.

A workload's expected answer in `workloads.json` holds for the very data it was computed on. Random numbers are the same
everywhere, but a matrix product inside `clip_like` may round another way on another processor; so the data carry a
digest, and where it differs the answers are computed anew (`prepare`). What `prepare` writes, the Rust benchmarks read.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benches import exact
from captree import testing
from captree.data import wordnet

LIST = Path(__file__).with_name("workloads.json")
DATA = Path(__file__).parents[1] / "target" / "bench-data"
SIZES = ("full", "quick")
NEAREST_QUERIES = 64


@dataclass(frozen=True)
class Workload:
    """One line of the list."""

    name: str
    data: str
    operation: str
    caps: str
    k: int
    expected: dict[str, dict[str, int]]
    """The answer by size."""


KINDS = ("all", "narrow", "small")
"""Of caps: all that were drawn, those that hold less than 0.1% of the rows, those that hold a thousand at most."""


def read() -> tuple[dict[str, Any], list[Workload]]:
    """The whole list as it is, and its workloads."""
    listed = json.loads(LIST.read_text())
    return listed, [Workload(**{"k": 0, "expected": {}} | line) for line in listed["workloads"]]


def folder(data: str, size: str) -> Path:
    return DATA / f"{data}-{size}"


def make_vectors(settings: dict[str, Any], size: str) -> NDArray[np.float16]:
    """(n, d) float16, as they will be stored."""
    rows = settings["rows"][size]
    if settings["source"] == "wordnet":
        return wordnet(rows).vectors.astype(np.float16)
    made = testing.clip_like(rows, settings["dim"], seed=settings["seed"], exponent=settings["exponent"])
    return made.astype(np.float16)


def choose_caps(
    settings: dict[str, Any], size: str, counts: NDArray[np.int64], rows: int
) -> dict[str, NDArray[np.int64]]:
    """Positions of the caps of every kind among the drawn ones."""
    most = settings["most"][size]
    everything = np.arange(len(counts))
    chosen = (everything, everything[counts < 0.001 * rows], everything[counts <= 1000])
    return {kind: caps[:most] for kind, caps in zip(KINDS, chosen, strict=True)}


def digest(*arrays: NDArray[Any]) -> str:
    """Tells whether expected answers belong to these arrays."""
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()[:16]


def checksum(values: NDArray[np.int64]) -> int:
    """Sum of value times place (from 1), modulo 2**64: easy to do the same in Rust."""
    flat = np.ascontiguousarray(values, dtype=np.int64).ravel().view(np.uint64)
    return int((flat * np.arange(1, flat.size + 1, dtype=np.uint64)).sum(dtype=np.uint64))


def answer(
    workload: Workload, vectors: NDArray[Any], centers: NDArray[np.float32], bounds: NDArray[np.float64]
) -> dict[str, int]:
    """The expected answer by exact brute force."""
    if workload.operation in ("count", "count_one_by_one"):
        counts = exact.count(vectors, centers, bounds)
        return {"total": int(counts.sum()), "checksum": checksum(counts)}
    if workload.operation == "search":
        found = np.concatenate(exact.search(vectors, centers, bounds))
        return {"total": len(found), "checksum": checksum(found)}
    if workload.operation == "nearest":
        rows = testing.oracle_nearest(vectors, centers, workload.k).rows
        return {"checksum": checksum(rows)}
    if workload.operation.startswith("sample"):
        return {"empty": int(np.count_nonzero(exact.count(vectors, centers, bounds) == 0)) * workload.k}
    raise ValueError(f"unknown operation {workload.operation!r} of workload {workload.name!r}")
