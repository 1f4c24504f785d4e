"""What the tests of the command line share: the files that the help texts name, and a way to run a command line."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import captree
from captree.cli import main

N, D = 600, 16


def vectors() -> Any:
    rng = np.random.default_rng(0)
    raw = np.repeat(rng.normal(size=(20, D)), N // 20, axis=0) + 0.6 * rng.normal(size=(N, D))
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def make_files(folder: Path) -> None:
    """The files that the examples of the help texts name."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows = vectors()
    np.save(folder / "words.npy", rows)
    np.save(folder / "raw.npy", 3 * rows)
    np.save(folder / "centers.npy", rows[[5, 300]])
    np.save(folder / "rows.npy", np.array([7, 9]))
    np.save(folder / "one.npy", rows[5].astype(np.float16))
    (folder / "words.txt").write_text("".join(f"word {i}: the gloss of row {i}\n" for i in range(N)), encoding="utf-8")
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), D)
    pq.write_table(pa.table({"embedding": column, "other": column}), folder / "embeddings.parquet")
    caps = captree.Caps(rows[:4], [0.2, 0.4, 0.6, 0.8])
    pq.write_table(caps.to_arrow().append_column("text", [["a", "b", "c", "d"]]), folder / "caps.parquet")
    captree.build(rows, out=folder / "words.captree", leaf_size=16, fanout=8)


Run = Callable[..., tuple[str, str]]


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs a command line in this process and returns what it printed."""

    def call(line: str, status: int = 0) -> tuple[str, str]:
        got = main(shlex.split(line))
        out, err = capsys.readouterr()
        assert got == status, f"captree {line}\n{out}{err}"
        assert "Traceback" not in err
        return out, err

    return call


def call_json(run: Run, line: str) -> Any:
    out, _ = run(line + " --json")
    return json.loads(out)
