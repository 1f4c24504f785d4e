"""What samples are measured by; every function takes embeddings, so images are encoded once.

An embedding is a float32 unit row of the given encoder. Rates come with 95% Wilson intervals, since a rate of 3 in 64
says less than it seems to.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genmodel.errors import InputError, MissingDependencyError

__all__ = [
    "Rate",
    "clip_score",
    "cos_distance",
    "fid",
    "in_cap",
    "kid",
    "nearest_text",
    "nearest_training",
    "rate",
    "wilson",
]

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Rate:
    """A share with its interval: `hits` of `n`, `value` = hits / n, and the Wilson interval [low, high]."""

    hits: float
    n: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def wilson(hits: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a rate of `hits` in `n` (E. B. Wilson, 1927); (0, 1) when n is 0."""
    if not 0 <= hits <= n or not 0 < confidence < 1:
        raise InputError(f"wilson: expected 0 <= hits <= n and a confidence in (0, 1), got {hits}, {n}, {confidence}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def rate(inside: NDArray[np.bool_], confidence: float = 0.95) -> Rate:
    """The rate of True in an array of any shape."""
    hits, n = int(np.count_nonzero(inside)), int(np.asarray(inside).size)
    low, high = wilson(hits, n, confidence)
    return Rate(hits, n, hits / n if n else math.nan, low, high)


def cos_distance(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """1 - <a, b> of rows (n, d) and (n, d) or (d,), summed in float64: float64 (n,)."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape[-1:] != second.shape[-1:]:
        raise InputError(f"cos_distance: expected rows of one dimension, got {first.shape} and {second.shape}")
    return np.asarray(1.0 - np.sum(first * second, axis=-1))


def in_cap(
    embeddings: NDArray[Any], centers: NDArray[Any], max_cos_distance: NDArray[Any] | float
) -> NDArray[np.bool_]:
    """Which rows (n, d) lie in their caps: centers (n, d) or (d,), bounds (n,) or a number; bool (n,)."""
    return np.asarray(cos_distance(embeddings, centers) <= np.asarray(max_cos_distance, np.float64))


def clip_score(embeddings: NDArray[Any], texts: NDArray[Any]) -> float:
    """Mean of max(0, 100 cos) of image rows (n, d) with their texts' rows (n, d) or (d,).

    The scale is that of torchmetrics' CLIPScore (Hessel and others, 2021, have 2.5 instead of 100).
    """
    return float(np.mean(np.maximum(0.0, 100.0 * (1.0 - cos_distance(embeddings, texts)))))


def nearest_text(embeddings: NDArray[Any], texts: NDArray[Any]) -> NDArray[np.int64]:
    """For each image row (n, d) the place of the nearest of the texts (p, d): int64 (n,); the lower one of equals."""
    scores = np.asarray(embeddings, np.float64) @ np.asarray(texts, np.float64).T
    return np.asarray(np.argmax(scores, axis=1), np.int64)


def fid(real: NDArray[Any], fake: NDArray[Any]) -> float:
    """Frechet distance between Gaussians fitted to real (n, d) and fake (m, d) rows, through torchmetrics.

    The features are unit embeddings of the given encoder, not Inception's activations: the value lies in [0, 4], is
    not to be compared with published FIDs, and is biased upwards where n or m is small. Compare it with the value of
    two halves of the real rows at the same sizes.

    Raises:
        InputError: fewer than two rows on a side.
        MissingDependencyError: torchmetrics is not installed.
    """
    a, b = _two(real, fake)
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise MissingDependencyError("FID needs torchmetrics: pip install 'genmodel[evaluate]'") from error
    metric = FrechetInceptionDistance(feature=_Features(a.shape[1]))
    # In float64 from end to end: these covariances are small numbers.
    metric.set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    return float(metric.compute())


def kid(
    real: NDArray[Any], fake: NDArray[Any], subset_size: int = 100, subsets: int = 50, seed: int = 0
) -> dict[str, float]:
    """Kernel distance (squared MMD, unbiased) between real (n, d) and fake (m, d) rows, through torchmetrics.

    The kernel is (<x, y> + 1)^3: that of KID (Binkowski and others, 2018) without its division by d, because the rows
    are of length one already.

    Args:
        real: (n, d).
        fake: (m, d).
        subset_size: rows of a subset, at most min(n, m).
        subsets: how many random subsets are averaged.
        seed: of the subsets; the global random state is left as it was.

    Returns:
        ``mean`` and ``std`` over the subsets.
    """
    a, b = _two(real, fake)
    try:
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError as error:
        raise MissingDependencyError("KID needs torchmetrics: pip install 'genmodel[evaluate]'") from error
    size = min(subset_size, len(a), len(b))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features: they are small
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(feature=_Features(a.shape[1]), subsets=subsets, subset_size=size, gamma=1.0)
        metric.update(a, real=True)
        metric.update(b, real=False)
        mean, std = metric.compute()
    return {"mean": float(mean), "std": float(std)}


def nearest_training(tree: Any, embeddings: NDArray[Any], duplicate_distance: float) -> dict[str, Any]:
    """The nearest training row of each sample, exactly, and how many are duplicates of it.

    Args:
        tree: a :class:`captree.Tree` over the training embeddings.
        embeddings: (n, d) unit rows of samples.
        duplicate_distance: a sample at most this cosine distance from a training row counts as its duplicate.

    Returns:
        ``rows`` int64 (n,), ``distances`` float64 (n,), ``duplicates`` (:class:`Rate`) and ``quantiles`` of the
        distances.
    """
    found = tree.nearest(_unit(embeddings), 1)
    distances = np.asarray(found.distances[:, 0], np.float64)
    levels = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
    return {
        "rows": np.asarray(found.rows[:, 0], np.int64),
        "distances": distances,
        "duplicates": rate(distances <= duplicate_distance),
        "quantiles": {f"{level:g}": float(np.quantile(distances, level)) for level in levels},
    }


class _Features(torch.nn.Module):
    """Stands where torchmetrics expects a feature extractor: the rows are features already."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows


def _two(real: NDArray[Any], fake: NDArray[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise InputError(f"expected arrays (n, d) of one dimension with at least 2 rows, got {a.shape} and {b.shape}")
    return torch.from_numpy(a), torch.from_numpy(b)


def _unit(rows: NDArray[Any]) -> Rows:
    wide = np.asarray(rows, np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=-1, keepdims=True), np.float32)
