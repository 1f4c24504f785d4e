"""Caps to train on: a prior of centers and one of bounds, drawn block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captree import _params
from captree._caps import Caps, unit_rows
from captree._centers import Centers, Slerp, needs_bounds, slerp_centers
from captree._centers import slerp as slerp
from captree._radii import DEFAULT_RADII, Radii, drawn_bounds, needs_centers, single_bounds
from captree.errors import InvalidCapsError, InvalidParameterError, InvalidTypeError

if TYPE_CHECKING:
    from captree._tree import Tree

BLOCK = 4096
"""Caps made at a time; part of what a seed means."""


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
    tree: Tree,
    n: int,
    seed: int = 0,
    radii: Radii = DEFAULT_RADII,
    centers: Centers | None = None,
    threads: int | None = None,
) -> TrainingCaps:
    """`n` random caps to train a cap-conditioned model on.

    A center is, by default (:class:`captree.Slerp`), the slerp of two rows drawn uniformly with replacement, at
    t ~ U[0, 1]: the point that divides the arc between them in the ratio t : 1 - t, computed in float64 and rounded
    to a float32 unit vector. Where the two
    rows are the same direction (within 1e-6) the center lies on the chord, which is the arc to within 1e-12. Where
    they are antipodal (within 1e-6) the arc is not defined, and a great circle through the first row in a uniformly
    random direction is taken (in one dimension the nearer of the two). With the default priors the first m of n caps
    are the caps of m.

    Args:
        tree: the tree whose rows are used.
        n: number of caps.
        seed: an integer in [0, 2**64); the same seed gives the same caps.
        radii: the prior of max cosine distances (not angles): :class:`captree.RadiusMixture` (by default 95% U[0, 1]
            and 5% U[1, 2]), :class:`captree.FixedRadius`, :class:`captree.LogUniformRadius`, :class:`captree.ByMass`, a
            number, which stands for one bound, or a callable: ``radii(rng, n)`` gives (n,) numbers in [0, 2]. One with
            the attribute ``needs_centers = True`` is called as ``radii(rng, tree, centers, threads=threads)``.
        centers: the prior of centers: :class:`captree.Slerp` (the default), :class:`captree.SlerpNoise`,
            :class:`captree.UniformInCap`, :class:`captree.GivenCenters`, :class:`captree.Shifted`, or a callable:
            ``centers(rng, tree, n)`` gives (n, d) unit vectors, or a tuple of them and (n, 2) source rows. One with the
            attribute ``needs_bounds = True`` is called as ``centers(rng, tree, bounds)`` with (n,) bounds, and may
            give as a third entry (n,) rows that lie in the caps, -1 where it knows none. A prior is called for up to
            4,096 caps at a time.
        threads: at most this many, where a prior asks the tree.

    Returns:
        Caps with ``sources``, the two rows of each center (-1 where a `centers` callable gives none).

    Raises:
        InvalidCapsError: a callable gave bad centers or bounds.
        InvalidParameterError: n or seed outside its domain, or centers that need bounds with bounds that need centers.
    """
    n = _params.integer("n", n, 0)
    seed = _params.integer("seed", seed, 0, 2**64 - 1)
    threads = _params.threads(threads)
    made = np.empty((n, tree.dim), np.float32)
    bounds = np.empty(n)
    sources = np.empty((n, 2), np.int64)
    for block, start in enumerate(range(0, n, BLOCK)):
        part = slice(start, min(start + BLOCK, n))
        key = stream_key(seed, 0, block)
        caps = cap_block(tree, part.stop - start, key, radii, centers, threads=threads)
        made[part], bounds[part], sources[part] = caps.centers, caps.bounds, caps.sources
    return TrainingCaps._wrap(made, bounds, sources)


class CapBlock(NamedTuple):
    """Caps of one block."""

    centers: NDArray[np.float32]
    """(n, d)."""
    bounds: NDArray[np.float64]
    """(n,)."""
    sources: NDArray[np.int64]
    """(n, 2); -1 where there is none."""
    rows: NDArray[np.int64] | None
    """(n,) rows that lie in the caps, -1 where none does; None for a prior that knows no rows."""


def cap_block(
    tree: Tree,
    n: int,
    key: tuple[int, ...],
    radii: Radii,
    centers: Centers | None,
    *,
    single: bool = False,
    threads: int | None = None,
) -> CapBlock:
    """One block of caps, from its key's streams; with `single`, bounds are float32 numbers."""
    streams = np.random.SeedSequence(key).spawn(4)
    rngs = [np.random.Generator(np.random.PCG64(stream)) for stream in streams]
    bounds = None
    if needs_bounds(centers):
        refuse_circle(radii, centers)
        bounds = drawn_bounds(radii, rngs[3], n)
        bounds = single_bounds(bounds, up=False) if single else bounds
    rows: NDArray[np.int64] | None = None
    if centers is None or type(centers) is Slerp:
        made, sources = slerp_centers(tree, n, *rngs[:3])
    else:
        made, sources, rows = _called_centers(centers, rngs[0], tree, n, bounds)
    if bounds is None:
        bounds = drawn_bounds(radii, rngs[3], n, tree, made, threads)
        bounds = single_bounds(bounds, up=needs_centers(radii)) if single else bounds
    return CapBlock(made, bounds, sources, rows)


def refuse_circle(radii: Radii, centers: Centers | None) -> None:
    """Refuses bounds that need centers with centers that need bounds, of which neither could be drawn first."""
    if needs_centers(radii) and needs_bounds(centers):
        raise InvalidParameterError(
            "expected bounds that need no centers, such as LogUniformRadius or a RadiusMixture, "
            "since these centers need bounds",
            parameter="radii",
        )


def stream_key(seed: int, purpose: int, index: int) -> tuple[int, ...]:
    """Entropy of a random stream: two words of the seed, what it is for, and which one of those."""
    return seed & 0xFFFF_FFFF, seed >> 32, purpose, index


def _called_centers(
    centers: Centers, rng: np.random.Generator, tree: Tree, n: int, bounds: NDArray[np.float64] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64] | None]:
    if not callable(centers):
        raise InvalidTypeError(f"expected a callable (rng, tree, n), got {type(centers).__name__}", parameter="centers")
    given = centers(rng, tree, n if bounds is None else bounds)
    given, sources, rows = (*given, None, None)[:3] if isinstance(given, tuple) else (given, None, None)
    made = unit_rows(given, "centers from the callable")
    if made.shape != (n, tree.dim):
        raise InvalidCapsError(
            f"expected shape ({n}, {tree.dim}) from the callable, got {made.shape}", parameter="centers"
        )
    if rows is not None:
        if bounds is None:
            raise InvalidCapsError("expected no rows from a callable without needs_bounds = True", parameter="centers")
        rows = np.asarray(rows)
        if rows.shape != (n,) or rows.dtype.kind not in "iu":
            raise InvalidCapsError(
                f"expected integers of shape ({n},), got {rows.dtype} {rows.shape}", parameter="rows"
            )
        rows = rows.astype(np.int64)
        if n and not (int(rows.min()) >= -1 and int(rows.max()) < len(tree)):
            raise InvalidCapsError(
                f"expected -1 or rows of the tree, got {rows.min()} to {rows.max()}", parameter="rows"
            )
    return made, _checked_sources(sources, n), rows


def _checked_sources(sources: Any, n: int) -> NDArray[np.int64]:
    if sources is None:
        array = np.full((n, 2), -1, np.int64)
    else:
        array = np.asarray(sources)
        if array.shape != (n, 2) or array.dtype.kind not in "iu":
            raise InvalidCapsError(
                f"expected integers of shape ({n}, 2), got {array.dtype} {array.shape}", parameter="sources"
            )
        array = array.astype(np.int64).view()
    array.flags.writeable = False
    return array
