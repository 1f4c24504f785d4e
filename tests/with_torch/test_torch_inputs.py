"""Torch tensors of every dtype and layout go in where numpy arrays do, and mean the same vectors.

Runs in an environment of its own (`make test-torch`): torch is large, and captree must not need it anywhere else. The
captree here is the built wheel, as a user gets it.
"""

import numpy as np
import pytest
import torch

import captree

ROWS, DIM = 500, 48

# float32 values of each dtype are exact, so the stored float32 vectors must be those values to the bit.
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(scope="module")
def unit() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, DIM, generator=generator, dtype=torch.float64) + 0.5
    return x / x.norm(dim=1, keepdim=True)


def stored(vectors: torch.Tensor, **options: object) -> np.ndarray:
    tree = captree.build(vectors, storage="float32", fanout=8, **options)
    assert len(tree) == len(vectors)
    return np.asarray(tree.take(np.arange(len(tree))))


def values(vectors: torch.Tensor) -> np.ndarray:
    return vectors.detach().to(torch.float32).numpy()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_keeps_its_values(unit: torch.Tensor, dtype: torch.dtype) -> None:
    x = unit.to(dtype)
    np.testing.assert_array_equal(stored(x), values(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["rows", "columns", "transposed", "sliced", "expanded"])
def test_strided_tensors(unit: torch.Tensor, dtype: torch.dtype, layout: str) -> None:
    x = unit.to(dtype)
    view = {
        "rows": lambda: x[::3],
        "columns": lambda: x.repeat_interleave(2, dim=1)[:, ::2],
        "transposed": lambda: x.T.contiguous().T,
        "sliced": lambda: torch.cat([x, x], dim=1)[7:, DIM:],
        "expanded": lambda: x[:1].expand(40, DIM),
    }[layout]()
    np.testing.assert_array_equal(stored(view), values(view))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_that_requires_grad(unit: torch.Tensor, dtype: torch.dtype) -> None:
    x = unit.to(dtype, copy=True).requires_grad_()
    np.testing.assert_array_equal(stored(x), values(x))
    assert x.requires_grad
    assert x.grad is None


def test_a_negated_view(unit: torch.Tensor) -> None:
    """A view with torch's lazy negative bit holds other bytes than its values."""
    view = torch.view_as_complex(torch.stack([unit, unit], dim=-1).contiguous()).conj().imag
    assert view.is_neg()
    np.testing.assert_array_equal(stored(view), values(view))


def test_batches_of_tensors(unit: torch.Tensor) -> None:
    np.testing.assert_array_equal(stored_from_batches(unit.split(128)), values(unit))


def stored_from_batches(batches: tuple[torch.Tensor, ...]) -> np.ndarray:
    tree = captree.build(iter(batches), storage="float32")
    return np.asarray(tree.take(np.arange(len(tree))))


def test_centers_and_bounds_of_caps(unit: torch.Tensor) -> None:
    tree = captree.build(unit, storage="float32")
    centers = unit[:20].to(torch.float32)
    bounds = torch.linspace(0.0, 2.0, 20, dtype=torch.float64)
    expected = tree.count(captree.Caps(centers.numpy(), bounds.numpy()))
    assert expected[-1] == ROWS

    for given in (centers, centers.clone().requires_grad_(), centers.T.contiguous().T):
        np.testing.assert_array_equal(tree.count(captree.Caps(given, bounds)), expected)
    np.testing.assert_array_equal(
        tree.count(captree.Caps(centers, 0.5)), tree.count(captree.Caps(centers.numpy(), 0.5))
    )


def test_queries_of_nearest(unit: torch.Tensor) -> None:
    tree = captree.build(unit, storage="float32")
    rows, _ = tree.nearest(unit[:30].to(torch.float32), 1)
    np.testing.assert_array_equal(rows[:, 0], np.arange(30))


def test_a_loader_of_pairs_runs_under_torch(unit: torch.Tensor) -> None:
    """The arrays that come out go into torch without a copy."""
    tree = captree.build(unit)
    caps = captree.training_caps(tree, 16, seed=0)
    rows = torch.from_numpy(tree.sample(caps, k=4, seed=0))
    assert rows.shape == (16, 4)
    assert rows.dtype == torch.int64
