"""kill -9 at random moments of every command that writes: what was committed last stays, and the next command goes on.

CAPTREE_CRASHES says how many kills there are in all, CAPTREE_CRASH_SEED with which one they begin.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections import Counter
from functools import partial

import numpy as np
import pytest
from crash_checks import assert_nothing_left_over, files
from crash_moments import at, random_moment
from crash_operations import OPERATIONS
from crash_scene import Scene, assert_goes_on, state_left

FIRST_SEED = int(os.environ.get("CAPTREE_CRASH_SEED", "0"))


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_killed_command_leaves_one_of_two_states(tmp_path, children, crashes, name):
    scene = Scene(tmp_path, name)
    life = scene.measure(children)
    whole = files(scene.path)
    kills = -(-crashes // len(OPERATIONS))
    found: Counter[str] = Counter()
    for seed in itertools.count(FIRST_SEED):
        # A kill that comes when all is done is none; of commands that take milliseconds, many come too late.
        if found["killed"] == kills:
            break
        assert seed < FIRST_SEED + 30 * kills, found
        moment = random_moment(life, np.random.default_rng([seed, *name.encode()]))
        note = f"{name}, seed {seed}, killed {moment}"
        scene.set()
        at(scene.folder, moment, life, partial(children.start, name, scene.path), kill)
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
