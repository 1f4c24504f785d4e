"""Writes the golden tree of tests/test_golden.py: python tests/data/make_golden.py [folder, else the script's]

One small tree per format version, with the vectors, caps and counts that it must give. Those of older versions stay as
they are, since only the captree of their time can write them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import captree
from captree.testing import oracle, oracle_nearest

VERSION = 4
ROWS, DIM = 100, 8


def vectors() -> np.ndarray:
    """float16 (100, 8) unit rows around a common direction, with duplicates, an antipode and an axis."""
    rng = np.random.default_rng(20)
    rows = rng.standard_normal((ROWS, DIM)) + 0.8
    rows[1] = rows[0]
    rows[2] = -rows[0]
    rows[3] = np.eye(DIM)[3]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def caps(rows: np.ndarray) -> captree.Caps:
    """Rows, mixtures and antipodes as centers; bounds 0, 2, in between, and at the very distance of a row."""
    wide = rows.astype(np.float64)
    centers = np.concatenate([wide[:12], wide[20:32] + wide[40:52], -wide[60:64]])
    centers = (centers / np.linalg.norm(centers, axis=1, keepdims=True)).astype(np.float32)
    bounds = np.linspace(0.0, 2.0, len(centers))
    at = oracle_nearest(rows, centers[4:8], 5).distances[:, 4]
    bounds[4:8] = np.clip([at[0], np.nextafter(at[1], 0), np.nextafter(at[2], 2), at[3]], 0, 2)
    return captree.Caps(centers, bounds)


def main(folder: Path) -> None:
    rows = vectors()
    captree.build(rows, out=folder / str(VERSION) / "tree", fanout=4, leaf_size=16, seed=1).verify()
    asked = caps(rows)
    expected = {
        "vectors": rows.astype(np.float64).tolist(),
        "centers": asked.centers.astype(np.float64).tolist(),
        "max_cos_distance": asked.max_cos_distance.tolist(),
        "counts": oracle(rows, asked).counts.tolist(),
    }
    text = json.dumps(expected, indent=0).replace(",\n", ", ").replace("[\n", "[").replace("\n]", "]")
    (folder / str(VERSION) / "expected.json").write_text(text.replace("], [", "],\n[") + "\n", encoding="utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    (target / str(VERSION)).mkdir(parents=True, exist_ok=True)
    main(target)
