"""Shared data of the tests: a small tree, its kept rows, and random unit vectors."""

from __future__ import annotations

import signal

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import captree
from captree.testing import clip_like

settings.register_profile(
    "captree",
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.load_profile("captree")


# A shell that starts this run in the background has it ignore Ctrl-C, and every process that it starts would do so too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def vectors():
    """float32 (3000, 48), shaped like embeddings, with near-duplicates."""
    return clip_like(3000, 48, seed=1)


@pytest.fixture(scope="session")
def tree(vectors):
    """A tree of float16 rows in memory, several levels deep."""
    return captree.build(vectors, fanout=8, leaf_size=40, seed=3)


@pytest.fixture(scope="session")
def kept(tree):
    """The rows as the tree keeps them: float16 (3000, 48)."""
    return tree.take(np.arange(len(tree)))


@pytest.fixture(scope="session")
def caps(tree):
    """200 caps of the training prior."""
    return captree.training_caps(tree, 200, seed=5)
