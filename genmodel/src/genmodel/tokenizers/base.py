"""What every image tokenizer offers, and how a folder of ours is read and written.

A tokenizer turns an image into ``grid * grid`` integers below ``codebook_size`` and back. Images are uint8 RGB, tokens
int64 in raster order (left to right, top to bottom).
"""

from __future__ import annotations

import abc
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genmodel.errors import ConfigError, DataError, InputError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class Tokenizer(nn.Module, abc.ABC):
    """Images to integer tokens and back.

    Attributes
    ----------
    name : str
        What :func:`genmodel.tokenizers.load_tokenizer` takes to load it again, or the kind when it was never saved.
    image_size : int
        Side of the square images in pixels.
    grid : int
        Tokens per side; an image has ``grid * grid`` tokens.
    codebook_size : int
        Number of different tokens.
    """

    name: str
    image_size: int
    grid: int
    codebook_size: int

    @abc.abstractmethod
    def codebook(self) -> Tensor:
        """The vector of every token, float (codebook_size, channels)."""

    @abc.abstractmethod
    def tokenize(self, pixels: Tensor) -> Tensor:
        """Tokens int64 (n, grid, grid) of float pixels (n, 3, s, s) in [0, 1]."""

    @abc.abstractmethod
    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Float pixels (n, 3, s, s), about [0, 1], of codebook vectors (n, channels, grid, grid); differentiable."""

    @property
    def tokens_per_image(self) -> int:
        """Length of an image's token sequence: ``grid * grid``."""
        return self.grid * self.grid

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(self.parameters()).device

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Tokens int64 (n, grid * grid) of uint8 images (n, 3, s, s); raises InputError on another shape or type."""
        expected = (3, self.image_size, self.image_size)
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise InputError(
                f"expected uint8 images of shape (n, 3, {self.image_size}, {self.image_size}), "
                f"got {images.dtype} of shape {tuple(images.shape)}"
            )
        if len(images) == 0:
            return torch.zeros(0, self.tokens_per_image, dtype=torch.long, device=self.device)
        return self.tokenize(images.to(self.device).float() / 255).flatten(1)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Images uint8 (n, 3, s, s) of integer tokens (n, grid * grid); raises InputError on tokens out of range."""
        if tokens.ndim != 2 or tokens.shape[1] != self.tokens_per_image or tokens.is_floating_point():
            raise InputError(
                f"expected integer tokens of shape (n, {self.tokens_per_image}), "
                f"got {tokens.dtype} of shape {tuple(tokens.shape)}"
            )
        size = self.image_size
        if len(tokens) == 0:
            return torch.zeros(0, 3, size, size, dtype=torch.uint8, device=self.device)
        tokens = tokens.to(self.device).long()
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.codebook_size:
            raise InputError(f"expected tokens in [0, {self.codebook_size}), got values from {low} to {high}")
        pixels = self.decode_vectors(self._to_grid(F.embedding(tokens, self.codebook())))
        return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)

    def decode_soft(self, probabilities: Tensor) -> Tensor:
        """Pixels (n, 3, s, s) in [0, 1] of token probabilities (n, grid * grid, codebook_size), straight-through.

        The picture is that of the most probable tokens; the gradient is that of the expected codebook vectors, so a
        loss on the pixels reaches the model that gave the probabilities.
        """
        expected = (self.tokens_per_image, self.codebook_size)
        if probabilities.ndim != 3 or tuple(probabilities.shape[1:]) != expected:
            raise InputError(
                f"expected probabilities of shape (n, {expected[0]}, {expected[1]}), got {tuple(probabilities.shape)}"
            )
        codebook = self.codebook().to(probabilities.dtype)
        soft = probabilities @ codebook
        hard = F.embedding(probabilities.argmax(-1), codebook)
        pixels = self.decode_vectors(self._to_grid(soft + (hard - soft).detach()))
        # A clamp would stop the gradient of pixels that overshoot; this keeps the value and lets it through.
        return pixels + (pixels.clamp(0, 1) - pixels).detach()

    def _to_grid(self, vectors: Tensor) -> Tensor:
        return vectors.reshape(len(vectors), self.grid, self.grid, -1).permute(0, 3, 1, 2)


class OwnTokenizer(Tokenizer):
    """A tokenizer of ours: it lives in a folder with ``config.json`` and ``model.safetensors``.

    Subclasses set ``kind`` and call :meth:`_remember` with the arguments that their ``__init__`` takes.
    """

    kind: str

    def _remember(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.name = self.kind

    def save(self, folder: str | os.PathLike[str], **extra: Any) -> Path:
        """Write the tokenizer into `folder` (made if missing), with `extra` JSON values in its config; returns it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"kind": self.kind, "settings": self.settings, **extra}
        weights = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        # Weights first, and both by renaming: a folder with a config is a whole one.
        save_file(weights, folder / f".{WEIGHTS_FILE}.tmp")
        (folder / f".{WEIGHTS_FILE}.tmp").replace(folder / WEIGHTS_FILE)
        (folder / f".{CONFIG_FILE}.tmp").write_text(json.dumps(config, indent=2) + "\n")
        (folder / f".{CONFIG_FILE}.tmp").replace(folder / CONFIG_FILE)
        self.name = str(folder)
        return folder

    @staticmethod
    def read_config(folder: Path) -> dict[str, Any]:
        """The ``config.json`` of a tokenizer's folder; raises DataError where there is none."""
        path = folder / CONFIG_FILE
        try:
            config = json.loads(path.read_text())
        except FileNotFoundError:
            raise DataError(f"{folder} is no tokenizer: it has no {CONFIG_FILE}") from None
        except ValueError as error:
            raise DataError(f"{path} is not JSON: {error}") from None
        if not isinstance(config, dict) or not {"kind", "settings"} <= config.keys():
            raise DataError(f"{path}: expected the keys 'kind' and 'settings'")
        return config

    def read_weights(self, folder: Path) -> None:
        """Load ``model.safetensors`` of `folder`; raises DataError when it is missing or of another shape."""
        path = folder / WEIGHTS_FILE
        try:
            self.load_state_dict(load_file(path))
        except FileNotFoundError:
            raise DataError(f"{folder} has no {WEIGHTS_FILE}") from None
        except Exception as error:  # safetensors and load_state_dict raise their own kinds
            raise DataError(f"{path} does not fit its {CONFIG_FILE}: {error}") from error
        self.name = str(folder)


def downsampling(image_size: int, grid: int) -> int:
    """Pixels per token's side; raises ConfigError unless it is a power of two that divides the image."""
    factor, rest = divmod(image_size, grid) if grid > 0 else (0, 1)
    if rest or factor < 2 or factor & (factor - 1):
        raise ConfigError(
            f"expected image_size to be the grid times a power of two (2 or more), got {image_size} and {grid}"
        )
    return factor
