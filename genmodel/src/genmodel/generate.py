"""Drawing image tokens from a generator: prefill the condition, then one token at a time."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from genmodel.condition import Condition
from genmodel.errors import ConfigError, InputError
from genmodel.layers import KVCache
from genmodel.model import Generator

ORDERS = ("raster", "random")


@torch.no_grad()
def generate(
    model: Generator,
    condition: Condition,
    *,
    guidance: float = 1.0,
    temperature: float = 1.0,
    top_p: float = 0.9,
    seed: int = 0,
    cache: bool = True,
    order: str = "raster",
    first: int = 0,
) -> Tensor:
    """Image tokens int64 (n, grid**2), one image for each row of `condition`.

    Args:
        model: the generator; its device is used, and evaluation mode while this runs.
        condition: n rows.
        guidance: logits are ``null + guidance * (conditional - null)``, with the null cap as the unconditional side
            (classifier-free guidance, arXiv:2207.12598). 1 is the model itself, 0 unconditional. A row that is the
            null cap is unconditional at any value.
        temperature: divides the logits; 0 takes the most likely token.
        top_p: only the most likely tokens that together reach this probability are drawn (arXiv:1904.09751).
        seed: of the draws. Image i uses the stream (seed, first + i), so a batch may be split.
        cache: keep keys and values; False computes every step from the start (for comparisons).
        order: "raster", or "random": an order for each image from its stream (needs a model trained for it).
        first: number of the first image within the draws of `seed`.

    Raises:
        ConfigError: a setting outside its domain.
        InputError: a condition of another dimension.
    """
    _check(model, condition, guidance, temperature, top_p, order)
    device, length, n = next(model.parameters()).device, model.config.length, len(condition)
    streams = [np.random.default_rng([seed, first + i]) for i in range(n)]
    # Uniform numbers in float64, drawn on the host: the same on every device.
    uniform = torch.from_numpy(np.array([s.random(length) for s in streams]).reshape(n, length)).to(device)
    cells = None
    if order == "random":
        cells = torch.from_numpy(np.array([s.permutation(length) for s in streams]).reshape(n, length)).to(device)
    training = model.training
    model.eval()
    try:
        drawn = _steps(model, condition.to(device), guidance, temperature, top_p, uniform, cells, cache)
    finally:
        model.train(training)
    return drawn if cells is None else torch.empty_like(drawn).scatter_(1, cells, drawn)


def _steps(
    model: Generator,
    condition: Condition,
    guidance: float,
    temperature: float,
    top_p: float,
    uniform: Tensor,
    cells: Tensor | None,
    cached: bool,
) -> Tensor:
    """Tokens in the order they are drawn, int64 (n, length)."""
    n, length = uniform.shape
    is_null = condition.is_null
    # Both sides go through the model as one batch; guidance 1 and 0 need only one of them.
    both = guidance not in (0.0, 1.0)
    if guidance == 0.0:
        condition = Condition.null(n, condition.dim, uniform.device)
    elif both:
        condition = Condition.cat([condition, Condition.null(n, condition.dim, uniform.device)])
        cells = None if cells is None else torch.cat([cells, cells])
    embedded = model.condition(condition)
    drawn = torch.empty(n, length, dtype=torch.int64, device=uniform.device)
    kept: list[KVCache] | None = None
    for i in range(length):
        if cached and i == 0:
            kept = model.new_cache(len(condition), uniform.device, _compute_dtype(model))
        start = i if cached else 0
        read = drawn[:, max(start - 1, 0) : i]
        x, angles = model.embed(torch.cat([read, read]) if both else read, embedded, cells, start)
        logits = model.logits(model.run(x, angles, kept)[:, -1]).float()
        if both:
            given, null = logits.chunk(2)
            logits = torch.where(is_null[:, None], null, null + guidance * (given - null))
        drawn[:, i] = pick(logits, uniform[:, i], temperature, top_p)
    return drawn


def pick(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """One token for each row: int64 (n,) from logits float (n, k) and uniform numbers (n,) in [0, 1).

    The draw inverts the distribution function over the tokens in order of falling probability, so it is a function
    of its arguments on any device.
    """
    if temperature == 0.0:
        return logits.argmax(dim=-1)
    probabilities, token = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    total = probabilities.double().cumsum(dim=-1)
    # A token stays while those before it have not reached top_p: the first always does.
    stays = (total - probabilities < top_p).sum(dim=-1, keepdim=True) if top_p < 1.0 else logits.shape[-1]
    last = torch.as_tensor(stays, device=logits.device).expand(len(logits), 1) - 1
    place = torch.searchsorted(total, uniform[:, None] * total.gather(1, last), right=True)
    return token.gather(1, torch.minimum(place, last)).squeeze(1)


def _compute_dtype(model: Generator) -> torch.dtype:
    device = next(model.parameters()).device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return model.head.weight.dtype


def _check(
    model: Generator, condition: Condition, guidance: float, temperature: float, top_p: float, order: str
) -> None:
    if condition.dim != model.config.condition_dim:
        raise InputError(f"expected centers of dimension {model.config.condition_dim}, got {condition.dim}")
    if not math.isfinite(guidance):
        raise ConfigError(f"guidance: expected a finite number, got {guidance}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"temperature: expected a number >= 0, got {temperature}")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p: expected a number in (0, 1], got {top_p}")
    if order not in ORDERS:
        raise ConfigError(f"order: expected one of {ORDERS}, got {order!r}")
    if order == "random" and not model.config.random_order:
        raise ConfigError("order: this model was trained in raster order only (random_order=False)")
