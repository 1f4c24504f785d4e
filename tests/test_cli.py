"""The command line: every verb, its examples, what it prints and writes, and how it fails."""

import argparse
import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_support import D, N, Run, call_json, make_files, runner, vectors

import captree
from captree._pairs_files import PairsFolder, Shard
from captree.cli._verbs import make_parser

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

VERBS = (
    "build",
    "append",
    "delete",
    "compact",
    "vacuum",
    "info",
    "verify",
    "count",
    "search",
    "sample",
    "pairs",
    "bench",
    "plot",
    "demo",
)


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


@pytest.fixture
def tree(here: Path) -> captree.Tree:
    return captree.open(here / "words.captree")


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


def test_pairs_options(here: Path, run: Run) -> None:
    line = "pairs words.captree once -n 900 --no-replace --caps-per-row 2 --shards 4 --counts --exclude-sources"
    document = call_json(run, f"{line} --empty keep -q")
    table = pq.read_table("once")
    assert [pq.read_metadata(file).num_rows for file in document["files"]] == [225] * 4
    assert table.column_names == ["row", "center", "max_cos_distance", "count", "selectivity"]
    rows = table["row"].to_numpy()
    assert np.bincount(rows[rows >= 0]).max() == 2
    assert document["empty_caps"] == (rows == -1).sum() > 0
    assert len(document["bands"]) == len(document["skew_by_tenth"]) == 10
    assert 0 < document["skew"]["mean"] < document["skew"]["largest"] <= 1
    assert document["pairs_found"] == 0
    again = call_json(run, f"{line} --empty keep -q")
    assert again["pairs_found"] == 900
    assert {**again, "seconds": 0, "pairs_found": 0} == {**document, "seconds": 0}


def test_the_report_of_pairs(here: Path, run: Run) -> None:
    out, _ = run("pairs words.captree with -n 500 -q")
    document = call_json(run, "pairs words.captree with -n 500 -q")
    assert f"{document['caps_drawn']} caps drawn, {document['empty_caps']} of them empty\n" in out
    band = document["bands"][0]
    counts = [band[name] for name in ("caps_drawn", "empty_caps", "exhausted_caps", "pairs")]
    shares = [f"{band['caps_drawn'] / document['caps_drawn']:.1%}", f"{band['pairs'] / 500:.1%}"]
    line = next(line for line in out.splitlines() if line.startswith("0.0 to 0.2"))
    assert line.split()[3:] == [*map(str, counts), *shares]
    assert "uniform" not in out
    out, _ = run("pairs words.captree once -n 500 --no-replace -q")
    document = call_json(run, "pairs words.captree once -n 500 --no-replace -q")
    assert f"{document['exhausted_caps']} without a row that may be used" in out
    assert f"In the mean {document['skew']['mean']:.1%}" in out
    assert f"{document['skew_by_tenth'][9]['mean']:.1%} in the last" in out
    assert "500 of them were there before" in run("pairs words.captree once -n 500 --no-replace -q")[0]


def test_pairs_that_are_interrupted_go_on(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("pairs words.captree whole -n 500 --shards 5 -q")
    add = PairsFolder.add

    def stop(folder: PairsFolder, shard: Shard) -> None:
        add(folder, shard)
        raise KeyboardInterrupt

    monkeypatch.setattr(PairsFolder, "add", stop)
    _, err = run("pairs words.captree pairs -n 500 --shards 5 -q", status=130)
    assert "pairs: whole files stay, and the same command goes on after them" in err
    assert len(list(Path("pairs").glob("*.parquet"))) == 1
    monkeypatch.setattr(PairsFolder, "add", add)
    assert "100 of them were there before" in run("pairs words.captree pairs -n 500 --shards 5 -q")[0]
    for file in Path("whole").iterdir():
        assert file.read_bytes() == (Path("pairs") / file.name).read_bytes()


def test_bench(here: Path, run: Run) -> None:
    document = call_json(run, "bench words.captree --caps 60 --draws 3 --seconds 0 -q")
    assert document["counts_checked"] == 60
    assert document["draws_checked"] == 2 * 3 * 60
    assert sum(group["caps"] for group in document["groups"]) == 60
    assert "numpy scan" in run("bench words.captree --caps 20 --seconds 0 -q")[0]


# --- texts from outside ----------------------------------------------------------------------------------------------

SPITEFUL = [
    "plain",
    "red \x1b[31malert\x1b[0m",
    "two\nlines",
    "bell\x07",
    "back\u202ewards",
    "tab\there",
    "\U0001f469\u200d\U0001f680",
]


@pytest.fixture
def small(here: Path) -> Path:
    """A tree of as many rows as there are spiteful texts."""
    captree.build(vectors()[: len(SPITEFUL)], out=here / "small.captree")
    return here


def test_texts_cannot_command_the_terminal(small: Path, run: Run) -> None:
    pq.write_table(pa.table({"text": SPITEFUL}), "spiteful.parquet")
    for line in ("search small.captree --row 0 -d 2", "sample small.captree --row 0 -d 2 -k 50 --seed 1"):
        out, _ = run(f"{line} --texts spiteful.parquet")
        assert "\x1b" not in out
        assert "\x07" not in out
        assert "\u202e" not in out
        assert r"red \x1b[31malert\x1b[0m" in out
        assert r"two\nlines" in out
        assert SPITEFUL[-1] in out
    caps = captree.Caps(vectors()[: len(SPITEFUL)], 0.5).to_arrow().append_column("text", [SPITEFUL])
    pq.write_table(caps, "names.parquet")
    out, _ = run("count small.captree names.parquet")
    assert "\x1b" not in out
    assert r"bell\x07" in out
    Path("bad\x1b[31m.npy").write_bytes(b"junk")
    _, err = run("build 'bad\x1b[31m.npy' out.captree", status=1)
    assert "\x1b" not in err


def test_texts_of_text_files(small: Path, run: Run) -> None:
    lines = [f"text {i}" for i in range(len(SPITEFUL))]
    for content in (
        b"\xef\xbb\xbf" + "\n".join(lines).encode(),
        "\r\n".join(lines).encode() + b"\r\n",
        "\n".join(lines).encode() + b"\n",
    ):
        Path("lines.txt").write_bytes(content)
        found = call_json(run, "search small.captree --row 0 -d 2 --texts lines.txt")["caps"][0]
        assert [found["texts"][found["rows"].index(i)] for i in range(len(lines))] == lines


def test_texts_of_tables_and_folders(small: Path, run: Run) -> None:
    lines = [f"text {i}" for i in range(len(SPITEFUL))]
    Path("folder/sub").mkdir(parents=True)
    pq.write_table(pa.table({"id": [1, 2, 3], "caption": lines[:3]}), "folder/part-9.parquet")
    pq.write_table(pa.table({"id": [4, 5, 6, 7], "caption": lines[3:]}), "folder/part-10.parquet")
    Path("folder/.hidden.parquet").write_text("not this")
    pq.write_table(pa.table({"title": lines, "text": lines[::-1]}), "both.parquet")
    for option in (
        "--texts folder",
        "--texts 'folder/part-*.parquet'",
        "--texts folder --text-column caption",
        "--texts both.parquet --text-column title",
    ):
        found = call_json(run, f"search small.captree --row 0 -d 2 {option}")["caps"][0]
        assert [found["texts"][found["rows"].index(i)] for i in range(len(lines))] == lines
    _, err = run("search small.captree --row 0 -d 2 --texts both.parquet --text-column nope", status=1)
    assert "expected a column 'nope'" in err
    _, err = run("search small.captree --row 0 -d 2 --texts folder/sub", status=1)
    assert "no files of texts" in err
    Path("folder/dead.txt").symlink_to("nowhere.txt")
    _, err = run("search small.captree --row 0 -d 2 --texts folder", status=1)
    assert "dead.txt: a link to nowhere.txt" in err


def test_skipped_rows_are_told(here: Path, run: Run) -> None:
    rows = vectors()[:50].copy()
    rows[7] = np.nan
    np.save("holes.npy", rows)
    _, err = run("build holes.npy holes.captree", status=1)
    assert "row 7 (not finite)" in err
    out, _ = run("build holes.npy holes.captree --invalid skip")
    assert "50 rows (1 of them skipped)" in out
    out, _ = run("info holes.captree")
    assert "1 of them skipped" in out
    run("verify holes.captree")
    _, err = run("count holes.captree --row 7 -d 0.5", status=1)
    assert "7, which was skipped" in err


def test_the_home_folder_and_globs(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    run("build '~/wor*.npy' '~/home.captree'")
    out, _ = run("count '~/home.captree' '~/centers.npy' -d 0.5")
    assert "rows inside" in out
    assert (here / "home.captree").is_dir()
