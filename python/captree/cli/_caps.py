"""The caps of a command line: where their centers come from, and their bounds.

Centers come from exactly one of a file, ``--row`` (rows of the tree itself) and ``--training`` (random caps as used for
training). Bounds given on the command line apply to every center, each of them, and replace those that a file or the
training caps bring along.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import captree
from captree._arrays import matrix
from captree._files import load_npy
from captree._inputs import slices
from captree._paths import absolute
from captree._rows import Reading, Rows
from captree.cli._files import read_columns
from captree.cli._parser import UsageError, add_seed, number_list, positive, whole_list
from captree.errors import InvalidParameterError

HOW = """
Caps are centers with bounds. Centers are a file, rows of the tree (--row) or random training caps
(--training). Several bounds separated by commas make that many caps of every center.
"""

_BOUNDS = ("max_cos_distance", "radius", "min_cosine")


@dataclass(frozen=True)
class NamedCaps:
    """Caps, and how to call each of them in a table."""

    caps: captree.Caps
    names: list[str]
    bounds: NDArray[np.float64]
    """float64 (q,), as cosine distances."""

    def __len__(self) -> int:
        return len(self.names)


def add_caps(parser: argparse.ArgumentParser, seed_help: str = "seed of the training caps (default 0)") -> None:
    """The arguments that :func:`read_caps` reads."""
    group = parser.add_argument_group("caps")
    group.add_argument(
        "centers",
        metavar="CENTERS",
        nargs="?",
        help="centers: .npy of shape (q, d) or (d,), or Parquet / Arrow with a column of vectors and, if you like, "
        "max_cos_distance and text (the names of the caps)",
    )
    group.add_argument(
        "--column", metavar="C", help="the file's column of centers (default: its only column of vectors)"
    )
    group.add_argument("--normalize", action="store_true", help="scale the file's centers to unit length")
    group.add_argument(
        "--row",
        metavar="R",
        type=whole_list,
        action="append",
        help="row R of the tree, at unit length, as a center; R1,R2,...",
    )
    group.add_argument("--training", metavar="N", type=positive, help="N random training caps, with their own bounds")
    group.add_argument(
        "-d", "--max-cos-distance", metavar="B", type=number_list, help="bound as a cosine distance, 0 to 2; B1,B2,..."
    )
    group.add_argument("--radius", metavar="A", type=number_list, help="bound as an angle in radians, 0 to pi")
    group.add_argument(
        "--min-cosine",
        metavar="M",
        type=number_list,
        help="bound as a smallest cosine, -1 to 1; a list that begins below zero as --min-cosine=-0.2,0.4",
    )
    add_seed(group, None, seed_help)


def read_caps(args: argparse.Namespace, tree: captree.Tree, training: int | None = None) -> NamedCaps:
    """The caps that `args` ask for; with nothing asked, `training` training caps if that is given."""
    rows = [row for part in args.row or [] for row in part]
    wanted = [
        name for name, given in (("CENTERS", args.centers), ("--row", rows), ("--training", args.training)) if given
    ]
    if len(wanted) > 1:
        raise UsageError(f"expected one source of centers, got {' and '.join(wanted)}")
    if not wanted and training is None:
        raise UsageError("expected caps: a CENTERS file, --row or --training")

    own: NDArray[np.float64] | None = None
    if args.centers:
        centers, own, names = _from_file(Path(absolute("CENTERS", args.centers)), args)
    elif rows:
        centers, names = _unit(tree.take(np.array(rows, dtype=np.int64))), [f"row {row}" for row in rows]
    else:
        seed = 0 if args.seed is None else args.seed
        drawn = captree.training_caps(tree, args.training or training or 0, seed=seed)
        centers, own = drawn.centers, drawn.max_cos_distance
        names = [f"training {i}" for i in range(len(own))]

    given = [name for name in _BOUNDS if getattr(args, name) is not None]
    if len(given) > 1:
        raise UsageError("expected one kind of bound, got " + " and ".join("--" + n.replace("_", "-") for n in given))
    if given:
        bounds = getattr(args, given[0])
        caps = _make(given[0], np.repeat(centers, len(bounds), axis=0), np.tile(bounds, len(centers)))
        names = [name for name in names for _ in bounds]
    elif own is not None:
        caps = captree.Caps(centers, own)
    else:
        raise UsageError("expected a bound: --max-cos-distance, --radius or --min-cosine")
    return NamedCaps(caps, names, np.asarray(caps.max_cos_distance, dtype=np.float64))


def _make(kind: str, centers: NDArray[Any], bounds: NDArray[np.float64]) -> captree.Caps:
    if kind == "radius":
        return captree.Caps.from_radius(centers, bounds)
    if kind == "min_cosine":
        return captree.Caps.from_min_cosine(centers, bounds)
    return captree.Caps(centers, bounds)


def _from_file(path: Path, args: argparse.Namespace) -> tuple[NDArray[Any], NDArray[np.float64] | None, list[str]]:
    """Centers, bounds if the file has them, and names."""
    found: dict[str, list[Any]] = {}
    if path.suffix == ".npy":
        centers = _array(matrix(load_npy(path), str(path)))
    else:
        if path.is_dir():
            raise InvalidParameterError(f"{path}: expected one file of centers, got a folder")
        centers = np.concatenate([_array(rows) for rows in slices(path, Reading(args.column, args.normalize))])
        found = read_columns(path, ["max_cos_distance", "text"])
    names = ["" if text is None else str(text) for text in found.get("text", [])] or [
        f"center {i}" for i in range(len(centers))
    ]
    own: NDArray[np.float64] | None = None
    if any(bound is None for bound in found.get("max_cos_distance", [])):
        raise InvalidParameterError(f"{path}: expected no nulls in the column 'max_cos_distance'")
    if "max_cos_distance" in found:
        try:
            own = np.array(found["max_cos_distance"], dtype=np.float64)
        except (TypeError, ValueError):
            raise InvalidParameterError(f"{path}: expected numbers in the column 'max_cos_distance'") from None
    return (_unit(centers) if args.normalize else centers), own, names


def _array(rows: Rows) -> NDArray[Any]:
    """The rows in their own element type where numpy has it: the tolerance for unit length goes by it."""
    return rows.float32() if rows.bfloat16 else rows.array


def _unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Rows scaled to unit length in float64: stored float16 rows are unit only to about 1e-3. Zero rows stay."""
    exact = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(exact, axis=1, keepdims=True)
    return (exact / np.where(length > 0, length, 1.0)).astype(np.float32)
