"""Small stand-ins for what the tests need: an encoder, a tokenizer, images. No weights, no training, no download."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from genmodel.model import Generator, ModelConfig
from genmodel.tokenizers.base import Tokenizer

COLORS = {
    "red": (220, 30, 30),
    "green": (30, 180, 40),
    "blue": (30, 40, 220),
    "yellow": (230, 220, 40),
    "black": (10, 10, 10),
    "white": (245, 245, 245),
}


class FakeEncoder:
    """Random projection of 4 x 4 pixels; a text with a color's name is embedded near that color's plain image."""

    name = "fake"
    image_size = 16

    def __init__(self, dim: int = 24, seed: int = 0) -> None:
        self.dim = dim
        generator = torch.Generator().manual_seed(seed)
        self.matrix = torch.randn(48, dim, generator=generator)

    def images(self, images: Tensor) -> Tensor:
        return self.images_float(images.float() / 255)

    def images_float(self, images: Tensor) -> Tensor:
        # Against gray, so that plain colors point in different directions.
        small = F.adaptive_avg_pool2d(images, 4) - 0.5
        return F.normalize(small.flatten(1) @ self.matrix, dim=1)

    def text(self, prompts: Sequence[str]) -> Tensor:
        return torch.cat([self._text(prompt) for prompt in prompts])

    def _text(self, prompt: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "little")
        noise = F.normalize(torch.randn(1, self.dim, generator=torch.Generator().manual_seed(seed)), dim=1)
        for word, color in COLORS.items():
            if word in prompt.split():
                plain = torch.tensor(color, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 16, 16)
                return F.normalize(self.images(plain) + 0.2 * noise, dim=1)
        return noise


class FakeTokenizer(Tokenizer):
    """A token is the mean color of a cell, each channel rounded to 4 levels: 64 tokens, nothing learned."""

    name = "fake"

    def __init__(self, image_size: int = 16, grid: int = 4) -> None:
        super().__init__()
        self.image_size, self.grid, self.codebook_size = image_size, grid, 64
        levels = torch.arange(4) / 3
        self.table = nn.Parameter(torch.cartesian_prod(levels, levels, levels), requires_grad=False)

    def codebook(self) -> Tensor:
        return self.table

    def tokenize(self, pixels: Tensor) -> Tensor:
        steps = (F.adaptive_avg_pool2d(pixels, self.grid) * 3).round().long()
        return steps[:, 0] * 16 + steps[:, 1] * 4 + steps[:, 2]

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        return F.interpolate(vectors, size=self.image_size, mode="nearest")


def plain_images(n: int, size: int = 16, seed: int = 0) -> Tensor:
    """Nearly plain images, uint8 (n, 3, size, size): a color of COLORS each, in turn, with a little noise."""
    rng = np.random.default_rng(seed)
    colors = np.array(list(COLORS.values()))[np.arange(n) % len(COLORS)]
    pixels = colors[:, :, None, None] + rng.normal(0, 12, (n, 3, 1, 1)) + rng.normal(0, 6, (n, 3, size, size))
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))


def write_images(folder: Path, images: Tensor) -> list[Path]:
    """Images as PNG files 0000.png, ... in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:04d}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return paths


def tiny_generator(dim: int = 24, grid: int = 4, seed: int = 0, condition: str = "cap") -> Generator:
    """An untrained generator whose logits depend on its condition."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = ModelConfig(64, grid, dim, depth=2, width=32, heads=2, condition=condition)
        model = Generator(config)
        for block in model.blocks:  # they start as the identity, which would hide mistakes
            nn.init.normal_(block.out.weight, std=0.2)
            nn.init.normal_(block.down.weight, std=0.2)
        nn.init.normal_(model.head.weight, std=0.3)
    return model.eval()


def unit_rows(n: int, dim: int, seed: int = 0) -> np.ndarray:
    """Random unit rows, float32 (n, dim)."""
    rows = np.random.default_rng(seed).standard_normal((n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
