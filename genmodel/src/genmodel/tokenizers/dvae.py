"""The discrete VAE of DALL-E: a categorical code per place, trained through the gumbel-softmax relaxation.

Ramesh et al., "Zero-Shot Text-to-Image Generation", 2021, section 2.1 and appendix A; Jang et al., "Categorical
Reparameterization with Gumbel-Softmax", 2017.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodel.errors import ConfigError
from genmodel.tokenizers.base import OwnTokenizer, downsampling
from genmodel.tokenizers.networks import ConvDecoder, ConvEncoder


class DVAETokenizer(OwnTokenizer):
    """Convolutional autoencoder whose code is one of `codebook_size` learned vectors per place.

    Parameters
    ----------
    image_size, grid, width, depth : int
        As for :class:`genmodel.tokenizers.fsq.FSQTokenizer`.
    codebook_size : int
        Number of codes, from 2 to 65,536; DALL-E has 8,192.
    channels : int
        Length of a code's vector.
    """

    kind = "dvae"

    def __init__(
        self, image_size: int, grid: int, width: int = 64, depth: int = 2, codebook_size: int = 1024, channels: int = 64
    ) -> None:
        super().__init__()
        if not 2 <= codebook_size <= 1 << 16:
            raise ConfigError(f"expected a codebook of 2 to 65536 codes (tokens are uint16), got {codebook_size}")
        self.image_size, self.grid, self.codebook_size = image_size, grid, codebook_size
        factor = downsampling(image_size, grid)
        self.encoder = ConvEncoder(factor, width, depth, codebook_size)
        self.vectors = nn.Parameter(torch.randn(codebook_size, channels))
        self.decoder = ConvDecoder(factor, width, depth, channels)
        self._remember(
            {
                "image_size": image_size,
                "grid": grid,
                "width": width,
                "depth": depth,
                "codebook_size": codebook_size,
                "channels": channels,
            }
        )

    def codebook(self) -> Tensor:
        """The learned vectors, float32 (codebook_size, channels)."""
        return self.vectors

    def tokenize(self, pixels: Tensor) -> Tensor:
        """Most probable tokens, int64 (n, grid, grid), of float pixels (n, 3, s, s) in [0, 1]."""
        logits: Tensor = self.encoder(pixels)
        return logits.argmax(1)

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Pixels of code vectors (n, channels, grid, grid)."""
        pixels: Tensor = self.decoder(vectors)
        return pixels

    def relaxed(self, pixels: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One training pass with relaxed codes.

        Returns the reconstruction (n, 3, s, s), the KL divergence of the code distributions from the uniform one
        (nats per place, a scalar), the divergence of their mean over the batch from it (nats, a scalar: how unevenly
        the codes are used), and the most probable tokens (n, grid, grid).
        """
        logits = self.encoder(pixels).float().movedim(1, -1)
        codes = F.gumbel_softmax(logits, tau=temperature, dim=-1)
        log_probabilities = logits.log_softmax(-1)
        divergence = (log_probabilities.exp() * (log_probabilities + math.log(self.codebook_size))).sum(-1).mean()
        mean = log_probabilities.exp().flatten(0, -2).mean(0)
        unevenness = (mean * (mean.clamp_min(1e-12).log() + math.log(self.codebook_size))).sum()
        pixels = self.decoder((codes @ self.vectors).movedim(-1, 1))
        return pixels, divergence, unevenness, logits.argmax(-1)


def temperature_at(progress: float, start: float, end: float, until: float) -> float:
    """Relaxation temperature at `progress` in [0, 1]: a cosine from `start` to `end` at `until`, then constant.

    DALL-E goes from 1 to 1/16 over the first twentieth of its training.
    """
    share = min(1.0, progress / until) if until > 0 else 1.0
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def kl_weight_at(progress: float, end: float, until: float) -> float:
    """Weight of the KL term at `progress` in [0, 1]: a cosine from 0 to `end` at `until`, then constant."""
    share = min(1.0, progress / until) if until > 0 else 1.0
    return end * 0.5 * (1 - math.cos(math.pi * share))
