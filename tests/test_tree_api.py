"""The tree's methods: shapes, dtypes, errors, building, saving, opening, pickling."""

from __future__ import annotations

import copy
import itertools
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import all_rows, by_row, random_units, unit

import captree
from captree import Caps, errors
from captree.testing import oracle


@pytest.fixture(scope="module")
def stored(vectors, tmp_path_factory):
    """A tree on disk."""
    path = tmp_path_factory.mktemp("trees") / "photos.captree"
    return captree.build(vectors, out=path, fanout=8, leaf_size=40, seed=3)


def test_properties(tree, stored):
    assert len(tree) == 3000
    assert (tree.dim, tree.storage, tree.fanout, tree.leaf_size) == (48, "float16", 8, 40)
    assert tree.path is None
    assert tree.depth >= 1
    assert Path(stored.path).name == "photos.captree"
    assert "3,000 rows x 48" in repr(tree)
    assert "in memory" in repr(tree)
    assert "photos.captree" in repr(stored)


def test_stats(tree):
    stats = tree.stats()
    expected = {"rows": 3000, "dim": 48, "storage": "float16", "fanout": 8, "leaf_size": 40, "seed": 3, "path": None}
    assert {key: stats[key] for key in expected} == expected
    assert 0 < stats["leaf_rows_min"] <= stats["leaf_rows_mean"] <= stats["leaf_rows_max"] <= 40
    assert 1 < stats["leaves"] < stats["nodes"]
    assert stats["depth"] == tree.depth
    assert stats["bytes"] > 3000 * 48 * 2


def test_nodes(tree):
    pa = pytest.importorskip("pyarrow")
    nodes = tree.nodes()
    assert nodes.schema.names[:5] == ["parent", "depth", "center", "max_cos_distance", "rows"]
    assert set(nodes.schema.names) >= {"first_child", "children", "start"}
    assert nodes.schema.field("parent").type == pa.int64()
    assert nodes.schema.field("depth").type == pa.int32()
    assert nodes.schema.field("center").type == pa.list_(pa.float32(), 48)
    assert nodes.schema.field("max_cos_distance").type == pa.float64()
    assert nodes.num_rows == tree.stats()["nodes"]
    parent, depth = nodes["parent"].to_numpy(), nodes["depth"].to_numpy()
    rows, children = nodes["rows"].to_numpy(), nodes["children"].to_numpy()
    first = nodes["first_child"].to_numpy()
    assert (parent[0], depth[0], rows[0]) == (-1, 0, 3000)
    assert (parent[1:] >= 0).all()
    np.testing.assert_array_equal(depth[1:], depth[parent[1:]] + 1)
    leaves = children == 0
    np.testing.assert_array_equal(leaves, first == -1)
    assert rows[leaves].sum() == 3000
    assert leaves.sum() == tree.stats()["leaves"]
    assert children.max() <= 8
    for node in np.flatnonzero(~leaves):
        below = slice(first[node], first[node] + children[node])
        assert (parent[below] == node).all()
        assert rows[below].sum() == rows[node]
    caps = Caps.from_arrow(nodes)
    for node in range(0, nodes.num_rows, 7):
        inside = tree.node_rows(node)
        assert inside.dtype == np.int64
        assert len(set(inside.tolist())) == inside.size == rows[node]
        assert np.isin(inside, tree.search(caps[node]).rows).all(), "a node's cap holds its rows"


def test_node_rows_errors(tree):
    nodes = tree.stats()["nodes"]
    assert sorted(tree.node_rows(0).tolist()) == list(range(3000))
    for bad in (nodes, 2**40):
        with pytest.raises((errors.RowIndexError, errors.InvalidParameterError)):
            tree.node_rows(bad)
    with pytest.raises(errors.InvalidParameterError):
        tree.node_rows(-1)
    with pytest.raises(errors.InvalidTypeError):
        tree.node_rows(0.0)


def test_take(tree, vectors):
    kept = vectors.astype(np.float16)
    np.testing.assert_array_equal(tree.take([5, 0, 5]), kept[[5, 0, 5]])
    np.testing.assert_array_equal(all_rows(tree), kept)
    assert tree.take(7).shape == (48,)
    assert tree.take(np.zeros((2, 3), np.int32)).shape == (2, 3, 48)
    assert tree.take([]).shape == (0, 48)
    assert tree.take(np.empty((0, 4), np.int64)).shape == (0, 4, 48)
    assert tree.take(np.array([1, 2999], np.uint16)).dtype == np.float16
    np.testing.assert_array_equal(tree.take(np.arange(10)[::-2]), kept[:10][::-2])
    for bad in ([-1], [3000], [0, 2**62], np.array([2**64 - 1], np.uint64)):
        with pytest.raises(errors.RowIndexError, match=r"rows in \[0, 3000\)"):
            tree.take(bad)
    with pytest.raises(IndexError):
        tree.take(-1)
    for bad in ([0.0], [True], ["a"], None):
        with pytest.raises(errors.InvalidTypeError, match="expected integers"):
            tree.take(bad)


def test_count_and_search_shapes(tree, caps):
    count = tree.count(caps)
    assert (count.dtype, count.shape) == (np.int64, (200,))
    found = tree.search(caps)
    assert len(found) == 200
    assert (found.rows.dtype, found.distances.dtype, found.offsets.dtype) == (np.int64, np.float64, np.int64)
    np.testing.assert_array_equal(found.counts, count)
    assert tree.count(caps[0]).shape == (1,)
    assert tree.count((caps.centers[0], 0.5)).shape == (1,)


def test_counts_stop_at_enough(tree, caps):
    whole = tree.count(caps)
    for least in (0, 1, 2, 100, 2999, 3000, 10**9):
        for threads in (1, 2):
            enough = tree.count(caps, at_least=least, threads=threads)
            assert enough.dtype == np.int64
            np.testing.assert_array_equal(enough, np.minimum(whole, least))
    assert tree.count(caps[:0], at_least=3).shape == (0,)
    with pytest.raises(errors.InvalidParameterError, match="at_least: expected"):
        tree.count(caps, at_least=-1)
    with pytest.raises(errors.InvalidTypeError, match="at_least: expected"):
        tree.count(caps, at_least=1.5)


def test_histograms_count_between_bounds(tree):
    centers = np.concatenate([captree.training_caps(tree, 30, seed=5).centers, all_rows(tree)[:3]])
    truth = oracle(all_rows(tree), Caps(centers, 2.0))
    # Edges at distances of rows, and next to them: a row at an edge belongs to the column that ends there.
    at = np.sort(truth[0][1])[[10, 100, 1000]]
    for edges in (np.linspace(0, 2, 21), [0.3, 0.300001], np.unique([0, *at, *np.nextafter(at, 0), 2]), [0, 2]):
        found = tree.histogram(centers, edges)
        assert (found.dtype, found.shape) == (np.int64, (33, len(edges) - 1))
        counts = np.stack([tree.count(Caps(centers, edge)) for edge in edges], axis=1)
        np.testing.assert_array_equal(found, np.diff(counts, axis=1))
        for line, (_, far) in zip(found, truth, strict=True):
            inner = [np.count_nonzero((far > low) & (far <= high)) for low, high in itertools.pairwise(edges)]
            # Distances are rounded, and three of these edges are distances.
            assert np.abs(line - inner).sum() <= 6
    one = tree.histogram(centers[0], [0, 1, 2])
    np.testing.assert_array_equal(one, tree.histogram(centers, [0, 1, 2])[:1])
    assert tree.histogram([], [0, 1]).shape == (0, 1)
    # More edges than are counted at once.
    many = tree.histogram(centers[:3], np.linspace(0, 2, 5001))
    np.testing.assert_array_equal(many.sum(axis=1), tree.histogram(centers[:3], [0, 2])[:, 0])
    for bad in ([0.5], [], 0.5, [0.5, 0.5], [1, 0], [-0.1, 1], [0, 2.1], [0, np.nan], [[0, 1]]):
        with pytest.raises(errors.InvalidParameterError, match="edges: expected at least two increasing numbers"):
            tree.histogram(centers, bad)
    with pytest.raises(errors.InvalidTypeError, match="edges: expected real numbers"):
        tree.histogram(centers, ["a", "b"])
    with pytest.raises(errors.InvalidVectorsError, match="centers: expected dim 48"):
        tree.histogram(np.eye(3), [0, 1])


def test_search_sort_and_limit(tree, caps):
    whole, ordered = tree.search(caps), tree.search(caps, sort=True)
    assert by_row(whole) == by_row(ordered)
    for rows, far in ordered:
        assert np.lexsort((rows, far)).tolist() == list(range(rows.size))
    for limit in (0, 1, 7, 10**6):
        cut = tree.search(caps, sort=True, limit=limit)
        for (rows, far), (all_r, all_d) in zip(cut, ordered, strict=True):
            np.testing.assert_array_equal(rows, all_r[:limit])
            np.testing.assert_array_equal(far, all_d[:limit])
        some = tree.search(caps, limit=limit)
        np.testing.assert_array_equal(some.counts, np.minimum(whole.counts, limit))
        for part, everything in zip(by_row(some), by_row(whole), strict=True):
            assert set(part) <= set(everything)


def test_searches_report_the_distances_asked_for(tree, caps):
    for options in ({}, {"sort": True}, {"limit": 5}, {"sort": True, "limit": 5}, {"limit": 0}):
        whole = tree.search(caps, **options)
        single, rows = (tree.search(caps, **options, distances=kind) for kind in ("float32", None))
        assert (whole.distances.dtype, single.distances.dtype, rows.distances) == (np.float64, np.float32, None)
        np.testing.assert_allclose(single.distances, whole.distances, rtol=2**-23, atol=1e-12)
        for other in (single, rows):
            np.testing.assert_array_equal(other.offsets, whole.offsets)
            np.testing.assert_array_equal(other.rows, whole.rows)
    assert all(far is None for _, far in rows)
    for bad in ("float16", "none", 32, np.float32):
        with pytest.raises(errors.InvalidParameterError, match='distances: expected "float64" or "float32" or None'):
            tree.search(caps, distances=bad)


def test_empty_batches(tree):
    for empty in (Caps([], []), Caps(np.empty((0, 48)), []), ([], [])):
        assert tree.count(empty).tolist() == []
        assert tree.count(empty).dtype == np.int64
        assert len(tree.search(empty)) == 0
        assert tree.sample(empty, k=3).shape == (0, 3)
        assert tree.sample(empty, k=3, method="approximate").shape == (0, 3)
        assert [part.shape for part in tree.estimate(empty)] == [(0,)] * 3
    rows, far = tree.nearest([], 4)
    assert rows.shape == far.shape == (0, 4)


def test_sample_shapes(tree, caps):
    rows = tree.sample(caps, k=3)
    assert (rows.shape, rows.dtype) == ((200, 3), np.int64)
    assert tree.sample(caps, k=0).shape == (200, 0)
    assert tree.sample(caps).shape == (200, 1)
    assert tree.sample(caps, method="approximate").shape == (200, 1)
    assert tree.take(tree.sample(Caps(caps.centers[:4], 2.0), k=2)).shape == (4, 2, 48)


def test_fresh_seeds_differ(tree):
    whole = Caps(random_units(1, 48), 2.0)
    assert not np.array_equal(tree.sample(whole, k=20), tree.sample(whole, k=20))


def test_estimate(tree, caps):
    count, low, high = tree.estimate(caps, seed=1)
    assert (count.dtype, low.dtype, high.dtype) == (np.float64, np.int64, np.int64)
    assert ((low >= 0) & (low <= high) & (high <= 3000)).all()
    assert ((low <= count) & (count <= high)).all()
    again = tree.estimate(caps, seed=1, threads=1)
    for a, b in zip((count, low, high), again, strict=True):
        np.testing.assert_array_equal(a, b)
    exact = tree.count(caps)
    assert ((low <= exact) & (exact <= high)).mean() > 0.85
    wide = tree.estimate(caps, samples=64, confidence=0.999, seed=2)
    assert ((wide.low <= exact) & (exact <= wide.high)).mean() > 0.97


def test_nearest_shapes(tree):
    queries = random_units(5, 48)
    rows, far = tree.nearest(queries, 3)
    assert (rows.shape, rows.dtype, far.shape, far.dtype) == ((5, 3), np.int64, (5, 3), np.float64)
    assert tree.nearest(queries[0], 2).rows.shape == (1, 2)
    assert tree.nearest(queries[0].tolist(), 2).rows.shape == (1, 2)
    rows, far = tree.nearest(queries, 3005)
    assert (rows[:, 3000:] == -1).all()
    assert np.isinf(far[:, 3000:]).all()
    assert sorted(rows[0, :3000].tolist()) == list(range(3000))
    with pytest.raises(errors.InvalidVectorsError, match="queries: expected dim 48, got 4"):
        tree.nearest(random_units(2, 4), 1)
    with pytest.raises(errors.InvalidVectorsError, match="queries: expected finite vectors of norm 1"):
        tree.nearest(queries * 2, 1)
    for bad in (0, -1):
        with pytest.raises(errors.InvalidParameterError, match="k"):
            tree.nearest(queries, bad)


def test_same_answers_in_memory_saved_and_opened(tree, stored, caps, tmp_path):
    tree.save(tmp_path / "saved.captree")
    for other in (stored, captree.open(stored.path), captree.open(tmp_path / "saved.captree")):
        np.testing.assert_array_equal(all_rows(other), all_rows(tree))
        np.testing.assert_array_equal(other.count(caps), tree.count(caps))
        a, b = other.search(caps), tree.search(caps)
        np.testing.assert_array_equal(a.rows, b.rows)
        np.testing.assert_array_equal(a.distances, b.distances)
        np.testing.assert_array_equal(other.sample(caps, seed=4), tree.sample(caps, seed=4))
        assert other.nodes().equals(tree.nodes())
        other.verify()
    tree.verify()


def test_verify_reports_progress(stored, capsys):
    calls = []
    assert stored.verify(progress=lambda *call: calls.append(call)) is None
    stored.verify(threads=1, progress=True)
    assert capsys.readouterr().out == ""


def test_pickle_by_path(stored, tree, tmp_path, monkeypatch):
    again = pickle.loads(pickle.dumps(stored))
    assert len(again) == 3000
    tree.save(tmp_path / "relative.captree")
    monkeypatch.chdir(tmp_path)
    packed = pickle.dumps(captree.open("relative.captree"))
    monkeypatch.chdir("/")
    assert len(pickle.loads(packed)) == 3000
    with pytest.raises(errors.InvalidTypeError, match=r"in memory cannot be pickled.*save"):
        pickle.dumps(tree)
    assert copy.copy(tree) is tree
    assert copy.deepcopy(tree) is tree


def test_trees_are_made_by_build_and_open():
    with pytest.raises(errors.InvalidTypeError, match=r"captree\.build"):
        captree.Tree("photos.captree")


def test_open_errors(tmp_path):
    for bad in (tmp_path / "missing", tmp_path):
        with pytest.raises(errors.TreeNotFoundError) as error:
            captree.open(bad)
        assert isinstance(error.value, FileNotFoundError)
    (tmp_path / "file").write_text("no tree")
    with pytest.raises(captree.CaptreeError):
        captree.open(tmp_path / "file")
    with pytest.raises(errors.InvalidTypeError, match="path: expected a str"):
        captree.open(3)


def test_out_that_cannot_be_written(vectors, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(captree.CaptreeError):
        captree.build(vectors[:50], out=tmp_path / "file" / "x.captree")
    with pytest.raises(captree.CaptreeError):
        captree.build(vectors[:50], out=tmp_path)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failed_build_leaves_nothing_and_a_stopped_one_nothing_half_done(vectors, tmp_path):
    bad = vectors.copy()
    bad[5] = 0
    with pytest.raises(errors.InvalidVectorsError):
        captree.build(bad, out=tmp_path / "x.captree")
    assert list(tmp_path.iterdir()) == []

    def stop(phase, done, total):
        if phase != "reading":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        captree.build(vectors, out=tmp_path / "x.captree", progress=stop)
    for left in tmp_path.iterdir():  # the callback may come after the last step
        assert left.name == "x.captree"
        captree.open(left).verify()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_a_build_and_leaves_nothing(tmp_path):
    """A signal while the core works raises KeyboardInterrupt there and then."""
    code = (
        "import sys, numpy as np, captree\n"
        "x = np.random.default_rng(0).standard_normal((60_000, 256))\n"
        "def tell(phase, done, total): phase != 'reading' and print(phase, flush=True)\n"
        "try: captree.build(x, out=sys.argv[1], normalize=True, fanout=32, leaf_size=8, threads=1, progress=tell)\n"
        "except KeyboardInterrupt: print('stopped')\n"
        "else: print('finished')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.captree")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline().startswith("level")
        child.send_signal(signal.SIGINT)
        lines = child.stdout.read().split()
    assert lines[-1] == "stopped"
    assert list(tmp_path.iterdir()) == []


def test_memory_limit(vectors):
    assert len(captree.build(vectors, memory_limit="1GiB")) == 3000
    with pytest.raises(errors.MemoryLimitError) as error:
        captree.build(vectors, memory_limit=10_000)
    assert isinstance(error.value, MemoryError)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_same_seed_same_tree(tree, vectors, threads):
    again = captree.build(vectors, fanout=8, leaf_size=40, seed=3, threads=threads)
    assert again.nodes().equals(tree.nodes())
    for node in (0, 1, tree.stats()["nodes"] - 1):
        np.testing.assert_array_equal(again.node_rows(node), tree.node_rows(node))
    by_batches = captree.build(np.array_split(vectors, 7), fanout=8, leaf_size=40, seed=3)
    assert by_batches.nodes().equals(tree.nodes())


def test_other_seed_other_tree(tree, vectors):
    other = captree.build(vectors, fanout=8, leaf_size=40, seed=4)
    assert not other.nodes().equals(tree.nodes())


@pytest.mark.parametrize("n", [1, 2, 3, 63, 64, 65])
@pytest.mark.parametrize("fanout", [2, 64, 1000])
def test_few_rows(n, fanout):
    rows = random_units(n, 5, seed=n)
    tree = captree.build(rows, fanout=fanout, leaf_size=1)
    assert len(tree) == n
    tree.verify()
    assert tree.count(Caps(rows[0], [0.0, 2.0]))[1] == n
    assert set(tree.sample(Caps(rows[0], 2.0), k=50, seed=0).ravel()) <= set(range(n))


def test_threads_share_a_tree(tree, caps):
    expected, drawn = tree.count(caps), tree.sample(caps, seed=9)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: tree.count(caps), range(8)):
            np.testing.assert_array_equal(got, expected)
        for got in pool.map(lambda _: tree.sample(caps, seed=9), range(8)):
            np.testing.assert_array_equal(got, drawn)


def test_centers_that_are_barely_unit(tree):
    """Centers within the tolerance are used as given, not renormalized."""
    center = unit(random_units(1, 48)[0], np.float64)
    near, far = Caps(center * (1 + 9e-5), 0.7), Caps(center * (1 - 9e-5), 0.7)
    d_near = tree.search(Caps(near.centers, 2.0)).distances
    d_far = tree.search(Caps(far.centers, 2.0)).distances
    assert not np.array_equal(d_near, d_far)
