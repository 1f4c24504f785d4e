"""captree pairs."""

from __future__ import annotations

import argparse
from dataclasses import asdict

import captree
from captree.cli import _text as text
from captree.cli._parser import Verbs, add_json, add_quiet, add_seed, add_threads, add_tree, positive, verb


def add(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verb(
        verbs,
        "pairs",
        pairs,
        "Write training pairs: random caps, each with a random row inside it.",
        """
        captree pairs words.captree pairs -n 100000 --seed 0
        captree pairs words.captree pairs-once -n 500 --no-replace   every row at most once
        """,
        """
OUT, a new or empty folder, gets Parquet files with the columns row (int64), center (fixed-size list of
float32) and max_cos_distance (float32). The same tree, number and seed give the same pairs.
        """,
    )
    add_tree(parser)
    parser.add_argument("out", metavar="OUT", help="folder for the Parquet files")
    parser.add_argument("-n", metavar="N", type=positive, required=True, help="number of pairs")
    parser.add_argument("--no-replace", action="store_true", help="use every row at most once over the whole run")
    add_seed(parser, 0, "seed of caps and draws (default 0)")
    add_threads(parser)
    add_quiet(parser)
    add_json(parser)


def pairs(args: argparse.Namespace) -> None:
    """Writes pairs."""
    tree = captree.open(args.tree)
    report = captree.write_pairs(
        tree,
        args.out,
        args.n,
        seed=args.seed,
        replace=not args.no_replace,
        progress=not args.quiet,
        threads=args.threads,
    )
    if args.json:
        text.print_json({"tree": args.tree, "out": args.out, **asdict(report)})
        return
    print(f"{args.out}: {describe(report)}")


def describe(report: captree.PairsReport) -> str:
    """A report of write_pairs in one line."""
    files = len(report.files)
    return (
        f"{report.pairs:,} pairs in {files} {'file' if files == 1 else 'files'}, {text.duration(report.seconds)}; "
        f"{report.caps_drawn:,} caps drawn, {report.empty_caps:,} of them empty"
    )
