"""count, search and nearest are what exact arithmetic over the kept rows gives."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from helpers import all_rows, by_row, random_units, unit
from hypothesis import given, settings
from hypothesis import strategies as st

import captree
from captree import Caps, testing
from captree.testing import clip_like, oracle, oracle_nearest

STORAGES = ["float16", "float32"]


def assert_exact(tree, caps, threads=None):
    """Compares everything about `caps` with the oracle, bit for bit."""
    truth = oracle(all_rows(tree), caps)
    np.testing.assert_array_equal(tree.count(caps, threads=threads), truth.counts)
    assert by_row(tree.search(caps, threads=threads)) == by_row(truth)
    ordered = tree.search(caps, sort=True, threads=threads)
    np.testing.assert_array_equal(ordered.offsets, truth.offsets)
    for (rows, far), (true_rows, true_far) in zip(ordered, truth, strict=True):
        order = np.lexsort((true_rows, true_far))
        np.testing.assert_array_equal(rows, true_rows[order])
        np.testing.assert_array_equal(far, true_far[order])


def ulps(bound):
    """A bound and its neighbours, kept within [0, 2]."""
    return np.clip([np.nextafter(bound, -1), bound, np.nextafter(bound, 3)], 0, 2)


def knife_edge_caps(rows, centers, seed=0):
    """Caps whose bound is the rounded distance of some row, and one ulp to either side."""
    rng = np.random.default_rng(seed)
    parts = []
    for center in centers:
        row = rows[rng.integers(len(rows))][None]
        at = oracle(row, Caps(center, 2.0)).distances
        if at.size:
            parts.append(Caps(center, ulps(at[0])))
    return Caps.concat(parts)


@settings(max_examples=150)
@given(
    st.data(),
    testing.unit_vectors(max_rows=150),
    st.sampled_from(STORAGES),
    st.integers(2, 9),
    st.integers(1, 20),
    st.booleans(),
)
def test_anything(data, rows, storage, fanout, leaf_size, one_thread):
    tree = captree.build(rows, storage=storage, fanout=fanout, leaf_size=leaf_size, seed=data.draw(st.integers(0, 99)))
    tree.verify()
    kept = all_rows(tree)
    np.testing.assert_array_equal(kept, rows.astype(storage))
    caps = data.draw(testing.caps(kept))
    assert_exact(tree, caps, threads=1 if one_thread else None)
    k = data.draw(st.integers(1, 20))
    if len(caps):
        expected, got = oracle_nearest(kept, caps.centers, k), tree.nearest(caps.centers, k)
        np.testing.assert_array_equal(got.rows, expected.rows)
        np.testing.assert_array_equal(got.distances, expected.distances)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("exponent", [testing.STEEP, testing.FLAT])
def test_training_caps_on_embeddings(storage, exponent):
    tree = captree.build(clip_like(4000, 96, seed=2, exponent=exponent), storage=storage, fanout=16, leaf_size=50)
    caps = captree.training_caps(tree, 400, seed=1)
    kept = all_rows(tree)
    truth = oracle(kept, caps[:60])
    np.testing.assert_array_equal(tree.count(caps[:60]), truth.counts)
    small = caps[np.flatnonzero(tree.count(caps) <= 100)]
    assert len(small) > 20
    assert_exact(tree, small)
    wide = kept.astype(np.float64) @ caps.centers.astype(np.float64).T
    clear = np.abs(1 - wide - caps.max_cos_distance).min(axis=0) > 1e-9
    assert clear.sum() > 350
    np.testing.assert_array_equal(tree.count(caps)[clear], ((1 - wide) <= caps.max_cos_distance).sum(axis=0)[clear])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("d", [1, 2, 3, 7, 16, 17, 31, 64, 100, 333, 768, 1025, 4096])
def test_every_dimension(d, storage):
    n = 400 if d < 1000 else 130
    rows = random_units(n, d, seed=d)
    tree = captree.build(rows, storage=storage, fanout=8, leaf_size=20)
    kept = all_rows(tree)
    centers = np.concatenate([random_units(4, d, seed=d + 1), rows[:3], -rows[:2]])
    assert_exact(tree, Caps(centers, np.linspace(0, 2, len(centers))))
    assert_exact(tree, knife_edge_caps(kept, centers))
    expected, got = oracle_nearest(kept, centers, 7), tree.nearest(centers, 7)
    np.testing.assert_array_equal(got.rows, expected.rows)
    np.testing.assert_array_equal(got.distances, expected.distances)


@pytest.mark.parametrize("storage", STORAGES)
def test_bounds_at_rows_distances(tree, vectors, storage):
    if storage == "float32":
        tree = captree.build(vectors, storage=storage, fanout=8, leaf_size=40)
    kept = all_rows(tree)
    centers = np.concatenate([captree.training_caps(tree, 60, seed=8).centers, unit(kept[:20])])
    assert_exact(tree, knife_edge_caps(kept, centers))


def test_knife_edges_are_where_float64_goes_wrong(tree, kept):
    """The caps above would not all be right in plain float64: the test has teeth."""
    centers = captree.training_caps(tree, 150, seed=18).centers
    caps = knife_edge_caps(kept, centers)
    plain = (1 - kept.astype(np.float64) @ caps.centers.astype(np.float64).T <= caps.max_cos_distance).sum(axis=0)
    truth = oracle(kept, caps).counts
    assert (plain != truth).any()
    np.testing.assert_array_equal(tree.count(caps), truth)


@pytest.mark.parametrize("storage", STORAGES)
def test_bounds_zero_and_two(tree, vectors, storage):
    if storage == "float32":
        tree = captree.build(vectors, storage=storage)
    kept = all_rows(tree)
    rows = unit(kept[:50])
    assert_exact(tree, Caps(np.concatenate([rows, -rows]), 0.0))
    assert_exact(tree, Caps(np.concatenate([rows[:5], -rows[:5]]), 2.0))


def test_rows_and_centers_longer_or_shorter_than_one():
    """Within the tolerance distances may be below 0 or above 2; bounds 0 and 2 stay exact."""
    rows = np.concatenate([random_units(100, 6)] * 2)
    rows[:100] *= np.float32(1 + 9e-5)
    rows[100:] *= np.float32(1 - 9e-5)
    tree = captree.build(rows, storage="float32", fanout=4, leaf_size=10)
    for scale in (1 - 9e-5, 1.0, 1 + 9e-5):
        centers = (np.concatenate([rows[:10], -rows[:10]]).astype(np.float64) * scale).astype(np.float32)
        if scale != 1.0:
            centers = (unit(centers, np.float64) * scale).astype(np.float32)
        for bound in (0.0, 1e-9, 1e-4, 2 - 1e-4, 2 - 1e-9, 2.0):
            assert_exact(tree, Caps(centers, bound))


def test_axes_and_exact_distances():
    """Distances that are exactly 0, 1 and 2."""
    rows = np.concatenate([np.eye(8), -np.eye(8)] * 20)
    tree = captree.build(rows, fanout=4, leaf_size=10)
    bounds = np.concatenate([ulps(b) for b in (0.0, 1.0, 2.0)])
    for center in (np.eye(8)[0], -np.eye(8)[3]):
        caps = Caps(center, bounds)
        assert_exact(tree, caps)
        assert tree.count(caps).tolist() == [20, 20, 20, 20, 300, 300, 300, 320, 320]


@pytest.mark.parametrize("storage", STORAGES)
def test_all_rows_equal(storage):
    row = random_units(1, 20)
    tree = captree.build(np.tile(row, (2000, 1)), storage=storage, fanout=8, leaf_size=16)
    tree.verify()
    kept = all_rows(tree)
    assert_exact(tree, knife_edge_caps(kept, np.concatenate([row, -row, random_units(3, 20, seed=1)])))
    rows, _ = tree.nearest(row, 10)
    assert rows.tolist() == [list(range(10))]


@pytest.mark.parametrize("storage", STORAGES)
def test_many_copies_of_one_row(storage):
    rows = random_units(3000, 24, seed=3)
    rows[np.random.default_rng(0).permutation(3000)[:600]] = rows[0]
    tree = captree.build(rows, storage=storage, fanout=8, leaf_size=30)
    tree.verify()
    kept = all_rows(tree)
    assert_exact(tree, knife_edge_caps(kept, np.concatenate([rows[:1], rows[5:9], -rows[:1]])))
    expected, got = oracle_nearest(kept, rows[:3], 700), tree.nearest(rows[:3], 700)
    np.testing.assert_array_equal(got.rows, expected.rows)
    np.testing.assert_array_equal(got.distances, expected.distances)


def test_antipodes():
    row = random_units(1, 12)
    rows = np.concatenate([np.tile(row, (300, 1)), np.tile(-row, (300, 1))])
    tree = captree.build(rows, fanout=4, leaf_size=16)
    tree.verify()
    assert_exact(tree, Caps(np.concatenate([row, -row, random_units(4, 12, seed=1)]), 1.0))
    assert_exact(tree, knife_edge_caps(all_rows(tree), np.concatenate([row, -row, random_units(4, 12, seed=1)])))


def test_tight_cluster():
    """Rows that differ in the last bits only."""
    rows = unit(random_units(1, 40).astype(np.float64) + 1e-6 * np.random.default_rng(0).standard_normal((500, 40)))
    tree = captree.build(rows, storage="float32", fanout=8, leaf_size=20)
    assert_exact(tree, knife_edge_caps(all_rows(tree), rows[:20]))
    expected, got = oracle_nearest(all_rows(tree), rows[:5], 20), tree.nearest(rows[:5], 20)
    np.testing.assert_array_equal(got.rows, expected.rows)


def test_tiny_and_subnormal_elements():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 10)) * 10.0 ** rng.uniform(-45, 0, (300, 10))
    rows[:, 0] = 1
    rows = unit(rows)
    for storage in STORAGES:
        tree = captree.build(rows, storage=storage, fanout=4, leaf_size=20)
        assert_exact(tree, knife_edge_caps(all_rows(tree), rows[:10]))


def rounded_once(center, row):
    """The real distance as the nearest float32, of two the one that ends on an even bit."""
    real = 1 - sum(Fraction(float(x)) * Fraction(float(y)) for x, y in zip(center, row, strict=True))
    middle = np.float32(float(real))
    near = [np.nextafter(middle, np.float32(-9)), middle, np.nextafter(middle, np.float32(9))]
    return min(near, key=lambda x: (abs(Fraction(float(x)) - real), int(x.view(np.uint32)) % 2))


@pytest.mark.parametrize("storage", STORAGES)
def test_float32_distances_are_real_distances_rounded_once(storage):
    rows = clip_like(300, 20, seed=6)
    tree = captree.build(rows, storage=storage, fanout=4, leaf_size=20)
    kept = all_rows(tree)
    # Along an axis many distances of float32 rows lie exactly halfway between two float32 numbers; rows meet
    # themselves, too.
    axes = np.eye(20, dtype=np.float32)[:4]
    caps = Caps(np.concatenate([axes, rows[:4], -rows[4:6]]), 2.0)
    halfway = 0
    for found in (tree.search(caps, distances="float32"), tree.search(caps, sort=True, distances="float32")):
        assert found.distances.dtype == np.float32
        for center, (inside, far) in zip(caps.centers, found, strict=True):
            assert inside.size >= len(rows) - 1  # a row opposite to a center can be beyond 2
            want = [rounded_once(center, kept[row]) for row in inside.tolist()]
            np.testing.assert_array_equal(far, want)
            exact = 1 - kept[inside].astype(np.float64) @ center.astype(np.float64)
            halfway += (np.abs(exact - far) == np.spacing(np.abs(far)).astype(np.float64) / 2).sum()
    assert halfway > 20 or storage == "float16"


# --- metamorphic ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.floats(0, 2), st.floats(0, 2))
def test_a_wider_cap_never_loses_rows(tree, seed, one, other):
    center = captree.training_caps(tree, 1, seed=seed).centers
    narrow, wide = (tree.search(Caps(center, bound)).rows for bound in sorted((one, other)))
    assert np.isin(narrow, wide).all()


def test_permuted_input_permutes_the_answer(tree, vectors, caps):
    order = np.random.default_rng(0).permutation(len(vectors))
    shuffled = captree.build(vectors[order], fanout=8, leaf_size=40, seed=3)
    np.testing.assert_array_equal(shuffled.count(caps), tree.count(caps))
    for (rows, far), (true_rows, true_far) in zip(shuffled.search(caps), tree.search(caps), strict=True):
        got = dict(zip(order[rows].tolist(), far.tolist(), strict=True))
        assert got == dict(zip(true_rows.tolist(), true_far.tolist(), strict=True))


def test_parameters_of_the_tree_do_not_change_answers(tree, vectors, caps):
    expected = by_row(tree.search(caps))
    for options in ({}, {"fanout": 2, "leaf_size": 1}, {"fanout": 500}, {"leaf_size": 5000}, {"seed": 77}):
        other = captree.build(vectors, **options)
        assert by_row(other.search(caps)) == expected


def test_shards_add_up(tree, vectors, caps):
    parts = [captree.build(part) for part in np.array_split(vectors, 3)]
    np.testing.assert_array_equal(sum(part.count(caps) for part in parts), tree.count(caps))


def test_batch_split_and_threads_do_not_change_answers(tree, caps):
    whole = tree.search(caps)
    for threads in (1, 2, 3, 8):
        again = tree.search(caps, threads=threads)
        np.testing.assert_array_equal(again.rows, whole.rows)
        np.testing.assert_array_equal(again.distances, whole.distances)
        np.testing.assert_array_equal(tree.count(caps, threads=threads), whole.counts)
    parts = [tree.search(caps[start : start + 37]) for start in range(0, 200, 37)]
    np.testing.assert_array_equal(np.concatenate([part.rows for part in parts]), whole.rows)
    np.testing.assert_array_equal(np.concatenate([tree.count(cap) for cap in caps]), whole.counts)
    queries = caps.centers[:50]
    rows, far = tree.nearest(queries, 9)
    for threads in (1, 4):
        np.testing.assert_array_equal(tree.nearest(queries, 9, threads=threads).rows, rows)
    np.testing.assert_array_equal(np.concatenate([tree.nearest(query, 9).distances for query in queries]), far)


def test_nearest_is_a_sorted_search(tree, caps):
    ordered = tree.search(Caps(caps.centers[:20], 2.0), sort=True)
    rows, far = tree.nearest(caps.centers[:20], 15)
    for i, (all_r, all_d) in enumerate(ordered):
        if all_r.size == len(tree):
            np.testing.assert_array_equal(rows[i], all_r[:15])
            np.testing.assert_array_equal(far[i], all_d[:15])


def test_count_of_a_cap_and_of_its_complement(tree, caps):
    """Rows outside the cap are those strictly inside the antipodal cap of the complementary bound."""
    bounds = np.round(caps.max_cos_distance, 3)
    beside = np.clip(2 - bounds, 0, 2)
    both = tree.count(Caps(caps.centers, bounds)) + tree.count(Caps(-caps.centers, beside))
    np.testing.assert_array_equal(both, 3000)


# --- what the docstring of Caps says of lengths that differ a little from 1 ------------------------------------------


def test_float16_rows_around_themselves():
    tree = captree.build(clip_like(4000, 64, seed=3))
    rows = all_rows(tree).astype(np.float32)
    found = tree.search(captree.Caps(rows, 0.0))
    own = np.array([i in inside for i, (inside, _) in enumerate(found)])
    exact = np.array([math.fsum((row.astype(np.float64) ** 2).tolist()) >= 1 for row in rows])
    np.testing.assert_array_equal(own, exact)
    assert 0.3 < own.mean() < 0.7
    assert (tree.count(captree.Caps(rows, 0.002)) > 0).all()


def test_distances_can_be_negative_and_beyond_two():
    long = np.float32([[1.0003, 0.0], [-1.0003, 0.0]])
    tree = captree.build(long, storage="float32")
    caps = captree.Caps(np.float32([[1.0, 0.0]]), 2.0)
    assert tree.count(caps).tolist() == [1]
    assert tree.search(caps).distances[0] < 0
    assert tree.nearest([1.0, 0.0], 2).distances[0, 1] > 2


def test_a_reported_distance_may_need_one_more_step_as_a_bound():
    tree = captree.build(random_units(500, 24, seed=5), storage="float32")
    centers = random_units(40, 24, seed=6)
    found = tree.nearest(centers, 1)
    bounds = found.distances[:, 0]
    missed = tree.count(captree.Caps(centers, bounds)) == 0
    assert 0 < missed.sum() < len(centers)
    assert (tree.count(captree.Caps(centers, np.nextafter(bounds, 3))) > 0).all()
