"""A file cut short, lengthened, gone, or with a flipped bit, in a tree of several segments and deleted rows: opening
and verifying give a clear error, and nothing that answers before that answers wrongly.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from crash_checks import answers, assert_holds, assert_same, expected
from crash_operations import ROWS, State

import captree
from captree.errors import CorruptTreeError, FormatVersionError, StorageError, TreeNotFoundError

SEED = 3
GONE = np.arange(0, 530, 7)
WHOLE = State(ROWS[:530]).delete(GONE)


def make(path: Path) -> None:
    tree = captree.build(ROWS[:400], out=path, fanout=4, leaf_size=10)
    tree.append(ROWS[400:500])
    tree.append(ROWS[500:530])
    tree.delete(GONE)
    assert tree.stats()["segments"] == 3


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "x.captree"
    make(path)
    assert_holds(captree.open(path), WHOLE, SEED, "undamaged")
    return path


@pytest.fixture
def damaged(kept, quick_folder):
    return Path(shutil.copytree(kept, quick_folder / "x.captree"))


@pytest.fixture(scope="module")
def right():
    return expected(WHOLE, SEED)


def use(path: Path, right: dict, note: str) -> None:
    """Whatever answers is right, and someone complains."""
    complaint = None
    try:
        tree = captree.open(path)
        try:
            assert_same(answers(tree, SEED), right, note)
        finally:
            tree.verify()
    except (StorageError, TreeNotFoundError) as error:
        complaint = error
    assert complaint is not None, f"{note}: nobody complained"
    assert isinstance(complaint, CorruptTreeError | TreeNotFoundError | FormatVersionError), f"{note}: {complaint!r}"
    assert "x.captree" in str(complaint), f"{note}: {complaint}"


def all_files(path: Path) -> list[Path]:
    found = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "LOCK")
    kinds = {file.name.rstrip("0123456789") for file in found}
    assert {"CURRENT", "manifest.json", "vectors.npy", "checksums.npy"} <= kinds
    assert sum(file.suffix == ".roaring" for file in found) == 1
    assert len(found) > 3 * 10 + 3
    return found


def places_of_bits(size: int, rng: np.random.Generator, crashes: int) -> list[int]:
    """Bits of a file: of its first and its last byte, and any."""
    return [*rng.integers(8, size=1), *(8 * size - 1 - rng.integers(8, size=1)), *rng.integers(8 * size, size=crashes)]


def test_flipped_bits(damaged, right, crashes):
    for number, file in enumerate(all_files(damaged)):
        whole = file.read_bytes()
        for place in places_of_bits(len(whole), np.random.default_rng(number), max(3, crashes // 10)):
            changed = bytearray(whole)
            changed[place // 8] ^= 1 << (place % 8)
            file.write_bytes(changed)
            use(damaged, right, f"{file.relative_to(damaged)}, bit {place} flipped")
        file.write_bytes(whole)
    assert_holds(captree.open(damaged), WHOLE, SEED, "mended")


def test_files_of_another_length(damaged, right):
    for number, file in enumerate(all_files(damaged)):
        whole = file.read_bytes()
        anywhere = np.random.default_rng(number).integers(len(whole), size=2).tolist()
        for size in sorted({0, 1, len(whole) // 2, len(whole) - 1, *anywhere}):
            # The line break behind the last brace means nothing.
            if whole[size:].strip():
                file.write_bytes(whole[:size])
                use(damaged, right, f"{file.relative_to(damaged)}, cut after {size} bytes")
        file.write_bytes(whole + b"\0")
        use(damaged, right, f"{file.relative_to(damaged)}, a byte longer")
        file.unlink()
        use(damaged, right, f"{file.relative_to(damaged)}, gone")
        file.write_bytes(whole)
    assert_holds(captree.open(damaged), WHOLE, SEED, "mended")


def test_folders_that_are_gone(damaged, right, tmp_path):
    folders = [damaged / "segments", damaged / "deleted", *sorted((damaged / "segments").iterdir())]
    for folder in folders:
        aside = folder.rename(damaged.parent / "aside")
        use(damaged, right, f"{folder.relative_to(damaged)}, gone")
        aside.rename(folder)
    assert_holds(captree.open(damaged), WHOLE, SEED, "mended")


@pytest.mark.parametrize("content", [None, b"", b"\0", b"process 1 (append)", b"\xff" * 10_000])
def test_what_the_lock_says_means_nothing(damaged, content):
    lock = damaged / "LOCK"
    assert lock.exists()
    lock.unlink()
    if content is not None:
        lock.write_bytes(content)
    tree = captree.open(damaged)
    assert_holds(tree, WHOLE, SEED, "another LOCK")
    tree.append(ROWS[530:540])
    assert_holds(captree.open(damaged), WHOLE.append(ROWS[530:540]), SEED, "appended")


def test_changes_of_a_damaged_tree(damaged, right):
    """They fail, or have not touched what is damaged: no damage comes to look like sound rows."""
    failed = 0
    for file in all_files(damaged):
        whole = file.read_bytes()
        changed = bytearray(whole)
        changed[len(whole) * 2 // 3] ^= 16
        copy = Path(shutil.copytree(damaged, damaged.parent / "copy" / "x.captree"))
        (copy / file.relative_to(damaged)).write_bytes(changed)
        note = f"{file.relative_to(damaged)}, byte {len(whole) * 2 // 3}"
        try:
            captree.open(copy).compact()
        except (CorruptTreeError, TreeNotFoundError):
            failed += 1
            use(copy, right, note)
        else:
            assert_holds(captree.open(copy), WHOLE, SEED, note)
        shutil.rmtree(copy.parent)
    assert failed >= 9, "rows, positions, vectors and manifests are read"
