"""Grids of images as PNG files that carry the settings they were made with.

A grid has one line of images per prompt and the prompt above it. The settings are JSON in a text chunk of the PNG, so
that a picture found on a disk a year later still says which checkpoint, prompts, seed and guidance made it:

    save_grid("samples.png", images, columns=8, titles=["a red apple"], settings={"seed": 0})
    read_settings("samples.png")["seed"]
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from genmodel.errors import DataError, InputError

__all__ = ["KEY", "enlarged", "make_grid", "read_settings", "save_grid", "save_png"]

KEY = "genmodel"
"""Keyword of the PNG text chunk that holds the settings."""

_PAPER, _INK = (255, 255, 255), (32, 32, 32)
_TEXT = 13


def make_grid(
    images: Tensor | NDArray[np.uint8],
    columns: int,
    titles: Sequence[str] = (),
    *,
    first: Mapping[int, Image.Image] | None = None,
    gap: int = 2,
    smallest: int = 96,
) -> Image.Image:
    """Images in lines of `columns`, with a title above each line.

    Args:
        images: uint8 (n, 3, h, w), line after line.
        columns: images in a line, at least 1.
        titles: one per line, or none; a long one is cut to the width of the grid.
        first: a picture (such as the image that was asked about) to put before line i, in a column of its own.
        gap: pixels between images.
        smallest: images with a shorter side are enlarged by a whole factor up to about this side, so that their pixels
            can be seen.

    Returns:
        An RGB image.

    Raises:
        InputError: images of another shape or type, or as many titles as there are no lines.
    """
    pixels = _pixels(images)
    if columns < 1:
        raise InputError(f"columns: expected at least 1, got {columns}")
    lines = math.ceil(len(pixels) / columns)
    if titles and len(titles) != lines:
        raise InputError(f"titles: expected {lines}, one per line, got {len(titles)}")
    pixels = enlarged(pixels, smallest)
    height, width = pixels.shape[1:3]
    lead = 1 if first else 0
    above = _TEXT + 8 if titles else 0
    total = (columns + lead) * (width + gap) + gap
    sheet = Image.new("RGB", (total, lines * (height + gap + above) + gap), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    for line in range(lines):
        top = line * (height + gap + above) + gap
        if titles:
            pen.text((gap, top + 2), _cut(titles[line], pen, font, total - 2 * gap), fill=_INK, font=font)
        if first and line in first:
            sheet.paste(first[line].convert("RGB").resize((width, height)), (gap, top + above))
        for place, image in enumerate(pixels[line * columns : (line + 1) * columns]):
            sheet.paste(Image.fromarray(image), (gap + (place + lead) * (width + gap), top + above))
    return sheet


def save_grid(
    path: str | os.PathLike[str],
    images: Tensor | NDArray[np.uint8],
    columns: int,
    titles: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Writes :func:`make_grid`'s picture as PNG, with `settings` in its metadata.

    Args:
        path: where; folders above it are made.
        images: uint8 (n, 3, h, w).
        columns: images in a line.
        titles: one per line, or none.
        settings: anything JSON can say; paths are written as text.
        options: those of :func:`make_grid`.

    Raises:
        DataError: the file cannot be written.
        InputError: as :func:`make_grid`.
    """
    return save_png(path, make_grid(images, columns, titles, **options), settings)


def save_png(path: str | os.PathLike[str], image: Image.Image, settings: Mapping[str, Any] | None = None) -> Path:
    """Writes a PNG with `settings` as JSON in its metadata, under another name first, so never half a file."""
    place = Path(path)
    if place.suffix.lower() != ".png":
        raise InputError(f"grid: expected a name that ends in .png, got {place}")
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt(KEY, json.dumps(dict(settings or {}), default=str, ensure_ascii=False))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                image.save(file, format="PNG", pnginfo=notes, optimize=True)
            Path(name).chmod(0o644)
            Path(name).replace(place)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise DataError(f"{place}: cannot be written: {error.strerror or error}") from error
    return place


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings that :func:`save_grid` wrote into a PNG.

    Raises:
        DataError: no PNG there, or one without settings of ours.
    """
    try:
        with Image.open(path) as image:
            image.load()  # text chunks may stand after the pixels
            text = getattr(image, "text", {}).get(KEY)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path}: expected a PNG, got {error}") from error
    if text is None:
        raise DataError(f"{path}: expected a PNG with a text chunk {KEY!r}, got none")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: its settings are not JSON: {error}") from error
    return dict(found)


def enlarged(pixels: NDArray[np.uint8], smallest: int) -> NDArray[np.uint8]:
    """uint8 (n, h, w, 3) enlarged by the whole factor that brings the shorter side to about `smallest` pixels."""
    factor = max(1, round(smallest / max(1, min(pixels.shape[1:3]))))
    return pixels if factor == 1 else pixels.repeat(factor, axis=1).repeat(factor, axis=2)


def _pixels(images: Tensor | NDArray[np.uint8]) -> NDArray[np.uint8]:
    array = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    if array.ndim != 4 or array.shape[1] != 3 or array.dtype != np.uint8 or len(array) == 0:
        raise InputError(f"images: expected uint8 of shape (n, 3, h, w) with n >= 1, got {array.dtype} {array.shape}")
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def _cut(text: str, pen: ImageDraw.ImageDraw, font: Any, room: int) -> str:
    text = " ".join(text.split())
    if pen.textlength(text, font=font) <= room:
        return text
    while text and pen.textlength(text + "...", font=font) > room:
        text = text[:-1]
    return text + "..."
