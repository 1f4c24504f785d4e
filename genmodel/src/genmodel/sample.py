"""Images for prompts: embed, put a cap around, draw tokens, decode, rank, and lay out in a grid.

:class:`Sampler` holds an opened model and is what programs use; :func:`sample` is the command. What stands between a
prompt's cap and the generator is one of

- nothing: the generator is given the cap itself;
- retrieval (`retrieve`): a training image's embedding is drawn uniformly inside the cap by captree;
- a second stage (`second_stage`): a small network draws an embedding from the cap;

and in the last two the generator is given a narrow cap around that embedding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmodel import grids
from genmodel import prompts as ask
from genmodel.condition import Condition
from genmodel.errors import ConfigError, InputError
from genmodel.generate import generate
from genmodel.prompts import Prompt

if TYPE_CHECKING:
    from genmodel.second_stage import Flow

__all__ = ["SampleConfig", "SampleResult", "Sampler", "sample"]


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
    embedding_max_cos_distance: float = 0.1
    tree: Path | None = None
    encoder: str | None = None
    tokenizer: str | None = None
    device: str = "cpu"
    batch_size: int = 64
    ema: bool = True
    threads: int | None = None


@dataclass
class SampleResult:
    """What was drawn; images of one prompt stand together.

    Attributes:
        images: uint8 (p * n, 3, s, s).
        tokens: int64 (p * n, L).
        condition: what the generator was given, p * n rows.
        prompts: the p prompts; empty for unconditional samples.
        max_cos_distance: float64 (p,), the bound of each prompt's cap.
        embeddings: float32 (p * n, d) unit rows of the images; None where no encoder was at hand.
        rows: int64 (p * n,), with retrieval the training rows that were drawn.
        settings: everything above that JSON can say; the metadata of the grid.
        path: the grid, if one was written.
    """

    images: Tensor
    tokens: Tensor
    condition: Condition
    prompts: list[Prompt]
    max_cos_distance: NDArray[np.float64]
    embeddings: NDArray[np.float32] | None = None
    rows: NDArray[np.int64] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.images)

    def in_cap(self) -> NDArray[np.bool_]:
        """Which images lie in the cap that was asked for, by their own embeddings: bool (p, n)."""
        targets, embeddings = self._measurable()
        distance = 1.0 - np.einsum("pnd,pd->pn", embeddings, targets)
        return np.asarray(distance <= self.max_cos_distance[:, None])

    def cosines(self) -> NDArray[np.float64]:
        """Cosine of each image with what was asked for: float64 (p, n)."""
        _, embeddings = self._measurable()
        return np.asarray(np.einsum("pnd,pd->pn", embeddings, np.stack([p.target for p in self.prompts]).astype(float)))

    def _measurable(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self.embeddings is None or not self.prompts:
            raise InputError("expected samples of prompts with an encoder, got " + ("none" if self.prompts else "no prompt"))
        centers = np.stack([prompt.center for prompt in self.prompts]).astype(np.float64)
        return centers, self.embeddings.astype(np.float64).reshape(len(centers), -1, centers.shape[1])


class Sampler:
    """An opened generator with what it needs: tokenizer, encoder, tree.

    Args:
        model: the generator, in evaluation mode.
        tokenizer: decodes its tokens.
        encoder: embeds texts and images; None where no text or score is needed.
        tree: captree tree of the training embeddings, or None.
        batch_size: images at a time.
        extra: what else the checkpoint says (``Loaded.extra``).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        encoder: Any = None,
        tree: Any = None,
        *,
        batch_size: int = 64,
        extra: dict[str, Any] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size: expected at least 1, got {batch_size}")
        self.model = model
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.tree = tree
        self.batch_size = batch_size
        self.extra = extra or {}

    @classmethod
    def open(
        cls,
        checkpoint: str | Path,
        *,
        encoder: str | None = None,
        tokenizer: str | None = None,
        tree: str | Path | None = None,
        with_encoder: bool = True,
        with_tree: bool = False,
        device: str = "cpu",
        ema: bool = True,
        batch_size: int = 64,
    ) -> Sampler:
        """Opens a checkpoint and what it names.

        Args:
            checkpoint: folder of ``genmodel train``.
            encoder: instead of the encoder that the checkpoint names.
            tokenizer: likewise.
            tree: likewise.
            with_encoder: False leaves the encoder out.
            with_tree: open the checkpoint's tree, or build it from its shards, where `tree` is not given.
            device: "cpu", "cuda".
            ema: use the averaged weights where there are any.
            batch_size: images at a time.

        Raises:
            CheckpointError: no checkpoint there.
            ConfigError: a tree is needed, and the checkpoint names none that is still there.
        """
        from genmodel.checkpoint import load_checkpoint
        from genmodel.encoders import load_encoder
        from genmodel.tokenizers import load_tokenizer

        loaded = load_checkpoint(Path(checkpoint), device=device, ema=ema)
        return cls(
            loaded.model.eval(),
            load_tokenizer(tokenizer or loaded.tokenizer, device=device),
            load_encoder(encoder or loaded.encoder, device=device) if with_encoder else None,
            _open_tree(tree, loaded.extra) if tree is not None or with_tree else None,
            batch_size=batch_size,
            extra=loaded.extra,
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter(self.model.parameters())).device

    @property
    def kind(self) -> str:
        """Of the condition: "cap", "embedding", "distance" or "range"."""
        return str(getattr(self.model.config, "condition", "cap"))

    def condition(self, centers: Any, max_cos_distance: Any) -> Condition:
        """The condition that this model takes for caps: centers (n, d), bounds (n,) in [0, 2].

        A model of kind "embedding" is given the center alone, as if it were an image's own embedding; one of kind
        "distance" is given the bound as the distance itself. Bounds of 2 are the null cap for every kind.
        """
        center = torch.as_tensor(np.asarray(centers, np.float32))
        high = torch.as_tensor(np.broadcast_to(np.asarray(max_cos_distance, np.float32), (len(center),)).copy())
        null = high >= 2.0
        low = torch.zeros_like(high)
        if self.kind == "embedding":
            high = torch.zeros_like(high)
        elif self.kind == "distance":
            low = high.clone()
        return Condition(center, high, low).where_null(null).to(self.device)

    def null(self, n: int) -> Condition:
        """n null caps: unconditional."""
        return Condition.null(n, int(self.model.config.condition_dim)).to(self.device)

    @torch.no_grad()
    def tokens(
        self, condition: Condition, *, guidance: float = 1.0, temperature: float = 1.0, top_p: float = 0.9, seed: int = 0
    ) -> Tensor:
        """Tokens int64 (n, L) for conditions, in batches; `seed` and the place in `condition` decide a row's randomness."""
        if len(condition) == 0:
            raise InputError("sample: expected at least one condition, got none")
        made = []
        for start in range(0, len(condition), self.batch_size):
            part = condition[slice(start, start + self.batch_size)]
            options = {"guidance": guidance, "temperature": temperature, "top_p": top_p}
            made.append(generate(self.model, part, seed=seed, first=start, **options).cpu())
        return torch.cat(made)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Images uint8 (n, 3, s, s) of tokens (n, L), on the host."""
        parts = tokens.to(self.device).split(self.batch_size)
        return torch.cat([self.tokenizer.decode(part).cpu() for part in parts])

    @torch.no_grad()
    def embed(self, images: Tensor) -> NDArray[np.float32]:
        """Unit embeddings float32 (n, d) of images uint8 (n, 3, h, w)."""
        if self.encoder is None:
            raise ConfigError("sample: expected an encoder to measure images with, got none")
        parts = images.to(self.device).split(self.batch_size)
        return ask.unit(torch.cat([self.encoder.images(part).cpu() for part in parts]), "image embeddings")

    def reconstruct(self, tokens: Any) -> Tensor:
        """Images of stored tokens, (n, L) integers of any type: what the tokenizer makes of real images."""
        return self.decode(torch.as_tensor(np.asarray(tokens).astype(np.int64)))

    def samples(
        self,
        prompts: Sequence[Prompt],
        max_cos_distance: Any = 2.0,
        n: int = 8,
        *,
        guidance: float = 1.0,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int = 0,
        best_of: int = 1,
        retrieve: bool = False,
        second_stage: Flow | None = None,
        embedding_max_cos_distance: float = 0.1,
        measure: bool = True,
    ) -> SampleResult:
        """n images for each prompt; without prompts, n unconditional ones.

        Args:
            prompts: those of :mod:`genmodel.prompts`.
            max_cos_distance: (p,) or a number, the bounds of the caps.
            n: images per prompt.
            guidance: against the null cap; 1 is none.
            temperature: of the token draws.
            top_p: nucleus of the token draws.
            seed: of everything random.
            best_of: candidates per image; the one nearest to the prompt's target is kept.
            retrieve: put training embeddings drawn inside the caps in their place.
            second_stage: put embeddings drawn by this network in their place.
            embedding_max_cos_distance: bound around such an embedding.
            measure: embed the images (where there is an encoder).

        Raises:
            ConfigError: settings that contradict each other, or need a tree or encoder that is not there.
        """
        self._check(prompts, n, best_of, retrieve, second_stage, embedding_max_cos_distance)
        limits = np.broadcast_to(np.asarray(max_cos_distance, np.float64), (len(prompts),)).copy()
        each = n * best_of
        rows = None
        if not prompts:
            condition = self.null(each)
        elif retrieve or second_stage is not None:
            centers = np.stack([prompt.center for prompt in prompts])
            if retrieve:
                rows, found = ask.retrieve(self.tree, centers, limits, each, seed)
            else:
                assert second_stage is not None
                found = second_stage.draw(centers, limits, each, seed=seed)
            condition = self.condition(found.reshape(-1, found.shape[-1]), embedding_max_cos_distance)
        else:
            centers = np.stack([prompt.center for prompt in prompts]).repeat(each, axis=0)
            condition = self.condition(centers, limits.repeat(each))
        tokens = self.tokens(condition, guidance=guidance, temperature=temperature, top_p=top_p, seed=seed)
        images = self.decode(tokens)
        embeddings = self.embed(images) if self.encoder is not None and (measure or best_of > 1) else None
        if best_of > 1:
            assert embeddings is not None
            kept = best(embeddings, np.stack([prompt.target for prompt in prompts]), best_of)
            images, tokens, embeddings = images[kept], tokens[kept], embeddings[kept]
            condition = condition[torch.as_tensor(kept, device=self.device)]
            rows = None if rows is None else rows.reshape(-1)[kept]
        rows = None if rows is None else rows.reshape(-1)
        return SampleResult(images, tokens, condition, list(prompts), limits, embeddings, rows)

    def _check(
        self,
        prompts: Sequence[Prompt],
        n: int,
        best_of: int,
        retrieve: bool,
        second_stage: Any,
        embedding_max_cos_distance: float,
    ) -> None:
        if n < 1 or best_of < 1:
            raise ConfigError(f"expected n and best_of of at least 1, got {n} and {best_of}")
        if retrieve and second_stage is not None:
            raise ConfigError("expected one of retrieve and second_stage, got both")
        if (retrieve or second_stage is not None or best_of > 1) and not prompts:
            raise ConfigError("retrieve, second_stage and best_of: expected a prompt, got none")
        if retrieve and self.tree is None:
            raise ConfigError("retrieve: expected a tree of the training embeddings, got none (--tree)")
        if best_of > 1 and self.encoder is None:
            raise ConfigError("best_of: expected an encoder to rank with, got none")
        if not 0.0 <= embedding_max_cos_distance <= 2.0:
            raise ConfigError(
                f"embedding_max_cos_distance: expected a number in [0, 2], got {embedding_max_cos_distance}"
            )
        dim = int(self.model.config.condition_dim)
        for prompt in prompts:
            if prompt.center.shape != (dim,):
                raise InputError(f"prompt {prompt.label!r}: expected dim {dim}, got shape {prompt.center.shape}")


def best(embeddings: NDArray[Any], targets: NDArray[Any], best_of: int) -> NDArray[np.int64]:
    """Places of the candidates nearest to their targets: one of each `best_of` that follow each other.

    Args:
        embeddings: (p * n * best_of, d) unit rows, the candidates of one image side by side.
        targets: (p, d) unit rows.
        best_of: candidates per image.

    Returns:
        int64 (p * n,), ascending. Each image is the best of its own candidates, so that images stay independent.
    """
    rows = np.asarray(embeddings, np.float64).reshape(len(targets), -1, best_of, np.shape(targets)[1])
    scores = np.einsum("pnkd,pd->pnk", rows, np.asarray(targets, np.float64))
    chosen = scores.argmax(axis=2).reshape(-1)
    return np.asarray(np.arange(len(chosen)) * best_of + chosen, np.int64)


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
    from genmodel import __version__

    made = {name: value for name, value in dataclasses.asdict(config).items() if name != "out"}
    made["bounds"] = [float(value) for value in result.max_cos_distance]
    made["labels"] = [prompt.label for prompt in result.prompts]
    if result.embeddings is not None and result.prompts:
        made["in_cap"] = [int(row.sum()) for row in result.in_cap()]
        made["cosine"] = [float(row.mean()) for row in result.cosines()]
    made["genmodel"], made["torch"] = __version__, torch.__version__
    return made


def _open_tree(path: str | Path | None, extra: dict[str, Any]) -> Any:
    """The tree at `path`, or the one the checkpoint names, or one built from the shards that it names."""
    import captree

    if path is not None:
        return captree.open(path)
    named = extra.get("tree")
    if named and Path(named).exists():
        return captree.open(named)
    data = extra.get("data")
    if data and Path(data).exists():
        from genmodel.shards import open_shards

        return captree.build(np.asarray(open_shards(Path(data)).embeddings))
    raise ConfigError(
        f"expected a tree of the training embeddings, got none: the checkpoint names tree {named!r} and data {data!r} (--tree)"
    )
