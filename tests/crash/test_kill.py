"""kill -9 at random moments of every command that writes: what was committed last stays, and the next command goes on.

CAPTREE_CRASHES says how many kills there are in all, CAPTREE_CRASH_SEED with which one they begin.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from crash_checks import assert_holds, assert_nothing_left_over, files, is_of
from crash_moments import Life, at, live, random_moment
from crash_operations import OPERATIONS, ROWS, State

import captree

FIRST_SEED = int(os.environ.get("CAPTREE_CRASH_SEED", "0"))


class Scene:
    """A folder with the tree as it is before an operation, made anew each time."""

    def __init__(self, folder: Path, name: str) -> None:
        self.operation = OPERATIONS[name]
        self.kept, self.folder = folder / "kept" / "x.captree", folder / "scene"
        self.kept.parent.mkdir()
        self.operation.make(self.kept)
        self.path = self.folder / "x.captree"

    def set(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        if self.kept.exists():
            shutil.copytree(self.kept, self.path)

    def measure(self, children, name) -> Life:
        """An undisturbed run: the second one, when files are in memory."""
        for _ in range(2):
            self.set()
            life = live(self.folder, lambda: children.start(name, self.path), lambda: finished(children))
        assert_holds(captree.open(self.path), self.operation.after, 0, name)
        return life


def finished(children) -> None:
    end = children.wait()
    assert end.code == 0, end


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
    assert_holds(tree, state, seed, note)
    return "either" if operation.before is operation.after else found


def assert_goes_on(scene: Scene, found: str, seed: int, note: str) -> None:
    """The same command, unless it has come to its end, and others after it do what they should."""
    operation, path, state = scene.operation, scene.path, scene.operation.after
    if found != "after":
        operation.run(path, False)
    tree = captree.open(path)
    assert_holds(tree, state, seed, note)
    numbers = tree.append(ROWS[8000:8100])
    state = state.append(ROWS[8000:8100])
    gone = np.random.default_rng(seed).choice(state.alive, 50, replace=False)
    assert tree.delete(gone) == 50, note
    assert numbers == range(len(state.rows) - 100, len(state.rows)), note
    tree.vacuum()
    assert_holds(captree.open(path), state.delete(gone), seed, note)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_killed_command_leaves_one_of_two_states(tmp_path, children, crashes, name):
    scene = Scene(tmp_path, name)
    life = scene.measure(children, name)
    whole = files(scene.path)
    kills = -(-crashes // len(OPERATIONS))
    found: Counter[str] = Counter()
    for seed in range(FIRST_SEED, FIRST_SEED + kills):
        moment = random_moment(life, np.random.default_rng([seed, *name.encode()]))
        note = f"{name}, seed {seed}, killed {moment}"
        scene.set()
        process: list[int] = []
        at(
            scene.folder,
            moment,
            lambda: process.append(children.start(name, scene.path)),
            life,
            lambda: os.kill(process[0], signal.SIGKILL),
        )
        end = children.wait()
        assert end.was_killed or end.code == 0, f"{note}: {end}"
        left = state_left(scene, seed, note)
        found.update({left: 1, "killed": end.was_killed})
        if scene.operation.is_build:
            scene.operation.run(scene.path, False)
            assert files(scene.path) == whole, note
            assert_nothing_left_over(scene.path, note)
            continue
        assert_goes_on(scene, left, seed, note)
        assert_nothing_left_over(scene.path, note)
    print(f"{name}: {dict(found)}")  # noqa: T201
    # Moments are measured, not known: most of them fall into the life of the process.
    assert found["killed"] >= kills // 3, found
