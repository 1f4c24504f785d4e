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
from captree._paths import absolute, files_below
from captree.errors import CaptreeError
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
    """Image files below a folder, named by their path in it.

    `files` are those to take, in their order.
    """

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self.folder = folder
        self.paths = [file.relative_to(folder).as_posix() for file in files]

    def read(self, position: int) -> bytes:
        """The bytes of one file."""
        return (self.folder / self.paths[position]).read_bytes()


class ParquetSource(ImageSource):
    """A column of encoded images in one or more Parquet files.

    The column is `column`, or the only one that holds bytes (``binary``, or the ``struct<bytes, path>`` of Hugging Face
    data sets). A string column ``path`` or ``key``, where there is one, names the images; otherwise the file does, by
    its path below `root`, and the row.
    """

    def __init__(self, files: Sequence[Path], column: str | None = None, root: Path | None = None) -> None:
        self.files = [pq.ParquetFile(path, memory_map=True) for path in files]
        self.column = column or _bytes_column(files[0], self.files[0].schema_arrow)
        self.groups: list[tuple[int, int, int]] = []  # first position, file, row group
        paths: list[str] = []
        for number, (path, file) in enumerate(zip(files, self.files, strict=True)):
            schema = file.schema_arrow
            if self.column not in schema.names:
                raise DataError(f"{path}: expected a column {self.column!r}, got {schema.names}")
            first = len(paths)
            paths += _parquet_names(_name(path, root), file, self.column)
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
    """Image members of one or more uncompressed tar files (webdataset shards), in the order they were written.

    Of several files, the members' names begin with the file's path below `root`.
    """

    def __init__(self, files: Sequence[Path], root: Path | None = None) -> None:
        self.files = list(files)
        self.paths = paths = []
        self._places: list[tuple[int, int, int]] = []  # file, offset, length
        for number, path in enumerate(files):
            try:
                with tarfile.open(path, "r:") as tar:
                    for member in tar:
                        if member.isfile() and Path(member.name).suffix.lower() in EXTENSIONS:
                            paths.append(member.name if len(files) == 1 else f"{_name(path, root)}/{member.name}")
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
    """Open `source`: a folder of images, of Parquet or of tar files, one such file, or a source that is open.

    Folders are read with their subfolders, in natural order (``9.tar`` before ``10.tar``), without what begins with
    ``.`` or ``_``. They may be as img2dataset writes them: Parquet files without images, beside tars or loose images,
    are its notes and are left out.

    `column` names the Parquet column. Raises DataError when nothing is there or something cannot be read, and
    ConfigError when a folder holds more than one kind.
    """
    if isinstance(source, ImageSource):
        return source
    path = Path(absolute("images", source))
    if not path.exists():
        raise DataError(f"no such file or folder: {path}")
    opened: ImageSource
    if path.is_dir():
        opened = _open_folder(path, column)
    elif path.suffix == ".parquet":
        opened = ParquetSource([path], column)
    elif path.suffix == ".tar":
        opened = TarSource([path])
    elif path.suffix == ".npy":
        opened = ArraySource(np.load(path, mmap_mode="r"))
    else:
        raise ConfigError(f"expected a folder, a .parquet, a .tar or an .npy file of images, got {path}")
    if len(opened) == 0:
        raise DataError(f"{path} holds no images (known endings: {', '.join(EXTENSIONS)})")
    return opened


def _open_folder(folder: Path, column: str | None) -> ImageSource:
    try:
        files = list(files_below(folder))
    except (CaptreeError, OSError) as error:
        raise DataError(str(error)) from error
    tars = [file for file in files if file.suffix.lower() == ".tar"]
    images = [file for file in files if file.suffix.lower() in EXTENSIONS]
    tables = [file for file in files if file.suffix.lower() == ".parquet"]
    if tars or images:
        tables = [file for file in tables if _holds_images(file, column)]
    present = [what for what, found in (("tar files", tars), ("loose images", images), ("Parquet", tables)) if found]
    if len(present) > 1:
        raise ConfigError(f"{folder} holds images in {' and '.join(present)}: name the one kind by its own folder")
    if tars:
        return TarSource(tars, folder)
    return ParquetSource(tables, column, folder) if tables else FolderSource(folder, images)


def _name(path: Path, root: Path | None) -> str:
    return path.name if root is None else path.relative_to(root).as_posix()


def decode_image(data: bytes) -> Image.Image:
    """An RGB image of encoded bytes, upright as its EXIF says, transparency over white; raises DataError if broken."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            upright = _eight_bits(ImageOps.exif_transpose(image))
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                rgba = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            return upright.convert("RGB")
    except UnidentifiedImageError as error:  # its message holds a memory address, different in every run
        raise DataError(f"no image format that Pillow knows ({len(data)} bytes)") from error
    # On damaged files Pillow raises nearly anything: OSError, SyntaxError, ValueError, struct.error, its bomb error.
    except Exception as error:
        raise DataError(f"{type(error).__name__}: {error}") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of 16 bits in 8: Pillow would cut them off at 255 and show white. Other images as they are."""
    if not (image.mode.startswith("I;16") or image.mode == "I"):
        return image
    grey = np.asarray(image).astype(np.int64)
    if image.mode == "I" and (grey.min() < 0 or grey.max() > 65_535):
        raise DataError(f"expected grey values of 16 bits, got {grey.min()} to {grey.max()}")
    return Image.fromarray(((grey * 255 + 32_767) // 65_535).astype(np.uint8))


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


def _byte_columns(schema: pa.Schema) -> list[str]:
    return [
        field.name
        for field in schema
        if pa.types.is_binary(field.type)
        or pa.types.is_large_binary(field.type)
        or (pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]


def _bytes_column(path: Path, schema: pa.Schema) -> str:
    names = _byte_columns(schema)
    if len(names) != 1:
        raise ConfigError(f"{path}: expected one column of bytes, got {names or schema.names}; name it with column=")
    return str(names[0])


def _holds_images(path: Path, column: str | None) -> bool:
    schema = pq.read_schema(path)
    return column in schema.names if column is not None else bool(_byte_columns(schema))


def _parquet_names(name: str, file: pq.ParquetFile, column: str) -> list[str]:
    schema = file.schema_arrow
    for naming in ("path", "key"):
        kind = schema.field(naming).type if naming in schema.names and column != naming else None
        if kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            names = file.read(columns=[naming])[naming].to_pylist()
            return [text if text is not None else f"{name}#{row}" for row, text in enumerate(names)]
    return [f"{name}#{row}" for row in range(file.metadata.num_rows)]
