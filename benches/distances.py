"""What the distances of a search cost: `python -m benches.distances`, one thread.

Wide training caps by how many rows they hold: rows alone, float32 and float64 distances, beside numpy's blocked float32
product, which lists rows, and rows with the distances that it has anyway. CPU time of a call, the fastest of some, all
in turns. Rows must be numpy's but for those that its rounding moves across a bound, float32 distances those of float64.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import captree
from benches.compare import machine, report
from captree.testing import FLAT, STEEP, clip_like

RECORDS = Path(__file__).parent / "record"
SEED = 1
BANDS = [(0.001, 0.01), (0.01, 0.1), (0.1, 0.5)]
CAPS = 60
BLOCK = 16_384
KINDS: dict[str, Any] = {"rows": None, "float32": "float32", "float64": "float64"}


def products(vectors: NDArray[np.float32], caps: captree.Caps, distances: bool) -> list[list[Any]]:
    """Per cap and block, the rows inside as float32 sees them, or these and their distances."""
    least = (1.0 - caps.max_cos_distance).astype(np.float32)[:, None]
    found: list[list[Any]] = [[] for _ in range(len(caps))]
    for start in range(0, len(vectors), BLOCK):
        dots = caps.centers @ vectors[start : start + BLOCK].T
        inside = dots >= least
        for i in np.flatnonzero(inside.any(axis=1)).tolist():
            rows = np.flatnonzero(inside[i])
            found[i].append((rows + start, 1 - dots[i][rows]) if distances else rows + start)
    return found


def check(tree: captree.Tree, vectors: NDArray[np.float32], caps: captree.Caps) -> None:
    """Raises if an answer is wrong."""
    exact, single = tree.search(caps), tree.search(caps, distances="float32")
    bare = tree.search(caps, distances=None)
    if not (np.array_equal(exact.rows, single.rows) and np.array_equal(exact.rows, bare.rows)):
        raise AssertionError("rows differ")
    np.testing.assert_allclose(single.distances, exact.distances, rtol=2**-23, atol=1e-12)
    for i, blocks in enumerate(products(vectors, caps, False)):
        other = np.setxor1d(bare[i][0], np.concatenate(blocks))
        far = 1 - vectors[other].astype(np.float64) @ caps.centers[i]
        if not (np.abs(far - caps.max_cos_distance[i]) < 1e-5).all():
            raise AssertionError(f"cap {i}: {other.size} rows differ from numpy's")


def fastest(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    best: dict[str, float] = {}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            best[name] = min(time.process_time() - start, best.get(name, float("inf")))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.distances", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="default: %(default)s")
    parser.add_argument("--dim", type=int, default=768, help="default: %(default)s")
    parser.add_argument("--data", choices=("steep", "flat"), default="steep", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RECORDS, help="folder of the record (default: benches/record)")
    args, origin = parser.parse_args(), machine.origin("benches.distances")
    exponent = {"steep": STEEP, "flat": FLAT}[args.data]
    stored = clip_like(args.rows, args.dim, seed=SEED, exponent=exponent).astype(np.float16)
    tree, vectors = captree.build(stored), stored.astype(np.float32)
    caps = captree.training_caps(tree, 3000, seed=SEED)
    shares = tree.count(caps) / len(tree)
    lines: list[list[str]] = []
    seconds = {}
    for low, high in BANDS:
        some = caps[(shares >= low) & (shares < high)][:CAPS]
        check(tree, vectors, some)
        calls: dict[str, Callable[[], Any]] = {
            "numpy, rows": partial(products, vectors, some, False),
            "numpy, distances": partial(products, vectors, some, True),
        }
        for name, kind in KINDS.items():
            calls[name] = partial(tree.search, some, distances=kind, threads=1)
        best = fastest(calls, args.repeats)
        seconds[f"{low:g}-{high:g}"] = best
        peers = ["numpy, rows" if kind is None else "numpy, distances" for kind in KINDS.values()]
        ratios = [best[peer] / best[name] for peer, name in zip(peers, KINDS, strict=True)]
        each = 1e9 / len(some) / len(tree)
        lines.append(
            [f"{low:.1%} to {high:.0%}", f"{len(some)}", f"{best['numpy, rows'] * each:.1f}"]
            + [f"{best[name] * each:.1f}" for name in KINDS]
            + [f"{ratio:.2f}x" for ratio in ratios]
        )
    record = {**origin, "rows": args.rows, "dim": args.dim, "data": args.data, "repeats": args.repeats}
    header = ["rows inside", "caps", "numpy", *KINDS, *(f"numpy / {name}" for name in KINDS)]
    text = "\n\n".join(
        [
            f"# Distances of a search: {args.rows:,} x {args.dim}, {args.data}, one thread",
            report.origin(record),
            f"Nanoseconds of CPU time per cap and row of the tree, the fastest of {args.repeats} calls in turns.",
            report.table(header, lines),
        ]
    )
    report.save({**record, "seconds": seconds}, text + "\n", args.out, f"{origin['date']}-distances-{args.data}")
    print(text)


if __name__ == "__main__":
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        # Read when numpy is loaded.
        command = [sys.executable, "-m", "benches.distances", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    main()
