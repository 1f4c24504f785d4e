"""How the command line fails: exit statuses, one line on standard error, processes and signals."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import D, N, Run, call_json, make_files, runner, vectors

import captree
from captree.cli import main

pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_files(folder)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files as the current folder."""
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("info nowhere.captree", "nowhere.captree"),
        ("count nowhere.captree --row 1 -d 0.5", "nowhere.captree"),
        ("build nowhere.npy new.captree", "nowhere.npy"),
        ("build words.txt new.captree", "words.txt"),
        ("build raw.npy new.captree -q", "; --normalize scales rows"),
        ("build embeddings.parquet new.captree -q", "column"),
        ("build embeddings.parquet new.captree --column nothing -q", "nothing"),
        ("build words.npy new.captree --memory-limit many", "many"),
        ("build words.npy missing/new.captree -q", "missing"),
        ("build words.npy new.captree --fanout 1", "--fanout: expected an integer between 2"),
        ("count words.captree nowhere.npy -d 0.5", "nowhere.npy"),
        ("count words.captree words.txt -d 0.5", "words.txt"),
        ("count words.captree centers.npy -d 2.5", "2.5"),
        ("count words.captree centers.npy --radius 4", "radius"),
        ("count words.captree centers.npy --min-cosine nan", "nan"),
        ("count words.captree --row 600 -d 0.5", "600"),
        ("count words.captree wide.npy -d 0.5", "dim"),
        ("count words.captree bad.npy -d 0.5", "bad.npy"),
        ("count words.captree bad.parquet -d 0.5", "bad.parquet"),
        ("count words.captree . -d 0.5", "folder"),
        ("count words.captree odd.parquet", "max_cos_distance"),
        ("count words.captree nulls.parquet", "nulls"),
        ("count words.captree --row 1 -d 0.5 --out folder.npy", "folder.npy"),
        ("count words.captree --row 1 -d 0.5 --out missing/counts.npy", "missing"),
        ("count words.captree --row 1 -d 0.5 --estimate --confidence 1.5", "confidence"),
        ("search words.captree --row 1 -d 0.5 --texts short.txt", "600"),
        ("search words.captree --row 1 -d 0.5 --texts bad.npy", "bad.npy"),
        ("search words.captree --row 1 -d 0.5 --texts embeddings.parquet", "text"),
        ("pairs words.captree pairs -n 601 --no-replace", "600"),
        ("pairs words.captree words.captree -n 10", "words.captree"),
        ("pairs words.captree pairs -n 10 --shards 11", "--shards"),
        ("plot words.captree words.txt/plots", "words.txt"),
        ("demo --out words.captree", "earlier demo"),
    ],
)
def test_failures_are_one_line(line: str, says: str, here: Path, run: Run) -> None:
    np.save("wide.npy", np.eye(3, D + 1, dtype=np.float32))
    Path("bad.npy").write_bytes(b"\x93NUMPY\xff\xff not at all")
    Path("bad.parquet").write_bytes(b"PAR1 nor this PAR1")
    Path("short.txt").write_text("one\ntwo\n")
    Path("folder.npy").mkdir()
    caps = captree.Caps(vectors()[:2], 0.5).to_arrow().drop_columns("max_cos_distance")
    pq.write_table(caps.append_column("max_cos_distance", [["near", "far"]]), "odd.parquet")
    pq.write_table(caps.append_column("max_cos_distance", [[0.5, None]]), "nulls.parquet")
    out, err = run(line, status=1)
    assert out == ""
    assert re.fullmatch(r"captree: error: [^\n]+\n", err)
    assert says in err
    assert not Path("new.captree").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "VERB"),
        ("dance words.captree", "dance"),
        ("count", "TREE"),
        ("count words.captree", "expected caps"),
        ("count words.captree --row 1", "expected a bound"),
        ("count words.captree centers.npy", "expected a bound"),
        ("count words.captree centers.npy --row 1 -d 0.5", "one source of centers"),
        ("count words.captree --row 1 -d 0.5 --radius 1", "one kind of bound"),
        ("count words.captree --row one -d 0.5", "integer"),
        ("count words.captree --row -1 -d 0.5", "at least 0"),
        ("count words.captree --row 1 -d far", "numbers"),
        ("count words.captree --row 1 -d 0.5 --out counts.txt", "counts.txt"),
        ("count words.captree --training 0", "at least 1"),
        ("sample words.captree --row 1 -d 0.5 --density-samples 9", "--method approximate"),
        ("sample words.captree --row 1 -d 0.5 --method fast", "fast"),
        ("count words.captree centers.npy centers.npy -d 0.5", "centers.npy"),
        ("pairs words.captree pairs", "-n"),
        ("plot words.captree plot.pdf", "plot.pdf"),
        ("info words.captree --nodes nodes.xlsx", "nodes.xlsx"),
    ],
)
def test_usage_errors(line: str, says: str, here: Path, run: Run) -> None:
    out, err = run(line, status=2)
    assert out == ""
    assert err.startswith("usage: captree")
    assert says in err


def test_missing_packages_say_what_to_install(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for line in ("count words.captree caps.parquet", "count words.captree --row 1 -d 1 --out counts.parquet"):
        assert "pip install 'captree[arrow]'" in run(line, status=1)[1]
    assert call_json(run, "info words.captree")["stats"]["rows"] == N
    run("count words.captree centers.npy -d 0.5 --out counts.csv")
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install 'captree[plot]'" in run("plot words.captree plots", status=1)[1]


def test_interrupted(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(captree, "open", stop)
    _, err = run("info words.captree", status=130)
    assert err == "captree: interrupted\n"


def test_defects_are_not_hidden(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(captree, "open", fail)
    with pytest.raises(ZeroDivisionError):
        main(["info", "words.captree"])


# ---- as processes


def process(line: str, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "captree", *shlex.split(line)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_exit_statuses_of_processes(here: Path) -> None:
    for line, status in (("info words.captree", 0), ("info nowhere", 1), ("info", 2)):
        out, err = (ran := process(line)).communicate(timeout=60)
        assert ran.returncode == status
        assert bool(out) == (status == 0)
        assert "Traceback" not in err


def test_a_reader_that_leaves_early(here: Path) -> None:
    line = "search words.captree --training 200 -d 2 --show 0"
    ran = process(line)
    assert ran.stdout is not None
    assert ran.stderr is not None
    ran.stdout.readline()
    ran.stdout.close()
    err = ran.stderr.read()
    ran.stderr.close()
    assert ran.wait(timeout=60) == 1
    assert err == ""


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_stops_a_build(here: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60_000, 128)).astype(np.float32)
    np.save("large.npy", rows / np.linalg.norm(rows, axis=1, keepdims=True))
    ran = process("build large.npy large.captree --leaf-size 2 --threads 1")
    assert ran.stderr is not None
    ran.stderr.readline()  # the first line of progress: the work has begun
    began = time.monotonic()
    ran.send_signal(signal.SIGINT)
    out, err = ran.communicate(timeout=60)
    assert ran.returncode == 130, out + err
    assert time.monotonic() - began < 5
    assert err.endswith("captree: interrupted\n")
    assert "Traceback" not in err
    assert not Path("large.captree").exists()
