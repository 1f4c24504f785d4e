"""Caps: construction, conversion, what is refused."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from helpers import random_units
from hypothesis import given
from hypothesis import strategies as st

import captree
from captree import Caps
from captree.errors import InvalidCapsError, InvalidTypeError, RowIndexError

ml_dtypes = pytest.importorskip("ml_dtypes")

C = random_units(5, 4, seed=2)
B = np.array([0.0, 0.1, 0.5, 1.0, 2.0])


def test_properties():
    caps = Caps(C, B)
    assert len(caps) == 5
    assert caps.dim == 4
    assert caps.centers.dtype == np.float32
    assert caps.max_cos_distance.dtype == np.float64
    assert caps.centers.flags.c_contiguous
    np.testing.assert_array_equal(caps.centers, C)
    np.testing.assert_array_equal(caps.max_cos_distance, B)
    np.testing.assert_allclose(caps.radius, np.arccos(1 - B), atol=1e-12)
    np.testing.assert_array_equal(caps.min_cosine, 1 - B)
    assert repr(caps) == "Caps(5 caps, dim 4, max_cos_distance 0 to 2)"
    assert repr(caps[1]) == "Caps(1 caps, dim 4, max_cos_distance 0.1)"


def test_frozen_and_not_aliased():
    centers, bounds = C.copy(), B.copy()
    caps = Caps(centers, bounds)
    centers[:], bounds[:] = 0, 0
    np.testing.assert_array_equal(caps.centers, C)
    np.testing.assert_array_equal(caps.max_cos_distance, B)
    with pytest.raises(ValueError, match="read-only"):
        caps.centers[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        caps.max_cos_distance[0] = 1
    with pytest.raises(AttributeError, match="cannot be changed"):
        caps.centers = C
    with pytest.raises(AttributeError, match="cannot be changed"):
        del caps._bounds
    with pytest.raises(TypeError, match="unhashable"):
        hash(caps)


def test_scalars_and_single_centers():
    assert Caps(C, 0.5).max_cos_distance.tolist() == [0.5] * 5
    assert Caps(C, 2).max_cos_distance.tolist() == [2.0] * 5
    one = Caps(C[0], 0.5)
    assert (len(one), one.dim) == (1, 4)
    assert len(Caps(C[0], [0.5])) == 1
    assert len(Caps(C[:1], [0.5])) == 1
    assert len(Caps(C[0].tolist(), np.float32(0.5))) == 1
    several = Caps(C[0], [0.1, 0.2, 0.3])
    assert len(several) == 3
    np.testing.assert_array_equal(several.centers, np.tile(C[0], (3, 1)))
    assert Caps([1.0], 0.5).dim == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_centers_become_float32_as_given(dtype):
    given_centers = C.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    caps = Caps(np.asfortranarray(given_centers), B)
    np.testing.assert_array_equal(caps.centers, given_centers.astype(np.float32))
    wide = C.astype(np.float64) * (1 + 9e-5)
    np.testing.assert_array_equal(Caps(wide, B).centers, wide.astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [("float16", 1.2e-3, 4e-3), ("bfloat16", 0.008, 0.03), ("float32", 4.5e-4, 5.5e-4), ("float64", 4.5e-4, 5.5e-4)],
)
def test_tolerance(dtype, good, bad):
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    axis = np.zeros((3, 4))
    axis[:, 0] = 1
    Caps((axis * (1 + good)).astype(kind), 0.5)
    axis[1] *= 1 + bad
    with pytest.raises(InvalidCapsError, match=rf"centers: .*norm 1 .*{dtype}.*got 1 .*first at 1 \(norm 1\.0"):
        Caps(axis.astype(kind), 0.5)


def test_empty():
    for caps in (Caps([], []), Caps([], 0.5), Caps(np.empty((0, 4), np.float32), []), Caps(np.empty((0, 4)), 1)):
        assert len(caps) == 0
        assert list(caps) == []
        assert "0 caps" in repr(caps)
    assert Caps(np.empty((0, 4)), 1).dim == 4
    assert len(Caps(C, B)[2:2]) == 0
    assert Caps.concat([Caps([], []), Caps(C, B)]) == Caps(C, B)
    assert len(Caps.concat([])) == 0
    assert len(Caps.from_radius([], [])) == 0


@pytest.mark.parametrize(
    ("centers", "bounds", "message"),
    [
        (C, B[:4], "expected 5 bounds, one per center, or a scalar, got 4"),
        (C, [[0.5]] * 5, r"max_cos_distance: expected shape \(q,\).*\(5, 1\)"),
        (C[None], 0.5, r"centers: .*2-dimensional.*\(1, 5, 4\)"),
        (C * 2, 0.5, "centers: .*got 5 that are not; first at 0 .norm 2"),
        (C * 0, 0.5, "centers: .*got 5"),
        (C * np.nan, 0.5, "centers: .*got 5.*nan"),
        (C * np.inf, 0.5, "centers: .*got 5"),
        (C, np.nan, r"\[0, 2\], got 1 outside; first at caps 0 \(nan\)"),
        (C, [0, 1, -0.1, 1, 2.1], r"\[0, 2\], got 2 outside; first at caps 2 \(-0\.1\), 4 \(2\.1\)"),
        (C, np.nextafter(2.0, 3.0), "got 1 outside"),
        (C, -1e-300, "got 1 outside"),
        (C, np.inf, "got 1 outside"),
        (np.empty((3, 0)), 0.5, "at least one dimension"),
        ([[1.0, 0.0], [1.0]], 0.5, "ragged"),
    ],
)
def test_bad_caps(centers, bounds, message):
    with pytest.raises(InvalidCapsError, match=message) as error:
        Caps(centers, bounds)
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(
    ("centers", "bounds"),
    [
        (np.eye(4, dtype=np.int64), 0.5),
        (np.eye(4, dtype=complex), 0.5),
        (C, "0.5"),
        (C, None),
        (C, True),
        (C, [0.5j] * 5),
        (C, object()),
        (C, [None] * 5),
        ("centers.npy", 0.5),
        (iter([C]), 0.5),
        (None, 0.5),
        (object(), 0.5),
    ],
    ids=repr,
)
def test_bad_types(centers, bounds):
    with pytest.raises(InvalidTypeError, match="expected"):
        Caps(centers, bounds)


def test_first_bad_caps_are_named_in_long_batches():
    many = np.tile(C[0], (20_000, 1))
    many[[9_000, 9_001, 19_999]] *= 3
    with pytest.raises(InvalidCapsError, match=r"got 3 .*first at 9000 .*, 9001 .*, 19999 "):
        Caps(many, 0.5)


@given(st.floats(0, math.pi))
def test_from_radius(radius):
    caps = Caps.from_radius(C, radius)
    assert caps.max_cos_distance[0] == pytest.approx(2 * math.sin(radius / 2) ** 2, rel=1e-15)
    assert 0 <= caps.max_cos_distance[0] <= 2
    np.testing.assert_allclose(caps.radius, radius, rtol=1e-7, atol=1e-15)


def test_from_radius_is_accurate_for_tiny_angles_and_exact_at_the_ends():
    assert Caps.from_radius(C, 1e-9).max_cos_distance[0] == pytest.approx(5e-19, rel=1e-14)
    assert Caps.from_radius(C, math.pi).max_cos_distance[0] == 2
    assert Caps.from_radius(C, 0).max_cos_distance[0] == 0
    with pytest.raises(InvalidCapsError, match=r"radius: expected numbers in \[0, pi\]"):
        Caps.from_radius(C, 3.2)
    with pytest.raises(InvalidCapsError, match=r"radius: .*nan"):
        Caps.from_radius(C, [0, 1, 2, 3, np.nan])


def test_from_min_cosine():
    np.testing.assert_array_equal(Caps.from_min_cosine(C, [1, 0.5, 0, -0.5, -1]).max_cos_distance, [0, 0.5, 1, 1.5, 2])
    with pytest.raises(InvalidCapsError, match=r"min_cosine: expected numbers in \[-1, 1\]"):
        Caps.from_min_cosine(C, 1.1)


def test_indexing():
    caps = Caps(C, B)
    assert caps[1] == Caps(C[1], B[1])
    assert caps[-1] == Caps(C[4], 2)
    assert caps[1:4] == Caps(C[1:4], B[1:4])
    assert caps[::-2] == Caps(C[::-2], B[::-2])
    assert caps[[3, 0]] == Caps(C[[3, 0]], B[[3, 0]])
    assert caps[B > 0.3] == Caps(C[2:], B[2:])
    assert caps[np.int32(2)] == caps[2]
    assert len(caps[[]]) == 0
    assert [len(one) for one in caps] == [1] * 5
    assert Caps.concat(caps) == caps
    assert caps[::-1].centers.flags.c_contiguous
    for bad in (5, -6, [5], [-6], [True]):
        with pytest.raises(RowIndexError):
            caps[bad]
    for bad in (1.5, "a", None, [[0]], [0.5], True):
        with pytest.raises((InvalidTypeError, RowIndexError)):
            caps[bad]


def test_equality():
    assert Caps(C, B) == Caps(C, B)
    assert Caps(C, B) != Caps(C, B / 2)
    assert Caps(C, B) != Caps(C[:4], B[:4])
    assert Caps(C, B) != "caps"


def test_concat():
    caps = Caps(C, B)
    assert Caps.concat([caps[:2], caps[2:]]) == caps
    with pytest.raises(InvalidCapsError, match="one dimension, got 3, 4"):
        Caps.concat([caps, Caps(np.eye(3), 0.5)])
    with pytest.raises(InvalidTypeError, match="expected Caps"):
        Caps.concat([caps, C])


def test_pickle():
    caps = pickle.loads(pickle.dumps(Caps(C, B)))
    assert caps == Caps(C, B)
    with pytest.raises(ValueError, match="read-only"):
        caps.centers[0] = 1


def test_arrow_round_trip():
    pa = pytest.importorskip("pyarrow")
    caps = Caps(C, B)
    table = caps.to_arrow()
    assert table.schema.field("center").type == pa.list_(pa.float32(), 4)
    assert table.schema.field("max_cos_distance").type == pa.float64()
    assert Caps.from_arrow(table) == caps
    assert Caps.from_arrow(table[1:3]) == caps[1:3]
    assert Caps.from_arrow(table.to_batches()[0]) == caps
    assert Caps.from_arrow(table.append_column("row", pa.array(range(5)))) == caps
    assert len(Caps.from_arrow(table[:0])) == 0
    narrow = table.set_column(1, "max_cos_distance", pa.array(B.astype(np.float32)))
    np.testing.assert_array_equal(Caps.from_arrow(narrow).max_cos_distance, B.astype(np.float32))
    with pytest.raises(InvalidCapsError, match="expected columns center and max_cos_distance, got center"):
        Caps.from_arrow(table.select(["center"]))
    nulls = table.set_column(1, "max_cos_distance", pa.array([None, 0.0, 0.0, 0.0, 0.0]))
    with pytest.raises(InvalidCapsError, match="no nulls, got 1"):
        Caps.from_arrow(nulls)


def test_arrow_centers():
    pa = pytest.importorskip("pyarrow")
    column = pa.FixedSizeListArray.from_arrays(pa.array(C.ravel()), 4)
    assert Caps(column, pa.array(B)) == Caps(C, B)
    assert Caps(pa.chunked_array([column[:2], column[2:]]), pa.chunked_array([B])) == Caps(C, B)


def test_device_arrays():
    class OnDevice:
        """Like a CuPy array."""

        def __init__(self, host):
            self.host, self.shape = host, host.shape

        def __dlpack__(self, **kwargs):
            raise AssertionError("device memory")

        def __dlpack_device__(self):
            return (2, 0)

        def __getitem__(self, part):
            return OnDevice(self.host[part])

        def get(self):
            return self.host

    assert Caps(OnDevice(C), OnDevice(B)) == Caps(C, B)


def test_trees_take_caps_of_their_dimension(tree):
    caps = Caps(random_units(3, 48), 0.5)
    expected = tree.count(caps)
    np.testing.assert_array_equal(tree.count((caps.centers, 0.5)), expected)
    for ask in (tree.count, tree.search, tree.sample, tree.estimate):
        with pytest.raises(InvalidCapsError, match="expected dim 48, got 4"):
            ask(Caps(C, B))
        with pytest.raises(InvalidTypeError, match=r"expected captree\.Caps"):
            ask(caps.centers)
        with pytest.raises(InvalidCapsError, match="norm 1"):
            ask((caps.centers * 2, 0.5))
    assert isinstance(captree.training_caps(tree, 1), Caps)


def test_bfloat16_bounds():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    bounds = B.astype(ml_dtypes.bfloat16)
    caps = Caps(C, bounds)
    np.testing.assert_array_equal(caps.max_cos_distance, bounds.astype(np.float64))
    assert Caps(C[0], bounds[1]).max_cos_distance.tolist() == [float(bounds[1])]
    with pytest.raises(InvalidCapsError, match=r"expected numbers in \[0, 2\]"):
        Caps(C, np.full(5, 3.0, ml_dtypes.bfloat16))
