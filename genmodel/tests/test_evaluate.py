"""Metrics against formulas and brute force, and an evaluation from shards to report."""

import json

import captree
import numpy as np
import pytest
import torch
from support import FakeEncoder, FakeTokenizer, plain_images, tiny_generator, unit_rows

from genmodel import grids, metrics
from genmodel import prompts as ask
from genmodel.checkpoint import save_checkpoint
from genmodel.errors import ConfigError, DataError, InputError
from genmodel.evaluate import EvaluateConfig, ceiling, evaluate, measure, read_prompts, unconditional
from genmodel.sampler import Sampler, training_set
from genmodel.shards import ShardWriter

# ---- metrics


def test_wilson_has_its_known_values():
    assert metrics.wilson(10, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert metrics.wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert metrics.wilson(10, 10)[1] == 1.0
    assert metrics.wilson(0, 0) == (0.0, 1.0)
    assert str(metrics.rate(np.array([True, False]))) == "50.0% [9.5, 90.5]"
    with pytest.raises(InputError, match="0 <= hits <= n"):
        metrics.wilson(3, 2)


def test_wilson_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = [low <= 0.2 <= high for low, high in (metrics.wilson(k, 64) for k in rng.binomial(64, 0.2, 2000))]
    assert 0.93 < np.mean(covered) < 0.97


def test_fid_of_a_shift_is_its_squared_length_and_of_itself_nothing():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 6))
    shift = np.array([1.0, -2.0, 0, 0, 0, 0.5])
    assert metrics.fid(rows, rows) == pytest.approx(0.0, abs=1e-6)
    assert metrics.fid(rows, rows + shift) == pytest.approx(shift @ shift, rel=1e-5)
    # Diagonal covariances: the sum of the squared differences of the standard deviations.
    wide = rows * np.array([2.0, 1, 1, 1, 1, 1])
    assert metrics.fid(rows, wide) == pytest.approx(np.std(rows[:, 0], ddof=1) ** 2, rel=0.05)


def test_fid_of_fewer_rows_than_dimensions_is_finite():
    value = metrics.fid(unit_rows(8, 24), unit_rows(8, 24, seed=1))
    assert np.isfinite(value)
    assert value > 0


def test_kid_is_the_unbiased_squared_mmd():
    a, b = unit_rows(30, 5).astype(np.float64), unit_rows(30, 5, seed=1).astype(np.float64)

    def kernel(x, y):
        return (x @ y.T + 1) ** 3

    n = len(a)
    inner = sum((kernel(x, x).sum() - np.trace(kernel(x, x))) / (n * (n - 1)) for x in (a, b))
    expected = inner - 2 * kernel(a, b).mean()
    state = torch.random.get_rng_state()
    found = metrics.kid(a, b, subset_size=100, subsets=3)
    assert found["mean"] == pytest.approx(expected, abs=1e-9)
    assert found["std"] == pytest.approx(0.0, abs=1e-9)
    assert torch.equal(state, torch.random.get_rng_state())
    far = metrics.kid(a, np.abs(a))
    assert far["mean"] > metrics.kid(a, b)["mean"]
    assert metrics.kid(a, b, subset_size=10, seed=1) == metrics.kid(a, b, subset_size=10, seed=1)


def test_scores_on_rows_that_are_known():
    texts = np.eye(3, dtype=np.float32)
    images = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0, -1]], np.float32)
    assert metrics.nearest_text(images, texts).tolist() == [0, 1, 0]
    assert metrics.clip_score(images, texts[[0, 0, 2]]) == pytest.approx((100 + 60 + 0) / 3)
    assert metrics.in_cap(images, texts[[0, 0, 2]], 0.4).tolist() == [True, True, False]
    assert metrics.in_cap(images, texts[0], np.array([0.0, 0.39, 1.0])).tolist() == [True, False, True]


def test_nearest_training_images_and_duplicates():
    rows = unit_rows(200, 8)
    samples = np.concatenate([rows[[3, 7]], unit_rows(30, 8, seed=5)])
    found = metrics.nearest_training(captree.build(rows, storage="float32"), samples, 1e-4)
    distance = 1 - samples.astype(float) @ rows.T.astype(float)
    assert np.array_equal(found["rows"], distance.argmin(axis=1))
    assert np.allclose(found["distances"], distance.min(axis=1), atol=1e-6)
    assert found["duplicates"].hits == 2
    assert found["quantiles"]["0.5"] == pytest.approx(np.median(distance.min(axis=1)), abs=1e-6)


# ---- the parts of an evaluation


@pytest.fixture(scope="module")
def images():
    return plain_images(120)


@pytest.fixture(scope="module")
def sampler(images):
    encoder = FakeEncoder()
    return Sampler(tiny_generator(), FakeTokenizer(), encoder, captree.build(encoder.images(images).numpy()))


@pytest.fixture(scope="module")
def texts(sampler):
    return ask.text_prompts(sampler.encoder, ["red", "green", "blue", "a noise"])


def test_measure_counts_what_lies_in_the_caps(sampler, texts):
    made = measure(sampler, texts, [0.5, 0.5, 0.9, 1.1], 6, guidance=2.0)
    assert made.in_cap.n == 24
    distance = 1 - np.einsum("nd,nd->n", made.embeddings, np.stack([p.center for p in texts]).repeat(6, 0))
    assert made.in_cap.hits == np.sum(distance <= np.repeat([0.5, 0.5, 0.9, 1.1], 6))
    assert made.cosine == pytest.approx(1 - distance.mean(), abs=1e-6)
    nearest = np.argmax(made.embeddings @ np.stack([p.target for p in texts]).T, axis=1)
    assert made.accuracy.value == np.mean(nearest == np.repeat(np.arange(4), 6))
    assert made.result.images.shape[0] == 24
    assert measure(sampler, texts[:1], 0.5, 2).accuracy is None


def test_the_unconditional_rate_is_the_mean_over_all_pairs(sampler, texts):
    free = sampler.samples([], n=20).embeddings
    made = unconditional(texts, [0.5, 0.5, 0.9, 1.1], free)
    distance = 1 - free.astype(float) @ np.stack([p.center for p in texts]).T.astype(float)
    assert made.in_cap.value == pytest.approx(np.mean(distance <= [0.5, 0.5, 0.9, 1.1]))
    assert made.in_cap.n == 20
    assert made.cosine == pytest.approx(1 - distance.mean(), abs=1e-6)
    assert made.accuracy.value == pytest.approx(0.25)  # every image is nearest to one of the four


def test_the_ceiling_is_what_reconstructions_of_rows_in_the_cap_score(sampler, texts, images):
    tokens = sampler.tokenizer.encode(images).numpy()
    wide = ceiling(sampler, texts[:3], 2.0, lambda rows: tokens[rows], 5)
    assert wide.in_cap.value == 1.0
    tight = ceiling(sampler, texts[:3], 0.25, lambda rows: tokens[rows], 20)
    # This tokenizer rounds colors: real images of the cap do not all stay inside, but they keep their text.
    assert tight.in_cap.hits > 0
    assert tight.accuracy.value > 0.9
    assert ceiling(sampler, texts[3:], 1e-6, lambda rows: tokens[rows], 5) is None


def test_prompt_files(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# colors\nred\n\n  a blue one \n", encoding="utf-8")
    assert read_prompts(path) == ("red", "a blue one")
    path.write_text("# nothing\n")
    with pytest.raises(DataError, match="got none"):
        read_prompts(path)
    with pytest.raises(DataError, match=r"no\.txt"):
        read_prompts(tmp_path / "no.txt")


# ---- the whole command


@pytest.fixture
def checkpoint(tmp_path, images, monkeypatch):
    encoder, tokenizer = FakeEncoder(), FakeTokenizer()
    monkeypatch.setattr("genmodel.encoders.load_encoder", lambda *a, **k: encoder)
    monkeypatch.setattr("genmodel.tokenizers.load_tokenizer", lambda *a, **k: tokenizer)
    shapes = {"grid": 4, "dim": 24, "codebook_size": 64, "image_size": 16}
    writer = ShardWriter(tmp_path / "shards", {"encoder": "fake", "tokenizer": "fake", **shapes}, 128)
    names = [f"{i}.png" for i in range(len(images))]
    embeddings = encoder.images(images).numpy()
    writer.write(0, np.arange(len(images)), names, embeddings, tokenizer.encode(images).numpy())
    writer.finish(1)
    extra = {"train": {"data": str(tmp_path / "shards"), "tree": None}, "rows_held_out": list(range(0, 120, 6))}
    return save_checkpoint(tmp_path / "run", tiny_generator(), encoder="fake", tokenizer="fake", extra=extra)


def test_an_evaluation_from_shards_to_report(tmp_path, checkpoint):
    said = []
    config = EvaluateConfig(
        checkpoint,
        out=tmp_path / "evaluation",
        prompt=("red", "blue"),
        mass=(0.1, 0.5),
        max_cos_distance=(0.8,),
        guidance=(1.0, 2.0),
        n=12,
        text_n=3,
    )
    report = evaluate(config, said.append)
    out = tmp_path / "evaluation"
    assert json.loads((out / "report.json").read_text()) == report
    assert len(report["images"]) == len(report["texts"]) == 6
    for line in report["images"] + report["texts"]:
        assert line["ceiling"]["in_cap"]["n"] > 0
        if "mass" in line:
            assert line["data"] == pytest.approx(line["mass"], abs=0.06)
    assert report["model"]["training_rows"] == 100
    assert report["model"]["real"] == "rows that training held out"
    assert set(report["nearest"]["sets"]) >= {"unconditional", "held-out images"}
    assert report["distribution"]["n"] == 12
    assert report["distribution"]["real"] == 100
    text = (out / "report.md").read_text()
    assert "| mass 0.1 |" in text
    assert "Wilson" in text
    for name in ("in_cap_images.png", "in_cap_texts.png", "nearest.png"):
        assert (out / name).stat().st_size > 5000
    settings = grids.read_settings(out / "texts-mass-0.1-guidance-2.png")
    assert settings["guidance"] == 2.0
    assert settings["mass"] == 0.1
    assert any("unconditional" in line for line in said)


def test_the_same_seed_gives_the_same_report(tmp_path, checkpoint):
    def run(out, **changes):
        config = {"mass": (0.3,), "guidance": (1.0,), "n": 6, "plots": False, **changes}
        report = evaluate(EvaluateConfig(checkpoint, out=tmp_path / out, **config))
        return [{**line["samples"], "seconds": 0} for line in report["images"]]

    first = run("a")
    assert first == run("b")
    assert first != run("d", seed=1)
    # Batches of another size give the same images. Their embeddings, and scores with them, may be rounded otherwise: on
    # some processors a matrix product of another shape sums in another order.
    for line, other in zip(first, run("c", batch_size=4), strict=True):
        rounded = {"cosine", "clip_score"}
        assert {key: other[key] for key in other.keys() - rounded} == {key: line[key] for key in line.keys() - rounded}
        assert all(other[key] == pytest.approx(line[key], rel=1e-4, abs=1e-6) for key in rounded)


def test_held_out_rows_are_no_training_rows(checkpoint, tmp_path):
    extra = {"train": {"data": str(tmp_path / "shards")}, "rows_held_out": [1, 5]}
    found = training_set(extra)
    assert len(found.tree) == 118
    assert not np.isin([1, 5], found.rows).any()
    whole = captree.build(np.asarray(found.shards.embeddings), out=tmp_path / "whole.captree")
    assert training_set(extra, tree=tmp_path / "whole.captree").whole
    assert len(whole) == 120
    captree.build(np.asarray(found.shards.embeddings[:50]), out=tmp_path / "other.captree")
    with pytest.raises(ConfigError, match="expected 120 rows, or 118"):
        training_set(extra, tree=tmp_path / "other.captree")
    with pytest.raises(ConfigError, match="--data"):
        training_set({})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mass": ()}, "at least one mass"),
        ({"guidance": ()}, "at least one guidance"),
        ({"n": 1}, "at least 2"),
        ({"duplicate_distance": -1.0}, ">= 0"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(EvaluateConfig(tmp_path, **settings))
