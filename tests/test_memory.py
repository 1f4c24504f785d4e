"""Builds under a memory limit: several segments, and builds that go on where they stopped."""

from __future__ import annotations

import numpy as np
import pytest

import captree
from captree import errors
from captree.testing import clip_like

N, D, LIMIT = 9000, 12, "600KiB"


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def rows():
    return clip_like(N, D, seed=8)


def batches(rows, stop=None, size=700):
    """The rows batch by batch; it fails where the batch of row `stop` would come."""
    for start in range(0, len(rows), size):
        if stop is not None and start >= stop:
            raise Stop
        yield rows[start : start + size]


def interrupted(rows, out, **options):
    """A build that ends before its time, with two segments and a part of the third done."""
    with pytest.raises(Stop):
        captree.build(batches(rows, stop=8000), out=out, memory_limit=LIMIT, **options)
    (left,) = out.parent.glob(".t.captree.new-*")
    assert sorted(folder.name for folder in (left / "segments").iterdir())[:2] == ["000001", "000002"]
    assert not out.exists()
    return left


def files_of(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory):
    """The files of a build that was not interrupted."""
    path = tmp_path_factory.mktemp("whole") / "t.captree"
    tree = captree.build(rows, out=path, memory_limit=LIMIT)
    assert tree.stats()["segments"] > 2
    tree.verify()
    return files_of(path)


@pytest.mark.parametrize("size", [1, 333, 5000, N])
def test_the_files_do_not_depend_on_the_batches(rows, whole, tmp_path, size):
    captree.build(batches(rows, size=size), out=tmp_path / "t.captree", memory_limit=LIMIT, threads=1)
    assert files_of(tmp_path / "t.captree") == whole


def test_a_build_goes_on_where_it_stopped(rows, whole, tmp_path):
    out = tmp_path / "t.captree"
    left = interrupted(rows, out)
    first = left / "segments" / "000001" / "vectors.npy"
    inode = first.stat().st_ino
    phases = []
    tree = captree.build(
        rows, out=out, memory_limit=LIMIT, progress=lambda phase, done, total: phases.append((phase, done, total))
    )
    assert phases[0][0] == "built before"
    assert 0 < phases[0][1] < N
    assert files_of(out) == whole
    assert (out / "segments" / "000001" / "vectors.npy").stat().st_ino == inode  # not built again
    assert len(tree) == N
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.captree"]


@pytest.mark.parametrize("change", ["value", "dtype", "fewer", "dim"])
def test_other_rows_are_refused_and_nothing_is_lost(rows, whole, tmp_path, change):
    out = tmp_path / "t.captree"
    left = interrupted(rows, out)
    other = {
        "value": np.concatenate([rows[1:], rows[:1]]),
        "dtype": rows.astype(np.float64),
        "fewer": rows[:100],
        "dim": clip_like(N, D + 1, seed=8),
    }[change]
    with pytest.raises(
        errors.InvalidVectorsError, match=r"expected the \d+ rows of dim 12 .* remove .*t\.captree\.new-"
    ):
        captree.build(other, out=out, memory_limit=LIMIT)
    assert left.exists()
    captree.build(rows, out=out, memory_limit=LIMIT)
    assert files_of(out) == whole


@pytest.mark.parametrize("options", [{"seed": 1}, {"storage": "float32"}, {"leaf_size": 100}, {"normalize": True}])
def test_a_build_with_other_arguments_begins_anew(rows, tmp_path, options):
    out = tmp_path / "t.captree"
    left = interrupted(rows, out)
    tree = captree.build(rows, out=out, memory_limit=LIMIT, **options)
    assert not left.exists()
    assert len(tree) == N
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.captree"]


def test_bad_rows_are_counted_to_the_end(rows, tmp_path):
    bad = rows.copy()
    bad[[10, 5000, N - 1]] *= 2
    with pytest.raises(errors.InvalidVectorsError, match=r"got 3 bad rows of 9000: row 10 .*row 5000 .*row 8999"):
        captree.build(bad, out=tmp_path / "t.captree", memory_limit=LIMIT)
    assert list(tmp_path.iterdir()) == []
    tree = captree.build(bad, out=tmp_path / "t.captree", memory_limit=LIMIT, invalid="skip")
    assert tree.skipped.tolist() == [10, 5000, N - 1]
    assert tree.count((rows[:1], 2.0)).tolist() == [N - 3]


def test_segments_without_rows_are_left_out(rows, tmp_path):
    holes = rows.copy()
    holes[:7000] = np.nan
    tree = captree.build(holes, out=tmp_path / "t.captree", memory_limit=LIMIT, invalid="skip")
    np.testing.assert_array_equal(tree.skipped, np.arange(7000))
    assert tree.count((rows[:1], 2.0)).tolist() == [2000]
    np.testing.assert_array_equal(tree.take(range(7000, N)), rows[7000:].astype(np.float16))
    tree.verify()
    tree.compact()
    assert tree.count((rows[:1], 2.0)).tolist() == [2000]
    np.testing.assert_array_equal(tree.skipped, np.arange(7000))


def test_a_limit_that_is_too_small_says_what_it_takes(rows, tmp_path):
    with pytest.raises(
        errors.MemoryLimitError, match=r"at least (\d+) bytes for 1024 rows of dim 12, got 10000"
    ) as error:
        captree.build(rows, out=tmp_path / "t.captree", memory_limit=10_000)
    needed = int(str(error.value).split("at least ")[1].split()[0])
    assert len(captree.build(rows, out=tmp_path / "t.captree", memory_limit=needed)) == N
    with pytest.raises(errors.MemoryLimitError):
        captree.build(rows, out=tmp_path / "t.captree", memory_limit=needed - 8)
