"""captree count, search, sample."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray

import captree
from captree.cli import _text as text
from captree.cli._caps import HOW, NamedCaps, add_caps, read_caps
from captree.cli._files import TABLES, check_suffix, read_texts, write_npy, write_table
from captree.cli._parser import UsageError, Verbs, add_texts, add_threads, add_tree, positive, verb, whole

_SEARCH_DTYPE = np.dtype([("cap", np.int64), ("row", np.int64), ("distance", np.float64)])


def add(verbs: Verbs) -> None:
    """Adds the verbs of this module."""
    parser = verb(
        verbs,
        "count",
        count,
        "Count the rows inside caps, exactly.",
        """
        captree count words.captree --row 17 --max-cos-distance 0.3,0.5,0.7
        captree count words.captree centers.npy --radius 0.8
        captree count words.captree caps.parquet --json
        captree count words.captree --training 1000 --seed 1 --out counts.parquet
        captree count words.captree centers.npy -d 0.6 --estimate   a quick interval in place of the exact count
        """,
        HOW,
    )
    add_tree(parser)
    add_caps(parser, "seed of the training caps and of the estimate (default 0)")
    parser.add_argument("--estimate", action="store_true", help="estimate with an interval instead of counting")
    parser.add_argument("--samples", metavar="N", type=positive, default=4096, help="rows an estimate looks at (4096)")
    parser.add_argument("--confidence", metavar="P", type=float, default=0.95, help="of an estimate's interval (0.95)")
    _add_output(parser, "counts as .npy (int64 (q,)), or a table as .parquet, .arrow or .csv")

    parser = verb(
        verbs,
        "search",
        search,
        "Find the rows inside caps, exactly.",
        """
        captree search words.captree --row 17 --max-cos-distance 0.4 --sort
        captree search words.captree centers.npy --min-cosine 0.6 --limit 10 --texts words.txt
        captree search words.captree caps.parquet --out found.parquet
        """,
        HOW,
    )
    add_tree(parser)
    add_caps(parser)
    parser.add_argument("--sort", action="store_true", help="nearest first (default: in the order of the tree)")
    parser.add_argument("--limit", metavar="N", type=positive, help="at most N rows per cap; with --sort the nearest N")
    add_texts(parser, "a text per row to print")
    _add_output(parser, "lines of cap, row, distance as .npy (a structured array), .parquet, .arrow or .csv")

    parser = verb(
        verbs,
        "sample",
        sample,
        "Draw random rows inside caps: exactly uniform and independent.",
        """
        captree sample words.captree --row 17 --max-cos-distance 0.5 -k 10 --seed 0
        captree sample words.captree centers.npy --radius 0.9 -k 5 --texts words.txt
        captree sample words.captree --training 1000 -k 4 --no-replace --out rows.npy
        captree sample words.captree --training 1000 --method approximate --density-samples 512 --json
        """,
        HOW + "\nThe same seed gives the same rows. A cap without rows gives -1.",
    )
    add_tree(parser)
    add_caps(parser, "seed of the draws and of the training caps (default: fresh draws, training caps of seed 0)")
    parser.add_argument("-k", metavar="K", type=positive, default=1, help="draws per cap (default 1)")
    parser.add_argument("--no-replace", action="store_true", help="draw distinct rows within a cap")
    parser.add_argument(
        "--method",
        choices=("exact", "approximate"),
        default="exact",
        help="approximate is the two-stage scheme, biased",
    )
    parser.add_argument(
        "--density-samples", metavar="N", type=positive, help="rows the approximate method looks at per call (512)"
    )
    add_texts(parser, "a text per row to print")
    _add_output(parser, "rows as .npy (int64 (q, k)), or lines of cap, draw, row as .parquet, .arrow or .csv")


def _add_output(parser: argparse.ArgumentParser, out: str) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="FILE", help=out)
    group.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    group.add_argument("--show", metavar="N", type=whole, default=20, help="lines to print per table, 0 for all (20)")
    add_threads(parser)


def count(args: argparse.Namespace) -> None:
    """Counts, or estimates."""
    check_suffix(args.out, (".npy", *TABLES))
    tree = captree.open(args.tree)
    caps = read_caps(args, tree)
    columns: dict[str, Any] = {"cap": np.arange(len(caps)), "center": caps.names, "max_cos_distance": caps.bounds}
    if args.estimate:
        seed = 0 if args.seed is None else args.seed
        found = tree.estimate(
            caps.caps, samples=args.samples, confidence=args.confidence, seed=seed, threads=args.threads
        )
        columns |= {"count": found.count, "low": found.low, "high": found.high}
    else:
        columns["count"] = tree.count(caps.caps, threads=args.threads)
    counts = columns["count"]
    columns["selectivity"] = counts / len(tree)
    if args.out:
        write_npy(args.out, counts) if args.out.endswith(".npy") else write_table(args.out, columns)
    if args.json:
        text.print_json({"tree": args.tree, "rows": len(tree), "caps": _records(columns)})
        return
    shown = _shown(args, len(caps))
    between = ["low", "high"] if args.estimate else []
    rows = [
        [
            caps.names[i],
            f"{caps.bounds[i]:.4g}",
            f"{counts[i]:,.0f}",
            *(f"{columns[name][i]:,}" for name in between),
            text.share(columns["selectivity"][i]),
        ]
        for i in range(shown)
    ]
    header = ["center", "max cos distance", "about" if args.estimate else "rows inside", *between, f"of {len(tree):,}"]
    print(text.table(header, rows, left=(0,)))
    if shown < len(caps):
        _more(len(caps) - shown, "caps")
    if len(caps) > 1:
        empty = int((counts == 0).sum())
        print(f"\n{len(caps):,} caps, {empty:,} empty; median {np.median(counts):,.0f} rows, mean {counts.mean():,.1f}")
    _wrote(args.out)


def search(args: argparse.Namespace) -> None:
    """Lists rows."""
    check_suffix(args.out, (".npy", *TABLES))
    tree = captree.open(args.tree)
    caps = read_caps(args, tree)
    texts = read_texts(args, len(tree))
    found = tree.search(caps.caps, sort=args.sort, limit=args.limit, threads=args.threads)
    cap = np.repeat(np.arange(len(caps)), found.counts)
    columns: dict[str, Any] = {"cap": cap, "row": found.rows, "distance": found.distances}
    if texts is not None:
        columns["text"] = [texts[row] for row in found.rows]
    if args.out and args.out.endswith(".npy"):
        packed = np.empty(len(cap), dtype=_SEARCH_DTYPE)
        for name in _SEARCH_DTYPE.names or ():
            packed[name] = columns[name]
        write_npy(args.out, packed)
    elif args.out:
        write_table(args.out, columns)
    if args.json:
        keys = [name for name in columns if name != "cap"]
        parts = [
            {name: columns[name][a:b] for name in keys} for a, b in zip(found.offsets, found.offsets[1:], strict=False)
        ]
        plural = {"row": "rows", "distance": "distances", "text": "texts"}
        results = [
            {**_cap_record(caps, i), "count": len(part["row"]), **{plural[k]: v for k, v in part.items()}}
            for i, part in enumerate(parts)
        ]
        text.print_json({"tree": args.tree, "caps": results})
        return
    shown = _shown(args, len(cap))
    rows = [
        [
            caps.names[cap[i]],
            str(found.rows[i]),
            f"{found.distances[i]:.4f}",
            *([texts[found.rows[i]]] if texts else []),
        ]
        for i in range(shown)
    ]
    print(text.table(["center", "row", "distance", *(["text"] if texts else [])], rows, left=(0, 3)))
    if shown < len(cap):
        _more(len(cap) - shown, "rows")
    print(f"\n{len(cap):,} rows in {len(caps):,} {'cap' if len(caps) == 1 else 'caps'}")
    _wrote(args.out)


def sample(args: argparse.Namespace) -> None:
    """Draws rows."""
    check_suffix(args.out, (".npy", *TABLES))
    tree = captree.open(args.tree)
    caps = read_caps(args, tree)
    texts = read_texts(args, len(tree))
    options: dict[str, Any] = {}
    if args.density_samples is not None:
        if args.method != "approximate":
            raise UsageError("--density-samples goes with --method approximate")
        options["density_samples"] = args.density_samples
    drawn = tree.sample(
        caps.caps,
        k=args.k,
        replace=not args.no_replace,
        method=args.method,
        seed=args.seed,
        threads=args.threads,
        **options,
    )
    if args.out:
        _write_draws(args.out, drawn, texts)
    if args.json:
        results = [
            {
                **_cap_record(caps, i),
                "rows": rows,
                **({"texts": [_text_of(texts, row) for row in rows]} if texts else {}),
            }
            for i, rows in enumerate(drawn)
        ]
        text.print_json({"tree": args.tree, "method": args.method, "seed": args.seed, "caps": results})
        return
    if texts is not None:
        places = [(i, row) for i, rows in enumerate(drawn) for row in rows]
        shown = _shown(args, len(places))
        lines = [
            [caps.names[i], f"{caps.bounds[i]:.4g}", str(row), _text_of(texts, row) or ""] for i, row in places[:shown]
        ]
        print(text.table(["center", "max cos distance", "row", "text"], lines, left=(0, 3)))
        rest, what = len(places) - shown, "draws"
    else:
        shown = _shown(args, len(caps))
        lines = [[caps.names[i], f"{caps.bounds[i]:.4g}", "  ".join(map(str, drawn[i]))] for i in range(shown)]
        print(text.table(["center", "max cos distance", "rows drawn"], lines, left=(0, 2)))
        rest, what = len(caps) - shown, "caps"
    if rest:
        _more(rest, what)
    empty = int((drawn[:, 0] < 0).sum()) if drawn.size else 0
    if empty:
        print(f"\n{empty:,} of {len(caps):,} caps are empty (row -1)")
    _wrote(args.out)


def _write_draws(path: str, drawn: NDArray[np.int64], texts: list[str] | None) -> None:
    if path.endswith(".npy"):
        write_npy(path, drawn)
        return
    cap, draw = (part.ravel() for part in np.indices(drawn.shape))
    columns: dict[str, Any] = {"cap": cap, "draw": draw, "row": drawn.ravel()}
    if texts is not None:
        columns["text"] = [_text_of(texts, row) for row in drawn.ravel()]
    write_table(path, columns)


def _text_of(texts: list[str], row: Any) -> str | None:
    return texts[row] if row >= 0 else None


def _cap_record(caps: NamedCaps, i: int) -> dict[str, Any]:
    return {"center": caps.names[i], "max_cos_distance": float(caps.bounds[i])}


def _records(columns: dict[str, Any]) -> list[dict[str, Any]]:
    plain = {name: values.tolist() if isinstance(values, np.ndarray) else values for name, values in columns.items()}
    return [dict(zip(plain, values, strict=True)) for values in zip(*plain.values(), strict=True)]


def _shown(args: argparse.Namespace, lines: int) -> int:
    return lines if args.show == 0 else min(lines, args.show)


def _more(rest: int, what: str) -> None:
    print(f"... and {rest:,} more {what} (--show 0 prints all, --out FILE keeps them)")


def _wrote(path: str | None) -> None:
    if path:
        print(f"\nwritten: {path}")
