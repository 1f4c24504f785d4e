"""From what a user asks for to the centers and bounds of caps.

A center is the unit embedding of a text or of an image, or a point on the great arc between two of them:

- interpolations are points of the arc between two prompts;
- a text diff (DALL-E 2, Ramesh and others, 2022, section 3.3) rotates an image's embedding towards the direction in
  which one text's embedding differs from another's;
- the gap shift moves text embeddings by the vector between the mean text and the mean image, because a contrastive
  encoder keeps the two apart (Liang and others, 2022, "Mind the gap");
- retrieval puts a real image's embedding, drawn inside the text's cap, in the place of the text's.

The bound is a max_cos_distance, or the mass: the share of the training rows that the cap should hold.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from genmodel.errors import ConfigError, DataError, InputError
from genmodel.images import decode_image

__all__ = [
    "Prompt",
    "between",
    "bounds",
    "fit_shift",
    "image_prompts",
    "interpolate",
    "load_shift",
    "open_image",
    "plain_settings",
    "retrieve",
    "save_shift",
    "shifted",
    "slerp",
    "text_diff",
    "text_prompts",
    "unit",
]

Vector = NDArray[np.float32]

_PARALLEL = 1e-6


@dataclass(frozen=True)
class Prompt:
    """One center and where it comes from.

    Attributes:
        label: a text for people: the prompt itself, or the image's name.
        center: float32 (d,), unit: the center of the cap.
        target: float32 (d,), unit: the embedding of what was asked for, which samples are ranked and scored by. It is
            the center unless that was shifted.
        picture: the image that was asked about, if one was.
    """

    label: str
    center: Vector
    target: Vector
    picture: Path | None = None


def unit(rows: Any, name: str = "rows") -> Vector:
    """Rows (n, d) or (d,) at length one, computed in float64: float32 of the same shape.

    Raises:
        InputError: a row that is zero or not finite.
    """
    array = rows.detach().cpu() if isinstance(rows, torch.Tensor) else rows
    wide = np.asarray(array, np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    if not np.all(np.isfinite(length)) or np.any(length == 0):
        raise InputError(f"{name}: expected finite rows that are not zero, got some that are")
    return np.asarray(wide / length, np.float32)


def slerp(a: Any, b: Any, t: float | NDArray[Any]) -> Vector:
    """Points of the great arc from a to b (d,), which it divides in the ratio t : 1 - t.

    Args:
        a: where t = 0; any length but zero.
        b: where t = 1.
        t: a number, or (k,) of them.

    Returns:
        float32 unit (d,), or (k, d).

    Raises:
        InputError: antipodal ends, between which no arc is the shortest.
    """
    first, second = np.asarray(unit(a, "slerp"), np.float64), np.asarray(unit(b, "slerp"), np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise InputError(f"slerp: expected two vectors of one dimension, got {first.shape} and {second.shape}")
    if np.linalg.norm(first + second) < _PARALLEL:
        raise InputError("slerp: expected ends that are not antipodal, got opposite vectors")
    # The half-angle form keeps small angles, which the cosine has lost.
    angle = 2.0 * np.arctan2(np.linalg.norm(first - second), np.linalg.norm(first + second))
    places = np.asarray(t, np.float64)[..., None]
    if angle < _PARALLEL:
        return unit((1.0 - places) * first + places * second)
    return unit(np.sin((1.0 - places) * angle) * first + np.sin(places * angle) * second)


def text_prompts(
    encoder: Any, texts: Sequence[str], shift: Vector | None = None, shift_scale: float = 1.0
) -> list[Prompt]:
    """Prompts of texts.

    Args:
        encoder: gives ``text(prompts) -> (n, d)``.
        texts: one or more.
        shift: the vector of :func:`fit_shift`; it is *subtracted* from the text embeddings, which moves them to where
            the images are. Leave it out for a model that was trained on shifted centers (prior "gap-shift").
        shift_scale: how much of it.
    """
    if not texts:
        return []
    if any(not text.strip() for text in texts):
        raise ConfigError("prompt: expected words, got an empty text")
    targets = unit(encoder.text(list(texts)), "text embeddings")
    centers = targets if shift is None else shifted(targets, shift, -shift_scale)
    return [Prompt(text, center, target) for text, center, target in zip(texts, centers, targets, strict=True)]


def image_prompts(encoder: Any, paths: Sequence[str | os.PathLike[str]]) -> list[Prompt]:
    """Prompts of images: samples near one are its variations.

    Raises:
        DataError: a file that is missing or no image.
    """
    made = []
    for path in paths:
        picture = open_image(path)
        # As the encoder's own preprocessing shows it the images that were trained on.
        pixels = np.asarray(encoder.prepare(picture) if hasattr(encoder, "prepare") else picture)
        batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        center = unit(encoder.images(batch), str(path))[0]
        made.append(Prompt(Path(path).name, center, center, Path(path)))
    return made


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """An image file as RGB, as ``genmodel encode`` reads it: upright, transparent parts white.

    Raises:
        DataError: a file that is missing or no image.
    """
    try:
        return decode_image(Path(path).read_bytes())
    except DataError as error:
        raise DataError(f"{path}: expected an image, got {error}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def between(a: Prompt, b: Prompt, t: float) -> Prompt:
    """The prompt at `t` on the arc from a to b."""
    center = slerp(a.center, b.center, t)
    target = slerp(a.target, b.target, t)
    return Prompt(f"{a.label} -> {b.label}, {t:.2f}", center, target)


def interpolate(prompts: Sequence[Prompt], steps: int) -> list[Prompt]:
    """A walk from the first prompt to the last: `steps` points of every arc, both ends among them.

    Raises:
        ConfigError: fewer than two prompts or steps.
    """
    if len(prompts) < 2 or steps < 2:
        raise ConfigError(
            f"interpolate: expected at least 2 prompts and 2 steps, got {len(prompts)} prompt(s) and {steps} step(s)"
        )
    made = [prompts[0]]
    for a, b in itertools.pairwise(prompts):
        made += [between(a, b, step / (steps - 1)) for step in range(1, steps - 1)]
        made.append(b)
    return made


def text_diff(prompt: Prompt, before: Any, after: Any, amount: float, label: str = "text diff") -> Prompt:
    """The prompt rotated towards the direction from one text to another, as in DALL-E 2.

    Args:
        prompt: usually an image's.
        before: (d,) embedding of the text that describes what is there.
        after: (d,) embedding of the text that describes what should be there.
        amount: share of the arc from the prompt to the direction, in [0, 1]; DALL-E 2 goes to 0.25 to 0.5.
        label: what the change is called.

    Raises:
        ConfigError: texts of the same embedding, or an amount outside [0, 1].
    """
    if not 0.0 <= amount <= 1.0:
        raise ConfigError(f"text diff: expected an amount in [0, 1], got {amount}")
    direction = np.asarray(unit(after), np.float64) - np.asarray(unit(before), np.float64)
    if np.linalg.norm(direction) < _PARALLEL:
        raise ConfigError("text diff: expected two texts with different embeddings, got the same")
    center = slerp(prompt.center, unit(direction), amount)
    return replace(prompt, label=f"{prompt.label}: {label}, {amount:.2f}", center=center, target=center)


def fit_shift(texts: Any, images: Any) -> Vector:
    """The gap shift: mean text embedding minus mean image embedding, float32 (d,).

    Args:
        texts: (m, d) unit embeddings of texts of the kind that will be asked for; they need not describe the images.
        images: (n, d) unit embeddings of images; float16 is fine.
    """
    first, second = _matrix(texts, "texts"), _matrix(images, "images")
    if first.shape[1] != second.shape[1]:
        raise InputError(f"shift: expected one dimension, got texts {first.shape} and images {second.shape}")
    return np.asarray(first.mean(axis=0, dtype=np.float64) - second.mean(axis=0, dtype=np.float64), np.float32)


def shifted(rows: Any, shift: Any, scale: float = 1.0) -> Vector:
    """Rows (n, d) or (d,) plus `scale` times the shift, at length one again."""
    wide, vector = np.asarray(unit(rows), np.float64), np.asarray(shift, np.float64)
    if vector.shape != wide.shape[-1:]:
        raise InputError(f"shift: expected shape ({wide.shape[-1]},), got {vector.shape}")
    return unit(wide + scale * vector, "shifted rows")


def save_shift(path: str | os.PathLike[str], shift: Any) -> Path:
    """Writes a shift as .npy."""
    place = Path(path)
    if place.suffix != ".npy":
        raise ConfigError(f"shift: expected a name that ends in .npy, got {place}")
    place.parent.mkdir(parents=True, exist_ok=True)
    np.save(place, np.asarray(shift, np.float32))
    return place


def load_shift(path: str | os.PathLike[str]) -> Vector:
    """Reads a shift that :func:`save_shift` or numpy wrote.

    Raises:
        DataError: no .npy array of shape (d,) there.
    """
    try:
        vector = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: expected a .npy array, got {error}") from error
    if not isinstance(vector, np.ndarray) or vector.ndim != 1 or not np.all(np.isfinite(vector)):
        raise DataError(f"{path}: expected a finite array of shape (d,), got shape {getattr(vector, 'shape', None)}")
    return np.asarray(vector, np.float32)


def bounds(
    centers: Any, max_cos_distance: Sequence[float] = (), mass: Sequence[float] = (), tree: Any = None
) -> NDArray[np.float64]:
    """The bound of each center: float64 (p,) max cosine distances in [0, 2].

    Args:
        centers: (p, d) unit rows.
        max_cos_distance: one for all centers, or one for each.
        mass: instead of it: the share of the tree's rows, in (0, 1], that each cap is to hold. The bound is exact:
            ``tree.radius_for_mass``. 1 gives the null cap.
        tree: the :class:`captree.Tree` of the training embeddings; needed for `mass`.

    Raises:
        ConfigError: both or neither, a number outside its domain, or as many as fit neither one nor p.
    """
    count = len(centers)
    if bool(max_cos_distance) == bool(mass):
        raise ConfigError("expected one of max_cos_distance and mass, got " + ("both" if mass else "neither"))
    name, given = ("mass", mass) if mass else ("max_cos_distance", max_cos_distance)
    if len(given) not in (1, count):
        raise ConfigError(f"{name}: expected one for all or one for each of {count} prompts, got {len(given)}")
    values = np.broadcast_to(np.asarray(given, np.float64), (count,)).copy()
    low, high = (0.0, 1.0) if mass else (0.0, 2.0)
    if not np.all((values >= low) & (values <= high)) or (mass and not np.all(values > 0)):
        wanted = "in (0, 1]" if mass else "in [0, 2]"
        raise ConfigError(f"{name}: expected numbers {wanted}, got {[float(value) for value in given]}")
    if not mass:
        return values
    if tree is None:
        raise ConfigError("mass: expected a tree of the training embeddings, which gives the bound, got none (--tree)")
    made = np.full(count, 2.0)  # all the rows there are: who asks for them means the null cap
    for share in np.unique(values[values < 1.0]):
        same = values == share
        made[same] = tree.radius_for_mass(unit(np.asarray(centers)[same]), float(share))
    return made


def retrieve(tree: Any, centers: Any, max_cos_distance: Any, n: int, seed: int = 0) -> tuple[NDArray[np.int64], Vector]:
    """The retrieval prior: real embeddings, drawn uniformly from the training rows inside each cap.

    Args:
        tree: the :class:`captree.Tree` of the training embeddings.
        centers: (p, d) unit rows.
        max_cos_distance: (p,) or a number.
        n: rows per cap, drawn with replacement.
        seed: of the draw.

    Returns:
        Rows int64 (p, n), all inside, and their embeddings float32 (p, n, d), unit.

    Raises:
        ConfigError: a cap that holds no row; the message says how wide it has to be.
    """
    import captree

    rows_of = unit(np.atleast_2d(centers))
    limits = np.broadcast_to(np.asarray(max_cos_distance, np.float64), (len(rows_of),))
    rows = tree.sample(captree.Caps(rows_of, limits.copy()), k=n, seed=seed)
    empty = np.flatnonzero(rows[:, 0] < 0) if n else np.empty(0, np.int64)
    if empty.size:
        first = int(empty[0])
        nearest = float(tree.nearest(rows_of[first], 1).distances[0, 0])
        raise ConfigError(
            f"retrieval: expected training rows inside every cap, got none within {limits[first]:g} of prompt "
            f"{first + 1} (the nearest is at {nearest:.3f})"
        )
    return np.asarray(rows, np.int64), unit(tree.take(rows))


def plain_settings(config: Any, several: Sequence[str], paths: Sequence[str] = ()) -> None:
    """Makes tuples of what is given alone, and paths of texts, in a dataclass of settings that a program has filled.

    Args:
        config: the dataclass; changed in place.
        several: fields that hold tuples.
        paths: fields that hold a path, or a tuple of them.
    """
    for name in several:
        value = getattr(config, name)
        if isinstance(value, (str, os.PathLike, int, float)):
            setattr(config, name, (value,))
        elif isinstance(value, (list, np.ndarray)):
            setattr(config, name, tuple(value))
    for name in paths:
        value = getattr(config, name)
        if isinstance(value, str):
            setattr(config, name, Path(value))
        elif isinstance(value, tuple):
            setattr(config, name, tuple(Path(part) for part in value))


def _matrix(rows: Any, name: str) -> NDArray[Any]:
    array = np.asarray(rows.detach().cpu() if isinstance(rows, torch.Tensor) else rows)
    if array.ndim != 2 or len(array) == 0:
        raise InputError(f"{name}: expected embeddings of shape (n, d) with n >= 1, got {array.shape}")
    return array
