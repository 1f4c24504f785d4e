"""captree append, delete, compact, vacuum."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import captree
from captree._centers import kept_rows
from captree._files import load_npy
from captree.cli import _text as text
from captree.cli._files import read_columns
from captree.cli._parser import (
    UsageError,
    Verbs,
    add_json,
    add_memory_limit,
    add_quiet,
    add_threads,
    add_tree,
    add_vectors,
    verb,
)

_RANGE = re.compile(r"(\d[\d_]*)(?:-(\d[\d_]*))?")


def add(verbs: Verbs) -> None:
    """Adds the verbs of this module."""
    parser = verb(
        verbs,
        "append",
        append,
        "Add rows to a tree.",
        """
        captree append words.captree words.npy
        captree append words.captree embeddings.parquet --column embedding
        captree append words.captree raw.npy --normalize --memory-limit 8GiB
        """,
        """
IN is what captree build takes. The rows get the next numbers and are there for every query once the command
ends; if it fails or is interrupted, the tree is what it was. Trees that are open elsewhere stay as they are.
        """,
    )
    add_tree(parser)
    parser.add_argument("input", metavar="IN", help="vectors: .npy, Parquet or Arrow IPC, one file or a folder")
    add_vectors(parser)
    add_memory_limit(parser)
    _add_rest(parser)

    parser = verb(
        verbs,
        "delete",
        delete,
        "Delete rows of a tree.",
        """
        captree delete words.captree 17
        captree delete words.captree 3,5 100-199
        captree delete words.captree rows.npy          a file of row numbers
        """,
        """
ROWS are numbers, ranges whose end is included, or files: .npy, a text file with a number per line, Parquet or
Arrow with a column "row". Deleted rows lie in no cap; all others keep their numbers. Their vectors leave the
disk with captree compact.
        """,
    )
    add_tree(parser)
    parser.add_argument("rows", metavar="ROWS", nargs="+", help="numbers, ranges, files of row numbers")
    add_json(parser)

    parser = verb(
        verbs,
        "compact",
        compact,
        "Make a changed tree as quick and small as a new one.",
        """
        captree compact words.captree
        captree compact words.captree --memory-limit 8GiB
        """,
        """
Segments that appends left become one, or as few as can be built within the limit, without deleted rows. Rows
keep their numbers, and every exact answer stays the same. If it fails or is interrupted, the tree is what it
was; meanwhile it takes the disk space of both.
        """,
    )
    add_tree(parser)
    add_memory_limit(parser)
    _add_rest(parser)

    parser = verb(
        verbs,
        "vacuum",
        vacuum,
        "Remove files of a tree that nobody needs any more.",
        "captree vacuum words.captree",
        """
Every change removes what is not needed then. This removes what was still open in another process.
        """,
    )
    add_tree(parser)
    add_json(parser)


def _add_rest(parser: argparse.ArgumentParser) -> None:
    add_threads(parser)
    add_quiet(parser)
    add_json(parser)


def append(args: argparse.Namespace) -> None:
    """Adds rows to a tree."""
    began = time.perf_counter()
    tree = captree.open(args.tree)
    rows = tree.append(
        args.input,
        normalize=args.normalize,
        memory_limit=args.memory_limit,
        threads=args.threads,
        progress=not args.quiet,
        column=args.column,
        invalid=args.invalid,
    )
    seconds = time.perf_counter() - began
    if args.json:
        text.print_json({"tree": args.tree, "first": rows.start, "rows": len(rows), "seconds": seconds})
    else:
        print(f"{args.tree}: rows {rows.start:,} to {rows.stop - 1:,} added in {text.duration(seconds)}")


def delete(args: argparse.Namespace) -> None:
    """Deletes rows."""
    rows = np.concatenate([_row_numbers(given) for given in args.rows])
    tree = captree.open(args.tree)
    deleted = tree.delete(rows)
    left = kept_rows(tree)
    if args.json:
        text.print_json({"tree": args.tree, "deleted": deleted, "left": left})
    else:
        print(f"{args.tree}: {deleted:,} rows deleted, {left:,} left")


def compact(args: argparse.Namespace) -> None:
    """Compacts a tree."""
    began = time.perf_counter()
    tree = captree.open(args.tree)
    before = tree.stats()
    tree.compact(memory_limit=args.memory_limit, threads=args.threads, progress=not args.quiet)
    after, seconds = tree.stats(), time.perf_counter() - began
    if args.json:
        text.print_json({"tree": args.tree, "seconds": seconds, "before": before, "after": after})
    else:
        print(
            f"{args.tree}: {_segments(before['segments'])} of {text.size(before['bytes'])} became "
            f"{_segments(after['segments'])} of {text.size(after['bytes'])} in {text.duration(seconds)}"
        )


def vacuum(args: argparse.Namespace) -> None:
    """Removes files that nobody needs."""
    freed = captree.open(args.tree).vacuum()
    if args.json:
        text.print_json({"tree": args.tree, "bytes": freed})
    else:
        print(f"{args.tree}: {text.size(freed)} removed")


def _segments(count: int) -> str:
    return "1 segment" if count == 1 else f"{count:,} segments"


def _row_numbers(given: str) -> NDArray[np.int64]:
    """The rows that a word of the command line names."""
    parts = [_RANGE.fullmatch(part) for part in given.split(",")]
    if all(parts):
        ranges = [(int(part[1]), int(part[2] or part[1])) for part in parts if part]
        return np.concatenate([np.arange(first, last + 1, dtype=np.int64) for first, last in ranges])
    path = Path(given)
    suffix = path.suffix.lower()
    found: NDArray[Any]
    if suffix == ".npy":
        found = load_npy(path)
    elif suffix in (".parquet", ".arrow", ".feather", ".ipc"):
        found = np.asarray(read_columns(path, ["row"]).get("row", []))
    elif path.is_file():
        lines = path.read_text(encoding="utf-8").split()
        if not all(_RANGE.fullmatch(line) for line in lines):
            raise UsageError(f"expected a row number per line in {given}")
        found = np.array([int(line) for line in lines], np.int64)
    else:
        raise UsageError(f"expected row numbers, ranges such as 100-199, or a file of them, got {given!r}")
    if found.size == 0 or found.dtype.kind not in "iu":
        raise UsageError(f'expected row numbers in {given}, in a table in the column "row"')
    return found.astype(np.int64).reshape(-1)
