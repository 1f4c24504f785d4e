"""The demo: its data, and the whole story on a fifth of it."""

import io
import re
from pathlib import Path

import numpy as np
import pytest

import captree
from captree import data
from captree.cli import _story as demo
from captree.cli import main
from captree.errors import InvalidParameterError, MissingDependencyError

pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("matplotlib")


def test_data() -> None:
    words = data.wordnet()
    assert words.vectors.shape == (30_000, 384)
    assert words.vectors.dtype == np.float32
    assert len(words.texts) == 30_000
    np.testing.assert_allclose(np.linalg.norm(words.vectors.astype(np.float64), axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(words.query_centers.astype(np.float64), axis=1), 1, atol=1e-6)
    assert all(": " in text for text in words.texts)
    nearest = {
        phrase: words.texts[int((words.vectors @ words.query(phrase)[0]).argmax())]
        for phrase in ("small birds", "stringed musical instruments", "volcanic rock", "a feeling of regret")
    }
    assert nearest["small birds"].startswith("dove")
    assert nearest["stringed musical instruments"].startswith("stringed instrument")
    assert nearest["volcanic rock"].startswith("volcano")
    assert nearest["a feeling of regret"].startswith("compunction, remorse")


def test_part_of_the_data() -> None:
    everything, some = data.wordnet(), data.wordnet(100)
    assert len(some.texts) == len(some.vectors) == 100
    for text, vector in zip(some.texts, some.vectors, strict=True):
        np.testing.assert_array_equal(everything.vectors[everything.texts.index(text)], vector)


def test_licences_come_with_the_data() -> None:
    text = (Path(data.__file__).parent / "LICENSES.md").read_text(encoding="utf-8")
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in text
    assert "Apache License, Version 2.0" in text


def test_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--quick"]) == 0
    out, err = capsys.readouterr()
    assert "100%" in err
    assert "\x1b" not in out

    lines = out.split("\nTry next\n")[0].splitlines()
    assert max(len(line) for line in lines) <= 100
    for words in ('"small birds"', "total variation", "all equal", "What was written"):
        assert words in out

    folder = tmp_path / "demo-out"
    tree = captree.open(folder / "words.captree")
    tree.verify()
    assert len(tree) == 6000
    assert pq.read_table(folder / "pairs").num_rows == 10_000
    assert {path.name for path in (folder / "plots").iterdir()} == {"tree.png", "selectivity.png", "map.png"}

    # The table of counts is that of the tree it leaves behind.
    printed = re.findall(r"^ +(0\.\d) +([\d,]+) +\S+%", out, re.MULTILINE)
    caps = captree.Caps(np.repeat(data.wordnet().query("small birds"), 4, axis=0), demo.BOUNDS)
    assert [int(count.replace(",", "")) for _, count in printed] == tree.count(caps).tolist()

    # Draws are fair up to chance, and exact ones no less than a perfect draw.
    variation = {
        name: float(value) for name, value in re.findall(r"^ +(exact|a perfect draw) +(0\.\d+)", out, re.MULTILINE)
    }
    assert variation["exact"] < 1.5 * variation["a perfect draw"]

    # What it says to try next works.
    commands = re.findall(r"^ +captree (.*)$", out.split("\nTry next\n")[1], re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        assert main(command.split()) == 0


def test_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    demo._prepare(folder)
    (folder / demo.MARK).write_text("{}")
    (folder / "pairs").mkdir()
    (folder / "pairs" / "part-00000.parquet").write_bytes(b"old")
    (folder / "words.txt").write_text("old")
    (folder / "mine.txt").write_text("kept")
    demo._prepare(folder)
    assert sorted(path.name for path in folder.iterdir()) == [demo.MARK, "mine.txt"]


def test_other_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    with pytest.raises(InvalidParameterError, match="other files"):
        demo.run(tmp_path, quick=True, stream=io.StringIO())
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]


def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=re.escape("pyarrow and matplotlib: pip install 'captree[plot]'")):
        demo.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
