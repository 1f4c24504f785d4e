"""Vectors in: every kind of source, every element type, and what is refused."""

from __future__ import annotations

import array

import numpy as np
import pytest
from helpers import all_rows, assert_reads, random_units, read, unit

import captree
from captree import _inputs, _rows
from captree.errors import (
    InvalidParameterError,
    InvalidTypeError,
    InvalidVectorsError,
)

ml_dtypes = pytest.importorskip("ml_dtypes")

X = random_units(50, 6)


def same(vectors, column=None, dtype="float32", expected=X):
    assert_reads(vectors, expected, column, dtype)


LAYOUTS = {
    "C": X,
    "Fortran": np.asfortranarray(X),
    "every second column": np.repeat(X, 2, axis=1)[:, ::2],
    "every second row": np.repeat(X, 2, axis=0)[::2],
    "reversed": X[::-1, ::-1].copy()[::-1, ::-1],
    "big endian": X.astype(">f4"),
    "little endian": X.astype("<f4"),
    "memoryview": memoryview(X),
    "buffer": memoryview(X.tobytes()).cast("f", X.shape),
    "matrix of an array.array": memoryview(array.array("f", X.ravel().tolist())).cast("B").cast("f", X.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_hold_the_same_rows(layout):
    same(LAYOUTS[layout])


def test_read_only_arrays():
    rows = X.copy()
    rows.flags.writeable = False
    same(rows)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F", "swapped"])
def test_element_types(dtype, order):
    rows = X.astype(dtype)
    source = rows.astype(rows.dtype.newbyteorder()) if order == "swapped" else np.asarray(rows, order=order)
    same(source, dtype=dtype, expected=rows.astype(np.float32))


def test_slices_are_bounded(monkeypatch):
    monkeypatch.setattr(_rows, "SLICE_ROWS", 7)
    sizes = [len(part.array) for part in _inputs.slices(np.asfortranarray(X))]
    assert sizes == [7] * 7 + [1]
    monkeypatch.setattr(_rows, "SLICE_BYTES", 2 * 6 * 4)
    assert {len(part.array) for part in _inputs.slices(X)} == {2}
    same(X)


def test_lists():
    same(X.tolist(), dtype="float64")
    same([list(row) for row in X], expected=X)
    same(list(X))
    same(tuple(map(tuple, X.tolist())), dtype="float64")
    same([[1, 0], [0, 1]], dtype="float64", expected=np.eye(2))


def test_batches():
    same(iter([X[:20], X[20:21], X[21:]]))
    same([X[:20], X[20:]])
    same(X[i : i + 1] for i in range(50))
    same(iter([X[:0], X, X[:0]]))
    same(iter([X[:20].tolist(), X[20:].tolist()]), dtype="float64")

    class Loader:
        def __iter__(self):
            return iter((X[:9], np.asfortranarray(X[9:])))

    same(Loader())


def test_batches_may_differ_in_dtype():
    rows, dtypes = read(iter([X[:20].astype(np.float64), X[20:]]))
    assert dtypes == {"float64", "float32"}
    np.testing.assert_array_equal(rows, X)


def test_batches_are_read_lazily():
    def endless():
        yield X
        raise RuntimeError("the source broke")

    parts = _inputs.slices(endless())
    assert len(next(parts).array) == 50
    with pytest.raises(RuntimeError, match="the source broke"):
        next(parts)


# --- DLPack and bfloat16 ---------------------------------------------------------------------------------------------


class Tensor:
    """A DLPack producer that is no numpy array, like torch's: bfloat16 as uint16 with the type code patched."""

    def __init__(self, rows, bfloat16=False, device=1):
        self.rows, self.bfloat16, self.device = rows, bfloat16, device
        self.shape = rows.shape
        self.detached = self.exported = 0

    def __dlpack_device__(self):
        return (self.device, 0)

    def __dlpack__(self, **kwargs):
        assert self.device == 1, "a device tensor must be moved first"
        self.exported += 1
        if not self.bfloat16:
            return self.rows.__dlpack__(**kwargs)
        if kwargs.get("max_version"):
            raise BufferError("this producer is too old for versions")
        capsule = self.rows.__dlpack__()
        from ctypes import c_char_p, c_void_p, py_object, pythonapi

        pythonapi.PyCapsule_GetPointer.restype = c_void_p
        pythonapi.PyCapsule_GetPointer.argtypes = (py_object, c_char_p)
        from captree._dlpack import _Tensor

        _Tensor.from_address(pythonapi.PyCapsule_GetPointer(capsule, b"dltensor")).code = self.bfloat16_code
        return capsule

    bfloat16_code = 4


BF = X.astype(ml_dtypes.bfloat16)


def test_dlpack():
    same(Tensor(X))
    same(Tensor(X.astype(np.float16)), dtype="float16", expected=X.astype(np.float16).astype(np.float32))
    same(Tensor(np.asfortranarray(X)))


def test_dlpack_bfloat16():
    same(Tensor(BF.view(np.uint16), True), dtype="bfloat16", expected=BF.astype(np.float32))


def test_dlpack_bfloat16_strided():
    wide = np.repeat(BF.view(np.uint16), 3, axis=1)
    same(Tensor(wide[::-1, ::3], True), dtype="bfloat16", expected=BF.astype(np.float32)[::-1])


def test_dlpack_bfloat16_keeps_and_frees_the_producers_memory():
    import weakref

    from captree._dlpack import from_dlpack

    class Rows(np.ndarray):
        pass

    rows = BF.view(np.uint16).copy().view(Rows)
    gone = weakref.ref(rows)
    tensor = Tensor(rows, True)
    view, is_bfloat16 = from_dlpack(tensor)
    assert is_bfloat16
    del tensor, rows
    assert gone() is not None
    np.testing.assert_array_equal(view, BF.view(np.uint16))
    part = view[3:]
    del view
    assert gone() is not None
    del part
    assert gone() is None


def test_dlpack_empty_and_other_types():
    with pytest.raises(InvalidVectorsError, match="at least one row"):
        read(Tensor(BF.view(np.uint16)[:0], True))
    tensor = Tensor(BF.view(np.uint16), True)
    tensor.bfloat16_code = 10
    with pytest.raises(InvalidTypeError, match="expected float16, bfloat16, float32 or float64"):
        read(tensor)
    with pytest.raises(InvalidTypeError, match="int64"):
        read(Tensor(np.eye(3, dtype=np.int64)))

    class Nowhere(Tensor):
        def __dlpack_device__(self):
            raise ValueError("no such device")

    with pytest.raises(InvalidTypeError, match="cannot read Nowhere through DLPack: no such device"):
        read(Nowhere(X))


def test_torch_like_tensors_are_detached_and_moved():
    class Torch(Tensor):
        def detach(self):
            self.detached += 1
            return self

        def cpu(self):
            return Tensor(self.rows)

        def __getitem__(self, part):
            return Torch(self.rows[part], device=self.device)

    tensor = Torch(X)
    same(tensor)
    assert tensor.detached == 1
    same(Torch(X, device=2))


def test_cupy_like_arrays_are_fetched():
    class Cupy(Tensor):
        def get(self):
            return self.rows

        def __getitem__(self, part):
            return Cupy(self.rows[part], device=self.device)

    same(Cupy(X, device=2))


def test_device_memory_without_a_way_out():
    with pytest.raises((InvalidTypeError, TypeError)):
        read(Tensor(X[:0], device=2))


def test_ml_dtypes_bfloat16():
    same(BF, dtype="bfloat16", expected=BF.astype(np.float32))
    same(np.asfortranarray(BF)[::2], dtype="bfloat16", expected=BF.astype(np.float32)[::2])
    same(list(BF), dtype="bfloat16", expected=BF.astype(np.float32))


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (X[0], r"2-dimensional.*\(6,\)"),
        (X[None], r"2-dimensional.*\(1, 50, 6\)"),
        (np.float32(1), r"2-dimensional.*\(\)"),
        (X[:, :0], r"at least one dimension.*\(50, 0\)"),
        (X[:0], "at least one row"),
        ([], "at least one row"),
        ([[]], "at least one dimension"),
        (iter([]), "at least one row"),
        (iter([X[:0], X[:0]]), "at least one row"),
        (iter([X, X[:, :5]]), "expected dim 6 .*got 5 in batch 1"),
        (iter([X, X[None]]), r"batch 1: .*\(1, 50, 6\)"),
        (iter([X, X[0, :3]]), "expected dim 6 .*got 3 in rows 1 to 1"),
        ([[1.0, 0.0], [1.0]], "ragged"),
        ([X[0], X[0, :3]], "one shape"),
        (np.ma.masked_array(X, X > 0), "masked"),
    ],
)
def test_bad_shapes(vectors, message):
    with pytest.raises(InvalidVectorsError, match=message) as error:
        read(vectors)
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(
    "vectors",
    [
        np.eye(3, dtype=np.int64),
        np.eye(3, dtype=np.uint16),
        np.eye(3, dtype=bool),
        np.eye(3, dtype=complex),
        np.eye(3, dtype=object),
        np.eye(3).astype("datetime64[s]"),
        np.array([["a", "b"]]),
        pytest.param(
            np.eye(3, dtype=np.longdouble),
            marks=pytest.mark.skipif(np.longdouble().itemsize == 8, reason="long double is float64 here"),
        ),
        np.zeros((3, 3), [("x", "f4")]),
        [[True, False]],
        [["a"]],
        [[None, 1.0]],
        [[1j]],
        b"bytes",
        None,
        3,
        {"a": 1},
        object(),
        {1.0, 2.0},
        iter([None]),
        iter([3.5]),
    ],
    ids=repr,
)
def test_bad_types(vectors):
    with pytest.raises((InvalidTypeError, InvalidVectorsError)) as error:
        read(vectors)
    assert "expected" in str(error.value)


# --- through the core ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_tree_from_every_layout(layout):
    tree = captree.build(LAYOUTS[layout], storage="float32")
    np.testing.assert_array_equal(all_rows(tree), X)


@pytest.mark.parametrize("source", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_kept_rows_are_the_rounded_rows(source, storage):
    rows = X.astype(ml_dtypes.bfloat16 if source == "bfloat16" else source)
    tree = captree.build(rows, storage=storage)
    assert tree.storage == storage
    assert all_rows(tree).dtype == storage
    np.testing.assert_array_equal(all_rows(tree), rows.astype(np.float64).astype(storage))


@pytest.mark.parametrize(
    ("source", "off"), [("float16", 8e-3), ("bfloat16", 4e-2), ("float32", 1e-3), ("float64", 1e-3)]
)
def test_rows_that_are_not_unit(source, off):
    rows = np.tile(np.array([[0.6, 0.8]]), (1000, 1))
    rows[[7, 500, 999]] *= 1 + off
    rows = rows.astype(ml_dtypes.bfloat16 if source == "bfloat16" else source)
    with pytest.raises(InvalidVectorsError, match=r"\b3\b.*\b7\b.*\b500\b.*\b999\b"):
        captree.build(rows)
    assert len(captree.build(rows, normalize=True)) == 1000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("normalize", [False, True])
def test_rows_that_are_not_finite(bad, normalize):
    rows = X.copy()
    rows[[3, 20], 1] = bad
    with pytest.raises(InvalidVectorsError, match=r"\b2\b.*\b3\b.*\b20\b"):
        captree.build(rows, normalize=normalize)


@pytest.mark.parametrize("normalize", [False, True])
def test_zero_rows(normalize):
    rows = X.copy()
    rows[[4, 9]] = 0
    with pytest.raises(InvalidVectorsError, match=r"\b2\b.*\b4\b.*\b9\b"):
        captree.build(rows, normalize=normalize)


def test_bad_rows_are_counted_over_all_batches():
    bad = X.copy()
    bad[0] *= 2
    with pytest.raises(InvalidVectorsError, match=r"\b3\b.*\b0\b.*\b50\b.*\b100\b"):
        captree.build(iter([bad, bad, bad]))


def test_normalize_long_and_short_rows():
    rows = X.astype(np.float64) * 10.0 ** np.linspace(-30, 30, 50)[:, None]
    tree = captree.build(rows, normalize=True, storage="float32")
    np.testing.assert_allclose(all_rows(tree), X, atol=1e-6)


# --- vectors as other libraries hand them out -----------------------------------------------------------------------


def test_generators_of_single_vectors():
    same(iter(X))
    same((row.tolist() for row in X), dtype="float64")
    same(iter(BF), dtype="bfloat16", expected=BF.astype(np.float32))
    same(iter([X[0], X[1:5], X[5], X[6], X[7:]]))
    many = np.tile(X, (60, 1))
    same((row for row in many), expected=many)
    with pytest.raises(InvalidVectorsError, match="rows 0 to 1: expected a list of arrays of one shape"):
        read(iter([X[0], X[1, :3]]))


def test_records():
    same([{"id": i, "emb": row} for i, row in enumerate(X)])
    same(({"a": row, "b": -row} for row in X), "a")
    same([{"emb": X[:20]}, {"emb": X[20:]}])
    for records, column, message in (
        ([{"a": X[0], "b": X[0]}], None, "several columns of vectors in record 0: name one of a, b"),
        ([{"a": 1}], None, "no column of vectors in record 0"),
        ([{"a": X[0]}], "b", "no column named 'b' in record 0; it has a"),
    ):
        with pytest.raises(InvalidParameterError, match=message):
            read(records, column)


def test_object_arrays_and_pandas():
    pd = pytest.importorskip("pandas")
    objects = np.empty(len(X), object)
    objects[:] = list(X)
    same(objects)
    frame = pd.DataFrame({"name": [str(i) for i in range(len(X))], "emb": list(X)})
    same(frame["emb"])
    same(frame["emb"].to_numpy())
    same(frame, "emb")
    same(frame[["emb"]])
    same(pd.Series([row.tolist() for row in X]), dtype="float64")
    with pytest.raises(InvalidTypeError, match="expected an object array of vectors, got str"):
        read(frame["name"].astype(object).to_numpy())
    with pytest.raises(InvalidVectorsError, match="1 that are None, first at 3"):
        read([*X[:3], None, X[4]])


def test_datasets_of_hugging_face():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"id": list(range(len(X))), "emb": X.tolist()})
    for source, column in ((data["emb"], None), (data, "emb"), (data, None), (data.to_iterable_dataset(), "emb")):
        rows, _ = read(source, column)
        np.testing.assert_array_equal(rows, X)
    rows, _ = read(data.with_format("numpy"), "emb")
    np.testing.assert_array_equal(rows, X)
    with pytest.raises(InvalidParameterError, match="no column named 'nope'"):
        read(data, "nope")


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_bytes_are_taken_when_they_are_scaled(kind):
    pa = pytest.importorskip("pyarrow")
    rows = np.random.default_rng(0).integers(1, 127, (30, 6)).astype(kind)
    expected = unit(rows.astype(np.float64))
    lists = pa.table({"id": np.arange(30), "emb": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 6)})
    for source in (rows, iter(rows), lists, lists["emb"]):
        tree = captree.build(source, storage="float32", normalize=True)
        np.testing.assert_array_equal(all_rows(tree), expected)
    for source in (rows, lists):
        with pytest.raises(InvalidTypeError, match=rf"got .*{kind}.*; normalize=True"):
            captree.build(source)
