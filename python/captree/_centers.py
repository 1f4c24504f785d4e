"""Centers of training caps: between rows, with noise, around a row, given ones, shifted ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from captree import _arrays, _params
from captree._caps import unit_rows
from captree.errors import InvalidCapsError, InvalidParameterError, InvalidTypeError

if TYPE_CHECKING:
    from captree._tree import Tree

Centers = Callable[..., Any]
"""Centers: ``centers(rng, tree, n)`` gives (n, d) unit vectors, or a tuple of them and their source rows (n, 2), or of
these two and the (n,) rows that surely lie in the caps, -1 where none is known.

A callable with the attribute ``needs_bounds = True`` is called as ``centers(rng, tree, bounds)`` instead, with the
float64 (n,) bounds that were drawn before; only such a one can know rows.
"""

CHUNK = 128
"""Vectors that are worked on together: their float64 copies stay in the second-level cache."""

_PARALLEL = 1e-6
_PULLS = (2.0**-20, 2.0**-14, 2.0**-10, 2.0**-6, 2.0**-2, 1.0)


@dataclass(frozen=True)
class Slerp:
    """Centers between two random rows: the default of :func:`captree.training_caps`, which describes it."""

    def __call__(self, rng: np.random.Generator, tree: Tree, n: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(n, d) float32 centers and their (n, 2) source rows."""
        return slerp_centers(tree, n, *rng.spawn(3))


@dataclass(frozen=True)
class SlerpNoise:
    """Slerp centers with Gaussian noise, normalized again: centers that lie off the rows, as those of texts do.

    To a center is added a vector of independent N(0, noise^2 / d) coordinates, whose length is about `noise` in any
    dimension d (in many dimensions within a few per cent). So a center moves by an angle of about ``atan(noise)``, a
    cosine distance of about ``1 - 1 / sqrt(1 + noise**2)``: 0.11 for 0.5, 0.29 for 1.

    Attributes:
        noise: length of the noise, as a share of the center's, at least 0.
    """

    noise: float

    def __post_init__(self) -> None:
        _params.fraction("noise", self.noise, 0.0, 1e3)

    def __call__(self, rng: np.random.Generator, tree: Tree, n: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(n, d) float32 centers and the (n, 2) rows they were made from."""
        first, second, third, noise = rng.spawn(4)
        centers, sources = slerp_centers(tree, n, first, second, third)
        step = np.float32(self.noise / math.sqrt(tree.dim))
        for part in _parts(n):
            moved = centers[part] + step * noise.standard_normal(centers[part].shape, dtype=np.float32)
            length = np.linalg.norm(moved, axis=1, keepdims=True)
            np.divide(moved, length, out=centers[part], where=length > 1e-3)
        return centers, sources


@dataclass(frozen=True, eq=False)
class UniformInCap:
    """Centers uniform by area among all that have a drawn row in their cap, so that the pair's row is known.

    A row is drawn first, uniformly or by `weights`. The centers whose cap of the drawn bound b holds the row x are
    themselves a cap around the row's direction, ``{c : <c, x> >= 1 - b}``, and the center is uniform on it: no look at
    the tree. The angle's law, a density in proportion to ``sin(angle)**(d - 2)``, is drawn by rejection from laws
    that lie close to it in any dimension. A center whose float32 rounding would leave the row outside is pulled in by
    the least of a few steps, the first of 1e-6 of the angle. A bound so small that not even the row's own direction
    has the row in its cap (a row shorter than 1 - b) gives a cap without a row, which pairs leave out.

    Given its cap, the row is as likely as every other row inside (or in proportion to its weight): the bound is drawn
    without a look at the row, and all rows inside had the same chance of this center. A bound that holds a share of
    the rows around the *row* would break that, since it tells which row was drawn (a wide one: a lonely row), and one
    around the center needs the center first; so :class:`captree.ByMass` is refused.

    In many dimensions nearly all of a cap's area lies at its rim: the row is nearly always about as far from the center
    as the bound allows, and the null cap's centers are nearly orthogonal to the row.

    Attributes:
        weights: (n,) weights of the tree's rows, not negative; None draws every row alike.
    """

    weights: Any = None
    _cumulated: NDArray[np.float64] | None = field(default=None, init=False, repr=False)

    needs_bounds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.weights is not None:
            weights = checked_weights(self.weights)
            object.__setattr__(self, "weights", weights)
            object.__setattr__(self, "_cumulated", np.cumsum(weights / weights.max()))

    def __call__(
        self, rng: np.random.Generator, tree: Tree, bounds: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """Centers float32 (n, d), sources int64 (n, 2), whose second column is -1, and rows int64 (n,)."""
        n = len(bounds)
        choice, angles, directions = rng.spawn(3)
        if self._cumulated is None:
            rows = random_rows(tree, choice, n)
        else:
            if self._cumulated.size != len(tree):
                raise InvalidParameterError(
                    f"expected {len(tree)}, one per row, got {self._cumulated.size}", parameter="weights"
                )
            if self.weights is not None and self.weights[absent_rows(tree)].any():
                raise InvalidParameterError("expected 0 for rows that were skipped or deleted", parameter="weights")
            place = np.searchsorted(self._cumulated, choice.random(n) * self._cumulated[-1], side="right")
            rows = np.minimum(place, len(tree) - 1).astype(np.int64)
        sources = np.stack([rows, np.full(n, -1)], axis=1)
        centers = np.empty((n, tree.dim), np.float32)
        for part in _parts(n):
            row = wide(tree.take(rows[part]))
            length = np.sqrt(np.einsum("ij,ij->i", row, row))
            # 1 - cos of the largest angle that keeps the row inside, without the cancellation.
            depth = (bounds[part] + (length - 1.0)) / length
            cosine, sine = _angles(angles, depth, tree.dim)
            unit = row / length[:, None]
            across = _across(directions, unit)
            inside = _inside(centers[part], row, unit, across, cosine, sine, bounds[part])
            rows[part][~inside] = -1
        return centers, sources, rows


@dataclass(frozen=True, eq=False)
class GivenCenters:
    """Centers drawn uniformly with replacement from given ones.

    Attributes:
        centers: (m, d) unit vectors of the kinds and within the tolerances of :class:`captree.Caps`, at least one.
    """

    centers: Any

    def __post_init__(self) -> None:
        centers = unit_rows(self.centers, "centers")
        if not len(centers):
            raise InvalidCapsError("expected at least one, got none", parameter="centers")
        object.__setattr__(self, "centers", centers)

    def __call__(self, rng: np.random.Generator, tree: Tree, n: int) -> NDArray[np.float32]:
        """(n, d) float32 centers."""
        given: NDArray[np.float32] = self.centers
        return given[rng.integers(0, len(given), size=n)]


@dataclass(frozen=True, eq=False)
class Shifted:
    """Another prior's centers with a vector added to each, normalized again.

    What a shift along the gap between two kinds of embeddings needs: with the mean text embedding minus the mean image
    embedding as the vector, caps are made where texts lie. Source rows stay; rows the other prior knew to lie in
    its caps are no longer known.

    Attributes:
        prior: the other prior of centers.
        vector: (d,) numbers of any length.
        scale: what the vector is multiplied by.
    """

    prior: Centers
    vector: Any
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not callable(self.prior):
            raise InvalidTypeError(f"expected a callable, got {type(self.prior).__name__}", parameter="prior")
        try:
            vector = np.array(_arrays.on_host(self.vector), dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidTypeError(
                f"expected numbers, got {type(self.vector).__name__} ({error})", parameter="vector"
            ) from error
        if vector.ndim != 1 or not np.isfinite(vector).all():
            raise InvalidParameterError(
                f"expected shape (d,) of finite numbers, got shape {vector.shape}", parameter="vector"
            )
        _params.fraction("scale", self.scale, -1e6, 1e6)
        vector.flags.writeable = False
        object.__setattr__(self, "vector", vector)

    @property
    def needs_bounds(self) -> bool:
        """Whether the other prior is called with bounds."""
        return needs_bounds(self.prior)

    def __call__(
        self, rng: np.random.Generator, tree: Tree, n: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Centers float32 (n, d) and the other prior's sources; `n` is what the other prior is called with."""
        if self.vector.shape != (tree.dim,):
            raise InvalidParameterError(f"expected dim {tree.dim}, got {self.vector.size}", parameter="vector")
        given = self.prior(rng, tree, n)
        rows, sources, *_ = given if isinstance(given, tuple) else (given, None)
        rows = unit_rows(rows, "centers from the callable")
        centers = np.empty(rows.shape, np.float32)
        for part in _parts(len(rows)):
            moved = rows[part] + float(self.scale) * self.vector
            length = np.sqrt(np.einsum("ij,ij->i", moved, moved))
            if not (length > 1e-9).all():
                raise InvalidCapsError(
                    "expected a shift that no center cancels, got one that a center does", parameter="vector"
                )
            centers[part] = moved / length[:, None]
        return centers, sources


def absent_rows(tree: Tree) -> NDArray[np.int64]:
    """Sorted row numbers that have no vector in the tree; they lie in no cap."""
    return tree._absent()


def kept_rows(tree: Tree) -> int:
    """How many rows of the tree have vectors: those that pairs can have, and that shares are shares of."""
    return len(tree) - absent_rows(tree).size


def nth_kept(tree: Tree, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows at these places, from 0, among those that have vectors."""
    absent = absent_rows(tree)
    # Before the i-th absent row stand absent[i] - i others.
    return places + np.searchsorted(absent - np.arange(absent.size), places, side="right")


def random_rows(tree: Tree, rng: np.random.Generator, shape: int | tuple[int, ...]) -> NDArray[np.int64]:
    """Uniformly random rows among those that have vectors."""
    return nth_kept(tree, rng.integers(0, kept_rows(tree), size=shape, dtype=np.int64))


def needs_bounds(centers: Centers | None) -> bool:
    """Whether centers are drawn after the bounds, from them."""
    return bool(getattr(centers, "needs_bounds", False))


def slerp_centers(
    tree: Tree, n: int, pairs: np.random.Generator, places: np.random.Generator, across: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Centers float32 (n, d) between random rows, and these rows int64 (n, 2); one stream for each kind of choice."""
    sources = random_rows(tree, pairs, (n, 2))
    t = places.random(n)
    centers = np.empty((n, tree.dim), np.float32)
    for part in _parts(n):
        pair = tree.take(sources[part])
        centers[part] = slerp(pair[:, 0], pair[:, 1], t[part], across)
    return centers, sources


def slerp(
    first: NDArray[Any], second: NDArray[Any], t: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Points of the great arcs from `first` to `second` (n, d) at `t` (n,), as float32 unit vectors.

    Angles near 0 and pi come from the lengths of a - b and a + b, where the cosine has lost them; `rng` gives the
    directions for antipodes.
    """
    a, b = unit(first), unit(second)
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


def unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Rows as float64 unit vectors."""
    made = wide(rows)
    made /= np.sqrt(np.einsum("ij,ij->i", made, made))[:, None]
    return made


def wide(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Rows as float64; by way of float32, which numpy does faster from float16."""
    return rows.astype(np.float32).astype(np.float64)


def checked_weights(weights: Any) -> NDArray[np.float64]:
    """(n,) finite weights, none below 0 and not all 0, as read-only float64."""
    array = _arrays.on_host(weights)
    if array.ndim != 1 or array.dtype.kind not in "fiub":
        raise InvalidTypeError(
            f"expected numbers of shape (n,), got {array.dtype.name} {array.shape}", parameter="weights"
        )
    made = array.astype(np.float64)
    bad = np.flatnonzero(~((made >= 0.0) & (made < np.inf)))
    if bad.size:
        raise InvalidParameterError(
            f"expected finite numbers of at least 0, got {bad.size} others; first {made[bad[0]]}, row {bad[0]}",
            parameter="weights",
        )
    if not made.any():
        raise InvalidParameterError(f"expected one above 0 at least, got {made.size} zeros", parameter="weights")
    made.flags.writeable = False
    return made


def _parts(n: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


def _across(rng: np.random.Generator, units: NDArray[np.float64]) -> NDArray[np.float64]:
    """Uniformly random unit vectors orthogonal to `units` (n, d); zeros in one dimension."""
    made = rng.standard_normal(units.shape)
    if units.shape[1] == 1:
        return np.zeros_like(made)
    for _ in range(2):  # the second time removes what rounding left of nearly parallel vectors
        made -= np.einsum("ij,ij->i", made, units)[:, None] * units
        made /= np.sqrt(np.einsum("ij,ij->i", made, made))[:, None]
    return made


def _angles(
    rng: np.random.Generator, depth: NDArray[np.float64], dim: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosine and sine of the angle from a cap's center to a uniform point of it; the cap is cosine >= 1 - `depth`.

    Two proposals, of which one accepts at least about a third of its draws whatever the cap and the dimension: a
    uniform point of the sphere (of its nearer half, for caps below a half), and for caps well below a half ``sine =
    u**(1 / (d - 1))`` times the largest, whose density differs from the wanted one by a factor ``1 / cosine``.
    """
    n = len(depth)
    least = 1.0 - np.clip(depth, 0.0, 2.0)
    cosine, sine = np.ones(n), np.zeros(n)
    if dim == 1:
        cosine[(depth >= 2.0) & (rng.random(n) < 0.5)] = -1.0
        return cosine, sine
    shallow = np.clip(depth, 0.0, 1.0)
    most = np.sqrt(shallow * (2.0 - shallow))
    narrow = (least > 0.0) & (least * math.sqrt(dim) > 1.0)
    left = np.flatnonzero(depth > 0.0)
    while left.size:
        accept, few = np.empty(left.size, np.bool_), narrow[left]
        made_cosine, made_sine = np.empty(left.size), np.empty(left.size)
        at = left[few]
        made_sine[few] = most[at] * rng.random(at.size) ** (1.0 / (dim - 1))
        made_cosine[few] = np.sqrt((1.0 - made_sine[few]) * (1.0 + made_sine[few]))
        accept[few] = rng.random(at.size) * made_cosine[few] <= least[at]
        at, many = left[~few], ~few
        along, rest = rng.standard_normal(at.size), np.sqrt(rng.chisquare(dim - 1, at.size))
        length = np.hypot(along, rest)
        made_cosine[many] = np.where(least[at] >= 0.0, np.abs(along), along) / length
        made_sine[many] = rest / length
        accept[many] = made_cosine[many] >= least[at]
        cosine[left[accept]], sine[left[accept]] = made_cosine[accept], made_sine[accept]
        left = left[~accept]
    return cosine, sine


def _inside(
    out: NDArray[np.float32],
    rows: NDArray[np.float64],
    units: NDArray[np.float64],
    across: NDArray[np.float64],
    cosine: NDArray[np.float64],
    sine: NDArray[np.float64],
    bounds: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Writes float32 centers at these angles from `units`, pulled in until `rows` lie in their caps; says which do."""
    d = rows.shape[1]
    out[:] = cosine[:, None] * units + sine[:, None] * across
    # The products are exact; d + 3 sums of terms that add up to less than 1.1 + 3 in size.
    slack = (d + 3) * 2.0**-52 * 4.5
    inside = np.zeros(len(rows), np.bool_)
    left = np.arange(len(rows))
    for pull in (0.0, *_PULLS):
        if pull:
            moved = (1.0 - pull) * sine[left]
            # Towards the row, also from beyond a right angle.
            turned = np.cos((1.0 - pull) * np.arctan2(sine[left], cosine[left]))
            far = cosine[left] < 0.0
            moved = np.where(far, np.sqrt((1.0 - turned) * (1.0 + turned)), moved)
            near = np.where(far, turned, np.sqrt((1.0 - moved) * (1.0 + moved)))
            out[left] = near[:, None] * units[left] + moved[:, None] * across[left]
        value = np.einsum("ij,ij->i", rows[left], out[left].astype(np.float64)) + (bounds[left] - 1.0)
        inside[left[value > slack]] = True
        left = left[value <= slack]
        if not left.size:
            return inside
    for i in left:
        products = (rows[i] * out[i].astype(np.float64)).tolist()
        inside[i] = math.fsum([*products, float(bounds[i]), -1.0]) >= 0.0
    return inside
