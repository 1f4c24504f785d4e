"""The learned second stage: a small network that draws an image embedding from a cap, without having seen text.

With it a prompt goes cap -> embedding -> image, as in the two stages of DALL-E 2 (there from captions): the network
draws what kind of image there is in the cap, and the generator draws its pixels from a narrow cap around that
embedding. It must beat :func:`genmodel.prompts.retrieve`, which draws a training image's embedding instead and learns
nothing.

The network is a rectified flow (Liu and others, 2022; Lipman and others, 2022): an MLP that carries Gaussian noise to
the embeddings along straight paths, conditioned on the cap's center and bound. Notable:

- embeddings are scaled by sqrt(d), so their components have variance one;
- the velocity that is best for isotropic data is added in closed form, the network learns the rest;
- the null cap (bound 2) is the unconditional case, and its center is ignored;
- a draw outside its cap can be told at once, so it may be repeated until it lies inside (`tries`).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from genmodel.errors import CheckpointError, ConfigError, InputError

__all__ = ["Flow", "SecondStageConfig", "load_second_stage", "save_second_stage", "train_flow", "train_second_stage"]

_FREQUENCIES = 16
_FORMAT = "genmodel second stage 1"


@dataclass(frozen=True)
class FlowSize:
    """Shape of the network.

    Attributes:
        dim: dimension d of the embeddings.
        width: of the residual stream.
        depth: residual blocks.
    """

    dim: int
    width: int = 512
    depth: int = 4

    def __post_init__(self) -> None:
        if min(self.dim, self.width, self.depth) < 1:
            raise ConfigError(f"second stage: expected dim, width and depth of at least 1, got {asdict(self)}")


class Flow(nn.Module):
    """The velocity field of a rectified flow from noise to embeddings, given a cap; and the draws from it."""

    def __init__(self, size: FlowSize) -> None:
        super().__init__()
        self.size = size
        d, w = size.dim, size.width
        self.input = nn.Linear(d, w)
        self.center = nn.Linear(d, w, bias=False)
        self.numbers = nn.Sequential(nn.Linear(4 * _FREQUENCIES, w), nn.SiLU(), nn.Linear(w, w))
        self.blocks = nn.ModuleList(_Block(w) for _ in range(size.depth))
        self.norm = nn.RMSNorm(w)
        self.output = nn.Linear(w, d)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, t: Tensor, center: Tensor, max_cos_distance: Tensor) -> Tensor:
        """Velocity at x.

        Args:
            x: float32 (n, d), (1 - t) noise + t sqrt(d) embedding.
            t: float32 (n,) in [0, 1].
            center: float32 (n, d), unit; ignored where the bound is 2 or more.
            max_cos_distance: float32 (n,).
        """
        conditional = (max_cos_distance < 2.0).to(x.dtype)[:, None]
        numbers = torch.cat([_fourier(t), _fourier(max_cos_distance.clamp(max=2.0) / 2.0)], dim=1)
        scale = math.sqrt(self.size.dim)
        given = functional.silu(self.center(scale * center * conditional) + self.numbers(numbers))
        stream = self.input(x)
        for block in self.blocks:
            stream = block(stream, given)
        # With unit variances, E[v | x_t] is this multiple of x_t, and what is left has this standard deviation.
        spread = ((1.0 - t) ** 2 + t**2)[:, None]
        learned: Tensor = self.output(self.norm(stream))
        return (2.0 * t[:, None] - 1.0) / spread * x + learned / spread.sqrt()

    def loss(self, embeddings: Tensor, center: Tensor, max_cos_distance: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the velocity on embeddings (n, d), unit, with caps that hold them."""
        x1 = embeddings * math.sqrt(self.size.dim)
        x0 = torch.randn(x1.shape, generator=generator).to(x1)
        # Logit-normal times (Esser and others, 2024): the middle of the path is where there is something to learn.
        t = torch.sigmoid(torch.randn(len(x1), generator=generator)).to(x1)
        x = (1.0 - t)[:, None] * x0 + t[:, None] * x1
        return functional.mse_loss(self(x, t, center, max_cos_distance), x1 - x0)

    @torch.no_grad()
    def draw(
        self,
        centers: Any,
        max_cos_distance: Any,
        n: int = 1,
        *,
        seed: int = 0,
        guidance: float = 1.0,
        tries: int = 8,
        steps: int = 24,
        batch_size: int = 4096,
    ) -> NDArray[np.float32]:
        """Embeddings drawn from caps.

        Args:
            centers: (p, d) unit rows.
            max_cos_distance: (p,) or a number, in [0, 2].
            n: draws per cap.
            seed: the same seed gives the same draws, however large `batch_size` is.
            guidance: of the velocity against the null cap; 1 is none.
            tries: a draw outside its cap is repeated up to so many times in all; of a cap that is never hit, the
                draw nearest to the center stays.
            steps: of the midpoint rule.
            batch_size: rows at a time.

        Returns:
            float32 (p, n, d), unit.

        Raises:
            InputError: centers of another dimension.
            ConfigError: n, tries or steps below 1.
        """
        device = self.output.weight.device
        rows = torch.as_tensor(np.asarray(centers, np.float32), device=device)
        if rows.ndim != 2 or rows.shape[1] != self.size.dim:
            raise InputError(f"second stage: expected centers (p, {self.size.dim}), got {tuple(rows.shape)}")
        if min(n, tries, steps) < 1:
            raise ConfigError(f"second stage: expected n, tries and steps of at least 1, got {n}, {tries}, {steps}")
        bounds = np.broadcast_to(np.asarray(max_cos_distance, np.float32), (len(rows),))
        limits = torch.as_tensor(bounds.copy(), device=device)
        rows, limits = rows.repeat_interleave(n, 0), limits.repeat_interleave(n, 0)
        best = torch.empty_like(rows)
        away = torch.full((len(rows),), math.inf, device=device)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(tries):
            # Noise for all rows at every try: what one row gets does not depend on the fate of the others.
            noise = torch.randn(rows.shape, generator=generator).to(device)
            open_rows = torch.nonzero(away > limits).flatten()
            for part in torch.split(open_rows, batch_size):
                made = self._carry(noise[part], rows[part], limits[part], guidance, steps)
                distance = 1.0 - (made * rows[part]).sum(1)
                closer = distance < away[part]
                best[part[closer]], away[part[closer]] = made[closer], distance[closer]
        return np.asarray(best.cpu().numpy().reshape(-1, n, self.size.dim))

    def _carry(self, x: Tensor, center: Tensor, limit: Tensor, guidance: float, steps: int) -> Tensor:
        for step in range(steps):
            t, h = step / steps, 1.0 / steps
            half = x + 0.5 * h * self._velocity(x, t, center, limit, guidance)
            x = x + h * self._velocity(half, t + 0.5 * h, center, limit, guidance)
        return functional.normalize(x, dim=1)

    def _velocity(self, x: Tensor, t: float, center: Tensor, limit: Tensor, guidance: float) -> Tensor:
        times = x.new_full((len(x),), t)
        given: Tensor = self(x, times, center, limit)
        if guidance == 1.0:
            return given
        free: Tensor = self(x, times, center, torch.full_like(limit, 2.0))
        return free + guidance * (given - free)


class _Block(nn.Module):
    """A residual MLP block whose normed input is scaled and moved by the condition; it starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.given = nn.Linear(width, 3 * width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.zeros_(self.given.weight)
        nn.init.zeros_(self.given.bias)

    def forward(self, stream: Tensor, given: Tensor) -> Tensor:
        scale, move, gate = self.given(given).chunk(3, dim=1)
        inner: Tensor = self.down(functional.silu(self.up(self.norm(stream) * (1.0 + scale) + move)))
        moved: Tensor = stream + gate * inner
        return moved


def _fourier(value: Tensor) -> Tensor:
    frequencies = math.pi * 2.0 ** torch.linspace(-1.0, 6.0, _FREQUENCIES, device=value.device)
    angles = value[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


Pairs = Iterable[tuple[Any, Any, Any]]
"""Batches of (embeddings (b, d), centers (b, d), max_cos_distance (b,)): each embedding lies in its cap."""


def train_flow(
    pairs: Pairs,
    size: FlowSize,
    *,
    steps: int,
    learning_rate: float = 1e-3,
    condition_dropout: float = 0.1,
    ema: float = 0.999,
    seed: int = 0,
    device: str = "cpu",
    report: Callable[[int, float], None] | None = None,
) -> Flow:
    """Trains a flow with AdamW, a warmup and a cosine decay, and returns the average of its weights.

    Args:
        pairs: batches; as many as there are steps are taken.
        size: of the network.
        steps: at least 1.
        learning_rate: at its highest.
        condition_dropout: share of rows whose cap is replaced by the null cap.
        ema: decay of the weights' average; it starts smaller, so that short runs are not averages of the start.
        seed: of the weights and the noise; the global random state is left as it was.
        device: where the network is.
        report: called with (step, loss) now and then.
    """
    if steps < 1 or not 0.0 <= condition_dropout <= 1.0 or not 0.0 <= ema < 1.0:
        raise ConfigError(f"second stage: got steps {steps}, condition_dropout {condition_dropout}, ema {ema}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow, average = Flow(size), Flow(size)
    average.load_state_dict(flow.state_dict())
    flow.to(device), average.to(device)
    generator = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.AdamW(flow.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    source = iter(pairs)
    for step in range(steps):
        warm = min(1.0, (step + 1) / max(1, min(100, steps // 10)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warm * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        rows, centers, limits = (_tensor(part, device) for part in _next(source, step, steps))
        dropped = torch.rand(len(rows), generator=generator).to(device) < condition_dropout
        loss = flow.loss(rows, centers, torch.where(dropped, 2.0, limits), generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        decay = min(ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), flow.parameters(), strict=True):
                kept.lerp_(new, 1.0 - decay)
        if report is not None and (step % 100 == 0 or step == steps - 1):
            report(step, float(loss.detach()))
    return average.eval()


@dataclass
class SecondStageConfig:
    """Settings of ``genmodel second-stage train``.

    Attributes:
        tree: a captree tree over the training embeddings.
        out: the file that is written, .safetensors.
        steps: of the optimizer.
        batch_size: pairs per step.
        learning_rate: at its highest.
        width: of the network.
        depth: residual blocks of the network.
        prior: of the caps' centers, by the names that ``genmodel train`` takes.
        radii: of the caps' bounds, likewise.
        noise: length of the noise of "slerp-noise" and "gap-shift".
        shift: a vector from ``genmodel shift``, for the prior "gap-shift".
        centers: .npy of unit vectors, for the prior "given".
        condition_dropout: share of pairs whose cap becomes the null cap.
        ema: decay of the weights' average.
        seed: of pairs, weights and noise.
        device: "cpu", "cuda".
        threads: at most this many.
    """

    tree: Path
    out: Path
    steps: int = 5000
    batch_size: int = 1024
    learning_rate: float = 1e-3
    width: int = 512
    depth: int = 4
    prior: str = "slerp-noise"
    radii: str = "mixture"
    noise: float = 0.5
    shift: Path | None = None
    centers: Path | None = None
    condition_dropout: float = 0.1
    ema: float = 0.999
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None


def train_second_stage(config: SecondStageConfig, report: Callable[[int, float], None] | None = None) -> dict[str, Any]:
    """Trains the second stage on pairs drawn by captree and writes it.

    Returns:
        Seconds, parameters, the loss of the last step, and ``in_cap``: the share of draws that lie in their caps at the
        first try, of one from each of 512 fresh caps.
    """
    import captree

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tree = captree.open(config.tree)
    size = FlowSize(tree.dim, config.width, config.depth)
    losses: list[float] = []

    def note(step: int, loss: float) -> None:
        losses.append(loss)
        if report is not None:
            report(step, loss)

    started = time.monotonic()
    with _stream(config, tree, config.batch_size, config.seed) as stream:
        flow = train_flow(
            _looked_up(tree, stream),
            size,
            steps=config.steps,
            learning_rate=config.learning_rate,
            condition_dropout=config.condition_dropout,
            ema=config.ema,
            seed=config.seed,
            device=config.device,
            report=note,
        )
    save_second_stage(config.out, flow, {"prior": config.prior, "radii": config.radii, "rows": len(tree)})
    seconds = time.monotonic() - started
    with _stream(config, tree, 512, config.seed + 1) as stream:
        _, centers, limits = next(_looked_up(tree, stream))
    drawn = flow.draw(centers, limits, tries=1, seed=config.seed)[:, 0]
    inside = 1.0 - np.sum(drawn.astype(np.float64) * centers, axis=1) <= limits
    return {
        "seconds": seconds,
        "parameters": sum(p.numel() for p in flow.parameters()),
        "loss": losses[-1],
        "in_cap": float(np.mean(inside)),
    }


def save_second_stage(path: str | os.PathLike[str], flow: Flow, extra: dict[str, Any] | None = None) -> Path:
    """Writes a flow as safetensors, its shape in the metadata."""
    from safetensors.torch import save_file

    place = Path(path)
    if place.suffix != ".safetensors":
        raise ConfigError(f"second stage: expected a name that ends in .safetensors, got {place}")
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(place.name + ".tmp")
    metadata = {"format": _FORMAT, "size": json.dumps(asdict(flow.size)), "extra": json.dumps(extra or {}, default=str)}
    save_file({name: value.contiguous().cpu() for name, value in flow.state_dict().items()}, beside, metadata)
    beside.replace(place)
    return place


def load_second_stage(path: str | os.PathLike[str], device: str = "cpu") -> Flow:
    """Reads a flow that :func:`save_second_stage` wrote.

    Raises:
        CheckpointError: no such file, or not one of ours.
    """
    from safetensors import SafetensorError, safe_open

    place = Path(path)
    if not place.is_file():
        raise CheckpointError(f"{place}: no such file")
    try:
        with safe_open(place, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dictionary
        if metadata.get("format") != _FORMAT:
            raise CheckpointError(f"{place}: expected {_FORMAT!r} in its metadata, got {metadata.get('format')!r}")
        flow = Flow(FlowSize(**json.loads(metadata["size"])))
        flow.load_state_dict(state)
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{place}: expected a second stage, got a file that cannot be read so: {error}"
        ) from error
    return flow.to(device).eval()


def _stream(config: SecondStageConfig, tree: Any, batch_size: int, seed: int) -> Any:
    import captree

    from genmodel.data import center_prior, parse_radii

    if config.prior == "own":
        raise ConfigError('prior: expected one that makes caps, got "own"')
    centers = center_prior(config.prior, config.noise, config.shift, centers=config.centers)
    return captree.PairStream(tree, batch_size, seed, centers=centers, radii=parse_radii(config.radii, config.prior))


def _looked_up(tree: Any, stream: Iterable[Any]) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    from genmodel.prompts import unit

    for batch in stream:
        yield unit(tree.take(batch.rows)), batch.centers, batch.max_cos_distance


def _next(source: Iterator[tuple[Any, Any, Any]], step: int, steps: int) -> tuple[Any, Any, Any]:
    try:
        return next(source)
    except StopIteration:
        raise InputError(f"second stage: expected {steps} batches of pairs, got {step}") from None


def _tensor(array: Any, device: str) -> Tensor:
    return torch.as_tensor(array).to(device=device, dtype=torch.float32)
