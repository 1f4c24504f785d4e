"""Finite scalar quantization: every channel of a token's vector is rounded to a few levels; no codebook to collapse.

Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", 2023.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genmodel.errors import ConfigError, InputError
from genmodel.tokenizers.base import OwnTokenizer, downsampling
from genmodel.tokenizers.networks import ConvDecoder, ConvEncoder

DEFAULT_LEVELS = (8, 5, 5, 5)


class FSQ(nn.Module):
    """The quantizer: (..., len(levels)) floats -> the nearest of ``prod(levels)`` codes in [-1, 1].

    The id of a code counts its levels in mixed radix, the first channel fastest.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int] = DEFAULT_LEVELS) -> None:
        super().__init__()
        if len(levels) == 0 or any(int(level) != level or level < 2 for level in levels):
            raise ConfigError(f"expected at least one FSQ level, each an integer of 2 or more, got {tuple(levels)}")
        self.codebook_size = math.prod(int(level) for level in levels)
        if self.codebook_size > 1 << 16:
            raise ConfigError(f"expected at most 65536 codes (tokens are uint16), got {self.codebook_size}")
        sizes = torch.tensor([int(level) for level in levels])
        basis = torch.cat([torch.ones(1, dtype=torch.long), sizes[:-1].cumprod(0)])
        self.register_buffer("levels", sizes, persistent=False)
        self.register_buffer("basis", basis, persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """Squash each channel so that rounding gives exactly its number of levels."""
        # The 1e-3 keeps tanh's ends from rounding to a level that does not exist; channels with an even number of
        # levels are shifted by half a level, so that they too round symmetrically.
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = (self.levels % 2 == 0).to(z.dtype) / 2
        shift = (offset / half).atanh()
        return (z + shift).tanh() * half - offset

    def forward(self, z: Tensor) -> Tensor:
        """Codes of `z` (..., channels), with the gradient of :meth:`bound` (straight-through)."""
        bounded = self.bound(z)
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (self.levels // 2)

    def codes_to_ids(self, codes: Tensor) -> Tensor:
        """Ids int64 (...) of codes (..., channels)."""
        half = self.levels // 2
        return ((codes * half).round().long() + half).mul(self.basis).sum(-1)

    def ids_to_codes(self, ids: Tensor) -> Tensor:
        """Codes float32 (..., channels) in [-1, 1] of ids int64 (...)."""
        half = self.levels // 2
        return ((ids.unsqueeze(-1) // self.basis) % self.levels - half).float() / half


class FSQTokenizer(OwnTokenizer):
    """Small convolutional autoencoder with :class:`FSQ` between its halves.

    Parameters
    ----------
    image_size, grid : int
        Pixels and tokens per side; their ratio is a power of two (64 and 8, 32 and 8, 128 and 32).
    width, depth : int
        See :class:`genmodel.tokenizers.networks.ConvEncoder`.
    levels : sequence of int
        Levels of each channel; [8, 5, 5, 5] makes 1,000 tokens.
    """

    kind = "fsq"

    def __init__(
        self, image_size: int, grid: int, width: int = 64, depth: int = 2, levels: Sequence[int] = DEFAULT_LEVELS
    ) -> None:
        super().__init__()
        self.image_size, self.grid = image_size, grid
        factor = downsampling(image_size, grid)
        self.quantizer = FSQ(levels)
        self.codebook_size = self.quantizer.codebook_size
        self.encoder = ConvEncoder(factor, width, depth, len(levels))
        self.decoder = ConvDecoder(factor, width, depth, len(levels))
        self._remember(
            {"image_size": image_size, "grid": grid, "width": width, "depth": depth, "levels": [int(x) for x in levels]}
        )

    def codebook(self) -> Tensor:
        """Every code, float32 (codebook_size, channels)."""
        return self.quantizer.ids_to_codes(torch.arange(self.codebook_size, device=self.device))

    def quantize(self, pixels: Tensor) -> Tensor:
        """Codes (n, channels, grid, grid) of pixels, straight-through."""
        codes: Tensor = self.quantizer(self.encoder(pixels).movedim(1, -1))
        return codes.movedim(-1, 1)

    def tokenize(self, pixels: Tensor) -> Tensor:
        """Tokens int64 (n, grid, grid) of float pixels (n, 3, s, s) in [0, 1]."""
        return self.quantizer.codes_to_ids(self.quantize(pixels).movedim(1, -1))

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Pixels of codes (n, channels, grid, grid)."""
        if vectors.ndim != 4 or vectors.shape[1] != len(self.quantizer.levels):
            raise InputError(
                f"expected vectors of shape (n, {len(self.quantizer.levels)}, grid, grid), got {tuple(vectors.shape)}"
            )
        pixels: Tensor = self.decoder(vectors)
        return pixels

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction (n, 3, s, s) of pixels in [0, 1], and the tokens int64 (n, grid, grid) it used."""
        codes = self.quantize(pixels)
        return self.decoder(codes), self.quantizer.codes_to_ids(codes.detach().movedim(1, -1))
