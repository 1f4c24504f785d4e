"""Losses: cross-entropy by token, and CLIP-GEN's reconstruction of the embedding."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodel.condition import Condition


def token_losses(logits: Tensor, tokens: Tensor, order: Tensor | None = None) -> Tensor:
    """Cross-entropy in nats of each step, float32 (n, length).

    Args:
        logits: (n, length, codebook_size), as :meth:`genmodel.model.Generator.forward` gives them.
        tokens: int64 (n, length) in raster order.
        order: the cells' order the logits were made in.
    """
    wanted = tokens if order is None else tokens.gather(1, order)
    return F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), reduction="none").view_as(wanted)


def early_weights(length: int, extra: float, device: torch.device | str | None = None) -> Tensor:
    """Weights float32 (length,) of mean 1, falling in a line; the first is 1 + `extra` times the last."""
    weights = 1 + extra * torch.linspace(1, 0, length, device=device)
    return weights / weights.mean()


def batch_loss(losses: Tensor, steps: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
    """Mean of `losses` (n, length), with weights of the `steps` (length,) and the `rows` (n,).

    The divisor is the number of rows, whatever their weights, so that the parts of a batch add up to the whole.
    """
    if steps is not None:
        losses = losses * steps
    if rows is not None:
        losses = losses * rows[:, None]
    return losses.mean()


def embedding_loss(
    logits: Tensor,
    condition: Condition,
    decode: Callable[[Tensor], Tensor],
    embed: Callable[[Tensor], Tensor],
    order: Tensor | None = None,
) -> Tensor:
    """CLIP-GEN's second loss (arXiv:2203.00386): cosine distance of the predicted image's embedding, float32 ().

    The predictions of all steps are decoded to an image, straight-through, and embedded again; the wanted embedding
    is the condition's center. Rows whose condition is the null cap do not count.

    Args:
        logits: (n, length, codebook_size).
        condition: n rows of kind "embedding".
        decode: probabilities float (n, length, codebook_size) in raster order -> images float (n, 3, s, s) in [0, 1],
            differentiable (a tokenizer's ``decode_soft``).
        embed: such images -> unit rows float (n, d), differentiable (an encoder's ``images_float``).
        order: the cells' order the logits were made in.
    """
    counts = (~condition.is_null).float()
    if order is not None:
        logits = torch.empty_like(logits).scatter(1, order[:, :, None].expand_as(logits), logits)
    made = embed(decode(logits.float().softmax(dim=-1)))
    apart = 1 - (made.float() * condition.center).sum(dim=-1)
    return (apart * counts).sum() / len(counts)
