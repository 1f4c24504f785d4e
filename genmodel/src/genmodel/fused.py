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
    (n, l, 1, size / 2). Gives q, k and v, each (n, l, heads, size). Keeps the results, from which the derivative can
    be had, and not the inputs.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, gains: Tensor, turns: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        scale = _inverse_rms(qkv[:, :, :2], eps)
        scale_q, scale_k = scale[:, :, 0], scale[:, :, 1]
        q, k = qkv[:, :, 0] * (scale_q * gains[:, None]), qkv[:, :, 1] * scale_k
        for part in (q, k):
            _complex(part).mul_(turns)
        ctx.save_for_backward(q, k, scale_q, scale_k, gains, turns)
        return q, k, qkv[:, :, 2].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gq: Tensor, gk: Tensor, gv: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Of qkv and the gains."""
        q, k, scale_q, scale_k, gains, turns = ctx.saved_tensors
        n, length, heads, size = q.shape
        out = torch.empty(n, length, 3, heads, size)
        back = turns.conj().resolve_conj()
        gains = gains[:, None]
        # A rotation keeps products, so the part along the input is taken before the vectors are turned back.
        # einsum takes these short products in one pass; vecdot writes all of them down first.
        along_q, along_k = (torch.einsum("nlhs,nlhs->nlh", g, y).unsqueeze(-1) for g, y in ((gq, q), (gk, k)))
        for i, g, y, scale, along, gain in ((0, gq, q, scale_q, along_q, gains), (1, gk, k, scale_k, along_k, None)):
            inner = along * scale / size
            inner = inner if gain is None else inner / gain
            across = torch.mul(g, scale if gain is None else scale * gain, out=out[:, :, i])
            _complex(across.addcmul_(y, inner, value=-1)).mul_(back)
        out[:, :, 2].copy_(gv)
        return out, (along_q.sum(dim=(0, 1)) / gains).squeeze(-1), None, None


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
    scale: Tensor = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return scale


def _complex(x: Tensor) -> Tensor:
    """The pairs of the last axis as complex numbers: a view."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))  # type: ignore[no-untyped-call]


def turns_of(angles: Tensor) -> Tensor:
    """Complex numbers of length 1 at `angles`."""
    return torch.polar(torch.ones_like(angles), angles)
