import copy

import pytest
import torch
from torch import nn
from training_support import caps, some_tokens, tiny_model

from genmodel import errors
from genmodel.losses import token_losses
from genmodel.optim import (
    BatchedMuon,
    MovingAverage,
    build_optimizers,
    load_optimizer_tensors,
    lr_scale,
    optimizer_tensors,
    orthogonalize,
    set_lr,
)


@pytest.mark.parametrize("adjust", [None, "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_follows_torch(adjust: str | None, nesterov: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    first = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in [(8, 12), (8, 12), (24, 8), (6, 6)]]
    second = copy.deepcopy(first)
    settings = {"lr": 0.1, "weight_decay": 0.05, "momentum": 0.9, "nesterov": nesterov, "adjust_lr_fn": adjust}
    mine, theirs = BatchedMuon(first, **settings), torch.optim.Muon(second, **settings)
    for _ in range(3):
        for a, b in zip(first, second, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        mine.step()
        theirs.step()
    for a, b in zip(first, second, strict=True):
        # torch orthogonalizes in bfloat16.
        assert torch.allclose(a, b, atol=0.02)
        assert torch.allclose(mine.state[a]["momentum_buffer"], theirs.state[b]["momentum_buffer"], atol=1e-6)


def test_orthogonalized_singular_values_are_near_one() -> None:
    for shape in [(3, 16, 40), (3, 40, 16), (2, 20, 20)]:
        made = orthogonalize(
            torch.randn(shape, generator=torch.Generator().manual_seed(1)), (3.4445, -4.775, 2.0315), 5
        )
        values = torch.linalg.svdvals(made)
        assert made.shape == shape
        assert 0.3 < float(values.min()) <= float(values.max()) < 1.3


def test_both_ways_of_iterating_agree() -> None:
    values = torch.logspace(0, -4, 24)
    left, right = (torch.linalg.qr(torch.randn(n, 24, generator=torch.Generator().manual_seed(n)))[0] for n in (24, 96))
    given = (left * values @ right.mT)[None]
    coefficients = (3.4445, -4.775, 2.0315)
    fast = orthogonalize(given, coefficients, 5)
    exact = orthogonalize(given.double(), coefficients, 5)
    assert torch.allclose(fast.double(), exact, atol=2e-3)


def test_each_kind_of_parameter_has_its_optimizer() -> None:
    model = tiny_model()
    adam, muon = build_optimizers(model, lr=0.1, muon_lr=0.2, weight_decay=0.3)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert isinstance(muon, torch.optim.Muon)
    by_muon = {names[p] for group in muon.param_groups for p in group["params"]}
    assert by_muon == {f"blocks.{i}.{part}.weight" for i in range(2) for part in ("qkv", "out", "up", "down")}
    decayed, plain = ({names[p] for p in group["params"]} for group in adam.param_groups)
    assert decayed == {
        "condition.center.weight",
        "condition.radius.0.weight",
        "condition.radius.2.weight",
        "head.weight",
    }
    assert {"tokens.weight", "cells.weight", "blocks.0.sharpness"} <= plain
    assert len(by_muon) + len(decayed) + len(plain) == len(names)
    assert [group["weight_decay"] for group in adam.param_groups] == [0.3, 0.0]
    set_lr([adam, muon], 0.5)
    assert (adam.param_groups[0]["lr"], muon.param_groups[0]["lr"]) == (0.05, 0.1)
    assert len(build_optimizers(model, muon_lr=0)) == 1


def test_schedules() -> None:
    wsd = [lr_scale(step, 100, 10, "wsd", 0.4, 0.0) for step in range(100)]
    assert wsd[0] == pytest.approx(0.1)
    assert wsd[9:60] == [1.0] * 51
    assert wsd[80] == pytest.approx(0.5)
    assert 0 < wsd[99] < 0.03
    cosine = [lr_scale(step, 100, 10, "cosine", floor=0.1) for step in range(100)]
    assert max(cosine) == cosine[10] == 1.0
    assert cosine[55] == pytest.approx(0.55)
    assert cosine[99] == pytest.approx(0.1, abs=0.01)
    assert lr_scale(50, 100, 10, "constant") == 1.0
    assert lr_scale(0, 100, 0, "constant") == 1.0
    with pytest.raises(errors.ConfigError, match="schedule"):
        lr_scale(0, 1, 0, "square")


def test_moving_average_is_short_at_first() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    average = MovingAverage(model, 0.999)
    with torch.no_grad():
        model.weight.fill_(1.0)
    for step in range(50):
        average.update(step)
    assert float(average.average["weight"]) > 0.99
    slow = MovingAverage(model, 0.999)
    with torch.no_grad():
        model.weight.fill_(2.0)
    slow.update(1_000_000)
    assert float(slow.average["weight"]) == pytest.approx(1.001)


def _step(model: nn.Module, optimizers: list[torch.optim.Optimizer], seed: int) -> None:
    token_losses(model(some_tokens(4, seed), caps(4, seed=seed)), some_tokens(4, seed)).mean().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def test_state_goes_out_and_back() -> None:
    first = tiny_model()
    optimizers = build_optimizers(first)
    for seed in range(3):
        _step(first, optimizers, seed)
    second = copy.deepcopy(first)
    again = build_optimizers(second)
    load_optimizer_tensors(second, again, {k: v.clone() for k, v in optimizer_tensors(first, optimizers).items()})
    _step(first, optimizers, 3)
    _step(second, again, 3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with pytest.raises(errors.CheckpointError, match="which this model does not"):
        load_optimizer_tensors(second, again, {"0.nothing.exp_avg": torch.zeros(1)})
