"""What queries return: containers of arrays."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from captree import EstimateResult, NearestResult, RangeResult
from captree.errors import InvalidParameterError, RowIndexError

RESULT = RangeResult([0, 2, 2, 5], [4, 7, 1, 2, 3], [0.1, 0.2, 0.3, 0.4, 0.5])


def test_parts():
    assert len(RESULT) == 3
    assert RESULT.counts.tolist() == [2, 0, 3]
    assert [rows.tolist() for rows, _ in RESULT] == [[4, 7], [], [1, 2, 3]]
    assert [far.tolist() for _, far in RESULT] == [[0.1, 0.2], [], [0.3, 0.4, 0.5]]
    assert RESULT[-1][0].tolist() == [1, 2, 3]
    assert RESULT[np.int64(0)][0].tolist() == [4, 7]
    assert repr(RESULT) == "RangeResult(3 caps, 5 rows)"
    assert (RESULT.offsets.dtype, RESULT.rows.dtype, RESULT.distances.dtype) == (np.int64, np.int64, np.float64)


def test_slices():
    part = RESULT[1:]
    assert (part.offsets.tolist(), part.rows.tolist()) == ([0, 0, 3], [1, 2, 3])
    assert RESULT[::2].rows.tolist() == [4, 7, 1, 2, 3]
    assert RESULT[::-1].offsets.tolist() == [0, 3, 3, 5]
    assert RESULT[::-1].distances.tolist() == [0.3, 0.4, 0.5, 0.1, 0.2]
    assert len(RESULT[2:1]) == 0
    assert len(RESULT[5:]) == 0


def test_results_without_distances_and_with_float32():
    bare = RangeResult([0, 2, 5], [4, 7, 1, 2, 3], None)
    assert bare.distances is None
    assert [(rows.tolist(), far) for rows, far in bare] == [([4, 7], None), ([1, 2, 3], None)]
    assert bare[1:].distances is None
    assert bare[::-1].rows.tolist() == [1, 2, 3, 4, 7]
    assert bare[::-1].distances is None
    assert pickle.loads(pickle.dumps(bare)).distances is None
    assert bare.to_arrow().column_names == ["rows"]
    single = RangeResult([0, 2, 5], [4, 7, 1, 2, 3], np.arange(5, dtype=np.float32))
    assert single[::-1].distances.dtype == single[1:].distances.dtype == single[0][1].dtype == np.float32
    assert single[::-1].distances.tolist() == [2, 3, 4, 0, 1]
    assert pickle.loads(pickle.dumps(single)).distances.dtype == np.float32
    assert str(single.to_arrow().schema.field("distances").type) == "large_list<item: float>"


def test_index_errors():
    for bad in (3, -4):
        with pytest.raises(RowIndexError, match="of a result of 3 caps"):
            RESULT[bad]


def test_empty():
    empty = RangeResult([0], [], [])
    assert len(empty) == 0
    assert list(empty) == []
    assert empty.counts.tolist() == []


@pytest.mark.parametrize(
    ("offsets", "rows", "distances"),
    [([], [], []), ([1, 2], [0, 0], [0, 0]), ([0, 3], [1], [1]), ([0, 2, 1], [1], [1]), ([0, 1], [1], [])],
)
def test_inconsistent_arrays(offsets, rows, distances):
    with pytest.raises(InvalidParameterError, match="expected"):
        RangeResult(offsets, rows, distances)


def test_read_only():
    with pytest.raises(AttributeError, match="read-only"):
        RESULT.rows = 1
    with pytest.raises(AttributeError, match="read-only"):
        del RESULT.rows
    with pytest.raises(ValueError, match="read-only"):
        RESULT.rows[0] = 1


def test_pickle():
    again = pickle.loads(pickle.dumps(RESULT))
    assert again.offsets.tolist() == RESULT.offsets.tolist()
    assert again.distances.tolist() == RESULT.distances.tolist()


def test_to_arrow():
    pa = pytest.importorskip("pyarrow")
    table = RESULT.to_arrow()
    assert table.schema.names == ["rows", "distances"]
    assert table.schema.field("rows").type == pa.large_list(pa.int64())
    assert table["rows"].to_pylist() == [[4, 7], [], [1, 2, 3]]
    assert table["distances"].to_pylist() == [[0.1, 0.2], [], [0.3, 0.4, 0.5]]
    assert RESULT[1:].to_arrow()["rows"].to_pylist() == [[], [1, 2, 3]]
    assert RangeResult([0], [], []).to_arrow().num_rows == 0


def test_named_tuples_unpack():
    rows, distances = NearestResult(np.zeros((1, 1), np.int64), np.zeros((1, 1)))
    assert rows.shape == distances.shape
    count, low, high = EstimateResult(np.ones(1), np.zeros(1, np.int64), np.full(1, 2))
    assert low[0] <= count[0] <= high[0]
