"""Train a tokenizer of our own on images: the loss is the squared error of the pixels, nothing learned judges it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from genmodel.errors import ConfigError, DataError
from genmodel.images import load_squares
from genmodel.progress import Progress
from genmodel.tokenizers.base import OwnTokenizer
from genmodel.tokenizers.dvae import DVAETokenizer, kl_weight_at, temperature_at
from genmodel.tokenizers.fsq import DEFAULT_LEVELS, FSQTokenizer

REPORT_FILE = "report.json"


@dataclass
class TokenizerConfig:
    """Settings of :func:`train_tokenizer`."""

    images: str
    """Folder of images, Parquet (bytes column), webdataset tar, or .npy of uint8 (n, h, w, 3)."""
    out: str
    """Folder to write: config.json, model.safetensors, report.json."""
    kind: Literal["fsq", "dvae"] = "fsq"
    """"fsq": finite scalar quantization; "dvae": the DALL-E dVAE with gumbel-softmax."""
    image_size: int = 64
    """Pixels per side."""
    grid: int = 8
    """Tokens per side; image_size is the grid times a power of two."""
    width: int = 48
    """Channels at twice the grid's resolution."""
    depth: int = 1
    """Residual blocks per resolution."""
    levels: tuple[int, ...] = DEFAULT_LEVELS
    """fsq: levels per channel; their product is the number of tokens."""
    codebook_size: int = 1024
    """dvae: number of tokens."""
    channels: int = 64
    """dvae: length of a token's vector."""
    steps: int = 4000
    """Optimizer steps."""
    max_seconds: float | None = None
    """End after this many seconds at the latest; the learning rate's decay then follows the clock."""
    batch_size: int = 16
    """Images per step."""
    learning_rate: float = 3e-3
    """Peak of AdamW's learning rate, after `warmup` steps; it decays to 1% by a cosine in the last 70% of the run."""
    warmup: int = 100
    """Steps until the peak."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    ema: float = 0.998
    """Decay of the weights' moving average, which begins half-way and is what is saved; 0 turns it off."""
    flip: bool = False
    """Mirror half of the training images."""
    temperature: tuple[float, float] = (1.0, 0.0625)
    """dvae: relaxation temperature at the start and from `temperature_until` on."""
    temperature_until: float = 0.5
    """dvae: share of the run over which the temperature falls."""
    kl_weight: float = 1e-4
    """dvae: final weight of the KL term (nats per token) against the mean squared error per value."""
    kl_until: float = 0.25
    """dvae: share of the run over which that weight rises from 0."""
    diversity_weight: float = 3e-3
    """dvae: weight of the codes' uneven use over a batch (nats), which keeps a short run from using a few codes only;
    as in wav2vec 2.0 (Baevski et al., 2020), DALL-E has none."""
    holdout: float = 0.05
    """Share of the images kept from training and used for the report (at most 1,000 images)."""
    max_images: int = 200_000
    """Read at most this many images, evenly spread over the source; they are kept in memory as bytes."""
    column: str | None = None
    """Parquet: the column of encoded images."""
    seed: int = 0
    """Seed of the weights, the holdout and the order."""
    device: str = "cpu"
    """torch device."""
    threads: int | None = None
    """torch threads; None leaves them as they are."""
    workers: int = 1
    """Threads that decode images."""
    progress: bool = True
    """Show progress on standard error."""


def build_tokenizer(config: TokenizerConfig) -> OwnTokenizer:
    """The untrained tokenizer that `config` describes."""
    common = {key: getattr(config, key) for key in ("image_size", "grid", "width", "depth")}
    if config.kind == "fsq":
        return FSQTokenizer(**common, levels=config.levels)
    if config.kind == "dvae":
        return DVAETokenizer(**common, codebook_size=config.codebook_size, channels=config.channels)
    raise ConfigError(f"kind: expected 'fsq' or 'dvae', got {config.kind!r}")


def train_tokenizer(config: TokenizerConfig) -> dict[str, Any]:
    """Train, save into ``config.out`` and return the report, which is also written there as ``report.json``.

    The report holds, for images that training never saw: ``psnr`` (mean over images, dB), ``mse`` (pixels in [0, 1]),
    ``codes_used`` (share of the codebook), ``perplexity`` (of the tokens' distribution; the codebook size at best), and
    ``images``, ``holdout_images``, ``steps``, ``seconds``, ``parameters``. Raises DataError when fewer than two images
    can be read.
    """
    _check(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build_tokenizer(config).to(config.device)
    train_images, holdout_images = _load(config, generator)
    began = time.monotonic()
    steps, averaged = _fit(model, train_images, config, generator)
    seconds = time.monotonic() - began
    model.load_state_dict(averaged)
    model.eval()
    report = {
        **measure(model, holdout_images.to(config.device)),
        "images": len(train_images),
        "holdout_images": len(holdout_images),
        "steps": steps,
        "seconds": round(seconds, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    folder = model.save(config.out, training=asdict(config))
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
    return report


@torch.no_grad()
def measure(tokenizer: Any, images: Tensor, batch_size: int = 64) -> dict[str, float]:
    """PSNR in dB and codebook use of a tokenizer on uint8 images (n, 3, s, s).

    Keys ``psnr``, ``mse``, ``codes_used`` and ``perplexity`` as in :func:`train_tokenizer`.
    """
    errors, counts = [], torch.zeros(tokenizer.codebook_size, dtype=torch.long)
    for batch in torch.split(images, batch_size):
        tokens = tokenizer.encode(batch)
        difference = tokenizer.decode(tokens).float() - batch.to(tokenizer.device).float()
        errors.append((difference / 255).square().mean((1, 2, 3)).cpu())
        counts += tokens.flatten().bincount(minlength=tokenizer.codebook_size).cpu()
    mse = torch.cat(errors).double()
    shares = counts[counts > 0].double() / counts.sum()
    return {
        # An image that comes back exactly would count as infinite; 60 dB is below one level in a thousand values.
        "psnr": float((-10 * mse.clamp_min(1e-6).log10()).mean()),
        "mse": float(mse.mean()),
        "codes_used": float((counts > 0).double().mean()),
        "perplexity": float((-(shares * shares.log()).sum()).exp()),
    }


def _check(config: TokenizerConfig) -> None:
    for name, low in (("steps", 1), ("batch_size", 1), ("width", 1), ("depth", 0), ("max_images", 2)):
        if getattr(config, name) < low:
            raise ConfigError(f"{name}: expected at least {low}, got {getattr(config, name)}")
    if not 0 < config.holdout < 1:
        raise ConfigError(f"holdout: expected a share in (0, 1), got {config.holdout}")
    if not 0 <= config.ema < 1:
        raise ConfigError(f"ema: expected a decay in [0, 1), got {config.ema}")
    if min(config.temperature) <= 0:
        raise ConfigError(f"temperature: expected values above 0, got {config.temperature}")


def _load(config: TokenizerConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    images, _ = load_squares(config.images, config.image_size, config.column, config.workers, config.max_images)
    if len(images) < 2:
        raise DataError(f"{config.images}: expected at least two images that can be read, got {len(images)}")
    order = torch.randperm(len(images), generator=generator)
    kept = min(1000, max(1, round(config.holdout * len(images))))
    whole = torch.from_numpy(np.ascontiguousarray(images))
    return whole[order[kept:]], whole[order[:kept]]


def _batches(images: Tensor, config: TokenizerConfig, generator: torch.Generator) -> Iterator[Tensor]:
    size = min(config.batch_size, len(images))
    while True:
        for rows in torch.split(torch.randperm(len(images), generator=generator), size):
            if len(rows) == size:
                batch = images[rows].to(config.device).float() / 255
                if config.flip:
                    mirrored = (torch.rand(size, generator=generator) < 0.5).to(batch.device)
                    batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
                yield batch


def _fit(
    model: OwnTokenizer, images: Tensor, config: TokenizerConfig, generator: torch.Generator
) -> tuple[int, dict[str, Tensor]]:
    """Train `model`; returns the number of steps and the averaged weights."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
    )
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))  # type: ignore[no-untyped-call]
    batches = _batches(images, config, generator)
    began, step, progress = time.monotonic(), 0, 0.0
    with Progress("tokenizer", config.steps, config.progress) as shown, torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # gumbel noise draws from torch's own generator
        while progress < 1:
            rate = config.learning_rate * min(1.0, (step + 1) / config.warmup) * _decay(progress)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, error = _loss(model, next(batches), config, progress)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            progress = step / config.steps
            if config.max_seconds is not None:
                progress = max(progress, (time.monotonic() - began) / config.max_seconds)
            if config.ema and progress >= 0.5:
                average.update_parameters(model)
            if step % 20 == 0 or progress >= 1:
                value = error.item()
                if not math.isfinite(value):
                    raise ConfigError(
                        f"the loss is {value} at step {step}: lower learning_rate ({config.learning_rate})"
                    )
                shown.update(step, f"{-10 * math.log10(max(value, 1e-6)):.2f} dB")
    averaged = average.module if config.ema and int(average.n_averaged) > 0 else model
    return step, {key: value.clone() for key, value in averaged.state_dict().items()}


def _decay(progress: float) -> float:
    """Share of the peak learning rate: 1 for 30% of the run, then a cosine to 1%."""
    share = max(0.0, (progress - 0.3) / 0.7)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))


def _loss(model: Any, pixels: Tensor, config: TokenizerConfig, progress: float) -> tuple[Tensor, Tensor]:
    """The loss to minimize and the squared error to show."""
    if config.kind == "fsq":
        decoded, _ = model(pixels)
        error = (decoded - pixels).square().mean()
        return error, error.detach()
    temperature = temperature_at(progress, *config.temperature, config.temperature_until)
    decoded, divergence, unevenness, _ = model.relaxed(pixels, temperature)
    error = (decoded - pixels).square().mean()
    loss = error + kl_weight_at(progress, config.kl_weight, config.kl_until) * divergence
    return loss + config.diversity_weight * unevenness, error.detach()
