"""How good answers are: recall, wrong caps, and for samplers how far from uniform their draws fall."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benches import exact
from benches.compare.data import Problem
from benches.compare.peers import Peer, Rows

SAMPLED_CAPS = 2
SAMPLED_ROWS = ((20, 200), (500, 2000))
"""Sizes of the caps that samplers are judged on: narrow ones, and caps where many nodes cross."""
DRAWS_PER_ROW = 20
MOST_CALLS = 4000
NOISE_RUNS = 20
BATCHES = {"a call for each draw": 1, "batches of 500": 500}
"""A batch of equal caps must give independent draws, as separate calls with other seeds must."""


def counts(answer: Rows, truth: Rows) -> dict[str, float]:
    """Share of wrong counts, and found rows over true rows."""
    return {
        "wrong_caps": float(np.mean(answer != truth)),
        "recall": share(int(np.minimum(answer, truth).sum()), int(truth.sum())),
    }


def share(part: int, whole: int) -> float:
    """Of nothing, everything was found."""
    return part / whole if whole else 1.0


def distances(problem: Problem, cap: int) -> NDArray[np.float64]:
    """Cosine distances in float64: far more exact than any peer, and no judge of rows at the very bound."""
    center = problem.centers[cap].astype(np.float64)
    starts = range(0, len(problem.vectors), exact.BLOCK)
    parts = [1.0 - problem.vectors[start : start + exact.BLOCK].astype(np.float64) @ center for start in starts]
    return np.concatenate(parts)


def rows_found(problem: Problem, caps: Rows, answer: list[Rows]) -> dict[str, float]:
    """Recall and precision over all rows of a few caps."""
    found = true = right = 0
    for cap, rows in zip(caps, answer, strict=True):
        inside = distances(problem, cap) <= problem.bounds[cap]
        found, true, right = found + len(rows), true + int(inside.sum()), right + int(inside[rows].sum())
    return {"recall": share(right, true), "precision": share(right, found)}


def drawn(problem: Problem, caps: Rows, answer: Rows) -> dict[str, float]:
    """Share of caps answered with rows where there are rows, and share of draws that are inside."""
    some = problem.counts[caps] > 0
    answered = answer[:, 0] >= 0
    cap, column = np.nonzero(answer >= 0)
    rows = answer[cap, column]
    products = np.einsum(
        "ij,ij->i", problem.centers[caps[cap]].astype(np.float64), problem.vectors[rows].astype(np.float64)
    )
    inside = 1.0 - products <= problem.bounds[caps[cap]]
    return {
        "recall": float(np.mean(answered[some])) if some.any() else 1.0,
        "precision": float(inside.mean()) if len(inside) else 1.0,
    }


def nearest_recall(truth: Rows, answer: Rows) -> float:
    hits = [len(np.intersect1d(a, b)) for a, b in zip(truth, answer, strict=True)]
    return sum(hits) / truth.size


def samplers(peer: Peer, problem: Problem) -> list[dict[str, Any]]:
    """Total variation distance from uniform, and duplicates, for repeated single draws from a few caps."""
    out: list[dict[str, Any]] = []
    if not peer.sampler:
        return out
    for cap in sampled_caps(problem):
        inside = np.flatnonzero(distances(problem, cap) <= problem.bounds[cap])
        for how, copies in BATCHES.items():
            draws = min(DRAWS_PER_ROW * len(inside), MOST_CALLS * copies)
            rows = [sample_copies(peer, problem, cap, copies, seed) for seed in range(-(-draws // copies))]
            out.append({"cap": cap, "rows": len(inside), "how": how} | uniformity(np.concatenate(rows), inside))
    return out


def sampled_caps(problem: Problem) -> list[int]:
    """A few caps of every size."""
    counts = problem.counts
    fit = [np.flatnonzero((counts >= low) & (counts <= high))[:SAMPLED_CAPS] for low, high in SAMPLED_ROWS]
    return [int(cap) for cap in np.concatenate(fit)]


def sample_copies(peer: Peer, problem: Problem, cap: int, copies: int, seed: int) -> Rows:
    centers = np.repeat(problem.centers[cap : cap + 1], copies, axis=0)
    return peer.sample(centers, np.repeat(problem.bounds[cap], copies), 1, seed=seed)[:, 0]


def uniformity(rows: Rows, inside: Rows) -> dict[str, float]:
    """How `rows` compare with as many uniform draws from `inside`."""
    place = np.searchsorted(inside, rows)
    place[place == len(inside)] = 0
    hit = inside[place] == rows
    tally = np.bincount(place[hit], minlength=len(inside))
    rng = np.random.default_rng(0)
    fair = rng.multinomial(len(rows), np.full(len(inside), 1 / len(inside)), size=NOISE_RUNS)
    return {
        "draws": float(len(rows)),
        "total_variation": variation(tally, len(rows)),
        "noise_floor": float(np.mean([variation(runs, len(rows)) for runs in fair])),
        # Two draws coincide with probability 1 / rows when they are uniform and independent.
        "duplicate_rate": coincidence(tally),
        "fair_duplicate_rate": 1 / len(inside),
        "outside": float(np.mean(~hit)),
    }


def variation(tally: Rows, draws: int) -> float:
    return float(np.abs(tally / draws - 1 / len(tally)).sum() / 2)


def coincidence(tally: Rows) -> float:
    total = tally.sum()
    return float((tally * (tally - 1)).sum() / max(1, total * (total - 1)))
