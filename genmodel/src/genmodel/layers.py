"""The transformer's operations as functions: normalization, rotary positions, attention, activations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodel import fused

ACTIVATIONS = ("gelu", "relu2", "swiglu")
EPS = 1e-6


class KVCache:
    """Keys and values of the steps so far, each (n, heads, length, size), filled from the left."""

    def __init__(self, like: Tensor) -> None:
        self.keys, self.values = like, torch.empty_like(like)
        self.used = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds (n, heads, m, size) and gives all keys and values up to now."""
        stop = self.used + keys.shape[2]
        self.keys[:, :, self.used : stop] = keys
        self.values[:, :, self.used : stop] = values
        self.used = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]


def fuses(x: Tensor) -> bool:
    """Whether the derivatives by hand serve: float32 on a CPU, outside a compiler, which fuses better itself."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and not torch.compiler.is_compiling()


def rms_norm(x: Tensor) -> Tensor:
    """``x / sqrt(mean(x**2) + eps)`` over the last axis, without a gain (arXiv:1910.07467)."""
    if fuses(x):
        normed: Tensor = fused.RMSNorm.apply(x, EPS)
        return normed
    return F.rms_norm(x, (x.shape[-1],), eps=EPS)


def rotary_angles(grid: int, size: int) -> Tensor:
    """Angles float32 (1 + grid**2, size / 2) of rotary positions in two dimensions (arXiv:2104.09864, per axis).

    Entry 0 is the condition's, which is not turned; entry 1 + c is cell c = row * grid + column. The first half of
    the pairs turns with the row, the second with the column, each counted from 1. Frequencies run from 1 down to
    1/100 a cell: grids have tens of cells a side, not thousands.
    """
    frequencies = 100.0 ** -(torch.arange(size // 4) / (size // 4))
    cell = torch.arange(grid * grid)
    rows, columns = (cell // grid + 1)[:, None] * frequencies, (cell % grid + 1)[:, None] * frequencies
    return torch.cat([torch.zeros(1, size // 2), torch.cat([rows, columns], dim=1)])


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turns the pairs (x[..., 2i], x[..., 2i + 1]) of x float (n, l, heads, size) by `angles` ([n,] l, size / 2)."""
    cosine, sine = (part.to(x.dtype).unsqueeze(-2) for part in (angles.cos(), angles.sin()))
    even, odd = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2)


def attend(qkv: Tensor, heads: int, sharpness: Tensor, angles: Tensor, cache: KVCache | None = None) -> Tensor:
    """Causal self-attention of fused queries, keys and values float (n, l, 3 * width) -> (n, l, width).

    Queries and keys are normalized to length sqrt(size), queries times their head's `sharpness` (heads,). With a
    `cache`, the l steps follow those already in it: one at a time, or several that start it.
    """
    n, length, width = qkv.shape
    qkv = qkv.view(n, length, 3, heads, width // (3 * heads))
    if fuses(qkv):
        q, k, v = fused.NormedTurned.apply(qkv, sharpness, fused.turns_of(angles).unsqueeze(-2), EPS)
    else:
        q, k, v = qkv.unbind(2)
        q = rotate(rms_norm(q) * sharpness.to(q.dtype)[:, None], angles)
        k = rotate(rms_norm(k), angles)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if cache is not None:
        k, v = cache.append(k, v)
    # One new step sees everything before it; several start an empty cache, where the causal mask is square.
    y = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
    return y.transpose(1, 2).reshape(n, length, width // 3)


def activate(y: Tensor, activation: str) -> Tensor:
    """The feed-forward layer's activation: float (..., hidden), or (..., 2 * hidden) for "swiglu", -> (..., hidden)."""
    if activation == "swiglu":
        if fuses(y):
            gated: Tensor = fused.GatedSiLU.apply(y)
            return gated
        gate, value = y.chunk(2, dim=-1)
        return F.silu(gate) * value
    return F.gelu(y) if activation == "gelu" else F.relu(y).square()
