"""Very many appends of one row."""

from __future__ import annotations

import numpy as np
from crash_checks import assert_holds, assert_nothing_left_over
from crash_operations import ROWS, State

import captree


def test_appends_of_one_row(quick_folder, crashes):
    """A few hundred; with CAPTREE_CRASHES=500, as `make crash` has it, 10,000."""
    times = min(20 * crashes, 10_000) if crashes >= 500 else 300
    path = quick_folder / "x.captree"
    rows = np.resize(ROWS, (times + 1, ROWS.shape[1]))
    tree = captree.build(rows[:1], out=path)
    most = 0
    for number in range(1, times + 1):
        assert tree.append(rows[number : number + 1]) == range(number, number + 1)
        most = max(most, tree.stats()["segments"])
        if number % (times // 5) == 0:
            assert_holds(captree.open(path), State(rows[: number + 1]), number, f"{number} appends")
    # Those of one size become one of twice the size.
    assert most <= times.bit_length() + 1
    tree.vacuum()
    assert_nothing_left_over(path, "appended")
    assert sum(file.is_file() for file in path.rglob("*")) <= 3 + 20 * tree.stats()["segments"]
    tree.compact()
    assert tree.stats()["segments"] == 1
    assert_holds(captree.open(path), State(rows), 1, "compact")
