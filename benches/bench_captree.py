"""The Python API on every workload (`make bench`); each answer is checked before it is timed.

`make test` runs this file with CAPTREE_BENCH=quick on small data and without timing.
"""

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import captree
from benches.workloads import DATA, NEAREST_QUERIES, checksum

SIZE = os.environ.get("CAPTREE_BENCH", "full")
PREPARED = DATA / f"{SIZE}.json"
HINT = f"run `python -m benches.prepare{' --quick' if SIZE == 'quick' else ''}` first (`make bench` does)"

Answer = dict[str, int]


def listed() -> list[dict[str, Any]]:
    if not PREPARED.exists():
        raise FileNotFoundError(f"{PREPARED.name} is not in target/bench-data: {HINT}")
    lines: list[dict[str, Any]] = json.loads(PREPARED.read_text())
    return lines


@cache
def tree_at(path: Path) -> captree.Tree:
    return captree.open(path)


def counted(counts: Any) -> Answer:
    return {"total": int(counts.sum()), "checksum": checksum(counts)}


def found(result: captree.RangeResult[Any]) -> Answer:
    rows = np.concatenate([np.sort(rows) for rows, _ in result])
    return {"total": len(rows), "checksum": checksum(rows)}


def one_by_one(tree: captree.Tree, caps: captree.Caps) -> Any:
    return np.concatenate([tree.count(caps[i : i + 1]) for i in range(len(caps))])


def drawn(tree: captree.Tree, caps: captree.Caps, rows: Any) -> Answer:
    """Draws differ from version to version, but all are inside, and only empty caps give none."""
    cap, column = np.nonzero(rows >= 0)
    kept = tree.take(rows[cap, column]).astype(np.float64)
    distance = 1.0 - np.einsum("ij,ij->i", kept, caps.centers[cap].astype(np.float64))
    assert (distance <= caps.max_cos_distance[cap] + 1e-12).all()
    return {"empty": int((rows < 0).sum())}


def calls(
    line: dict[str, Any], tree: captree.Tree, caps: captree.Caps
) -> tuple[Callable[[], Any], Callable[[Any], Answer]]:
    """What is timed, and how its result becomes an answer to compare."""
    k = line["k"]
    known: dict[str, tuple[Callable[[], Any], Callable[[Any], Answer]]] = {
        "count": (lambda: tree.count(caps), counted),
        "count_one_by_one": (lambda: one_by_one(tree, caps), counted),
        "search": (lambda: tree.search(caps), found),
        "nearest": (lambda: tree.nearest(caps.centers[:NEAREST_QUERIES], k).rows, lambda r: {"checksum": checksum(r)}),
        "sample": (lambda: tree.sample(caps, k=k, seed=1), lambda r: drawn(tree, caps, r)),
        "sample_approximate": (
            lambda: tree.sample(caps, k=k, method="approximate", seed=1),
            lambda r: drawn(tree, caps, r),
        ),
    }
    return known[line["operation"]]


@pytest.mark.parametrize("line", listed(), ids=lambda line: line["name"])
def bench_workload(line: dict[str, Any], benchmark: BenchmarkFixture) -> None:
    tree = tree_at(DATA / line["tree"])
    caps = captree.Caps(np.load(DATA / line["centers"]), np.load(DATA / line["bounds"]))
    call, answer = calls(line, tree, caps)
    assert answer(call()) == line["expected"]
    benchmark.extra_info["caps"] = line["caps"]
    benchmark(call)


@pytest.mark.parametrize("path", sorted({line["tree"] for line in listed()}))
def bench_open(path: str, benchmark: BenchmarkFixture) -> None:
    rows = len(tree_at(DATA / path))
    assert len(benchmark(captree.open, DATA / path)) == rows


@pytest.mark.parametrize("path", sorted({line["tree"] for line in listed()}))
def bench_build(path: str, benchmark: BenchmarkFixture) -> None:
    with np.load((DATA / path).parent / "arrays.npz") as arrays:
        vectors = arrays["vectors"]
    tree = benchmark.pedantic(captree.build, args=(vectors,), rounds=1)  # type: ignore[no-untyped-call]
    assert len(tree) == len(vectors)
    tree.verify()
