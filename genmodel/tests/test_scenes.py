"""Rendered scenes: what is drawn is what is read, and prompts are in no caption."""

import numpy as np
import pytest

from studies.scenes import captions, read, render


def test_reader_reads_what_was_rendered():
    attributes = np.repeat(render.COMBINATIONS, 3, axis=0)
    images = render.render(render.draw_scenes(attributes, 11))
    assert images.shape == (720, 3, 32, 32)
    found = read.read(images)
    assert (found == attributes).all(1).mean() > 0.998


def test_same_seed_same_scenes():
    attributes = render.COMBINATIONS[:40]
    first, again = (render.render(render.draw_scenes(attributes, 5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (render.render(render.draw_scenes(attributes, 6)) != first).any()


def test_shapes_of_one_size_have_one_area():
    n = len(render.SHAPES)
    for area in render.AREAS:
        covered = render.coverage(np.arange(n), np.full((n, 2), 16.0), np.full(n, area), np.zeros(n))
        # Anti-aliasing rounds corners off, most of all those of the triangle.
        np.testing.assert_allclose(covered.sum((1, 2)), area, rtol=0.03)


def test_reader_does_not_guess():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, 3, 32, 32)).astype(np.uint8)
    flat = np.full((1, 3, 32, 32), 90, np.uint8)
    assert (read.read(noise)[:, 0] == read.UNREADABLE).all()
    assert (read.read(flat) == read.UNREADABLE).all()
    # A gray object has no color, an object of two shapes no shape.
    attributes = render.COMBINATIONS[:1]
    scene = render.draw_scenes(attributes, 0)
    gray = render.render(render.Scenes(**{**vars(scene), "color": np.full((1, 3), 0.9)}))
    assert read.read(gray)[0, 1] == read.UNREADABLE
    two = np.minimum(*(render.render(_scene(color=0, position=place)) for place in (0, 4)))
    assert read.read(two)[0, 0] == read.UNREADABLE


def _scene(color, position):
    scene = render.draw_scenes(np.array([[0, color, 0, position]]), 1)
    return render.Scenes(**{**vars(scene), "background": np.full((1, 3), 0.95)})


def test_reader_says_what_it_expects():
    with pytest.raises(ValueError, match="expected uint8 images"):
        read.read(np.zeros((2, 3, 32, 32), np.float32))
    assert read.read(np.zeros((0, 3, 32, 32), np.uint8)).shape == (0, 4)


def test_obeys_ignores_what_is_not_named():
    wanted = np.array([[1, 2, -1, -1]])
    found = np.array([[1, 2, 0, 3], [1, 0, 0, 3]])
    np.testing.assert_array_equal(read.obeys(found, wanted).all(1), [True, False])


def test_held_out_combinations_keep_every_pair():
    kept, held = captions.split_combinations(0)
    assert len(held) == 48
    assert len(kept) == 192
    everything = {tuple(row) for row in np.concatenate([kept, held])}
    assert len(everything) == 240


def test_prompts_are_in_no_caption():
    kept, held = captions.split_combinations(0)
    used = sorted({captions.describe(wording, row) for wording in captions.CAPTION_WORDINGS for row in kept})
    full, pair = captions.full_prompts(held), captions.pair_prompts()
    for prompts in (full, pair):
        captions.assert_in_no_caption(prompts, used)
        assert len(set(prompts.texts)) == len(prompts.texts) == len(prompts.wanted)
        # New wordings, no new words: the text tower has learned each of them.
        words = {word for caption in used for word in captions._plain(caption).split()}
        assert {word for text in prompts.texts for word in captions._plain(text).split()} <= words
    with pytest.raises(AssertionError, match="first 'A Red Circle!'"):
        captions.assert_in_no_caption(captions.Prompts(("A Red Circle!",), np.zeros((1, 4), int), "x"), used)


def test_captions_fit_their_scenes():
    attributes = render.COMBINATIONS[::7]
    for text, row in zip(captions.captions(attributes, 3), attributes, strict=True):
        named = [values[i] for values, i in zip(render.ATTRIBUTES.values(), row, strict=True)]
        assert any(name in text for name in named)
        for values, name in zip(render.ATTRIBUTES.values(), named, strict=True):
            said = [value for value in values if value in text]
            assert said in ([], [name])
