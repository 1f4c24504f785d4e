"""One step of training after another, and what is measured on the way."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from genmodel.checkpoint import fill
from genmodel.condition import Condition
from genmodel.data import Batch, share
from genmodel.distributed import World, last_of
from genmodel.errors import DivergedError
from genmodel.generate import generate
from genmodel.log import RunLog, peak_flops
from genmodel.losses import batch_loss, early_weights, embedding_loss, token_losses
from genmodel.material import Material
from genmodel.model import Generator
from genmodel.optim import MovingAverage, lr_scale, set_lr, whole
from genmodel.progress import Progress

if TYPE_CHECKING:
    from genmodel.train import TrainConfig

_BINS = 16
_DROPOUT, _ORDER, _TORCH = 11, 12, 13


@dataclass
class Figures:
    """Latest measurements; see :class:`genmodel.train.TrainReport`."""

    loss: float = math.nan
    heldout: float = math.nan
    heldout_null: float = math.nan
    tokens_per_second: float = 0.0
    mfu: float = 0.0
    data_share: float = 0.0
    step_seconds: float = 0.0


class Trainer:
    """Makes updates.

    Args:
        config: the run's settings.
        model: the generator whose parameters are trained.
        module: what to call: `model`, or what spreads it over processes.
        optimizers: of its parameters.
        average: their moving average.
        material: batches.
        world: this process.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Generator,
        module: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        average: MovingAverage | None,
        material: Material,
        world: World,
    ) -> None:
        self.config, self.model, self.optimizers, self.average = config, model, optimizers, average
        self.material, self.world, self.length = material, world, model.config.length
        on_cpu = world.device.type == "cpu"
        reduced = config.dtype == "bfloat16" or (config.dtype == "auto" and not on_cpu)
        self.dtype = torch.bfloat16 if reduced else torch.float32
        self.module = module
        if config.compile == "yes" or (config.compile == "auto" and not on_cpu):
            size = config.micro_batch_size or config.batch_size // world.size
            quick = compiled(module, model, size, world.device, self.dtype)
            self.module = module if quick is None else quick
        self.parameters = sum(p.numel() for p in model.parameters())
        self.figures = Figures()
        self._flops = model.flops_per_token()
        self._peak = config.peak_flops
        early = early_weights(self.length, config.early_token_weight, world.device)
        self._step_weights = early if config.early_token_weight else None
        self._mine = share(config.batch_size, world.rank, world.size)
        self._reconstruct = self._reconstruction() if config.clip_gen_weight else None
        self._window = _Window(self.length, world.device)
        self._busy = self._waited = 0.0
        self._steps = 0
        self.progress = Progress("train", config.steps, config.progress and world.first)

    def autocast(self) -> Any:
        """The precision of the matrix products."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, self.dtype)

    def update(self, step: int) -> None:
        """One update, number `step` from 0."""
        config, began = self.config, time.perf_counter()
        batch = next(self.material.batches)
        waited = time.perf_counter() - began
        if len(batch) != len(range(config.batch_size)[self._mine]):
            raise RuntimeError(f"expected batches of {len(range(config.batch_size)[self._mine])}, got {len(batch)}")
        dropped = self._dropped(step)
        batch = Batch(batch.tokens, batch.condition.where_null(dropped), batch.weight).to(self.world.device)
        order = self._order(step)
        # Token dropout and dropout draw from torch's streams: a function of the step too.
        torch.manual_seed(_word(config.seed, _TORCH, step, self.world.rank))
        self.module.train()
        size = config.micro_batch_size or len(batch)
        start = 0
        for part in batch.split(size):
            stop = start + len(part)
            with last_of(self.module, stop == len(batch)):
                loss = self._loss(part, None if order is None else order[start:stop])
                torch.autograd.backward(loss * (len(part) / len(batch)))
            start = stop
        self._apply(step)
        if self.world.device.type == "cuda" and (step + 1) % config.log_every == 0:
            torch.cuda.synchronize(self.world.device)
        seconds = time.perf_counter() - began
        self._busy, self._waited, self._steps = self._busy + seconds, self._waited + waited, self._steps + 1
        self._window.seconds += seconds
        self._window.waited += waited
        self.figures.step_seconds = self._busy / self._steps
        known = not math.isnan(self.figures.loss)
        self.progress.update(step + 1, f"loss {self.figures.loss:.3f}" if known else "")

    def _loss(self, batch: Batch, order: Tensor | None) -> Tensor:
        with self.autocast():
            logits = self.module(batch.tokens, batch.condition, order)
        losses = token_losses(logits, batch.tokens, order)
        self._window.add(losses, batch.weight)
        loss = batch_loss(losses, self._step_weights, batch.weight)
        if self._reconstruct is not None:
            apart = embedding_loss(logits, batch.condition, *self._reconstruct, order)
            self._window.apart += apart.detach() * len(batch)
            loss = loss + self.config.clip_gen_weight * apart
        return loss

    def _apply(self, step: int) -> None:
        config = self.config
        if config.clip:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
            self._window.norm = whole(norm)
        warmup = min(config.warmup, max(1, config.steps // 10))
        self._window.scale = lr_scale(step, config.steps, warmup, config.schedule, config.decay)
        set_lr(self.optimizers, self._window.scale)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(step)

    def _dropped(self, step: int) -> Tensor:
        """Bool (n,): which caps of this process's share become the null cap. One draw for all processes together."""
        draw = np.random.default_rng([self.config.seed, _DROPOUT, step]).random(self.config.batch_size)
        return torch.from_numpy(draw[self._mine] < self.config.condition_dropout)

    def _order(self, step: int) -> Tensor | None:
        """The cells' orders (n, length) of this process's share in a step, None for raster order throughout."""
        config = self.config
        if not config.random_order:
            return None
        start, stop = config.random_order_from * config.steps, config.random_order_to * config.steps
        chance = 1.0 if step < start else max(0.0, (stop - step) / max(1.0, stop - start))
        if chance == 0.0:
            return None
        rng = np.random.default_rng([config.seed, _ORDER, step])
        shuffled = rng.random(config.batch_size) < chance
        keys = rng.random((config.batch_size, self.length), dtype=np.float32)
        keys[~shuffled] = np.arange(self.length)
        order = keys[self._mine].argsort(axis=1, kind="stable")
        return torch.from_numpy(order).to(self.world.device)

    def _reconstruction(self) -> tuple[Any, Any]:
        """The tokenizer's and the encoder's differentiable halves. Of the encoder only the image side is kept."""
        from genmodel.encoders import load_encoder
        from genmodel.tokenizers import load_tokenizer

        meta, device = self.material.meta, str(self.world.device)
        decode = load_tokenizer(self.config.tokenizer or meta["tokenizer"], device).decode_soft
        return decode, load_encoder(self.config.encoder or meta["encoder"], device).images_float

    def summary(self) -> dict[str, Any]:
        """Figures of the steps since the last call, for the log; starts a new window."""
        window, figures, world = self._window, self.figures, self.world
        losses = world.mean(window.losses / window.rows.clamp(min=1))
        tokens = self.config.batch_size * self.length
        if self._peak is None:
            self._peak = peak_flops(world.device, self.dtype)
        figures.loss = float(losses.mean())
        figures.tokens_per_second = tokens * self._steps / self._busy
        figures.mfu = figures.tokens_per_second * self._flops / (self._peak * world.size)
        figures.data_share = self._waited / self._busy
        steps = window.count / max(1, len(range(self.config.batch_size)[self._mine]))
        speed = tokens * steps / max(window.seconds, 1e-9)
        bins = min(_BINS, self.length)
        entry = {
            "loss": figures.loss,
            "loss_by_position": [float(part.mean()) for part in losses.tensor_split(bins)],
            "gradient_norm": float(window.norm),
            "lr_scale": window.scale,
            "tokens_per_second": speed,
            "mfu": speed * self._flops / (self._peak * world.size),
            "data_share": window.waited / max(window.seconds, 1e-9),
        }
        if self._reconstruct is not None:
            entry["embedding_loss"] = float(world.mean(window.apart)) / max(1, window.count)
        self._window = _Window(self.length, world.device)
        if not math.isfinite(figures.loss):
            raise DivergedError(f"expected a finite loss, got {figures.loss}: a smaller lr or muon_lr may help")
        return entry

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        """Loss on the fixed batch held out, with its caps and with the null cap; by position too (raster order)."""
        batch, figures = self.material.heldout, self.figures
        if batch is None:
            return {"rows": 0}
        sums = torch.zeros(2, self.length, device=self.world.device)
        self.module.eval()
        for part in batch.split(self.config.micro_batch_size or 64):
            part = part.to(self.world.device)
            null = Condition.null(len(part), part.condition.dim, self.world.device)
            for side, condition in enumerate((part.condition, null)):
                with self.autocast():
                    logits = self.module(part.tokens, condition)
                sums[side] += token_losses(logits, part.tokens).sum(0)
        given, null_losses = sums / len(batch)
        figures.heldout, figures.heldout_null = float(given.mean()), float(null_losses.mean())
        return {
            "rows": len(batch),
            "loss": figures.heldout,
            "null_loss": figures.heldout_null,
            "gap": figures.heldout_null - figures.heldout,
            "loss_by_position": given,
            "gap_by_position": null_losses - given,
        }

    def samples(self, log: RunLog, step: int, weights: dict[str, Tensor]) -> None:
        """Images for caps held out, as a grid in ``samples/``; needs a tokenizer that loads and rows held out."""
        batch = self.material.heldout
        if not self.world.first or batch is None:
            return
        from genmodel.grids import make_grid, save_png
        from genmodel.tokenizers import load_tokenizer

        spec = self.config.tokenizer or self.material.meta["tokenizer"]
        with torch.device("meta"):
            model = Generator(self.model.config)
        fill(model, weights)
        count = min(self.config.sample_count, len(batch))
        tokens = generate(model, batch.condition[:count], guidance=self.config.sample_guidance, seed=self.config.seed)
        tokenizer = load_tokenizer(spec, str(self.world.device))
        real, made = (tokenizer.decode(t.to(self.world.device)).cpu() for t in (batch.tokens[:count], tokens))
        picture = make_grid(torch.cat([real, made]), count, ["in these caps", f"step {step}"])
        settings = {"step": step, "guidance": self.config.sample_guidance, "seed": self.config.seed}
        path = save_png(Path(self.config.out) / "samples" / f"step-{step:08d}.png", picture, settings)
        log.write("samples", step, path=str(path))
        log.picture("samples", np.asarray(picture), step)


class _Window:
    """Sums since the last log entry; tensors stay on the device, so that adding does not wait for it."""

    def __init__(self, length: int, device: torch.device) -> None:
        self.losses = torch.zeros(length, device=device)
        self.rows = torch.zeros((), device=device)
        self.apart = torch.zeros((), device=device)
        self.norm: Any = math.nan
        self.scale = 0.0
        self.count = 0
        self.seconds = self.waited = 0.0

    def add(self, losses: Tensor, weight: Tensor | None) -> None:
        losses = losses.detach()
        self.losses += losses.sum(0) if weight is None else (losses * weight[:, None]).sum(0)
        self.rows += len(losses) if weight is None else weight.sum()
        self.count += len(losses)


def compiled(
    module: nn.Module, model: Generator, size: int, device: torch.device, dtype: torch.dtype
) -> nn.Module | None:
    """`module` compiled, after a step on made-up tokens showed that this machine can; None where it cannot."""
    quick: Any = torch.compile(module)
    tokens = torch.zeros(size, model.config.length, dtype=torch.int64, device=device)
    condition = Condition.null(size, model.config.condition_dim, device)
    try:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            torch.autograd.backward(token_losses(quick(tokens, condition, None), tokens).mean())
    except Exception as error:  # whatever a compiler's tools throw, training can go on without it
        warnings.warn(f"torch.compile does not run here, going on without it: {error}", stacklevel=2)
        return None
    finally:
        module.zero_grad(set_to_none=True)
    made: nn.Module = quick
    return made


def _word(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
