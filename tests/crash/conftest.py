"""Processes to disturb, and how many times."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_child import Children

CRASHES = int(os.environ.get("CAPTREE_CRASHES", "40"))
"""Kills in all; more of them come with more of everything else."""


@pytest.fixture(scope="session")
def children() -> Iterator[Children]:
    one = Children()
    yield one
    one.close()


@pytest.fixture(scope="session")
def more_children() -> Iterator[Children]:
    """For a second process beside the first."""
    one = Children()
    yield one
    one.close()


@pytest.fixture(scope="session")
def crashes() -> int:
    return CRASHES


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one, for tests that ask nothing of a disk and write a lot."""
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)
