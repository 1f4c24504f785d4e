"""captree bench: how fast a tree answers on this machine, and whether it answers right."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import captree
from captree._progress import Callback, reporting
from captree.cli import _brute
from captree.cli import _text as text
from captree.cli._parser import Verbs, add_json, add_quiet, add_seed, add_threads, add_tree, positive, verb
from captree.errors import InternalError
from captree.plot import decades

_BRUTE_CAPS = 256


@dataclass(frozen=True)
class Group:
    """Caps of one decade of selectivity, and caps per second of each method."""

    selectivity: str
    caps: int
    count: float
    sample_exact: float
    sample_approximate: float


@dataclass(frozen=True)
class Bench:
    """What :func:`measure` found."""

    rows: int
    dim: int
    caps: int
    draws: int
    threads: int | None
    brute_force: float
    """Caps per second of numpy's float32 scan; it does not depend on the selectivity."""
    counts_checked: int
    draws_checked: int
    groups: list[Group]


def add(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verb(
        verbs,
        "bench",
        bench,
        "Measure queries per second on a tree's own training caps, and check the answers.",
        """
        captree bench words.captree
        captree bench words.captree --caps 500 --draws 8 --seconds 0.1 --json
        """,
        """
Count, exact and approximate sampling, and a numpy float32 scan of all rows as brute force. Caps are grouped
by the share of rows inside them. Every count that brute force repeats must be equal, and every row drawn
must lie inside its cap; otherwise the command fails.
        """,
    )
    add_tree(parser)
    parser.add_argument("--caps", metavar="N", type=positive, default=2000, help="training caps to ask (default 2000)")
    parser.add_argument("--draws", metavar="K", type=positive, default=1, help="draws per cap (default 1)")
    parser.add_argument(
        "--seconds", metavar="T", type=float, default=0.3, help="least time to measure each number for (default 0.3)"
    )
    add_seed(parser, 0, "seed of caps and draws (default 0)")
    add_threads(parser)
    add_quiet(parser)
    add_json(parser)


def bench(args: argparse.Namespace) -> None:
    """Measures and prints."""
    tree = captree.open(args.tree)
    with reporting(not args.quiet) as progress:
        found = measure(tree, args.caps, args.draws, args.seed, args.seconds, args.threads, progress)
    if args.json:
        text.print_json({"tree": args.tree, "machine": platform.platform(), **asdict(found)})
    else:
        print(describe(found))


def measure(
    tree: captree.Tree,
    caps: int,
    draws: int = 1,
    seed: int = 0,
    seconds: float = 0.3,
    threads: int | None = None,
    progress: Callback | None = None,
) -> Bench:
    """Times every method on training caps of `tree` and checks the answers.

    Raises
    ------
    InternalError
        An answer differs from brute force.
    """
    report = progress or (lambda phase, done, total: None)
    asked = captree.training_caps(tree, caps, seed=seed)
    counts = tree.count(asked, threads=threads)

    report("brute force", 0, 1)
    few = np.unique(np.linspace(0, caps - 1, min(caps, _BRUTE_CAPS)).round().astype(np.int64))
    truth, brute_seconds = _brute.count(tree, asked.centers[few], asked.max_cos_distance[few])
    report("brute force", 1, 1)
    wrong = np.flatnonzero(counts[few] != truth)
    if wrong.size:
        i = int(wrong[0])
        raise InternalError(
            f"{wrong.size} of {few.size} counts differ from brute force, first at training cap {few[i]}: "
            f"expected {truth[i]}, got {counts[few[i]]}"
        )

    def draw(method: Literal["exact", "approximate"], part: captree.Caps) -> NDArray[np.int64]:
        return tree.sample(part, k=draws, method=method, seed=seed, threads=threads)

    groups: list[Group] = []
    checked = 0
    parts = [(name, members) for name, members in decades(counts, len(tree)) if members.size]
    for done, (name, members) in enumerate(parts):
        report("queries", done, len(parts))
        part = captree.Caps(asked.centers[members], asked.max_cos_distance[members])
        checked += _check_draws(tree, part, counts[members], draw("exact", part))
        checked += _check_draws(tree, part, counts[members], draw("approximate", part))
        groups.append(
            Group(
                selectivity=name,
                caps=len(part),
                count=_rate(partial(tree.count, part, threads=threads), len(part), seconds),
                sample_exact=_rate(partial(draw, "exact", part), len(part), seconds),
                sample_approximate=_rate(partial(draw, "approximate", part), len(part), seconds),
            )
        )
    report("queries", len(parts), len(parts))
    return Bench(
        rows=len(tree),
        dim=tree.dim,
        caps=caps,
        draws=draws,
        threads=threads,
        brute_force=few.size / max(brute_seconds, 1e-9),
        counts_checked=int(few.size),
        draws_checked=checked,
        groups=groups,
    )


def _rate(call: Callable[[], Any], caps: int, seconds: float) -> float:
    """Caps per second, of as many calls as fit in `seconds`, at least one."""
    calls, spent = 0, 0.0
    while spent < seconds or not calls:
        began = time.perf_counter()
        call()
        spent += time.perf_counter() - began
        calls += 1
    return calls * caps / max(spent, 1e-9)


def _check_draws(tree: captree.Tree, caps: captree.Caps, counts: NDArray[np.int64], drawn: NDArray[np.int64]) -> int:
    """Checks that -1 stands for empty caps only and that rows lie inside; returns the number of draws looked at."""
    if ((drawn < 0) != (counts == 0)[:, None]).any():
        raise InternalError("a sample is -1 for a cap with rows, or a row for a cap without")
    cap = np.repeat(np.arange(len(caps)), drawn.shape[1])[drawn.ravel() >= 0]
    rows = drawn.ravel()[drawn.ravel() >= 0]
    step = 16_384
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        vectors = tree.take(rows[part]).astype(np.float64)
        far = 1.0 - np.einsum("ij,ij->i", vectors, caps.centers[cap[part]].astype(np.float64))
        outside = np.flatnonzero(far > caps.max_cos_distance[cap[part]] + 1e-12 * tree.dim)
        if outside.size:
            raise InternalError(f"row {rows[part][outside[0]]} was drawn for a cap that it lies outside of")
    return int(drawn.size)


def describe(found: Bench) -> str:
    """The findings as a table and a few sentences."""
    threads = "every core" if found.threads is None else f"{found.threads} threads"
    return "\n".join(
        [
            f"{found.rows:,} rows of {found.dim} dimensions, {found.caps:,} training caps, {threads}; caps per second",
            "",
            table(found),
            "",
            f"draws per sample: {found.draws}. numpy scan: float32 matrix product and comparison, all rows.",
            f"checked: {found.counts_checked:,} counts equal brute force, {found.draws_checked:,} draws lie inside.",
        ]
    )


def table(found: Bench, indent: int = 0) -> str:
    """Caps per second, a line per decade of selectivity."""
    header = ["rows inside", "caps", "count", "sample exact", "approximate", "numpy scan"]
    lines = [
        [
            group.selectivity,
            f"{group.caps:,}",
            text.rate(group.count),
            text.rate(group.sample_exact),
            text.rate(group.sample_approximate),
            text.rate(found.brute_force),
        ]
        for group in found.groups
    ]
    return text.table(header, lines, left=(0,), indent=indent, most=100)
