"""A disk that is full, from any moment on; folders that may not be written: an error, and the tree is what it was."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from crash_checks import assert_holds, assert_nothing_left_over, assert_same, expected, files
from crash_child import DONE, REFUSED
from crash_moments import at, random_moment
from crash_operations import BEFORE, OPERATIONS, make_tree
from crash_scene import Scene, assert_goes_on, state_left

import captree

CHANGES = [name for name, operation in OPERATIONS.items() if operation.before is not None and name != "replace"]


def fill(process: int) -> None:
    """From now on the process can write nothing: as on a full disk, but for the error's number."""
    resource.prlimit(process, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def assert_was_refused_or_done(scene, end, seed, note) -> str:
    left = state_left(scene, seed, note)
    if end.code == REFUSED:
        assert end.value.startswith("StorageError: cannot write"), f"{note}: {end.value}"
        assert str(scene.path) in end.value, f"{note}: {end.value}"
        assert left in ("nothing", "before", "either"), f"{note}: {left} after {end.value}"
    else:
        assert end.code == DONE, f"{note}: {end}"
        assert left in ("after", "either"), note
    assert_goes_on(scene, left, seed, note)
    assert_nothing_left_over(scene.path, note)
    return "refused" if end.code == REFUSED else "done"


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs a system that limits other processes' files")
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "vacuum"])
def test_a_disk_that_fills_up_in_the_middle(quick_folder, children, crashes, name):
    scene = Scene(quick_folder, name)
    life = scene.measure(children)
    found: Counter[str] = Counter()
    for seed in range(max(2, crashes // 20)):
        moment = random_moment(life, np.random.default_rng([seed, *name.encode()]))
        note = f"{name}, seed {seed}, full {moment}"
        scene.set()
        at(scene.folder, moment, life, partial(children.start, name, scene.path), fill)
        found[assert_was_refused_or_done(scene, children.wait(), seed, note)] += 1
    for most in [0, 200, 1000, 20_000]:
        scene.set()
        end = children.do(name, scene.path, most_bytes=most)
        found[assert_was_refused_or_done(scene, end, most, f"{name}, at most {most} bytes a file")] += 1
    assert found["refused"] >= 2, found


def test_a_vacuum_needs_no_room(quick_folder, children):
    scene = Scene(quick_folder, "vacuum")
    scene.set()
    assert children.do("vacuum", scene.path, most_bytes=0).code == DONE
    assert_nothing_left_over(scene.path, "vacuum")
    assert_holds(captree.open(scene.path), BEFORE, 0, "vacuum")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 3 MB; only those who may mount one have it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3000k", "tmpfs", str(folder)]
    if sys.platform != "linux" or shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "vacuum"])
def test_a_disk_that_is_full(small_disk, children, name):
    scene = Scene(small_disk, name, small_disk.parent / "kept")
    scene.set()
    block = os.statvfs(small_disk).f_frsize
    before = os.statvfs(small_disk).f_bavail
    assert children.do(name, scene.path).code == DONE
    # A change that removes files needs more on its way than it takes in the end.
    needed = max(before - os.statvfs(small_disk).f_bavail, sum(map(len, files(scene.path).values())) // block // 2)
    found: Counter[str] = Counter()
    for free in sorted({0, 1, 2, *np.random.default_rng(list(name.encode())).integers(3, needed + 3, 3).tolist()}):
        scene.set()
        taken = small_disk / "taken"
        taken.write_bytes(bytes((os.statvfs(small_disk).f_bavail - free) * block))
        end = children.do(name, scene.path)
        taken.unlink()
        found[assert_was_refused_or_done(scene, end, free, f"{name}, {free} blocks free")] += 1
    assert found["refused"] >= 2, found


@pytest.fixture
def open_folder():
    """A folder that every user can reach, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for inner in [folder, *folder.rglob("*")]:
        if inner.is_dir():
            inner.chmod(0o755)
    shutil.rmtree(folder)


def protect(tree: Path) -> None:
    """Takes away the right to write; who has all rights gives theirs up in the child."""
    for entry in [*tree.rglob("*"), tree]:
        entry.chmod(0o555 if entry.is_dir() else 0o444)


def test_a_tree_that_may_only_be_read(open_folder, children):
    path = open_folder / "x.captree"
    make_tree(path)
    protect(path)
    before = files(path)
    end = children.do("read", path, seed=1, without_rights=True)
    assert end.code == DONE, end
    assert_same(end.value, expected(BEFORE, 1), "read")
    for name in [*CHANGES, "replace"]:
        end = children.do(name, path, without_rights=True)
        assert end.code == REFUSED, f"{name}: {end}"
        assert end.value.startswith("StorageError: cannot write"), f"{name}: {end.value}"
        assert str(path) in end.value, end.value
    assert files(path) == before


def test_a_folder_where_no_tree_can_be_made(open_folder, children):
    folder = open_folder / "mine"
    folder.mkdir()
    protect(folder)
    for name in ("build", "build one segment"):
        end = children.do(name, folder / "x.captree", without_rights=True)
        assert end.code == REFUSED, f"{name}: {end}"
        assert end.value.startswith(f"StorageError: cannot write the tree {folder / 'x.captree'}"), end.value
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("file", ["CURRENT", "manifest-*.json", "deleted/*", "segments/*/manifest.json", "segments/*"])
def test_a_file_that_may_not_be_read(open_folder, children, file):
    path = open_folder / "x.captree"
    make_tree(path)
    for found in path.glob(file):
        found.chmod(0)
    end = children.do("read", path, seed=1, without_rights=True)
    assert end.code == REFUSED, end
    assert end.value.startswith("StorageError: cannot "), end.value
    assert str(path) in end.value, end.value
