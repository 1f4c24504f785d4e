"""Reads the attributes of a scene back from its pixels, without any model.

The background is the median of the border; the object is what differs from it; its color is the nearest hue, its place
the centroid, its size the area, and its shape the template (rendered at that place and area) that overlaps it most.
What fits nothing well is `UNREADABLE`, so a blob is not counted as a circle.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .render import AREAS, ATTRIBUTES, CENTERS, HUES, IMAGE_SIZE, SHAPES, coverage

UNREADABLE = -1
# The smallest overlap (intersection over union) with a template, and the largest distances in hue and place, that still
# count. On rendered scenes all lie far inside; a tokenizer's reconstructions are reported in the study.
MIN_OVERLAP = 0.75
MAX_HUE_DISTANCE = 25.0
MAX_PLACE_DISTANCE = 5.0
AREA_RANGE = (25.0, 220.0)
_TEMPLATE_ANGLES = (-4.0, 0.0, 4.0)
_BATCH = 512


def read(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Attributes int64 (n, 4) of images uint8 (n, 3, 32, 32), in the order of `ATTRIBUTES`; -1 where unreadable."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"expected uint8 images (n, 3, {IMAGE_SIZE}, {IMAGE_SIZE}), got {images.dtype} {images.shape}")
    parts = [_read_batch(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    return np.concatenate(parts) if parts else np.empty((0, len(ATTRIBUTES)), dtype=np.int64)


def obeys(read_attributes: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each named attribute is as wanted, bool (n, 4); -1 in `wanted` means not named, hence obeyed."""
    same: NDArray[np.bool_] = (np.asarray(wanted) < 0) | (np.asarray(read_attributes) == np.asarray(wanted))
    return same


def _read_batch(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    pixels = images.astype(np.float64) / 255.0
    border = np.concatenate([pixels[:, :, 0], pixels[:, :, -1], pixels[:, :, :, 0], pixels[:, :, :, -1]], axis=2)
    background = np.median(border, axis=2)
    difference = pixels - background[:, :, None, None]
    strength = np.linalg.norm(difference, axis=1).reshape(len(images), -1)
    # The object's own color: the mean of the pixels that differ most, which leaves the blended edge out.
    peak = np.quantile(strength, 0.98, axis=1)
    core = strength >= 0.8 * np.maximum(peak, 1e-6)[:, None]
    flat = pixels.reshape(len(images), 3, -1)
    color = (flat * core[:, None]).sum(2) / np.maximum(core.sum(1), 1)[:, None]
    offset = color - background
    alpha = np.einsum("nchw,nc->nhw", difference, offset) / np.maximum((offset**2).sum(1), 1e-9)[:, None, None]
    alpha = np.clip(alpha, 0.0, 1.0)
    # Faint differences are texture of the background, not object.
    alpha[alpha < 0.15] = 0.0

    area = alpha.sum((1, 2))
    grid = np.arange(IMAGE_SIZE) + 0.5
    total = np.maximum(area, 1e-9)
    place = np.stack([(alpha.sum(1) * grid).sum(1) / total, (alpha.sum(2) * grid).sum(1) / total], axis=1)

    visible = (peak > 0.2) & (area > AREA_RANGE[0]) & (area < AREA_RANGE[1])
    out = np.full((len(images), len(ATTRIBUTES)), UNREADABLE, dtype=np.int64)
    out[:, 0] = np.where(visible, _shape(alpha, place, area), UNREADABLE)
    out[:, 1] = np.where(visible, _color(color), UNREADABLE)
    out[:, 2] = np.where(visible, (area > np.sqrt(AREAS.prod())).astype(np.int64), UNREADABLE)
    out[:, 3] = np.where(visible, _nearest(np.linalg.norm(place[:, None] - CENTERS, axis=2), MAX_PLACE_DISTANCE), -1)
    return out


def _shape(alpha: NDArray, place: NDArray, area: NDArray) -> NDArray[np.int64]:
    overlap = np.zeros((len(alpha), len(SHAPES)))
    for shape in range(len(SHAPES)):
        for angle in _TEMPLATE_ANGLES:
            template = coverage(np.full(len(alpha), shape), place, np.maximum(area, 1.0), np.full(len(alpha), angle))
            both = np.minimum(alpha, template).sum((1, 2))
            either = np.maximum(np.maximum(alpha, template).sum((1, 2)), 1e-9)
            overlap[:, shape] = np.maximum(overlap[:, shape], both / either)
    return _nearest(1.0 - overlap, 1.0 - MIN_OVERLAP)


def _color(color: NDArray) -> NDArray[np.int64]:
    high, low = color.max(1), color.min(1)
    spread = np.maximum(high - low, 1e-9)
    red, green, blue = color.T
    hue = 60.0 * np.where(
        high == red,
        ((green - blue) / spread) % 6.0,
        np.where(high == green, (blue - red) / spread + 2.0, (red - green) / spread + 4.0),
    )
    away = abs(hue[:, None] - HUES)
    found = _nearest(np.minimum(away, 360.0 - away), MAX_HUE_DISTANCE)
    return np.where(spread / np.maximum(high, 1e-9) > 0.4, found, UNREADABLE)


def _nearest(distance: NDArray, most: float) -> NDArray[np.int64]:
    best = distance.argmin(1)
    return np.where(distance[np.arange(len(distance)), best] <= most, best, UNREADABLE)
