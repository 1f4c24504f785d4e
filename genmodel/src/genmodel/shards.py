"""Encoded images on disk: a folder of Parquet shards with an embedding and the image tokens of every image.

Columns: ``id`` int64 (position in the source), ``path`` string, ``embedding`` fixed_size_list<float16>[dim] (unit
rows), ``tokens`` fixed_size_list<uint16>[grid * grid]. Row i of the whole folder, shards in order, is row i of
a tree that ``captree.build(folder, column="embedding")`` makes.

    shard-00000.parquet ...   written to a temporary name and renamed, so that a shard is there whole or not at all
    broken.jsonl              one line per image that could not be read: id, path, reason
    meta.json                 written last: the folder is complete
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genmodel.errors import DataError, InputError

META_FILE = "meta.json"
BROKEN_FILE = "broken.jsonl"
FORMAT = 1
REQUIRED = ("encoder", "tokenizer", "grid", "dim", "codebook_size", "image_size")
"""What the metadata of every folder says: names of the encoder and the tokenizer, and their shapes."""
MEMORY_LIMIT = 2 << 30
"""Columns of more bytes than this are opened as memory maps (an .npy file beside the shards, made on first use)."""

Array = np.ndarray[Any, Any]


class ShardWriter:
    """Writes shards in any order and goes on where an earlier run stopped.

    Parameters
    ----------
    folder : path
        Made if missing. Shards that are there already must have been written with the same `meta`.
    meta : mapping
        JSON values with at least the keys of :data:`REQUIRED`.
    rows_per_shard : int
        Source positions per shard; kept in the metadata, so that a later run cuts the source the same way.

    Attributes
    ----------
    done : set of int
        Numbers of the shards that are on disk.
    """

    def __init__(self, folder: str | os.PathLike[str], meta: Mapping[str, Any], rows_per_shard: int = 4096) -> None:
        missing = [key for key in REQUIRED if key not in meta]
        if missing:
            raise InputError(f"meta: expected the keys {', '.join(REQUIRED)}; missing: {', '.join(missing)}")
        if rows_per_shard < 1:
            raise InputError(f"rows_per_shard: expected at least 1, got {rows_per_shard}")
        if not 2 <= meta["codebook_size"] <= 1 << 16:
            raise InputError(
                f"expected a codebook of 2 to 65536 codes (tokens are uint16), got {meta['codebook_size']}"
            )
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.meta = {"format": FORMAT, **meta, "rows_per_shard": rows_per_shard}
        self.rows_per_shard = rows_per_shard
        self.done: set[int] = set()
        for path in _shard_files(self.folder):
            _check_same(path, self.meta, _read_meta(path)[0])
            self.done.add(int(path.stem.removeprefix("shard-")))

    def write(
        self,
        index: int,
        ids: Sequence[int] | Array,
        paths: Sequence[str],
        embeddings: Array,
        tokens: Array,
        broken: Sequence[Mapping[str, Any]] = (),
    ) -> Path:
        """Write shard `index` and return its path.

        Embeddings (n, dim) of any float type are normalized and rounded to float16; tokens (n, grid * grid) are
        integers below the codebook size. `broken` lists what the shard's part of the source lacks: id, path, reason.
        """
        schema = shard_schema(self.meta["dim"], self.meta["grid"] ** 2)
        table = pa.table(
            [
                pa.array(np.asarray(ids, np.int64)),
                pa.array(list(paths), pa.string()),
                _fixed(unit_rows(embeddings, self.meta["dim"]), schema.field("embedding").type),
                _fixed(self._tokens(tokens, len(paths)), schema.field("tokens").type),
            ],
            schema=schema.with_metadata(
                {"genmodel": json.dumps(self.meta, sort_keys=True), "broken": json.dumps(list(broken))}
            ),
        )
        path = self.folder / f"shard-{index:05d}.parquet"
        temporary = self.folder / f".{path.name}.tmp"
        with temporary.open("wb") as file:
            # Neither column compresses: embeddings are noise to a compressor, tokens nearly so.
            pq.write_table(table, file, compression="none", use_dictionary=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self.done.add(index)
        return path

    def write_broken(self) -> int:
        """Rewrite ``broken.jsonl`` from all shards there are; returns how many images it lists."""
        broken = [entry for path in _shard_files(self.folder) for entry in _read_meta(path)[1]]
        _write_text(self.folder / BROKEN_FILE, "".join(json.dumps(entry) + "\n" for entry in broken))
        return len(broken)

    def finish(self, shards: int) -> Shards:
        """Mark the folder as complete with shards 0 to `shards` - 1; raises DataError when one is missing."""
        lacking = sorted(set(range(shards)) - self.done)
        if lacking:
            raise DataError(f"{self.folder}: expected {shards} shards, {len(lacking)} are missing, first {lacking[0]}")
        rows = sum(pq.read_metadata(path).num_rows for path in _shard_files(self.folder))
        totals = {"shards": shards, "rows": rows, "broken": self.write_broken()}
        _write_text(self.folder / META_FILE, json.dumps({**self.meta, **totals}, indent=2, sort_keys=True) + "\n")
        return open_shards(self.folder)

    def _tokens(self, tokens: Array, rows: int) -> Array:
        tokens = np.asarray(tokens)
        expected = (rows, self.meta["grid"] ** 2)
        if tokens.shape != expected or tokens.dtype.kind not in "iu":
            raise InputError(f"expected integer tokens of shape {expected}, got {tokens.dtype} {tokens.shape}")
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.meta["codebook_size"]:
            raise InputError(
                f"expected tokens below {self.meta['codebook_size']}, got values from {tokens.min()} to {tokens.max()}"
            )
        return tokens.astype(np.uint16)


class Shards:
    """A complete folder of shards, read lazily.

    Attributes
    ----------
    folder : Path
    meta : dict
        encoder, tokenizer, grid, dim, codebook_size, image_size, rows, shards, broken, and what the writer added.
    ids : int64 (n,)
        Positions in the source.
    paths : list of str
    embeddings : float16 (n, dim)
        Unit rows; a memory map when larger than :data:`MEMORY_LIMIT` bytes.
    tokens : uint16 (n, grid * grid)
        The same.
    """

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self.folder, self.meta = folder, meta

    def __len__(self) -> int:
        return int(self.meta["rows"])

    def __repr__(self) -> str:
        return f"Shards({str(self.folder)!r}, {len(self):,} rows, {self.meta['encoder']}, {self.meta['tokenizer']})"

    @cached_property
    def ids(self) -> Array:
        """Positions in the source, int64 (n,)."""
        return np.concatenate([np.zeros(0, np.int64), *(column.to_numpy() for column in self._columns("id"))])

    @cached_property
    def paths(self) -> list[str]:
        """Names of the images in the source."""
        return [path for column in self._columns("path") for path in column.to_pylist()]

    @cached_property
    def embeddings(self) -> Array:
        """Unit rows, float16 (n, dim)."""
        return self._matrix("embedding", np.dtype(np.float16), self.meta["dim"])

    @cached_property
    def tokens(self) -> Array:
        """Image tokens in raster order, uint16 (n, grid * grid)."""
        return self._matrix("tokens", np.dtype(np.uint16), self.meta["grid"] ** 2)

    @cached_property
    def broken(self) -> list[dict[str, Any]]:
        """Images that could not be read: id, path, reason."""
        return [json.loads(line) for line in (self.folder / BROKEN_FILE).read_text().splitlines()]

    def _columns(self, name: str) -> Iterable[pa.Array]:
        for path in _shard_files(self.folder):
            yield pq.read_table(path, columns=[name])[name].combine_chunks()

    def _matrix(self, name: str, dtype: np.dtype[Any], width: int) -> Array:
        shape = (len(self), width)
        cache = self.folder / f"{name}.npy"
        if len(self) * width * dtype.itemsize <= MEMORY_LIMIT:
            matrix: Array = np.empty(shape, dtype)
        elif cache.is_file() and (mapped := np.load(cache, mmap_mode="r")).shape == shape:
            return mapped  # type: ignore[no-any-return]
        else:
            matrix = np.lib.format.open_memmap(cache.with_suffix(".npy.tmp"), "w+", dtype, shape)
        row = 0
        for column in self._columns(name):
            block = _flat(column).to_numpy(zero_copy_only=False).reshape(-1, width)
            matrix[row : row + len(block)] = block
            row += len(block)
        if row != len(self):
            raise DataError(f"{self.folder}: {META_FILE} says {len(self)} rows, the shards hold {row}")
        if isinstance(matrix, np.memmap):
            matrix.flush()
            cache.with_suffix(".npy.tmp").replace(cache)
            return np.load(cache, mmap_mode="r")  # type: ignore[no-any-return]
        return matrix


def open_shards(folder: str | os.PathLike[str] | Shards) -> Shards:
    """Open a folder that ``genmodel encode`` finished; raises DataError when it is missing, unfinished or damaged."""
    if isinstance(folder, Shards):
        return folder
    folder = Path(folder)
    path = folder / META_FILE
    if not path.is_file():
        begun = folder.is_dir() and bool(_shard_files(folder))
        state = "it is unfinished: run the same encode again" if begun else "genmodel encode writes such a folder"
        raise DataError(f"{folder} is no complete folder of shards (no {META_FILE}); {state}")
    try:
        meta = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    missing = [key for key in (*REQUIRED, "rows", "shards") if key not in meta]
    if meta.get("format") != FORMAT or missing:
        raise DataError(f"{path}: expected format {FORMAT} and the keys {REQUIRED}, got {sorted(meta)}")
    present = len(_shard_files(folder))
    if present != meta["shards"]:
        raise DataError(f"{folder}: {META_FILE} says {meta['shards']} shards, {present} are there")
    return Shards(folder, meta)


def write_shards(
    folder: str | os.PathLike[str],
    meta: Mapping[str, Any],
    embeddings: Array,
    tokens: Array,
    paths: Sequence[str] | None = None,
    ids: Sequence[int] | Array | None = None,
    rows_per_shard: int = 4096,
) -> Shards:
    """Write arrays that are in memory as a complete folder; for embeddings and tokens that were made elsewhere."""
    writer = ShardWriter(folder, meta, rows_per_shard)
    numbers = np.arange(len(embeddings)) if ids is None else np.asarray(ids)
    names = [f"{number:08d}" for number in numbers] if paths is None else list(paths)
    if not len(embeddings) == len(tokens) == len(numbers) == len(names):
        raise InputError(
            f"expected as many embeddings, tokens, ids and paths, "
            f"got {len(embeddings)}, {len(tokens)}, {len(numbers)}, {len(names)}"
        )
    shards = max(1, -(-len(numbers) // rows_per_shard))
    for index in range(shards):
        if index not in writer.done:
            part = slice(index * rows_per_shard, (index + 1) * rows_per_shard)
            writer.write(index, numbers[part], names[part], embeddings[part], tokens[part])
    return writer.finish(shards)


def shard_schema(dim: int, tokens: int) -> pa.Schema:
    """The Arrow schema of a shard."""
    return pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.field("item", pa.float16(), nullable=False), dim), nullable=False),
            pa.field("tokens", pa.list_(pa.field("item", pa.uint16(), nullable=False), tokens), nullable=False),
        ]
    )


def unit_rows(embeddings: Array, dim: int) -> Array:
    """Rows (n, dim) normalized in float64 and rounded to float16: a norm within 5e-4 of 1, which captree accepts.

    Raises InputError for another shape and for rows that have no direction (zero or not finite).
    """
    rows = np.asarray(embeddings, np.float64)
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise InputError(f"expected embeddings of shape (n, {dim}), got {rows.shape}")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    wrong = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if len(wrong):
        raise InputError(
            f"expected finite embeddings with a direction, got {len(wrong)} without, first rows {wrong[:5].tolist()}"
        )
    unit: Array = (rows / norms).astype(np.float16)
    return unit


def _fixed(matrix: Array, kind: pa.FixedSizeListType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1), kind.value_type), type=kind)


def _flat(column: Any) -> pa.Array:
    return column.flatten() if isinstance(column, pa.Array) else pa.concat_arrays([c.flatten() for c in column.chunks])


def _shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.parquet"), key=lambda path: int(path.stem.removeprefix("shard-")))


def _read_meta(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The writer's metadata of a shard, and its list of broken images."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        return json.loads(metadata[b"genmodel"]), json.loads(metadata[b"broken"])
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise DataError(f"{path} is damaged or no shard of genmodel: {error!r}; delete it to write it again") from error


def _check_same(path: Path, expected: dict[str, Any], found: dict[str, Any]) -> None:
    different = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if different:
        detail = "; ".join(f"{key}: expected {expected.get(key)!r}, got {found.get(key)!r}" for key in different)
        raise DataError(f"{path} was written with other settings ({detail}); use another folder or the same settings")


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
