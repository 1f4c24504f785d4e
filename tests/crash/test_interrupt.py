"""Ctrl-C in every phase of a build, an append and a compaction: the tree is what it was, and the same command succeeds.

A signal that comes while a change is being committed may find it committed: then the command raises KeyboardInterrupt
and the tree is what it has become. Nothing in between is ever found.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from crash_checks import assert_holds, assert_nothing_left_over, files
from crash_child import DONE, STOPPED
from crash_moments import at, random_moment
from crash_operations import LARGE, LIMIT, OPERATIONS, ROWS
from crash_scene import Scene, assert_goes_on, state_left

import captree


def interrupt(process: int) -> None:
    os.kill(process, signal.SIGINT)


def assert_is_whole_after_all(scene, whole, end, left, seed, note) -> None:
    assert end.code in (DONE, STOPPED), f"{note}: {end}"
    assert end.code == STOPPED or left in ("after", "either"), f"{note}: {left}"
    if scene.operation.is_build:
        scene.operation.run(scene.path, False)
        assert files(scene.path) == whole, note
    else:
        assert_goes_on(scene, left, seed, note)
    assert_nothing_left_over(scene.path, note)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if "delete" not in name and name != "vacuum"])
def test_at_any_moment(quick_folder, children, crashes, name):
    scene = Scene(quick_folder, name)
    life = scene.measure(children)
    whole = files(scene.path)
    found: Counter[str] = Counter()
    signals = max(3, crashes // 10)
    for seed in itertools.count():
        # One that comes when all is done is none.
        if found["stopped"] == signals:
            break
        assert seed < 30 * signals, found
        moment = random_moment(life, np.random.default_rng([seed, *name.encode()]))
        note = f"{name}, seed {seed}, interrupted {moment}"
        scene.set()
        at(scene.folder, moment, life, partial(children.start, name, scene.path), interrupt)
        end = children.wait()
        left = state_left(scene, seed, note)
        assert_is_whole_after_all(scene, whole, end, left, seed, note)
        found.update({left: 1, "stopped": end.code == STOPPED})


@pytest.mark.parametrize("name", LARGE)
def test_in_each_phase(quick_folder, children, name):
    """The signal comes while a phase is reported, in the middle of the work: nothing of it is committed."""
    scene = Scene(quick_folder, name)
    phases: set[str] = set()
    for _ in range(3):
        scene.set()
        end = children.do(name, scene.path)
        assert end.code == DONE, end
        phases.update(end.value)
    whole = files(scene.path)
    stopped: list[str] = []
    late: list[str] = []
    for phase in sorted(phases) * 2:
        note = f"{name}, interrupted in the phase {phase!r}"
        scene.set()
        end = children.do(name, scene.path, stop_in=phase)
        left = state_left(scene, 0, note)
        if end.code == STOPPED:
            (late if left == "after" else stopped).append(phase)
        assert_is_whole_after_all(scene, whole, end, left, 0, note)
    # Reports come every now and then: a short phase is not met each time.
    assert len(set(stopped)) >= 2, f"{name}: reported {sorted(phases)}, interrupted in {stopped}"
    # Only the last step, which takes no time to speak of, can no longer be stopped.
    assert len(late) <= 1, f"{name}: interrupted in {late}, and done all the same"


@pytest.mark.parametrize("end_it", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
@pytest.mark.parametrize("segments", [1, 2])
def test_a_build_goes_on_where_it_stopped(tmp_path, children, end_it, segments):
    """Its finished segments become those of the tree, the files themselves; only other rows are built into segments."""
    scene = Scene(tmp_path, "build")
    scene.measure(children)
    whole = files(scene.path)
    for _ in range(10):
        scene.set()
        process = children.start("build", scene.path)
        while noted_segments(scene.folder) < segments and not scene.path.exists():
            time.sleep(0.001)
        os.kill(process, end_it)
        children.wait()
        if not scene.path.exists():
            break
    noted = noted_segments(scene.folder)
    assert noted >= segments, "the build is never found in the middle"
    (left,) = scene.folder.glob(".x.captree.new-*")
    names = [f"segments/{number:06}/vectors.npy" for number in range(1, noted + 1)]
    done = [(left / name).stat().st_ino for name in names]
    scene.operation.run(scene.path, False)
    assert [(scene.path / name).stat().st_ino for name in names] == done
    assert files(scene.path) == whole
    assert_nothing_left_over(scene.path, "gone on with")
    assert_holds(captree.open(scene.path), scene.operation.after, 0, "gone on with")


def noted_segments(folder: Path) -> int:
    """How many segments a build has noted as done, that has not come to its end."""
    for job in folder.glob(".x.captree.new-*/job.json"):
        with contextlib.suppress(FileNotFoundError):
            return len(json.loads(job.read_text())[1]["segments"])
    return 0


def test_other_rows_do_not_go_on_with_a_build(tmp_path, children):
    scene = Scene(tmp_path, "build")
    scene.set()
    process = children.start("build", scene.path)
    while noted_segments(scene.folder) < 1 and not scene.path.exists():
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    children.wait()
    if not scene.path.exists():
        with pytest.raises(captree.errors.InvalidVectorsError, match="interrupted; remove "):
            captree.build(ROWS[1:5001], out=scene.path, memory_limit=LIMIT)
    scene.operation.run(scene.path, False)
    assert_holds(captree.open(scene.path), scene.operation.after, 1, "the first rows")
    assert_nothing_left_over(scene.path, "the first rows")


def test_what_a_build_that_was_killed_had_begun_to_note_is_removed(tmp_path):
    """A note that is not whole, in a folder with nothing to go on with."""
    left = tmp_path / ".x.captree.new-abcdef"
    (left / "segments" / "000001").mkdir(parents=True)
    (left / "deleted").mkdir()
    (left / "job.json.tmp").write_text("[")
    OPERATIONS["build"].run(tmp_path / "x.captree", False)
    assert_nothing_left_over(tmp_path / "x.captree", "a note that is not whole")
