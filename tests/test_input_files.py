"""Vectors in Arrow memory and in files: .npy, Parquet, Arrow IPC, folders of them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from helpers import all_rows, assert_reads, random_units, read

import captree
from captree.errors import InvalidParameterError, InvalidTypeError, InvalidVectorsError, StorageError

ml_dtypes = pytest.importorskip("ml_dtypes")

X = random_units(50, 6)
BF = X.astype(ml_dtypes.bfloat16)


def same(vectors, column=None, dtype="float32", expected=X):
    assert_reads(vectors, expected, column, dtype)


# --- Arrow ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pa():
    return pytest.importorskip("pyarrow")


def fixed(pa, rows=X):
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def test_arrow_arrays(pa):
    same(fixed(pa))
    same(fixed(pa)[10:20], expected=X[10:20])
    same(fixed(pa)[10:][5:7], expected=X[15:17])
    same(pa.chunked_array([fixed(pa)[:10], fixed(pa)[10:]]))
    same(pa.chunked_array([fixed(pa)])[7:], expected=X[7:])
    same(fixed(pa, X.astype(np.float16)), dtype="float16", expected=X.astype(np.float16).astype(np.float32))
    same(fixed(pa, X.astype(np.float64)), dtype="float64")


@pytest.mark.parametrize("kind", ["list_", "large_list"])
def test_arrow_lists_of_one_length(pa, kind):
    rows = pa.array(X.tolist(), getattr(pa, kind)(pa.float32()))
    same(rows)
    same(rows[5:9], expected=X[5:9])
    ragged = pa.array([[1.0, 0.0], [1.0]], getattr(pa, kind)(pa.float32()))
    with pytest.raises(InvalidVectorsError, match="got 2 at row 0 and 1 at row 1"):
        read(ragged)


def test_arrow_tables(pa):
    table = pa.table({"name": [str(i) for i in range(50)], "emb": fixed(pa), "size": np.arange(50.0)})
    same(table)
    same(table[3:9], expected=X[3:9])
    same(table, "emb")
    same(table["emb"])
    same(table.to_batches(max_chunksize=7)[1], expected=X[7:14])
    same(pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=7)))
    same(iter(table.to_batches(max_chunksize=7)))
    same(pa.concat_tables([table[:20], table[20:]]), "emb")


def test_arrow_datasets_and_capsules(pa):
    dataset = pytest.importorskip("pyarrow.dataset")
    same(dataset.dataset(pa.table({"emb": fixed(pa)})))

    class Stream:
        def __init__(self, inner):
            self.inner = inner

        def __arrow_c_stream__(self, requested_schema=None):
            return self.inner.__arrow_c_stream__(requested_schema)

    class Array:
        def __arrow_c_array__(self, requested_schema=None):
            return fixed(pa).__arrow_c_array__(requested_schema)

    same(Stream(pa.table({"emb": fixed(pa)})))
    same(Array())
    if hasattr(pa.ChunkedArray, "__arrow_c_stream__"):
        same(Stream(pa.chunked_array([fixed(pa)])))

    class Numbers:
        def __arrow_c_stream__(self, requested_schema=None):
            raise ValueError("not today")

    with pytest.raises(InvalidTypeError, match="cannot read Numbers as an Arrow table or column"):
        read(Numbers())


def test_arrow_extension_type(pa):
    if not hasattr(pa, "fixed_shape_tensor"):
        pytest.skip("this pyarrow has no tensors")
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [6]), fixed(pa))
    same(tensors)
    same(pa.table({"t": tensors}))


def test_arrow_nulls(pa):
    rows = pa.array([[1.0, 0.0], None, [0.0, 1.0]], pa.list_(pa.float32(), 2))
    with pytest.raises(InvalidVectorsError, match=r"1 null rows, first at \[1\]"):
        read(rows)
    same(rows[2:], expected=np.array([[0, 1]], np.float32))
    with pytest.raises(InvalidVectorsError, match="1 null elements"):
        read(pa.array([[1.0, None]], pa.list_(pa.float32(), 2)))


def test_arrow_column_choice(pa):
    two = pa.table({"a": fixed(pa), "b": fixed(pa)})
    with pytest.raises(InvalidParameterError, match=r"several columns.*a, b"):
        read(two)
    same(two, "b")
    with pytest.raises(InvalidParameterError, match=r"no column named 'c'.*a, b"):
        read(two, "c")
    with pytest.raises(InvalidTypeError, match=r"no column of float vectors.*x: int64"):
        read(pa.table({"x": [1]}))
    with pytest.raises(InvalidTypeError, match="got int64"):
        read(pa.table({"x": [1]}), "x")
    with pytest.raises(InvalidTypeError, match="column: expected a str"):
        read(two, 3)
    for bare in (two["a"], fixed(pa), X, X.tolist(), iter([X])):
        with pytest.raises(InvalidParameterError, match=r"column: only tables .*have columns"):
            read(bare, "a")


@pytest.mark.parametrize("values", [[1.0, 2.0], [[1, 2]], [["a"]], [[[1.0]]]])
def test_arrow_other_types(pa, values):
    with pytest.raises(InvalidTypeError, match="fixed_size_list"):
        read(pa.array(values))


def test_pyarrow_missing(monkeypatch, tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(captree.errors.MissingDependencyError, match=r"pip install 'captree\[arrow\]'"):
        read(tmp_path / "x.parquet")
    with pytest.raises(ImportError):
        read(tmp_path)


def test_import_stays_light():
    code = (
        "import sys, numpy, captree; captree.build(numpy.eye(3)); "
        "print([m for m in ('pyarrow', 'torch', 'cupy', 'hypothesis', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- files -----------------------------------------------------------------------------------------------------------


def write_ipc(pa, path, table, stream=False):
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=13)


def test_npy(tmp_path):
    np.save(tmp_path / "c.npy", X)
    same(tmp_path / "c.npy")
    same(str(tmp_path / "c.npy"))
    np.save(tmp_path / "f.npy", np.asfortranarray(X.astype(np.float64)))
    same(tmp_path / "f.npy", dtype="float64")
    np.save(tmp_path / "b.npy", BF)
    same(tmp_path / "b.npy", dtype="bfloat16", expected=BF.astype(np.float32))


def test_parquet_and_ipc(pa, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    table = pa.table({"id": np.arange(50), "emb": fixed(pa)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=13)
    same(tmp_path / "x.parquet")
    same(tmp_path / "x.parquet", "emb")
    with pytest.raises(InvalidParameterError, match="no column named 'nope'"):
        read(tmp_path / "x.parquet", "nope")
    variable = pa.table({"emb": pa.array(X.tolist(), pa.list_(pa.float32()))})
    pq.write_table(variable, tmp_path / "lists.parquet")
    same(tmp_path / "lists.parquet")
    for name, stream in (("x.arrow", False), ("x.ipc", False), ("x.feather", False), ("s.arrow", True)):
        write_ipc(pa, tmp_path / name, table, stream)
        same(tmp_path / name)
        same(tmp_path / name, "emb")
    pytest.importorskip("pyarrow.feather").write_feather(table, str(tmp_path / "packed.feather"), compression="zstd")
    same(tmp_path / "packed.feather")


@pytest.mark.parametrize("kind", ["npy", "parquet", "arrow"])
def test_folders_in_sorted_order(pa, tmp_path, kind):
    pq = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "sub").mkdir()
    for name, part in ((f"b.{kind}", X[20:30]), (f"a.{kind}", X[:20]), (f"sub/c.{kind}", X[30:])):
        if kind == "npy":
            np.save(tmp_path / name, part)
        elif kind == "parquet":
            pq.write_table(pa.table({"emb": fixed(pa, part)}), tmp_path / name)
        else:
            write_ipc(pa, tmp_path / name, pa.table({"emb": fixed(pa, part)}))
    (tmp_path / "notes.txt").write_text("not vectors")
    (tmp_path / f".hidden.{kind}").write_text("not vectors either")
    same(tmp_path)
    same([tmp_path / f"a.{kind}", tmp_path / f"b.{kind}", tmp_path / "sub"])


def test_folder_errors(pa, tmp_path):
    with pytest.raises(InvalidVectorsError, match=r"no \.npy.* files"):
        read(tmp_path)
    np.save(tmp_path / "a.npy", X)
    write_ipc(pa, tmp_path / "a.arrow", pa.table({"emb": fixed(pa)}))
    with pytest.raises(InvalidVectorsError, match="several formats"):
        read(tmp_path)


def test_file_errors(tmp_path):
    with pytest.raises(StorageError, match="no file or folder"):
        read(tmp_path / "missing.npy")
    with pytest.raises(OSError, match="no file or folder"):
        read("missing.npy")
    (tmp_path / "x.txt").write_text("1 0")
    with pytest.raises(InvalidVectorsError, match="cannot tell the format"):
        read(tmp_path / "x.txt")
    np.save(tmp_path / "ints.npy", np.eye(3, dtype=np.int64))
    with pytest.raises(InvalidTypeError, match=r"ints\.npy: expected float16.*int64"):
        read(tmp_path / "ints.npy")
    with pytest.raises(InvalidParameterError, match=r"column: only tables have columns, got .*ints\.npy"):
        read(tmp_path / "ints.npy", "emb")
    np.save(tmp_path / "flat.npy", X[0])
    with pytest.raises(InvalidVectorsError, match=r"flat\.npy.*shape \(6,\)"):
        read(tmp_path / "flat.npy")
    np.save(tmp_path / "objects.npy", np.array([None, 1]), allow_pickle=True)
    with pytest.raises(InvalidVectorsError, match=r"objects\.npy"):
        read(tmp_path / "objects.npy")


@pytest.mark.parametrize("suffix", ["npy", "parquet", "arrow", "feather"])
def test_damaged_files(pa, tmp_path, suffix):
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / f"x.{suffix}"
    for content in (b"", b"junk", b"junk" * 1000):
        path.write_bytes(content)
        with pytest.raises(captree.CaptreeError, match=rf"x\.{suffix}"):
            read(path)
    if suffix == "npy":
        np.save(path, X)
    elif suffix == "parquet":
        pq.write_table(pa.table({"emb": fixed(pa)}), path)
    else:
        write_ipc(pa, path, pa.table({"emb": fixed(pa)}))
    whole = path.read_bytes()
    for size in (1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(captree.CaptreeError, match=rf"x\.{suffix}"):
            read(path)


@pytest.mark.parametrize("suffix", ["npy", "parquet", "arrow"])
def test_overwritten_bytes(pa, tmp_path, suffix):
    """Any bytes give vectors or an error of captree's, never another one and never a crash."""
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / f"x.{suffix}"
    if suffix == "npy":
        np.save(path, X)
    elif suffix == "parquet":
        pq.write_table(pa.table({"emb": fixed(pa)}), path)
    else:
        write_ipc(pa, path, pa.table({"emb": pa.array(X.tolist(), pa.list_(pa.float32()))}))
    whole = path.read_bytes()
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(300):
        changed = bytearray(whole)
        for place in rng.integers(min(len(whole), 3000), size=3):
            changed[place] = rng.integers(256)
        path.write_bytes(changed)
        try:
            read(path)
        except captree.CaptreeError:
            refused += 1
    assert refused > 10


def test_path_with_column_through_build(pa, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"a": fixed(pa), "b": fixed(pa, X[::-1].copy())}), tmp_path / "x.parquet")
    tree = captree.build(tmp_path / "x.parquet", column="b", storage="float32")
    np.testing.assert_array_equal(all_rows(tree), X[::-1])
