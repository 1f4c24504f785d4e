"""Paths that users type: ``~``, relative ones, globs, and the files of a folder in their natural order."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from captree.errors import InvalidParameterError, InvalidTypeError, StorageError

_DIGITS = re.compile("([0-9]+)")


def absolute(name: str, value: Any) -> str:
    """A str or os.PathLike as an absolute path, with ``~`` expanded: it stays the same when the program changes folder.

    `name` names the argument in errors. Links and ``..`` stay as they are.
    """
    try:
        text = os.fsdecode(os.fspath(value))
    except TypeError:
        raise InvalidTypeError(f"expected a str or os.PathLike, got {type(value).__name__}", parameter=name) from None
    if not text or "\0" in text:
        raise InvalidParameterError(f"expected a path, got {text!r}", parameter=name)
    try:
        return os.fspath(Path(text).expanduser().absolute())
    except (RuntimeError, OSError) as error:  # no such user; a current folder that is gone
        raise StorageError(f"cannot make {text!r} an absolute path: {error}", parameter=name) from error


def natural_key(path: Path) -> list[tuple[list[str | int], str]]:
    """Sorts ``part-10`` after ``part-9``: digits count as numbers, folder by folder."""

    def key(part: str) -> tuple[list[str | int], str]:
        pieces: list[str | int] = list(_DIGITS.split(part))
        pieces[1::2] = [int(digits) for digits in pieces[1::2]]
        return pieces, part

    return [key(part) for part in path.parts]


def matches(path: Path, of: str = "vectors") -> list[Path]:
    """The path itself or, where there is nothing of that name, what it matches as a glob, in natural order.

    Raises:
        StorageError: there is no such file or folder.
    """
    if os.path.lexists(path):
        return [path]
    found = [Path(match) for match in glob.glob(os.fspath(path), recursive=True)]  # noqa: PTH207 - absolute patterns
    if not found:
        what = "matches" if glob.has_magic(os.fspath(path)) else "at"
        raise StorageError(f"no file or folder of {of} {what} {path}")
    return sorted(found, key=natural_key)


def files_at(path: Path, of: str = "vectors") -> Iterator[Path]:
    """The file at a path, the files of the folder, or those of all files and folders that the glob matches."""
    for place in matches(path, of):
        yield from files_below(place) if place.is_dir() else [place]


def files_below(folder: Path) -> Iterator[Path]:
    """The files of a folder and its subfolders in natural order; links are followed, hidden entries left out.

    Hidden are names that begin with ``.`` or ``_``.

    Raises:
        StorageError: an entry that cannot be read: a link to nowhere or back to where it came from, a subfolder
            without permission.
    """
    yield from sorted(_walk(folder, ()), key=lambda file: natural_key(file.relative_to(folder)))


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    status = folder.stat()
    place = (status.st_dev, status.st_ino)
    if place in above:
        raise StorageError(f"cannot read {folder}: the link leads back to a folder that holds it")
    for entry in folder.iterdir():
        if entry.name.startswith((".", "_")):
            continue
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            what = f"a link to {entry.readlink()}, which is not there" if entry.is_symlink() else str(error)
            raise StorageError(f"cannot read {entry}: {what}") from error
        if stat.S_ISDIR(mode):
            yield from _walk(entry, (*above, place))
        else:
            yield entry
