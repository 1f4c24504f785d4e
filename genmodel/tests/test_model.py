import pytest
import torch
from training_support import CODES, DIM, LENGTH, caps, some_tokens, tiny_config, tiny_model

from genmodel import errors, layers
from genmodel.condition import Condition
from genmodel.model import SIZES, Generator, ModelConfig


def test_shapes() -> None:
    model = tiny_model()
    assert model(some_tokens(3), caps(3)).shape == (3, LENGTH, CODES)
    assert model(some_tokens(3)[:, :4], caps(3)).shape == (3, 4, CODES)
    assert Generator(tiny_config(activation="gelu"))(some_tokens(1), caps(1)).shape == (1, LENGTH, CODES)


def test_source_size_has_543_million_parameters() -> None:
    with torch.device("meta"):
        model = Generator(ModelConfig.sized("source", codebook_size=8192, grid=32, condition_dim=768))
    assert model.parameter_count() == pytest.approx(543e6, rel=0.005)
    config = model.config
    assert (config.depth, config.width, config.hidden, config.length) == (36, 1280, 3072, 1024)


@pytest.mark.parametrize(("size", "least", "most"), [("tiny", 2e6, 4e6), ("small", 18e6, 25e6), ("base", 80e6, 95e6)])
def test_named_sizes(size: str, least: float, most: float) -> None:
    with torch.device("meta"):
        model = Generator(ModelConfig.sized(size, codebook_size=1024, grid=8, condition_dim=512))
    assert least < model.parameter_count() < most
    assert set(SIZES) == {"tiny", "small", "base", "source"}


@pytest.mark.parametrize("step", range(LENGTH))
def test_a_token_changes_no_logits_before_it(step: int) -> None:
    model, tokens = tiny_model(), some_tokens(2)
    before = model(tokens, caps(2))
    tokens[:, step] = (tokens[:, step] + 1) % CODES
    after = model(tokens, caps(2))
    assert torch.equal(after[:, : step + 1], before[:, : step + 1])
    assert step == LENGTH - 1 or ((after - before)[:, step + 1 :].abs().amax(dim=(0, 2)) > 1e-5).all()


def test_the_condition_reaches_every_step() -> None:
    model, tokens = tiny_model(), some_tokens(2)
    apart = model(tokens, caps(2, 0.5)) - model(tokens, caps(2, 0.9))
    assert (apart.abs().amax(dim=(0, 2)) > 1e-4).all()


def test_null_cap_is_unconditional_whatever_its_center() -> None:
    model, tokens = tiny_model(), some_tokens(2)
    assert torch.equal(model(tokens, caps(2, 2.0)), model(tokens, Condition.null(2, DIM)))


def test_raster_order_given_as_an_order() -> None:
    model, tokens = tiny_model(), some_tokens(3)
    order = torch.arange(LENGTH).expand(3, LENGTH)
    assert torch.equal(model(tokens, caps(3), order), model(tokens, caps(3)))


def test_masking_in_any_order() -> None:
    model, tokens = tiny_model(), some_tokens(1)
    order = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(3))[None]
    before = model(tokens, caps(1), order)
    for step in range(LENGTH):
        changed = tokens.clone()
        changed[0, order[0, step]] = (changed[0, order[0, step]] + 1) % CODES
        after = model(changed, caps(1), order)
        assert torch.equal(after[:, : step + 1], before[:, : step + 1])
        assert step == LENGTH - 1 or not torch.allclose(after[:, step + 1], before[:, step + 1])


def test_rotary_scores_depend_on_offsets_only() -> None:
    angles = layers.rotary_angles(4, 8)[1:]
    q, k = torch.randn(8), torch.randn(8)
    turned_q = layers.rotate(q.expand(1, 16, 1, 8), angles)[0, :, 0]
    turned_k = layers.rotate(k.expand(1, 16, 1, 8), angles)[0, :, 0]
    scores = (turned_q @ turned_k.T).view(4, 4, 4, 4)
    assert torch.allclose(scores[0, 0, 1, 2], scores[2, 1, 3, 3], atol=1e-5)
    assert not torch.allclose(scores[0, 0, 1, 2], scores[0, 0, 2, 1], atol=1e-3)


def _gradients(function, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = function(*inputs)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (y * weights).sum().backward()
    return [y.detach(), *(x.grad for x in inputs)]


ANGLES = layers.rotary_angles(4, 8)
ORDERED = ANGLES[torch.stack([torch.randperm(17)[:10] for _ in range(3)])]


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (layers.rms_norm, (torch.randn(3, 5, 8),)),
        (lambda a, b: layers.attend(a, 2, b, ANGLES[:10]), (torch.randn(3, 10, 48), torch.rand(2) + 0.5)),
        (lambda a, b: layers.attend(a, 2, b, ORDERED), (torch.randn(3, 10, 48), torch.ones(2))),
        (lambda a: layers.activate(a, "swiglu"), (torch.randn(3, 4, 10),)),
    ],
)  # fmt: skip
def test_derivatives_by_hand(function, inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    fast = _gradients(function, *inputs)
    monkeypatch.setattr(layers, "fuses", lambda x: False)
    torch.manual_seed(0)
    plain = _gradients(function, *(x.double() for x in inputs))
    for a, b in zip(fast, plain, strict=True):
        assert torch.allclose(a.double(), b, atol=5e-6, rtol=1e-5)


def test_bfloat16_autocast_is_near() -> None:
    model, tokens = tiny_model(), some_tokens(3)
    expected = model(tokens, caps(3))
    with torch.autocast("cpu", torch.bfloat16):
        made = model(tokens, caps(3))
    assert made.dtype == torch.bfloat16
    assert (made.float() - expected).abs().mean() < 0.03 * expected.abs().mean()


def test_token_dropout_hides_inputs_while_training_only() -> None:
    model, tokens = tiny_model(token_dropout=0.5), some_tokens(2)
    assert torch.equal(model(tokens, caps(2)), model(tokens, caps(2)))
    model.train()
    first, second = model(tokens, caps(2)), model(tokens, caps(2))
    assert torch.equal(first[:, 0], second[:, 0])
    assert not torch.allclose(first, second)


def test_dropout() -> None:
    model, tokens = tiny_model(dropout=0.5), some_tokens(2)
    assert torch.equal(model(tokens, caps(2)), model(tokens, caps(2)))
    model.train()
    assert not torch.allclose(model(tokens, caps(2)), model(tokens, caps(2)))


def test_fresh_model_knows_nothing() -> None:
    torch.manual_seed(0)
    model = Generator(tiny_config())
    logits = model(some_tokens(8), caps(8)).detach()
    assert float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), some_tokens(8).flatten())) == pytest.approx(
        torch.log(torch.tensor(float(CODES))).item(), abs=0.1
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 30}, "multiple of 4 x heads"),
        ({"depth": 0}, "depth: expected an integer >= 1"),
        ({"condition": "text"}, "condition: expected one of"),
        ({"activation": "tanh"}, "activation: expected one of"),
        ({"token_dropout": 1.0}, "token_dropout: expected a probability"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        tiny_config(**settings)


def test_bad_tokens() -> None:
    with pytest.raises(errors.InputError, match=r"expected tokens \(n, 1..9\), got \(2, 12\)"):
        tiny_model()(torch.zeros(2, 12, dtype=torch.int64), caps(2))
