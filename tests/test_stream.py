"""PairStream: the same pairs wherever it starts and however it is split; rows by weight; threads that end."""

from __future__ import annotations

import gc
import json
import os
import pickle
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
from helpers import all_rows, random_units
from scipy import stats

import captree
from captree import (
    Caps,
    PairBatch,
    PairStream,
    RadiusMixture,
    Slerp,
    SlerpNoise,
    UniformInCap,
    _draws,
    balancing_weights,
)
from captree.errors import InvalidParameterError, InvalidTypeError
from captree.testing import oracle

ALARM = 1e-7


@pytest.fixture(scope="module")
def small():
    return captree.build(random_units(40, 3, seed=4), fanout=4, leaf_size=5)


@pytest.fixture(scope="module")
def on_disk(vectors, tmp_path_factory):
    return captree.build(vectors, out=tmp_path_factory.mktemp("trees") / "t.captree", fanout=8, leaf_size=40, seed=3)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    assert not pair_threads()


def pair_threads():
    return [thread for thread in threading.enumerate() if thread.name == "captree-pairs"]


def take(stream, n):
    return [next(stream) for _ in range(n)]


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_batches(tree):
    with PairStream(tree, 300, seed=1) as stream:
        assert iter(stream) is stream
        batch = next(stream)
    assert isinstance(batch, PairBatch)
    rows, centers, bounds = batch
    assert (rows.dtype, rows.shape) == (np.int64, (300,))
    assert (centers.dtype, centers.shape) == (np.float32, (300, 48))
    assert (bounds.dtype, bounds.shape) == (np.float32, (300,))
    kept = all_rows(tree)
    for i in range(300):
        assert oracle(kept[rows[i]][None], Caps(centers[i], float(bounds[i]))).rows.size == 1
    assert stream.batch_size == 300


def test_the_same_pairs_whatever_the_threads_and_the_prefetching(tree):
    first = take(PairStream(tree, 100, seed=3), 4)
    for options in ({"prefetch": 0}, {"prefetch": 7}, {"threads": 1}):
        with PairStream(tree, 100, seed=3, **options) as stream:
            assert_same(first, take(stream, 4))
    assert len(np.unique(np.concatenate([batch.rows for batch in first]))) > 150
    with PairStream(tree, 100, seed=4) as stream:
        assert not np.array_equal(next(stream).rows, first[0].rows)


def test_resuming(tree):
    with PairStream(tree, 50, seed=3) as stream:
        whole = take(stream, 6)
    with PairStream(tree, 50, seed=3) as stream:
        take(stream, 2)
        time.sleep(0.05)  # batches made ahead do not count
        state = json.loads(json.dumps(stream.state_dict()))
        assert state["batch"] == 2
        assert_same(take(stream, 2), whole[2:4])
        stream.load_state_dict(state)
        assert_same(take(stream, 4), whole[2:])
    with PairStream(tree, 50, seed=3, prefetch=0) as fresh:
        fresh.load_state_dict(state)
        assert_same(take(fresh, 4), whole[2:])


@pytest.mark.parametrize("change", [{"seed": 4}, {"batch_size": 51}, {"world": 2}])
def test_states_of_other_streams(tree, change):
    state = PairStream(tree, **{"batch_size": 50, "seed": 3, **change}).state_dict()
    with pytest.raises(InvalidParameterError, match=f"expected {next(iter(change))}"):
        PairStream(tree, 50, seed=3).load_state_dict(state)
    with pytest.raises(InvalidTypeError, match="expected a dict with batch"):
        PairStream(tree).load_state_dict({"batch": 1})
    with pytest.raises(InvalidParameterError, match="batch: expected"):
        PairStream(tree).load_state_dict({**PairStream(tree).state_dict(), "batch": -1})


def test_ranks_share_the_stream(tree):
    whole = take(PairStream(tree, 40, seed=2), 6)
    ranks = [PairStream(tree, 40, seed=2, rank=rank, world=3, prefetch=1) for rank in range(3)]
    assert_same([next(ranks[i % 3]) for i in range(6)], whole)
    assert ranks[0].state_dict() == ranks[2].state_dict()
    rows = np.concatenate([batch.centers for batch in whole])
    assert len(np.unique(rows, axis=0)) > 235  # the data have near-duplicates, but no batch repeats another


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_take_turns(tree, monkeypatch, workers):
    """What a DataLoader's workers give in its order, with and without a state to go on from."""
    whole = take(PairStream(tree, 40, seed=2, rank=1, world=2), 7)
    state = {**PairStream(tree, 40, seed=2, world=2).state_dict(), "batch": 1}
    here = []
    for worker in range(workers):
        info = types.SimpleNamespace(id=worker, num_workers=workers)
        monkeypatch.setitem(
            sys.modules, "torch.utils.data", types.SimpleNamespace(get_worker_info=lambda info=info: info)
        )
        stream = PairStream(tree, 40, seed=2, rank=1, world=2)
        stream.load_state_dict(state)
        here.append(take(stream, 6 // workers))
        assert stream.state_dict()["batch"] == 1 + 6 // workers * workers
    assert_same([here[i % workers][i // workers] for i in range(6)], whole[1:])


def test_pickling(on_disk, tree):
    with PairStream(on_disk, 60, seed=1, centers=SlerpNoise(0.2), weights=np.arange(3000)) as stream:
        take(stream, 2)
        copy = pickle.loads(pickle.dumps(stream))
        assert_same(take(copy, 2), take(stream, 2))
        copy.close()
    with pytest.raises(InvalidTypeError, match="a tree in memory cannot be pickled"):
        pickle.dumps(PairStream(tree))


def test_a_forked_process_starts_its_own_thread(on_disk):
    """In a process of its own: forking a process with threads is what DataLoader does, but not what tests should."""
    code = f"""
import multiprocessing, captree, numpy as np
tree = captree.open({on_disk.path!r})
stream = captree.PairStream(tree, 50, seed=1)
first = next(stream).rows
second = captree.PairStream(tree, 50, seed=1, prefetch=0)
next(second); want = next(second).rows
def child(queue):
    queue.put(next(stream).rows)
context = multiprocessing.get_context("fork")
queue = context.Queue()
process = context.Process(target=child, args=(queue,))
process.start()
got = queue.get(timeout=60)
process.join(60)
assert process.exitcode == 0 and np.array_equal(got, want)
assert np.array_equal(next(stream).rows, want)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr


def test_the_program_ends_without_closing(on_disk):
    code = f"import captree; s = captree.PairStream(captree.open({on_disk.path!r}), 50); next(s); print('ok')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_closing(tree):
    stream = PairStream(tree, 40)
    next(stream)
    assert len(pair_threads()) == 1
    stream.close()
    assert not pair_threads()
    stream.close()
    assert "closed" in repr(stream)
    with pytest.raises(InvalidParameterError, match="one that was closed"):
        next(stream)
    assert stream.state_dict()["batch"] == 1


def test_dropping_the_stream_ends_its_thread(tree):
    stream = PairStream(tree, 40)
    next(stream)
    assert pair_threads()
    del stream
    gc.collect()
    assert not pair_threads()


def test_closing_while_somebody_waits(tree):
    begun, go_on = threading.Event(), threading.Event()

    def radii(rng, n):
        begun.set()
        go_on.wait(30)
        return np.full(n, 0.5)

    stream, seen = PairStream(tree, 40, radii=radii), []

    def consume():
        try:
            next(stream)
        except InvalidParameterError as error:
            seen.append(str(error))

    consumer = threading.Thread(target=consume)
    consumer.start()
    begun.wait(30)
    closer = threading.Thread(target=stream.close)
    closer.start()
    time.sleep(0.05)
    go_on.set()
    closer.join(30)
    consumer.join(30)
    assert not consumer.is_alive()
    # The waiting consumer got the batch that was being made, or was told.
    assert seen in ([], ["expected an open PairStream, got one that was closed"])


def test_errors_of_the_thread_reach_the_consumer(tree):
    calls = []

    def radii(rng, n):
        calls.append(n)
        if len(calls) == 3:
            raise ZeroDivisionError("the third")
        return np.full(n, 2.0)

    with PairStream(tree, 40, radii=radii, prefetch=2) as stream:
        first = take(stream, 2)
        with pytest.raises(ZeroDivisionError, match="the third"):
            next(stream)
        assert stream.state_dict()["batch"] == 2
        assert not pair_threads()
        # Nothing was skipped: the next call makes the batch that failed.
        third = next(stream)
    with PairStream(tree, 40, radii=2.0) as stream:
        assert_same([*first, third], take(stream, 3))


def test_caps_that_never_have_a_row(tree):
    far = -all_rows(tree).astype(np.float64).mean(axis=0)
    far = (far / np.linalg.norm(far)).astype(np.float32)
    with (
        PairStream(tree, 5000, radii=0.1, centers=lambda rng, t, n: np.tile(far, (n, 1))) as stream,
        pytest.raises(InvalidParameterError, match=r"caps one after the other had no row"),
    ):
        next(stream)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"batch_size": 0}, InvalidParameterError),
        ({"rank": 2, "world": 2}, InvalidParameterError),
        ({"seed": -1}, InvalidParameterError),
        ({"prefetch": -1}, InvalidParameterError),
        ({"weights": np.ones(5)}, InvalidParameterError),
        ({"weights": -np.ones(3000)}, InvalidParameterError),
        ({"weights": np.zeros(3000)}, InvalidParameterError),
        ({"radii": 3.0}, InvalidParameterError),
        ({"radii": captree.ByMass(0.1, 0.2), "centers": UniformInCap()}, InvalidParameterError),
        ({"centers": np.eye(48)}, InvalidTypeError),
    ],
)
def test_bad_arguments(tree, options, error):
    with pytest.raises(error, match="expected"):
        PairStream(tree, **options)
    with pytest.raises(InvalidTypeError, match=r"expected a captree\.Tree"):
        PairStream("tree")


def test_excluded_sources(small):
    kept = all_rows(small).astype(np.float32)
    inside = oracle(all_rows(small), Caps(kept[0], 0.5)).rows

    def centers(rng, t, n):
        return np.tile(kept[0], (n, 1)), np.tile(inside[:2], (n, 1))

    for weights in (None, np.ones(40)):
        with PairStream(small, 5000, radii=0.5, centers=centers, exclude_sources=True, weights=weights) as stream:
            seen = np.bincount(next(stream).rows, minlength=40)
        assert seen[inside[2:]].sum() == 5000
        assert stats.chisquare(seen[inside[2:]]).pvalue > ALARM


# --- weights -------------------------------------------------------------------------------------------------------


def test_listed_rows_are_drawn_alike_whatever_the_shape_of_the_tree(small, monkeypatch):
    monkeypatch.setattr(_draws, "_ROUNDS", (1,))
    weights = np.random.default_rng(1).random(40) ** 12
    other = captree.build(all_rows(small), fanout=16, leaf_size=3)
    first, second = (next(PairStream(tree, 500, weights=weights, prefetch=0)) for tree in (small, other))
    assert_same([first], [second])


@pytest.mark.parametrize("rounds", [_draws._ROUNDS, (1,), ()], ids=["drawn", "drawn or listed", "listed"])
@pytest.mark.parametrize("power", [1, 12])
def test_rows_are_drawn_in_proportion_to_their_weights(small, monkeypatch, rounds, power):
    """Every way of drawing, alone and mixed, follows the one law; equal caps draw independently."""
    monkeypatch.setattr(_draws, "_ROUNDS", rounds or (1,))
    weights = np.random.default_rng(1).random(40) ** power
    weights[::7] = 0.0
    if not rounds:
        # Beside a row of this weight, outside of the caps, practically no draw is accepted, so that the list decides.
        weights[39] = 1e12
    kept = all_rows(small).astype(np.float32)
    caps = Caps(kept[:5], 0.6)
    inside = [oracle(all_rows(small), cap).rows for cap in caps]
    if not rounds:
        caps = caps[[39 not in rows for rows in inside]]
        inside = [rows for rows in inside if 39 not in rows]
    centers = caps.centers
    prior = captree.GivenCenters(centers)
    with PairStream(small, 20_000, radii=0.6, centers=prior, weights=weights) as stream:
        batch = next(stream)
    place = (batch.centers @ centers.T).argmax(axis=1)
    for i, rows in enumerate(inside):
        seen = np.bincount(batch.rows[place == i], minlength=40)
        law = weights[rows] / weights[rows].sum()
        assert seen.sum() == seen[rows].sum()
        assert (seen[rows][law == 0] == 0).all()
        likely = law * seen.sum() >= 5
        rest = [seen[rows][~likely].sum()] if law[~likely].sum() * seen.sum() >= 5 else []
        expected = [*law[likely] * seen.sum(), *([law[~likely].sum() * seen.sum()] if rest else [])]
        got = np.array([*seen[rows][likely], *rest])
        expected = np.array(expected) * got.sum() / np.sum(expected)
        assert stats.chisquare(got, expected).pvalue > ALARM
        pairs = batch.rows[place == i]
        top = rows[np.argsort(law)[-2:]]
        table = np.zeros((3, 3))
        kind = np.where(pairs == top[0], 0, np.where(pairs == top[1], 1, 2))
        np.add.at(table, (kind[:-1], kind[1:]), 1)
        if (table.sum(axis=0) > 0).all():
            assert stats.chi2_contingency(table).pvalue > ALARM


def test_caps_of_weight_zero_are_replaced(small):
    weights = np.zeros(40)
    weights[[3, 5]] = [1.0, 3.0]
    with PairStream(small, 4000, weights=weights, radii=RadiusMixture(((0.5, 0.0, 0.3), (0.5, 1.9, 2.0)))) as stream:
        rows = next(stream).rows
    assert set(rows) == {3, 5}


def test_known_rows_by_weight(tree):
    weights = np.random.default_rng(0).random(3000)
    for centers in (UniformInCap(), KnowsItsRow()):
        with PairStream(tree, 30_000, radii=0.5, centers=centers, weights=weights) as stream:
            seen = np.bincount(next(stream).rows, minlength=3000)
        some = weights > 0.1
        expected = weights[some] / weights[some].sum() * seen[some].sum()
        assert stats.chisquare(seen[some], expected).pvalue > ALARM


class KnowsItsRow:
    """Centers at rows, by a prior that knows nothing of weights."""

    needs_bounds = True

    def __call__(self, rng, tree, bounds):
        rows = rng.integers(0, len(tree), len(bounds))
        centers = tree.take(rows).astype(np.float64)
        return centers / np.linalg.norm(centers, axis=1, keepdims=True), None, rows


def test_balancing_weights(tree):
    seen = []
    weights = balancing_weights(tree, 0.2, 0.5, batch_size=1000, progress=lambda *step: seen.append(step))
    kept = all_rows(tree).astype(np.float64)
    centers = (kept / np.linalg.norm(kept, axis=1, keepdims=True)).astype(np.float32)
    counts = tree.count(Caps(centers, 0.2))
    np.testing.assert_allclose(weights, counts**-0.5)
    assert counts.max() > 1
    assert seen == [("counting", 1000, 3000), ("counting", 2000, 3000), ("counting", 3000, 3000)]
    np.testing.assert_array_equal(weights, balancing_weights(tree, 0.2, 0.5, threads=1))
    np.testing.assert_array_equal(balancing_weights(tree, 0.2, 0.0), np.ones(3000))
    # Bound 0 leaves out even the row itself where it is a little short; it counts all the same.
    assert balancing_weights(tree, 0.0).max() <= 1.0
    for bad in ({"max_cos_distance": 3.0}, {"max_cos_distance": 0.1, "exponent": -1.0}):
        with pytest.raises(InvalidParameterError, match="expected"):
            balancing_weights(tree, **bad)


def test_balancing_evens_out_a_cluster():
    """A cluster of near duplicates comes about as often as one lonely row."""
    lonely = random_units(20, 16, seed=1)
    cluster = np.tile(random_units(1, 16, seed=2), (180, 1))
    tree = captree.build(np.concatenate([lonely, cluster]))
    weights = balancing_weights(tree, 0.01, 1.0)
    with PairStream(tree, 21_000, radii=2.0, centers=Slerp(), weights=weights) as stream:
        rows = next(stream).rows
    assert stats.binomtest(int((rows >= 20).sum()), 21_000, 1 / 21).pvalue > ALARM
