"""What must hold of a tree that was disturbed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from crash_operations import DIM, State

import captree
from captree.testing import oracle, oracle_nearest, oracle_sample


def caps_of(seed: int) -> captree.Caps:
    """Caps that hold between no row and all rows."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((6, DIM))
    centers[1:5] += np.sign(centers[1:5]) * 0.5
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    return captree.Caps(centers.astype(np.float32), [0.2, 0.5, 0.7, 0.8, 0.9, 2.0])


def answers(tree: captree.Tree, seed: int) -> dict[str, Any]:
    """Answers to questions of every kind."""
    caps = caps_of(seed)
    found = tree.search(caps, sort=False)
    near = tree.nearest(caps.centers, 4)
    return {
        "rows": len(tree),
        "deleted": tree.deleted,
        "count": tree.count(caps),
        "inside": [np.sort(rows) for rows, _ in found],
        "drawn": tree.sample(caps, k=3, seed=seed),
        "nearest": near.rows,
        "distances": near.distances,
    }


@cache
def expected(state: State, seed: int) -> dict[str, Any]:
    """The same answers by brute force, which takes its time."""
    caps = caps_of(seed)
    found = oracle(state.rows, caps)
    near = oracle_nearest(state.rows, caps.centers, 4)
    return {
        "rows": len(state.rows),
        "deleted": state.deleted,
        "count": np.diff(found.offsets),
        "inside": [rows for rows, _ in found],
        "drawn": oracle_sample(state.rows, caps, k=3, seed=seed),
        "nearest": near.rows,
        "distances": near.distances,
    }


def assert_same(found: dict[str, Any], right: dict[str, Any], note: str) -> None:
    assert found.keys() == right.keys()
    for what, value in right.items():
        pairs = zip(found[what], value, strict=True) if isinstance(value, list) else [(found[what], value)]
        assert all(np.array_equal(a, b) for a, b in pairs), f"{note}: {what}"


def assert_holds(tree: captree.Tree, state: State, seed: int, note: str) -> None:
    """A tree is whole, holds these rows, and answers rightly."""
    tree.verify()
    assert_same(answers(tree, seed), expected(state, seed), note)
    alive = state.alive
    assert np.array_equal(tree.take(alive), state.rows[alive]), note


def is_of(tree: captree.Tree, state: State | None) -> bool:
    """Whether this is the state of a tree, by its row numbers alone."""
    return state is not None and len(tree) == len(state.rows) and np.array_equal(tree.deleted, state.deleted)


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def body_of_manifest(tree: Path) -> tuple[str, dict[str, Any]]:
    name = (tree / "CURRENT").read_text().split()[0]
    return name, json.loads((tree / name).read_text())["body"]


def assert_nothing_left_over(tree: Path, note: str) -> None:
    """Beside a tree and in its folder there is nothing but what its manifest names."""
    name, body = body_of_manifest(tree)
    top = {"CURRENT", name, "segments", "deleted"}
    assert {entry.name for entry in tree.iterdir()} - {"LOCK"} == top, note
    segments = {f"{segment['number']:06}" for segment in body["segments"]}
    assert {entry.name for entry in (tree / "segments").iterdir()} == segments, note
    deleted = set() if body["deleted"] is None else {f"{body['deleted']['number']:06}.roaring"}
    assert {entry.name for entry in (tree / "deleted").iterdir()} == deleted, note
    beside = [entry.name for entry in tree.parent.iterdir() if entry.name.startswith(f".{tree.name}.")]
    assert beside == [], note
