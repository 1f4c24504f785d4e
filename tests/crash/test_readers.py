"""A tree that is open stays what it was, whatever others do to it; so does its pickle, as long as it is open."""

from __future__ import annotations

import pickle
import shutil
import threading

import numpy as np
import pytest
from crash_checks import answers, assert_holds, assert_nothing_left_over, assert_same, expected
from crash_child import DONE, REFUSED, wait_for
from crash_operations import BEFORE, LIMIT, ROWS, make_tree

import captree
from captree.errors import TreeNotFoundError

NEW = np.arange(3500, 4300)
GONE = np.arange(3, 3400, 11)
AFTER = BEFORE.append(ROWS[NEW]).delete(GONE)


def change_everything(path) -> None:
    """No file that was there stays in use."""
    tree = captree.open(path)
    tree.append(ROWS[NEW])
    tree.delete(GONE)
    tree.compact()
    tree.vacuum()


@pytest.fixture
def path(quick_folder):
    make_tree(quick_folder / "x.captree")
    return quick_folder / "x.captree"


def test_a_reader_of_another_process(path, children, more_children):
    """It has touched nothing of its files when they are no longer the tree's."""
    how = {"pickled": str(path.parent / "pickle"), "go": str(path.parent / "go"), "seed": 4}
    children.start("read_late", path, **how)
    wait_for(path.parent / "pickle")
    change_everything(path)
    again = more_children.do("unpickle", path, **how)
    assert again.code == DONE, again
    assert_same(again.value, expected(BEFORE, 4), "the pickle, in a third process")
    (path.parent / "go").touch()
    end = children.wait()
    assert end.code == DONE, end
    assert_same(end.value, expected(BEFORE, 4), "the reader")
    tree = captree.open(path)
    assert_holds(tree, AFTER, 4, "the tree")
    assert tree.vacuum() > 100_000
    assert tree.vacuum() == 0
    assert_nothing_left_over(path, "vacuum")
    gone = more_children.do("unpickle", path, **how)
    assert gone.code == REFUSED, gone
    assert gone.value.startswith("TreeNotFoundError: "), gone.value
    assert "is gone" in gone.value, gone.value


def test_a_reader_of_this_process(path, children):
    used, unused = captree.open(path), captree.open(path)
    first = answers(used, 4)
    change_everything(path)
    pickled = path.parent / "pickle"
    pickled.write_bytes(pickle.dumps(unused))
    again = children.do("unpickle", path, pickled=str(pickled), seed=4)
    assert_same(again.value, expected(BEFORE, 4), "the pickle")
    assert_same(first, expected(BEFORE, 4), "before")
    for reader in (used, unused, pickle.loads(pickled.read_bytes())):
        assert_holds(reader, BEFORE, 5, "afterwards")
    del reader, used
    tree = captree.open(path)
    assert tree.vacuum() == 0, "one of the two is still open"
    del unused
    assert tree.vacuum() > 100_000
    assert_nothing_left_over(path, "vacuum")
    with pytest.raises(TreeNotFoundError, match="is gone"):
        pickle.loads(pickled.read_bytes())
    assert_holds(captree.open(path), AFTER, 5, "the tree")


def test_readers_between_changes_each_keep_their_state(path):
    states, readers = [BEFORE], [captree.open(path)]
    tree = captree.open(path)
    for step in range(6):
        if step % 2:
            rows = np.arange(10 + step, 3000, 50)
            tree.delete(rows)
            states.append(states[-1].delete(rows))
        else:
            tree.append(ROWS[7000 + 100 * step :][:90])
            states.append(states[-1].append(ROWS[7000 + 100 * step :][:90]))
        readers.append(captree.open(path))
    tree.compact(memory_limit=LIMIT)
    for number, (reader, state) in enumerate(zip(readers, states, strict=True)):
        assert_holds(reader, state, number, f"reader {number}")
    readers.clear()
    del reader
    assert tree.vacuum() > 0
    assert_nothing_left_over(path, "vacuum")
    assert_holds(tree, states[-1], 1, "the tree")


def test_who_opens_a_tree_while_others_change_it(path, children, crashes):
    """Each time it is one of the states that the tree has had, and later ones are not older."""
    rows = list(range(1, 1 + max(60, 4 * crashes)))
    start = len(BEFORE.deleted)
    counts = [start + sum(row % 20 > 0 for row in rows[:n]) for n in range(len(rows) + 1)]
    children.start("delete_often", path, start=rows[0], stop=rows[-1] + 1)
    done = threading.Event()
    waiting = threading.Thread(target=lambda: (children.wait(), done.set()))
    waiting.start()
    seen = [start]
    while not done.is_set():
        tree = captree.open(path)
        deleted = tree.deleted
        assert len(deleted) in counts
        assert len(deleted) >= seen[-1]
        assert tree.count((ROWS[:1], [2.0]))[0] == 3500 - len(deleted)
        seen.append(len(deleted))
    waiting.join()
    assert len(set(seen)) > 3, "it was opened in between"
    assert len(captree.open(path).deleted) == counts[-1]


def test_a_copy_is_a_tree_of_its_own(path, tmp_path, children):
    reader = captree.open(path)
    captree.open(path).append(ROWS[NEW])
    copy = tmp_path / "elsewhere" / "y.captree"
    shutil.copytree(path, copy)
    tree = captree.open(copy)
    state = BEFORE.append(ROWS[NEW])
    assert tree.path == str(copy)
    assert_holds(tree, state, 6, "the copy")
    tree.append(ROWS[:50])
    tree.delete([0, 1, 2])
    assert_holds(captree.open(copy), state.append(ROWS[:50]).delete([1, 2]), 6, "the copy, changed")
    tree.compact()
    # What a reader of the first one holds, nobody holds in the copy.
    assert_nothing_left_over(copy, "the copy")
    assert_holds(captree.open(path), state, 6, "the first one")
    assert_holds(reader, BEFORE, 6, "its reader")
    end = children.do("read", copy, seed=6)
    assert_same(end.value, expected(state.append(ROWS[:50]).delete([1, 2]), 6), "in another process")


def test_a_copy_that_is_made_while_the_tree_is_changed_is_whole_or_says_so(path, tmp_path, children):
    """A copy takes its time: its files may be of two states. It opens as one of them, or not at all."""
    children.start("delete_often", path, start=1, stop=40)
    done = threading.Event()
    waiting = threading.Thread(target=lambda: (children.wait(), done.set()))
    waiting.start()
    while not done.is_set():
        copy = tmp_path / "copy"
        try:
            shutil.copytree(path, copy)
            tree = captree.open(copy)
            tree.verify()
            more = np.setdiff1d(tree.deleted, BEFORE.deleted)
            assert more.tolist() == [row for row in range(1, 40) if row % 20][: len(more)]
        except (shutil.Error, FileNotFoundError, captree.errors.CorruptTreeError):
            pass
        shutil.rmtree(copy, ignore_errors=True)
    waiting.join()
    shutil.copytree(path, tmp_path / "copy")
    captree.open(tmp_path / "copy").verify()
