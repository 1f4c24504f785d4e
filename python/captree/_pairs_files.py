"""The folder of a run of pairs: whole Parquet files, and a state file that says from where drawing goes on.

A file is written under a temporary name, made durable and renamed; then the state file, which lists it with its
checksum, is replaced in the same way. So whatever is listed is whole, and what a killed run left besides is written
again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from captree._caps import Caps, fixed_size_list
from captree._pairs_batches import Batch
from captree._pairs_job import Job, check_same
from captree.errors import FormatVersionError, InvalidParameterError, StorageError

STATE = ".pairs.json"
"""Its first character hides it from pyarrow, DuckDB, datasets and captree, which then read the folder as Parquet."""

_VERSION = 1

_TEMPORARY = (f"{STATE}.tmp", ".part-*.parquet.tmp")


@dataclass(frozen=True)
class Shard:
    """A whole file.

    Attributes:
        pairs: pairs in it.
        bytes: its size.
        sha256: its checksum.
        batch: the number of the batch that its last pair is from.
        first: the number of that batch's first pair in the run.
        before: the tally before that batch.
    """

    pairs: int
    bytes: int
    sha256: str
    batch: int
    first: int
    before: dict[str, Any]


class Lines(NamedTuple):
    """Pairs as they are stored."""

    rows: NDArray[np.int64]
    centers: NDArray[np.float32]
    max_cos_distance: NDArray[np.float32]


class PairsFolder:
    """A run's folder; made by :func:`pairs_folder`, which holds its lock.

    Attributes:
        shards: the whole files.
        totals: the tally of a run that is done, or None.
    """

    def __init__(self, path: Path, job: Job) -> None:
        self.path = path
        self.shards: list[Shard] = []
        self.totals: dict[str, Any] | None = None
        self._job = job
        left_over = {file for pattern in _TEMPORARY for file in path.glob(pattern)}
        begun = self._state.exists()
        if begun:
            self._load()
        elif set(path.iterdir()) - left_over:
            raise InvalidParameterError(
                f"expected an empty folder, or one with pairs of the same call, got {path} with other files in it",
                parameter="out",
            )
        for file in left_over:
            file.unlink()
        if not begun:
            self._save()

    @property
    def pairs(self) -> int:
        """Pairs in whole files."""
        return sum(shard.pairs for shard in self.shards)

    def file(self, number: int) -> Path:
        """The file of this number."""
        return self.path / f"part-{number:05}.parquet"

    def files(self) -> list[Path]:
        """The whole files, in order."""
        return [self.file(number) for number in range(len(self.shards))]

    def add(self, shard: Shard) -> None:
        """Lists a file that is whole and durable."""
        self.shards.append(shard)
        self._save()

    def finish(self, totals: dict[str, Any]) -> None:
        """Marks the run as done."""
        self.totals = totals
        self._save()

    def forget(self) -> None:
        """Leaves the folder as empty as it was, where no file is listed; not where only the first one was deleted."""
        if not self.shards and all(file == self.file(0) for file in self.path.glob("part-*.parquet")):
            self.file(0).unlink(missing_ok=True)
            self._state.unlink(missing_ok=True)

    def check(self, step: Callable[[int], object]) -> None:
        """Reads every listed file and compares its checksum; `step` is told the number of bytes.

        Raises:
            StorageError: a file that is not as it was written.
        """
        done = 0
        for shard, file in zip(self.shards, self.files(), strict=True):
            found = _sha256(file)
            if found != shard.sha256:
                raise _damaged(file, f"SHA-256 {shard.sha256}", found)
            done += shard.bytes
            step(done)

    def read(self, start: int, stop: int) -> Lines:
        """The pairs with these numbers."""
        tables = list(self._tables(start, stop, ["row", "center", "max_cos_distance"]))
        return Lines(
            np.concatenate([table["row"].to_numpy() for table in tables]),
            np.concatenate([np.array(Caps.from_arrow(table).centers) for table in tables]),
            np.concatenate([table["max_cos_distance"].to_numpy() for table in tables]),
        )

    def rows(self, stop: int) -> Iterator[NDArray[np.int64]]:
        """The rows of the pairs before this number, file by file; without the -1 of empty caps."""
        for table in self._tables(0, stop, ["row"]):
            rows = table["row"].to_numpy()
            yield rows[rows >= 0]

    def _tables(self, start: int, stop: int, columns: list[str]) -> Iterator[Any]:
        import pyarrow.parquet as pq

        first = 0
        for shard, file in zip(self.shards, self.files(), strict=True):
            begin, end = max(start - first, 0), min(stop - first, shard.pairs)
            if begin < end:
                yield pq.read_table(file, columns=columns).slice(begin, end - begin)
            first += shard.pairs

    @property
    def _state(self) -> Path:
        return self.path / STATE

    def _save(self) -> None:
        shards = [vars(shard) for shard in self.shards]
        content = json.dumps({"job": self._job, "shards": shards, "totals": self.totals})
        about = {"captree_pairs": _VERSION, "sha256": hashlib.sha256(content.encode()).hexdigest()}
        temporary = self.path / _TEMPORARY[0]
        try:
            temporary.write_text(f"{json.dumps(about)}\n{content}\n", encoding="utf-8")
            put(temporary, self._state)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _load(self) -> None:
        try:
            about, content = self._state.read_text(encoding="utf-8").splitlines()
            version, checksum = (json.loads(about)[key] for key in ("captree_pairs", "sha256"))
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(self._state, "the state of write_pairs", "something else") from error
        if version != _VERSION:
            raise FormatVersionError(f"{self._state}: expected version {_VERSION} of the state, got {version}")
        found = hashlib.sha256(content.encode()).hexdigest()
        if checksum != found:
            raise _damaged(self._state, f"SHA-256 {checksum}", found)
        state = json.loads(content)
        check_same(state["job"], self._job, self.path)
        for entry in state["shards"]:
            shard, file = Shard(**entry), self.file(len(self.shards))
            if not file.exists():
                return  # deleted, since it was damaged perhaps: the run goes on from there
            size = file.stat().st_size
            if size != shard.bytes:
                raise _damaged(file, f"{shard.bytes} bytes", str(size))
            self.shards.append(shard)
        self.totals = state["totals"]


@contextmanager
def pairs_folder(path: Path, job: Job) -> Iterator[PairsFolder]:
    """The folder of a job, for this process alone, from where an earlier run left it; made when missing.

    Raises:
        InvalidParameterError: the folder has another job or other files.
        StorageError: another process writes there, or something in it is damaged.
        FormatVersionError: the state is of another version of captree.
    """
    path.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        folder = PairsFolder(path, job)
        try:
            yield folder
        except BaseException:
            with suppress(OSError):
                folder.forget()
            raise


class ShardWriter:
    """Writes pairs to the files of a folder that are still missing.

    Args:
        pa: pyarrow.
        folder: the folder.
        dim: dimension of the centers.
        size: pairs of a file, by its number.
        counts: whether there are the columns count and selectivity.
        about: what is kept in the metadata of each file.

    Attributes:
        counts: as given.
        written: pairs written, those of earlier calls too.
    """

    def __init__(
        self, pa: Any, folder: PairsFolder, dim: int, size: Callable[[int], int], counts: bool, about: Job
    ) -> None:
        self._pa = pa
        self._folder = folder
        self._size = size
        self.counts = counts
        fields = [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("center", pa.list_(pa.float32(), dim), nullable=False),
            pa.field("max_cos_distance", pa.float32(), nullable=False),
        ]
        if counts:
            fields.append(pa.field("count", pa.int64(), nullable=False))
            fields.append(pa.field("selectivity", pa.float64(), nullable=False))
        self._schema = pa.schema(fields, metadata={"captree": json.dumps(about)})
        self._writer: Any = None
        self._in_file = 0
        self.written = folder.pairs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            with suppress(Exception):
                self._writer.close()
        self._temporary().unlink(missing_ok=True)

    def write(self, rows: NDArray[np.int64], caps: Caps, more: tuple[NDArray[Any], ...], batch: Batch) -> None:
        """Appends the last pairs of a batch, with the arrays of further columns."""
        while len(rows):
            fits = self._size(len(self._folder.shards)) - self._in_file
            self._append(rows[:fits], caps[:fits], [column[:fits] for column in more])
            rows, caps, more = rows[fits:], caps[fits:], tuple(column[fits:] for column in more)
            if self._in_file == self._size(len(self._folder.shards)):
                self._finish_file(batch)

    def _append(self, rows: NDArray[np.int64], caps: Caps, more: list[NDArray[Any]]) -> None:
        pa = self._pa
        import pyarrow.parquet as pq

        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._temporary(), self._schema, compression="none", use_dictionary=False, write_statistics=["row"]
            )
        columns = [
            pa.array(rows),
            fixed_size_list(pa, caps.centers),
            pa.array(caps.max_cos_distance.astype(np.float32)),
            *(pa.array(column) for column in more),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._in_file += len(rows)
        self.written += len(rows)

    def _finish_file(self, batch: Batch) -> None:
        self._writer.close()
        temporary, file = self._temporary(), self._folder.file(len(self._folder.shards))
        origin = (batch.number, batch.first, batch.before)
        shard = Shard(self._in_file, temporary.stat().st_size, _sha256(temporary), *origin)
        put(temporary, file)
        self._writer, self._in_file = None, 0
        self._folder.add(shard)

    def _temporary(self) -> Path:
        return self._folder.path / f".part-{len(self._folder.shards):05}.parquet.tmp"


def put(temporary: Path, file: Path) -> None:
    """Gives a file its name, so that even after a power cut it is there as a whole or not at all."""
    with temporary.open("r+b") as opened:
        os.fsync(opened.fileno())
    temporary.replace(file)
    if sys.platform != "win32":  # where folders cannot be opened
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the folder for this process; the lock ends with the process, however it ends."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    folder = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"another process is writing pairs to {path}") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(folder)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _damaged(file: Path, expected: str, got: str) -> StorageError:
    again = "delete the folder" if file.name == STATE else "delete it"
    return StorageError(f"{file} is damaged: expected {expected}, got {got}; {again} and run again, to draw it anew")
