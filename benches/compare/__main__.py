"""`python -m benches.compare`: measure, print the tables, write the record."""

import argparse
import os
import tempfile
from pathlib import Path

from benches.compare import blas, data, machine, report
from benches.compare.peers import OPERATIONS, registry
from benches.compare.turns import Limits, Worker, measure

RECORDS = Path(__file__).parents[1] / "record"
FORCED_KERNELS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benches.compare",
        description="Measures captree beside its peers, in one run and with one number of threads.",
        epilog="example: python -m benches.compare --rows 200000 --data flat --peers captree,numpy,faiss-flat",
    )
    parser.add_argument("--rows", type=int, default=50_000, help="vectors (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=768, help="dimensions of made data (default: %(default)s)")
    parser.add_argument("--data", choices=[*data.SPECTRA, "wordnet"], default="steep", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: every core (%(default)s)")
    parser.add_argument("--peers", help="comma-separated names (default: all that are installed)")
    parser.add_argument("--operations", help=f"comma-separated among: {', '.join(OPERATIONS)} (default: all)")
    parser.add_argument("--drawn", type=int, default=4000, help="training caps to draw (default: %(default)s)")
    parser.add_argument("--caps", type=int, default=64, help="caps to time in each group (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="time every peer spends on a measurement (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="runs of a measurement at most (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds a peer may take (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RECORDS, help="folder of the record (default: benches/record)")
    return parser.parse_args(arguments)


def chosen(given: str | None, known: list[str], what: str) -> list[str]:
    """The names of a comma-separated list; operations hold commas themselves, so the longest name wins."""
    if given is None:
        return known
    names, rest = [], given
    while rest:
        name = max((name for name in known if rest == name or rest.startswith(name + ",")), key=len, default=None)
        if name is None:
            raise SystemExit(f"unknown {what} in {rest!r}: expected some of {'; '.join(known)}")
        names.append(name)
        rest = rest[len(name) + 1 :]
    return names


def environment(threads: int) -> dict[str, str]:
    """The same number of threads for every library, and the best kernel for every OpenBLAS."""
    limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    forced = {"OPENBLAS_CORETYPE": kernel} if (kernel := blas.fastest(threads)) else {}
    return {**os.environ, **dict.fromkeys(limits, str(threads)), **forced}


def main() -> None:
    args = parse()
    forced = [name for name in FORCED_KERNELS if name in os.environ]
    if forced:
        raise SystemExit(f"unset {' and '.join(forced)}: the kernel to use is measured")
    peers = registry()
    names = chosen(args.peers, list(peers), "peer")
    operations = chosen(args.operations, list(OPERATIONS), "operation")
    origin = machine.origin("benches.compare")
    variables = environment(args.threads)
    print(f"OpenBLAS kernel: {variables.get('OPENBLAS_CORETYPE', 'numpy has none')}", flush=True)
    left_out = []
    with tempfile.TemporaryDirectory(prefix="captree-compare-") as temporary:
        folder = Path(temporary)
        print(f"making {args.rows:,} x {args.dim} {args.data} vectors and their true answers", flush=True)
        problem = data.make(folder / "problem", args.data, args.rows, args.dim, args.drawn, args.threads, args.seed)
        rows, dim = problem.vectors.shape
        groups = problem.groups(args.caps)
        limits = Limits(args.seconds, args.repeats, args.timeout)
        workers: list[Worker] = []
        try:
            for name in names:
                if missing := peers[name].missing():
                    print(missing, flush=True)
                    left_out.append(missing)
                    continue
                spec = {"peer": name, "problem": str(problem.folder), "threads": args.threads, "caps": args.caps}
                workers.append(Worker.start(spec, folder, variables, limits))
            results, lost = measure(workers, operations, groups, limits)
        finally:
            for worker in workers:
                worker.end()
        for reason in lost:
            print(reason, flush=True)
        left_out += lost

    record = {
        **origin,
        "data": args.data,
        "rows": int(rows),
        "dim": int(dim),
        "threads": args.threads,
        "seed": args.seed,
        "groups": {group.name: group.share for group in groups},
        "results": results,
        "left_out": left_out,
    }
    processor = machine.slug(origin["machine"]["processor"])
    name = f"{origin['date']}-{processor}-{origin['commit']}-{args.data}-{rows}"
    print("\n" + report.write(record, args.out, name))
    print(f"written: {args.out / name}.json, .md and .png")


if __name__ == "__main__":
    main()
