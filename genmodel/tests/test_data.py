from pathlib import Path

import captree
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from training_support import CODES, DIM, LENGTH, caps, centers, meta, some_tokens, tiny_shards, train_config

from genmodel import errors
from genmodel.data import (
    Batch,
    Batches,
    OwnEmbeddings,
    Portions,
    RowPairs,
    WrittenPairs,
    center_prior,
    parse_radii,
    unit,
)
from genmodel.distributed import World
from genmodel.material import prepare, split_rows

ALONE = World(0, 1, torch.device("cpu"))


def _same(a: RowPairs, b: RowPairs) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("rows", "centers", "max_cos_distance"))


def test_own_embeddings_go_through_every_row_each_epoch() -> None:
    embeddings = centers(10).numpy()
    source = OwnEmbeddings(embeddings, 4, seed=1)
    rows = np.concatenate([next(source).rows for _ in range(10)])
    epochs = rows.reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    batch = next(source)
    assert np.allclose(batch.centers, embeddings[batch.rows], atol=1e-6)
    assert not batch.max_cos_distance.any()


def test_own_embeddings_of_all_ranks_are_the_batch_of_one() -> None:
    embeddings = centers(10).numpy()
    whole, parts = (
        OwnEmbeddings(embeddings, 4, 1, 0.5),
        [OwnEmbeddings(embeddings, 4, 1, 0.5, None, r, 2) for r in (0, 1)],
    )
    for _ in range(6):
        assert np.array_equal(next(whole).rows, np.concatenate([next(part).rows for part in parts]))


def test_own_embeddings_resume_and_weigh() -> None:
    embeddings = centers(10).numpy()
    weights = np.arange(10.0)
    for given in (None, weights):
        first, second = (OwnEmbeddings(embeddings, 4, 1, captree.LogUniformRadius(0.1, 1), given) for _ in range(2))
        for _ in range(7):
            next(first)
        second.load_state_dict(first.state_dict())
        assert _same(next(first), next(second))
    source = OwnEmbeddings(embeddings, 1000, 1, 0.0, weights)
    share = np.bincount(np.concatenate([next(source).rows for _ in range(20)]), minlength=10) / 20_000
    assert np.allclose(share, weights / weights.sum(), atol=0.012)


def _written(folder: Path, n: int = 23) -> captree.Tree:
    tree = captree.build(centers(40).numpy())
    captree.write_pairs(tree, folder, n, seed=3, rows_per_file=10)
    return tree


def test_written_pairs_come_in_order_and_over_again(tmp_path: Path) -> None:
    tree = _written(tmp_path)
    table = pq.read_table(tmp_path)
    source = WrittenPairs(tmp_path, 6)
    assert len(source) == 23
    batches = [next(source) for _ in range(8)]
    rows = np.concatenate([batch.rows for batch in batches])
    assert np.array_equal(rows, np.tile(table["row"].to_numpy(), 3)[:48])
    for batch in batches:
        apart = 1 - np.einsum("ij,ij->i", tree.take(batch.rows).astype(np.float64), batch.centers.astype(np.float64))
        assert (apart <= batch.max_cos_distance + 1e-6).all()
    again = WrittenPairs(tmp_path, 6)
    again.load_state_dict({"step": 5})
    assert _same(next(again), batches[5])


def test_written_pairs_of_all_ranks_are_the_batch_of_one(tmp_path: Path) -> None:
    _written(tmp_path)
    whole, parts = WrittenPairs(tmp_path, 6), [WrittenPairs(tmp_path, 6, r, 3) for r in range(3)]
    for _ in range(9):
        assert np.array_equal(next(whole).rows, np.concatenate([next(part).rows for part in parts]))


def test_written_pairs_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(errors.DataError, match="no Parquet files"):
        WrittenPairs(tmp_path, 4)
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(errors.DataError, match="holds no pairs"):
        next(WrittenPairs(tmp_path, 2))
    (tmp_path / "b.parquet").write_bytes(b"nothing")
    with pytest.raises(errors.DataError, match="no Parquet"):
        WrittenPairs(tmp_path, 2)


def test_written_pairs_with_empty_caps(tmp_path: Path) -> None:
    captree.write_pairs(captree.build(centers(40).numpy()), tmp_path, 20, radii=0.0, empty="keep")
    with pytest.raises(errors.DataError, match=r"expected a row in every cap.*got \d+ without"):
        next(WrittenPairs(tmp_path, 2))


def test_portions_are_the_stream_and_resume_anywhere() -> None:
    tree = captree.build(centers(40).numpy())
    stream = captree.PairStream(tree, batch_size=12, seed=1)
    expected = np.concatenate([next(stream).rows for _ in range(3)])
    stream.close()
    portions = Portions(captree.PairStream(tree, batch_size=12, seed=1), 4)
    states, rows = [], []
    for _ in range(9):
        states.append(portions.state_dict())
        rows.append(next(portions).rows)
    assert np.array_equal(np.concatenate(rows), expected)
    for state, following in zip(states, rows, strict=True):
        again = Portions(captree.PairStream(tree, batch_size=12, seed=1), 4)
        again.load_state_dict(state)
        assert np.array_equal(next(again).rows, following)
        again.close()
    portions.close()


@pytest.mark.parametrize("kind", ["distance", "range"])
def test_distance_and_range_say_the_truth(kind: str) -> None:
    embeddings = centers(40).numpy()
    tokens = some_tokens(40).numpy()
    stream = captree.PairStream(captree.build(embeddings), batch_size=64, seed=1)
    batches = Batches(stream, tokens, embeddings, kind, seed=2)
    for _ in range(4):
        batch = next(batches)
        rows = [np.flatnonzero((tokens == t.numpy()).all(axis=1))[0] for t in batch.tokens]
        apart = 1 - (torch.from_numpy(embeddings[rows]) * batch.condition.center).sum(1)
        if kind == "distance":
            assert torch.allclose(batch.condition.low, apart, atol=1e-5)
            assert torch.equal(batch.condition.low, batch.condition.high)
        else:
            assert (batch.condition.low <= apart + 1e-5).all()
            assert (apart <= batch.condition.high + 1e-5).all()
            assert len(batch.condition.low.unique()) > 10
    stream.close()


def test_radii_by_name() -> None:
    assert parse_radii("mixture") is captree.DEFAULT_RADII
    assert parse_radii("fixed:0.5") == captree.FixedRadius(0.5)
    assert parse_radii("loguniform:0.01:1") == captree.LogUniformRadius(0.01, 1.0)
    assert parse_radii("uniform:0.1:1") == captree.RadiusMixture(((1.0, 0.1, 1.0),))
    assert parse_radii("mass:0.001:1") == captree.ByMass(0.001, 1.0)
    for wrong in ("", "fixed", "fixed:x", "mass:0.1", "fixed:3", "mass:0:1"):
        with pytest.raises(errors.ConfigError, match="radii"):
            parse_radii(wrong)


def test_priors_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones(DIM, np.float32))
    np.save(tmp_path / "c.npy", centers(3).numpy())
    tree = captree.build(centers(40).numpy())
    for prior, settings in (
        ("slerp", {}),
        ("slerp-noise", {"noise": 0.3}),
        ("gap-shift", {"shift": tmp_path / "v.npy", "shift_scale": 0.5}),
        ("given", {"centers": tmp_path / "c.npy"}),
        ("uniform", {}),
    ):
        with captree.PairStream(tree, batch_size=8, centers=center_prior(prior, **settings)) as stream:
            made = next(stream)
        apart = 1 - (tree.take(made.rows).astype(np.float32) * made.centers).sum(1)
        assert (apart <= made.max_cos_distance + 1e-5).all()
    with pytest.raises(errors.ConfigError, match=r"shift: this prior needs a \.npy"):
        center_prior("gap-shift")
    with pytest.raises(errors.DataError, match="cannot read"):
        center_prior("given", centers=tmp_path / "none.npy")
    with pytest.raises(errors.ConfigError, match="prior: expected one of"):
        center_prior("text")


def test_batches_take_tokens_and_caps_only() -> None:
    assert len(Batch(some_tokens(4), caps(4))) == 4
    parts = list(Batch(some_tokens(5), caps(5), torch.arange(5.0)).split(2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert torch.cat([part.weight for part in parts if part.weight is not None]).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(errors.InputError, match="int64 tokens"):
        Batch(some_tokens(4).float(), caps(4))
    with pytest.raises(errors.InputError, match="int64 tokens"):
        Batch(some_tokens(3), caps(4))


def test_split_of_rows() -> None:
    train, held = split_rows(1000, 50, seed=0)
    assert len(held) == 50
    assert sorted([*train, *held]) == list(range(1000))
    assert not np.array_equal(held, split_rows(1000, 50, seed=1)[1])
    assert len(split_rows(100, 50, seed=0)[1]) == 10
    assert len(split_rows(63, 50, seed=0)[1]) == 0


@pytest.mark.parametrize("with_tree", [False, True])
def test_rows_held_out_are_never_learned_from(tmp_path: Path, with_tree: bool) -> None:
    shards = tiny_shards(tmp_path / "data")
    path = None
    if with_tree:
        captree.build(unit(shards.embeddings), out=tmp_path / "t.captree")
        path = str(tmp_path / "t.captree")
    config = train_config(tmp_path / "data", tmp_path / "out", heldout=20, batch_size=64, tree=path)
    tokens = np.arange(200)[:, None] % CODES + np.zeros((1, LENGTH), np.int64)
    tokens[:, 0], tokens[:, 1] = np.divmod(np.arange(200), CODES)
    shards.__dict__["tokens"] = tokens
    material = prepare(config, shards, ALONE)
    assert len(material.heldout_rows) == 20
    assert material.heldout is not None
    seen: set[int] = set()
    for _ in range(30):
        batch = next(material.batches)
        rows = (batch.tokens[:, 0] * CODES + batch.tokens[:, 1]).numpy()
        seen |= set(rows if batch.weight is None else rows[batch.weight.numpy() > 0])
    held = set(material.heldout_rows.tolist())
    assert not seen & held
    assert len(seen) > 150
    fixed = material.heldout.tokens
    assert set((fixed[:, 0] * CODES + fixed[:, 1]).tolist()) <= held
    material.close()


def test_trees_of_other_vectors(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path / "data")
    captree.build(centers(200, seed=5).numpy(), out=tmp_path / "other.captree")
    captree.build(centers(50).numpy(), out=tmp_path / "small.captree")
    for name, message in (("other", "in their order"), ("small", "200 rows of dimension 16, got 50")):
        config = train_config(tmp_path / "data", tmp_path / "out", tree=str(tmp_path / f"{name}.captree"))
        with pytest.raises(errors.ConfigError, match=message):
            prepare(config, shards, ALONE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"condition": "embedding"}, "expected prior 'own'"),
        ({"condition": "distance", "prior": "own"}, "needs centers apart"),
        ({"prior": "own", "radii": "mass:0.1:1"}, "'own' takes no mass"),
        ({"prior": "uniform", "radii": "mass:0.1:1"}, "'uniform' takes no mass"),
        ({"pairs": "x", "balance_exponent": 0.5}, "cannot be balanced"),
    ],
)
def test_settings_that_contradict(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    shards = tiny_shards(tmp_path / "data")
    with pytest.raises(errors.ConfigError, match=message):
        prepare(train_config(tmp_path / "data", tmp_path / "out", **settings), shards, ALONE)


def test_captions_have_no_way_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shards folder with captions gives the batches of one without, and the captions are never read from disk."""
    plain = tiny_shards(tmp_path / "plain")
    tiny_shards(tmp_path / "captioned")
    for path in (tmp_path / "captioned").glob("*.parquet"):
        table = pq.read_table(path)
        captions = pa.array([f"caption {i}" for i in range(len(table))])
        with_text = table.append_column("caption", captions)
        pq.write_table(with_text.replace_schema_metadata(table.schema.metadata), path)

    read: list[str] = []
    real = pq.read_table

    def spy(*args: object, columns: list[str] | None = None, **kwargs: object) -> pa.Table:
        assert columns is not None, "all columns of a file were read"
        read.extend(columns)
        return real(*args, columns=columns, **kwargs)

    monkeypatch.setattr(pq, "read_table", spy)
    batches = []
    for folder in ("plain", "captioned"):
        from genmodel.shards import open_shards

        config = train_config(tmp_path / folder, tmp_path / "out")
        material = prepare(config, open_shards(tmp_path / folder), ALONE)
        batches.append([next(material.batches) for _ in range(3)])
        material.close()
    assert set(read) == {"embedding", "tokens"}
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.condition.center, b.condition.center)
        # All there is in a batch: integers below the codebook's size, and caps.
        assert vars(a).keys() == {"tokens", "condition", "weight"}
        assert vars(a.condition).keys() == {"center", "high", "low"}
        assert a.tokens.dtype == torch.int64
        assert int(a.tokens.max()) < plain.meta["codebook_size"] == meta()["codebook_size"]
        assert {t.dtype for t in vars(a.condition).values()} == {torch.float32}
