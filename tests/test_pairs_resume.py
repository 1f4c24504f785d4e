"""write_pairs after a stop (killed, interrupted, short of disk): its files end up the same, byte for byte."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from helpers import random_units

import captree
from captree import UniformInCap, _pairs_files, write_pairs
from captree._pairs_job import described
from captree.errors import FormatVersionError, InvalidParameterError, StorageError

pq = pytest.importorskip("pyarrow.parquet")

# Files end within batches, span several of them, and end with one; rows run short in all of these.
RUNS = {
    "with replacement": {"n": 900, "batch_size": 100, "rows_per_file": 130},
    "once": {"n": 400, "batch_size": 100, "rows_per_file": 37, "replace": False},
    "whole batches": {"n": 600, "batch_size": 64, "rows_per_file": 64, "radii": 2.0},
    "thrice, without sources": {
        "n": 1100,
        "batch_size": 128,
        "shards": 9,
        "replace": False,
        "caps_per_row": 3,
        "exclude_sources": True,
        "counts": True,
    },
    "empty ones kept": {"n": 420, "batch_size": 90, "shards": 6, "replace": False, "empty": "keep", "counts": True},
    "known rows": {"n": 390, "batch_size": 256, "rows_per_file": 50, "replace": False, "centers": UniformInCap()},
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    vectors = random_units(420, 8, seed=4)
    return captree.build(vectors, out=tmp_path_factory.mktemp("trees") / "t.captree", fanout=4, leaf_size=20)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def same_report(one, other):
    """Two reports of the same run: all but the times, the folders, and what was found."""
    for name in ("pairs", "caps_drawn", "empty_caps", "exhausted_caps", "bands", "skew", "skew_by_tenth"):
        assert getattr(one, name) == getattr(other, name)
    assert [path.split("part-")[-1] for path in one.files] == [path.split("part-")[-1] for path in other.files]


class Stopped(Exception):
    pass


def stop_at(pairs):
    def callback(phase, done, total):
        if phase == "pairs" and done >= pairs:
            raise Stopped

    return callback


# ---- killed


CHILD = """
import json, os, pathlib, signal, sys, time
import captree

tree, out, options, steps = sys.argv[1:]
left = int(steps)


def counted(function):
    def call(*args, **named):
        one_step()
        value = function(*args, **named)
        one_step()
        return value

    return call


def one_step():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def slowly(phase, done, total):
    print(phase, done, flush=True)
    time.sleep(0.03)


if left:
    os.fsync, pathlib.Path.replace = counted(os.fsync), counted(pathlib.Path.replace)
captree.write_pairs(captree.open(tree), out, **json.loads(options), progress=False if left else slowly)
"""


def child(tree, out, options, steps=0):
    command = [sys.executable, "-c", CHILD, tree.path, str(out), json.dumps(options), str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("name", ["with replacement", "once"])
def test_killed_while_a_file_gets_its_name(tree, tmp_path, name):
    """Killed before or after the n-th call that makes a file durable or renames it, again and again."""
    options = RUNS[name]
    whole = write_pairs(tree, tmp_path / "whole", **options)
    rng = np.random.default_rng(len(name))
    for steps in (2, *rng.integers(7, 20, 5).tolist()):
        with child(tree, tmp_path / "killed", options, steps) as process:
            _, err = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, err
    same_report(write_pairs(tree, tmp_path / "killed", **options), whole)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


@pytest.mark.parametrize("name", ["with replacement", "once"])
def test_killed_at_random_moments(tree, tmp_path, name):
    options = RUNS[name]
    whole = write_pairs(tree, tmp_path / "whole", **options)
    rng = np.random.default_rng(1)
    for _ in range(4):
        with child(tree, tmp_path / "killed", options) as process:
            assert process.stdout.readline(), process.stderr.read()
            time.sleep(rng.uniform(0, 0.2))
            process.kill()
        assert process.returncode in (0, -signal.SIGKILL)
    same_report(write_pairs(tree, tmp_path / "killed", **options), whole)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_killed_by_ctrl_c(tree, tmp_path):
    options = {**RUNS["once"], "seed": 3}
    write_pairs(tree, tmp_path / "whole", **options)
    with child(tree, tmp_path / "stopped", options) as process:
        # The callback sleeps after each line, so more is to come.
        assert any(line.startswith("pairs 2") for line in process.stdout), process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    left = files(tmp_path / "stopped")
    assert 1 < len(left) < len(files(tmp_path / "whole"))
    assert not any(name.endswith(".tmp") for name in left)
    write_pairs(tree, tmp_path / "stopped", **options)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


# ---- stopped in this process


@pytest.mark.parametrize("name", RUNS)
def test_the_same_files_wherever_it_stopped(tree, tmp_path, name):
    options = RUNS[name]
    whole = write_pairs(tree, tmp_path / "whole", seed=9, **options)
    expected = files(tmp_path / "whole")
    assert whole.pairs_found == 0
    for stop in range(1, options["n"], options["n"] // 7):
        out = tmp_path / str(stop)
        with pytest.raises(Stopped):
            write_pairs(tree, out, seed=9, progress=stop_at(stop), **options)
        if not out.joinpath(".pairs.json").exists():
            assert list(out.iterdir()) == []  # no file was whole
        report = write_pairs(tree, out, seed=9, threads=1, **options)
        same_report(report, whole)
        assert files(out) == expected


def test_stopped_often(tree, tmp_path):
    """Each run adds one batch at least, and goes on from whole files."""
    options = RUNS["thrice, without sources"]
    whole = write_pairs(tree, tmp_path / "whole", **options)
    found = []
    for _ in range(30):
        stored = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "often").glob("*.parquet"))
        try:
            report = write_pairs(tree, tmp_path / "often", progress=stop_at(stored + 125), **options)
        except Stopped:
            found.append(stored)
        else:
            break
    assert len(set(found)) > 3
    assert report.pairs_found == stored > 0
    same_report(report, whole)
    assert files(tmp_path / "often") == files(tmp_path / "whole")


def test_progress_goes_on(tree, tmp_path):
    options = RUNS["with replacement"]
    with pytest.raises(Stopped):
        write_pairs(tree, tmp_path, progress=stop_at(550), **options)
    calls = []
    report = write_pairs(tree, tmp_path, progress=lambda *call: calls.append(call), **options)
    checked = [call for call in calls if call[0] == "checking"]
    sizes = [(tmp_path / f"part-0000{i}.parquet").stat().st_size for i in range(4)]
    assert checked == [("checking", sum(sizes[: i + 1]), sum(sizes)) for i in range(4)]
    assert calls[len(checked)] == ("pairs", 520, 900)
    assert calls[-1] == ("pairs", 900, 900)
    assert report.pairs_found == 520


def test_a_finished_folder_gives_its_report(tree, tmp_path, monkeypatch):
    options = RUNS["once"]
    whole = write_pairs(tree, tmp_path, **options)
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    monkeypatch.setattr(captree.Tree, "sample", None)
    monkeypatch.setattr(_pairs_files, "put", None)
    calls = []
    again = write_pairs(tree, tmp_path, progress=lambda *call: calls.append(call), **options)
    same_report(again, whole)
    assert again.files == whole.files
    assert (again.pairs_found, calls) == (400, [])
    assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", ["disk full", "no permission"])
@pytest.mark.parametrize("call", range(1, 8))
def test_a_disk_error_leaves_whole_files(tree, tmp_path, monkeypatch, kind, call):
    """The n-th file that is put in its place fails; one is the state, then files and the state take turns."""
    options = RUNS["once"]
    write_pairs(tree, tmp_path / "whole", **options)
    expected, put, calls = files(tmp_path / "whole"), _pairs_files.put, []

    def failing(temporary, file):
        calls.append(file)
        if len(calls) == call:
            raise OSError(errno.ENOSPC if kind == "disk full" else errno.EACCES, kind)
        put(temporary, file)

    monkeypatch.setattr(_pairs_files, "put", failing)
    with pytest.raises(StorageError, match=f"cannot write pairs to .*{kind}"):
        write_pairs(tree, tmp_path / "out", **options)
    assert len(calls) == call
    left = files(tmp_path / "out")
    parts = [name for name in left if name.startswith("part-")]
    assert parts == [f"part-{i:05}.parquet" for i in range((call - 1) // 2 if call > 2 else 0)]
    assert all(left[name] == expected[name] for name in parts)
    assert not any(name.endswith(".tmp") for name in left)
    monkeypatch.setattr(_pairs_files, "put", put)
    write_pairs(tree, tmp_path / "out", **options)
    assert files(tmp_path / "out") == expected


def test_a_disk_that_is_full_while_pairs_are_written(tree, tmp_path, monkeypatch):
    options = RUNS["with replacement"]
    write_pairs(tree, tmp_path / "whole", **options)
    write = pq.ParquetWriter.write_table
    tables = []

    def failing(self, table):
        tables.append(table)
        if len(tables) == 5:
            raise OSError(errno.ENOSPC, "disk full")
        write(self, table)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", failing)
    with pytest.raises(StorageError, match="disk full"):
        write_pairs(tree, tmp_path / "out", **options)
    monkeypatch.undo()
    expected = files(tmp_path / "whole")
    left = files(tmp_path / "out")
    assert left.keys() == {".pairs.json", "part-00000.parquet", "part-00001.parquet"}
    assert left["part-00001.parquet"] == expected["part-00001.parquet"]
    write_pairs(tree, tmp_path / "out", **options)
    assert files(tmp_path / "out") == expected


def test_what_a_killed_run_left_besides_is_removed(tree, tmp_path):
    for name in (".pairs.json.tmp", ".part-00000.parquet.tmp", ".part-00007.parquet.tmp"):
        (tmp_path / name).write_bytes(b"half of")
    write_pairs(tree, tmp_path, 50)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".pairs.json", "part-00000.parquet"]


def test_files_of_others_stay_whatever_their_names(tree, tmp_path):
    for name in ("notes.txt", ".part-00000.parquet.tmp"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(InvalidParameterError, match=r"out: expected an empty folder.*got .* with other files in it"):
        write_pairs(tree, tmp_path, 50)
    assert files(tmp_path) == {".part-00000.parquet.tmp": b"mine", "notes.txt": b"mine"}


# ---- damaged


def stopped(tree, folder, name="once"):
    """A folder with some whole files, and what it should end as."""
    options = RUNS[name]
    write_pairs(tree, folder / "whole", **options)
    with pytest.raises(Stopped):
        write_pairs(tree, folder / "out", progress=stop_at(options["n"] // 2), **options)
    return folder / "out", options, files(folder / "whole")


@pytest.mark.parametrize("place", [8, 2000, -20])
@pytest.mark.parametrize("name", ["once", "with replacement"])
def test_a_flipped_bit_in_a_whole_file(tree, tmp_path, name, place):
    out, options, expected = stopped(tree, tmp_path, name)
    file = out / "part-00001.parquet"
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)
    with pytest.raises(StorageError, match=r"part-00001\.parquet is damaged: expected SHA-256 \w+, got \w+; delete it"):
        write_pairs(tree, out, **options)
    assert file.read_bytes() == content
    file.unlink()
    report = write_pairs(tree, out, **options)
    assert report.pairs_found == options["rows_per_file"]
    assert files(out) == expected


@pytest.mark.parametrize("finished", [False, True])
def test_a_file_that_was_cut_short(tree, tmp_path, finished):
    out, options, expected = stopped(tree, tmp_path)
    if finished:
        write_pairs(tree, out, **options)
    file = out / "part-00002.parquet"
    file.write_bytes(expected["part-00002.parquet"][:-100])
    with pytest.raises(StorageError, match=r"part-00002\.parquet is damaged: expected \d+ bytes, got \d+"):
        write_pairs(tree, out, **options)
    file.unlink()
    assert write_pairs(tree, out, **options).pairs_found == 74
    assert files(out) == expected


def test_a_stop_while_a_deleted_first_file_is_drawn_again(tree, tmp_path):
    out, options, expected = stopped(tree, tmp_path)
    (out / "part-00000.parquet").unlink()
    with pytest.raises(Stopped):
        write_pairs(tree, out, progress=stop_at(0), **options)
    assert {".pairs.json", "part-00001.parquet"} <= files(out).keys()
    write_pairs(tree, out, **options)
    assert files(out) == expected


def test_a_damaged_state(tree, tmp_path):
    out, options, _ = stopped(tree, tmp_path)
    state = out / ".pairs.json"
    content = state.read_bytes()
    for damaged in (content.replace(b'"pairs": 37', b'"pairs": 36', 1), content[:-3], b"", b"\xff\n", b"[]\n{}\n"):
        state.write_bytes(damaged)
        with pytest.raises(StorageError, match=r"\.pairs\.json is damaged.*delete the folder"):
            write_pairs(tree, out, **options)
    state.write_bytes(content.replace(b'"captree_pairs": 1', b'"captree_pairs": 2'))
    with pytest.raises(FormatVersionError, match="expected version 1 of the state, got 2"):
        write_pairs(tree, out, **options)


# ---- another job


def narrow(rng, n):
    return rng.uniform(0.5, 1, n)


JOB = {"n": 300, "batch_size": 64, "rows_per_file": 40, "replace": False, "radii": 1.5}


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n": 301}, "n: expected 300, as the pairs in .* were begun with, got 301"),
        ({"seed": 2}, "seed: expected 0, .* got 2"),
        ({"replace": True}, "replace: expected False, .* got True"),
        ({"batch_size": 65}, "batch_size: expected 64, .* got 65"),
        ({"rows_per_file": 41}, "rows_per_file: expected 40, .* got 41"),
        ({"rows_per_file": None, "shards": 8}, "rows_per_file: expected 40, .* got None"),
        ({"caps_per_row": 2}, "caps_per_row: expected 1, .* got 2"),
        ({"exclude_sources": True}, "exclude_sources: expected False, .* got True"),
        ({"counts": True}, "counts: expected False, .* got True"),
        ({"empty": "keep"}, "empty: expected redraw, .* got keep"),
        ({"radii": 1.25}, r"radii: expected 1\.5, .* got 1\.25"),
        ({"radii": narrow}, r"radii: expected 1\.5, .* got .*\.narrow"),
        ({"centers": UniformInCap()}, r"centers: expected captree\.Slerp\(\), .* got captree\.UniformInCap"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_parameters(tree, tmp_path, finished, change, says):
    if finished:
        write_pairs(tree, tmp_path, **JOB)
    else:
        with pytest.raises(Stopped):
            write_pairs(tree, tmp_path, progress=stop_at(100), **JOB)
    before = files(tmp_path)
    with pytest.raises(InvalidParameterError, match=says):
        write_pairs(tree, tmp_path, **{**JOB, **change})
    assert files(tmp_path) == before


def test_other_trees(tree, tmp_path):
    vectors = tree.take(np.arange(len(tree)))
    with pytest.raises(Stopped):
        write_pairs(tree, tmp_path, progress=stop_at(100), **JOB)
    before = files(tmp_path)
    other = vectors.copy()
    other[0] = vectors[1]
    holes = vectors.copy()
    holes[7] = 0
    for changed, says in (
        (captree.build(vectors[:-1]), "tree: expected one with rows 420, as the pairs in .* got 419"),
        (captree.build(vectors, storage="float32"), "tree: expected one with storage float16, .* got float32"),
        (captree.build(holes, invalid="skip"), "tree: expected one with absent 0, .* got 1"),
        (captree.build(other), r"tree: expected one with vectors \w+, .* got \w+"),
    ):
        with pytest.raises(InvalidParameterError, match=says):
            write_pairs(changed, tmp_path, **JOB)
    assert files(tmp_path) == before
    write_pairs(tree, tmp_path / "whole", **JOB)
    whole = files(tmp_path / "whole")
    out = tmp_path / "moved"
    with pytest.raises(Stopped):
        write_pairs(tree, out, progress=stop_at(100), **JOB)
    # The same vectors in a tree of another shape, in memory, give the same pairs.
    write_pairs(captree.build(vectors, fanout=16, leaf_size=7), out, **JOB)
    assert files(out) == whole


@pytest.mark.parametrize("replace", [True, False])
def test_a_prior_of_the_same_name_that_draws_other_caps(tree, tmp_path, replace):
    """The code of a function is not compared; the pairs of the last batch are."""
    width = 1.0

    def radii(rng, n):
        return rng.uniform(width / 2, width, n)

    options = {"n": 300, "batch_size": 64, "rows_per_file": 40, "replace": replace, "radii": radii}
    with pytest.raises(Stopped):
        write_pairs(tree, tmp_path, progress=stop_at(100), **options)
    before = files(tmp_path)
    width = 1.1
    with pytest.raises(InvalidParameterError, match=r"out: expected pairs 64 to 119 as they are stored.*got others"):
        write_pairs(tree, tmp_path, **options)
    assert files(tmp_path) == before


def test_two_writers_at_once(tree, tmp_path):
    def again(phase, done, total):
        with pytest.raises(StorageError, match="another process is writing pairs to"):
            write_pairs(tree, tmp_path, 500, batch_size=100)

    report = write_pairs(tree, tmp_path, 500, batch_size=100, progress=again)
    assert report.pairs == 500


def test_files_besides_the_pairs_are_left_alone(tree, tmp_path):
    write_pairs(tree, tmp_path, **JOB)
    (tmp_path / "notes.txt").write_text("mine")
    write_pairs(tree, tmp_path, **JOB)
    assert (tmp_path / "notes.txt").read_text() == "mine"


class Prior:
    def __call__(self, rng, n):
        return np.ones(n)


def test_priors_as_text():
    centers = np.eye(3, dtype=np.float32)
    assert described(0.5) == described(np.float64(0.5)) == "0.5"
    assert described(captree.ByMass(0.1, 1)) == "captree.ByMass(low=0.1, high=1)"
    assert described(captree.DEFAULT_RADII).startswith("captree.RadiusMixture(parts=((0.95, 0.0, 1.0)")
    first, same, other = (described(captree.GivenCenters(c)) for c in (centers, centers.copy(), centers[[1, 0, 2]]))
    assert first == same != other
    assert first.startswith("captree.GivenCenters(centers=float32[3, 3] ")
    assert described(UniformInCap([1, 2])) != described(UniformInCap([2, 1]))
    shifted = captree.Shifted(captree.SlerpNoise(0.5), [1.0, 0.0], scale=2)
    assert described(shifted).startswith("captree.Shifted(prior=captree.SlerpNoise(noise=0.5), vector=float64[2] ")
    assert described(narrow) == f"{__name__}.narrow"
    assert described(partial(narrow, 1, n=(2, None))) == f"partial({__name__}.narrow, 1, n=(2, None))"
    assert described(Prior()) == f"{__name__}.Prior"
    assert described(np.random.default_rng(0).random).endswith("random")
