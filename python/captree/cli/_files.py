"""Small files in and out: arrays, tables of columns, lines of text."""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captree._arrow import IPC, PARQUET, ipc_batches, require_pyarrow
from captree._paths import absolute, files_at
from captree.cli._parser import UsageError
from captree.errors import InvalidParameterError, StorageError

Columns = Mapping[str, Any]
"""Column name -> a 1-d array, a list of strings, or an (n, d) array of vectors; all of one length."""

TABLES = (".parquet", ".arrow", ".csv")


def read_columns(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Those of the plain columns `names` that a Parquet or Arrow IPC file has."""
    pa = require_pyarrow(f"reading {path.name}")
    try:
        table = _read_table(pa, path, names)
    except (pa.ArrowException, OSError) as error:
        raise InvalidParameterError(f"cannot read {path}: {error}") from None
    return {name: table[name].to_pylist() for name in table.column_names}


def _read_table(pa: Any, path: Path, names: Sequence[str]) -> Any:
    """The columns `names`, as far as the file has them."""
    if path.suffix.lower() in PARQUET:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            return file.read([name for name in names if name in file.schema_arrow.names])
    with pa.memory_map(os.fspath(path)) as source:
        schema, batches = ipc_batches(pa, source)
        return pa.Table.from_batches(batches, schema).select([name for name in names if name in schema.names])


def read_texts(args: argparse.Namespace, rows: int) -> list[str] | None:
    """What ``--texts`` asks for: one text per row of the tree, in the order of the files; nulls are empty texts."""
    if not args.texts:
        return None
    texts: list[str] = []
    for file in _text_files(Path(absolute("texts", args.texts))):
        texts += _texts_in(file, args.text_column)
    if len(texts) != rows:
        raise InvalidParameterError(
            f"{args.texts}: expected {rows:,} texts, one per row of the tree, got {len(texts):,}"
        )
    return texts


def _text_files(path: Path) -> list[Path]:
    """The file, or all files of texts in a folder or that a glob matches."""
    found = list(files_at(path, "texts"))
    if found != [path]:
        found = [file for file in found if file.suffix.lower() in (".txt", *PARQUET, *IPC)]
    if not found:
        raise InvalidParameterError(f"no files of texts in the folder {path}")
    return found


def _texts_in(path: Path, column: str | None) -> list[str]:
    if path.suffix.lower() in (*PARQUET, *IPC):
        wanted = [column] if column else ["text", "caption"]
        found = read_columns(path, wanted)
        if not found:
            raise InvalidParameterError(f"{path}: expected a column {' or '.join(map(repr, wanted))}")
        return ["" if text is None else str(text) for text in next(found[name] for name in wanted if name in found)]
    try:
        # A byte-order mark is no part of the first text.
        return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise InvalidParameterError(f"{path}: not UTF-8 text: {error}") from None


def check_suffix(path: str | None, allowed: Iterable[str]) -> None:
    """Refuses an output file of a kind that does not fit, before any work is done."""
    allowed = tuple(allowed)
    if path is not None and Path(path).suffix not in allowed:
        raise UsageError(f"{path}: expected a file name that ends in {', '.join(allowed[:-1])} or {allowed[-1]}")
    if path is not None and Path(path).suffix in (*PARQUET, *IPC):
        require_pyarrow(f"writing {Path(path).name}")


def write_table(path: str, columns: Columns) -> None:
    """Writes columns as Parquet, Arrow IPC or CSV, by the file name's ending. CSV spreads vectors over columns."""
    target = Path(path)
    if target.suffix == ".csv":
        replace_file(target, lambda temporary: _write_csv(temporary, columns))
        return
    pa = require_pyarrow(f"writing {target.name}")
    table = pa.table({name: _arrow_column(pa, values) for name, values in columns.items()})
    replace_file(target, lambda temporary: write_arrow(temporary, target.suffix, table))


def write_arrow(path: Path, suffix: str, table: Any) -> None:
    """Writes a pyarrow Table as Parquet or, for any other suffix, as an Arrow IPC file."""
    pa = require_pyarrow(f"writing {path.name}")
    if suffix in PARQUET:
        import pyarrow.parquet as pq

        pq.write_table(table, path)
        return
    with pa.OSFile(os.fspath(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def write_npy(path: str, array: NDArray[Any]) -> None:
    """Writes one array as .npy."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, array)

    replace_file(Path(path), write)


def replace_file(target: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` on a temporary file beside `target`, then puts it in place: a reader never sees half a file."""
    if not target.parent.is_dir():
        raise StorageError(f"{target}: there is no folder {target.parent}")
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp gives 0600; an ordinary new file has these rights
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _arrow_column(pa: Any, values: Any) -> Any:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])
    return pa.array(values)


def _write_csv(path: Path, columns: Columns) -> None:
    header: list[str] = []
    series: list[list[Any]] = []
    for name, values in columns.items():
        if isinstance(values, np.ndarray) and values.ndim == 2:
            header += [f"{name}_{i}" for i in range(values.shape[1])]
            series += [part.tolist() for part in values.T]
        else:
            header.append(name)
            series.append(values.tolist() if isinstance(values, np.ndarray) else list(values))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(zip(*series, strict=True))
