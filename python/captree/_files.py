"""Vectors in files: ``.npy`` (mapped), Parquet, Arrow IPC (file or stream), folders and globs of them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captree import _arrow
from captree._paths import absolute, files_at
from captree._rows import Reading, Rows, as_rows, located
from captree.errors import CaptreeError, InvalidParameterError, InvalidVectorsError, StorageError

_FORMATS = ((".npy",), _arrow.PARQUET, _arrow.IPC)
_SUFFIXES = ", ".join(suffix for kind in _FORMATS for suffix in kind)
_CURRENT = "CURRENT"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def path_blocks(vectors: Any, how: Reading) -> Iterator[tuple[Rows, str]]:
    """Blocks of one file, of the files of a folder, or of all that a glob matches; each with its file's path."""
    path = Path(absolute("vectors", vectors))
    try:
        for file in data_files(path):
            for rows in _file_blocks(file, how):
                yield rows, str(file)
    except OSError as error:
        if isinstance(error, CaptreeError):
            raise
        raise StorageError(f"cannot read {path}: {error}") from error


def data_files(path: Path) -> list[Path]:
    """The files of vectors at a path, in natural order; where it is a folder or a glob they are of one format.

    Raises:
        StorageError: nothing there, or something that cannot be read.
        InvalidVectorsError: no files of vectors, or several formats.
    """
    found = list(files_at(path))
    if found == [path]:
        return found
    formats: dict[tuple[str, ...] | None, list[Path]] = {}
    for file in found:
        if file.name == _CURRENT and _is_of_tree(file):
            raise InvalidVectorsError(
                f"{file.parent} is a captree tree, not vectors: captree.open reads it; keep it outside of the folder"
            )
        formats.setdefault(_format(file), []).append(file)
    formats.pop(None, None)
    if not formats:
        raise InvalidVectorsError(f"no {_SUFFIXES} files in the folder {path}")
    if len(formats) > 1:
        names = ", ".join(files[0].name for files in formats.values())
        raise InvalidVectorsError(f"files of several formats in {path}: {names}; keep one format in it")
    return next(iter(formats.values()))


def _is_of_tree(current: Path) -> bool:
    try:
        manifest = current.parent / current.read_text().split()[0]
        return bool(json.loads(manifest.read_bytes())["format"] == "captree")
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return False


def _format(file: Path) -> tuple[str, ...] | None:
    return next((kind for kind in _FORMATS if file.suffix.lower() in kind), None)


def _file_blocks(path: Path, how: Reading) -> Iterator[Rows]:
    kind = _format(path)
    if kind is None:
        raise InvalidVectorsError(f"cannot tell the format of {path}: expected a name in {_SUFFIXES}, or a folder")
    _check_file(path)
    arrays: Iterable[NDArray[Any]]
    if kind == _arrow.PARQUET:
        arrays = _arrow.parquet_blocks(path, how)
    elif kind == _arrow.IPC:
        arrays = _arrow.ipc_blocks(path, how)
    elif how.column is not None:
        raise InvalidParameterError(f"only tables have columns, got {path}", parameter="column")
    else:
        arrays = (load_npy(path),)
    with located(str(path)):
        yield from (as_rows(array, False, how) for array in arrays)


def _check_file(path: Path) -> None:
    """Refuses what only looks like a file of data."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for a writer
        raise StorageError(f"cannot read {path}: it is not a regular file")
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise InvalidVectorsError(f"{path} is a Git LFS pointer, not the data: `git lfs pull` fetches them")


def load_npy(path: Path) -> NDArray[Any]:
    """The mapped array of a .npy file."""
    try:
        array: NDArray[Any] = np.load(os.fspath(path), mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header ends in errors of the parser, of the tokenizer, of mmap, ...
        raise InvalidVectorsError(f"cannot read {path} as .npy: {error}") from error
    return array
