"""Draws are uniform and independent, by chi-square tests with fixed seeds.

Each test allows a false alarm with probability below 1e-7 or so (Bonferroni over its caps), once, when the seeds were
chosen; after that it is deterministic.
"""

from __future__ import annotations

import itertools
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
from helpers import all_rows, random_units
from scipy import stats

import captree
from captree import Caps
from captree.testing import clip_like, oracle, oracle_sample

ALARM = 1e-8


def assert_all_plausible(pvalues):
    """No p-value too small for their number (Bonferroni), and all of them together spread over [0, 1]."""
    pvalues = np.asarray(pvalues)
    assert pvalues.size
    assert pvalues.min() * pvalues.size > ALARM, f"smallest of {pvalues.size}: {pvalues.min()}"
    if pvalues.size >= 20:
        assert stats.kstest(pvalues, "uniform").pvalue > ALARM


def uniformity(drawn, inside):
    """P-value of draws against the uniform distribution over `inside`; every draw must be one of those."""
    place = np.searchsorted(inside, drawn)
    assert (inside[np.minimum(place, inside.size - 1)] == drawn).all(), "a row outside the cap"
    return stats.chisquare(np.bincount(place, minlength=inside.size)).pvalue


def independence(first, second, inside, groups=8):
    """P-value of the contingency table of two equally long series of draws, rows folded into a few groups."""
    table = np.zeros((min(groups, inside.size),) * 2)
    a, b = (np.searchsorted(inside, series) % len(table) for series in (first, second))
    np.add.at(table, (a, b), 1)
    return stats.chi2_contingency(table, correction=False).pvalue


@pytest.fixture(scope="module")
def mixed(tree, kept):
    """120 training caps with at least two rows, and the oracle's rows of each."""
    caps = captree.training_caps(tree, 400, seed=21)
    caps = caps[np.flatnonzero(tree.count(caps) >= 2)[:120]]
    return caps, [rows for rows, _ in oracle(kept, caps)]


@pytest.fixture(scope="module")
def few(tree, kept):
    """A cap with 3 to 12 rows, and a wide one with over 1,000, each with the oracle's rows."""
    found = {}
    caps = captree.training_caps(tree, 300, seed=33)
    count = tree.count(caps)
    for name, fits in (("small", (count >= 3) & (count <= 12)), ("wide", (count > 1000) & (count < 2000))):
        cap = caps[int(np.flatnonzero(fits)[0])]
        found[name] = (Caps(cap.centers, cap.max_cos_distance), oracle(kept, cap).rows)
    return found


def test_uniform_over_the_oracles_rows(tree, mixed):
    caps, inside = mixed
    assert min(rows.size for rows in inside) < 20 < 2000 < max(rows.size for rows in inside)
    pvalues = []
    for group in range(0, len(caps), 20):
        sizes = [rows.size for rows in inside[group : group + 20]]
        drawn = tree.sample(caps[group : group + 20], k=10 * max(sizes), seed=group)
        for i, rows in enumerate(drawn):
            pvalues.append(uniformity(rows, inside[group + i]))
    assert_all_plausible(pvalues)


@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_uniform_with_duplicates_and_odd_trees(storage):
    rows = random_units(500, 6, seed=1)
    rows[100:160] = rows[100]
    tree = captree.build(rows, storage=storage, fanout=3, leaf_size=7)
    kept = all_rows(tree)
    caps = Caps(np.concatenate([rows[100:101]] * 4 + [random_units(4, 6)]), [0, 1e-3, 0.3, 2, 0.2, 0.5, 1.0, 1.7])
    pvalues = []
    for i, (inside, _) in enumerate(oracle(kept, caps)):
        if inside.size > 1:
            pvalues.append(uniformity(tree.sample(caps[i], k=60 * inside.size, seed=i)[0], inside))
    assert len(pvalues) >= 6
    assert_all_plausible(pvalues)


def test_one_draw_per_cap_over_equal_caps_and_over_seeds(tree, few):
    """k=1 draws of equal caps in one batch, and of one cap in calls with other seeds, are uniform too."""
    pvalues = []
    for cap, inside in few.values():
        n = max(2000, 10 * inside.size)
        many = Caps.concat([cap] * n)
        pvalues.append(uniformity(tree.sample(many, seed=1)[:, 0], inside))
        calls = np.array([tree.sample(cap, seed=seed)[0, 0] for seed in range(n // 4)])
        if inside.size < 50:
            pvalues.append(uniformity(calls, inside))
    assert_all_plausible(pvalues)


def test_draws_of_one_cap_are_independent(tree, few):
    pvalues = []
    for cap, inside in few.values():
        rows = tree.sample(cap, k=20_000, seed=2)[0]
        pvalues += [independence(rows[:-lag], rows[lag:], inside) for lag in (1, 2, 3, 64, 1000)]
    assert_all_plausible(pvalues)


def test_equal_caps_of_one_batch_are_independent(tree, few):
    pvalues = []
    for cap, inside in few.values():
        rows = tree.sample(Caps.concat([cap] * 5000), k=2, seed=3)
        pvalues.append(independence(rows[:, 0], rows[:, 1], inside))
        pvalues += [independence(rows[:-lag, j], rows[lag:, j], inside) for lag in (1, 2, 128) for j in (0, 1)]
    assert_all_plausible(pvalues)


def test_calls_with_other_seeds_are_independent(tree, few):
    pvalues = []
    for cap, inside in few.values():
        base = [0, 1, 2, 2**32, 2**32 + 1, 2**63, 2**64 - 1]
        rows = [tree.sample(cap, k=4000, seed=seed)[0] for seed in base]
        pvalues += [independence(a, b, inside) for a, b in itertools.combinations(rows, 2)]
    assert_all_plausible(pvalues)


def test_nearly_equal_caps_of_one_batch_are_independent(tree, few):
    pvalues = []
    for cap, inside in few.values():
        bounds = cap.max_cos_distance[0] * (1 - np.arange(2) * 1e-15)
        pair = Caps(cap.centers[0], bounds)
        if (tree.count(pair) != inside.size).any():
            continue
        rows = tree.sample(pair, k=5000, seed=4)
        pvalues.append(independence(rows[0], rows[1], inside))
    assert_all_plausible(pvalues)


# --- without replacement -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["exact", "approximate"])
def test_distinct_rows_and_padding(tree, mixed, method):
    caps, inside = mixed
    options = {} if method == "exact" else {"density_samples": 3000}
    for k in (1, 2, 50, 3001):
        drawn = tree.sample(caps, k=k, replace=False, method=method, seed=k, **options)
        for rows, truth in zip(drawn, inside, strict=True):
            real = rows[: min(k, truth.size)]
            assert (rows[real.size :] == -1).all()
            assert len(set(real.tolist())) == real.size
            assert np.isin(real, truth).all()


def test_subsets_are_uniform(tree, few):
    cap, inside = few["small"]
    pvalues = []
    for k in (1, 2, inside.size - 1):
        names = {subset: i for i, subset in enumerate(itertools.combinations(inside.tolist(), k))}
        rows = tree.sample(Caps.concat([cap] * (60 * len(names))), k=k, replace=False, seed=k)
        seen = np.bincount([names[tuple(sorted(line))] for line in rows.tolist()], minlength=len(names))
        pvalues.append(stats.chisquare(seen).pvalue)
        pvalues += [uniformity(rows[:, j], inside) for j in range(k)]
    assert_all_plausible(pvalues)


def test_inclusion_is_uniform_in_wide_caps(tree, few):
    cap, inside = few["wide"]
    for k in (10, inside.size // 2):
        repeats = 40 * inside.size // k
        rows = tree.sample(Caps.concat([cap] * repeats), k=k, replace=False, seed=k)
        seen = np.bincount(np.searchsorted(inside, rows.ravel()), minlength=inside.size)
        # Draws within a cap are without replacement: the variance of a count shrinks by the factor (1 - k / m).
        expected = repeats * k / inside.size
        statistic = float(((seen - expected) ** 2).sum() / (expected * (1 - k / inside.size)))
        statistic *= (inside.size - 1) / inside.size
        assert ALARM < stats.chi2.sf(statistic, inside.size - 1) < 1 - ALARM


# --- same seed, same rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["exact", "approximate"])
@pytest.mark.parametrize("replace", [True, False])
def test_threads_and_batch_splits_do_not_matter(tree, caps, method, replace):
    def ask(part, **options):
        return tree.sample(part, k=5, replace=replace, method=method, seed=77, density_samples=32, **options)

    whole = ask(caps)
    for threads in (1, 2, 3, 8):
        np.testing.assert_array_equal(ask(caps, threads=threads), whole)
    for size in (1, 7, 64, 199):
        parts = [ask(caps[start : start + size]) for start in range(0, len(caps), size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    order = np.random.default_rng(0).permutation(len(caps))
    np.testing.assert_array_equal(ask(caps[order]), whole[order])
    assert not np.array_equal(tree.sample(caps, k=5, replace=replace, method=method, seed=78), whole)


def test_numpy_seeds(tree, caps):
    expected = tree.sample(caps, seed=5)
    for seed in (np.int64(5), np.uint64(5), np.uint8(5)):
        np.testing.assert_array_equal(tree.sample(caps, seed=seed), expected)


@pytest.mark.parametrize("method", ["exact", "approximate"])
def test_empty_caps_give_minus_one(tree, kept, method):
    centers = random_units(200, 48, seed=9)
    caps = Caps(centers, np.linspace(0, 1.2, 200))
    counts = oracle(kept, caps).counts
    assert (counts == 0).sum() > 20
    assert (counts > 0).sum() > 20
    for options in ({}, {"replace": False}):
        drawn = tree.sample(caps, k=2, method=method, density_samples=1, seed=0, **options)
        assert (drawn[counts == 0] == -1).all()
        assert (drawn[counts > 0, 0] >= 0).all()


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 1000, 3000])
def test_the_oracle_predicts_every_draw_however_it_is_made(tmp_path, n, replace):
    rows = clip_like(n, 12, seed=n)
    first = captree.build(rows)
    kept = all_rows(first)
    centers = np.concatenate([kept[:20].astype(np.float32), random_units(30, 12, seed=1)])
    centers = np.concatenate([centers, centers[:1]])
    caps = Caps(centers, np.linspace(0, 2, len(centers)) ** 2 / 2)
    expected = oracle_sample(kept, caps, k=7, replace=replace, seed=9)
    trees = [first, captree.build(rows, fanout=2, leaf_size=3, seed=4), captree.build(rows, out=tmp_path / "disk")]
    first.save(tmp_path / "saved")
    for tree in [*trees, captree.open(tmp_path / "saved")]:
        for threads in (1, 3):
            np.testing.assert_array_equal(tree.sample(caps, k=7, replace=replace, seed=9, threads=threads), expected)
        for tries in (0, 1, 50, 2**62):
            core = tree._core.sample(caps.centers, caps.max_cos_distance, 7, replace, 9, None, tries)
            np.testing.assert_array_equal(core, expected)


def test_the_oracle_predicts_many_draws_of_middling_caps(tree, kept):
    """Lists long enough, and draws many enough, that members are looked up in the order."""
    caps = captree.training_caps(tree, 60, seed=2)
    core = tree._core.sample(caps.centers, caps.max_cos_distance, 400, True, 3, None, 0)
    np.testing.assert_array_equal(core, oracle_sample(kept, caps, k=400, seed=3))


# --- approximate ---------------------------------------------------------------------------------------------------


def test_approximate_rows_are_inside(tree, kept, mixed):
    caps, inside = mixed
    for density_samples in (1, 16, 512):
        drawn = tree.sample(caps, k=20, method="approximate", seed=1, density_samples=density_samples)
        for rows, truth in zip(drawn, inside, strict=True):
            assert np.isin(rows, truth).all()


def test_approximate_counts_contained_children_whole(tree):
    """With every child contained nothing is estimated: the draw is uniform over all rows."""
    drawn = tree.sample(Caps(random_units(1, 48), 2.0), k=60_000, method="approximate", density_samples=1, seed=3)
    assert uniformity(drawn[0], np.arange(3000)) > ALARM


def test_approximate_is_uniform_where_the_sample_is_everything(tree, mixed):
    caps, inside = mixed
    pvalues = []
    for i in range(0, 120, 4):
        k = 10 * inside[i].size
        rows = tree.sample(caps[i], k=k, method="approximate", density_samples=3000, seed=i)[0]
        pvalues.append(uniformity(rows, inside[i]))
    assert_all_plausible(pvalues)


def test_approximate_draws_crossing_children_from_the_shared_sample_only():
    """The documented bias, seen: few rows of many ever come, and every cap of the batch gets the same ones."""
    tree = captree.build(clip_like(4000, 32, seed=4), fanout=4)
    rows = all_rows(tree)
    caps = Caps(rows[:2].astype(np.float64) / np.linalg.norm(rows[:2].astype(np.float64), axis=1)[:, None], 0.4)
    assert (tree.count(caps) > 200).all()
    drawn = tree.sample(caps, k=2000, method="approximate", density_samples=20, seed=6)
    assert all(len(set(line.tolist())) <= 4 * 20 for line in drawn)
    exact = tree.sample(caps, k=2000, seed=6)
    assert all(len(set(line.tolist())) > 150 for line in exact)


def test_approximate_falls_back_to_exact_where_estimates_are_zero(tree, kept, few):
    """A cap with a handful of rows that a sample of one row per child misses is drawn uniformly."""
    cap, inside = few["small"]
    firsts = np.array([tree.sample(cap, method="approximate", density_samples=1, seed=s)[0, 0] for s in range(3000)])
    assert np.isin(firsts, inside).all()
    assert np.unique(firsts).size == inside.size


def test_estimates_hold_with_their_confidence(tree, kept):
    """The interval of one cap misses in at most about the stated share of calls, whatever the count."""
    caps = captree.training_caps(tree, 12, seed=14)
    exact = oracle(kept, caps).counts
    for confidence in (0.8, 0.99):
        misses = np.zeros(len(caps))
        for seed in range(300):
            found = tree.estimate(caps, samples=200, confidence=confidence, seed=seed)
            misses += (found.low > exact) | (exact > found.high)
        allowed = stats.binom.isf(ALARM, 300, 1 - confidence)
        assert (misses <= allowed).all(), (confidence, misses)


KERNELS = """
import sys, numpy as np, captree
from captree.testing import clip_like
tree = captree.build(clip_like(6000, 160, seed=1), leaf_size=100)
caps = captree.training_caps(tree, 400, seed=2)
np.savez(sys.argv[1], kernels=tree.stats()["kernels"], count=tree.count(caps), once=tree.sample(caps, 5, seed=3),
         distinct=tree.sample(caps, 5, replace=False, seed=3), near=tree.nearest(caps.centers[:50], 4).rows,
         rows=tree.search(caps[:50], distances=None).rows, far=tree.search(caps[:50], distances="float32").distances)
"""


def test_answers_are_the_same_with_every_instruction_set(tmp_path):
    found = {}
    for name in ("", "portable", "avx2", "avx512", "amx", "neon"):
        command = [sys.executable, "-c", KERNELS, str(tmp_path / f"{name}.npz")]
        done = subprocess.run(
            command, env={**os.environ, "CAPTREE_KERNELS": name}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            # What this processor lacks is refused, never replaced by something else.
            assert "CAPTREE_KERNELS: expected one of portable" in done.stderr
            assert f"got {name}" in done.stderr
            continue
        found[name] = np.load(tmp_path / f"{name}.npz")
        assert name in str(found[name]["kernels"])
    assert {"", "portable"} <= found.keys()
    if platform.machine() in ("x86_64", "AMD64"):
        assert str(found[""]["kernels"]) != "portable, portable"
    for answers in found.values():
        for part in ("count", "once", "distinct", "near", "rows", "far"):
            np.testing.assert_array_equal(answers[part], found["portable"][part])
