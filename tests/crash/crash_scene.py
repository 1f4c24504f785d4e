"""A tree before an operation, and what may be there after the operation was disturbed."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import numpy as np
from crash_checks import assert_holds, is_of
from crash_child import DONE, Children
from crash_moments import Life, live
from crash_operations import LARGE, OPERATIONS, ROWS, Operation, State

import captree

QUESTIONS = 3
"""So many sets of questions are asked in turn: brute force answers each of them once."""


class Scene:
    """A folder with the tree as it is before an operation, made anew each time."""

    def __init__(self, folder: Path, name: str, kept: Path | None = None) -> None:
        """`kept` is where the tree waits, if not in the folder."""
        self.name, self.operation = name, {**OPERATIONS, **LARGE}[name]
        self.kept, self.folder = (kept or folder / "kept") / "x.captree", folder / "scene"
        self.kept.parent.mkdir()
        self.operation.make(self.kept)
        self.path = self.folder / "x.captree"

    def set(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        if self.kept.exists():
            shutil.copytree(self.kept, self.path)

    def measure(self, children: Children) -> Life:
        """An undisturbed run: the second one, when files are in memory."""
        for _ in range(2):
            self.set()
            life = live(self.folder, lambda: children.start(self.name, self.path), lambda: finished(children))
        assert_holds(captree.open(self.path), self.operation.after, 0, self.name)
        return life


def finished(children: Children) -> None:
    end = children.wait()
    assert end.code == DONE, end


def state_left(scene: Scene, seed: int, note: str) -> str:
    """What a disturbed operation left: one of the two states, whole. Returns which one it is."""
    operation, path = scene.operation, scene.path
    if not path.exists():
        # A tree that is replaced is aside for some microseconds.
        aside = list(scene.folder.glob(".x.captree.old-*/tree/CURRENT"))
        assert operation.before is None or (operation.is_build and aside), note
        return "nothing"
    tree = captree.open(path)
    found = "after" if is_of(tree, operation.after) else "before"
    state = operation.after if found == "after" else operation.before
    assert is_of(tree, state), f"{note}: {len(tree)} rows, {len(tree.deleted)} deleted"
    assert_holds(tree, state, seed % QUESTIONS, note)
    return "either" if operation.before is operation.after else found


def assert_goes_on(scene: Scene, found: str, seed: int, note: str) -> None:
    """The same command, unless it has come to its end, and others after it do what they should."""
    operation, path, seed = scene.operation, scene.path, seed % QUESTIONS
    if found != "after":
        operation.run(path, False)
    tree = captree.open(path)
    assert_holds(tree, operation.after, seed, note)
    first = len(tree)
    assert tree.append(ROWS[8000:8100]) == range(first, first + 100), note
    gone, state = further(operation, seed)
    assert tree.delete(gone) == 50, note
    tree.vacuum()
    assert_holds(captree.open(path), state, seed, note)


@cache
def further(operation: Operation, seed: int) -> tuple[np.ndarray, State]:
    """Rows to delete, and the state without them, after an operation and an append."""
    state = operation.after.append(ROWS[8000:8100])
    gone = np.random.default_rng(seed).choice(state.alive, 50, replace=False)
    return gone, state.delete(gone)
