"""Steps of the scan that are switched off change what an answer costs, never the answer."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from helpers import all_rows

import captree
from captree.errors import InvalidParameterError
from captree.testing import clip_like, oracle

STEPS = ["nodes", "tiles", "first", "second", "third", "fourth"]
SUBSETS = [
    [step for step, on in zip(STEPS, choice, strict=True) if on] for choice in product([0, 1], repeat=len(STEPS))
]


@pytest.fixture(scope="module", params=[(3000, 48, 1), (17_000, 320, 2)], ids=["two levels", "all levels"])
def problem(request):
    """A tree, caps of many sizes and their true counts; the larger one has more than one subtree and group of tiles."""
    n, d, seed = request.param
    tree = captree.build(clip_like(n, d, seed=seed), fanout=8, leaf_size=40)
    rows = all_rows(tree)
    caps = captree.Caps.concat(
        [captree.training_caps(tree, 20, seed=seed), captree.Caps(rows[:4], [0.0, 1e-4, 1.0, 2.0])]
    )
    return tree, caps, oracle(rows, caps).counts


def test_every_choice_of_steps_is_exact(problem):
    tree, caps, truth = problem
    everything = {}
    for steps in SUBSETS:
        counts, decided = tree._core.ablate(caps.centers, caps.max_cos_distance, steps)
        np.testing.assert_array_equal(counts, truth, err_msg=str(steps))
        assert list(decided) == [*STEPS, "float32", "exact"]
        assert sum(decided.values()) == len(caps) * len(tree)
        assert not any(decided[step] for step in STEPS if step not in steps)
        everything = decided
    assert steps == STEPS
    assert sum(everything[step] for step in STEPS) > 0.9 * len(caps) * len(tree)
    assert not [step for step in ("first", "second") if not everything[step]]


def test_unknown_steps_are_refused(tree, caps):
    with pytest.raises(InvalidParameterError, match='got "fifth"'):
        tree._core.ablate(caps.centers, caps.max_cos_distance, ["first", "fifth"])
