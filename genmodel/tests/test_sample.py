"""Sampling: guidance, seeds and batches, bounds, best-of, retrieval, the second stage, and grids that remember."""

import importlib.util
import sys
from pathlib import Path

import captree
import numpy as np
import pytest
import torch
from PIL import Image
from support import FakeEncoder, FakeTokenizer, plain_images, tiny_generator, unit_rows

from genmodel import grids
from genmodel import prompts as ask
from genmodel.errors import ConfigError, DataError, InputError
from genmodel.sample import SampleConfig, sample, titles_of
from genmodel.sampler import Sampler, best
from genmodel.second_stage import Flow, FlowSize

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def rows():
    return FakeEncoder().images(plain_images(120)).numpy()


@pytest.fixture(scope="module")
def sampler(rows):
    return Sampler(tiny_generator(), FakeTokenizer(), FakeEncoder(), captree.build(rows, storage="float32"))


@pytest.fixture(scope="module")
def texts(sampler):
    return ask.text_prompts(sampler.encoder, ["red", "a green one"])


def test_samples_have_their_shapes_and_stand_prompt_by_prompt(sampler, texts):
    result = sampler.samples(texts, [0.4, 0.7], 3)
    assert len(result) == 6
    assert result.images.shape == (6, 3, 16, 16)
    assert result.images.dtype == torch.uint8
    assert result.tokens.shape == (6, 16)
    assert torch.equal(result.images, sampler.tokenizer.decode(result.tokens))
    assert result.embeddings.shape == (6, 24)
    assert np.allclose(result.condition.high, [0.4] * 3 + [0.7] * 3)
    assert np.allclose(result.condition.center[:3], texts[0].center)
    assert result.in_cap().shape == result.cosines().shape == (2, 3)
    distance = 1 - result.cosines()
    assert np.array_equal(result.in_cap(), distance <= [[0.4], [0.7]])


def test_the_seed_decides_and_batches_do_not(sampler, texts):
    options = {"guidance": 2.0, "top_p": 0.95}
    whole = sampler.samples(texts, 0.5, 5, seed=1, **options).tokens
    small = Sampler(sampler.model, sampler.tokenizer, batch_size=3)
    assert torch.equal(whole, small.samples(texts, 0.5, 5, seed=1, **options).tokens)
    assert not torch.equal(whole, sampler.samples(texts, 0.5, 5, seed=2, **options).tokens)
    assert len({tuple(row) for row in whole.tolist()}) == 10  # no two images share their randomness


def test_the_null_cap_is_unconditional_at_any_guidance(sampler, texts):
    free = sampler.samples([], n=4, seed=5).tokens
    for guidance in (0.0, 1.0, 3.0):
        assert torch.equal(free, sampler.samples(texts[:1], 2.0, 4, seed=5, guidance=guidance).tokens)
    # Guidance 0 takes the unconditional side alone; guidance 1 the model as it is.
    assert torch.equal(free, sampler.samples(texts[:1], 0.3, 4, seed=5, guidance=0.0).tokens)
    assert not torch.equal(free, sampler.samples(texts[:1], 0.3, 4, seed=5, guidance=1.0).tokens)


def test_a_mass_of_one_is_the_null_cap(sampler, texts):
    centers = np.stack([p.center for p in texts])
    limits = ask.bounds(centers, mass=[1.0], tree=sampler.tree)
    assert torch.equal(sampler.samples(texts[:1], limits[:1], 4).tokens, sampler.samples([], n=4).tokens)


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("cap", 0, 0.5), ("embedding", 0, 0), ("distance", 0.5, 0.5), ("range", 0, 0.5)]
)
def test_conditions_of_every_kind(kind, low, high, texts):
    sampler = Sampler(tiny_generator(condition=kind), FakeTokenizer())
    center = np.stack([p.center for p in texts])
    condition = sampler.condition(center, [0.5, 2.0])
    assert condition.low[0] == low
    assert condition.high[0] == high
    assert condition.is_null.tolist() == [False, True]
    assert sampler.samples(texts, 0.5, 2, guidance=2.0).images.shape == (4, 3, 16, 16)


def test_best_of_keeps_the_nearest_of_each_images_candidates(sampler, texts):
    n, k = 4, 5
    candidates = sampler.samples(texts, 0.5, n * k, seed=7)
    ranked = sampler.samples(texts, 0.5, n, seed=7, best_of=k)
    scores = candidates.cosines().reshape(2, n, k)
    assert np.allclose(ranked.cosines(), scores.max(axis=2))
    chosen = scores.argmax(axis=2) + k * np.arange(n)
    for prompt in range(2):
        picked = candidates.tokens[prompt * n * k :][chosen[prompt]]
        assert torch.equal(ranked.tokens[prompt * n : (prompt + 1) * n], picked)
    assert len(ranked.condition) == 2 * n


def test_best_on_scores_that_are_known():
    targets = np.eye(2, dtype=np.float32)
    embeddings = np.array([[0, 1], [1, 0], [0.6, 0.8], [0.8, 0.6], [1, 0], [0, 1]], np.float32)[[0, 1, 2, 3, 4, 5]]
    assert best(embeddings[:4], targets[:1], 2).tolist() == [1, 3]
    assert best(embeddings[2:], targets, 2).tolist() == [1, 3]


def test_retrieval_conditions_on_real_rows_inside_the_cap(sampler, texts, rows):
    limits = np.array([0.5, 0.6])
    result = sampler.samples(texts, limits, 6, retrieve=True, embedding_max_cos_distance=0.05, seed=3)
    assert result.rows.shape == (12,)
    assert np.allclose(result.condition.center, rows[result.rows], atol=1e-6)
    assert np.allclose(result.condition.high, 0.05)
    centers = np.stack([p.center for p in texts]).repeat(6, 0).astype(float)
    assert np.all(1 - np.sum(centers * rows[result.rows], axis=1) <= limits.repeat(6) + 1e-9)
    ranked = sampler.samples(texts, limits, 2, retrieve=True, best_of=3, seed=3)
    assert np.allclose(ranked.condition.center, rows[ranked.rows], atol=1e-6)


def test_a_second_stage_stands_between_cap_and_generator(sampler, texts):
    flow = Flow(FlowSize(24, 16, 1))
    result = sampler.samples(texts, 0.9, 3, second_stage=flow, embedding_max_cos_distance=0.1, seed=2)
    drawn = flow.draw(np.stack([p.center for p in texts]), 0.9, 3, seed=2).reshape(6, 24)
    assert np.allclose(result.condition.center, drawn, atol=1e-6)
    assert np.allclose(result.condition.high, 0.1)
    guided = sampler.samples(texts, 0.9, 3, second_stage=flow, second_stage_guidance=3.0, seed=2)
    drawn = flow.draw(np.stack([p.center for p in texts]), 0.9, 3, seed=2, guidance=3.0).reshape(6, 24)
    assert np.allclose(guided.condition.center, drawn, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "at least 1"),
        ({"best_of": 0}, "at least 1"),
        ({"retrieve": True, "second_stage": 1}, "got both"),
        ({"embedding_max_cos_distance": 3.0, "retrieve": True}, r"in \[0, 2\]"),
    ],
)
def test_settings_that_make_no_sense(sampler, texts, settings, message):
    with pytest.raises(ConfigError, match=message):
        sampler.samples(texts, 0.5, **{"n": 2, **settings})


def test_what_is_missing_is_named(sampler, texts):
    bare = Sampler(sampler.model, sampler.tokenizer)
    with pytest.raises(ConfigError, match="--tree"):
        bare.samples(texts, 0.5, 2, retrieve=True)
    with pytest.raises(ConfigError, match="encoder"):
        bare.samples(texts, 0.5, 2, best_of=2)
    with pytest.raises(ConfigError, match="a prompt"):
        sampler.samples([], n=2, best_of=2)
    other = ask.Prompt("x", unit_rows(1, 5)[0], unit_rows(1, 5)[0])
    with pytest.raises(InputError, match="expected dim 24"):
        sampler.samples([other], 0.5, 2)
    with pytest.raises(InputError, match="encoder"):
        bare.samples(texts, 0.5, 2).in_cap()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": ("a",), "max_cos_distance": (0.5,), "mass": (0.1,)}, "got both"),
        ({"mass": (0.1,)}, "expected a prompt"),
        ({"prompt": ("a",), "edit_from": "x"}, "edit_from and edit_to"),
        ({"prompt": ("a",), "edit_from": "x", "edit_to": "y"}, "expected images"),
        ({"image": ("a.png",), "shift": "s.npy"}, "text prompts"),
        ({"out": "grid.jpg"}, r"\.png"),
    ],
)
def test_contradictions_are_found_before_anything_is_opened(tmp_path, settings, message):
    settings = {name: Path(value) if name in ("out", "shift") else value for name, value in settings.items()}
    with pytest.raises(ConfigError, match=message):
        sample(SampleConfig(tmp_path / "none", **settings))


def test_settings_may_be_given_alone():
    config = SampleConfig("run", prompt="red", image="a.png", max_cos_distance=0.5, out="x.png", tree="t")
    assert (config.checkpoint, config.out, config.tree) == (Path("run"), Path("x.png"), Path("t"))
    assert (config.prompt, config.image, config.max_cos_distance) == (("red",), (Path("a.png"),), (0.5,))
    assert SampleConfig("run", mass=[0.1, 0.2]).mass == (0.1, 0.2)


# ---- grids


def test_a_grid_remembers_its_settings(tmp_path, sampler, texts):
    result = sampler.samples(texts, [0.4, 2.0], 3)
    settings = {"prompt": ["ein Käse", "日本"], "bounds": [0.4, 2.0], "none": None, "place": tmp_path}
    path = grids.save_grid(tmp_path / "deep" / "grid.png", result.images, 3, titles_of(result), settings)
    assert grids.read_settings(path) == {**settings, "place": str(tmp_path)}
    assert list(path.parent.iterdir()) == [path]  # nothing half-written is left
    with Image.open(path) as image:
        assert image.mode == "RGB"


def test_a_grid_shows_the_images_in_place():
    images = plain_images(6)
    sheet = np.asarray(grids.make_grid(images, 3, gap=2, smallest=16))
    assert sheet.shape == (2 * 18 + 2, 3 * 18 + 2, 3)
    for i in range(6):
        top, left = (i // 3) * 18 + 2, (i % 3) * 18 + 2
        assert np.array_equal(sheet[top : top + 16, left : left + 16], images[i].permute(1, 2, 0))
    large = grids.make_grid(images, 3, ["one", "a very long title that does not fit " * 9], smallest=48)
    assert large.width == 3 * 50 + 2
    first = grids.make_grid(images, 3, first={1: Image.new("RGB", (9, 9), "red")}, smallest=16)
    assert first.width == 4 * 18 + 2
    assert first.getpixel((4, 18 + 8)) == (255, 0, 0)


def test_bad_grids(tmp_path):
    with pytest.raises(InputError, match="uint8"):
        grids.make_grid(torch.zeros(2, 3, 4, 4), 2)
    with pytest.raises(InputError, match="titles: expected 2"):
        grids.make_grid(plain_images(3), 2, ["one"])
    with pytest.raises(InputError, match=r"\.png"):
        grids.save_grid(tmp_path / "grid.jpg", plain_images(3), 2)
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(DataError, match="text chunk"):
        grids.read_settings(tmp_path / "plain.png")
    with pytest.raises(DataError, match="expected a PNG"):
        grids.read_settings(tmp_path / "none.png")
    with pytest.raises(DataError, match="cannot be written"):
        grids.save_grid(tmp_path / "plain.png" / "grid.png", plain_images(3), 2)


# ---- the example


def test_clip_guided_optimization_climbs():
    spec = importlib.util.spec_from_file_location("clip_guided", EXAMPLES / "clip_guided.py")
    example = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(example)
    encoder, tokenizer = FakeEncoder(), FakeTokenizer()
    target = encoder.text(["red"])[0]
    start = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(0))
    tokens, history = example.optimize(encoder, tokenizer, target, start, steps=60, crops=2)
    assert tokens.shape == (2, 16)
    assert history[-1] > history[0] + 0.3
    assert float((encoder.images(tokenizer.decode(tokens)) @ target).mean()) > history[0] + 0.3
