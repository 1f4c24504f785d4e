"""The prior of training caps: slerp centers, mixed bounds, sources."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from helpers import all_rows, random_units, unit
from scipy import stats

import captree
from captree import DEFAULT_RADII, Caps, RadiusMixture, TrainingCaps, training_caps
from captree._priors import BLOCK, slerp
from captree.errors import InvalidCapsError, InvalidParameterError, InvalidTypeError, InvalidVectorsError


def test_shapes(tree):
    caps = training_caps(tree, 100)
    assert isinstance(caps, Caps)
    assert isinstance(caps, TrainingCaps)
    assert caps.centers.shape == (100, 48)
    assert caps.sources.shape == (100, 2)
    assert caps.sources.dtype == np.int64
    np.testing.assert_allclose(np.linalg.norm(caps.centers.astype(np.float64), axis=1), 1, atol=1e-6)
    assert len(training_caps(tree, 0)) == 0
    assert training_caps(tree, 0).dim == 48
    assert "TrainingCaps(100 caps" in repr(caps)


def test_same_seed_same_caps_and_prefixes(tree):
    caps = training_caps(tree, 2 * BLOCK + 100, seed=7)
    assert caps == training_caps(tree, 2 * BLOCK + 100, seed=7)
    assert caps[: BLOCK + 9] == training_caps(tree, BLOCK + 9, seed=7)
    assert caps[:30] == training_caps(tree, 30, seed=7)
    assert caps[:30] != training_caps(tree, 30, seed=8)
    assert training_caps(tree, 3, seed=2**64 - 1) != training_caps(tree, 3, seed=2**32 - 1)
    assert len({row.tobytes() for row in caps.centers}) > len(caps) - 5


def test_sources_follow_slices_concatenation_and_pickling(tree):
    caps = training_caps(tree, 10, seed=1)
    np.testing.assert_array_equal(caps[3:5].sources, caps.sources[3:5])
    assert TrainingCaps.concat([caps[:4], caps[4:]]) == caps
    assert isinstance(Caps.concat([caps, caps]), TrainingCaps)
    mixed = Caps.concat([caps, Caps(caps.centers, 0.5)])
    assert type(mixed) is Caps
    assert pickle.loads(pickle.dumps(caps)) == caps
    with pytest.raises(ValueError, match="read-only"):
        caps.sources[0] = 0
    with pytest.raises(AttributeError, match="cannot be changed"):
        caps.sources = None


def test_made_by_hand():
    caps = TrainingCaps(np.eye(3, dtype=np.float32), 0.5)
    assert caps.sources.tolist() == [[-1, -1]] * 3
    assert TrainingCaps(np.eye(2), 0.5, [[0, 1], [2, 3]]).sources.tolist() == [[0, 1], [2, 3]]
    with pytest.raises(InvalidCapsError, match=r"integers of shape \(2, 2\)"):
        TrainingCaps(np.eye(2), 0.5, [[0, 1]])


def test_centers_lie_on_the_arc_between_their_sources(tree):
    caps = training_caps(tree, 500, seed=3)
    rows = unit(all_rows(tree), np.float64)
    a, b = rows[caps.sources[:, 0]], rows[caps.sources[:, 1]]
    c = unit(caps.centers, np.float64)

    def angle(x, y):
        return 2 * np.arctan2(np.linalg.norm(x - y, axis=1), np.linalg.norm(x + y, axis=1))

    np.testing.assert_allclose(angle(a, c) + angle(c, b), angle(a, b), atol=2e-6)
    far = angle(a, b) > 0.1
    share = angle(a, c)[far] / angle(a, b)[far]
    assert stats.kstest(share, "uniform").pvalue > 1e-6


def test_sources_are_uniform(tree):
    sources = training_caps(tree, 30_000, seed=11).sources
    for column in sources.T:
        assert stats.chisquare(np.bincount(column, minlength=3000)).pvalue > 1e-6


def test_default_radii():
    bounds = DEFAULT_RADII(np.random.default_rng(0), 100_000)
    assert bounds.dtype == np.float64
    low = bounds[bounds < 1]
    high = bounds[bounds >= 1]
    assert stats.binomtest(high.size, bounds.size, 0.05).pvalue > 1e-6
    assert stats.kstest(low, "uniform").pvalue > 1e-6
    assert stats.kstest(high - 1, "uniform").pvalue > 1e-6


def test_radii_of_one_cap_are_independent_of_its_part():
    bounds = RadiusMixture(((0.5, 0, 1), (0.5, 0, 1)))(np.random.default_rng(0), 50_000)
    assert stats.kstest(bounds, "uniform").pvalue > 1e-6


@pytest.mark.parametrize(
    "parts", [(), ((0.5, 0, 1),), ((1.0, 0, 2.1),), ((1.0, 1, 0),), ((1.5, 0, 1), (-0.5, 0, 1)), ((1.0, math.nan, 1),)]
)
def test_bad_mixtures(parts):
    with pytest.raises(InvalidParameterError, match="expected"):
        RadiusMixture(parts)


def test_callables(tree):
    def centers(rng, given, n):
        assert given is tree
        return random_units(n, 48, seed=int(rng.integers(1000)))

    caps = training_caps(tree, 20, radii=lambda rng, n: rng.uniform(0.1, 0.2, n), centers=centers)
    assert caps.max_cos_distance.min() >= 0.1
    assert caps.max_cos_distance.max() <= 0.2
    assert (caps.sources == -1).all()
    same = training_caps(tree, 20, radii=lambda rng, n: rng.uniform(0.1, 0.2, n), centers=centers)
    assert caps == same
    sources = np.arange(40).reshape(20, 2)
    both = training_caps(tree, 20, centers=lambda rng, given, n: (centers(rng, given, n), sources), radii=0.25)
    np.testing.assert_array_equal(both.sources, sources)
    assert set(both.max_cos_distance) == {0.25}


def test_callables_are_called_per_block(tree):
    sizes = []

    def radii(rng, n):
        sizes.append(n)
        return rng.random(n)

    training_caps(tree, BLOCK + 5, radii=radii)
    assert sizes == [BLOCK, 5]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"radii": lambda rng, n: np.full(n, 2.5)}, InvalidCapsError),
        ({"radii": lambda rng, n: np.full(n, np.nan)}, InvalidCapsError),
        ({"radii": lambda rng, n: np.zeros(n + 1)}, InvalidCapsError),
        ({"radii": lambda rng, n: ["a"] * n}, InvalidTypeError),
        ({"radii": 3.0}, InvalidParameterError),
        ({"radii": "U[0,1]"}, InvalidTypeError),
        ({"centers": lambda rng, t, n: np.ones((n, t.dim))}, InvalidVectorsError),
        ({"centers": lambda rng, t, n: random_units(n + 1, t.dim)}, InvalidCapsError),
        ({"centers": lambda rng, t, n: random_units(n, 3)}, InvalidCapsError),
        ({"centers": lambda rng, t, n: (random_units(n, t.dim), np.zeros((n, 3), int))}, InvalidCapsError),
        ({"centers": random_units(5, 48)}, InvalidTypeError),
        ({"n": -1}, InvalidParameterError),
        ({"n": 2.0}, InvalidTypeError),
        ({"seed": -1}, InvalidParameterError),
    ],
)
def test_bad_arguments(tree, options, error):
    with pytest.raises(error, match="expected"):
        training_caps(tree, **{"n": 5, **options})


# --- slerp ---------------------------------------------------------------------------------------------------------


def test_slerp_in_the_plane():
    angles = np.array([1e-9, 1e-5, 0.1, 1.0, 2.0, 3.0, 3.14159, math.pi - 1e-5])
    t = np.linspace(0, 1, angles.size)
    first = np.tile([1.0, 0.0], (angles.size, 1))
    second = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    got = slerp(first, second, t, np.random.default_rng(0))
    np.testing.assert_allclose(got, np.stack([np.cos(t * angles), np.sin(t * angles)], axis=1), atol=1e-7)
    assert got.dtype == np.float32


def test_slerp_of_equal_rows_is_the_row():
    rows = random_units(5, 7)
    np.testing.assert_array_equal(slerp(rows, rows, np.linspace(0, 1, 5), np.random.default_rng(0)), rows)


def test_slerp_of_antipodes_takes_a_random_great_circle():
    a = np.tile(random_units(1, 16), (400, 1))
    t = np.linspace(0, 1, 400)
    got = slerp(a, -a, t, np.random.default_rng(0)).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose((got * a).sum(axis=1), np.cos(math.pi * t), atol=1e-6)
    across = got[1:-1] - (got[1:-1] * a[1:-1]).sum(axis=1, keepdims=True) * a[1:-1]
    assert np.linalg.norm(unit(across, np.float64).mean(axis=0)) < 0.2


def test_slerp_in_one_dimension():
    a, t = np.ones((4, 1)), np.array([0.0, 0.49, 0.5, 1.0])
    rng = np.random.default_rng(0)
    assert slerp(a, -a, t, rng).ravel().tolist() == [1, 1, -1, -1]
    assert slerp(a, a, t, rng).ravel().tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("d", [1, 2, 3])
def test_trees_of_equal_and_antipodal_rows(d):
    row = random_units(1, d)
    tree = captree.build(np.concatenate([np.tile(row, (20, 1)), np.tile(-row, (20, 1))]))
    caps = training_caps(tree, 200, seed=1)
    assert np.isfinite(caps.centers).all()
    np.testing.assert_allclose(np.linalg.norm(caps.centers, axis=1), 1, atol=1e-6)
    tree.count(caps)
