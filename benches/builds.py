"""Two builds of captree in turns: `python -m benches.builds OTHER_PYTHON`, a Python with the build to compare with.

Each turn is a process that builds a tree of the same vectors in memory and answers the same caps: where its pages come
to lie makes draws up to a third slower or faster, so that one tree for all turns would compare the pages. CPU time of
one thread, the fastest call of all turns; what else the machine does meets both alike. Counts of both must be equal.
For the rule that a change makes no line slower by more than a few percent.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import captree

RECORDS = Path(__file__).parent / "record"
SEED = 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches.builds", description=__doc__)
    parser.add_argument("other", metavar="OTHER_PYTHON", help="a Python that has the other build, and numpy")
    parser.add_argument("--name", default="before", help="what to call the other build (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=200_000, help="default: %(default)s")
    parser.add_argument("--dim", type=int, default=768, help="default: %(default)s")
    parser.add_argument("--caps", type=int, default=1000, help="training caps (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=4, help="processes of each build (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="calls in a process (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RECORDS, help="folder of the record (default: benches/record)")
    return parser.parse_args()


def workloads(tree: captree.Tree, caps: captree.Caps) -> dict[str, Callable[[], Any]]:
    """What is timed: nonempty training caps, those that hold less than 0.1% of the rows, and the others' draws."""
    counts = tree.count(caps)
    full = caps[counts > 0]
    narrow = caps[(counts > 0) & (counts < 0.001 * len(tree))]
    wide = caps[counts > 0.1 * len(tree)]
    once: dict[str, Any] = {"threads": 1}
    found: dict[str, Callable[[], Any]] = {
        "count, training caps": lambda: tree.count(full, **once),
        "count, narrow caps": lambda: tree.count(narrow, **once),
        "count, wide caps": lambda: tree.count(wide, **once),
        "search, narrow caps": lambda: tree.search(narrow, **once),
        "nearest, k = 10": lambda: tree.nearest(caps.centers[:100], 10, **once),
        "radius of 1%": lambda: tree.radius_for_mass(caps.centers[:50], 0.01, **once),
    }
    for name, some in (("training", full), ("narrow", narrow), ("wide", wide)):
        for k in (1, 10, 100):
            found[f"draw, {name} caps, k = {k}"] = partial(tree.sample, some, k, seed=SEED, **once)
    found["draw, training caps, 10 distinct"] = lambda: tree.sample(full, 10, replace=False, seed=SEED, **once)
    return found


def worker(folder: Path, repeats: int) -> None:
    """One turn: prints the seconds of every workload, and the counts."""
    tree = captree.build(np.load(folder / "vectors.npy", mmap_mode="r"))
    caps = np.load(folder / "caps.npz")
    batch = captree.Caps(caps["centers"], caps["bounds"])
    seconds = {}
    for what, run in workloads(tree, batch).items():
        run()
        took = []
        for _ in range(repeats):
            start = time.process_time()
            run()
            took.append(time.process_time() - start)
        seconds[what] = min(took)
    print(json.dumps({"seconds": seconds, "counts": tree.count(batch).tolist()}))


def turn(python: str, folder: Path, repeats: int) -> dict[str, Any]:
    command = [python, __file__, "--worker", str(folder), str(repeats)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    from benches.compare import machine, report
    from captree.testing import clip_like

    args, origin = parse(), machine.origin("benches.builds")
    builds = {"now": sys.executable, args.name: args.other}
    best: dict[str, dict[str, float]] = {name: {} for name in builds}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        vectors = clip_like(args.rows, args.dim, seed=SEED)
        np.save(folder / "vectors.npy", vectors)
        caps = captree.training_caps(captree.build(vectors[:20_000]), args.caps, seed=SEED)
        np.savez(folder / "caps.npz", centers=caps.centers, bounds=caps.max_cos_distance)
        counts: list[int] | None = None
        for _ in range(args.turns):
            for name, python in builds.items():
                found = turn(python, folder, args.repeats)
                counts = counts or found["counts"]
                if found["counts"] != counts:
                    raise AssertionError(f"{name}: counts differ")
                for what, seconds in found["seconds"].items():
                    best[name][what] = min(seconds, best[name].get(what, seconds))
    record = {**origin, "rows": args.rows, "dim": args.dim, "caps": args.caps, "turns": args.turns, "seconds": best}
    lines = [
        [what, f"{1e3 * best[args.name][what]:,.1f}", f"{1e3 * now:,.1f}", f"{now / best[args.name][what]:.3f}"]
        for what, now in best["now"].items()
    ]
    text = "\n\n".join(
        [
            f"# Two builds: {args.rows:,} rows, {args.dim} dims, one thread",
            report.origin(record),
            f"CPU time of a call over {args.caps} training caps or a part of them, the fastest of {args.turns} turns "
            f"of {args.repeats} calls.",
            report.table(["", f"{args.name}: ms", "now: ms", "now / " + args.name], lines),
        ]
    )
    report.save(record, text + "\n", args.out, f"{origin['date']}-builds-{args.dim}-{args.rows}")
    print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
