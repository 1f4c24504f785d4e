import numpy as np
import pytest
import torch
from training_support import CODES, DIM, LENGTH, caps, some_tokens, tiny_model

from genmodel import errors
from genmodel.condition import Condition
from genmodel.generate import generate, pick


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("order", ["raster", "random"])
def test_cache_gives_what_recomputation_gives(guidance: float, order: str) -> None:
    model = tiny_model(random_order=True)
    settings = {"guidance": guidance, "seed": 4, "order": order}
    drawn = generate(model, caps(6), **settings)
    assert drawn.shape == (6, LENGTH)
    assert torch.equal(drawn, generate(model, caps(6), cache=False, **settings))


def test_cached_logits_equal_a_full_forward() -> None:
    model, tokens = tiny_model(), some_tokens(3)
    full = model(tokens, caps(3))
    with torch.inference_mode():
        embedded, cache = model.condition(caps(3)), model.new_cache(3, "cpu", torch.float32)
        for i in range(LENGTH):
            x, angles = model.embed(tokens[:, max(i - 1, 0) : i], embedded, None, i)
            assert torch.allclose(model.logits(model.run(x, angles, cache))[:, 0], full[:, i], atol=1e-4)


@pytest.mark.parametrize("order", ["raster", "random"])
def test_a_batch_may_be_split(order: str) -> None:
    model = tiny_model(random_order=True)
    whole = generate(model, caps(7), seed=5, guidance=2.0, order=order)
    parts = [
        generate(model, caps(7)[a:b], seed=5, guidance=2.0, order=order, first=a) for a, b in ((0, 1), (1, 5), (5, 7))
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(generate(model, caps(7), seed=6), generate(model, caps(7), seed=5))


@pytest.mark.parametrize("order", ["raster", "random"])
def test_bfloat16(order: str) -> None:
    expected = tiny_model()(some_tokens(64), caps(64)).argmax(-1)
    model = tiny_model(random_order=True)
    with torch.autocast("cpu", torch.bfloat16):
        drawn = generate(model, caps(64), guidance=2.0, order=order)
    assert drawn.shape == (64, LENGTH)
    rounded = model.to(torch.bfloat16)
    assert generate(rounded, caps(64), guidance=2.0, order=order).shape == (64, LENGTH)
    logits = rounded(some_tokens(64), caps(64))
    assert logits.dtype == torch.bfloat16
    assert (logits.argmax(-1) == expected).float().mean() > 0.9


def test_guidance_identities() -> None:
    model, null = tiny_model(), Condition.null(5, DIM)
    unconditional = generate(model, null, seed=1)
    assert torch.equal(generate(model, caps(5), seed=1, guidance=0.0), unconditional)
    assert torch.equal(generate(model, caps(5, 2.0), seed=1), unconditional)
    for guidance in (0.0, 0.5, 3.0, -1.0):
        assert torch.equal(generate(model, null, seed=1, guidance=guidance), unconditional)
    conditional = generate(model, caps(5), seed=1)
    assert not torch.equal(conditional, unconditional)
    assert torch.equal(generate(model, caps(5), seed=1, guidance=1.0 + 1e-9), conditional)
    mixed = generate(model, Condition.cat([caps(3), null]), seed=1, guidance=3.0)
    assert torch.equal(mixed[3:], generate(model, null, seed=1, first=3))


def test_guided_logits() -> None:
    model = tiny_model()
    given, null = (model(some_tokens(1), c)[0, 0] for c in (caps(1), Condition.null(1, DIM)))
    drawn = generate(model, caps(1), guidance=4.0, temperature=0.0)
    assert drawn[0, 0] == (null + 4 * (given - null)).argmax()


def test_greedy_takes_the_most_likely() -> None:
    model = tiny_model()
    drawn = generate(model, caps(2), temperature=0.0, seed=1)
    assert torch.equal(drawn, generate(model, caps(2), temperature=0.0, seed=2))
    assert torch.equal(model(drawn, caps(2)).argmax(-1), drawn)


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.2, 1e-9])
def test_draws_follow_the_nucleus(top_p: float) -> None:
    probabilities = torch.tensor([0.05, 0.4, 0.15, 0.3, 0.1])
    n = 10_000
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drawn = pick(probabilities.log().expand(n, 5), uniform, 1.0, top_p)
    share = torch.bincount(drawn, minlength=5) / n
    ranked = probabilities.argsort(descending=True)
    before = probabilities[ranked].cumsum(0) - probabilities[ranked]
    kept = torch.zeros(5, dtype=torch.bool)
    kept[ranked[before < top_p]] = True
    expected = torch.where(kept, probabilities, 0)
    assert torch.allclose(share, expected / expected.sum(), atol=2e-4)


def test_temperature() -> None:
    logits, n = torch.tensor([0.0, 1.0, 2.0]), 10_000
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    share = torch.bincount(pick(logits.expand(n, 3), uniform, 0.5, 1.0), minlength=3) / n
    assert torch.allclose(share, (logits / 0.5).softmax(0), atol=2e-4)


def test_uniform_numbers_at_their_ends() -> None:
    ends = torch.tensor([0.0, float(np.nextafter(1.0, 0.0))], dtype=torch.float64)
    assert pick(torch.tensor([[0.0, -1e9], [0.0, -1e9]]), ends, 1.0, 1.0).tolist() == [0, 0]


def test_the_mode_and_the_random_state_are_left_alone() -> None:
    model = tiny_model().train()
    state = torch.get_rng_state()
    generate(model, caps(1))
    assert model.training
    assert torch.equal(state, torch.get_rng_state())


def test_tokens_are_codes() -> None:
    drawn = generate(tiny_model(), caps(16), top_p=1.0, temperature=5.0)
    assert drawn.dtype == torch.int64
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < CODES
    assert generate(tiny_model(), caps(1)[:0]).shape == (0, LENGTH)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_p": 0.0}, "top_p"),
        ({"temperature": -1.0}, "temperature"),
        ({"guidance": float("inf")}, "guidance"),
        ({"order": "spiral"}, "order: expected one of"),
        ({"order": "random"}, "raster order only"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        generate(tiny_model(), caps(1), **settings)


def test_another_dimension() -> None:
    with pytest.raises(errors.InputError, match="dimension 16, got 4"):
        generate(tiny_model(), Condition.null(1, 4))
