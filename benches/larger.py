"""Builds under a memory limit, and trees that change: `python -m benches.larger`.

Rows of unit vectors are written to a .npy file of float16, part by part. Then, each in a process of its own:

1. a build under a memory limit, in a process that the system gives hardly more data memory (RLIMIT_DATA), beside
   reading the file twice after its pages were dropped from the cache;
2. an append of a tenth more rows, counts and single draws right after it, and the same after `compact`;
3. opening the tree, and pairs per second (training caps with one row each).

Peak memory is what the process held and nobody else could take (RssAnon), polled; maps of files are not among it.
"""

import argparse
import json
import os
import resource
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
from benches.compare import machine, report
from captree.testing import FLAT, STEEP, clip_like

RECORDS = Path(__file__).parent / "record"
PART = 1_100_000
"""Rows that are made at once: each part has a mean and clusters of its own."""
APART = 192 << 20
"""Data memory beyond the limit that the system allows: stacks of threads, and what is mapped for growth."""


def write_rows(folder: Path, rows: int, more: int, dim: int, exponent: float) -> tuple[Path, Path]:
    """`rows` rows in one file and `more` in another, of the same distribution where one part holds them all."""
    paths = folder / "vectors.npy", folder / "more.npy"
    files = [
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(size, dim))
        for path, size in zip(paths, (rows, more), strict=True)
    ]
    for start in range(0, rows + more, PART):
        part = clip_like(min(PART, rows + more - start), dim, seed=start // PART, exponent=exponent)
        fits = max(0, min(len(part), rows - start))
        files[0][start : start + fits] = part[:fits]
        if fits < len(part):
            first = start + fits - rows
            files[1][first : first + len(part) - fits] = part[fits:]
    for file in files:
        file.flush()
    return paths


def drop(path: Path) -> None:
    """Takes a file's pages out of the cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def read_twice(path: Path) -> float:
    """Seconds that `cat` takes to read a file two times, its pages dropped before each."""
    seconds = 0.0
    for _ in range(2):
        drop(path)
        start = time.perf_counter()
        subprocess.run(["cat", str(path)], stdout=subprocess.DEVNULL, check=True)
        seconds += time.perf_counter() - start
    return seconds


def peak_of(pid: int, done: Any) -> int:
    """Largest RssAnon of a process while it runs, in bytes."""
    most = 0
    while done() is None:
        try:
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    most = max(most, int(line.split()[1]) * 1024)
        except OSError:
            pass
        time.sleep(0.02)
    return most


def in_child(step: str, limit: int | None, **given: Any) -> tuple[dict[str, Any], int]:
    """Runs a step below in a process of its own; returns what it told, and its peak memory."""
    command = [sys.executable, "-m", "benches.larger", "--step", json.dumps({"step": step, **given})]

    def bound() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit + APART, limit + APART))

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=bound) as child:
        peak = peak_of(child.pid, child.poll)
        assert child.stdout is not None
        told = child.stdout.read()
    if child.returncode:
        raise RuntimeError(f"{step} ended with {child.returncode}")
    return json.loads(told), peak


def build(vectors: str, out: str, memory_limit: int, threads: int) -> dict[str, Any]:
    start = time.perf_counter()
    tree = captree.build(vectors, out=out, memory_limit=memory_limit, threads=threads)
    return {"seconds": time.perf_counter() - start, "segments": tree.stats()["segments"]}


def append(path: str, more: str, threads: int) -> dict[str, Any]:
    tree = captree.open(path)
    start = time.perf_counter()
    tree.append(more, threads=threads)
    return {"seconds": time.perf_counter() - start, "segments": tree.stats()["segments"]}


def compact(path: str, memory_limit: int, threads: int) -> dict[str, Any]:
    tree = captree.open(path)
    start = time.perf_counter()
    tree.compact(memory_limit=memory_limit, threads=threads)
    return {"seconds": time.perf_counter() - start, "segments": tree.stats()["segments"]}


def query(path: str, caps: int, threads: int) -> dict[str, Any]:
    """Seconds per cap, the best of three, after all pages were read once; and milliseconds to open the tree."""
    starts = []
    for _ in range(5):
        start = time.perf_counter()
        tree = captree.open(path)
        starts.append(time.perf_counter() - start)
    some = captree.training_caps(tree, caps, seed=1)
    counts = tree.count(some, threads=threads)
    calls: dict[str, Callable[[], Any]] = {
        "count": partial(tree.count, some, threads=threads),
        "draw": partial(tree.sample, some, seed=1, threads=threads),
    }
    best: dict[str, float] = {}
    for name, call in calls.items():
        times = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        best[name] = min(times) / caps
    stream = iter(captree.PairStream(tree, batch_size=4096, seed=0, threads=threads))
    next(stream)
    start = time.perf_counter()
    for _ in range(3):
        next(stream)
    best["pairs per second"] = 3 * 4096 / (time.perf_counter() - start)
    return {**best, "open": min(starts), "mean count": float(counts.mean())}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.larger", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--dim", type=int, default=768, help="default: %(default)s")
    parser.add_argument("--data", choices=("steep", "flat"), default="steep", help="default: %(default)s")
    parser.add_argument("--memory-limit", type=int, default=1024, metavar="MIB", help="MiB; default: %(default)s")
    parser.add_argument("--caps", type=int, default=1024, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where files go (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=RECORDS, help="folder of the record (default: benches/record)")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        given = json.loads(args.step)
        steps: dict[str, Any] = {"build": build, "append": append, "compact": compact, "query": query}
        print(json.dumps(steps[given.pop("step")](**given)))
        return
    origin = machine.origin("benches.larger")
    exponent, limit = {"steep": STEEP, "flat": FLAT}[args.data], args.memory_limit << 20
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        vectors, more = write_rows(Path(folder), args.rows, args.rows // 10, args.dim, exponent)
        tree = str(Path(folder) / "t.captree")
        reading = read_twice(vectors)
        drop(vectors)
        common: dict[str, Any] = {"threads": args.threads}
        asked: dict[str, Any] = {"caps": args.caps, **common}
        built, build_peak = in_child("build", limit, vectors=str(vectors), out=tree, memory_limit=limit, **common)
        fresh, _ = in_child("query", None, path=tree, **asked)
        added, _ = in_child("append", None, path=tree, more=str(more), **common)
        after, _ = in_child("query", None, path=tree, **asked)
        compacted, compact_peak = in_child("compact", limit, path=tree, memory_limit=limit, **common)
        limited, _ = in_child("query", None, path=tree, **asked)
        whole, _ = in_child("compact", None, path=tree, memory_limit=1 << 50, **common)
        one, _ = in_child("query", None, path=tree, **asked)

    mib = 1 << 20
    lines = [
        ["the file of vectors", f"{args.rows * args.dim * 2 / 1e9:.2f} GB, read twice in {reading:.1f} s"],
        [
            "build",
            f"{built['seconds']:.1f} s, {built['seconds'] / reading:.1f} times that; {built['segments']} segments",
        ],
        ["its peak memory", f"{build_peak / mib:.0f} MiB, limit {args.memory_limit} MiB"],
        [f"append {args.rows // 10:,} rows", f"{added['seconds']:.1f} s; {added['segments']} segments"],
        ["compact under the limit", f"{compacted['seconds']:.1f} s; {compacted['segments']} segments"],
        ["its peak memory", f"{compact_peak / mib:.0f} MiB"],
        ["compact without a limit", f"{whole['seconds']:.1f} s; {whole['segments']} segment"],
        ["open", f"{1000 * fresh['open']:.1f} ms"],
    ]
    states = {"built": fresh, "after the append": after, "compact, limit": limited, "compact, one segment": one}
    table = [
        [
            name,
            f"{1e6 * state['count']:.0f}",
            f"{state['count'] / one['count']:.2f}",
            f"{1e6 * state['draw']:.0f}",
            f"{state['draw'] / one['draw']:.2f}",
            f"{state['pairs per second']:,.0f}",
        ]
        for name, state in states.items()
    ]
    record = {**origin, "rows": args.rows, "dim": args.dim, "data": args.data, "limit": limit, "threads": args.threads}
    text = "\n\n".join(
        [
            f"# Builds under a limit, and changes: {args.rows:,} x {args.dim}, {args.data}, {args.threads} threads",
            report.origin(record),
            report.table(["", ""], lines),
            "Microseconds per training cap, beside those of the tree in one segment, and pairs per second:",
            report.table(["state", "count", "ratio", "one draw", "ratio", "pairs / s"], table),
        ]
    )
    figures = {"read twice": reading, "build": built, "build peak": build_peak, "append": added, "states": states}
    report.save({**record, **figures}, text + "\n", args.out, f"{origin['date']}-larger-{args.data}-{args.rows}")
    print(text)


if __name__ == "__main__":
    main()
