"""Test data, the exact brute force, and Hypothesis strategies, for captree's tests and for yours."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from captree import _params
from captree._caps import Caps, CapsLike, as_caps, unit_rows
from captree._core import draw_keys
from captree._results import NearestResult, RangeResult
from captree.errors import InvalidParameterError, InvalidTypeError, InvalidVectorsError

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

STEEP = 1.0
"""Exponent of :func:`clip_like` with which the first 64 of 768 energy-ordered dims hold about 83% of the energy, as
measured on CLIP image embeddings."""

FLAT = 0.57
"""Exponent of :func:`clip_like` with which the first 64 of 768 energy-ordered dims hold about 68% of the energy."""

_CHUNK = 4096
_LEVELS = (0.15, 0.15, 0.20)


def clip_like(
    n: int,
    d: int,
    seed: int = 0,
    exponent: float = STEEP,
    mean_energy: float = 0.45,
    duplicates: float = 0.03,
    clusters: tuple[int, ...] = (16, 256, 4096),
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Unit vectors shaped like image embeddings: (n, d), in random order.

    One mean direction holds `mean_energy` of the energy, so the mean pairwise cosine is about `mean_energy`. The rest
    is Gaussian with variance ``j ** -exponent`` in the j-th direction of a random orthonormal basis, and is shared
    out to nested clusters (each level's clusters split the ones above; sizes are uneven) and to the rows themselves.
    A share `duplicates` of the rows are near-duplicates of an earlier row, a third of them exact copies.

    Args:
        n: rows.
        d: dimension.
        seed: the same arguments give the same vectors (on the same numpy and machine, to the last bit).
        exponent: of the power-law spectrum; ``STEEP`` (default) or ``FLAT``.
        mean_energy: in [0, 1).
        duplicates: in [0, 1].
        clusters: number of clusters of each level, up to three, coarse to fine.
        dtype: float16, float32 or float64.
    """
    n, d = _params.integer("n", n, 0), _params.integer("d", d, 1)
    seed = _params.integer("seed", seed, 0, 2**64 - 1)
    mean_energy = _params.fraction("mean_energy", mean_energy, 0.0, 1.0)
    duplicates = _params.fraction("duplicates", duplicates, 0.0, 1.0)
    if len(clusters) > len(_LEVELS):
        raise InvalidParameterError(
            f"expected at most {len(_LEVELS)} levels, got {len(clusters)}", parameter="clusters"
        )
    counts = [_params.integer("clusters", count, 1) for count in clusters]
    kind = np.dtype(dtype)
    if kind.name not in ("float16", "float32", "float64"):
        raise InvalidTypeError(f"expected float16, float32 or float64, got {kind.name}", parameter="dtype")

    rng = np.random.default_rng((seed, 0))
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)
    spread = np.zeros(d, np.float32)
    if d > 1:
        spread[1:] = np.arange(1, d, dtype=np.float64) ** (-exponent / 2.0)
        spread *= math.sqrt((1.0 - mean_energy) / float(np.sum(spread.astype(np.float64) ** 2)))
    parts = []
    for count, share in zip(counts, _LEVELS, strict=False):
        offsets = rng.standard_normal((count, d), dtype=np.float32)
        offsets -= offsets.mean(axis=0)  # so that clusters don't shift the mean direction
        parts.append(offsets * (math.sqrt(share) * spread))
    own = math.sqrt(1.0 - sum(_LEVELS[: len(counts)]))

    out = np.empty((n, d), kind)
    for chunk, start in enumerate(range(0, n, _CHUNK)):
        rng = np.random.default_rng((seed, 1, chunk))
        size = min(_CHUNK, n - start)
        rows = rng.standard_normal((size, d), dtype=np.float32) * (own * spread)
        rows[:, 0] = math.sqrt(mean_energy) if d > 1 else 1.0
        place = rng.random(size) ** 1.5
        for count, offsets in zip(counts, parts, strict=True):
            rows += offsets[(place * count).astype(np.int64)]
        wide = (rows @ basis.T).astype(np.float64)
        copies = np.flatnonzero(rng.random(size) < duplicates)
        originals = np.setdiff1d(np.arange(size), copies) if start == 0 else np.arange(start)
        if copies.size and originals.size:
            chosen = originals[rng.integers(0, originals.size, copies.size)]
            noise = rng.standard_normal((copies.size, d)) / math.sqrt(d)
            noise *= np.where(rng.random(copies.size) < 1 / 3, 0.0, 10.0 ** rng.uniform(-3, -1, copies.size))[:, None]
            wide[copies] = (wide if start == 0 else out)[chosen].astype(np.float64) + noise
        norms = np.linalg.norm(wide, axis=1, keepdims=True)
        out[start : start + size] = np.where(norms > 0, wide / np.where(norms > 0, norms, 1.0), basis[0])
    return out


def oracle(vectors: NDArray[Any], caps: CapsLike) -> RangeResult[NDArray[np.float64]]:
    """The exact brute force: the rows of each cap and their distances, as real-number arithmetic gives them.

    Products of two float32 are exact in float64 and ``math.fsum`` rounds their sum once, so the sign of
    ``<c, x> + bound - 1`` and the rounded distance are exact. A float64 matrix product decides the rows whose value
    is farther from zero than its error bound ``(d + 3) 2**-52 (|c| |x| + 3)``.

    Args:
        vectors: (n, d) float16 or float32, the kept vectors: ``tree.take(range(len(tree)))``. Rows of NaN stand for
            rows that were skipped or deleted, here and below.
        caps: the caps.

    Returns:
        Rows in ascending order per cap, and their distances.
    """
    wide = _kept(vectors)
    caps = as_caps(caps, wide.shape[1])
    far = (
        (wide.shape[1] + 3)
        * 2.0**-52
        * (math.sqrt(float(np.fmax.reduce(np.sum(wide**2, axis=1), initial=0.0))) * 1.02 + 3)
    )
    offsets, rows, distances = [0], [], []
    for center, bound in zip(caps.centers.astype(np.float64), caps.max_cos_distance.tolist(), strict=True):
        value = wide @ center + (bound - 1.0)
        inside = value > 0
        for row in np.flatnonzero(np.abs(value) <= far):
            inside[row] = math.fsum([*(wide[row] * center).tolist(), bound, -1.0]) >= 0
        rows += np.flatnonzero(inside).tolist()
        distances += [math.fsum([1.0, *(-product).tolist()]) for product in wide[inside] * center]
        offsets.append(len(rows))
    return RangeResult(np.array(offsets, np.int64), np.array(rows, np.int64), np.array(distances, np.float64))


def oracle_nearest(vectors: NDArray[Any], queries: Any, k: int) -> NearestResult:
    """The exact brute force of ``Tree.nearest``: by rounded distance, then row; -1 and inf past the last row.

    Args:
        vectors: (n, d) float16 or float32, the kept vectors.
        queries: (q, d) unit vectors, or one (d,).
        k: rows per query.
    """
    wide = _kept(vectors)
    centers = unit_rows(queries, "queries").astype(np.float64)
    rows = np.full((len(centers), k), -1, np.int64)
    distances = np.full((len(centers), k), np.inf)
    for i, center in enumerate(centers):
        rough = 1.0 - wide @ center
        real = rough[~np.isnan(rough)]
        if real.size == 0:
            continue
        last = np.partition(real, min(k, real.size) - 1)[min(k, real.size) - 1]
        near = np.flatnonzero(rough <= last + 1e-9)
        exact = np.array([math.fsum([1.0, *(-product).tolist()]) for product in wide[near] * center])
        order = np.lexsort((near, exact))[:k]
        rows[i, : order.size], distances[i, : order.size] = near[order], exact[order]
    return NearestResult(rows, distances)


def oracle_sample(
    vectors: NDArray[Any], caps: CapsLike, k: int = 1, replace: bool = True, seed: int = 0
) -> NDArray[np.int64]:
    """The exact brute force of ``Tree.sample(method="exact")``: the first rows inside, by docs/sampling.md.

    Args:
        vectors: (n, d) float16 or float32, the kept vectors.
        caps: the caps.
        k: rows per cap.
        replace: whether a row may come more than once per cap.
        seed: an integer in [0, 2**64).

    Returns:
        int64 (q, k), -1 where a cap has no (further) row.
    """
    caps = as_caps(caps, np.asarray(vectors).shape[1])
    out = np.full((len(caps), k), -1, np.int64)
    keys = draw_keys(caps.centers, caps.max_cos_distance, seed).tolist()
    for drawn, key, (rows, _) in zip(out, keys, oracle(vectors, caps), strict=True):
        if rows.size and replace:
            drawn[:] = [rows[np.argmin(_places(rows, len(vectors), key, draw))] for draw in range(k)]
        elif rows.size:
            leading = rows[np.argsort(_places(rows, len(vectors), key, 0))][:k]
            drawn[: leading.size] = leading
    return out


def _places(rows: NDArray[np.int64], n: int, key: list[int], draw: int) -> NDArray[np.uint64]:
    """Places of rows in order `draw` of a key: the cells of a grid, moved back through eight rounds."""
    step, word = 0x9E3779B97F4A7C15, 0xFFFFFFFF
    start = _mix(key[1] + draw * step) ^ key[0]
    rounds = [_mix(start + i * step) for i in range(1, 9)]
    low_bits = (max(n, 1024) - 1).bit_length() + 1 >> 1
    high = -(-max(n, 1024) >> low_bits)

    def hashed(x: NDArray[np.uint64], i: int) -> NDArray[np.uint64]:
        x = (x ^ np.uint64(rounds[i] & word)) * np.uint64(0x85EBCA6B) & np.uint64(word)
        x = (x ^ x >> np.uint64(15)) + np.uint64(rounds[i] >> 32) & np.uint64(word)
        return x * np.uint64(0xC2B2AE35) & np.uint64(word)

    places = rows.astype(np.uint64)
    left = np.arange(rows.size)
    while left.size:
        top, low = places[left] >> np.uint64(low_bits), places[left] & np.uint64(2**low_bits - 1)
        for i in (6, 4, 2, 0):
            low = low ^ hashed(top, i + 1) >> np.uint64(32 - low_bits)
            moved = hashed(low, i) * np.uint64(high) >> np.uint64(32)
            top = (top + np.uint64(high) - moved) % np.uint64(high)
        places[left] = top << np.uint64(low_bits) | low
        left = left[places[left] >= n]
    return places


def _mix(x: int) -> int:
    x &= 2**64 - 1
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 2**64 - 1
    return x ^ x >> 31


def unit_vectors(
    min_rows: int = 1,
    max_rows: int = 200,
    min_dim: int = 1,
    max_dim: int = 40,
    dtype: DTypeLike = np.float32,
) -> SearchStrategy[NDArray[Any]]:
    """Hypothesis strategy of (n, d) unit vectors: spread out, clustered, equal, antipodal, on the axes, or a mix."""
    from hypothesis import strategies as st

    @st.composite
    def draw_vectors(draw: Any) -> NDArray[Any]:
        n = draw(st.integers(min_rows, max_rows), label="rows")
        d = draw(st.integers(min_dim, max_dim), label="dim")
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="vectors seed"))
        kinds = draw(st.lists(st.sampled_from(list(_KINDS)), min_size=1, max_size=3), label="kinds")
        rows = np.concatenate([_KINDS[kind](rng, n, d) for kind in kinds])[rng.permutation(n * len(kinds))[:n]]
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)

    return draw_vectors()


def caps(vectors: NDArray[Any], min_caps: int = 0, max_caps: int = 12) -> SearchStrategy[Caps]:
    """Hypothesis strategy of caps about `vectors`, kept rows (n, d).

    Centers lie at rows, their antipodes, between rows and anywhere; bounds are 0, 2, uniform, tiny, and some row's
    distance or one ulp to either side of it.
    """
    from hypothesis import strategies as st

    wide = _kept(vectors)

    def one(rng: np.random.Generator, center_kind: str, bound_kind: str) -> tuple[NDArray[np.float32], float]:
        d = wide.shape[1]
        a, b = wide[rng.integers(len(wide), size=2)]
        center = {"row": a, "antipode": -a, "between": a + b, "anywhere": rng.standard_normal(d)}[center_kind]
        if not np.linalg.norm(center) > 0.01:
            center = a
        made = (center / np.linalg.norm(center)).astype(np.float32)
        row = wide[rng.integers(len(wide))]
        at = min(max(math.fsum([1.0, *(-(row * made.astype(np.float64))).tolist()]), 0.0), 2.0)
        return made, {
            "zero": 0.0,
            "two": 2.0,
            "uniform": float(rng.uniform(0, 2)),
            "tiny": float(10.0 ** rng.uniform(-9, -2)),
            "row": at,
            "row above": min(float(np.nextafter(at, 3.0)), 2.0),
            "row below": max(float(np.nextafter(at, -1.0)), 0.0),
        }[bound_kind]

    @st.composite
    def draw_caps(draw: Any) -> Caps:
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="caps seed"))
        kinds = st.tuples(
            st.sampled_from(["row", "antipode", "between", "anywhere"]),
            st.sampled_from(["zero", "two", "uniform", "tiny", "row", "row above", "row below"]),
        )
        made = [one(rng, *kind) for kind in draw(st.lists(kinds, min_size=min_caps, max_size=max_caps), label="caps")]
        return Caps([center for center, _ in made], [bound for _, bound in made])

    return draw_caps()


def _kept(vectors: Any) -> NDArray[np.float64]:
    array = np.asarray(vectors)
    if array.dtype.name not in ("float16", "float32"):
        raise InvalidTypeError(f"expected kept vectors, float16 or float32, got {array.dtype.name}")
    if array.ndim != 2 or 0 in array.shape:
        raise InvalidVectorsError(f"expected vectors of shape (n, d), got {array.shape}")
    return array.astype(np.float64)


def _clustered(rng: np.random.Generator, n: int, d: int) -> NDArray[np.float64]:
    middle = rng.standard_normal((rng.integers(1, 6), d))
    noise: NDArray[np.float64] = 10.0 ** rng.uniform(-6, -0.5) * rng.standard_normal((n, d))
    return middle[rng.integers(len(middle), size=n)] + noise


def _antipodal(rng: np.random.Generator, n: int, d: int) -> NDArray[np.float64]:
    signs: NDArray[np.float64] = rng.choice([-1.0, 1.0], size=(n, 1))
    return np.tile(rng.standard_normal(d), (n, 1)) * signs


def _grid(rng: np.random.Generator, n: int, d: int) -> NDArray[np.float64]:
    rows = rng.integers(-1, 2, size=(n, d)).astype(np.float64)
    rows[~rows.any(axis=1), 0] = 1.0
    return rows


_KINDS = {
    "spread": lambda rng, n, d: rng.standard_normal((n, d)),
    "clustered": _clustered,
    "equal": lambda rng, n, d: np.tile(rng.standard_normal(d), (n, 1)),
    "antipodal": _antipodal,
    "axes": lambda rng, n, d: np.eye(d)[rng.integers(d, size=n)],
    "grid": _grid,
}
