"""Our tokenizers: FSQ's codes, the dVAE's relaxation, shapes, gradients, files, and a short training run."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genmodel.errors import ConfigError, DataError, InputError
from genmodel.tokenizers import DVAETokenizer, FSQTokenizer, load_tokenizer
from genmodel.tokenizers.dvae import kl_weight_at, temperature_at
from genmodel.tokenizers.fsq import FSQ
from genmodel.tokenizers.train import TokenizerConfig, measure, train_tokenizer

LEVELS = st.lists(st.integers(2, 9), min_size=1, max_size=4)


def tiny(kind="fsq", image_size=16, grid=4):
    torch.manual_seed(0)
    if kind == "fsq":
        return FSQTokenizer(image_size, grid, width=8, depth=1, levels=(4, 3, 3))
    return DVAETokenizer(image_size, grid, width=8, depth=1, codebook_size=12, channels=5)


def pictures(n=40, size=16, seed=0):
    """Two-colored squares: easy to learn."""
    rng = np.random.default_rng(seed)
    images = np.empty((n, size, size, 3), np.uint8)
    images[:] = rng.integers(0, 256, (n, 1, 1, 3))
    images[:, : size // 2, : size // 2] = rng.integers(0, 256, (n, 1, 1, 3))
    return images


@settings(deadline=None)
@given(LEVELS)
def test_ids_and_codes_are_a_bijection(levels):
    quantizer = FSQ(levels)
    ids = torch.arange(math.prod(levels))
    codes = quantizer.ids_to_codes(ids)
    assert codes.shape == (len(ids), len(levels))
    assert codes.abs().max() <= 1
    assert len(codes.unique(dim=0)) == len(ids)
    assert torch.equal(quantizer.codes_to_ids(codes), ids)


@settings(deadline=None)
@given(LEVELS, st.integers(0, 2**31), st.floats(0.01, 1e4))
def test_every_float_is_quantized_to_a_code(levels, seed, scale):
    quantizer = FSQ(levels)
    z = scale * torch.randn(64, len(levels), generator=torch.Generator().manual_seed(seed))
    codes = quantizer(z)
    ids = quantizer.codes_to_ids(codes)
    assert 0 <= int(ids.min()) <= int(ids.max()) < quantizer.codebook_size
    torch.testing.assert_close(quantizer.ids_to_codes(ids), codes, rtol=0, atol=1e-6)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2,), (3, 7)])
def test_every_code_can_be_reached(levels):
    quantizer = FSQ(levels)
    z = torch.linspace(-8, 8, 20001)
    for channel, count in enumerate(levels):
        codes = quantizer(z.unsqueeze(1).expand(-1, len(levels)))[:, channel]
        assert len(codes.unique()) == count


def test_the_gradient_goes_straight_through():
    quantizer = FSQ()
    z = torch.randn(32, 4, requires_grad=True)
    quantizer(z).sum().backward()
    gradient = z.grad.clone()
    z.grad = None
    (quantizer.bound(z) / (quantizer.levels // 2)).sum().backward()
    torch.testing.assert_close(gradient, z.grad)
    assert (gradient > 0).all()


@pytest.mark.parametrize("levels", [(), (1, 5), (2.5,), (256, 257)])
def test_impossible_levels_are_an_error(levels):
    with pytest.raises(ConfigError):
        FSQ(levels)


@pytest.mark.parametrize("kind", ["fsq", "dvae"])
@pytest.mark.parametrize(("image_size", "grid"), [(16, 4), (32, 8), (64, 8), (64, 16), (16, 8)])
def test_shapes(kind, image_size, grid):
    tokenizer = tiny(kind, image_size, grid).eval()
    images = torch.randint(0, 256, (3, 3, image_size, image_size), dtype=torch.uint8)
    tokens = tokenizer.encode(images)
    assert tokens.shape == (3, grid * grid)
    assert tokens.dtype == torch.long
    decoded = tokenizer.decode(tokens)
    assert decoded.shape == images.shape
    assert decoded.dtype == torch.uint8
    assert tokenizer.codebook().shape[0] == tokenizer.codebook_size
    assert tokenizer.encode(images[:0]).shape == (0, grid * grid)
    assert tokenizer.decode(tokens[:0]).shape == (0, 3, image_size, image_size)


@pytest.mark.parametrize("kind", ["fsq", "dvae"])
def test_tokens_do_not_depend_on_the_batch(kind):
    tokenizer = tiny(kind).eval()
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(torch.cat([tokenizer.encode(image[None]) for image in images]), tokenizer.encode(images))


@pytest.mark.parametrize("kind", ["fsq", "dvae"])
def test_soft_decoding_shows_the_most_probable_tokens_and_passes_gradients(kind):
    tokenizer = tiny(kind).eval().requires_grad_(False)
    tokens = torch.randint(0, tokenizer.codebook_size, (2, 16))
    logits = (4 * torch.nn.functional.one_hot(tokens, tokenizer.codebook_size).float()).requires_grad_()
    pixels = tokenizer.decode_soft(logits.softmax(-1))
    torch.testing.assert_close((pixels * 255).round().to(torch.uint8), tokenizer.decode(tokens))
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    pixels.square().sum().backward()
    assert logits.grad.abs().sum() > 0


def test_wrong_input_is_an_error():
    tokenizer = tiny()
    with pytest.raises(InputError, match=r"uint8 images of shape \(n, 3, 16, 16\), got torch.float32"):
        tokenizer.encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match=r"shape \(1, 3, 8, 8\)"):
        tokenizer.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"tokens in \[0, 36\), got values from 0 to 36"):
        tokenizer.decode(torch.tensor([[36] + [0] * 15]))
    with pytest.raises(InputError, match=r"shape \(n, 16\)"):
        tokenizer.decode(torch.zeros(1, 15, dtype=torch.long))
    with pytest.raises(InputError, match="probabilities"):
        tokenizer.decode_soft(torch.zeros(1, 16, 35))
    for image_size, grid in ((16, 5), (16, 16), (24, 8), (16, 0)):
        with pytest.raises(ConfigError, match="power of two"):
            FSQTokenizer(image_size, grid)


@pytest.mark.parametrize("kind", ["fsq", "dvae"])
def test_a_saved_tokenizer_is_the_same(kind, tmp_path):
    tokenizer = tiny(kind).eval()
    loaded = load_tokenizer(tokenizer.save(tmp_path / "t"))
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    assert loaded.name == str(tmp_path / "t")
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_damaged_folders_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no config\.json"):
        load_tokenizer(tmp_path)
    tiny().save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="does not fit"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "vqgan", "settings": {}}')
    with pytest.raises(DataError, match="'vqgan'"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        load_tokenizer(tmp_path)


def test_relaxed_codes_approach_the_argmax():
    tokenizer = tiny("dvae").eval()
    with torch.no_grad():
        tokenizer.encoder.head.weight.mul_(1e6)  # certain codes: the noise no longer matters
        tokenizer.encoder.head.bias.mul_(1e6)
    pixels = torch.rand(2, 3, 16, 16)
    decoded, divergence, _, tokens = tokenizer.relaxed(pixels, temperature=0.01)
    exact = tokenizer.decode_vectors(tokenizer.codebook()[tokens].movedim(-1, 1))
    torch.testing.assert_close(decoded, exact, rtol=1e-3, atol=1e-3)
    assert 0 <= divergence.item() <= math.log(12) + 1e-4


def test_uniform_codes_have_no_divergence():
    tokenizer = tiny("dvae")
    with torch.no_grad():
        tokenizer.encoder.head.weight.zero_()
        tokenizer.encoder.head.bias.zero_()
    _, divergence, unevenness, _ = tokenizer.relaxed(torch.rand(1, 3, 16, 16), 1.0)
    assert abs(divergence.item()) < 1e-5
    assert abs(unevenness.item()) < 1e-5
    with torch.no_grad():
        tokenizer.encoder.head.bias[3] = 100  # one code alone
    _, divergence, unevenness, _ = tokenizer.relaxed(torch.rand(1, 3, 16, 16), 1.0)
    assert divergence.item() == pytest.approx(math.log(12), rel=1e-3)
    assert unevenness.item() == pytest.approx(math.log(12), rel=1e-3)


def test_schedules():
    assert temperature_at(0, 1.0, 0.0625, 0.5) == 1.0
    assert temperature_at(0.5, 1.0, 0.0625, 0.5) == pytest.approx(0.0625)
    assert temperature_at(1, 1.0, 0.0625, 0.5) == pytest.approx(0.0625)
    assert kl_weight_at(0, 6.6, 0.25) == 0
    assert kl_weight_at(0.125, 6.6, 0.25) == pytest.approx(3.3)
    assert kl_weight_at(0.9, 6.6, 0.25) == pytest.approx(6.6)
    assert kl_weight_at(0.0, 6.6, 0.0) == pytest.approx(6.6)


@pytest.mark.parametrize("kind", ["fsq", "dvae"])
def test_training_learns_and_reports(kind, tmp_path):
    np.save(tmp_path / "images.npy", pictures(80))
    config = TokenizerConfig(
        str(tmp_path / "images.npy"),
        str(tmp_path / "t"),
        kind=kind,
        image_size=16,
        grid=4,
        width=16,
        codebook_size=32,
        channels=8,
        steps=150,
        warmup=10,
        batch_size=16,
        flip=True,
        progress=False,
    )
    report = train_tokenizer(config)
    assert report["psnr"] > (14 if kind == "fsq" else 10)
    assert 0 < report["codes_used"] <= 1
    assert 1 <= report["perplexity"] <= load_tokenizer(tmp_path / "t").codebook_size
    assert (report["images"], report["holdout_images"], report["steps"]) == (76, 4, 150)
    if kind == "fsq":
        again = train_tokenizer(TokenizerConfig(**{**vars(config), "out": str(tmp_path / "again")}))
        assert again["psnr"] == report["psnr"]


def test_training_keeps_to_its_time(tmp_path):
    np.save(tmp_path / "images.npy", pictures(8))
    common = {"image_size": 16, "grid": 4, "width": 8, "batch_size": 4, "progress": False}
    report = train_tokenizer(
        TokenizerConfig(str(tmp_path / "images.npy"), str(tmp_path / "t"), steps=10**6, max_seconds=0.5, **common)
    )
    assert 0 < report["steps"] < 10**6
    assert report["seconds"] < 30


def test_codebook_use_is_counted():
    tokenizer = tiny("dvae").eval()
    with torch.no_grad():
        tokenizer.encoder.head.weight.zero_()
        tokenizer.encoder.head.bias.zero_()
        tokenizer.encoder.head.bias[3] = 1
    measured = measure(tokenizer, torch.zeros(5, 3, 16, 16, dtype=torch.uint8))
    assert measured["codes_used"] == pytest.approx(1 / 12)
    assert measured["perplexity"] == pytest.approx(1)
    expected = tokenizer.decode(torch.full((1, 16), 3)).double().div(255).square().mean()
    assert measured["mse"] == pytest.approx(float(expected), rel=1e-4)
    assert measured["psnr"] == pytest.approx(-10 * math.log10(float(expected)), rel=1e-4)


def test_settings_outside_their_domain_are_refused(tmp_path):
    np.save(tmp_path / "images.npy", pictures(8))
    for setting in ({"steps": 0}, {"holdout": 0.0}, {"ema": 1.0}, {"temperature": (1.0, 0.0)}, {"kind": "vq"}):
        with pytest.raises(ConfigError, match=next(iter(setting))):
            train_tokenizer(TokenizerConfig(str(tmp_path / "images.npy"), str(tmp_path / "t"), **setting))
