"""The generator: a decoder-only transformer over image tokens with a cap as its condition.

What it has, for the reader who knows GPT-2: RMSNorm instead of LayerNorm (no gains: the next matrix absorbs them), no
biases, query-key normalization, rotary positions in two dimensions, a choice of activations, separate input and
output tables, and the condition as the first token *and* added at every position.

Step i of a sequence reads the token before it (the condition at step 0), is told by a learned vector which cell it
has to predict, and gives the logits of that cell's token. So the cells may come in any order; in raster order the
vectors are plain learned positions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodel.condition import CONDITION_KINDS, Condition, ConditionEmbedder
from genmodel.errors import ConfigError, InputError
from genmodel.layers import ACTIVATIONS, KVCache, activate, attend, rms_norm, rotary_angles

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"depth": 6, "width": 192, "heads": 6},
    "small": {"depth": 12, "width": 384, "heads": 6},
    "base": {"depth": 12, "width": 768, "heads": 12},
    "source": {"depth": 36, "width": 1280, "heads": 20, "feed_forward": 3072, "activation": "gelu"},
}
"""Named shapes: about 3, 22 and 86 million parameters, and the 543 million of the post this model follows."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape and settings of a :class:`Generator`; everything needed to build it again.

    Attributes:
        codebook_size: number of image codes.
        grid: the image is grid x grid tokens.
        condition_dim: dimension of the embedding space.
        depth: number of blocks.
        width: size of the residual stream.
        heads: attention heads; width / heads must be a multiple of 4.
        feed_forward: hidden size; None is 4 x width, for the gated activation 8/3 x width rounded to 64.
        activation: "gelu", "relu2" or "swiglu" (gated: three matrices instead of two).
        condition: one of :data:`~genmodel.condition.CONDITION_KINDS`.
        random_order: trained on random orders of the cells too (RAR), so that any order may be sampled.
        token_dropout: probability that an input token is hidden while training.
        dropout: of the blocks' outputs while training.
        reconstruct_embedding: trained with CLIP-GEN's embedding-reconstruction loss (arXiv:2203.00386).
    """

    codebook_size: int
    grid: int
    condition_dim: int
    depth: int = 6
    width: int = 256
    heads: int = 4
    feed_forward: int | None = None
    activation: str = "swiglu"
    condition: str = "cap"
    random_order: bool = False
    token_dropout: float = 0.0
    dropout: float = 0.0
    reconstruct_embedding: bool = False

    def __post_init__(self) -> None:
        for name in ("codebook_size", "grid", "condition_dim", "depth", "width", "heads"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise ConfigError(f"{name}: expected an integer >= 1, got {getattr(self, name)!r}")
        if self.width % (4 * self.heads):
            raise ConfigError(f"width: expected a multiple of 4 x heads = {4 * self.heads}, got {self.width}")
        if self.condition not in CONDITION_KINDS:
            raise ConfigError(f"condition: expected one of {CONDITION_KINDS}, got {self.condition!r}")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation: expected one of {ACTIVATIONS}, got {self.activation!r}")
        for name in ("token_dropout", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected a probability in [0, 1), got {getattr(self, name)!r}")

    @classmethod
    def sized(cls, size: str, **settings: Any) -> ModelConfig:
        """The shape `size` of :data:`SIZES` with further `settings`, which win."""
        if size not in SIZES:
            raise ConfigError(f"size: expected one of {tuple(SIZES)}, got {size!r}")
        return cls(**{**SIZES[size], **settings})

    @property
    def length(self) -> int:
        """Tokens of an image."""
        return self.grid * self.grid

    @property
    def hidden(self) -> int:
        """Size of the feed-forward layer."""
        if self.feed_forward is not None:
            return self.feed_forward
        return 64 * max(1, round(self.width * 8 / 3 / 64)) if self.activation == "swiglu" else 4 * self.width

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values; ``ModelConfig(**d)`` is the way back."""
        return asdict(self)


class Block(nn.Module):
    """Attention and feed-forward, each normalized before and added to the stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.hidden
        self.heads, self.activation, self.dropout = config.heads, config.activation, config.dropout
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, hidden * (2 if self.activation == "swiglu" else 1), bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        # One gain for each head sharpens what the normalization of queries and keys made flat.
        self.sharpness = nn.Parameter(torch.ones(config.heads))

    def forward(self, x: Tensor, angles: Tensor, cache: KVCache | None = None) -> Tensor:
        """Stream float (n, l, width) -> the same shape."""
        y = attend(self.qkv(rms_norm(x)), self.heads, self.sharpness, angles, cache)
        x = x + self._dropped(self.out(y))
        y = activate(self.up(rms_norm(x)), self.activation)
        return x + self._dropped(self.down(y))

    def _dropped(self, y: Tensor) -> Tensor:
        return F.dropout(y, self.dropout, self.training) if self.dropout else y


class Generator(nn.Module):
    """Logits of image tokens given the tokens before them and a condition.

    Args:
        config: its shape.

    Parameters are float32; under autocast the matrix products run in bfloat16.
    """

    cell_angles: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.condition = ConditionEmbedder(config.condition_dim, width, config.condition)
        # The last entry stands for a token that dropout hides.
        self.tokens = nn.Embedding(config.codebook_size + 1, width)
        self.cells = nn.Embedding(config.length, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head = nn.Linear(width, config.codebook_size, bias=False)
        self.reset_buffers()
        self.reset_parameters()

    def reset_buffers(self, device: torch.device | str | None = None) -> None:
        """Constant tables, computed on `device`; a model built on the meta device needs this after its weights."""
        config = self.config
        angles = rotary_angles(config.grid, config.width // config.heads)
        self.register_buffer("cell_angles", angles.to(device), persistent=False)
        self.condition.reset_buffers(device)

    def reset_parameters(self) -> None:
        """Fresh weights: every block starts as the identity, and the first logits are nearly uniform."""
        width = self.config.width
        blocks: list[Block] = []
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.5)
            elif isinstance(module, Block):
                blocks.append(module)
        for block in blocks:
            nn.init.zeros_(block.out.weight)
            nn.init.zeros_(block.down.weight)
        nn.init.normal_(self.head.weight, std=0.1 * width**-0.5)

    def parameter_count(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self) -> float:
        """Floating-point operations of a training step (forward and backward) per token, attention included."""
        config = self.config
        # Tables are looked up, not multiplied; causal attention needs half of the products of a full one.
        matrices = sum(p.numel() for name, p in self.named_parameters() if not name.startswith(("tokens", "cells")))
        matrices -= sum(p.numel() for p in self.condition.parameters())
        return 6.0 * (matrices + config.depth * config.width * config.length)

    def forward(self, tokens: Tensor, condition: Condition, order: Tensor | None = None) -> Tensor:
        """Teacher forcing: logits of every token given those before it.

        Args:
            tokens: int64 (n, l), l <= grid**2, in raster order whatever `order` is. The last step's token is never
                read. With l < grid**2 the first l steps are computed.
            condition: n rows.
            order: int64 (n, grid**2), a permutation of the cells for each image; step i predicts the token of cell
                order[:, i], so compare with ``tokens.gather(1, order)``. None is raster order.

        Returns:
            Logits float (n, l, codebook_size); under autocast in its dtype.
        """
        length = tokens.shape[1]
        if tokens.ndim != 2 or not 1 <= length <= self.config.length:
            raise InputError(f"expected tokens (n, 1..{self.config.length}), got {tuple(tokens.shape)}")
        if order is not None:
            tokens = tokens.gather(1, order[:, :length])
        x, angles = self.embed(tokens[:, :-1], self.condition(condition), order)
        return self.logits(self.run(x, angles))

    def embed(
        self, read: Tensor, condition: Tensor, order: Tensor | None = None, start: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Input of steps start .. start + m - 1 of the transformer, m = tokens read, plus one when start is 0.

        Args:
            read: int64 (n, m or m - 1), the tokens of steps start - 1 .., in the order of the steps.
            condition: float (n, width), from the condition's embedder.
            order: as in :meth:`forward`.
            start: first step.

        Returns:
            The stream float (n, m, width), and the rotary angles of its tokens (m, ...) or (n, m, ...).
        """
        n, steps = read.shape[0], read.shape[1] + (start == 0)
        if self.training and self.config.token_dropout:
            hidden = torch.rand(read.shape, device=read.device) < self.config.token_dropout
            read = read.masked_fill(hidden, self.config.codebook_size)
        x = self.tokens(read)
        if start == 0:
            # The condition is the first token; it is added to every position below, to this one too.
            x = torch.cat([x.new_zeros(n, 1, x.shape[-1]), x], dim=1)
        stop = start + steps
        # Angles of the cell that was read; entry 0 of the table is the condition's.
        if order is None:
            here, angles = self.cells.weight[start:stop], self.cell_angles[start:stop]
        else:
            here = self.cells(order[:, start:stop])
            came = F.pad(order[:, max(start - 1, 0) : stop - 1] + 1, (int(start == 0), 0))
            angles = self.cell_angles[came]
        return x + (here + condition[:, None]), angles

    def run(self, x: Tensor, angles: Tensor, cache: list[KVCache] | None = None) -> Tensor:
        """The blocks: stream float (n, m, width) -> the same shape, normalized."""
        for i, block in enumerate(self.blocks):
            x = block(x, angles, None if cache is None else cache[i])
        return rms_norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """Logits float (..., codebook_size) from the normalized stream (..., width)."""
        logits: Tensor = self.head(x)
        return logits

    def new_cache(self, n: int, device: torch.device | str, dtype: torch.dtype) -> list[KVCache]:
        """Empty keys and values of `n` images for every block."""
        config = self.config
        shape = (n, config.heads, config.length, config.width // config.heads)
        return [KVCache(torch.empty(shape, device=device, dtype=dtype)) for _ in range(config.depth)]
