"""What each step of a scan contributes: `python -m benches.ablation --rows 100000 --data steep`.

Training caps are counted with some steps of the scan only; the answers must not change. Beside each choice of steps
stand the share of (cap, row) pairs that reach the stored vectors and the CPU time of one thread, relative to the whole
scan.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import captree
from benches.compare import data, machine, report

RECORDS = Path(__file__).parent / "record"
NARROW = 0.001
"""Caps that hold less than this share of the rows are narrow."""

STEPS = ["nodes", "tiles", "first", "second", "third", "fourth"]
EVERYTHING = "everything"
CONFIGURATIONS = {
    "caps only": ["nodes"],
    "caps, tiles": ["nodes", "tiles"],
    "caps, first level": ["nodes", "first"],
    "caps, first and second": ["nodes", "first", "second"],
    "caps, first to third": ["nodes", "first", "second", "third"],
    "caps, all levels": ["nodes", "first", "second", "third", "fourth"],
    EVERYTHING: STEPS,
    "all but caps": [step for step in STEPS if step != "nodes"],
    "all but the first level": [step for step in STEPS if step != "first"],
    "all but the fourth level": [step for step in STEPS if step != "fourth"],
}
"""Steps that are on."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches.ablation", description=__doc__)
    parser.add_argument("--rows", type=int, default=30_000, help="vectors (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=768, help="dimensions of made data (default: %(default)s)")
    parser.add_argument("--data", choices=[*data.SPECTRA, "wordnet"], default="steep", help="default: %(default)s")
    parser.add_argument("--caps", type=int, default=256, help="training caps (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=5, help="rounds, of which the median counts (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RECORDS, help="folder of the record (default: benches/record)")
    return parser.parse_args()


def cpu_seconds(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    answer = call()
    return answer, time.process_time() - start


def measure(tree: captree.Tree, caps: captree.Caps, truth: NDArray[np.int64], repeats: int) -> dict[str, Any]:
    """Pairs by what decided them and CPU time, for every choice of steps and for the count that users call."""
    seconds: dict[str, list[float]] = {name: [] for name in [*CONFIGURATIONS, "count"]}
    decided = {}
    # Rounds of all of them, each compared within its round: what else the machine does meets all of them alike.
    for _ in range(repeats):
        for name, steps in CONFIGURATIONS.items():
            ask = partial(tree._core.ablate, caps.centers, caps.max_cos_distance, steps, 1)
            (counts, decided[name]), took = cpu_seconds(ask)
            seconds[name].append(took)
            if not np.array_equal(counts, truth):
                raise AssertionError(f"counts with {name!r} are not the true ones")
        counts, took = cpu_seconds(lambda: tree.count(caps, threads=1))
        seconds["count"].append(took)
    relative = {
        name: statistics.median(took / whole for took, whole in zip(runs, seconds[EVERYTHING], strict=True))
        for name, runs in seconds.items()
    }
    pairs = len(caps) * len(tree)
    return {
        "caps": len(caps),
        "decided": {name: {step: n / pairs for step, n in by.items()} for name, by in decided.items()},
        "relative": relative,
        "nanoseconds": {name: statistics.median(runs) / pairs * 1e9 for name, runs in seconds.items()},
        "open_at_leaves": open_at_leaves(tree, caps),
    }


def open_at_leaves(tree: captree.Tree, caps: captree.Caps) -> float:
    """Share of pairs that the caps of all nodes, down to the leaves, leave open; a scan asks only large subtrees."""
    nodes = tree._core.nodes()
    between = np.arccos(np.clip(nodes["center"].astype(np.float64) @ caps.centers.T.astype(np.float64), -1, 1))
    reach = np.arccos(1 - nodes["max_cos_distance"])[:, None]
    bounds = np.arccos(1 - caps.max_cos_distance)
    is_open = (between - reach <= bounds) & (between + reach > bounds)
    for depth in range(1, int(nodes["depth"].max()) + 1):
        here = nodes["depth"] == depth
        is_open[here] &= is_open[nodes["parent"][here]]
    leaves = nodes["children"] == 0
    return float(nodes["rows"][leaves] @ is_open[leaves].mean(axis=1) / len(tree))


def percent(share: float) -> str:
    """Two significant digits, of large shares none behind the point."""
    return "0" if share == 0 else f"{100 * share:.2g}%" if share < 0.1 else f"{100 * share:.0f}%"


def reached(group: dict[str, Any], name: str) -> float:
    return float(group["decided"][name]["float32"] + group["decided"][name]["exact"])


def markdown(record: dict[str, Any]) -> str:
    """The table, what each step decides of the pairs that it is asked, and where it was measured."""
    groups: dict[str, dict[str, Any]] = record["groups"]
    lines = []
    for name in CONFIGURATIONS:
        times = [group["relative"][name] for group in groups.values()]
        shares = [percent(reached(group, name)) for group in groups.values()]
        lines.append([name, *(cell for pair in zip(shares, map("{:.2f}".format, times), strict=True) for cell in pair)])
    header = ["steps", *(cell for name in groups for cell in (f"{name}: to stored rows", "CPU time"))]
    by_step = [
        [step, *(percent(group["decided"][EVERYTHING][step]) for group in groups.values())]
        for step in [*STEPS, "float32", "exact"]
    ]
    described = ", ".join(f"{group['caps']} {name}" for name, group in groups.items())
    leaves = ", ".join(f"{percent(group['open_at_leaves'])} of {name} caps" for name, group in groups.items())
    counted = ", ".join(f"{group['relative']['count']:.2f} for {name} caps" for name, group in groups.items())
    return (
        "\n\n".join(
            [
                f"# Ablation: {record['rows']:,} x {record['dim']}, {record['data']}, one thread",
                report.origin(record),
                f"{described} training caps (narrow: less than {100 * NARROW:g}% of the rows); counts equal and true "
                f"everywhere. CPU time per pair relative to everything in the same round, median of "
                f"{record['repeats']} rounds.",
                report.table(header, lines),
                f"`Tree.count`, which tallies nothing, took {counted}. Pairs that the caps of all nodes down to the "
                f"leaves would leave open: {leaves}.",
                "## What decides the pairs",
                report.table(["everything on", *groups], by_step),
            ]
        )
        + "\n"
    )


def main() -> None:
    args = parse()
    origin = machine.origin("benches.ablation")
    with tempfile.TemporaryDirectory(prefix="captree-ablation-") as temporary:
        threads = os.cpu_count() or 1
        problem = data.make(Path(temporary), args.data, args.rows, args.dim, args.caps, threads, args.seed)
        tree = captree.build(problem.vectors, storage="float16", seed=args.seed)
        is_narrow = problem.counts < NARROW * len(tree)
        groups = {}
        for name, chosen in (("narrow", is_narrow), ("wide", ~is_narrow)):
            caps = captree.Caps(problem.centers[chosen], problem.bounds[chosen])
            if len(caps):
                groups[name] = measure(tree, caps, problem.counts[chosen], args.repeats)
    record = {
        **origin,
        "data": args.data,
        "rows": len(tree),
        "dim": tree.dim,
        "seed": args.seed,
        "repeats": args.repeats,
        "groups": groups,
    }
    text = markdown(record)
    name = f"{origin['date']}-ablation-{args.data}-{len(tree)}"
    report.save(record, text, args.out, name)
    print(f"{text}\nwritten: {args.out / name}.json and .md")


if __name__ == "__main__":
    main()
