"""Prompts: arcs, text diffs, the gap shift, bounds by mass, retrieval."""

import itertools

import captree
import numpy as np
import pytest
import torch
from PIL import Image
from support import FakeEncoder, plain_images, unit_rows, write_images

from genmodel import prompts as ask
from genmodel.errors import ConfigError, DataError, InputError


@pytest.fixture(scope="module")
def rows():
    return unit_rows(500, 12)


@pytest.fixture(scope="module")
def tree(rows):
    return captree.build(rows, storage="float32", fanout=8)


def angle(a, b):
    return np.arctan2(np.linalg.norm(np.subtract(a, b, dtype=float)), np.linalg.norm(np.add(a, b, dtype=float))) * 2


@pytest.mark.parametrize("dim", [2, 3, 50])
def test_slerp_lies_on_the_arc_and_divides_it(dim):
    a, b = unit_rows(2, dim, seed=dim)
    places = np.linspace(0, 1, 9)
    points = ask.slerp(a, b, places)
    assert points.shape == (9, dim)
    assert points.dtype == np.float32
    assert np.allclose(np.linalg.norm(points, axis=1), 1, atol=1e-6)
    whole = angle(a, b)
    for point, t in zip(points, places, strict=True):
        assert angle(a, point) == pytest.approx(t * whole, abs=1e-5)
        assert angle(point, b) == pytest.approx((1 - t) * whole, abs=1e-5)
        assert np.linalg.matrix_rank(np.stack([a, b, point]), tol=1e-4) == 2


def test_slerp_of_equal_ends_stays_and_of_antipodes_is_an_error():
    a = unit_rows(1, 5)[0]
    assert np.allclose(ask.slerp(a, a, 0.3), a, atol=1e-6)
    assert np.allclose(ask.slerp(3 * a, 0.5 * a, 0.3), a, atol=1e-6)
    with pytest.raises(InputError, match="antipodal"):
        ask.slerp(a, -a, 0.5)


def test_interpolations_go_through_every_prompt():
    encoder = FakeEncoder()
    given = ask.text_prompts(encoder, ["red", "green", "blue"])
    walk = ask.interpolate(given, 4)
    assert len(walk) == 7
    assert [walk[i].label for i in (0, 3, 6)] == ["red", "green", "blue"]
    assert np.array_equal(walk[3].center, given[1].center)
    steps = [angle(a.center, b.center) for a, b in itertools.pairwise(walk[:4])]
    assert np.allclose(steps, steps[0], atol=1e-5)
    with pytest.raises(ConfigError, match="at least 2 prompts"):
        ask.interpolate(given[:1], 4)


def test_a_text_diff_rotates_by_a_share_of_the_arc():
    image, before, after = (ask.unit(row) for row in unit_rows(3, 16, seed=4))
    prompt = ask.Prompt("cat.png", image, image)
    direction = ask.unit(after.astype(float) - before)
    assert np.allclose(ask.text_diff(prompt, before, after, 0.0).center, image, atol=1e-6)
    assert np.allclose(ask.text_diff(prompt, before, after, 1.0).center, direction, atol=1e-6)
    third = ask.text_diff(prompt, before, after, 0.3, "a -> b")
    assert angle(image, third.center) == pytest.approx(0.3 * angle(image, direction), abs=1e-5)
    assert third.label == "cat.png: a -> b, 0.30"
    with pytest.raises(ConfigError, match="different embeddings"):
        ask.text_diff(prompt, before, before, 0.3)
    with pytest.raises(ConfigError, match=r"in \[0, 1\]"):
        ask.text_diff(prompt, before, after, 1.3)


def test_the_gap_shift_moves_texts_to_the_images(tmp_path):
    rng = np.random.default_rng(0)
    base = unit_rows(400, 20, seed=1)
    gap = ask.unit(rng.standard_normal(20)) * 0.8
    texts, images = ask.unit(base[:200] + gap), ask.unit(base[200:] - gap)
    shift = ask.fit_shift(texts, images.astype(np.float16))
    assert angle(ask.unit(shift), ask.unit(gap)) < 0.2
    before = np.mean(texts @ images.T)
    after = np.mean(ask.shifted(texts, shift, -1) @ images.T)
    assert after > before + 0.3
    path = ask.save_shift(tmp_path / "shift.npy", shift)
    assert np.array_equal(ask.load_shift(path), shift)


def test_a_shifted_prompt_keeps_its_target():
    encoder = FakeEncoder()
    shift = unit_rows(1, encoder.dim)[0] * 0.5
    plain, moved = ask.text_prompts(encoder, ["red"])[0], ask.text_prompts(encoder, ["red"], shift)[0]
    assert np.array_equal(plain.center, plain.target)
    assert np.array_equal(moved.target, plain.target)
    assert np.allclose(moved.center, ask.unit(plain.center.astype(float) - shift), atol=1e-6)
    assert np.allclose(ask.text_prompts(encoder, ["red"], shift, 0.0)[0].center, plain.center, atol=1e-6)


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_shift_that_is_none_is_named(tmp_path, content):
    path = tmp_path / "shift.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"shift\.npy"):
        ask.load_shift(path)
    np.save(tmp_path / "two.npy", np.zeros((2, 3)))
    with pytest.raises(DataError, match=r"shape \(d,\)"):
        ask.load_shift(tmp_path / "two.npy")


def test_image_prompts_are_the_images_embeddings(tmp_path):
    encoder, images = FakeEncoder(), plain_images(3)
    paths = write_images(tmp_path, images)
    found = ask.image_prompts(encoder, paths)
    assert np.allclose(np.stack([p.center for p in found]), encoder.images(images), atol=1e-6)
    assert [p.label for p in found] == ["0000.png", "0001.png", "0002.png"]
    (tmp_path / "no.png").write_text("no image")
    for name in ("no.png", "missing.png"):
        with pytest.raises(DataError, match=name):
            ask.image_prompts(encoder, [tmp_path / name])


def test_transparent_pixels_become_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert ask.open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mass", [0.002, 0.01, 0.1, 0.5])
def test_a_mass_becomes_the_bound_that_holds_it(tree, mass):
    centers = unit_rows(20, 12, seed=9)
    limits = ask.bounds(centers, mass=[mass], tree=tree)
    counts = tree.count(captree.Caps(centers, limits))
    assert np.array_equal(counts, np.full(20, np.ceil(mass * len(tree))))


def test_each_prompt_may_have_its_own_bound(tree):
    centers = unit_rows(3, 12, seed=9)
    assert ask.bounds(centers, [0.1, 0.2, 2.0]).tolist() == [0.1, 0.2, 2.0]
    assert ask.bounds(centers, [0.4]).tolist() == [0.4] * 3
    own = ask.bounds(centers, mass=[0.5, 0.1, 1.0], tree=tree)
    counts = tree.count(captree.Caps(centers, own))
    assert counts.tolist() == [250, 50, 500]
    assert own[2] == 2.0  # the null cap


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "neither"),
        ({"max_cos_distance": [0.5], "mass": [0.1]}, "both"),
        ({"max_cos_distance": [0.5, 0.5]}, "each of 3 prompts, got 2"),
        ({"max_cos_distance": [2.5]}, r"in \[0, 2\], got \[2.5\]"),
        ({"max_cos_distance": [float("nan")]}, r"in \[0, 2\]"),
        ({"mass": [0.0]}, r"in \(0, 1\], got \[0.0\]"),
        ({"mass": [0.1]}, "--tree"),
    ],
)
def test_bounds_that_make_no_sense(settings, message):
    with pytest.raises(ConfigError, match=message):
        ask.bounds(unit_rows(3, 12), **settings)


def test_retrieval_gives_rows_inside_the_cap(tree, rows):
    centers = unit_rows(4, 12, seed=3)
    limits = np.array([0.4, 0.5, 0.8, 2.0])
    found, embeddings = ask.retrieve(tree, centers, limits, 40, seed=1)
    assert found.shape == (4, 40)
    distance = 1 - np.einsum("pd,pnd->pn", centers.astype(float), rows[found].astype(float))
    assert np.all(distance <= limits[:, None] + 1e-12)
    assert np.allclose(embeddings, rows[found], atol=1e-6)
    assert np.array_equal(found, ask.retrieve(tree, centers, limits, 40, seed=1)[0])
    assert not np.array_equal(found, ask.retrieve(tree, centers, limits, 40, seed=2)[0])


def test_retrieval_from_an_empty_cap_says_how_wide_it_must_be(tree):
    center = unit_rows(1, 12, seed=3)
    nearest = tree.nearest(center, 1).distances[0, 0]
    with pytest.raises(ConfigError, match=f"nearest is at {nearest:.3f}"):
        ask.retrieve(tree, center, nearest / 2, 5)


def test_unit_refuses_zero_rows():
    with pytest.raises(InputError, match="not zero"):
        ask.unit(np.zeros((2, 3)))
    assert ask.unit(torch.tensor([3.0, 4.0])).tolist() == pytest.approx([0.6, 0.8])
