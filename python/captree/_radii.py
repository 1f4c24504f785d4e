"""Bounds of training caps: mixtures, one bound, log-uniform bounds, bounds by the share of the rows they hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from captree import _params
from captree.errors import InvalidCapsError, InvalidParameterError, InvalidTypeError

if TYPE_CHECKING:
    from captree._tree import Tree

Radii = Callable[..., Any] | float
"""Bounds: ``radii(rng, n)`` gives (n,) max cosine distances in [0, 2]; a number is every cap's bound.

A callable with the attribute ``needs_centers = True`` is called as ``radii(rng, tree, centers, threads=threads)``
instead, with the float32 (n, d) centers that were drawn before.
"""


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


@dataclass(frozen=True)
class FixedRadius:
    """The same bound for every cap.

    Attributes:
        max_cos_distance: the bound, in [0, 2].
    """

    max_cos_distance: float

    def __post_init__(self) -> None:
        _params.fraction("max_cos_distance", self.max_cos_distance, 0.0, 2.0)

    def __call__(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        """(n,) copies of the bound."""
        return np.full(n, float(self.max_cos_distance))


@dataclass(frozen=True)
class LogUniformRadius:
    """Bounds whose logarithm is uniform: every factor between `low` and `high` is as likely as any other.

    Attributes:
        low: the smallest max cosine distance, above 0.
        high: the largest, at most 2.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, 2.0)

    def __call__(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        """(n,) bounds in [low, high]."""
        return _log_uniform(rng, n, self.low, self.high)


@dataclass(frozen=True)
class ByMass:
    """The smallest bound whose cap holds a drawn share of the rows, the share being log-uniform.

    A cap's mass, not its angle, says how much it tells: this prior gives caps of 1 in 1,000 rows as often as caps of
    1 in 10, wherever they lie. The bound is :meth:`captree.Tree.radius_for_mass` of the cap's center, exactly; pairs,
    which keep bounds as float32, round it up, so that no cap loses the rows it was made for. It costs a look at the
    tree for every cap, which the other priors do not. Not with centers that need the bound first:
    :class:`captree.UniformInCap` says why.

    Attributes:
        low: the smallest share of the rows, above 0.
        high: the largest, at most 1.
    """

    low: float
    high: float

    needs_centers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, 1.0)

    def __call__(
        self, rng: np.random.Generator, tree: Tree, centers: NDArray[np.float32], threads: int | None = None
    ) -> NDArray[np.float64]:
        """(n,) bounds, one for each of the (n, d) centers."""
        return tree.radius_for_mass(centers, _log_uniform(rng, len(centers), self.low, self.high), threads=threads)


def needs_centers(radii: Radii) -> bool:
    """Whether bounds are drawn after the centers, from them."""
    return bool(getattr(radii, "needs_centers", False))


def drawn_bounds(
    radii: Radii,
    rng: np.random.Generator,
    n: int,
    tree: Tree | None = None,
    centers: NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> NDArray[np.float64]:
    """(n,) checked bounds of a prior; `tree` and `centers` for one that needs them."""
    if callable(radii):
        bounds = np.asarray(radii(rng, tree, centers, threads=threads) if needs_centers(radii) else radii(rng, n))
        if bounds.shape != (n,):
            raise InvalidCapsError(f"expected shape ({n},) from the callable, got {bounds.shape}", parameter="radii")
    else:
        bounds = np.full(n, _params.fraction("radii", radii, 0.0, 2.0))
    if bounds.dtype.kind not in "fiu":
        raise InvalidTypeError(f"expected real numbers from the callable, got {bounds.dtype.name}", parameter="radii")
    bounds = bounds.astype(np.float64)
    bad = np.flatnonzero(~((bounds >= 0.0) & (bounds <= 2.0)))
    if bad.size:
        raise InvalidCapsError(f"expected numbers in [0, 2] from the callable, got {bounds[bad[0]]}", parameter="radii")
    return bounds


def single_bounds(bounds: NDArray[np.float64], up: bool) -> NDArray[np.float64]:
    """Bounds rounded to float32, to nearest or up, as float64; within [0, 2]."""
    single = bounds.astype(np.float32)
    if up:
        single = np.where(single < bounds, np.nextafter(single, np.float32(3.0)), single)
    return single.astype(np.float64)


def _log_uniform(rng: np.random.Generator, n: int, low: float, high: float) -> NDArray[np.float64]:
    return np.clip(low * np.exp(rng.random(n) * math.log(high / low)), low, high)


def _check_range(low: Any, high: Any, most: float) -> None:
    low, high = _params.fraction("low", low, 0.0, most), _params.fraction("high", high, 0.0, most)
    if not 0.0 < low <= high:
        raise InvalidParameterError(f"expected 0 < low <= high <= {most:g}, got {low:g} and {high:g}")
