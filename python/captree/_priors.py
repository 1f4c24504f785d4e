"""Caps to train on: centers between two random rows, bounds from a mixture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from captree import _params
from captree._caps import Caps, unit_rows
from captree.errors import InvalidCapsError, InvalidParameterError, InvalidTypeError

if TYPE_CHECKING:
    from captree._tree import Tree

Radii = Callable[[np.random.Generator, int], Any] | float
"""Bounds: ``radii(rng, n)`` gives (n,) max cosine distances in [0, 2]; a number is every cap's bound."""

Centers = Callable[[np.random.Generator, "Tree", int], Any]
"""Centers: ``centers(rng, tree, n)`` gives (n, d) unit vectors, or a tuple of them and their source rows (n, 2)."""

BLOCK = 4096
"""Caps made at a time; part of what a seed means."""

_PARALLEL = 1e-6


@dataclass(frozen=True)
class RadiusMixture:
    """Bounds from a mixture of uniform distributions, as max cosine distances.

    Attributes:
        parts: (weight, low, high) of each part; the weights sum to 1, and 0 <= low <= high <= 2.
    """

    parts: tuple[tuple[float, float, float], ...]

    def __post_init__(self) -> None:
        if not self.parts or not math.isclose(sum(weight for weight, _, _ in self.parts), 1.0, abs_tol=1e-9):
            raise InvalidParameterError(f"expected weights that sum to 1, got {[part[0] for part in self.parts]}")
        for weight, low, high in self.parts:
            if not (weight >= 0 and 0 <= low <= high <= 2):
                raise InvalidParameterError(f"expected weight >= 0 and 0 <= low <= high <= 2, got {weight, low, high}")

    def __call__(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        """(n,) bounds in [0, 2]."""
        which, place = rng.random((n, 2)).T
        weights, low, high = np.array(self.parts, dtype=np.float64).T
        part = np.minimum(np.searchsorted(np.cumsum(weights), which, side="right"), len(self.parts) - 1)
        return np.asarray(low[part] + (high - low)[part] * place)


DEFAULT_RADII = RadiusMixture(((0.95, 0.0, 1.0), (0.05, 1.0, 2.0)))
"""The published prior of max cosine distances: U[0, 1] with probability 0.95, else U[1, 2]."""


class TrainingCaps(Caps):
    """Caps with the rows their centers were made from; made by :func:`training_caps`."""

    __slots__ = ("_sources",)

    _sources: NDArray[np.int64]

    def __init__(self, centers: Any, max_cos_distance: Any, sources: Any = None) -> None:
        super().__init__(centers, max_cos_distance)
        object.__setattr__(self, "_sources", _checked_sources(sources, len(self)))

    @property
    def sources(self) -> NDArray[np.int64]:
        """int64 (q, 2), the two rows of each center; -1 where there is none. Read-only."""
        return self._sources

    def _set(self, *arrays: NDArray[Any]) -> None:
        super()._set(*arrays[:2])
        if len(arrays) == 3:
            object.__setattr__(self, "_sources", _checked_sources(arrays[2], len(self)))

    def _state(self) -> tuple[NDArray[Any], ...]:
        return self._centers, self._bounds, self._sources


def training_caps(
    tree: Tree, n: int, seed: int = 0, radii: Radii = DEFAULT_RADII, centers: Centers | None = None
) -> TrainingCaps:
    """`n` random caps to train a cap-conditioned model on.

    A center is the slerp of two rows drawn uniformly with replacement, at t ~ U[0, 1]: the point that divides the
    arc between them in the ratio t : 1 - t, computed in float64 and rounded to a float32 unit vector. Where the two
    rows are the same direction (within 1e-6) the center lies on the chord, which is the arc to within 1e-12. Where
    they are antipodal (within 1e-6) the arc is not defined, and a great circle through the first row in a uniformly
    random direction is taken (in one dimension the nearer of the two). With the default priors the first m of n caps
    are the caps of m.

    Args:
        tree: the tree whose rows are used.
        n: number of caps.
        seed: an integer in [0, 2**64); the same seed gives the same caps.
        radii: the prior of max cosine distances (not angles): ``radii(rng, n)`` gives (n,) numbers in [0, 2]; by
            default 95% U[0, 1] and 5% U[1, 2]. A number stands for one bound.
        centers: the prior of centers: ``centers(rng, tree, n)`` gives (n, d) unit vectors, or a tuple of them and
            (n, 2) source rows. It is called for up to 4,096 caps at a time.

    Returns:
        Caps with ``sources``, the two rows of each center (-1 where a `centers` callable gives none).

    Raises:
        InvalidCapsError: a callable gave bad centers or bounds.
        InvalidParameterError: n or seed outside its domain.
    """
    n = _params.integer("n", n, 0)
    seed = _params.integer("seed", seed, 0, 2**64 - 1)
    made = np.empty((n, tree.dim), np.float32)
    bounds = np.empty(n)
    sources = np.empty((n, 2), np.int64)
    for block, start in enumerate(range(0, n, BLOCK)):
        part = slice(start, min(start + BLOCK, n))
        key = stream_key(seed, 0, block)
        made[part], bounds[part], sources[part] = cap_block(tree, part.stop - start, key, radii, centers)
    return TrainingCaps._wrap(made, bounds, sources)


def cap_block(
    tree: Tree, n: int, key: tuple[int, ...], radii: Radii, centers: Centers | None
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]]:
    """Centers float32 (n, d), bounds float64 (n,) and sources int64 (n, 2) of one block, from its key's streams."""
    streams = np.random.SeedSequence(key).spawn(4)
    rngs = [np.random.Generator(np.random.PCG64(stream)) for stream in streams]
    if centers is None:
        sources = rngs[0].integers(0, len(tree), size=(n, 2), dtype=np.int64)
        pair = tree.take(sources)
        made = slerp(pair[:, 0], pair[:, 1], rngs[1].random(n), rngs[2])
    else:
        made, sources = _called_centers(centers, rngs[0], tree, n)
    return made, _called_radii(radii, rngs[3], n), sources


def slerp(
    first: NDArray[Any], second: NDArray[Any], t: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Points of the great arcs from `first` to `second` (n, d) at `t` (n,), as float32 unit vectors.

    Angles near 0 and pi come from the lengths of a - b and a + b, where the cosine has lost them; `rng` gives the
    directions for antipodes.
    """
    a, b = _unit(first), _unit(second)
    cosine = np.einsum("ij,ij->i", a, b)
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))
    chord, total = np.full(len(a), 2.0), np.full(len(a), 2.0)
    close, far = np.flatnonzero(cosine > 0.9), np.flatnonzero(cosine < -0.9)
    chord[close] = np.linalg.norm(a[close] - b[close], axis=1)
    angle[close] = 2.0 * np.arcsin(chord[close] / 2.0)
    total[far] = np.linalg.norm(a[far] + b[far], axis=1)
    angle[far] = np.pi - 2.0 * np.arcsin(total[far] / 2.0)
    parallel, opposite = chord < _PARALLEL, total < _PARALLEL
    sine = np.where(parallel | opposite, 1.0, np.sin(angle))
    left = np.where(parallel, 1.0 - t, np.sin((1.0 - t) * angle) / sine)
    right = np.where(parallel, t, np.sin(t * angle) / sine)
    for i in np.flatnonzero(opposite):
        across = rng.standard_normal(a.shape[1])
        across -= (across @ a[i]) * a[i]
        length = float(np.linalg.norm(across))
        if a.shape[1] == 1 or length == 0.0:
            left[i], right[i] = float(t[i] < 0.5), float(t[i] >= 0.5)
            continue
        b[i] = across / length
        left[i], right[i] = math.cos(t[i] * math.pi), math.sin(t[i] * math.pi)
    a *= left[:, None]
    b *= right[:, None]
    return np.add(a, b, out=a).astype(np.float32)


def stream_key(seed: int, purpose: int, index: int) -> tuple[int, ...]:
    """Entropy of a random stream: two words of the seed, what it is for, and which one of those."""
    return seed & 0xFFFF_FFFF, seed >> 32, purpose, index


def _unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    wide /= np.sqrt(np.einsum("ij,ij->i", wide, wide))[:, None]
    return wide


def _called_radii(radii: Radii, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    if callable(radii):
        bounds = np.asarray(radii(rng, n))
        if bounds.shape != (n,):
            raise InvalidCapsError(f"radii: expected shape ({n},) from the callable, got {bounds.shape}")
    else:
        bounds = np.full(n, _params.fraction("radii", radii, 0.0, 2.0))
    if bounds.dtype.kind not in "fiu":
        raise InvalidTypeError(f"radii: expected real numbers from the callable, got {bounds.dtype.name}")
    bounds = bounds.astype(np.float64)
    bad = np.flatnonzero(~((bounds >= 0.0) & (bounds <= 2.0)))
    if bad.size:
        raise InvalidCapsError(f"radii: expected numbers in [0, 2] from the callable, got {bounds[bad[0]]}")
    return bounds


def _called_centers(
    centers: Centers, rng: np.random.Generator, tree: Tree, n: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    if not callable(centers):
        raise InvalidTypeError(f"centers: expected a callable (rng, tree, n), got {type(centers).__name__}")
    given = centers(rng, tree, n)
    rows, sources = given if isinstance(given, tuple) else (given, None)
    made = unit_rows(rows, "centers from the callable")
    if made.shape != (n, tree.dim):
        raise InvalidCapsError(f"centers: expected shape ({n}, {tree.dim}) from the callable, got {made.shape}")
    return made, _checked_sources(sources, n)


def _checked_sources(sources: Any, n: int) -> NDArray[np.int64]:
    if sources is None:
        array = np.full((n, 2), -1, np.int64)
    else:
        array = np.asarray(sources)
        if array.shape != (n, 2) or array.dtype.kind not in "iu":
            raise InvalidCapsError(f"sources: expected integers of shape ({n}, 2), got {array.dtype} {array.shape}")
        array = array.astype(np.int64).view()
    array.flags.writeable = False
    return array
