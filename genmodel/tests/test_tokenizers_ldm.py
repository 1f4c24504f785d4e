"""Latent Diffusion's VQ autoencoder: its key layout, its arithmetic, its files."""

import collections
import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from genmodel.encode import EncodeConfig
from genmodel.errors import ConfigError, DataError
from genmodel.tokenizers import load_tokenizer
from genmodel.tokenizers.ldm import VQ_F4, LDMTokenizer, from_ldm_state, read_checkpoint

pytest.importorskip("diffusers")

TUTORIAL = Path(__file__).parents[2] / "docs" / "genmodel.md"


def ldm_shapes(channels=(128, 256, 512), blocks=2, latent=3, codes=8192):
    """Names and shapes of the weights as in the authors' checkpoints."""
    shapes = {}

    def conv(name, out, into, kernel=3):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into, kernel, kernel), (out,)

    def norm(name, size):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)

    def block(name, into, out):
        norm(f"{name}.norm1", into)
        conv(f"{name}.conv1", out, into)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2", out, out)
        if into != out:
            conv(f"{name}.nin_shortcut", out, into, 1)

    def middle(name, size):
        block(f"{name}.block_1", size, size)
        norm(f"{name}.attn_1.norm", size)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.attn_1.{part}", size, size, 1)
        block(f"{name}.block_2", size, size)

    last = len(channels) - 1
    conv("encoder.conv_in", channels[0], 3)
    into = channels[0]
    for level, out in enumerate(channels):
        for number in range(blocks):
            block(f"encoder.down.{level}.block.{number}", into, out)
            into = out
        if level < last:
            conv(f"encoder.down.{level}.downsample.conv", out, out)
    middle("encoder.mid", into)
    norm("encoder.norm_out", into)
    conv("encoder.conv_out", latent, into)
    conv("quant_conv", latent, latent, 1)
    shapes["quantize.embedding.weight"] = (codes, latent)
    conv("post_quant_conv", latent, latent, 1)
    conv("decoder.conv_in", into, latent)
    middle("decoder.mid", into)
    for level in reversed(range(len(channels))):
        for number in range(blocks + 1):
            block(f"decoder.up.{level}.block.{number}", into, channels[level])
            into = channels[level]
        if level > 0:
            conv(f"decoder.up.{level}.upsample.conv", into, into)
    norm("decoder.norm_out", into)
    conv("decoder.conv_out", 3, into)
    return shapes


def small_state(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ldm_shapes((32, 64), blocks=1, codes=20)
    state = {
        key: torch.randn(shape, generator=generator) / max(1, torch.tensor(shape[1:]).prod().item()) ** 0.5
        for key, shape in shapes.items()
    }
    return {key: 1 + 0.1 * value if "norm" in key and "weight" in key else value for key, value in state.items()}


class Reference:
    """The authors' forward pass, written from the paper's description over the raw state dict."""

    def __init__(self, state):
        self.state = state

    def conv(self, name, x, **settings):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **settings)

    def norm(self, name, x):
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def block(self, name, x):
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)), padding=1)
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)), padding=1)
        return h + (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.state else x)

    def middle(self, name, x):
        x = self.block(f"{name}.block_1", x)
        h = self.norm(f"{name}.attn_1.norm", x)
        q, k, v = (self.conv(f"{name}.attn_1.{part}", h).flatten(2) for part in "qkv")
        weights = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
        x = x + self.conv(f"{name}.attn_1.proj_out", (v @ weights.transpose(1, 2)).view_as(x))
        return self.block(f"{name}.block_2", x)

    def encode(self, pixels):
        x = self.conv("encoder.conv_in", 2 * pixels - 1, padding=1)
        x = self.block("encoder.down.0.block.0", x)
        x = self.conv("encoder.down.0.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
        x = self.middle("encoder.mid", self.block("encoder.down.1.block.0", x))
        z = self.conv("encoder.conv_out", F.silu(self.norm("encoder.norm_out", x)), padding=1)
        z = self.conv("quant_conv", z).movedim(1, -1)
        distances = (z.unsqueeze(-2) - self.state["quantize.embedding.weight"]).square().sum(-1)
        return distances.argmin(-1).flatten(1)

    def decode(self, tokens, grid):
        z = self.state["quantize.embedding.weight"][tokens].view(len(tokens), grid, grid, -1).movedim(-1, 1)
        x = self.conv("decoder.conv_in", self.conv("post_quant_conv", z), padding=1)
        x = self.middle("decoder.mid", x)
        for level in (1, 0):
            for number in range(2):
                x = self.block(f"decoder.up.{level}.block.{number}", x)
            if level:
                x = self.conv("decoder.up.1.upsample.conv", F.interpolate(x, scale_factor=2.0), padding=1)
        x = self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", x)), padding=1)
        return (x + 1) / 2


def test_every_key_of_vq_f4_is_known(tmp_path):
    shapes = ldm_shapes()
    # Expanded zeros: a file of real shapes that takes no room.
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    state["loss.discriminator.main.0.weight"] = torch.zeros(1)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "model.ckpt")
    tokenizer = load_tokenizer(f"ldm:{tmp_path / 'model.ckpt'}@32")
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == pytest.approx(55.3e6, rel=1e-3)
    config = tokenizer.vq.config
    assert {key: getattr(config, key) for key in VQ_F4} == VQ_F4
    assert (tokenizer.codebook_size, tokenizer.grid, tokenizer.tokens_per_image) == (8192, 8, 64)
    assert all(not parameter.any() for parameter in tokenizer.parameters())  # all overwritten
    images = tokenizer.decode(torch.full((1, 64), 8191))
    assert images.shape == (1, 3, 32, 32)
    assert (images == 128).all()  # zero weights: mid-gray


def test_the_default_is_vq_f4_on_the_hub(monkeypatch):
    from diffusers import VQModel

    # vqvae/config.json of that repository, read on its page.
    settings = {
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "in_channels": 3,
        "latent_channels": 3,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "num_vq_embeddings": 8192,
        "out_channels": 3,
        "sample_size": 256,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "vq_embed_dim": None,
    }
    asked = []

    def from_pretrained(name, **options):
        asked.append((name, options))
        return VQModel(**settings)

    monkeypatch.setattr(VQModel, "from_pretrained", from_pretrained)
    name = EncodeConfig("images", "out").tokenizer
    tokenizer = load_tokenizer(name)
    assert asked == [("CompVis/ldm-super-resolution-4x-openimages", {"subfolder": "vqvae"})]
    assert (tokenizer.grid, tokenizer.tokens_per_image, tokenizer.codebook_size) == (32, 1024, 8192)
    shapes = {key: tuple(value.shape) for key, value in tokenizer.vq.state_dict().items()}
    small = {key: torch.zeros(()).expand(shape) for key, shape in ldm_shapes().items()}
    assert shapes == {key: tuple(value.shape) for key, value in from_ldm_state(small).state_dict().items()}
    if TUTORIAL.is_file():  # part of the repository, not of the distribution
        assert set(re.findall(r"ldm:CompVis/[\w-]+", TUTORIAL.read_text(encoding="utf-8"))) == {name}


def test_the_arithmetic_is_the_authors():
    state = small_state()
    tokenizer = LDMTokenizer(from_ldm_state(state), 16).eval()
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    reference = Reference(state)
    tokens = tokenizer.encode(images)
    assert torch.equal(tokens, reference.encode(images.float() / 255))
    assert len(tokens.unique()) > 3
    expected = (reference.decode(tokens, 8).clamp(0, 1) * 255).round()
    assert (tokenizer.decode(tokens).float() - expected).abs().max() <= 1
    entry = tokenizer.vq.quantize.get_codebook_entry(tokens.flatten(), (2, 8, 8, 3))
    with torch.no_grad():
        direct = (tokenizer.vq.decode(entry, force_not_quantize=True).sample.add(1) / 2).clamp(0, 1).mul(255).round()
    assert (tokenizer.decode(tokens).float() - direct).abs().max() <= 1


def test_whole_diffusion_models_and_diffusers_folders_load_too(tmp_path):
    state = small_state()
    whole = {f"first_stage_model.{key}": value for key, value in state.items()}
    whole["model.diffusion_model.out.2.weight"] = torch.zeros(1)
    torch.save(whole, tmp_path / "whole.ckpt")
    vq = from_ldm_state(state)
    vq.save_pretrained(tmp_path / "folder")
    vq.save_pretrained(tmp_path / "pipeline" / "vqvae")
    images = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    expected = None
    for source in ("whole.ckpt", "folder", "pipeline"):
        tokenizer = load_tokenizer(f"ldm:{tmp_path / source}@16")
        assert tokenizer.name == f"ldm:{tmp_path / source}@16"
        tokens = tokenizer.encode(images)
        assert expected is None or torch.equal(tokens, expected)
        expected = tokens
    assert load_tokenizer(f"ldm:{tmp_path / 'folder'}").image_size == 128


def test_soft_decoding_passes_gradients():
    tokenizer = LDMTokenizer(from_ldm_state(small_state()), 8).eval().requires_grad_(False)
    logits = torch.randn(1, 16, 20, requires_grad=True)
    tokenizer.decode_soft(logits.softmax(-1)).square().sum().backward()
    assert logits.grad.abs().sum() > 0


class Callback:
    """Something that a training checkpoint holds beside the weights."""

    def __reduce__(self):
        return (print, ("a checkpoint must not run code",))


def test_foreign_objects_in_a_checkpoint_do_nothing(tmp_path, capsys):
    state = small_state()
    extras = {"callbacks": {Callback: Callback()}, "counts": collections.Counter("abc")}
    torch.save({"state_dict": state, **extras}, tmp_path / "training.ckpt")
    read = read_checkpoint(tmp_path / "training.ckpt")
    assert "a checkpoint" not in capsys.readouterr().out
    assert read.keys() == state.keys()
    assert torch.equal(read["quantize.embedding.weight"], state["quantize.embedding.weight"])


def test_wrong_files_are_an_error(tmp_path):
    (tmp_path / "noise.ckpt").write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match="could not read"):
        load_tokenizer(f"ldm:{tmp_path / 'noise.ckpt'}")
    (tmp_path / "list.ckpt").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(DataError):
        load_tokenizer(f"ldm:{tmp_path / 'list.ckpt'}")
    with pytest.raises(DataError, match="no file, folder or hub name"):
        load_tokenizer(f"ldm:{tmp_path / 'missing'}")
    state = small_state()
    torch.save({**state, "encoder.down.1.attn.0.q.weight": torch.zeros(1)}, tmp_path / "attention.ckpt")
    with pytest.raises(DataError, match="attention outside"):
        load_tokenizer(f"ldm:{tmp_path / 'attention.ckpt'}")
    del state["decoder.conv_in.bias"]
    torch.save(state, tmp_path / "partial.ckpt")
    with pytest.raises(DataError, match="not those of an LDM"):
        load_tokenizer(f"ldm:{tmp_path / 'partial.ckpt'}")


def test_image_sizes_that_do_not_fit_are_an_error(tmp_path):
    from_ldm_state(small_state()).save_pretrained(tmp_path / "folder")
    with pytest.raises(ConfigError, match="multiple of 2, got 17"):
        load_tokenizer(f"ldm:{tmp_path / 'folder'}@17")
