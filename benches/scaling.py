"""How the cost of a draw grows with the rows: `python -m benches.scaling --rows 200000 400000 800000`.

One tree of each size, all on the same disk, and draws for training caps of its own: CPU time of one thread per cap,
and what it is multiplied with when the rows double. Draws are checked in float64 to lie inside their caps.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import captree
from benches.compare import data, machine, report
from captree.testing import clip_like

RECORDS = Path(__file__).parent / "record"
NARROW = 0.001
"""Caps that hold less than this share of the rows are narrow."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches.scaling", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[25_000, 50_000, 100_000], help="default: %(default)s")
    parser.add_argument("--dim", type=int, default=768, help="default: %(default)s")
    parser.add_argument("--data", choices=list(data.SPECTRA), default="steep", help="default: %(default)s")
    parser.add_argument("--caps", type=int, default=512, help="training caps (default: %(default)s)")
    parser.add_argument("-k", type=int, nargs="+", default=[1, 100], help="draws per cap (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="calls, of which the fastest counts (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the trees are made (default: the system's temporary folder)")
    parser.add_argument("--out", type=Path, default=RECORDS, help="folder of the record (default: benches/record)")
    return parser.parse_args()


def check(tree: captree.Tree, caps: captree.Caps, drawn: Any) -> None:
    """Raises unless every row drawn lies inside its cap, up to float64 rounding."""
    for center, bound, rows in zip(caps.centers, caps.max_cos_distance, drawn, strict=True):
        rows = rows[rows >= 0]
        distances = 1.0 - tree.take(rows).astype(np.float64) @ center.astype(np.float64)
        if not (distances <= bound + 1e-12).all():
            raise AssertionError(f"a row at a distance of {distances.max()} was drawn for a bound of {bound}")


def measure(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """CPU microseconds per cap, for each number of draws."""
    tree = captree.open(path)
    caps = captree.training_caps(tree, args.caps, seed=args.seed)
    narrow = float((tree.count(caps) < NARROW * len(tree)).mean())
    took = {}
    for k in args.k:
        check(tree, caps, tree.sample(caps, k=k, seed=args.seed))
        seconds = []
        for repeat in range(args.repeats):
            start = time.process_time()
            tree.sample(caps, k=k, seed=repeat, threads=1)
            seconds.append(time.process_time() - start)
        took[str(k)] = min(seconds) / args.caps * 1e6
    return {"rows": len(tree), "narrow": narrow, "microseconds": took}


def markdown(record: dict[str, Any]) -> str:
    """The table, and where it was measured."""
    sizes = record["sizes"]
    header = ["rows", "narrow caps"]
    for k in record["k"]:
        header += [f"k = {k}: µs per cap", "times, per doubling"]
    lines, before = [], None
    for size in sizes:
        line = [f"{size['rows']:,}", f"{100 * size['narrow']:.0f}%"]
        for k in map(str, record["k"]):
            own, growth = size["microseconds"][k], ""
            if before:
                doublings = math.log2(size["rows"] / before["rows"])
                growth = f"{(own / before['microseconds'][k]) ** (1 / doublings):.2f}"
            line += [f"{own:,.0f}", growth]
        lines.append(line)
        before = size
    return (
        "\n\n".join(
            [
                f"# Cost of a draw: {record['data']}, {record['dim']} dims, one thread",
                report.origin(record),
                f"{record['caps']} training caps, float16 trees on disk; narrow caps hold less than "
                f"{100 * NARROW:g}% of the rows. CPU time, the fastest of {record['repeats']} calls.",
                report.table(header, lines),
            ]
        )
        + "\n"
    )


def main() -> None:
    args = parse()
    origin, sizes = machine.origin("benches.scaling"), []
    for rows in sorted(args.rows):
        with tempfile.TemporaryDirectory(prefix="captree-scaling-", dir=args.folder) as folder:
            path = Path(folder) / "tree"
            made = clip_like(rows, args.dim, seed=args.seed, exponent=data.SPECTRA[args.data], dtype=np.float16)
            captree.build(made, storage="float16", seed=args.seed, out=path)
            del made
            sizes.append(measure(path, args))
            print(f"{rows:,} rows: {sizes[-1]['microseconds']}", flush=True)
    record = {
        **origin,
        "data": args.data,
        "dim": args.dim,
        "caps": args.caps,
        "k": args.k,
        "seed": args.seed,
        "repeats": args.repeats,
        "sizes": sizes,
    }
    text = markdown(record)
    name = f"{origin['date']}-scaling-{args.data}-{max(args.rows)}"
    report.save(record, text, args.out, name)
    print(f"{text}\nwritten: {args.out / name}.json and .md")


if __name__ == "__main__":
    main()
