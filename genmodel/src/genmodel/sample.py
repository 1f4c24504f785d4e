"""Images for prompts: the command. Embed, put a cap around, draw, rank, and lay out in a grid.

:class:`genmodel.sampler.Sampler` holds an opened model and is what programs use that draw more than once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genmodel import grids
from genmodel import prompts as ask
from genmodel.errors import ConfigError
from genmodel.prompts import Prompt
from genmodel.sampler import Sampler, SampleResult

__all__ = ["SampleConfig", "SampleResult", "Sampler", "sample", "titles_of"]


@dataclass
class SampleConfig:
    """Settings of ``genmodel sample``. Without a prompt or an image the samples are unconditional (the null cap).

    Attributes:
        checkpoint: folder of ``genmodel train``.
        prompt: a text; may be given several times.
        image: an image to make variations of; may be given several times, and together with texts.
        max_cos_distance: bound of the caps: one for all, or one for each prompt (texts first, then images).
        mass: instead of it: the share of the training images that a cap is to hold, such as 0.01.
        out: the grid, .png, with these settings in its metadata.
        n: images per prompt.
        guidance: logits are moved away from the null cap's by this factor; 1 is none.
        temperature: of the token draws.
        top_p: tokens are drawn from the most likely ones that have this probability together.
        seed: the same seed gives the same images, however large the batches are.
        best_of: so many candidates are made for each image, and the one nearest to the prompt by the encoder is kept.
        interpolate: instead of the prompts themselves, so many points of the arc from each to the next.
        edit_from: text diff, for image prompts: a text that describes what is there ...
        edit_to: ... and one for what should be there.
        edit_amount: how far the image's embedding is rotated in that direction, in [0, 1].
        shift: a vector of ``genmodel shift``, subtracted from text embeddings.
        shift_scale: how much of it.
        retrieve: draw a training embedding inside the cap and use that.
        second_stage: file of ``genmodel second-stage train``: draw an embedding from the cap with it and use that.
        second_stage_guidance: of its draws against the null cap; 1 is none, more draws nearer to the prompt.
        embedding_max_cos_distance: bound of the narrow cap around an embedding that was drawn by one of the two.
        tree: captree tree of the training embeddings, for `mass` and `retrieve`; by default the checkpoint's.
        encoder: another name or place for the encoder than the one in the checkpoint.
        tokenizer: likewise.
        device: "cpu", "cuda".
        batch_size: images at a time.
        ema: use the averaged weights where there are any.
        threads: at most this many.
    """

    checkpoint: Path
    prompt: tuple[str, ...] = ()
    image: tuple[Path, ...] = ()
    max_cos_distance: tuple[float, ...] = ()
    mass: tuple[float, ...] = ()
    out: Path | None = Path("samples.png")
    n: int = 8
    guidance: float = 3.0
    temperature: float = 1.0
    top_p: float = 0.9
    seed: int = 0
    best_of: int = 1
    interpolate: int | None = None
    edit_from: str | None = None
    edit_to: str | None = None
    edit_amount: float = 0.3
    shift: Path | None = None
    shift_scale: float = 1.0
    retrieve: bool = False
    second_stage: Path | None = None
    second_stage_guidance: float = 1.0
    embedding_max_cos_distance: float = 0.1
    tree: Path | None = None
    encoder: str | None = None
    tokenizer: str | None = None
    device: str = "cpu"
    batch_size: int = 64
    ema: bool = True
    threads: int | None = None

    def __post_init__(self) -> None:
        paths = ("checkpoint", "image", "out", "shift", "second_stage", "tree")
        ask.plain_settings(self, ("prompt", "image", "max_cos_distance", "mass"), paths)


def sample(config: SampleConfig) -> SampleResult:
    """Draws images as `config` says and writes the grid.

    Returns:
        The samples; their ``settings`` are what the grid's metadata holds.

    Raises:
        GenmodelError: settings, files or prompts that do not fit.
    """
    _check_config(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    sampler = Sampler.open(
        config.checkpoint,
        encoder=config.encoder,
        tokenizer=config.tokenizer,
        tree=config.tree,
        with_encoder=bool(config.prompt or config.image),
        with_tree=bool(config.mass) or config.retrieve,
        device=config.device,
        ema=config.ema,
        batch_size=config.batch_size,
    )
    prompts = _prompts(config, sampler)
    limits = _limits(config, sampler, prompts)
    stage = None
    if config.second_stage is not None:
        from genmodel.second_stage import load_second_stage

        stage = load_second_stage(config.second_stage, config.device)
    result = sampler.samples(
        prompts,
        limits,
        config.n,
        guidance=config.guidance,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
        best_of=config.best_of,
        retrieve=config.retrieve,
        second_stage=stage,
        second_stage_guidance=config.second_stage_guidance,
        embedding_max_cos_distance=config.embedding_max_cos_distance,
    )
    result.settings = _settings(config, result)
    if config.out is not None:
        first = {i: ask.open_image(p.picture) for i, p in enumerate(prompts) if p.picture is not None}
        titles = titles_of(result)
        result.path = grids.save_grid(config.out, result.images, config.n, titles, result.settings, first=first)
    return result


def titles_of(result: SampleResult) -> list[str]:
    """A line per prompt: its label, its bound, and how many samples lie in the cap."""
    if not result.prompts:
        return ["unconditional"]
    made = []
    for i, prompt in enumerate(result.prompts):
        limit = float(result.max_cos_distance[i])
        made.append(f"{prompt.label}   (max_cos_distance {limit:.3f})" if limit < 2.0 else prompt.label)
    return made


def _check_config(config: SampleConfig) -> None:
    if config.max_cos_distance and config.mass:
        raise ConfigError("expected one of max_cos_distance and mass, got both")
    if (config.edit_from is None) != (config.edit_to is None):
        raise ConfigError("text diff: expected both edit_from and edit_to, got one of them")
    if config.edit_from is not None and (not config.image or config.prompt):
        raise ConfigError("text diff: expected images and no other prompt, since it changes what an image shows")
    if not (config.prompt or config.image) and (config.max_cos_distance or config.mass):
        raise ConfigError("max_cos_distance and mass: expected a prompt or an image to put the cap around, got none")
    if config.shift is not None and not config.prompt:
        raise ConfigError("shift: expected text prompts, which it moves, got none")
    if not math.isfinite(config.shift_scale):
        raise ConfigError(f"shift_scale: expected a finite number, got {config.shift_scale}")
    if config.out is not None and config.out.suffix.lower() != ".png":
        raise ConfigError(f"out: expected a name that ends in .png, got {config.out}")


def _prompts(config: SampleConfig, sampler: Sampler) -> list[Prompt]:
    if not (config.prompt or config.image):
        return []
    shift = None if config.shift is None else ask.load_shift(config.shift)
    made = ask.text_prompts(sampler.encoder, config.prompt, shift, config.shift_scale)
    made += ask.image_prompts(sampler.encoder, config.image)
    if config.edit_from is not None and config.edit_to is not None:
        before, after = ask.unit(sampler.encoder.text([config.edit_from, config.edit_to]))
        label = f"{config.edit_from} -> {config.edit_to}"
        made = [ask.text_diff(prompt, before, after, config.edit_amount, label) for prompt in made]
    return made if config.interpolate is None else ask.interpolate(made, config.interpolate)


def _limits(config: SampleConfig, sampler: Sampler, prompts: Sequence[Prompt]) -> NDArray[np.float64]:
    if not prompts:
        return np.empty(0)
    if not (config.max_cos_distance or config.mass) and sampler.kind == "embedding":
        return np.zeros(len(prompts))  # this kind of model is given no bound
    centers = np.stack([prompt.center for prompt in prompts])
    return ask.bounds(centers, config.max_cos_distance, config.mass, sampler.tree)


def _settings(config: SampleConfig, result: SampleResult) -> dict[str, Any]:
    from genmodel.version import __version__

    made = {name: value for name, value in dataclasses.asdict(config).items() if name != "out"}
    made["bounds"] = [float(value) for value in result.max_cos_distance]
    made["labels"] = [prompt.label for prompt in result.prompts]
    if result.embeddings is not None and result.prompts:
        made["in_cap"] = [int(row.sum()) for row in result.in_cap()]
        made["cosine"] = [float(row.mean()) for row in result.cosines()]
    made["genmodel"], made["torch"] = __version__, torch.__version__
    return made
