"""captree pairs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

import captree
from captree.cli import _text as text
from captree.cli._parser import UsageError, Verbs, add_json, add_quiet, add_seed, add_threads, add_tree, positive, verb


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
        captree pairs words.captree pairs-4 -n 2000 --shards 4 --counts   four files, with the count of each cap
        """,
        """
OUT, a new or empty folder, gets Parquet files with the columns row (int64), center (fixed-size list of
float32) and max_cos_distance (float32). The same tree, number and seed give the same pairs. A run that was
interrupted or killed goes on after its last whole file when the same command is given again, and ends with
the same files as one that was never stopped; a finished folder is left as it is, and its report printed.
        """,
    )
    add_tree(parser)
    parser.add_argument("out", metavar="OUT", help="folder for the Parquet files")
    parser.add_argument("-n", metavar="N", type=positive, required=True, help="number of pairs")
    parser.add_argument(
        "--no-replace", action="store_true", help="use every row at most --caps-per-row times over the whole run"
    )
    parser.add_argument(
        "--caps-per-row", metavar="K", type=positive, help="caps that a row may be used for, with --no-replace (1)"
    )
    parser.add_argument(
        "--exclude-sources", action="store_true", help="no cap gets a row that its center was made from"
    )
    parser.add_argument(
        "--empty",
        choices=("redraw", "keep"),
        default="redraw",
        help="what becomes of caps without a row: others are drawn, or they are kept with row -1 (redraw)",
    )
    parser.add_argument(
        "--counts", action="store_true", help="add the columns count and selectivity: how many rows lie in each cap"
    )
    parser.add_argument("--shards", metavar="F", type=positive, help="number of files (default: 131,072 pairs a file)")
    add_seed(parser, 0, "seed of caps and draws (default 0)")
    add_threads(parser)
    add_quiet(parser)
    add_json(parser)


def pairs(args: argparse.Namespace) -> None:
    """Writes pairs."""
    if args.caps_per_row is not None and not args.no_replace:
        raise UsageError("--caps-per-row goes with --no-replace")
    tree = captree.open(args.tree)
    try:
        report = captree.write_pairs(
            tree,
            args.out,
            args.n,
            seed=args.seed,
            replace=not args.no_replace,
            progress=not args.quiet,
            exclude_sources=args.exclude_sources,
            threads=args.threads,
            shards=args.shards,
            caps_per_row=args.caps_per_row,
            counts=args.counts,
            empty=args.empty,
        )
    except KeyboardInterrupt:
        print(f"\n{args.out}: whole files stay, and the same command goes on after them", file=sys.stderr)
        raise
    if args.json:
        text.print_json({"tree": args.tree, "out": args.out, **asdict(report)})
        return
    print(f"{args.out}: {describe(report)}")


def describe(report: captree.PairsReport) -> str:
    """A report of write_pairs: a line of totals, a table by bound, and how far rows are from uniform."""
    files = len(report.files)
    before = f"; {report.pairs_found:,} of them were there before" if report.pairs_found else ""
    used_up = f", {report.exhausted_caps:,} without a row that may be used" if report.exhausted_caps else ""
    parts = [
        f"{report.pairs:,} pairs in {files:,} {'file' if files == 1 else 'files'}, {text.duration(report.seconds)}"
        f"{before}; {report.caps_drawn:,} caps drawn, {report.empty_caps:,} of them empty{used_up}",
        "",
        _by_bound(report),
    ]
    if report.skew is not None:
        parts += ["", _skew(report, report.skew)]
    return "\n".join(parts)


def _by_bound(report: captree.PairsReport) -> str:
    """The bands that caps were drawn in; the two shares show how what was dropped shifts bounds."""
    lines = [
        [
            f"{band.low:.1f} to {band.high:.1f}",
            f"{band.caps_drawn:,}",
            f"{band.empty_caps:,}",
            f"{band.exhausted_caps:,}",
            f"{band.pairs:,}",
            f"{band.caps_drawn / report.caps_drawn:.1%}",
            f"{band.pairs / report.pairs:.1%}",
        ]
        for band in report.bands
        if band.caps_drawn
    ]
    header = ["max cos distance", "caps", "empty", "none left", "pairs", "of all caps", "of all pairs"]
    return text.table(header, lines, left=(0,))


def _skew(report: captree.PairsReport, whole: captree.PairsSkew) -> str:
    first, last = report.skew_by_tenth[0], report.skew_by_tenth[-1]
    return (
        f"Rows used before are not drawn again, so a cap's row is not uniform over all rows inside. In the mean "
        f"{whole.mean:.1%}\nof a cap's rows were used when its row was drawn, which is how far its law is from uniform "
        f"(total variation):\n{first.mean:.1%} in the first tenth of the run, {last.mean:.1%} in the last, "
        f"{whole.largest:.1%} at most; measured on {whole.measured_caps:,} caps."
    )
