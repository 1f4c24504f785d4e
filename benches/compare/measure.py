"""Times one peer on one problem, one run at a time, and has `quality` judge what it answers."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benches.compare import quality
from benches.compare.data import JUDGED_PER_GROUP, NEAREST_K, Group, Problem
from benches.compare.peers import Peer, Rows

WIDE = 0.1
"""Caps above this selectivity return most of the rows: searched and sampled in batches of WIDE_BATCH."""
WIDE_BATCH = 16
SLOW_BATCH = 8

LEAST_SECONDS = 0.5
"""A run is as many calls as this takes: short calls would feel the caches as the peer before left them."""


def memory() -> int:
    """Bytes of this process's own (not mapped) memory; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def build(peer: Peer, problem: Problem) -> dict[str, Any]:
    """Builds the peer's index; what that took."""
    peer.setup()
    before = memory()
    start = time.perf_counter()
    peer.build(problem.vectors_path)
    took = time.perf_counter() - start
    return {"note": peer.note, "build_seconds": took, "memory_bytes": max(0, memory() - before)}


def run(peer: Peer, problem: Problem, operation: str, group: Group, judged: bool) -> dict[str, Any]:
    """One operation on one group: its caps, seconds per call and in all, and if asked, how good the answers are."""
    caps = batch(peer, problem, operation, group)
    centers, bounds = np.ascontiguousarray(problem.centers[caps]), problem.bounds[caps]
    calls: dict[str, Callable[[int], Any]] = {
        "count": lambda seed: peer.count(centers, bounds),
        "count one by one": lambda seed: count_in_parts(peer, centers, bounds, 1),
        "count ten by ten": lambda seed: count_in_parts(peer, centers, bounds, 10),
        "search": lambda seed: peer.search(centers, bounds),
        "sample k=1": lambda seed: peer.sample(centers, bounds, 1, seed=seed),
        "sample k=100": lambda seed: peer.sample(centers, bounds, 100, seed=seed),
        f"nearest k={NEAREST_K}": lambda seed: peer.nearest(centers, NEAREST_K),
    }
    call, seconds, times, first = calls[operation], 0.0, 0, None
    while seconds < LEAST_SECONDS:
        times += 1
        start = time.perf_counter()
        answer = call(times)
        seconds += time.perf_counter() - start
        first = answer if first is None else first
    return {
        "caps": len(caps),
        "seconds": seconds / times,
        "spent": seconds,
        "judged": judge(problem, operation, caps, first) if judged else {},
    }


def batch(peer: Peer, problem: Problem, operation: str, group: Group) -> Rows:
    """The caps of `group` that this peer is timed on."""
    caps = group.caps
    if peer.slow:
        caps = caps[:SLOW_BATCH]
    wide = problem.counts[caps].sum() > WIDE * len(problem.vectors) * len(caps)
    if wide and group.name != "all" and not operation.startswith("count"):
        caps = caps[:WIDE_BATCH]
    return caps


def count_in_parts(peer: Peer, centers: Any, bounds: Any, size: int) -> Rows:
    """The counts of a batch, asked for in calls of a few caps each."""
    starts = range(0, len(centers), size)
    return np.concatenate([peer.count(centers[i : i + size], bounds[i : i + size]) for i in starts])


def judge(problem: Problem, operation: str, caps: Rows, answer: Any) -> dict[str, float]:
    """How the answers compare with the true ones."""
    if operation.startswith("count"):
        return quality.counts(answer, problem.counts[caps])
    if operation == "search":
        few = caps[:JUDGED_PER_GROUP]
        return quality.rows_found(problem, few, answer[: len(few)]) | {
            "wrong_caps": float(np.mean([len(rows) for rows in answer] != problem.counts[caps]))
        }
    if operation.startswith("sample"):
        return quality.drawn(problem, caps, answer)
    few_rows = answer[: len(problem.nearest)]
    return {"recall": quality.nearest_recall(problem.nearest[: len(few_rows)], few_rows)}
