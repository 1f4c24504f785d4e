"""Parts of the walk that are switched off change what an answer costs, never the answer."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from helpers import all_rows

import captree
from captree.errors import InvalidParameterError
from captree.testing import clip_like, oracle

PARTS = ["nodes", "tiles", "first", "second", "third", "last"]
SUBSETS = [
    [part for part, on in zip(PARTS, choice, strict=True) if on] for choice in product([0, 1], repeat=len(PARTS))
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


def test_every_choice_of_parts_is_exact(problem):
    tree, caps, truth = problem
    everything = {}
    for parts in SUBSETS:
        counts, decided = tree._core.ablate(caps.centers, caps.max_cos_distance, parts)
        np.testing.assert_array_equal(counts, truth, err_msg=str(parts))
        assert list(decided) == [*PARTS, "float32", "exact"]
        assert sum(decided.values()) == len(caps) * len(tree)
        assert not any(decided[part] for part in PARTS if part not in parts)
        everything = decided
    assert parts == PARTS
    assert sum(everything[part] for part in PARTS) > 0.9 * len(caps) * len(tree)
    assert not [part for part in ("first", "second") if not everything[part]]


def test_unknown_parts_are_refused(tree, caps):
    with pytest.raises(InvalidParameterError, match='got "fourth"'):
        tree._core.ablate(caps.centers, caps.max_cos_distance, ["first", "fourth"])
