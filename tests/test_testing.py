"""The synthetic data has the shape it says, and the oracle agrees with rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from helpers import random_units
from hypothesis import given, settings
from hypothesis import strategies as st

from captree import Caps, testing
from captree.errors import InvalidParameterError, InvalidTypeError, InvalidVectorsError
from captree.testing import FLAT, STEEP, clip_like, oracle, oracle_nearest


@pytest.mark.parametrize(("exponent", "share"), [(STEEP, 0.83), (FLAT, 0.68)])
def test_energy_and_mean(exponent, share):
    x = clip_like(20_000, 768, exponent=exponent).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)
    energy = np.linalg.eigvalsh(x.T @ x / len(x))[::-1]
    assert energy[:64].sum() / energy.sum() == pytest.approx(share, abs=0.03)
    mean = x.mean(axis=0)
    assert mean @ mean == pytest.approx(0.45, abs=0.02)


def test_same_arguments_same_vectors():
    x = clip_like(5000, 16, seed=3)
    np.testing.assert_array_equal(x, clip_like(5000, 16, seed=3))
    assert not np.array_equal(x, clip_like(5000, 16, seed=4))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtype(dtype):
    x = clip_like(100, 12, dtype=dtype)
    assert x.dtype == dtype
    np.testing.assert_allclose(np.linalg.norm(x.astype(np.float64), axis=1), 1, atol=2e-3)


def test_duplicates():
    x = clip_like(6000, 32, seed=1).astype(np.float64)
    near = 0
    for start in range(0, 6000, 1000):
        cosines = x[start : start + 1000] @ x.T
        cosines[np.arange(1000), np.arange(start, start + 1000)] = -1
        near += int((cosines.max(axis=1) > 0.999).sum())
    assert 0.01 < near / 6000 < 0.2
    assert len(np.unique(clip_like(1000, 8, duplicates=0.0), axis=0)) == 1000
    assert len(np.unique(clip_like(1000, 8, duplicates=0.9), axis=0)) < 900


@pytest.mark.parametrize(("n", "d"), [(0, 5), (1, 1), (5, 1), (3, 2), (1, 100), (4097, 3)])
def test_small_shapes(n, d):
    x = clip_like(n, d)
    assert x.shape == (n, d)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)


def test_other_options():
    x = clip_like(4000, 24, mean_energy=0.0, clusters=()).astype(np.float64)
    assert np.linalg.norm(x.mean(axis=0)) < 0.1
    assert clip_like(10, 4, clusters=(2, 4)).shape == (10, 4)
    for bad in ({"mean_energy": 1.5}, {"duplicates": -1.0}, {"clusters": (1, 2, 3, 4)}, {"clusters": (0,)}, {"d": 0}):
        with pytest.raises(InvalidParameterError):
            clip_like(**{"n": 5, "d": 4, **bad})
    with pytest.raises(InvalidTypeError):
        clip_like(5, 4, dtype=np.int32)


def rational_distance(center, row):
    return 1 - sum((Fraction(float(c)) * Fraction(float(x)) for c, x in zip(center, row, strict=True)), Fraction(0))


@settings(max_examples=60)
@given(st.data(), testing.unit_vectors(max_rows=12, max_dim=9, dtype=np.float16))
def test_oracle_is_rational_arithmetic(data, rows):
    caps = data.draw(testing.caps(rows, max_caps=5))
    found = oracle(rows, caps)
    for center, bound, (inside, distances) in zip(caps.centers, caps.max_cos_distance, found, strict=True):
        exact = [rational_distance(center, row) for row in rows]
        assert inside.tolist() == [i for i, far in enumerate(exact) if far <= Fraction(float(bound))]
        assert distances.tolist() == [float(exact[i]) for i in inside]


@settings(max_examples=40)
@given(st.data(), testing.unit_vectors(max_rows=15, max_dim=5))
def test_oracle_nearest_is_a_sort(data, rows):
    queries = data.draw(testing.caps(rows, min_caps=1, max_caps=3)).centers
    k = data.draw(st.integers(1, 20))
    got = oracle_nearest(rows, queries, k)
    for i, query in enumerate(queries):
        expected = sorted((float(rational_distance(query, row)), j) for j, row in enumerate(rows))[:k]
        found = len(expected)
        assert list(zip(got.distances[i, :found].tolist(), got.rows[i, :found].tolist(), strict=True)) == expected
        assert (got.rows[i, found:] == -1).all()
        assert np.isinf(got.distances[i, found:]).all()


def test_oracle_decides_ties_exactly():
    rows = random_units(200, 30, dtype=np.float16)
    center = random_units(1, 30, seed=5)[0]
    for i in range(0, 200, 10):
        at = float(rational_distance(center, rows[i]))
        exact = Fraction(at) >= rational_distance(center, rows[i])
        for bound, expected in ((np.nextafter(at, 3), True), (np.nextafter(at, -1), False), (at, exact)):
            assert (i in oracle(rows, Caps(center, bound)).rows) == expected


def test_oracle_takes_kept_vectors_only():
    caps = Caps(np.eye(3), 0.5)
    with pytest.raises(InvalidTypeError, match="expected kept vectors"):
        oracle(np.eye(3), caps)
    with pytest.raises(InvalidVectorsError, match=r"shape \(n, d\)"):
        oracle(np.eye(3, dtype=np.float32)[0], caps)
    assert len(oracle(np.eye(3, dtype=np.float32), Caps([], []))) == 0


@given(testing.unit_vectors(min_rows=2, max_rows=30, min_dim=2, max_dim=10))
def test_unit_vectors_strategy(rows):
    assert 2 <= rows.shape[0] <= 30
    assert 2 <= rows.shape[1] <= 10
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows.astype(np.float64), axis=1), 1, atol=1e-6)


ROWS = random_units(20, 6)


@given(testing.caps(ROWS, min_caps=1, max_caps=4))
def test_caps_strategy(caps):
    assert isinstance(caps, Caps)
    assert 1 <= len(caps) <= 4
    assert caps.dim == 6
