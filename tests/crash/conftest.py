"""Processes to disturb, and how many times."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_child import Children

CRASHES = int(os.environ.get("CAPTREE_CRASHES", "40"))
"""Kills in all; more of them come with more of everything else."""


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Children]:
    one = Children(tmp_path_factory.mktemp("children"))
    yield one
    one.close()


@pytest.fixture(scope="session")
def more_children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Children]:
    """For a second process beside the first."""
    one = Children(tmp_path_factory.mktemp("children"))
    yield one
    one.close()


@pytest.fixture(scope="session")
def crashes() -> int:
    return CRASHES


@pytest.fixture(scope="session")
def kept_trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for trees that several tests copy."""
    return tmp_path_factory.mktemp("kept")
