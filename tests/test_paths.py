"""Folders as other people have them, and paths that stay the same when the program changes folder."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_reads, random_units, read

import captree
from captree._paths import natural_key
from captree.errors import InvalidParameterError, InvalidTypeError, InvalidVectorsError, StorageError

X = random_units(40, 5)


def save(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, rows)


@pytest.fixture
def shards(tmp_path):
    """A folder of four shards, ten rows each."""
    for i in range(4):
        save(tmp_path / "in" / f"part-{i}.npy", X[10 * i : 10 * i + 10])
    return tmp_path / "in"


# --- which files, in which order -------------------------------------------------------------------------------------


def test_digits_count_as_numbers(tmp_path):
    names = ["a/2.npy", "a/10.npy", "b1.npy", "b2/x9.npy", "b2/x10.npy", "b10.npy", "b010.npy"]
    for i, name in enumerate(names):
        save(tmp_path / name, X[i : i + 1])
    found = sorted((path.relative_to(tmp_path) for path in tmp_path.rglob("*.npy")), key=natural_key)
    assert [path.as_posix() for path in found] == [*names[:5], "b010.npy", "b10.npy"]
    assert_reads(tmp_path, X[[0, 1, 2, 3, 4, 6, 5]])


def test_any_names_can_be_sorted():
    rng = np.random.default_rng(0)
    for _ in range(300):
        names = ["".join(rng.choice(list("a1٣²-. 9"), size=rng.integers(1, 6))) for _ in range(8)]
        paths = sorted((Path(name) for name in names), key=natural_key)
        other = [Path(name) for name in rng.permutation(names)]
        assert sorted(other, key=natural_key) == paths


def test_a_dead_link_is_an_error_that_names_it(shards):
    (shards / "part-2.npy").unlink()
    (shards / "part-2.npy").symlink_to(shards / "gone.npy")
    with pytest.raises(StorageError, match=r"part-2\.npy: a link to .*gone\.npy, which is not there"):
        read(shards)
    with pytest.raises(StorageError, match=r"part-2\.npy"):
        read(shards / "part-*.npy")


def test_a_dead_link_that_may_be_a_folder_is_an_error(shards):
    (shards / "more").symlink_to(shards / "nowhere")
    with pytest.raises(StorageError, match=r"more: a link to .*nowhere"):
        read(shards)


def test_linked_files_and_folders_are_followed(shards, tmp_path):
    save(tmp_path / "elsewhere" / "part-0.npy", X[:10])
    (shards / "part-9").symlink_to(tmp_path / "elsewhere")
    (shards / "part-10.npy").symlink_to(tmp_path / "elsewhere" / "part-0.npy")
    assert_reads(shards, np.concatenate([X, X[:10], X[:10]]))


def test_a_link_back_is_an_error(shards):
    (shards / "sub").mkdir()
    (shards / "sub" / "loop").symlink_to(shards)
    with pytest.raises(StorageError, match="loop: the link leads back"):
        read(shards)


def test_a_folder_without_permission_is_an_error(shards, monkeypatch):
    (shards / "closed").mkdir()
    whole = Path.iterdir

    def iterdir(folder):  # root, as whom tests may run, may read everything
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return whole(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(StorageError, match="closed"):
        read(shards)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_an_error_and_not_waited_for(shards):
    os.mkfifo(shards / "part-4.npy")
    with pytest.raises(StorageError, match=r"part-4\.npy: it is not a regular file"):
        read(shards)


def test_hidden_entries_are_left_out(shards):
    for name in (".cache/a.npy", "_tmp/a.npy", "._part-0.npy", ".ipynb_checkpoints/part-0.npy"):
        save(shards / name, X)
    assert_reads(shards, X)


@pytest.mark.parametrize("kind", ["float64", "object", "int64", "str"])
def test_files_without_rows_do_not_matter(shards, kind):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    np.save(shards / "part-5.npy", np.empty((0, 7), kind) if kind != "object" else np.empty(0))
    assert_reads(shards, X)
    tables = shards.parent / "tables"
    tables.mkdir()
    column = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 5)
    pq.write_table(pa.table({"id": np.arange(40), "emb": column}), tables / "b.parquet")
    types = {"float64": pa.float64(), "object": pa.null(), "int64": pa.int64(), "str": pa.string()}
    pq.write_table(pa.table({"emb": pa.array([], types[kind])}), tables / "a.parquet")
    assert_reads(tables, X)
    assert_reads(tables, X, "emb")
    empty = pa.table({"emb": pa.array([], types[kind])})
    with pytest.raises(InvalidVectorsError, match="at least one row"):
        read(empty)
    assert_reads(iter([empty, X, empty]), X)
    with pa.ipc.new_file(str(shards.parent / "e.arrow"), empty.schema) as writer:
        writer.write_table(empty)
    with pytest.raises(InvalidVectorsError, match="at least one row"):
        read(shards.parent / "e.arrow")


def test_globs(shards, tmp_path):
    save(tmp_path / "other" / "part-7.npy", X[:10])
    assert_reads(str(shards / "part-[12].npy"), X[10:30])
    assert_reads(shards / "*.npy", X)
    assert_reads(tmp_path / "**" / "*.npy", np.concatenate([X, X[:10]]))
    assert_reads(tmp_path / "i*", X)
    with pytest.raises(StorageError, match="no file or folder of vectors matches"):
        read(shards / "*.parquet")
    # A file whose name looks like a glob is that file.
    save(tmp_path / "x[1].npy", X[:3])
    assert_reads(tmp_path / "x[1].npy", X[:3])


def test_home(shards, monkeypatch):
    monkeypatch.setenv("HOME", str(shards.parent))
    assert_reads("~/in", X)
    tree = captree.build("~/in/part-*.npy", out="~/t.captree")
    assert tree.path == str(shards.parent / "t.captree")
    assert len(captree.open("~/t.captree")) == 40


# --- what the messages say -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npy", "parquet", "arrow"])
def test_lfs_pointers_are_called_by_their_name(tmp_path, suffix):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / f"a.{suffix}").write_text(pointer)
    for source in (tmp_path, tmp_path / f"a.{suffix}"):
        with pytest.raises(InvalidVectorsError, match=rf"a\.{suffix} is a Git LFS pointer.*git lfs pull"):
            read(source)


def test_a_shard_of_another_dim_is_named(shards):
    np.save(shards / "part-3.npy", random_units(4, 6))
    with pytest.raises(InvalidVectorsError, match=r"expected dim 5 as in .*part-0\.npy, got 6 in .*part-3\.npy"):
        read(shards)


def test_a_tree_among_the_vectors_is_called_one(shards):
    captree.build(shards, out=shards / "t.captree")
    with pytest.raises(InvalidVectorsError, match=r"t\.captree is a captree tree, not vectors: .*keep it outside"):
        captree.build(shards, out=shards / "t.captree")
    with pytest.raises(InvalidVectorsError, match=r"t\.captree is a captree tree, not vectors: captree\.open"):
        captree.build(shards / "t.captree")


@pytest.mark.parametrize("bad", ["", "a\0b", b""])
def test_what_is_no_path(bad):
    with pytest.raises(InvalidParameterError, match="path: expected a path"):
        captree.open(bad)
    with pytest.raises(InvalidTypeError, match=r"path: expected a str or os\.PathLike, got int"):
        captree.open(3)


# --- paths are resolved once -----------------------------------------------------------------------------------------


def test_a_tree_is_the_same_from_every_folder(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    for name, rows in (("here", X), ("there", random_units(7, 5, seed=1))):
        (tmp_path / name).mkdir()
        captree.build(rows, out=tmp_path / name / "t.captree")
    monkeypatch.chdir(tmp_path / "here")
    tree = captree.open("t.captree")
    stream = captree.PairStream(tree, batch_size=4, seed=0)
    built = captree.build(X, out="built.captree")
    captree.build(X).save("saved.captree")
    report = captree.write_pairs(tree, "pairs", n=10, seed=0)
    monkeypatch.chdir(tmp_path / "there")
    assert tree.path == str(tmp_path / "here" / "t.captree")
    for again in (pickle.loads(pickle.dumps(tree)), pickle.loads(pickle.dumps(built))):
        assert len(again) == 40
    np.testing.assert_array_equal(next(pickle.loads(pickle.dumps(stream))).rows, next(stream).rows)
    assert report.files == (str(tmp_path / "here" / "pairs" / "part-00000.parquet"),)
    assert not (tmp_path / "there" / "pairs").exists()
    assert (tmp_path / "here" / "saved.captree").is_dir()


def test_links_and_parents_mean_what_the_system_says(tmp_path, monkeypatch):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "deep")
    monkeypatch.chdir(tmp_path)
    captree.build(X, out="link/../t.captree")
    assert (tmp_path / "a" / "t.captree").is_dir()


def test_an_empty_folder_becomes_the_tree(tmp_path):
    (tmp_path / "out").mkdir()
    assert len(captree.build(X, out=tmp_path / "out")) == 40
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="nothing there was touched"):
        captree.build(X, out=tmp_path / "full")


KILLED = """
import sys, os, signal, numpy as np, captree
def progress(phase, done, total):
    if phase != "reading":
        os.kill(os.getpid(), signal.SIGKILL)
captree.build(np.load(sys.argv[1]), out=sys.argv[2], progress=progress)
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL here")
def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path):
    rows = random_units(20_000, 64)
    np.save(tmp_path / "x.npy", rows)
    out = tmp_path / "t.captree"
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "x.npy"), str(out)], check=False)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 2
    assert left[0].startswith(".t.captree.new-")
    captree.build(rows[:100], out=out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.captree", "x.npy"]
