"""Trees that earlier versions wrote open for ever: one small tree per format version in tests/data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import captree
from captree.testing import oracle

DATA = Path(__file__).parent / "data"
VERSIONS = sorted(path.name for path in DATA.iterdir() if path.name.isdigit())


@pytest.fixture(params=VERSIONS)
def golden(request: pytest.FixtureRequest):
    """The tree, the vectors it was built from, and caps with their counts."""
    folder = DATA / request.param
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    caps = captree.Caps(np.array(expected["centers"], np.float32), expected["max_cos_distance"])
    return captree.open(folder / "tree"), np.array(expected["vectors"], np.float16), caps, expected["counts"]


def test_every_version_up_to_this_one_is_there():
    assert VERSIONS == ["1", "2", "3", "4"]


def test_it_opens_and_verifies(golden):
    tree, vectors, _, _ = golden
    tree.verify()
    assert (tree.take(np.arange(len(tree))) == vectors).all()


def test_it_answers_as_the_oracle_does(golden):
    tree, vectors, caps, counts = golden
    want = oracle(vectors, caps)
    assert want.counts.tolist() == counts
    assert tree.count(caps).tolist() == counts
    found = tree.search(caps)
    for (rows, distances), (true_rows, true_distances) in zip(found, want, strict=True):
        order = np.argsort(rows)
        assert (rows[order] == true_rows).all()
        assert (distances[order] == true_distances).all()
    drawn = tree.sample(caps, k=1000, seed=0)
    for rows, (true_rows, _) in zip(drawn, want, strict=True):
        assert set(rows) <= set(true_rows) | ({-1} if not len(true_rows) else set())


def test_its_manifest_says_its_version(golden):
    tree = golden[0]
    manifest = json.loads((Path(tree.path) / "manifest.json").read_text(encoding="utf-8"))
    assert str(manifest["version"]) == Path(tree.path).parent.name


def test_a_copy_can_be_replaced(golden, tmp_path):
    tree, vectors, caps, counts = golden
    copy = tmp_path / "copy.captree"
    shutil.copytree(tree.path, copy)
    captree.build(vectors, out=copy)
    assert captree.open(copy).count(caps).tolist() == counts
