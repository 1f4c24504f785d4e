"""Encoding: any source gives the same shards, nothing is lost, and a killed run ends as if it had not been killed."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support import FakeEncoder, FakeTokenizer, plain_images, write_images

import genmodel.encode
from genmodel.encode import EncodeConfig, encode
from genmodel.errors import ConfigError, DataError
from genmodel.shards import open_shards, unit_rows


def run(images, out, encoder=None, **settings):
    config = EncodeConfig(str(images), str(out), batch_size=4, rows_per_shard=10, progress=False, **settings)
    return encode(config, encoder or FakeEncoder(), FakeTokenizer())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
    """35 images, three of them damaged in different ways."""
    folder = tmp_path / "images"
    paths = write_images(folder, plain_images(35))
    paths[3].write_bytes(b"")
    paths[14].write_bytes(paths[14].read_bytes()[:60])
    paths[34].write_bytes(b"hello")
    return folder


def test_what_is_written(folder, tmp_path):
    report = run(folder, tmp_path / "out")
    assert (report.rows, report.broken, report.shards, report.resumed) == (32, 3, 4, 0)
    shards = open_shards(tmp_path / "out")
    good = [i for i in range(35) if i not in (3, 14, 34)]
    assert shards.ids.tolist() == good
    assert shards.paths == [f"{i:04d}.png" for i in good]
    images = plain_images(35)[good]
    np.testing.assert_array_equal(shards.tokens, FakeTokenizer().encode(images).numpy())
    expected = unit_rows(FakeEncoder().images(images).numpy(), 24).astype(np.float32)
    np.testing.assert_allclose(shards.embeddings.astype(np.float32), expected, atol=1e-3)
    assert shards.meta["encoder"] == "fake"
    assert (shards.meta["grid"], shards.meta["dim"], shards.meta["codebook_size"]) == (4, 24, 64)


def test_broken_images_are_listed_with_the_reason(folder, tmp_path):
    report = run(folder, tmp_path / "out")
    lines = [json.loads(line) for line in Path(report.broken_file).read_text().splitlines()]
    assert [(line["id"], line["path"]) for line in lines] == [(3, "0003.png"), (14, "0014.png"), (34, "0034.png")]
    assert all(line["reason"] for line in lines)
    assert open_shards(tmp_path / "out").broken == lines


def test_folder_tar_and_parquet_give_equal_shards(folder, tmp_path):
    files = sorted(folder.iterdir())
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for path in files:
            tar.add(path, path.name)
            caption = tarfile.TarInfo(path.with_suffix(".txt").name)
            tar.addfile(caption, io.BytesIO(b""))
    table = pa.table({"path": [path.name for path in files], "image": [path.read_bytes() for path in files]})
    pq.write_table(table, tmp_path / "images.parquet", row_group_size=7)
    for name in ("images", "images.tar", "images.parquet"):
        run(tmp_path / name, tmp_path / f"out-{name}", workers=3)
    expected = contents(tmp_path / "out-images")
    assert contents(tmp_path / "out-images.tar") == expected
    assert contents(tmp_path / "out-images.parquet") == expected


class Interrupted(FakeEncoder):
    """Fails at the n-th batch."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def images(self, images):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().images(images)


@pytest.mark.parametrize("batches", [0, 1, 4, 7, 9])
def test_an_interrupted_run_goes_on_to_the_same_result(folder, tmp_path, batches):
    run(folder, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "out", Interrupted(batches))
    with pytest.raises(DataError):
        open_shards(tmp_path / "out")
    report = run(folder, tmp_path / "out")
    assert report.resumed == batches // 3
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert run(folder, tmp_path / "out").resumed == 4
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


SCRIPT = """
import sys, time
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from support import FakeEncoder, FakeTokenizer
from genmodel.encode import EncodeConfig, encode

class Slow(FakeEncoder):
    def images(self, images):
        time.sleep(0.3)
        return super().images(images)

config = EncodeConfig({images!r}, {out!r}, batch_size=4, rows_per_shard=10, progress=False)
encode(config, Slow(), FakeTokenizer())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_loses_nothing(folder, tmp_path):
    run(folder, tmp_path / "whole")
    out = tmp_path / "out"
    script = SCRIPT.format(tests=str(Path(__file__).parent), images=str(folder), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 180
    while not list(out.glob("shard-*.parquet")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (out / "meta.json").exists()
    report = run(folder, out)
    assert report.resumed >= 1
    assert contents(out) == contents(tmp_path / "whole")


def test_a_changed_source_or_setting_is_refused(folder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "out", Interrupted(4))
    with pytest.raises(DataError, match="source_images: expected 12, got 35"):
        run(folder, tmp_path / "out", limit=12)
    (folder / "0000.png").rename(folder / "moved.png")
    with pytest.raises(DataError, match="source_fingerprint"):
        run(folder, tmp_path / "out")


def test_other_weights_under_the_same_name_are_refused(folder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "out", Interrupted(4))
    config = EncodeConfig(str(folder), str(tmp_path / "out"), batch_size=4, rows_per_shard=10, progress=False)
    tokenizer = FakeTokenizer()
    tokenizer.table.data += 1e-3
    with pytest.raises(DataError, match="tokenizer_digest"):
        encode(config, FakeEncoder(), tokenizer)


def test_a_limit(folder, tmp_path):
    report = run(folder, tmp_path / "out", limit=12)
    assert (report.rows, report.broken, report.shards) == (11, 1, 2)


def test_only_broken_images_are_an_error(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / "images" / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 3 images"):
        run(tmp_path / "images", tmp_path / "out")


def test_settings_outside_their_domain_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="batch_size"):
        encode(EncodeConfig(str(folder), str(tmp_path / "out"), batch_size=0), FakeEncoder(), FakeTokenizer())


def test_progress_is_plain_lines_off_a_terminal(folder, tmp_path, capsys):
    config = EncodeConfig(str(folder), str(tmp_path / "out"), rows_per_shard=10)
    encode(config, FakeEncoder(), FakeTokenizer())
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("encode    0%  0 / 35")
    assert lines[-1].startswith("encode  100%  35 / 35")
    assert not any("\r" in line for line in lines)


def test_from_names_to_shards(folder, tmp_path):
    """The whole way with an open_clip folder and a tokenizer's folder, by their names."""
    open_clip = pytest.importorskip("open_clip")
    from genmodel.encoders import save_encoder
    from genmodel.tokenizers import FSQTokenizer

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    encoder = save_encoder(tmp_path / "encoder", open_clip.model.CLIP(**config), config)
    tokenizer = FSQTokenizer(16, 4, width=8).save(tmp_path / "tokenizer")
    report = genmodel.encode(
        str(folder), str(tmp_path / "out"), encoder=str(encoder), tokenizer=str(tokenizer), progress=False
    )
    shards = open_shards(report.out)
    assert (shards.meta["encoder"], shards.meta["tokenizer"]) == (str(encoder), str(tokenizer))
    assert shards.embeddings.shape == (32, 16)
    assert shards.tokens.shape == (32, 16)
