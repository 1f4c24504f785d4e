"""Damaged, truncated and newer tree files give a clear error: never a crash, never a wrong answer."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers import random_units

import captree
from captree import Caps, errors
from captree.testing import clip_like


def build_small(path, seed=0):
    """A tree of two segments and some deleted rows."""
    rows = clip_like(360, 12, seed=seed)
    tree = captree.build(rows[:300], out=path, fanout=4, leaf_size=10)
    tree.append(rows[300:])
    tree.delete([seed, 7, 310])
    return tree


def files_of(path):
    """All files of a tree that mean something, as paths in its folder."""
    found = (str(entry.relative_to(path)) for entry in Path(path).rglob("*") if entry.is_file())
    return sorted(name for name in found if name != "LOCK")


with tempfile.TemporaryDirectory() as _folder:
    build_small(f"{_folder}/x.captree")
    FILES = files_of(f"{_folder}/x.captree")

MANIFESTS = [name for name in FILES if name.endswith(".json")]


def test_the_tree_has_every_kind_of_file():
    assert len([name for name in FILES if name.startswith("segments/000001/")]) == 14
    assert len([name for name in FILES if name.startswith("segments/000002/")]) == 14
    assert [name for name in FILES if "segments" not in name] == [
        "CURRENT",
        "deleted/000003.roaring",
        "manifest-000003.json",
    ]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small tree on disk, and the answers it gives."""
    path = tmp_path_factory.mktemp("trees") / "x.captree"
    tree = build_small(path)
    caps = captree.training_caps(tree, 40, seed=1)
    return path, caps, tree.count(caps), tree.search(caps).rows, tree.sample(caps, seed=1)


@pytest.fixture
def damaged(saved, tmp_path):
    """A copy of the tree to damage."""
    copy = tmp_path / "x.captree"
    shutil.copytree(saved[0], copy)
    return copy


def use_everything(path, saved):
    """Opens, queries and verifies; returns whether every answer was right. Errors other than captree's propagate."""
    _, caps, count, rows, drawn = saved
    tree = captree.open(path)
    repr(tree)
    answers = (tree.count(caps), tree.search(caps).rows, tree.sample(caps, seed=1))
    tree.sample(caps, k=3, method="approximate", seed=1)
    tree.sample(caps, k=3, replace=False, seed=1)
    tree.estimate(caps, samples=50, seed=1)
    tree.nearest(caps.centers, 5)
    tree.take(np.setdiff1d(np.arange(len(tree)), tree.deleted))
    tree.nodes()
    for node in range(tree.stats()["nodes"]):
        tree.node_rows(node)
    right = all(np.array_equal(a, b) for a, b in zip(answers, (count, rows, drawn), strict=True))
    tree.verify()
    return right


@pytest.mark.parametrize("name", FILES)
def test_missing_file(saved, damaged, name):
    (damaged / name).unlink()
    with pytest.raises(captree.CaptreeError) as error:
        use_everything(damaged, saved)
    assert "x.captree" in str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_truncated_file(saved, damaged, name):
    file = damaged / name
    whole = file.read_bytes()
    for size in sorted({0, 1, 10, 63, 64, 100, len(whole) // 2, len(whole) - 64, len(whole) - 1}):
        if not 0 <= size < len(whole) or whole[size:].isspace():  # the last newline of the manifest means nothing
            continue
        file.write_bytes(whole[:size])
        with pytest.raises(captree.CaptreeError):
            use_everything(damaged, saved)


@pytest.mark.parametrize("name", FILES)
def test_longer_file(saved, damaged, name):
    with (damaged / name).open("ab") as file:
        file.write(b"\0" * 64)
    with pytest.raises(captree.CaptreeError):
        use_everything(damaged, saved)


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits(saved, damaged, name):
    """Any single flipped bit is found, by open or by verify, and nothing before that crashes."""
    file = damaged / name
    whole = file.read_bytes()
    rng = np.random.default_rng(sum(name.encode()))
    places = {*range(min(len(whole), 16)), *rng.integers(len(whole), size=60).tolist(), len(whole) - 1}
    for place in sorted(places):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(changed)
        with pytest.raises(captree.CaptreeError):
            use_everything(damaged, saved)


@pytest.mark.parametrize("name", FILES)
def test_overwritten_parts(saved, damaged, name):
    file = damaged / name
    whole = file.read_bytes()
    rng = np.random.default_rng(len(whole))
    for fill in (b"\0", b"\xff", b"\x7f"):
        for _ in range(5):
            start = int(rng.integers(len(whole)))
            length = int(rng.integers(1, 200))
            changed = whole[:start] + fill * min(length, len(whole) - start) + whole[start + length :]
            if changed == whole:
                continue
            file.write_bytes(changed)
            with pytest.raises(captree.CaptreeError):
                use_everything(damaged, saved)
    file.write_bytes(os.urandom(len(whole)))
    with pytest.raises(captree.CaptreeError):
        use_everything(damaged, saved)


def test_files_swapped(saved, damaged):
    data = [damaged / name for name in FILES if name.endswith(".npy")]
    for a, b in itertools.pairwise(data):
        one, other = a.read_bytes(), b.read_bytes()
        a.write_bytes(other)
        b.write_bytes(one)
        with pytest.raises(captree.CaptreeError):
            use_everything(damaged, saved)
        a.write_bytes(one)
        b.write_bytes(other)
    assert use_everything(damaged, saved)


def test_files_of_another_tree(saved, damaged, tmp_path):
    build_small(tmp_path / "other.captree", seed=9)
    for name in FILES:
        mine = (damaged / name).read_bytes()
        theirs = (tmp_path / "other.captree" / name).read_bytes()
        if mine == theirs:
            continue
        (damaged / name).write_bytes(theirs)
        with pytest.raises(captree.CaptreeError):
            use_everything(damaged, saved)
        (damaged / name).write_bytes(mine)


def numbers_in(value, path=()):
    """Paths to all numbers of a JSON value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers_in(inner, (*path, key))
    elif isinstance(value, list):
        for key, inner in enumerate(value):
            yield from numbers_in(inner, (*path, key))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path


@pytest.mark.parametrize("name", MANIFESTS)
def test_changed_numbers_of_a_manifest(saved, damaged, name):
    file = damaged / name
    text = file.read_text()
    paths = list(numbers_in(json.loads(text)))
    assert paths
    for path in paths:
        for number in (-1, 0, 7, 2**31, 2**63, 2**64 - 1, 1e300, "x", None):
            manifest = json.loads(text)
            place = manifest
            for key in path[:-1]:
                place = place[key]
            if place[path[-1]] == number:
                continue
            place[path[-1]] = number
            file.write_text(json.dumps(manifest))
            with pytest.raises(captree.CaptreeError):
                use_everything(damaged, saved)


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "0", '"x"', "{" * 10_000, "[" * 100_000, '{"a": ' * 5000, "\0"]
)
def test_other_manifests(saved, damaged, name, text):
    (damaged / name).write_text(text)
    with pytest.raises(captree.CaptreeError):
        use_everything(damaged, saved)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_newer_version(damaged, name):
    file = damaged / name
    manifest = json.loads(file.read_text())
    keys = [key for key in manifest if "version" in key and isinstance(manifest[key], int)]
    assert len(keys) == 1, manifest
    version = manifest[keys[0]]
    manifest[keys[0]] = version + 1
    file.write_text(json.dumps(manifest))
    with pytest.raises(errors.FormatVersionError, match=rf"version {version + 1}.*upgrade") as error:
        captree.open(damaged)
    assert isinstance(error.value, OSError)


def test_links_and_folders_in_place_of_files(saved, damaged):
    for name in FILES:
        file = damaged / name
        whole = file.read_bytes()
        file.unlink()
        file.mkdir()
        with pytest.raises(captree.CaptreeError):
            use_everything(damaged, saved)
        file.rmdir()
        file.symlink_to(damaged / "nowhere")
        with pytest.raises(captree.CaptreeError):
            use_everything(damaged, saved)
        file.unlink()
        file.write_bytes(whole)
    assert use_everything(damaged, saved)


def test_an_unrelated_folder(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    np.save(tmp_path / "vectors.npy", random_units(5, 3))
    with pytest.raises(errors.TreeNotFoundError, match="no captree tree"):
        captree.open(tmp_path)


def test_a_tree_that_is_deleted_while_open(damaged, saved):
    tree = captree.open(damaged)
    shutil.rmtree(damaged)
    np.testing.assert_array_equal(tree.count(saved[1]), saved[2])


def test_a_failing_save_leaves_nothing(tmp_path):
    tree = captree.build(clip_like(300, 12))
    (tmp_path / "file").write_text("")
    with pytest.raises(captree.CaptreeError):
        tree.save(tmp_path / "file" / "x.captree")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file"]
    tree.save(tmp_path / "x.captree")
    assert tree.count(Caps(random_units(1, 12), 2.0)).tolist() == [300]
    assert captree.open(Path(tmp_path) / "x.captree").count(Caps(random_units(1, 12), 2.0)).tolist() == [300]
