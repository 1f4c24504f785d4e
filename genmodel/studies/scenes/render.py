"""Draws scenes of one shape on a gray background, with everything about them known.

An image is 32x32 RGB. Four attributes are named in captions (`ATTRIBUTES`); the rest, such as the gray level and the
exact place, is jitter that no caption mentions. Shapes of the same size have the same *area*, so that size can be read
without knowing the shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = 32
SHAPES = ("circle", "square", "triangle", "cross")
COLORS = ("red", "yellow", "green", "cyan", "blue", "purple")
SIZES = ("small", "large")
POSITIONS = ("top left", "top right", "center", "bottom left", "bottom right")
ATTRIBUTES: dict[str, tuple[str, ...]] = {"shape": SHAPES, "color": COLORS, "size": SIZES, "position": POSITIONS}

HUES = np.array([0.0, 55.0, 120.0, 180.0, 230.0, 295.0])
AREAS = np.array([49.0, 121.0])
CENTERS = np.array([[11.0, 11.0], [21.0, 11.0], [16.0, 16.0], [11.0, 21.0], [21.0, 21.0]])

HUE_JITTER = 8.0
PLACE_JITTER = 1.2
AREA_JITTER = 0.10
ANGLE_JITTER = 5.0

# One row per combination of attribute values: (240, 4), in the order of ATTRIBUTES.
COMBINATIONS: NDArray[np.int64] = np.stack(
    np.meshgrid(*[np.arange(len(values)) for values in ATTRIBUTES.values()], indexing="ij"), axis=-1
).reshape(-1, len(ATTRIBUTES))


@dataclass(frozen=True)
class Scenes:
    """What `n` scenes show.

    `attributes`: int64 (n, 4), an index into each value of `ATTRIBUTES`. `place`: float (n, 2), the centroid (x, y) in
    pixels. `area`: float (n,), in pixels. `angle`: float (n,), degrees. `color` and `background`: float (n, 3), RGB in
    [0, 1].
    """

    attributes: NDArray[np.int64]
    place: NDArray[np.float64]
    area: NDArray[np.float64]
    angle: NDArray[np.float64]
    color: NDArray[np.float64]
    background: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.attributes)


def draw_scenes(attributes: NDArray[np.int64], seed: int | np.random.SeedSequence) -> Scenes:
    """Scenes with the given attributes, int64 (n, 4), and jitter drawn from `seed`."""
    attributes = np.asarray(attributes, dtype=np.int64)
    if attributes.ndim != 2 or attributes.shape[1] != len(ATTRIBUTES):
        raise ValueError(f"expected attributes of shape (n, {len(ATTRIBUTES)}), got {attributes.shape}")
    rng = np.random.default_rng(seed)
    n = len(attributes)
    hue = HUES[attributes[:, 1]] + rng.uniform(-HUE_JITTER, HUE_JITTER, n)
    gray = rng.uniform(0.08, 0.92, n)
    return Scenes(
        attributes=attributes,
        place=CENTERS[attributes[:, 3]] + rng.uniform(-PLACE_JITTER, PLACE_JITTER, (n, 2)),
        area=AREAS[attributes[:, 2]] * np.exp(rng.uniform(-AREA_JITTER, AREA_JITTER, n)),
        angle=rng.uniform(-ANGLE_JITTER, ANGLE_JITTER, n),
        color=hsv_to_rgb(hue, rng.uniform(0.85, 1.0, n), rng.uniform(0.8, 1.0, n)),
        background=np.repeat(gray[:, None], 3, axis=1),
    )


def render(scenes: Scenes) -> NDArray[np.uint8]:
    """Anti-aliased images, uint8 (n, 3, 32, 32)."""
    alpha = coverage(scenes.attributes[:, 0], scenes.place, scenes.area, scenes.angle)[:, None]
    image = alpha * scenes.color[:, :, None, None] + (1.0 - alpha) * scenes.background[:, :, None, None]
    return np.round(image * 255.0).astype(np.uint8)


def coverage(
    shape: NDArray[np.int64], place: NDArray[np.float64], area: NDArray[np.float64], angle: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How much of each pixel a shape covers, float (n, 32, 32) in [0, 1].

    `place` is its centroid (x, y) in pixels, `area` in pixels, `angle` in degrees. The edge is one pixel wide, from the
    signed distance to the outline.
    """
    grid = np.arange(IMAGE_SIZE) + 0.5
    dx = grid[None, None, :] - np.asarray(place)[:, 0, None, None]
    dy = grid[None, :, None] - np.asarray(place)[:, 1, None, None]
    turn = np.deg2rad(np.asarray(angle, dtype=np.float64))[:, None, None]
    x = np.cos(turn) * dx + np.sin(turn) * dy
    y = np.cos(turn) * dy - np.sin(turn) * dx
    scale = np.sqrt(np.asarray(area, dtype=np.float64))[:, None, None]
    distance = np.empty(np.broadcast_shapes(x.shape, y.shape))
    for index, name in enumerate(SHAPES):
        chosen = np.asarray(shape) == index
        if chosen.any():
            distance[chosen] = _OUTLINES[name](x[chosen], y[chosen], scale[chosen])
    covered: NDArray[np.float64] = np.clip(0.5 - distance, 0.0, 1.0)
    return covered


def _circle(x, y, scale):  # type: ignore[no-untyped-def]
    return np.hypot(x, y) - scale / np.sqrt(np.pi)


def _square(x, y, scale):  # type: ignore[no-untyped-def]
    return np.maximum(abs(x), abs(y)) - scale / 2


def _triangle(x, y, scale):  # type: ignore[no-untyped-def]
    # Equilateral, pointing up; the inradius follows from the area 3 sqrt(3) r^2.
    inradius = scale / np.sqrt(3 * np.sqrt(3))
    side = np.sqrt(3) / 2
    return np.maximum(np.maximum(y, side * x - y / 2), -side * x - y / 2) - inradius


def _cross(x, y, scale):  # type: ignore[no-untyped-def]
    # A plus whose arms are a third of its length L wide: area 5/9 L^2.
    half = 1.5 * scale / np.sqrt(5)
    arm = half / 3
    return np.minimum(
        np.maximum(abs(x) - half, abs(y) - arm),
        np.maximum(abs(x) - arm, abs(y) - half),
    )


_OUTLINES = {"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross}


def hsv_to_rgb(hue: NDArray, saturation: NDArray, value: NDArray) -> NDArray[np.float64]:
    """RGB in [0, 1], float (n, 3), from hue in degrees and saturation and value in [0, 1]."""
    sector = (hue[:, None] / 60.0 + np.array([5.0, 3.0, 1.0])) % 6.0
    drop = np.clip(np.minimum(sector, 4.0 - sector), 0.0, 1.0)
    rgb: NDArray[np.float64] = value[:, None] * (1.0 - saturation[:, None] * drop)
    return rgb
