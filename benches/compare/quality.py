"""How good answers are: recall, wrong caps, and for samplers how far from uniform their draws fall."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benches import exact
from benches.compare.data import Problem
from benches.compare.peers import Peer, Rows

SAMPLED_CAPS = 4
SAMPLED_ROWS = (20, 500)
"""Sizes of the caps that samplers are judged on: enough rows to be unfair to, few enough to see it."""
DRAWS_PER_ROW = 20
NOISE_RUNS = 20


def counts(answer: Rows, truth: Rows) -> dict[str, float]:
    """Share of wrong counts, and found rows over true rows."""
    return {
        "wrong_caps": float(np.mean(answer != truth)),
        "recall": float(np.minimum(answer, truth).sum() / max(1, truth.sum())),
    }


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
    return {"recall": right / max(1, true), "precision": right / max(1, found)}


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
    """Total variation distance from uniform, and duplicates, for repeated single draws from a few caps.

    Draws are single (k=1) with a seed of their own, many copies of the cap in a batch: what a training loop does.
    """
    fit = np.flatnonzero((problem.counts >= SAMPLED_ROWS[0]) & (problem.counts <= SAMPLED_ROWS[1]))
    out: list[dict[str, Any]] = []
    if not peer.sampler:
        return out
    for cap in fit[:SAMPLED_CAPS]:
        inside = np.flatnonzero(distances(problem, cap) <= problem.bounds[cap])
        draws = DRAWS_PER_ROW * len(inside)
        per_call = min(draws, 500)
        rows: list[Rows] = []
        for seed in range(-(-draws // per_call)):
            rows.append(sample_copies(peer, problem, cap, per_call, seed))
        out.append({"cap": int(cap), "rows": len(inside)} | uniformity(np.concatenate(rows), inside))
    return out


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
