"""An opened generator and what it draws: :class:`Sampler`.

What stands between a prompt's cap and the generator is one of

- nothing: the generator is given the cap itself;
- retrieval (`retrieve`): a training image's embedding is drawn uniformly inside the cap by captree;
- a second stage (`second_stage`): a small network draws an embedding from the cap;

and in the last two the generator is given a narrow cap around that embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmodel import prompts as ask
from genmodel.condition import Condition
from genmodel.errors import ConfigError, InputError
from genmodel.generate import generate
from genmodel.prompts import Prompt

if TYPE_CHECKING:
    from genmodel.second_stage import Flow

__all__ = ["SampleResult", "Sampler", "TrainingSet", "best", "training_set"]


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
            got = "no encoder" if self.prompts else "no prompt"
            raise InputError(f"expected samples of prompts with an encoder, got {got}")
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
        return torch.device(next(iter(self.model.parameters())).device)

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
        """Null caps, n of them: unconditional."""
        return Condition.null(n, int(self.model.config.condition_dim)).to(self.device)

    @torch.no_grad()
    def tokens(
        self,
        condition: Condition,
        *,
        guidance: float = 1.0,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int = 0,
    ) -> Tensor:
        """Tokens int64 (n, L) for conditions, in batches; `seed` and its place decide a row's randomness."""
        if len(condition) == 0:
            raise InputError("sample: expected at least one condition, got none")
        made = []
        for start in range(0, len(condition), self.batch_size):
            part = condition[slice(start, start + self.batch_size)]
            drawn = generate(
                self.model,
                part,
                guidance=guidance,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                first=start,
            )
            made.append(drawn.cpu())
        return torch.cat(made)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Images uint8 (n, 3, s, s) of tokens (n, L), on the host."""
        parts = torch.split(tokens.to(self.device), self.batch_size)
        return torch.cat([self.tokenizer.decode(part).cpu() for part in parts])

    @torch.no_grad()
    def embed(self, images: Tensor) -> NDArray[np.float32]:
        """Unit embeddings float32 (n, d) of images uint8 (n, 3, h, w)."""
        if self.encoder is None:
            raise ConfigError("sample: expected an encoder to measure images with, got none")
        parts = torch.split(images.to(self.device), self.batch_size)
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
        second_stage_guidance: float = 1.0,
        embedding_max_cos_distance: float = 0.1,
        measure: bool = True,
    ) -> SampleResult:
        """Images of prompts, n for each; without prompts, n unconditional ones.

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
            second_stage_guidance: of those draws against the null cap; 1 is none, more draws nearer to the centers.
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
                found = second_stage.draw(centers, limits, each, seed=seed, guidance=second_stage_guidance)
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


@dataclass
class TrainingSet:
    """What a checkpoint was trained on.

    Attributes:
        shards: opened.
        tree: captree tree.
        rows: int64 (rows of the tree,), the shards' row of each row of the tree.
        held_out: int64, rows of the shards that were never trained on.
        whole: the tree holds the rows held out too.
    """

    shards: Any
    tree: Any
    rows: NDArray[np.int64]
    held_out: NDArray[np.int64]
    whole: bool


def training_set(extra: dict[str, Any], data: str | Path | None = None, tree: str | Path | None = None) -> TrainingSet:
    """Opens the shards that a checkpoint was trained on, and a tree over their embeddings.

    Args:
        extra: what the checkpoint says (``Loaded.extra``).
        data: other shards than it names, such as the same ones at another place.
        tree: a tree of all their rows, or of all but those held out. Without it one of the latter is built in memory,
            which takes a while for millions of rows.

    Raises:
        ConfigError: no shards, or a tree of other rows.
    """
    import captree

    from genmodel.shards import open_shards

    place = data or _trained_with(extra, "data")
    if place is None or not Path(place).exists():
        raise ConfigError(f"expected the shards that the model was trained on, got {place} (--data)")
    shards = open_shards(Path(place))
    n = len(shards.tokens)
    held = np.asarray(extra.get("rows_held_out", []), np.int64)
    held = held[held < n]
    kept = np.setdiff1d(np.arange(n), held)
    if tree is None:
        return TrainingSet(shards, captree.build(ask.unit(shards.embeddings[kept])), kept, held, False)
    opened = captree.open(tree)
    if len(opened) not in (n, len(kept)):
        raise ConfigError(f"tree: expected {n} rows, or {len(kept)} without those held out, got {len(opened)}")
    whole = len(opened) == n and len(held) > 0
    return TrainingSet(shards, opened, np.arange(n) if len(opened) == n else kept, held, whole)


def _open_tree(path: str | Path | None, extra: dict[str, Any]) -> Any:
    """The tree at `path`, or the one the checkpoint was trained with, or one built from the shards that it names."""
    import captree

    if path is not None:
        return captree.open(path)
    named = _trained_with(extra, "tree")
    if named is not None and Path(named).exists():
        return captree.open(named)
    data = _trained_with(extra, "data")
    if data is not None and Path(data).exists():
        return training_set(extra).tree
    raise ConfigError(
        f"expected a tree of the training embeddings or their shards, got neither (--tree; shards: {data})"
    )


def _trained_with(extra: dict[str, Any], name: str) -> str | None:
    value = extra.get("train", {}).get(name)
    return None if value is None else str(value)
