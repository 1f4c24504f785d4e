"""The command line: every verb, its examples, what it prints and writes, and how it fails."""

import argparse
import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import captree
from captree.cli import main
from captree.cli._parser import make_parser

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

N, D = 600, 16
VERBS = ("build", "info", "verify", "count", "search", "sample", "pairs", "bench", "plot", "demo")


def vectors() -> Any:
    rng = np.random.default_rng(0)
    raw = np.repeat(rng.normal(size=(20, D)), N // 20, axis=0) + 0.6 * rng.normal(size=(N, D))
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the examples of the help texts name."""
    folder = tmp_path_factory.mktemp("made")
    rows = vectors()
    np.save(folder / "words.npy", rows)
    np.save(folder / "raw.npy", 3 * rows)
    np.save(folder / "centers.npy", rows[[5, 300]])
    np.save(folder / "one.npy", rows[5].astype(np.float16))
    (folder / "words.txt").write_text("".join(f"word {i}: the gloss of row {i}\n" for i in range(N)), encoding="utf-8")
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), D)
    pq.write_table(pa.table({"embedding": column, "other": column}), folder / "embeddings.parquet")
    caps = captree.Caps(rows[:4], [0.2, 0.4, 0.6, 0.8])
    pq.write_table(caps.to_arrow().append_column("text", [["a", "b", "c", "d"]]), folder / "caps.parquet")
    captree.build(rows, out=folder / "words.captree", leaf_size=16, fanout=8)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files as the current folder."""
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def tree(here: Path) -> captree.Tree:
    return captree.open(here / "words.captree")


Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process and returns what it printed."""

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


def verbs() -> dict[str, argparse.ArgumentParser]:
    parser = make_parser()
    action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def examples() -> Iterator[str]:
    """The example lines of every help text, without their comments."""
    for parser in (make_parser(), *verbs().values()):
        for line in (parser.epilog or "").splitlines():
            found = re.match(r"  captree (.*?)(?: {2,}.*)?$", line)
            if found:
                yield found[1].split(" && ")[0]


# ---- help, examples, version


def test_every_verb_is_there() -> None:
    assert tuple(sorted(verbs())) == tuple(sorted(VERBS))


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_examples_and_fits_the_page(verb: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    out, _ = run(f"{verb} --help")
    assert f"  captree {verb} " in out
    assert max(len(line) for line in out.splitlines()) <= 110


@pytest.mark.parametrize("line", sorted({line for line in examples() if not line.startswith("demo")}))
def test_examples_of_the_help_run(line: str, here: Path, run: Run) -> None:
    if line.startswith("build"):
        shutil.rmtree("words.captree")
    if line.startswith("bench"):
        line += " --caps 40 --seconds 0"
    run(line)


def test_version(run: Run) -> None:
    assert run("--version")[0] == f"captree {captree.__version__}\n"


def test_python_dash_m() -> None:
    ran = subprocess.run([sys.executable, "-m", "captree", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout == f"captree {captree.__version__}\n"


# ---- build, info, verify


def test_build_is_the_same_as_in_python(here: Path, run: Run) -> None:
    out, err = run("build embeddings.parquet new.captree --column other --storage float32 --fanout 4 --leaf-size 30 -q")
    assert re.fullmatch(rf"new.captree: {N} rows of {D} dimensions in .*\n", out)
    assert err == ""
    made = captree.open("new.captree")
    assert (made.storage, made.fanout, made.leaf_size) == ("float32", 4, 30)
    np.testing.assert_array_equal(made.take(np.arange(N)), vectors())


def test_build_reports_progress_in_plain_lines(here: Path, run: Run) -> None:
    _, err = run("build words.npy new.captree")
    assert "100%" in err
    assert "\r" not in err


def test_build_json(here: Path, run: Run) -> None:
    document = call_json(run, "build raw.npy new.captree --normalize --seed 3 --threads 1")
    assert document["stats"]["rows"] == N
    assert document["stats"]["seed"] == 3


def test_info(here: Path, run: Run) -> None:
    out, _ = run("info words.captree")
    assert f"{N} rows of {D} dimensions, stored as float16" in out
    assert "median rows" in out
    document = call_json(run, "info words.captree")
    assert document["stats"]["rows"] == N
    assert sum(level["nodes"] for level in document["depths"]) == document["stats"]["nodes"]
    assert sum(level["leaves"] for level in document["depths"]) == document["stats"]["leaves"]


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv"])
def test_info_nodes(suffix: str, tree: captree.Tree, run: Run) -> None:
    run(f"info words.captree --nodes nodes.{suffix}")
    nodes = tree.nodes()
    if suffix == "csv":
        with Path("nodes.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        assert [int(line["rows"]) for line in lines] == nodes["rows"].to_pylist()
        assert float(lines[0]["center_0"]) == pytest.approx(nodes["center"][0].as_py()[0])
    elif suffix == "parquet":
        assert pq.read_table("nodes.parquet").equals(nodes)
    else:
        with pa.memory_map("nodes.arrow") as source:
            assert pa.ipc.open_file(source).read_all().equals(nodes)


def test_verify(here: Path, run: Run) -> None:
    assert "sound" in run("verify words.captree")[0]
    assert run("verify words.captree -q") == ("", "")
    assert call_json(run, "verify words.captree -q")["sound"] is True


def test_verify_damaged(here: Path, run: Run) -> None:
    files = [path for path in sorted(Path("words.captree").rglob("*")) if path.is_file()] or [Path("words.captree")]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(data)
    _, err = run("verify words.captree -q", status=1)
    assert re.fullmatch(r"captree: error: .+\n", err)


# ---- count, search, sample


def test_count_by_every_kind_of_caps(tree: captree.Tree, run: Run) -> None:
    rows = vectors()
    expected = tree.count(captree.Caps(rows[[5, 300]], 0.5)).tolist()
    bounds = {"--max-cos-distance 0.5": 0.5, "-d 0.5": 0.5, f"--radius {np.pi / 3!r}": 0.5, "--min-cosine 0.5": 0.5}
    for option, bound in bounds.items():
        found = call_json(run, f"count words.captree centers.npy {option}")["caps"]
        assert [cap["count"] for cap in found] == expected, option
        assert [cap["max_cos_distance"] for cap in found] == [pytest.approx(bound)] * 2
    found = call_json(run, "count words.captree --row 5 --row 300,7 -d 0.5")["caps"]
    assert [cap["center"] for cap in found] == ["row 5", "row 300", "row 7"]
    own = tree.take(np.array([5, 300, 7])).astype(np.float64)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    assert [cap["count"] for cap in found] == tree.count(captree.Caps(own.astype(np.float32), 0.5)).tolist()
    found = call_json(run, "count words.captree --training 9 --seed 4")["caps"]
    assert [cap["count"] for cap in found] == tree.count(captree.training_caps(tree, 9, seed=4)).tolist()


def test_options_and_files_in_any_order(here: Path, run: Run) -> None:
    expected = call_json(run, "count words.captree centers.npy -d 0.5")
    assert call_json(run, "count -d 0.5 words.captree centers.npy") == expected
    assert call_json(run, "count words.captree -d 0.5 centers.npy") == expected


def test_count_with_several_bounds(tree: captree.Tree, run: Run) -> None:
    found = call_json(run, "count words.captree centers.npy -d 0.3,0.6")["caps"]
    assert [cap["max_cos_distance"] for cap in found] == [0.3, 0.6, 0.3, 0.6]
    assert [cap["center"] for cap in found] == ["center 0", "center 0", "center 1", "center 1"]
    caps = captree.Caps(np.repeat(vectors()[[5, 300]], 2, axis=0), [0.3, 0.6, 0.3, 0.6])
    assert [cap["count"] for cap in found] == tree.count(caps).tolist()


def test_a_file_may_bring_bounds_and_names(tree: captree.Tree, run: Run) -> None:
    found = call_json(run, "count words.captree caps.parquet")["caps"]
    assert [(cap["center"], cap["max_cos_distance"]) for cap in found] == [
        ("a", 0.2),
        ("b", 0.4),
        ("c", 0.6),
        ("d", 0.8),
    ]
    found = call_json(run, "count words.captree caps.parquet -d 0.7")["caps"]
    assert {cap["max_cos_distance"] for cap in found} == {0.7}


def test_one_vector_is_one_center(here: Path, run: Run) -> None:
    assert len(call_json(run, "count words.captree one.npy -d 0.7")["caps"]) == 1


def test_no_centers(here: Path, run: Run) -> None:
    np.save("none.npy", np.empty((0, D), np.float32))
    for verb in ("count", "search", "sample"):
        run(f"{verb} words.captree none.npy -d 0.5")
        assert call_json(run, f"{verb} words.captree none.npy -d 0.5")["caps"] == []


def test_centers_that_are_not_unit(here: Path, run: Run) -> None:
    assert "norm" in run("count words.captree raw.npy -d 0.7", status=1)[1]
    assert len(call_json(run, "count words.captree raw.npy -d 0.7 --normalize")["caps"]) == N


def test_count_files(tree: captree.Tree, run: Run) -> None:
    expected = tree.count(captree.Caps(vectors()[:4], [0.2, 0.4, 0.6, 0.8]))
    run("count words.captree caps.parquet --out counts.npy")
    np.testing.assert_array_equal(np.load("counts.npy"), expected)
    run("count words.captree caps.parquet --out counts.parquet")
    assert pq.read_table("counts.parquet")["count"].to_pylist() == expected.tolist()
    run("count words.captree caps.parquet --out counts.csv")
    with Path("counts.csv").open(newline="") as file:
        assert [int(line["count"]) for line in csv.DictReader(file)] == expected.tolist()
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def test_count_table(here: Path, run: Run) -> None:
    out, _ = run("count words.captree --training 30 --show 5")
    assert "... and 25 more caps" in out
    assert "30 caps, " in out
    assert "more caps" not in run("count words.captree --training 30 --show 0")[0]


def test_estimate(tree: captree.Tree, run: Run) -> None:
    found = call_json(run, "count words.captree caps.parquet --estimate --seed 1 --samples 100 --confidence 0.5")[
        "caps"
    ]
    caps = captree.Caps(vectors()[:4], [0.2, 0.4, 0.6, 0.8])
    about = tree.estimate(caps, samples=100, confidence=0.5, seed=1)
    assert [cap["low"] for cap in found] == about.low.tolist()
    assert [cap["count"] for cap in found] == about.count.tolist()


def test_search(tree: captree.Tree, run: Run) -> None:
    caps = captree.Caps(vectors()[:4], [0.2, 0.4, 0.6, 0.8])
    expected = tree.search(caps, sort=True, limit=7)
    found = call_json(run, "search words.captree caps.parquet --sort --limit 7 --texts words.txt")["caps"]
    for cap, (rows, distances) in zip(found, expected, strict=True):
        assert cap["rows"] == rows.tolist()
        assert cap["distances"] == distances.tolist()
        assert cap["texts"] == [f"word {row}: the gloss of row {row}" for row in rows]
    out, _ = run("search words.captree caps.parquet --sort --limit 7 --texts words.txt")
    assert "the gloss of row 0" in out
    assert f"{expected.rows.size} rows in 4 caps" in out


def test_search_files(tree: captree.Tree, run: Run) -> None:
    expected = tree.search(captree.Caps(vectors()[:4], [0.2, 0.4, 0.6, 0.8]), sort=True)
    run("search words.captree caps.parquet --sort --out found.npy")
    packed = np.load("found.npy")
    np.testing.assert_array_equal(packed["row"], expected.rows)
    np.testing.assert_array_equal(packed["distance"], expected.distances)
    np.testing.assert_array_equal(np.bincount(packed["cap"], minlength=4), expected.counts)
    run("search words.captree caps.parquet --sort --texts words.txt --out found.arrow")
    with pa.memory_map("found.arrow") as source:
        table = pa.ipc.open_file(source).read_all()
    assert table["row"].to_pylist() == expected.rows.tolist()
    assert table["text"][0].as_py() == f"word {expected.rows[0]}: the gloss of row {expected.rows[0]}"


@pytest.mark.parametrize(
    "options", ["", "--no-replace", "--method approximate", "--method approximate --density-samples 64"]
)
def test_sample(options: str, tree: captree.Tree, run: Run) -> None:
    found = call_json(run, f"sample words.captree caps.parquet -k 5 --seed 11 {options}")
    expected = tree.sample(
        captree.Caps(vectors()[:4], [0.2, 0.4, 0.6, 0.8]),
        k=5,
        seed=11,
        replace="--no-replace" not in options,
        method="approximate" if "approximate" in options else "exact",
        density_samples=64 if "64" in options else 512,
    )
    assert [cap["rows"] for cap in found["caps"]] == expected.tolist()


def test_sample_without_a_seed_is_fresh(here: Path, run: Run) -> None:
    line = "sample words.captree --row 3 -d 1.2 -k 40"
    assert call_json(run, line) != call_json(run, line)


def test_sample_files_and_empty_caps(here: Path, run: Run) -> None:
    away = -vectors()[[5]]
    np.save("away.npy", away)
    out, _ = run("sample words.captree away.npy -d 0 -k 3 --out rows.npy")
    assert "1 of 1 caps are empty" in out
    np.testing.assert_array_equal(np.load("rows.npy"), [[-1, -1, -1]])
    run("sample words.captree away.npy -d 0 -k 3 --texts words.txt --out rows.parquet")
    table = pq.read_table("rows.parquet")
    assert table["row"].to_pylist() == [-1, -1, -1]
    assert table["text"].to_pylist() == [None, None, None]
    assert table["draw"].to_pylist() == [0, 1, 2]


# ---- pairs, bench


def test_pairs(here: Path, run: Run) -> None:
    document = call_json(run, "pairs words.captree pairs -n 500 --seed 2 -q")
    assert document["pairs"] == 500
    table = pq.read_table("pairs")
    assert table.num_rows == 500
    assert table.column_names == ["row", "center", "max_cos_distance"]
    found = call_json(run, f"count words.captree {document['files'][0]}")["caps"]
    assert min(cap["count"] for cap in found) >= 1


def test_bench(here: Path, run: Run) -> None:
    document = call_json(run, "bench words.captree --caps 60 --draws 3 --seconds 0 -q")
    assert document["counts_checked"] == 60
    assert document["draws_checked"] == 2 * 3 * 60
    assert sum(group["caps"] for group in document["groups"]) == 60
    assert "numpy scan" in run("bench words.captree --caps 20 --seconds 0 -q")[0]


# ---- failures


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("info nowhere.captree", "nowhere.captree"),
        ("count nowhere.captree --row 1 -d 0.5", "nowhere.captree"),
        ("build nowhere.npy new.captree", "nowhere.npy"),
        ("build words.txt new.captree", "words.txt"),
        ("build raw.npy new.captree -q", "norm"),
        ("build embeddings.parquet new.captree -q", "column"),
        ("build embeddings.parquet new.captree --column nothing -q", "nothing"),
        ("build words.npy new.captree --memory-limit many", "many"),
        ("build words.npy missing/new.captree -q", "missing"),
        ("build words.npy new.captree --fanout 1", "fanout"),
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
