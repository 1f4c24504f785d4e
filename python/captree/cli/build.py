"""captree build, info, verify."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

import captree
from captree.cli import _text as text
from captree.cli._files import check_suffix, replace_file, write_arrow, write_table
from captree.cli._parser import (
    Verbs,
    add_json,
    add_memory_limit,
    add_quiet,
    add_seed,
    add_threads,
    add_tree,
    add_vectors,
    positive,
    verb,
)


def add(verbs: Verbs) -> None:
    """Adds the verbs of this module."""
    parser = verb(
        verbs,
        "build",
        build,
        "Build a tree from vectors and save it.",
        """
        captree build words.npy words.captree
        captree build embeddings.parquet words.captree --column embedding --fanout 32
        captree build raw.npy words.captree --normalize --storage float32 --memory-limit 8GiB
        """,
        """
IN is an (n, d) .npy array, a Parquet or Arrow IPC file, a quoted glob, or a folder of such files, whose
subfolders are read too; files come in the natural order of their names (9 before 10). Elements are float16,
bfloat16, float32 or float64, with --normalize also int8 and uint8. Rows must be finite and of unit length;
--normalize scales them. Rows that --invalid skip leaves out keep their number and lie in no cap.
The stored vectors (--storage) are the ones that every later answer is exact about.
The same input and seed give the same tree on any number of threads. Where memory is short, the tree gets
several segments; a build that was interrupted goes on with the next one when it is called again. A tree at
OUT is replaced, once the new one is whole, and so is an empty folder; anything else there is an error.
        """,
    )
    parser.add_argument("input", metavar="IN", help="vectors: .npy, Parquet or Arrow IPC, one file or a folder")
    parser.add_argument("out", metavar="OUT", help="where the tree goes; by custom it ends in .captree")
    add_vectors(parser)
    parser.add_argument("--fanout", metavar="K", type=positive, default=64, help="children of a node (default 64)")
    parser.add_argument("--leaf-size", metavar="L", type=positive, help="most rows of a leaf (default 512)")
    parser.add_argument(
        "--storage",
        choices=("float16", "float32"),
        default="float16",
        help="element type of the stored vectors (float16)",
    )
    add_memory_limit(parser)
    add_seed(parser, 0, "seed of the clustering (default 0)")
    add_threads(parser)
    add_quiet(parser)
    add_json(parser)

    parser = verb(
        verbs,
        "info",
        info,
        "Describe a tree: size, shape, depth by depth.",
        """
        captree info words.captree
        captree info words.captree --json
        captree info words.captree --nodes nodes.parquet   every node: parent, depth, center, bound, rows
        """,
    )
    add_tree(parser)
    parser.add_argument("--nodes", metavar="FILE", help="write a table of all nodes: .parquet, .arrow or .csv")
    add_json(parser)

    parser = verb(
        verbs,
        "verify",
        verify,
        "Check every checksum and every invariant of a tree.",
        """
        captree verify words.captree
        captree verify words.captree --quiet && echo fine
        """,
        "Exit status 0: the tree is sound. 1: it is damaged, and the message says where.",
    )
    add_tree(parser)
    add_threads(parser)
    add_quiet(parser)
    add_json(parser)


def build(args: argparse.Namespace) -> None:
    """Builds and saves a tree."""
    began = time.perf_counter()
    tree = captree.build(
        args.input,
        out=args.out,
        column=args.column,
        fanout=args.fanout,
        leaf_size=args.leaf_size,
        storage=args.storage,
        seed=args.seed,
        normalize=args.normalize,
        invalid=args.invalid,
        memory_limit=args.memory_limit,
        threads=args.threads,
        progress=not args.quiet,
    )
    seconds = time.perf_counter() - began
    if args.json:
        text.print_json({"tree": args.out, "seconds": seconds, "stats": tree.stats()})
    else:
        left_out = f" ({tree.skipped.size:,} of them skipped)" if tree.skipped.size else ""
        print(f"{args.out}: {len(tree):,} rows{left_out} of {tree.dim} dimensions in {text.duration(seconds)}")


def info(args: argparse.Namespace) -> None:
    """Describes a tree."""
    check_suffix(args.nodes, (".parquet", ".arrow", ".csv"))
    tree = captree.open(args.tree)
    if args.nodes:
        _write_nodes(tree, args.nodes)
    if args.json:
        text.print_json({"tree": args.tree, "stats": tree.stats(), "depths": by_depth(tree)})
        return
    print(describe(tree, args.tree))
    if args.nodes:
        print(f"\nall nodes: {args.nodes}")


def describe(tree: captree.Tree, name: str) -> str:
    """A tree in a few lines and a table by depth."""
    stats = tree.stats()
    rows, size = stats["rows"], stats["bytes"]
    lines = [
        f"{name}",
        f"  {rows:,} rows of {stats['dim']} dimensions, stored as {stats['storage']}"
        + (f"; {stats['skipped']:,} of them skipped" if stats["skipped"] else "")
        + (f"; {stats['deleted']:,} of them deleted" if stats["deleted"] else ""),
        f"  {text.size(size)} in all, {text.size(stats['vector_bytes'])} of them vectors"
        + (f"; {stats['segments']:,} segments" if stats["segments"] != 1 else ""),
        f"  {stats['nodes']:,} nodes, {stats['leaves']:,} of them leaves with {stats['leaf_rows_min']:,} to "
        f"{stats['leaf_rows_max']:,} rows (mean {stats['leaf_rows_mean']:.1f})",
        f"  fanout {stats['fanout']}, leaf size {stats['leaf_size']}, seed {stats['seed']}; kernels {stats['kernels']}",
        "",
        depth_table(tree),
    ]
    return "\n".join(lines)


def by_depth(tree: captree.Tree) -> list[dict[str, Any]]:
    """For every depth: nodes, leaves, the median rows and the median and largest bound of its nodes."""
    nodes = tree._core.nodes()
    found = []
    for depth in range(tree.depth + 1 if nodes["depth"].size else 0):
        here = nodes["depth"] == depth
        bounds = nodes["max_cos_distance"][here]
        found.append(
            {
                "depth": depth,
                "nodes": int(here.sum()),
                "leaves": int((nodes["first_child"][here] < 0).sum()),
                "median_rows": float(np.median(nodes["rows"][here])),
                "median_max_cos_distance": float(np.median(bounds)),
                "largest_max_cos_distance": float(bounds.max()),
            }
        )
    return found


def depth_table(tree: captree.Tree, indent: int = 2) -> str:
    """:func:`by_depth` as text."""
    header = ["depth", "nodes", "leaves", "median rows", "median bound", "largest bound"]
    lines = [
        [
            str(level["depth"]),
            f"{level['nodes']:,}",
            f"{level['leaves']:,}",
            f"{level['median_rows']:,.0f}",
            f"{level['median_max_cos_distance']:.3f}",
            f"{level['largest_max_cos_distance']:.3f}",
        ]
        for level in by_depth(tree)
    ]
    return text.table(header, lines, indent=indent, most=100)


def _write_nodes(tree: captree.Tree, path: str) -> None:
    suffix = Path(path).suffix
    if suffix == ".csv":
        write_table(path, tree._core.nodes())
    else:
        table = tree.nodes()
        replace_file(Path(path), lambda temporary: write_arrow(temporary, suffix, table))


def verify(args: argparse.Namespace) -> None:
    """Checks a tree."""
    began = time.perf_counter()
    tree = captree.open(args.tree)
    tree.verify(threads=args.threads, progress=not args.quiet)
    seconds = time.perf_counter() - began
    if args.json:
        text.print_json({"tree": args.tree, "sound": True, "rows": len(tree), "seconds": seconds})
    elif not args.quiet:
        print(f"{args.tree}: sound ({len(tree):,} rows checked in {text.duration(seconds)})")
