"""Images from a folder, Parquet files or webdataset tars: listed once, read and decoded by position.

Every source gives its images in one fixed order, so a position means the same image in every run.
"""

from __future__ import annotations

import abc
import hashlib
import io
import tarfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from genmodel.errors import ConfigError, DataError, InputError

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageSource(abc.ABC):
    """A fixed sequence of encoded images.

    Attributes
    ----------
    paths : sequence of str
        A readable name of every image: its path in the folder or tar, or ``file.parquet#row``.
    """

    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    @abc.abstractmethod
    def read(self, position: int) -> bytes:
        """The encoded image; safe to call from several threads."""

    def fingerprint(self) -> str:
        """A digest of the names, in order: tells whether a source has changed since an earlier run."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(path.encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()[:16]


class FolderSource(ImageSource):
    """All image files below a folder, ordered by their path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
        self.paths = sorted(found)

    def read(self, position: int) -> bytes:
        """The bytes of one file."""
        return (self.folder / self.paths[position]).read_bytes()


class ParquetSource(ImageSource):
    """A column of encoded images in one or more Parquet files.

    The column is `column`, or the only one that holds bytes (``binary``, or the ``struct<bytes, path>`` of Hugging Face
    data sets). A string column ``path``, where there is one, names the images.
    """

    def __init__(self, files: Sequence[Path], column: str | None = None) -> None:
        self.files = [pq.ParquetFile(path, memory_map=True) for path in files]
        self.column = column or _bytes_column(files[0], self.files[0].schema_arrow)
        self.groups: list[tuple[int, int, int]] = []  # first position, file, row group
        paths: list[str] = []
        for number, (path, file) in enumerate(zip(files, self.files, strict=True)):
            schema = file.schema_arrow
            if self.column not in schema.names:
                raise DataError(f"{path}: expected a column {self.column!r}, got {schema.names}")
            first = len(paths)
            paths += _parquet_names(path, file, self.column)
            for group in range(file.num_row_groups):
                self.groups.append((first, number, group))
                first += file.metadata.row_group(group).num_rows
        self.paths = paths
        self._starts = np.array([start for start, _, _ in self.groups])
        self._cache: dict[int, pa.ChunkedArray] = {}
        self._lock = threading.Lock()

    def read(self, position: int) -> bytes:
        """The bytes of one row; raises DataError where it is null."""
        group = int(np.searchsorted(self._starts, position, side="right")) - 1
        # Reading goes in order, so the current row group and the one before it (threads lag a little) are enough.
        with self._lock:
            if group not in self._cache:
                for old in sorted(self._cache)[:-1] if len(self._cache) > 1 else ():
                    del self._cache[old]
                _, file, number = self.groups[group]
                self._cache[group] = self.files[file].read_row_group(number, columns=[self.column])[self.column]
            value = self._cache[group][position - int(self._starts[group])].as_py()
        if isinstance(value, dict):
            value = value.get("bytes")
        if value is None:
            raise DataError("the row holds no bytes")
        return bytes(value)


class TarSource(ImageSource):
    """Image members of one or more uncompressed tar files (webdataset shards), in the order they were written."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self.paths = paths = []
        self._places: list[tuple[int, int, int]] = []  # file, offset, length
        for number, path in enumerate(files):
            try:
                with tarfile.open(path, "r:") as tar:
                    for member in tar:
                        if member.isfile() and Path(member.name).suffix.lower() in EXTENSIONS:
                            paths.append(member.name if len(files) == 1 else f"{path.name}/{member.name}")
                            self._places.append((number, member.offset_data, member.size))
            except tarfile.TarError as error:
                raise DataError(f"{path}: expected an uncompressed tar file: {error}") from error
        self._local = threading.local()

    def read(self, position: int) -> bytes:
        """The bytes of one member."""
        number, offset, length = self._places[position]
        handles = self._local.__dict__.setdefault("handles", {})
        if number not in handles:
            for handle in handles.values():
                handle.close()
            handles.clear()
            handles[number] = self.files[number].open("rb")
        handles[number].seek(offset)
        return bytes(handles[number].read(length))


class ArraySource(ImageSource):
    """Images that are in memory already: uint8 (n, h, w, 3)."""

    def __init__(self, images: np.ndarray[Any, Any]) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise InputError(f"expected uint8 images (n, height, width, 3), got {images.dtype} {images.shape}")
        self.images = images
        self.paths = [f"{i:08d}" for i in range(len(images))]

    def read(self, position: int) -> bytes:
        """The image as PNG."""
        buffer = io.BytesIO()
        Image.fromarray(self.images[position]).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


def open_images(source: str | Path | ImageSource, column: str | None = None) -> ImageSource:
    """Open `source`: a folder of images, of .parquet or of .tar files, one such file, or a source that is open.

    `column` names the Parquet column. Raises DataError when nothing is there and ConfigError when a folder holds more
    than one kind.
    """
    if isinstance(source, ImageSource):
        return source
    path = Path(source)
    if not path.exists():
        raise DataError(f"no such file or folder: {path}")
    opened: ImageSource
    if path.is_file():
        if path.suffix == ".parquet":
            opened = ParquetSource([path], column)
        elif path.suffix == ".tar":
            opened = TarSource([path])
        elif path.suffix == ".npy":
            opened = ArraySource(np.load(path, mmap_mode="r"))
        else:
            raise ConfigError(f"expected a folder, a .parquet, a .tar or an .npy file of images, got {path}")
    else:
        packed = {suffix: sorted(path.glob(f"*{suffix}")) for suffix in (".parquet", ".tar")}
        present = [suffix for suffix, files in packed.items() if files]
        if len(present) > 1:
            raise ConfigError(f"{path} holds .parquet and .tar files: name the one kind by its own folder")
        if present == [".parquet"]:
            opened = ParquetSource(packed[".parquet"], column)
        elif present == [".tar"]:
            opened = TarSource(packed[".tar"])
        else:
            opened = FolderSource(path)
    if len(opened) == 0:
        raise DataError(f"{path} holds no images (known endings: {', '.join(EXTENSIONS)})")
    return opened


def decode_image(data: bytes) -> Image.Image:
    """An RGB image of encoded bytes, upright as its EXIF says, transparency over white; raises DataError if broken."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                rgba = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            return upright.convert("RGB")
    except UnidentifiedImageError as error:  # its message holds a memory address, different in every run
        raise DataError(f"no image format that Pillow knows ({len(data)} bytes)") from error
    # On damaged files Pillow raises nearly anything: OSError, SyntaxError, ValueError, struct.error, its bomb error.
    except Exception as error:
        raise DataError(f"{type(error).__name__}: {error}") from error


def square(image: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    """Resize the shorter side to `size` and crop the middle, as torchvision's Resize and CenterCrop do."""
    width, height = image.size
    if min(width, height) != size:
        if width <= height:
            width, height = size, int(size * height / width)
        else:
            width, height = int(size * width / height), size
        image = image.resize((width, height), resample)
    if (width, height) == (size, size):
        return image
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


class Decoded(NamedTuple):
    """One image of :func:`read_images`: its position, and either its pictures or the reason why there are none."""

    position: int
    pictures: tuple[np.ndarray[Any, Any], ...] | None
    reason: str | None


def read_images(
    source: ImageSource,
    positions: Sequence[int],
    prepare: Sequence[Callable[[Image.Image], np.ndarray[Any, Any]]],
    workers: int = 1,
) -> Iterator[Decoded]:
    """Decode images in `workers` threads (Pillow releases the GIL) and yield them in the order of `positions`.

    Each function of `prepare` makes one picture of the RGB image, such as a square of some size.
    """

    def one(position: int) -> Decoded:
        try:
            image = decode_image(source.read(position))
        except OSError as error:  # DataError is one
            return Decoded(position, None, str(error))
        return Decoded(position, tuple(function(image) for function in prepare), None)

    if workers <= 1:
        yield from map(one, positions)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = iter(positions)
        # A bounded queue: memory stays the same however long the source is.
        queue = deque(pool.submit(one, position) for position in islice(waiting, 4 * workers))
        try:
            while queue:
                done = queue.popleft()
                queue.extend(pool.submit(one, position) for position in islice(waiting, 1))
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def load_squares(
    source: str | Path | ImageSource, size: int, column: str | None = None, workers: int = 1, limit: int | None = None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """All images that can be read as squares in memory: uint8 (n, 3, size, size), and their positions int64 (n,).

    With `limit` at most so many, evenly spread over the source.
    """
    opened = open_images(source, column)
    positions = np.arange(len(opened))
    if limit is not None and limit < len(opened):
        positions = np.arange(limit) * len(opened) // limit
    images = np.empty((len(positions), 3, size, size), np.uint8)
    read: list[int] = []
    for decoded in read_images(opened, positions.tolist(), (lambda image: np.asarray(square(image, size)),), workers):
        if decoded.pictures is not None:
            images[len(read)] = decoded.pictures[0].transpose(2, 0, 1)
            read.append(decoded.position)
    return images[: len(read)], np.array(read, np.int64)


def _bytes_column(path: Path, schema: pa.Schema) -> str:
    names = [
        field.name
        for field in schema
        if pa.types.is_binary(field.type)
        or pa.types.is_large_binary(field.type)
        or (pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]
    if len(names) != 1:
        raise ConfigError(f"{path}: expected one column of bytes, got {names or schema.names}; name it with column=")
    return str(names[0])


def _parquet_names(path: Path, file: pq.ParquetFile, column: str) -> list[str]:
    schema = file.schema_arrow
    kind = schema.field("path").type if "path" in schema.names and column != "path" else None
    if kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        names = file.read(columns=["path"])["path"].to_pylist()
        return [name if name is not None else f"{path.name}#{row}" for row, name in enumerate(names)]
    return [f"{path.name}#{row}" for row in range(file.metadata.num_rows)]
