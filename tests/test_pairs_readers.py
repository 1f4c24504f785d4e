"""Files of write_pairs in other programs: pyarrow, DuckDB and Hugging Face datasets read the same pairs."""

from __future__ import annotations

import datasets
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

import captree

N, SHARDS, DIM = 700, 3, 48


@pytest.fixture(scope="module")
def folder(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs")
    captree.write_pairs(tree, out, N, seed=1, batch_size=200, shards=SHARDS, counts=True, empty="keep")
    return out


@pytest.fixture(scope="module")
def written(tree, folder):
    """What is in the files, read one by one; its pairs are true."""
    table = pa.concat_tables([pq.ParquetFile(file).read() for file in sorted(folder.glob("*.parquet"))])
    assert table.num_rows == N
    caps = captree.Caps.from_arrow(table)
    assert (table["count"].to_numpy() == tree.count(caps)).all()
    columns = {name: table[name].to_numpy() for name in ("row", "max_cos_distance", "count", "selectivity")}
    return {**columns, "center": caps.centers}


def assert_same(found, written):
    assert found.keys() == written.keys()
    for name, values in written.items():
        column = np.asarray(found[name])
        assert column.dtype == values.dtype, name
        np.testing.assert_array_equal(column, values, err_msg=name)


def centers_of(column):
    """float32 (n, d) of lists of float32, in whatever kind of list."""
    flat = pa.chunked_array(column).combine_chunks().flatten()
    assert flat.type == pa.float32()
    return flat.to_numpy().reshape(-1, DIM)


def test_pyarrow(folder, written):
    whole = pq.read_table(folder)
    assert whole.schema.field("center").type == pa.list_(whole.schema.field("center").type.value_field, DIM)
    assert not any(whole.schema.field(name).nullable for name in whole.schema.names)
    scanned = pyarrow.dataset.dataset(folder, format="parquet").to_table()
    for table in (whole, scanned):
        found = {name: centers_of(table[name]) if name == "center" else table[name].to_numpy() for name in written}
        assert_same(found, written)


def test_duckdb(folder, written):
    with duckdb.connect() as connection:
        pairs = f"select * from read_parquet('{folder}/*.parquet')"
        assert [line[:2] for line in connection.execute(f"describe {pairs}").fetchall()] == [
            ("row", "BIGINT"),
            ("center", "FLOAT[]"),
            ("max_cos_distance", "FLOAT"),
            ("count", "BIGINT"),
            ("selectivity", "DOUBLE"),
        ]
        found = connection.execute(pairs).fetchnumpy()
        found["center"] = np.array([list(center) for center in found["center"]], np.float32)
        assert_same(found, written)
        narrow = connection.execute(f"select count(*) from ({pairs}) where max_cos_distance < 0.5").fetchone()
        assert narrow == ((written["max_cos_distance"] < 0.5).sum(),)


@pytest.mark.filterwarnings("default")
def test_datasets(folder, written, tmp_path):
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path), split="train")
    assert loaded.features["center"] == datasets.List(datasets.Value("float32"), length=DIM)
    assert loaded.features["row"] == datasets.Value("int64")
    table = loaded.with_format("arrow")[:]
    found = {name: centers_of(table[name]) if name == "center" else table[name].to_numpy() for name in written}
    assert_same(found, written)
