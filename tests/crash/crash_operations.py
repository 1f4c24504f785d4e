"""The operations that are disturbed, and what a tree holds before and after each: for the tests and for their children.

To add one: a function that performs it on a path, one that makes the tree before, and an entry in OPERATIONS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import captree
from captree.testing import clip_like

DIM = 32
ROWS = clip_like(9000, DIM, seed=7, dtype=np.float16)
LIMIT = "600KiB"
"""A memory limit with which about 1,400 rows make a segment."""


@dataclass(frozen=True, eq=False)
class State:
    """What a tree holds: its rows, NaN where they were deleted."""

    rows: np.ndarray

    def append(self, more: np.ndarray) -> State:
        return State(np.concatenate([self.rows, more]))

    def delete(self, numbers: Any) -> State:
        rows = self.rows.copy()
        rows[numbers] = np.nan
        return State(rows)

    @property
    def deleted(self) -> np.ndarray:
        return np.flatnonzero(np.isnan(self.rows[:, 0]))

    @property
    def alive(self) -> np.ndarray:
        return np.flatnonzero(~np.isnan(self.rows[:, 0]))


def make_nothing(path: Path) -> None:
    """For an operation that begins without a tree."""


def make_tree(path: Path) -> None:
    """Several segments, the last of 500 rows, and deleted rows in each."""
    tree = captree.build(ROWS[:3000], out=path, memory_limit=LIMIT)
    tree.append(ROWS[3000:3500])
    tree.delete(np.arange(0, 3500, 20))


BEFORE = State(ROWS[:3500]).delete(np.arange(0, 3500, 20))


def make_leftovers(path: Path) -> None:
    """The same rows, beside files of earlier states that only readers needed, who are gone."""
    tree = captree.build(ROWS[:3000], out=path, memory_limit=LIMIT)
    tree.append(ROWS[3000:3500])
    readers = []
    for rows in np.array_split(np.arange(0, 3500, 20), 4):
        readers.append(captree.open(path))
        tree.delete(rows)
        tree.compact(memory_limit=LIMIT)


def build(path: Path, progress: Any) -> None:
    captree.build(ROWS[:5000], out=path, memory_limit=LIMIT, progress=progress)


def build_one_segment(path: Path, progress: Any) -> None:
    captree.build(ROWS[:3000], out=path, progress=progress)


def append(path: Path, progress: Any) -> None:
    """The new rows become one segment with the 500 that came last."""
    captree.open(path).append(ROWS[3500:4200], progress=progress)


def append_pieces(path: Path, progress: Any) -> None:
    """The new rows make several segments."""
    captree.open(path).append(ROWS[3500:7500], memory_limit=LIMIT, progress=progress)


SOME = np.arange(5, 3500, 9)
A_SEGMENT = np.arange(3000, 3500)


def delete(path: Path, progress: Any) -> None:
    captree.open(path).delete(SOME)


def delete_a_segment(path: Path, progress: Any) -> None:
    captree.open(path).delete(A_SEGMENT)


def compact(path: Path, progress: Any) -> None:
    captree.open(path).compact(progress=progress)


def compact_pieces(path: Path, progress: Any) -> None:
    captree.open(path).compact(memory_limit=LIMIT, progress=progress)


def vacuum(path: Path, progress: Any) -> None:
    captree.open(path).vacuum()


@dataclass(frozen=True)
class Operation:
    """A command on a tree."""

    run: Callable[[Path, Any], None]
    make: Callable[[Path], None]
    before: State | None
    """None: there is no tree."""
    after: State

    @property
    def is_build(self) -> bool:
        """Whether it makes a new tree, of the same files each time, rather than changing one."""
        return self.run in (build, build_one_segment, build_large)


OPERATIONS = {
    "build": Operation(build, make_nothing, None, State(ROWS[:5000])),
    "build one segment": Operation(build_one_segment, make_nothing, None, State(ROWS[:3000])),
    "replace": Operation(build, make_tree, BEFORE, State(ROWS[:5000])),
    "append": Operation(append, make_tree, BEFORE, BEFORE.append(ROWS[3500:4200])),
    "append pieces": Operation(append_pieces, make_tree, BEFORE, BEFORE.append(ROWS[3500:7500])),
    "delete": Operation(delete, make_tree, BEFORE, BEFORE.delete(SOME)),
    "delete a segment": Operation(delete_a_segment, make_tree, BEFORE, BEFORE.delete(A_SEGMENT)),
    "compact": Operation(compact, make_tree, BEFORE, BEFORE),
    "compact pieces": Operation(compact_pieces, make_tree, BEFORE, BEFORE),
    "vacuum": Operation(vacuum, make_leftovers, BEFORE, BEFORE),
}


# ---- larger ones, which take long enough that most phases are reported

MANY = np.tile(ROWS, (4, 1))
"""Rows of which several are equal."""


def make_large_tree(path: Path) -> None:
    tree = captree.build(MANY[:12_000], out=path)
    tree.append(MANY[12_000:15_000])
    tree.delete(np.arange(0, 15_000, 20))


LARGE_BEFORE = State(MANY[:15_000]).delete(np.arange(0, 15_000, 20))


def build_large(path: Path, progress: Any) -> None:
    captree.build(MANY, out=path, threads=1, progress=progress)


def append_large(path: Path, progress: Any) -> None:
    """With the segment of 3,000 rows that came last, and the one of 12,000 before it."""
    captree.open(path).append(MANY[:20_000], threads=1, progress=progress)


def compact_large(path: Path, progress: Any) -> None:
    captree.open(path).compact(threads=1, progress=progress)


LARGE = {
    "build large": Operation(build_large, make_nothing, None, State(MANY)),
    "append large": Operation(append_large, make_large_tree, LARGE_BEFORE, LARGE_BEFORE.append(MANY[:20_000])),
    "compact large": Operation(compact_large, make_large_tree, LARGE_BEFORE, LARGE_BEFORE),
}
