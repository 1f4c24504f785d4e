"""``build(invalid="skip")``: rows without a usable vector keep their number and lie in no cap."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import random_units, unit
from hypothesis import given, settings
from hypothesis import strategies as st

import captree
from captree.errors import InvalidParameterError, InvalidVectorsError, RowIndexError
from captree.testing import oracle, oracle_nearest, oracle_sample

BAD = {"nan": np.nan, "inf": np.inf, "zero": 0.0, "long": 3.0}


def spoiled(rows, places, kinds):
    """The rows with some that cannot be kept, and the same with NaN in their place."""
    bad, clean = rows.copy(), rows.copy()
    for place, kind in zip(places, kinds, strict=True):
        if kind == "nan":
            bad[place, -1] = np.nan
        elif kind == "inf":
            bad[place, 0] = -np.inf
        else:
            bad[place] *= BAD[kind]
        clean[place] = np.nan
    return bad, clean


@st.composite
def cases(draw):
    n, d = draw(st.integers(2, 200)), draw(st.integers(1, 20))
    places = sorted(draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=n - 1)))
    kinds = draw(st.lists(st.sampled_from(sorted(BAD)), min_size=len(places), max_size=len(places)))
    rows = random_units(n, d, draw(st.integers(0, 999)))
    return rows, places, kinds, draw(st.sampled_from(["float16", "float32"])), draw(st.sampled_from([2, 16, 512]))


@settings(deadline=None, max_examples=40)
@given(cases())
def test_every_answer_is_that_of_the_oracle(tmp_path_factory, case):
    rows, places, kinds, storage, leaf_size = case
    bad, clean = spoiled(rows, places, kinds)
    path = tmp_path_factory.mktemp("skip") / "t.captree"
    memory = captree.build(bad, storage=storage, leaf_size=leaf_size, fanout=4, invalid="skip")
    disk = captree.build(bad, out=path, storage=storage, leaf_size=leaf_size, invalid="skip")
    kept = np.setdiff1d(np.arange(len(rows)), places)
    stored = clean.astype(storage)
    centers = unit(rows[:3] + 0.1)
    caps = captree.Caps(np.repeat(centers, 4, axis=0), np.tile([0.1, 0.7, 1.3, 2.0], len(centers)))
    found = oracle(stored, caps)
    drawn = {replace: oracle_sample(stored, caps, 3, replace=replace, seed=7) for replace in (True, False)}
    near = oracle_nearest(stored, centers, 7).rows
    for tree in (memory, disk, captree.open(path)):
        assert len(tree) == len(rows)
        np.testing.assert_array_equal(tree.skipped, places)
        assert tree.stats()["skipped"] == len(places)
        np.testing.assert_array_equal(tree.take(kept), stored[kept])
        np.testing.assert_array_equal(tree.count(caps), found.counts)
        for (mine, far), (theirs, exact) in zip(tree.search(caps), found, strict=True):
            order = np.argsort(mine)
            np.testing.assert_array_equal(mine[order], theirs)
            np.testing.assert_array_equal(far[order], exact)
        for replace, expected in drawn.items():
            np.testing.assert_array_equal(tree.sample(caps, 3, replace=replace, seed=7), expected)
        np.testing.assert_array_equal(tree.nearest(centers, 7).rows, near)
        assert (tree.nearest(centers, len(rows)).rows == -1).sum() == len(centers) * len(places)
        tree.verify()
        with pytest.raises(RowIndexError, match=f"got {places[0]}, which was skipped"):
            tree.take([places[0]])


def test_the_order_runs_over_all_row_numbers():
    rows = random_units(300, 8)
    bad, _ = spoiled(rows, [5, 17, 200], ["zero", "nan", "long"])
    whole, some = captree.build(rows), captree.build(bad, invalid="skip")
    caps = captree.Caps(random_units(50, 8, seed=1), 1.2)
    a, b = whole.sample(caps, 4, seed=3), some.sample(caps, 4, seed=3)
    same = ~np.isin(a, [5, 17, 200])
    np.testing.assert_array_equal(a[same], b[same])
    assert not np.isin(b, [5, 17, 200]).any()


def test_what_builds_on_a_tree():
    pytest.importorskip("pyarrow")
    rows = random_units(100, 8)
    places = list(range(0, 100, 2))
    bad, _ = spoiled(rows, places, ["nan"] * len(places))
    tree = captree.build(bad, invalid="skip")
    caps = captree.training_caps(tree, 500, seed=0)
    assert not np.isin(caps.sources, places).any()
    assert set(np.unique(caps.sources)) == set(range(1, 100, 2))
    weights = captree.balancing_weights(tree, 0.5)
    assert (weights[places] == 0).all()
    assert (np.delete(weights, places) > 0).all()
    batch = next(captree.PairStream(tree, batch_size=200, seed=0, prefetch=0, centers=captree.UniformInCap(weights)))
    assert not np.isin(batch.rows, places).any()
    with pytest.raises(InvalidParameterError, match="weights: expected 0 for rows that were skipped"):
        next(captree.PairStream(tree, batch_size=8, centers=captree.UniformInCap(np.ones(100)), prefetch=0))
    assert tree.count((rows[:1], 2.0)).tolist() == [50]
    bound = tree.radius_for_mass(rows[1], 0.5)
    assert tree.count((rows[1], bound)).tolist() == [25]


def test_write_pairs_spends_kept_rows_only(tmp_path):
    pytest.importorskip("pyarrow")
    bad, _ = spoiled(random_units(20, 4), [3, 4], ["zero", "inf"])
    tree = captree.build(bad, invalid="skip")
    with pytest.raises(InvalidParameterError, match="n: expected at most 18 pairs"):
        captree.write_pairs(tree, tmp_path / "pairs", n=19, replace=False)
    captree.write_pairs(tree, tmp_path / "pairs", n=18, replace=False)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("normalize", [False, True])
def test_rows_that_can_be_scaled_are_kept(dtype, normalize):
    rows = random_units(10, 4).astype(dtype)
    rows[2] *= 3
    rows[5] = 0
    tree = captree.build(rows, normalize=normalize, invalid="skip")
    assert tree.skipped.tolist() == ([5] if normalize else [2, 5])


def test_nulls_and_masks_are_skipped():
    pa = pytest.importorskip("pyarrow")
    rows = random_units(4, 3)
    fixed = pa.array([*rows[:2].tolist(), None, rows[3].tolist()], pa.list_(pa.float32(), 3))
    lists = pa.array([*rows[:2].tolist(), None, rows[3].tolist()], pa.list_(pa.float32()))
    holes = pa.array([*rows[:2].tolist(), [None, 1.0, 0.0], rows[3].tolist()], pa.list_(pa.float64(), 3))
    objects = np.empty(4, object)
    objects[:] = [*rows[:2], None, rows[3]]
    mask = np.zeros((4, 3), bool)
    mask[2, 1] = True
    masked = np.ma.masked_array(rows, mask)
    for source in (fixed, lists, holes, objects, masked, iter([rows[0], rows[1], None, rows[3]]), fixed[:]):
        tree = captree.build(source, storage="float32", invalid="skip")
        assert tree.skipped.tolist() == [2]
        np.testing.assert_array_equal(tree.take([0, 1, 3]), rows[[0, 1, 3]])
    for source in (fixed, lists, holes, objects, masked, [rows[0], None]):
        with pytest.raises(InvalidVectorsError, match=r"null|None|masked"):
            captree.build(source)


def test_at_least_one_row_must_be_left():
    with pytest.raises(InvalidVectorsError, match=r"got 2 bad rows of 2: row 0 \(zero\), row 1 \(not finite\)"):
        captree.build(np.array([[0.0, 0.0], [np.nan, 1.0]]), invalid="skip")
    with pytest.raises(InvalidParameterError, match='invalid: expected "error" or "skip", got str \'drop\''):
        captree.build(np.eye(2), invalid="drop")


def test_one_and_two_rows_left():
    for left in ([7], [0, 9]):
        rows = np.zeros((10, 3), np.float32)
        rows[left] = random_units(len(left), 3)
        tree = captree.build(rows, invalid="skip")
        drawn = tree.sample((rows[left], 2.0), 200, seed=1)
        assert set(np.unique(drawn)) == set(left)
        assert tree.sample((rows[left[:1]], 2.0), 4, replace=False, seed=1).tolist()[0][len(left) :] == [-1] * (
            4 - len(left)
        )
