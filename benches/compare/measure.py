"""Times one peer on one problem, group by group, and keeps what it answered for `quality` to judge."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benches.compare import quality
from benches.compare.data import JUDGED_PER_GROUP, NEAREST_K, Group, Problem
from benches.compare.peers import Peer, Rows, Unsupported

WIDE = 0.1
"""Caps above this selectivity return most of the rows: searched and sampled in batches of WIDE_BATCH."""
WIDE_BATCH = 16
SLOW_BATCH = 8


@dataclass(frozen=True)
class Limits:
    """How long to measure."""

    caps: int
    seconds: float
    repeats: int


@dataclass
class Timing:
    """Queries per second in one group, and how the answers compare with the truth."""

    operation: str
    group: str
    share: float
    caps: int
    seconds: float
    per_second: float
    judged: dict[str, float] = field(default_factory=dict)


@dataclass
class Result:
    """All that is known of one peer after its run."""

    peer: str
    note: str
    build_seconds: float
    memory_bytes: int
    timings: list[Timing] = field(default_factory=list)
    samplers: list[dict[str, Any]] = field(default_factory=list)
    unsupported: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def memory() -> int:
    """Bytes of this process's own (not mapped) memory; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def best_time(call: Callable[[], Any], limits: Limits) -> tuple[Any, float]:
    """The answer, and the shortest of a few runs: what the code takes when nothing else disturbs it."""
    best, spent, runs = float("inf"), 0.0, 0
    while True:
        start = time.perf_counter()
        answer = call()
        took = time.perf_counter() - start
        best, spent, runs = min(best, took), spent + took, runs + 1
        if spent >= limits.seconds or runs >= limits.repeats:
            return answer, best


def measure(peer: Peer, problem: Problem, operations: list[str], limits: Limits) -> Result:
    """Builds the peer's index and runs the operations."""
    peer.setup()
    before = memory()
    start = time.perf_counter()
    peer.build(problem.vectors_path)
    took = time.perf_counter() - start
    result = Result(peer.name, peer.note, took, max(0, memory() - before))
    for operation in operations:
        try:
            for group in problem.groups(limits.caps):
                if operation.startswith("nearest") and group.name != "all":
                    continue
                result.timings.append(run(peer, problem, operation, group, limits))
            if operation == "sample k=1":
                result.samplers = quality.samplers(peer, problem)
        except Unsupported as reason:
            result.unsupported[operation] = str(reason)
    return result


def run(peer: Peer, problem: Problem, operation: str, group: Group, limits: Limits) -> Timing:
    """One operation on the caps of one group."""
    caps = batch(peer, problem, operation, group)
    centers, bounds = np.ascontiguousarray(problem.centers[caps]), problem.bounds[caps]
    calls: dict[str, Callable[[], Any]] = {
        "count": lambda: peer.count(centers, bounds),
        "count one by one": lambda: one_at_a_time(peer, centers, bounds),
        "search": lambda: peer.search(centers, bounds),
        "sample k=1": lambda: peer.sample(centers, bounds, 1, seed=1),
        "sample k=100": lambda: peer.sample(centers, bounds, 100, seed=1),
        f"nearest k={NEAREST_K}": lambda: peer.nearest(centers, NEAREST_K),
    }
    answer, seconds = best_time(calls[operation], limits)
    judged = judge(problem, operation, caps, answer)
    return Timing(operation, group.name, group.share, len(caps), seconds, len(caps) / seconds, judged)


def batch(peer: Peer, problem: Problem, operation: str, group: Group) -> Rows:
    """The caps of `group` that this peer is timed on."""
    caps = group.caps
    if peer.slow:
        caps = caps[:SLOW_BATCH]
    wide = problem.counts[caps].sum() > WIDE * len(problem.vectors) * len(caps)
    if wide and group.name != "all" and not operation.startswith("count"):
        caps = caps[:WIDE_BATCH]
    return caps


def one_at_a_time(peer: Peer, centers: Any, bounds: Any) -> Rows:
    return np.concatenate([peer.count(centers[i : i + 1], bounds[i : i + 1]) for i in range(len(centers))])


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
