"""PairStream in torch's DataLoader: any number of workers gives the same pairs in the same order."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import captree
from captree.testing import clip_like


class Pairs(IterableDataset):
    def __init__(self, stream: captree.PairStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[captree.PairBatch]:
        yield from self.stream


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> captree.Tree:
    path: Path = tmp_path_factory.mktemp("trees") / "t.captree"
    return captree.build(clip_like(2000, 24, seed=1), out=path, fanout=8)


def loaded(stream: captree.PairStream, workers: int, batches: int = 6, **options: object) -> list[captree.PairBatch]:
    loader = DataLoader(Pairs(stream), batch_size=None, num_workers=workers, **options)
    iterator = iter(loader)
    return [next(iterator) for _ in range(batches)]


@pytest.mark.parametrize(("workers", "context"), [(0, None), (1, "fork"), (2, "fork"), (2, "spawn")])
def test_workers_give_the_same_pairs(tree: captree.Tree, workers: int, context: str | None) -> None:
    with captree.PairStream(tree, 64, seed=5, prefetch=0) as plain:
        expected = [next(plain) for _ in range(6)]
    with captree.PairStream(tree, 64, seed=5) as stream:
        got = loaded(stream, workers, multiprocessing_context=context)
    for batch, wanted in zip(got, expected, strict=True):
        assert isinstance(batch.rows, torch.Tensor)
        assert batch.centers.dtype == torch.float32
        for tensor, array in zip(batch, wanted, strict=True):
            np.testing.assert_array_equal(tensor.numpy(), array)


def test_going_on_with_other_workers(tree: captree.Tree) -> None:
    with captree.PairStream(tree, 64, seed=5, prefetch=0) as plain:
        expected = [next(plain) for _ in range(9)][3:]
    with captree.PairStream(tree, 64, seed=5) as stream:
        stream.load_state_dict({**stream.state_dict(), "batch": 3})
        got = loaded(stream, 2)
    for batch, wanted in zip(got, expected, strict=True):
        np.testing.assert_array_equal(batch.rows.numpy(), wanted.rows)


def test_weights_from_torch(tree: captree.Tree) -> None:
    weights = torch.zeros(2000)
    weights[:3] = 1
    with captree.PairStream(tree, 64, radii=2.0, weights=weights) as stream:
        assert set(next(stream).rows.tolist()) == {0, 1, 2}
