"""radius_for_mass is the smallest float64 bound whose cap holds the rows asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import all_rows, random_units, unit
from hypothesis import given, settings
from hypothesis import strategies as st

import captree
from captree import Caps, testing
from captree.errors import InvalidParameterError, InvalidTypeError, InvalidVectorsError
from captree.testing import clip_like, oracle


def assert_smallest(tree, centers, mass, count=None):
    """The cap of each bound holds enough rows, that of the next smaller float64 too few."""
    count = count or (lambda caps: oracle(all_rows(tree), caps).counts)
    bounds = tree.radius_for_mass(centers, mass)
    assert bounds.dtype == np.float64
    assert bounds.shape == (len(centers),)
    wanted = np.maximum(np.ceil(np.broadcast_to(mass, bounds.shape) * len(tree)), 1)
    assert ((bounds >= 0) & (bounds <= 2)).all()
    enough = count(Caps(centers, bounds)) >= wanted
    fewer = count(Caps(centers, np.maximum(np.nextafter(bounds, -1), 0))) < wanted
    assert (enough | (bounds == 2)).all()
    assert (fewer | (bounds == 0)).all()
    return bounds


@settings(max_examples=150)
@given(
    st.data(),
    testing.unit_vectors(max_rows=150),
    st.sampled_from(["float16", "float32"]),
    st.sampled_from(["row", "antipode", "anywhere"]),
)
def test_anything(data, rows, storage, kind):
    tree = captree.build(rows, storage=storage, fanout=5, leaf_size=9)
    seed = data.draw(st.integers(0, 2**32 - 1), label="seed")
    rng = np.random.default_rng(seed)
    some = unit(all_rows(tree)[rng.integers(len(tree), size=6)])
    centers = {"row": some, "antipode": -some, "anywhere": random_units(6, tree.dim, seed)}[kind]
    counts = rng.integers(1, len(tree) + 1, 6)
    assert_smallest(tree, centers, counts / len(tree))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_centers_of_every_dtype(tree, dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert_smallest(tree, random_units(20, tree.dim, seed=2, dtype=np.float64).astype(kind), 0.01)


@pytest.mark.parametrize("mass", [1e-12, 1 / 3000, 0.001, 0.05, 0.5, 0.999, 1.0])
def test_masses(tree, caps, mass):
    assert_smallest(tree, caps.centers[:20], mass)


def test_several_blocks_of_a_larger_tree():
    """More rows than the sample, so that bands count: compared with count, which has an oracle of its own."""
    tree = captree.build(clip_like(30_000, 24, seed=4))
    rng = np.random.default_rng(0)
    centers = np.concatenate([captree.training_caps(tree, 150).centers, random_units(50, 24)])
    for mass in (rng.random(200), rng.random(200) ** 8 + 1e-9, 1.0):
        bounds = assert_smallest(tree, centers, mass, tree.count)
        np.testing.assert_array_equal(bounds, tree.radius_for_mass(centers, mass, threads=1))
        picked = rng.permutation(200)[:17]
        some = mass[picked] if np.ndim(mass) else mass
        np.testing.assert_array_equal(bounds[picked], tree.radius_for_mass(centers[picked], some))


def test_duplicates_far_beyond_what_a_scan_keeps():
    tree = captree.build(np.repeat(random_units(3, 8), 20_000, axis=0))
    centers = captree.training_caps(tree, 20).centers
    assert_smallest(tree, centers, np.linspace(0.01, 1, 20), tree.count)


def test_a_sample_that_says_nothing():
    """Rows whose order in the tree misleads evenly spread sampling: the answer stands, whatever it costs."""
    near, far = np.tile(unit([[1.0, 1e-3]]), (9_000, 1)), random_units(9_000, 2, seed=1)
    tree = captree.build(np.concatenate([near, far]), storage="float32", fanout=2, leaf_size=4)
    assert_smallest(tree, random_units(30, 2, seed=5), np.linspace(1e-4, 1, 30), tree.count)


def test_the_rounded_distance_can_be_too_small():
    """1 - <c, x> just above a float64: the nearest float64 does not hold the row, the next one does."""
    tree = captree.build(unit([[0.5, math.sqrt(0.75)], [-1.0, 0.0]], np.float32), storage="float32")
    centers = random_units(500, 2, seed=9)
    bounds = assert_smallest(tree, centers, 0.5)
    rounded = tree.nearest(centers, 1).distances[:, 0]
    assert (bounds > rounded).any()
    assert (bounds == rounded).any()
    assert (bounds >= rounded).all()


def test_scalars_single_centers_and_empty_batches(tree, caps):
    center = caps.centers[0]
    masses = [0.1, 0.2, 0.9]
    bounds = tree.radius_for_mass(center, masses)
    assert bounds.shape == (3,)
    assert (np.diff(bounds) > 0).all()
    np.testing.assert_array_equal(tree.radius_for_mass(center, 0.2), bounds[1:2])
    np.testing.assert_array_equal(tree.radius_for_mass(caps.centers[:3], 0.2)[:1], bounds[1:2])
    assert tree.radius_for_mass(np.empty((0, 48)), 0.5).shape == (0,)
    assert tree.radius_for_mass([], []).shape == (0,)


@pytest.mark.parametrize(
    ("centers", "mass", "error"),
    [
        ("row", 0.0, InvalidParameterError),
        ("row", 1.5, InvalidParameterError),
        ("row", math.nan, InvalidParameterError),
        ("row", [[0.5]], InvalidParameterError),
        ("row", "half", InvalidTypeError),
        ("rows", [0.5, 0.5], InvalidParameterError),
        ("short", 0.5, InvalidVectorsError),
        ("long", 0.5, InvalidVectorsError),
    ],
)
def test_bad_arguments(tree, caps, centers, mass, error):
    made = {
        "row": caps.centers[0],
        "rows": caps.centers[:3],
        "short": random_units(1, 3),
        "long": 2 * caps.centers[:1],
    }[centers]
    with pytest.raises(error, match="expected"):
        tree.radius_for_mass(made, mass)
