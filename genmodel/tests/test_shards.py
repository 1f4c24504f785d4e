"""Shards: what is written comes back; unfinished, foreign and damaged folders are told apart."""

import json

import captree
import numpy as np
import pyarrow.parquet as pq
import pytest

import genmodel.shards
from genmodel.errors import DataError, InputError
from genmodel.shards import ShardWriter, open_shards, shard_schema, unit_rows, write_shards

META = {"encoder": "e", "tokenizer": "t", "grid": 2, "dim": 8, "codebook_size": 1000, "image_size": 16}


def arrays(n=10, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 8)).astype(np.float32), rng.integers(0, 1000, (n, 4))


def test_round_trip(tmp_path):
    embeddings, tokens = arrays()
    paths = [f"å {i}.png" for i in range(10)]
    shards = write_shards(tmp_path / "s", META, embeddings, tokens, paths, np.arange(10) * 3, rows_per_shard=4)
    assert len(shards) == 10
    assert shards.meta["shards"] == 3
    np.testing.assert_array_equal(shards.ids, np.arange(10) * 3)
    np.testing.assert_array_equal(shards.tokens, tokens)
    assert shards.tokens.dtype == np.uint16
    assert shards.embeddings.dtype == np.float16
    np.testing.assert_array_equal(shards.embeddings, unit_rows(embeddings, 8))
    assert shards.paths == paths
    assert shards.broken == []
    assert pq.read_schema(tmp_path / "s" / "shard-00001.parquet").remove_metadata() == shard_schema(8, 4)


def test_captree_takes_the_folder_as_it_is(tmp_path):
    embeddings, tokens = arrays(50)
    shards = write_shards(tmp_path / "s", META, embeddings, tokens, rows_per_shard=16)
    tree = captree.build(tmp_path / "s", column="embedding")
    np.testing.assert_array_equal(np.asarray(tree.take(np.arange(50))), shards.embeddings)


@pytest.mark.parametrize("dim", [2, 3, 64, 1024])
def test_rounded_rows_are_unit_for_captree(dim):
    rng = np.random.default_rng(dim)
    rows = unit_rows(rng.normal(size=(200, dim)) * 10.0 ** rng.integers(-20, 20, (200, 1)), dim)
    assert np.abs(np.linalg.norm(rows.astype(np.float64), axis=1) - 1).max() < 5e-4
    captree.build(rows)


def test_rows_without_a_direction_are_an_error():
    rows = np.ones((4, 3))
    rows[1], rows[3] = 0, np.nan
    with pytest.raises(InputError, match=r"2 without, first rows \[1, 3\]"):
        unit_rows(rows, 3)


def test_large_columns_become_memory_maps(tmp_path, monkeypatch):
    embeddings, tokens = arrays()
    write_shards(tmp_path / "s", META, embeddings, tokens, rows_per_shard=4)
    monkeypatch.setattr(genmodel.shards, "MEMORY_LIMIT", 10)
    for _ in range(2):  # made, then found
        shards = open_shards(tmp_path / "s")
        assert isinstance(shards.tokens, np.memmap)
        np.testing.assert_array_equal(shards.tokens, tokens)
        np.testing.assert_array_equal(shards.embeddings, unit_rows(embeddings, 8))


def test_an_unfinished_folder_goes_on(tmp_path):
    embeddings, tokens = arrays()
    writer = ShardWriter(tmp_path / "s", META, 5)
    writer.write(1, np.arange(5, 10), list("abcde"), embeddings[5:], tokens[5:])
    with pytest.raises(DataError, match="unfinished"):
        open_shards(tmp_path / "s")
    with pytest.raises(DataError, match="1 are missing, first 0"):
        writer.finish(2)
    (tmp_path / "s" / ".shard-00000.parquet.tmp").write_bytes(b"half of it")  # what a kill leaves
    again = ShardWriter(tmp_path / "s", META, 5)
    assert again.done == {1}
    again.write(0, np.arange(5), list("abcde"), embeddings[:5], tokens[:5])
    np.testing.assert_array_equal(again.finish(2).tokens, tokens)


def test_other_settings_are_refused(tmp_path):
    write_shards(tmp_path / "s", META, *arrays())
    with pytest.raises(DataError, match="encoder: expected 'other', got 'e'"):
        ShardWriter(tmp_path / "s", {**META, "encoder": "other"})
    with pytest.raises(InputError, match="missing: grid"):
        ShardWriter(tmp_path / "x", {key: value for key, value in META.items() if key != "grid"})


def test_wrong_arrays_are_refused(tmp_path):
    embeddings, tokens = arrays()
    with pytest.raises(InputError, match="tokens below 1000, got values from 0 to 1000"):
        write_shards(tmp_path / "s", META, embeddings, np.where(np.arange(40).reshape(10, 4) == 7, 1000, 0))
    with pytest.raises(InputError, match="integer tokens of shape"):
        write_shards(tmp_path / "s", META, embeddings, tokens.astype(float))
    with pytest.raises(InputError, match=r"shape \(n, 8\)"):
        write_shards(tmp_path / "s", META, embeddings[:, :5], tokens)
    with pytest.raises(InputError, match="as many"):
        write_shards(tmp_path / "s", META, embeddings[:5], tokens)


def test_damage_is_found(tmp_path):
    folder = tmp_path / "s"
    write_shards(folder, META, *arrays(), rows_per_shard=4)
    (folder / "shard-00001.parquet").rename(folder / "gone")
    with pytest.raises(DataError, match="3 shards, 2 are there"):
        open_shards(folder)
    (folder / "shard-00001.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="damaged"):
        ShardWriter(folder, META, 4)
    (folder / "meta.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(DataError, match="expected format 1"):
        open_shards(folder)
    with pytest.raises(DataError, match="genmodel encode writes"):
        open_shards(tmp_path / "nothing")
