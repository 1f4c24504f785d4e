"""From 64 image files to a report, as a user types it: tokenizer, encode, train, sample, evaluate."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from support import plain_images, write_images

from genmodel import cli, grids

pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos and the folder of a tiny, random open_clip model."""
    import open_clip

    from genmodel.encoders import save_encoder

    folder = tmp_path_factory.mktemp("pipeline")
    write_images(folder / "photos", plain_images(64, 32))
    (folder / "photos" / "broken.png").write_bytes(b"not an image")
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_encoder(folder / "clip", open_clip.model.CLIP(**config), config)
    return folder


def run(*words):
    return cli.main([str(word) for word in words])


@pytest.mark.filterwarnings("default")
def test_the_whole_way(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    tokenizer = ("--image-size", 32, "--grid", 4, "--width", 16, "--levels", 4, 4, 4, "--steps", 20, "--batch-size", 16)
    assert run("tokenizer", "train", "photos", "tokenizer", *tokenizer) == 0
    assert (
        run("encode", "photos", "shards", "--encoder", "clip", "--tokenizer", "tokenizer", "--rows-per-shard", 40) == 0
    )
    encoded = json.loads(capsys.readouterr().out.split("}\n")[1] + "}")
    assert (encoded["rows"], encoded["broken"]) == (64, 1)

    (place / "train.toml").write_text(
        'data = "shards"\nout = "run"\ndepth = 1\nwidth = 32\nheads = 2\nprior = "slerp"\nradii = "mixture"\n'
        'batch_size = 16\nheldout = 6\ndevice = "cpu"\n'
    )
    assert run("train", "train.toml", "--steps", 10) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["step"] == 10
    assert np.isfinite(trained["loss"])

    assert run("sample", "run", "--prompt", "a red thing", "--max-cos-distance", 0.7, "--n", 3) == 0
    settings = grids.read_settings("samples.png")
    assert settings["prompt"] == ["a red thing"]
    assert settings["bounds"] == [0.7]
    assert "3 images" in capsys.readouterr().out

    (place / "prompts.txt").write_text("red\nblue\n")
    assert run("shift", "shards", "shift.npy", "--prompts", "prompts.txt") == 0
    asked = ("--prompt", "red", "blue", "--mass", 0.3, "--shift", "shift.npy", "--n", 2)
    assert run("sample", "run", *asked, "--retrieve", "--best-of", 2, "--out", "retrieved.png") == 0
    assert run("sample", "run", *asked, "--interpolate", 3, "--out", "walk.png") == 0
    assert len(grids.read_settings("walk.png")["labels"]) == 3
    edit = ("--edit-from", "red", "--edit-to", "blue")
    assert run("sample", "run", "--image", "photos/0000.png", *edit, "--mass", 0.3, "--out", "edit.png") == 0

    import captree

    from genmodel.shards import open_shards

    captree.build(open_shards("shards").embeddings, out="tree.captree")
    small = ("--steps", 5, "--batch-size", 32, "--width", 16, "--depth", 1)
    assert run("second-stage", "train", "tree.captree", "stage.safetensors", *small) == 0
    two = ("--second-stage", "stage.safetensors", "--max-cos-distance", 0.5, "--n", 2, "--out", "two.png")
    assert run("sample", "run", "--prompt", "red", *two) == 0

    # The same as a function; the second call finds the module imported and the name a function still.
    import genmodel

    for _ in range(2):
        result = genmodel.sample("run", prompt="red", max_cos_distance=0.7, n=2, out=None)
        assert result.images.shape == (2, 3, 32, 32)

    capsys.readouterr()
    sizes = ("--n", 6, "--text-n", 2, "--mass", 0.3, "--guidance", 2)
    assert run("evaluate", "run", "--prompts", "prompts.txt", *sizes) == 0
    assert "Caps around texts" in capsys.readouterr().out
    assert (place / "evaluation" / "report.json").is_file()


@pytest.mark.filterwarnings("default")
def test_mistakes_on_the_way_are_told(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    assert run("encode", "nowhere", "shards2", "--encoder", "clip") == 1
    assert run("train", "--data", "nowhere", "--out", "run2") == 1
    assert run("evaluate", "nowhere") == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("genmodel: error:") == 3


TUTORIAL = Path(__file__).parents[2] / "docs" / "genmodel.md"
COMMAND = re.compile(r"^\$ genmodel (?P<words>(?:[^\n]*\\\n)*[^\n]*)", re.MULTILINE)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

# What makes the tutorial's commands small; they come last and win.
SMALLER = {
    "tokenizer train": "--width 16 --levels 4 4 4 --steps 5 --batch-size 8",
    "train": "--depth 1 --width 32 --heads 2 --steps 5 --batch-size 8 --heldout 6 --radii mixture",
    "second-stage train": "--steps 5 --batch-size 16 --width 16 --depth 1",
    "evaluate": "--n 6 --text-n 1",
}


@pytest.mark.skipif(not TUTORIAL.is_file(), reason="the tutorial is part of the repository, not of the distribution")
@pytest.mark.filterwarnings("default")
def test_the_tutorial(place, monkeypatch):
    folder = place / "tutorial"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("photos", "clip"):
        (folder / name).symlink_to(place / name)
    (folder / "prompts.txt").write_text("a red thing\na blue thing\n")
    text = TUTORIAL.read_text(encoding="utf-8")
    (settings,) = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (folder / "train.toml").write_text(settings)
    cli.from_mapping(cli._named(cli.VERBS["train"].config), cli.read_config(folder / "train.toml"))
    blocks = sorted([*COMMAND.finditer(text), *PYTHON.finditer(text)], key=lambda match: match.start())
    namespace: dict[str, object] = {}
    ran = 0
    for match in blocks:
        if match.re is PYTHON:
            exec(match[1], namespace)
            continue
        words = shlex.split(match["words"].replace("\\\n", " "))
        verb, rest = cli._find(words)
        if "--help" in words:
            continue
        if match.start() < text.index("## Without downloads\n"):
            cli._parse(verb, rest)  # needs weights of others; that the command makes sense can be told
        else:
            assert run(*words, *shlex.split(SMALLER.get(verb.name, ""))) == 0, match[0]
            ran += 1
    assert ran >= 12
