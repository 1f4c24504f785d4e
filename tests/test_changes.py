"""append, delete, compact, vacuum: exact answers in every state, row numbers that stay, snapshots that hold."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import tempfile
import threading

import numpy as np
import pytest
from helpers import by_row, random_units, unit
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import captree
from captree import Caps, errors
from captree.testing import clip_like, oracle, oracle_nearest, oracle_sample

D = 12


def files_of(path):
    return sorted(str(entry.relative_to(path)) for entry in path.rglob("*") if entry.is_file())


def caps_around(rows, seed):
    """Caps of every size around given rows: float32 unit centers."""
    rng = np.random.default_rng(seed)
    centers = unit(np.nan_to_num(rows[rng.integers(len(rows), size=6)], nan=0.5) + 0.1 * rng.standard_normal((6, D)))
    return Caps(np.repeat(centers, 3, axis=0), np.tile([0.05, 0.7, 1.6], 6))


def assert_answers(tree, stored, seed=0):
    """Every exact answer is that of brute force over `stored`, where rows that cannot be found are NaN."""
    caps = caps_around(stored, seed)
    expected = oracle(stored, caps)
    counts = np.diff(expected.offsets)
    alive = np.flatnonzero(~np.isnan(stored[:, 0]))
    assert len(tree) == len(stored)
    np.testing.assert_array_equal(tree.count(caps), counts)
    np.testing.assert_array_equal(tree.count(caps, at_least=3), np.minimum(counts, 3))
    found = tree.search(caps, sort=True)
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    assert by_row(found) == by_row(tree.search(caps)) == by_row(expected)
    assert all((np.diff(far) >= 0).all() for _, far in found)
    assert (np.diff(tree.search(caps, limit=2).offsets) == np.minimum(counts, 2)).all()
    for replace in (True, False):
        for tries in (None, 0):
            drawn = tree._core.sample(caps.centers, caps.max_cos_distance, 3, replace, seed, None, tries)
            np.testing.assert_array_equal(drawn, oracle_sample(stored, caps, 3, replace=replace, seed=seed))
    near, best = tree.nearest(caps.centers[:4], 5), oracle_nearest(stored, caps.centers[:4], 5)
    np.testing.assert_array_equal(near.rows, best.rows)
    np.testing.assert_array_equal(near.distances, best.distances)
    rough = tree.sample(caps, k=4, method="approximate", seed=seed)
    listed = [set(rows.tolist()) for rows, _ in expected]
    assert all(set(rows.tolist()) - {-1} <= inside for rows, inside in zip(rough, listed, strict=True))
    exact = tree.estimate(caps, samples=len(stored))
    np.testing.assert_array_equal(exact.count, counts)
    if alive.size:
        bounds = tree.radius_for_mass(caps.centers[:4], 0.3)
        wanted = max(int(np.ceil(0.3 * alive.size)), 1)
        assert (tree.count(Caps(caps.centers[:4], bounds)) >= wanted).all()
        below = tree.count(Caps(caps.centers[:4], np.nextafter(bounds, 0)))
        assert ((below < wanted) | (bounds == 0)).all()
        np.testing.assert_array_equal(tree.take(alive), stored[alive])


class Changes(RuleBasedStateMachine):
    """A tree on disk, and one in memory, that are changed in any order, beside a plain array."""

    def __init__(self):
        super().__init__()
        self.folder = None

    @initialize(n=st.integers(1, 60), storage=st.sampled_from(["float16", "float32"]), leaf=st.sampled_from([3, 512]))
    def build(self, n, storage, leaf):
        self.folder = tempfile.mkdtemp()
        self.path = f"{self.folder}/t.captree"
        rows = random_units(n, D, seed=n)
        self.trees = [
            captree.build(rows, out=out, storage=storage, leaf_size=leaf, fanout=3) for out in (self.path, None)
        ]
        self.stored = rows.astype(storage)
        self.skipped, self.deleted = set(), set()
        self.steps = 0

    @rule(n=st.integers(1, 40), bad=st.sets(st.integers(1, 39)), seed=st.integers(0, 99))
    def append(self, n, bad, seed):
        rows = random_units(n, D, seed=seed)
        bad = [row for row in sorted(bad) if row < n]
        rows[bad] = np.nan
        first = len(self.stored)
        for tree in self.trees:
            assert tree.append(rows, invalid="skip" if bad else "error") == range(first, first + n)
        self.stored = np.concatenate([self.stored, rows.astype(self.stored.dtype)])
        self.skipped |= {first + row for row in bad}

    @rule(share=st.sampled_from([0.0, 0.05, 0.4, 1.0]), seed=st.integers(0, 99))
    def delete(self, share, seed):
        rows = np.flatnonzero(np.random.default_rng(seed).random(len(self.stored)) < share)
        new = set(rows.tolist()) - self.skipped - self.deleted
        for tree in self.trees:
            assert tree.delete(rows) == len(new)
        self.deleted |= new
        self.stored[sorted(new)] = np.nan

    @rule(limit=st.sampled_from([None, "1MiB"]))
    def compact(self, limit):
        for tree in self.trees:
            tree.compact(memory_limit=limit)
            assert tree.stats()["segments"] <= 1

    @rule()
    def reopen(self):
        self.trees[0] = captree.open(self.path)

    @precondition(lambda self: self.folder is not None)
    @invariant()
    def answers(self):
        self.steps += 1
        for tree in self.trees:
            np.testing.assert_array_equal(tree.deleted, sorted(self.deleted))
            np.testing.assert_array_equal(tree.skipped, sorted(self.skipped))
            assert_answers(tree, self.stored, seed=self.steps)
            tree.verify()
            below = tree._core.nodes()
            roots = np.flatnonzero(below["parent"] < 0)
            alive = [row for root in roots for row in tree.node_rows(int(root)).tolist()]
            assert sorted(alive) == np.flatnonzero(~np.isnan(self.stored[:, 0])).tolist()
            assert len(roots) == tree.stats()["segments"]

    def teardown(self):
        if self.folder is not None:
            shutil.rmtree(self.folder)


Changes.TestCase.settings = settings(
    max_examples=12, stateful_step_count=6, deadline=None, suppress_health_check=list(HealthCheck)
)
TestChanges = Changes.TestCase


def changed(path=None):
    """A tree of several segments with deleted rows, and its rows with NaN where they cannot be found."""
    rows = clip_like(3000, D, seed=4)
    tree = captree.build(rows[:2000], out=path, fanout=8, leaf_size=40)
    tree.append(rows[2000:2900])
    tree.append(rows[2900:])
    gone = np.random.default_rng(0).permutation(3000)[:500]
    tree.delete(gone)
    stored = rows.astype(np.float16)
    stored[gone] = np.nan
    return tree, stored


@pytest.mark.parametrize("on_disk", [False, True])
def test_several_segments_answer_like_one(tmp_path, on_disk):
    tree, stored = changed(tmp_path / "t.captree" if on_disk else None)
    assert tree.stats()["segments"] == 3
    assert (tree.stats()["deleted"], tree.stats()["rows"]) == (500, 3000)
    assert_answers(tree, stored)
    before = (
        tree.sample(caps_around(stored, 1), k=50, seed=1),
        tree.estimate(caps_around(stored, 1), samples=99, seed=2),
    )
    tree.compact()
    assert tree.stats()["segments"] == 1
    assert tree.stats()["vector_bytes"] == 2500 * D * 2
    assert_answers(tree, stored)
    np.testing.assert_array_equal(before[0], tree.sample(caps_around(stored, 1), k=50, seed=1))
    np.testing.assert_array_equal(before[1].low, tree.estimate(caps_around(stored, 1), samples=99, seed=2).low)
    tree.verify()


def test_compacting_makes_the_files_of_a_fresh_build(tmp_path):
    rows = clip_like(3000, D, seed=4)
    tree = captree.build(rows[:1000], out=tmp_path / "a.captree", seed=5)
    tree.append(rows[1000:1800])
    tree.append(rows[1800:])
    tree.compact()
    captree.build(rows, out=tmp_path / "b.captree", seed=5)
    (mine,) = (tmp_path / "a.captree" / "segments").iterdir()
    theirs = tmp_path / "b.captree" / "segments" / "000001"
    assert files_of(mine) == files_of(theirs)
    assert all((mine / name).read_bytes() == (theirs / name).read_bytes() for name in files_of(mine))


def test_draws_do_not_depend_on_the_cut(tmp_path):
    rows = clip_like(3000, D, seed=4)
    whole = captree.build(rows)
    caps = captree.training_caps(whole, 300, seed=3)
    for limit in ("1MiB", "2MiB"):
        parts = captree.build(rows, out=tmp_path / f"{limit}.captree", memory_limit=limit)
        np.testing.assert_array_equal(parts.sample(caps, k=5, seed=1), whole.sample(caps, k=5, seed=1))
    by_appends = captree.build(rows[:700])
    for start in range(700, 3000, 460):
        by_appends.append(rows[start : start + 460])
    np.testing.assert_array_equal(by_appends.sample(caps, k=5, seed=1), whole.sample(caps, k=5, seed=1))


def test_many_small_appends_leave_few_segments(tmp_path):
    rows = random_units(50, D)
    tree = captree.build(rows[:1], out=tmp_path / "t.captree")
    for row in range(1, 50):
        assert tree.append(rows[row : row + 1]) == range(row, row + 1)
    assert tree.stats()["segments"] <= 6
    assert len(list((tmp_path / "t.captree" / "segments").iterdir())) == tree.stats()["segments"]
    assert_answers(tree, rows.astype(np.float16))
    assert_answers(captree.open(tmp_path / "t.captree"), rows.astype(np.float16))


def test_rows_that_cannot_be_found(tmp_path):
    tree, stored = changed(tmp_path / "t.captree")
    row = int(tree.deleted[0])
    with pytest.raises(errors.RowIndexError, match=f"got {row}, which was deleted"):
        tree.take(row)
    for bad in (-1, 3000):
        with pytest.raises(errors.RowIndexError, match=r"rows: expected rows in \[0, 3000\)"):
            tree.delete([0, bad])
    with pytest.raises(errors.InvalidTypeError, match="expected integers"):
        tree.delete([0.5])
    assert tree.delete([]) == 0
    assert tree.delete(tree.deleted) == 0
    assert_answers(tree, stored)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_failed_append_changes_nothing(tmp_path, on_disk):
    path = tmp_path / "t.captree" if on_disk else None
    tree, stored = changed(path)
    before = files_of(path) if on_disk else None
    with pytest.raises(errors.InvalidVectorsError, match="expected vectors of dim 12, got 5"):
        tree.append(random_units(3, 5))
    with pytest.raises(errors.InvalidVectorsError, match="got 1 bad row of 3: row 1"):
        tree.append(random_units(3, D) * np.array([[1.0], [2.0], [1.0]]))
    with pytest.raises(errors.InvalidVectorsError, match="at least one row"):
        tree.append(np.empty((0, D), np.float32))
    with pytest.raises(errors.InvalidParameterError, match="invalid"):
        tree.append(random_units(3, D), invalid="drop")
    with pytest.raises(ZeroDivisionError):
        tree.append(1 / 0 if i else random_units(9, D) for i in range(2))
    assert_answers(tree, stored)
    if on_disk:
        assert files_of(path) == before
    assert tree.append(random_units(3, D)) == range(3000, 3003)


def test_readers_keep_their_snapshot(tmp_path):
    path = tmp_path / "t.captree"
    tree, stored = changed(path)
    reader = captree.open(path)
    extra = random_units(50, D, seed=9)
    tree.append(extra)
    tree.delete(np.arange(100))
    tree.compact()
    tree.vacuum()
    assert_answers(reader, stored)
    reader.verify()
    later = pickle.loads(pickle.dumps(reader))
    assert_answers(later, stored)
    newest = np.concatenate([stored, extra.astype(np.float16)])
    newest[:100] = np.nan
    assert_answers(captree.open(path), newest)
    del reader, later
    assert tree.vacuum() > 0
    assert len(list((path / "segments").iterdir())) == 1
    assert_answers(tree, newest)
    assert tree.vacuum() == 0


def test_a_pickled_snapshot_opens_in_another_process(tmp_path):
    tree, _ = changed(tmp_path / "t.captree")
    reader = captree.open(tmp_path / "t.captree")
    expected = reader.count(Caps(random_units(1, D), 2.0))[0]
    tree.delete(np.arange(2000))
    code = "import pickle, sys, captree\nt = pickle.load(sys.stdin.buffer)\nprint(len(t) - t.deleted.size)"
    ran = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(reader), capture_output=True, check=True)
    assert int(ran.stdout) == expected == 2500
    data = pickle.dumps(reader)
    del reader
    tree.vacuum()
    with pytest.raises(errors.TreeNotFoundError, match="its state 4 is gone"):
        pickle.loads(data)


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
    tree, stored = changed(tmp_path / "t.captree")
    other = captree.open(tmp_path / "t.captree")
    told = []

    def batches():
        # Pieces have some thousand rows: the first one is built, and the lock taken, before all rows have come.
        yield random_units(4500, D, seed=1)
        yield random_units(4500, D, seed=1)
        with pytest.raises(errors.TreeLockedError, match=r"being changed by process \d+.*\(append\)") as error:
            other.delete([0])
        told.append(str(error.value))
        yield random_units(1, D, seed=2)

    tree.append(batches(), memory_limit="600KiB")
    assert len(told) == 1
    gone = int(np.flatnonzero(~np.isnan(stored[:, 0]))[0])
    assert other.delete([gone]) == 1
    assert len(other) == len(captree.open(tmp_path / "t.captree")) == 3000 + 9001


def test_changes_from_another_process_are_not_lost(tmp_path):
    rows = random_units(300, D)
    one = captree.build(rows[:100], out=tmp_path / "t.captree")
    other = captree.open(tmp_path / "t.captree")
    assert one.append(rows[100:200]) == range(100, 200)
    assert other.append(rows[200:]) == range(200, 300)
    assert len(one) == 200
    assert one.delete([5, 250 - 100]) == 2
    stored = rows.astype(np.float16)
    stored[[5, 150]] = np.nan
    assert_answers(one, stored)
    assert_answers(captree.open(tmp_path / "t.captree"), stored)


@pytest.mark.parametrize("on_disk", [False, True])
def test_threads_change_a_tree_one_at_a_time(tmp_path, on_disk):
    """No append is lost: it is made, or its thread is told that another one is at it."""
    tree = captree.build(random_units(10, D), out=tmp_path / "t.captree" if on_disk else None)
    got, refused = [], []

    def append(seed):
        try:
            got.append(tree.append(random_units(20, D, seed=seed)))
        except errors.TreeLockedError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=append, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) + len(refused) == 8
    assert got
    assert sorted(rows.start for rows in got) == list(range(10, 10 + 20 * len(got), 20))
    assert len(tree) == 10 + 20 * len(got)
    assert all("one writer at a time" in text for text in refused)


def test_all_rows_may_go(tmp_path):
    for out in (None, tmp_path / "t.captree"):
        tree = captree.build(random_units(20, D), out=out)
        assert tree.delete(range(20)) == 20
        stored = np.full((20, D), np.nan, np.float16)
        assert_answers(tree, stored)
        assert tree.stats()["segments"] == 0
        assert tree.nodes().num_rows == 0
        tree.compact()
        assert tree.append(random_units(3, D)) == range(20, 23)
        assert tree.count(Caps(random_units(1, D), 2.0)).tolist() == [3]


def test_save_writes_every_segment(tmp_path):
    tree, stored = changed()
    tree.save(tmp_path / "t.captree")
    again = captree.open(tmp_path / "t.captree")
    assert again.stats()["segments"] == 3
    assert_answers(again, stored)
    again.verify()
    assert again.append(random_units(3, D)) == range(3000, 3003)


def test_an_append_beyond_the_limit_makes_several_segments(tmp_path):
    rows = clip_like(9000, D, seed=6)
    tree = captree.build(rows[:500], out=tmp_path / "t.captree")
    assert tree.append(rows[500:], memory_limit="600KiB") == range(500, 9000)
    assert tree.stats()["segments"] > 2
    assert_answers(tree, rows.astype(np.float16))
    with pytest.raises(errors.MemoryLimitError):
        tree.append(rows, memory_limit=1000)
    with pytest.raises(errors.MemoryLimitError):
        tree.compact(memory_limit=1000)
