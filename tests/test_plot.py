"""Plots: valid files of the expected size, on ordinary and on odd trees."""

import re
import struct
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import captree
from captree import plot
from captree.cli import main
from captree.errors import InvalidParameterError, StorageError

pytest.importorskip("matplotlib")


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data.endswith(b"IEND\xaeB`\x82")
    wide, high = struct.unpack(">II", data[16:24])
    return wide, high


def unit(rows: Any) -> Any:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_sizes(tree: captree.Tree, tmp_path: Path) -> None:
    caps = captree.training_caps(tree, 50, seed=0)
    texts = [f"word {i}: gloss" for i in range(len(tree))]
    figures = {
        "tree.png": (plot.draw_tree(tree), (1440, 690)),
        "selectivity.png": (plot.draw_selectivity(tree, caps), (1440, 690)),
        "map.png": (plot.draw_map(tree, texts), (1440, 1200)),
        "overview.png": (plot.draw_overview(tree, caps, texts), (1440, 2580)),
    }
    for name, (figure, size) in figures.items():
        plot.save(figure, tmp_path / name)
        assert png_size(tmp_path / name) == size
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(figures)


def test_same_tree_same_svg(tree: captree.Tree, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plot.save(plot.draw_map(tree), tmp_path / name)
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_labels(tree: captree.Tree) -> None:
    caps = captree.training_caps(tree, 50, seed=0)
    axes = plot.draw_selectivity(tree, caps).axes[0]
    empty = int((tree.count(caps) == 0).sum())
    assert axes.get_title(loc="left") == f"selectivity of 50 caps, {empty} of them empty"
    assert axes.get_xticklabels()[0].get_text() == "none"
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(100)
    left, right = plot.draw_tree(tree).axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("rows of a node", "angular radius of a node (degrees)")
    names = [text.get_text() for text in plot.draw_map(tree, ["$x_1$, y: z"] * len(tree)).axes[0].texts]
    assert set(names) == {"$x_1$"}


@pytest.mark.parametrize(
    "rows",
    [
        np.ones((1, 3)),
        np.ones((5, 1)),
        np.array([[1.0], [-1.0]] * 40),
        np.repeat(np.eye(1, 8), 300, axis=0),
        np.concatenate([np.eye(8), -np.eye(8)]),
    ],
    ids=["one row", "one dimension", "two points", "duplicates", "antipodes"],
)
def test_odd_trees(rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "DPI", 50)
    tree = captree.build(unit(rows), fanout=4, leaf_size=4)
    caps = captree.Caps(unit(rows[:1]), [0.0])
    plot.save(plot.draw_overview(tree, caps, ["a: b"] * len(tree)), tmp_path / "odd.png")
    assert png_size(tmp_path / "odd.png") == (480, 860)


def test_decades() -> None:
    counts = np.array([0, 1, 9, 10, 11, 100, 101, 999, 1000])
    found = {name: members.tolist() for name, members in plot.decades(counts, 1000)}
    assert found == {
        "none": [0],
        "0.01% - 0.1%": [1],
        "0.1% - 1%": [2, 3],
        "1% - 10%": [4, 5],
        "10% - 100%": [6, 7, 8],
    }
    for rows in (1, 2, 9, 10, 117_659):
        every = np.arange(rows + 1)
        parts = [members for _, members in plot.decades(every, rows)]
        np.testing.assert_array_equal(np.concatenate(parts), every)


def test_bad_input(tree: captree.Tree, tmp_path: Path) -> None:
    figure = plot.draw_tree(tree)
    with pytest.raises(InvalidParameterError, match=re.escape(".png or .svg")):
        plot.save(figure, tmp_path / "plot.pdf")
    with pytest.raises(StorageError, match="no folder"):
        plot.save(figure, tmp_path / "missing" / "plot.png")
    with pytest.raises(InvalidParameterError, match="one per row"):
        plot.draw_map(tree, ["one"])
    with pytest.raises(InvalidParameterError, match="at least one cap"):
        plot.draw_selectivity(tree, captree.Caps(np.empty((0, tree.dim), np.float32), []))
    assert not list(tmp_path.iterdir())


def test_command(tree: captree.Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree.save("words.captree")
    (tmp_path / "words.txt").write_text("".join(f"word {i}: gloss\n" for i in range(len(tree))))
    assert main(["plot", "words.captree", "plots", "--texts", "words.txt", "--training", "50"]) == 0
    assert {path.name for path in Path("plots").iterdir()} == {"tree.png", "selectivity.png", "map.png"}
    assert main(["plot", "words.captree", "plots", "--figure", "tree", "--format", "svg"]) == 0
    assert (tmp_path / "plots" / "tree.svg").is_file()
    assert main(["plot", "words.captree", "one.png", "--figure", "selectivity", "--row", "3", "-d", "0.2,0.4"]) == 0
    assert png_size(Path("one.png")) == (1440, 690)
