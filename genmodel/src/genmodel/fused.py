"""Derivatives by hand, for float32 on CPUs.

There, outside a compiler, PyTorch makes a root-mean-square norm or a rotation of a dozen passes over memory, and their
derivatives of two dozen. These functions make the same numbers with as few passes as its operators allow, and keep
only what their derivatives read. :mod:`genmodel.layers` decides where they are used and has the plain forms.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class RMSNorm(Function):
    """``x / sqrt(mean(x**2) + eps)`` over the last axis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        """float32 (..., d) -> the same."""
        scale = _inverse_rms(x, eps)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """Of x."""
        y, scale = ctx.saved_tensors
        along = torch.linalg.vecdot(g, y).unsqueeze(-1)
        along /= -y.shape[-1]
        return torch.addcmul(g, y, along).mul_(scale), None


class NormedTurned(Function):
    """Fused queries, keys and values -> queries and keys normalized and rotated, and the values.

    Takes qkv float32 (n, l, 3, heads, size), gains (heads,) of the queries, and turns, complex64 (l, 1, size / 2) or
    (n, l, 1, size / 2). Gives q, k and v, each (n, l, heads, size).
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, gains: Tensor, turns: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        pair = qkv[:, :, :2]
        scale = _inverse_rms(pair, eps)
        both = torch.view_as_real(_complex(pair) * turns.unsqueeze(-3)).flatten(-2)
        gained = scale * torch.stack([gains, torch.ones_like(gains)]).unsqueeze(-1)
        both *= gained
        ctx.save_for_backward(qkv, both, scale, gained, gains, turns)
        return both[:, :, 0], both[:, :, 1], qkv[:, :, 2].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gq: Tensor, gk: Tensor, gv: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Of qkv and the gains."""
        qkv, both, scale, gained, gains, turns = ctx.saved_tensors
        out = torch.empty_like(qkv)
        back = turns.conj().resolve_conj()
        # A rotation keeps products, so the part along the input can be taken from the turned vectors.
        along = torch.stack([torch.linalg.vecdot(gq, both[:, :, 0]), torch.linalg.vecdot(gk, both[:, :, 1])], dim=2)
        torch.mul(_complex(gq), back, out=_complex(out[:, :, 0]))
        torch.mul(_complex(gk), back, out=_complex(out[:, :, 1]))
        pair = out[:, :, :2]
        pair *= gained
        pair.addcmul_(qkv[:, :, :2], (scale * scale).mul_(along.unsqueeze(-1)), value=-1 / qkv.shape[-1])
        out[:, :, 2].copy_(gv)
        return out, along[:, :, 0].sum(dim=(0, 1)) / gains, None, None


class GatedSiLU(Function):
    """``silu(y[..., :h]) * y[..., h:]`` of y float32 (..., 2h)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        """float32 (..., 2h) -> (..., h)."""
        gate, value = y.chunk(2, dim=-1)
        ctx.save_for_backward(y)
        return F.silu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        """Of y."""
        (y,) = ctx.saved_tensors
        gate, value = y.chunk(2, dim=-1)
        out = torch.empty_like(y)
        first, second = out.chunk(2, dim=-1)
        torch.mul(F.silu(gate), g, out=second)
        torch.ops.aten.silu_backward.grad_input(g * value, gate, grad_input=first)
        return out


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _complex(x: Tensor) -> Tensor:
    """The pairs of the last axis as complex numbers: a view."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def turns_of(angles: Tensor) -> Tensor:
    """Complex numbers of length 1 at `angles`."""
    return torch.polar(torch.ones_like(angles), angles)
