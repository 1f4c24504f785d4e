"""Two writers of a tree, in two processes or two threads: the second is told who the first is, and nothing is lost."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from crash_checks import assert_holds, assert_nothing_left_over, files
from crash_child import DONE, REFUSED, hold_with, wait_for
from crash_operations import BEFORE, LIMIT, OPERATIONS, ROWS, State, make_tree

import captree
from captree.errors import TreeLockedError

CHANGES = [name for name, operation in OPERATIONS.items() if operation.before is not None]


@pytest.fixture
def path(quick_folder):
    make_tree(quick_folder / "x.captree")
    return quick_folder / "x.captree"


@pytest.mark.parametrize("name", CHANGES)
def test_a_second_process_is_told_of_the_first(path, children, more_children, name):
    held, go = path.parent / "held", path.parent / "go"
    process = children.start("hold", path, held=str(held), go=str(go))
    wait_for(held)
    end = more_children.do(name, path)
    assert_holds(captree.open(path), BEFORE, 1, "a reader does not wait")
    go.touch()
    assert children.wait().code == DONE
    assert end.code == REFUSED, end
    assert end.value.startswith("TreeLockedError: "), end.value
    assert f"process {process} " in end.value, end.value
    assert "(append)" in end.value, end.value
    assert str(path) in end.value, end.value
    assert more_children.do(name, path).code == DONE
    assert_holds(captree.open(path), OPERATIONS[name].after, 1, "afterwards")
    captree.open(path).vacuum()
    assert_nothing_left_over(path, name)


def test_a_build_that_finds_its_place_locked_can_be_gone_on_with(path, children, more_children, tmp_path):
    """What it built is not lost: the next call takes the segments that are whole as they are."""
    held, go = path.parent / "held", path.parent / "go"
    children.start("hold", path, held=str(held), go=str(go))
    wait_for(held)
    assert more_children.do("replace", path).code == REFUSED
    go.touch()
    assert children.wait().code == DONE
    (left,) = path.parent.glob(".x.captree.new-*")
    built = {file.stat().st_ino for file in left.glob("segments/*/vectors.npy")}
    OPERATIONS["replace"].run(path, False)
    again = {file.stat().st_ino for file in path.glob("segments/*/vectors.npy")}
    # All but the last one, which is built when no more rows come.
    assert len(built & again) >= len(again) - 1 >= 2
    OPERATIONS["build"].run(tmp_path / "whole", False)
    assert files(path) == files(tmp_path / "whole")
    assert_nothing_left_over(path, "replaced")


@pytest.mark.parametrize("change", ["append", "delete", "compact", "vacuum", "build"])
def test_a_second_thread_is_told_of_the_first(path, change):
    inside, go = threading.Event(), threading.Event()
    first = threading.Thread(target=hold_with, args=(path, lambda: (inside.set(), go.wait(60))))
    first.start()
    assert inside.wait(60)
    tree = captree.open(path)
    commands = {
        "append": lambda: tree.append(ROWS[3500:3510]),
        "delete": lambda: tree.delete([1]),
        "compact": tree.compact,
        "vacuum": tree.vacuum,
        "build": lambda: captree.build(ROWS[:100], out=path),
    }
    with pytest.raises(TreeLockedError, match=rf"process {os.getpid()} .*\(append\)"):
        commands[change]()
    go.set()
    first.join()
    commands[change]()
    captree.open(path).verify()


def append_when_free(tree: captree.Tree, row: int) -> range:
    """Tries again whenever another one is at it."""
    while True:
        try:
            return tree.append(ROWS[row : row + 1])
        except TreeLockedError:
            time.sleep(0.001)


def test_no_append_of_threads_that_share_a_tree_is_lost(path):
    tree = captree.open(path)
    given: list[tuple[int, range]] = []

    def append(start):
        for row in range(start, start + 10):
            given.append((row, append_when_free(tree, row)))

    threads = [threading.Thread(target=append, args=(start,)) for start in (4000, 5000, 6000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    given.sort(key=lambda pair: pair[1].start)
    assert [numbers for _, numbers in given] == [range(n, n + 1) for n in range(3500, 3530)]
    assert_holds(captree.open(path), BEFORE.append(ROWS[[row for row, _ in given]]), 1, "shared")


def test_no_append_of_many_processes_is_lost(path, children, more_children, crashes):
    each = max(15, crashes // 4)
    children.start("append_often", path, start=4000, stop=4000 + each)
    more_children.start("append_often", path, start=5000, stop=5000 + each)
    own = captree.open(path)
    for row in range(6000, 6000 + each):
        append_when_free(own, row)
    assert children.wait().code == DONE
    assert more_children.wait().code == DONE
    tree = captree.open(path)
    assert len(tree) == 3500 + 3 * each
    new = tree.take(np.arange(3500, len(tree)))
    came = [int(np.flatnonzero((row == ROWS).all(axis=1))[0]) for row in new]
    expected = [first + i for first in (4000, 5000, 6000) for i in range(each)]
    firsts = [int(np.flatnonzero((ROWS[row] == ROWS).all(axis=1))[0]) for row in expected]
    assert sorted(came) == sorted(firsts)
    assert_holds(tree, BEFORE.append(new), 2, "appended")
    del own
    tree.vacuum()
    assert_nothing_left_over(path, "appended")


# ---- a build puts another tree in the place of one that is open


def build_at(path: Path, start: int) -> State:
    captree.build(ROWS[start : start + 3000], out=path, memory_limit=LIMIT)
    return State(ROWS[start : start + 3000])


@pytest.mark.parametrize("change", ["append", "delete", "compact"])
def test_a_change_of_a_tree_that_was_replaced_takes_nothing_of_the_old_one(tmp_path, change):
    """Both trees number their segments alike, and these have the same shapes."""
    path = tmp_path / "x.captree"
    before = build_at(path, 0)
    tree = captree.open(path)
    after = build_at(path, 3000)
    assert_holds(tree, before, 1, "the reader's own")
    if change == "append":
        tree.append(ROWS[8000:8700])
        after = after.append(ROWS[8000:8700])
    elif change == "delete":
        tree.delete([5, 1500])
        after = after.delete([5, 1500])
    else:
        captree.open(path).delete([7])
        after = after.delete([7])
        tree.compact(memory_limit=LIMIT)
    for one in (tree, captree.open(path)):
        assert_holds(one, after, 1, change)


def test_who_opens_a_tree_meanwhile_has_one_of_both(quick_folder, children, crashes):
    path = quick_folder / "x.captree"
    either = [build_at(path, start) for start in (0, 3000)]
    children.start("replace_often", path, starts=[0, 3000] * max(2, crashes // 20))
    opened = [0, 0]
    done = threading.Event()
    waiting = threading.Thread(target=lambda: (children.wait(), done.set()))
    waiting.start()
    while not done.is_set():
        try:
            tree = captree.open(path)
        except captree.errors.TreeNotFoundError:
            continue  # for some microseconds there is none
        rows = tree.take(np.arange(3000))
        which = [np.array_equal(rows, state.rows) for state in either]
        assert any(which), "a mixture of two trees"
        opened[which.index(True)] += 1
    waiting.join()
    assert min(opened) > 0, opened
