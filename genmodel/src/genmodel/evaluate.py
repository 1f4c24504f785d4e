"""Does the model do what it is asked? Every figure stands beside what it has to be compared with.

A rate of 25% in the cap says nothing by itself. Beside it stand

- *unconditional*: samples of the null cap in the same caps;
- *data*: the share of the training images in the cap, which is what a perfect unconditional model would score;
- *ceiling*: real images drawn uniformly from the cap, put through the tokenizer and embedded again. A model that obeys
  every cap and draws its images perfectly scores this, not 100%, because the tokenizer moves an image's embedding.

Images are made once per line of the tables and embedded once. :func:`evaluate` is the command; :func:`measure`,
:func:`unconditional` and :func:`ceiling` are its parts for programs.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genmodel import metrics
from genmodel import prompts as ask
from genmodel.errors import ConfigError, DataError
from genmodel.metrics import Rate
from genmodel.prompts import Prompt
from genmodel.sample import titles_of
from genmodel.sampler import Sampler, SampleResult, training_set

__all__ = ["EvaluateConfig", "Measured", "ceiling", "evaluate", "measure", "read_prompts", "unconditional"]

Say = Callable[[str], None]


@dataclass
class EvaluateConfig:
    """Settings of ``genmodel evaluate``.

    Attributes:
        checkpoint: folder of ``genmodel train``.
        out: folder for report.md, report.json, plots and grids.
        prompt: a text; may be given several times.
        prompts: a file with a text per line; empty lines and lines that begin with # are left out.
        held_out: shards of images that were not trained on (``genmodel encode``): the centers of the first table, and
            the real side of FID and KID. By default the rows that training held out, or training images if there are
            none; the report says which.
        mass: bounds, as shares of the training images.
        max_cos_distance: bounds; both kinds may be given.
        guidance: values to try.
        n: images of each line of the first table, a cap each; and unconditional ones.
        text_n: images of each prompt.
        temperature: of the token draws.
        top_p: nucleus of the token draws.
        seed: of everything random.
        duplicate_distance: samples at most this cosine distance from a training image count as its duplicates.
        shift: a vector of ``genmodel shift``, subtracted from text embeddings.
        retrieve: condition on training embeddings drawn inside the caps.
        second_stage: condition on embeddings drawn from the caps by this network.
        second_stage_guidance: of its draws against the null cap; 1 is none.
        embedding_max_cos_distance: bound around an embedding that was drawn by one of the two.
        data: shards that the model was trained on; by default those the checkpoint names.
        tree: captree tree of their embeddings, with or without the rows held out; by default one without them is built.
        encoder: another name or place for the encoder.
        tokenizer: likewise.
        device: "cpu", "cuda".
        batch_size: images at a time.
        ema: use the averaged weights where there are any.
        threads: at most this many.
        plots: draw them (needs matplotlib).
    """

    checkpoint: Path
    out: Path = Path("evaluation")
    prompt: tuple[str, ...] = ()
    prompts: Path | None = None
    held_out: Path | None = None
    mass: tuple[float, ...] = (0.01, 0.1)
    max_cos_distance: tuple[float, ...] = ()
    guidance: tuple[float, ...] = (1.0, 3.0)
    n: int = 128
    text_n: int = 8
    temperature: float = 1.0
    top_p: float = 0.9
    seed: int = 0
    duplicate_distance: float = 0.05
    shift: Path | None = None
    retrieve: bool = False
    second_stage: Path | None = None
    second_stage_guidance: float = 1.0
    embedding_max_cos_distance: float = 0.1
    data: Path | None = None
    tree: Path | None = None
    encoder: str | None = None
    tokenizer: str | None = None
    device: str = "cpu"
    batch_size: int = 64
    ema: bool = True
    threads: int | None = None
    plots: bool = True

    def __post_init__(self) -> None:
        paths = ("checkpoint", "out", "prompts", "held_out", "shift", "second_stage", "data", "tree")
        ask.plain_settings(self, ("prompt", "mass", "max_cos_distance", "guidance"), paths)


@dataclass
class Measured:
    """Images of some caps, measured; a line of a table.

    Attributes:
        in_cap: share of the images whose embedding lies in their cap.
        cosine: mean cosine with what was asked for.
        clip_score: mean of max(0, 100 cos).
        accuracy: share whose nearest prompt, of all that were asked, is their own; None with fewer than two prompts.
        embeddings: float32 (m, d).
        seconds: what it took.
        result: the samples, where there are any.
    """

    in_cap: Rate
    cosine: float
    clip_score: float
    accuracy: Rate | None
    embeddings: NDArray[np.float32]
    seconds: float = 0.0
    result: SampleResult | None = None

    def dict(self) -> dict[str, Any]:
        """The figures, for JSON."""
        return {
            "in_cap": self.in_cap.dict(),
            "cosine": self.cosine,
            "clip_score": self.clip_score,
            "accuracy": None if self.accuracy is None else self.accuracy.dict(),
            "seconds": self.seconds,
        }


def score(
    prompts: Sequence[Prompt],
    limits: NDArray[np.float64],
    embeddings: NDArray[np.float32],
    which: NDArray[np.int64],
    accuracy: bool = True,
) -> Measured:
    """Measures embeddings (m, d), of which row i was meant for prompt ``which[i]``."""
    centers, targets = (np.stack([getattr(prompt, name) for prompt in prompts]) for name in ("center", "target"))
    inside = metrics.in_cap(embeddings, centers[which], limits[which])
    right = None
    if accuracy and len(prompts) > 1:
        right = metrics.rate(metrics.nearest_text(embeddings, targets) == which)
    return Measured(
        metrics.rate(inside),
        float(np.mean(1.0 - metrics.cos_distance(embeddings, targets[which]))),
        metrics.clip_score(embeddings, targets[which]),
        right,
        embeddings,
    )


def measure(
    sampler: Sampler, prompts: Sequence[Prompt], limits: Any, n: int = 1, *, accuracy: bool = True, **settings: Any
) -> Measured:
    """Draws n images per prompt and measures them.

    Args:
        sampler: an opened model with an encoder.
        prompts: of texts or of images.
        limits: (p,) or a number: the bounds of the caps.
        n: images per prompt.
        accuracy: False leaves out which prompt is the nearest, which means nothing for many image prompts.
        settings: those of :meth:`genmodel.sample.Sampler.samples` (guidance, seed, retrieve, ...).
    """
    started = time.monotonic()
    bounds = np.broadcast_to(np.asarray(limits, np.float64), (len(prompts),)).copy()
    result = sampler.samples(prompts, bounds, n, **settings)
    assert result.embeddings is not None
    which = np.repeat(np.arange(len(prompts)), n)
    measured = score(prompts, bounds, result.embeddings, which, accuracy)
    return dataclasses.replace(measured, seconds=time.monotonic() - started, result=result)


def unconditional(
    prompts: Sequence[Prompt], limits: Any, embeddings: NDArray[np.float32], accuracy: bool = True
) -> Measured:
    """The same measures for unconditional samples (m, d): means over all pairs of a sample and a prompt.

    The intervals are those of m samples: pairs that share a sample are not independent.
    """
    count = len(prompts)
    bounds = np.broadcast_to(np.asarray(limits, np.float64), (count,)).copy()
    which = np.tile(np.arange(count), len(embeddings))
    every = score(prompts, bounds, embeddings.repeat(count, axis=0), which, accuracy)

    def fewer(rate: Rate | None) -> Rate | None:
        if rate is None:
            return None
        hits = rate.value * len(embeddings)
        return Rate(hits, len(embeddings), rate.value, *metrics.wilson(hits, len(embeddings)))

    in_cap = fewer(every.in_cap)
    assert in_cap is not None
    return dataclasses.replace(every, in_cap=in_cap, accuracy=fewer(every.accuracy), embeddings=embeddings)


def ceiling(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    limits: Any,
    tokens: Callable[[NDArray[np.int64]], NDArray[Any]],
    n: int = 1,
    seed: int = 0,
    accuracy: bool = True,
) -> Measured | None:
    """Real images drawn uniformly from the caps, through the tokenizer and embedded again.

    Args:
        sampler: with an encoder and a tree.
        prompts: of texts or of images.
        limits: (p,) or a number.
        tokens: ``tokens(rows)`` gives the stored tokens (m, L) of rows of the tree.
        n: images per prompt.
        seed: of the draw.
        accuracy: as in :func:`measure`.

    Returns:
        The measures; None if every cap is empty. Empty caps are left out, so ``in_cap.n`` may be less than p * n.
    """
    import captree

    bounds = np.broadcast_to(np.asarray(limits, np.float64), (len(prompts),)).copy()
    centers = np.stack([prompt.center for prompt in prompts])
    rows = sampler.tree.sample(captree.Caps(centers, bounds), k=n, seed=seed).reshape(-1)
    which = np.repeat(np.arange(len(prompts)), n)[rows >= 0]
    rows = rows[rows >= 0]
    if not rows.size:
        return None
    return score(prompts, bounds, sampler.embed(sampler.reconstruct(tokens(rows))), which, accuracy)


def read_prompts(path: Path) -> tuple[str, ...]:
    """Texts of a file, one per line; empty lines and those that begin with # are left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a text file with a prompt per line: {error}") from error
    found = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not found:
        raise DataError(f"{path}: expected a prompt per line, got none")
    return found


def evaluate(config: EvaluateConfig, say: Say | None = None) -> dict[str, Any]:
    """Measures a checkpoint and writes report.md, report.json, plots and grids to ``config.out``.

    Returns:
        The report as in report.json.

    Raises:
        GenmodelError: settings, files or shards that do not fit.
    """
    _check(config)
    texts = config.prompt + (() if config.prompts is None else read_prompts(config.prompts))
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    started = time.monotonic()
    run = _Run(config, say or (lambda _: None))
    report: dict[str, Any] = {
        "settings": dataclasses.asdict(config),
        "model": run.facts(),
        "images": run.image_table(),
        "texts": run.text_table(texts) if texts else [],
        "distribution": run.distribution(),
        "nearest": run.nearest_table(),
        "tokenizer": run.tokenizer_facts(),
    }
    report["seconds"] = time.monotonic() - started
    report = json.loads(json.dumps(report, default=str))
    from genmodel import reports

    reports.write(config.out, report, run.sets, plots=config.plots)
    return dict(report)


class _Run:
    """One evaluation: what is opened, and the sets of embeddings that the later tables look at again."""

    def __init__(self, config: EvaluateConfig, say: Say) -> None:
        self.config, self.say = config, say
        self.sampler = Sampler.open(
            config.checkpoint,
            encoder=config.encoder,
            tokenizer=config.tokenizer,
            device=config.device,
            ema=config.ema,
            batch_size=config.batch_size,
        )
        self.training = training_set(self.sampler.extra, config.data, config.tree)
        self.tree = self.sampler.tree = self.training.tree
        self.real, rows = self._real()
        self.places = np.random.default_rng(config.seed).permutation(rows)
        self.sets: dict[str, NDArray[np.float32]] = {}
        """Embeddings by the name of their line."""
        stage = None
        if config.second_stage is not None:
            from genmodel.second_stage import load_second_stage

            stage = load_second_stage(config.second_stage, config.device)
        self.how: dict[str, Any] = {
            "temperature": config.temperature,
            "top_p": config.top_p,
            "seed": config.seed,
            "retrieve": config.retrieve,
            "second_stage": stage,
            "second_stage_guidance": config.second_stage_guidance,
            "embedding_max_cos_distance": config.embedding_max_cos_distance,
        }
        self.say(f"unconditional samples: {config.n}")
        begun = time.monotonic()
        self.free_result = self.sampler.samples(
            [], n=config.n, temperature=config.temperature, top_p=config.top_p, seed=config.seed + 1
        )
        assert self.free_result.embeddings is not None
        self.free = self.sets["unconditional"] = self.free_result.embeddings
        self.seconds = time.monotonic() - begun
        _grid(config.out / "unconditional.png", self.free_result, 16, dataclasses.asdict(config))

    def _real(self) -> tuple[Any, NDArray[np.int64]]:
        """Shards of real images to compare with and put caps around, and which rows of them."""
        from genmodel.shards import open_shards

        if self.config.held_out is not None:
            real = open_shards(self.config.held_out)
            self.source = "held-out shards"
            return real, np.arange(len(real.tokens))
        if len(self.training.held_out) >= 4:
            self.source = "rows that training held out"
            return self.training.shards, self.training.held_out
        self.source = "training images"
        return self.training.shards, self.training.rows

    def facts(self) -> dict[str, Any]:
        """What was evaluated."""
        model = self.sampler.model
        return {
            "config": model.config.to_dict(),
            "parameters": sum(p.numel() for p in model.parameters()),
            "training_rows": len(self.tree),
            "real": self.source,
            "real_rows": len(self.places),
            "encoder": str(self.training.shards.meta.get("encoder", "")),
            "tokenizer": str(self.training.shards.meta.get("tokenizer", "")),
            "images_per_second": len(self.free) / self.seconds,
        }

    def bounds(self, prompts: Sequence[Prompt]) -> list[tuple[dict[str, float], NDArray[np.float64]]]:
        """Each bound that was asked for, with the limits it means for these prompts."""
        centers = np.stack([prompt.center for prompt in prompts])
        made: list[tuple[dict[str, float], NDArray[np.float64]]] = []
        for mass in self.config.mass:
            made.append(({"mass": mass}, ask.bounds(centers, mass=[mass], tree=self.tree)))
        for limit in self.config.max_cos_distance:
            made.append(({"max_cos_distance": limit}, ask.bounds(centers, [limit])))
        return made

    def image_table(self) -> list[dict[str, Any]]:
        """Caps around embeddings of real images, one image drawn for each."""
        places = np.resize(self.places, self.config.n)
        centers = ask.unit(np.stack([self.real.embeddings[place] for place in places]))
        prompts = [Prompt(f"image {place}", center, center) for place, center in zip(places, centers, strict=True)]
        return self._table("images", prompts, 1, accuracy=False)

    def text_table(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Caps around texts."""
        shift = None if self.config.shift is None else ask.load_shift(self.config.shift)
        prompts = ask.text_prompts(self.sampler.encoder, texts, shift)
        return self._table("texts", prompts, self.config.text_n, accuracy=True)

    def _table(self, name: str, prompts: list[Prompt], n: int, accuracy: bool) -> list[dict[str, Any]]:
        import captree

        lines = []
        centers = np.stack([prompt.center for prompt in prompts])
        for bound, limits in self.bounds(prompts):
            top = ceiling(self.sampler, prompts, limits, self._tokens, n, self.config.seed, accuracy)
            shared = {
                **bound,
                "mean_max_cos_distance": float(limits.mean()),
                "data": float(np.mean(self.tree.count(captree.Caps(centers, limits)) / len(self.tree))),
                "unconditional": unconditional(prompts, limits, self.free, accuracy).dict(),
                "ceiling": None if top is None else top.dict(),
            }
            for guidance in self.config.guidance:
                label = f"{name}, {_bound_text(bound)}, guidance {guidance:g}"
                self.say(f"{label}: {len(prompts) * n} samples")
                made = measure(self.sampler, prompts, limits, n, accuracy=accuracy, guidance=guidance, **self.how)
                self.sets[label] = made.embeddings
                lines.append({**shared, "guidance": guidance, "samples": made.dict(), "set": label})
                if made.result is not None and name == "texts":
                    place = self.config.out / (label.replace(", ", "-").replace(" ", "-") + ".png")
                    settings = {**dataclasses.asdict(self.config), **bound, "guidance": guidance}
                    _grid(place, made.result, n, settings, titles_of(made.result))
        return lines

    def _tokens(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Stored tokens of rows of the tree."""
        return np.asarray(self.training.shards.tokens[self.training.rows[rows]])

    def distribution(self) -> dict[str, Any]:
        """FID and KID of every set of n samples, of real images and of reconstructions, against other real images."""
        trained = np.setdiff1d(self.training.rows, self.training.held_out)
        aside = self.source != "training images"
        size = min(self.config.n, len(self.places) if aside else len(self.places) // 2)
        other = np.sort(self.places[:size])
        # Against training images; where the others are of these too, against those that are left.
        rows = trained if aside else self.places[size:]
        rows = np.sort(np.random.default_rng(self.config.seed).permutation(rows)[:10_000])
        if min(size, len(rows)) < 2:
            raise ConfigError(f"FID: expected at least 4 real images, got {len(self.places)}")
        # The same number of rows on the fake side of every line, since the bias of FID depends on it.
        self.say(f"FID and KID of {size} rows")
        target = ask.unit(np.asarray(self.training.shards.embeddings[rows]))
        lines = {f"real ({self.source})": ask.unit(np.asarray(self.real.embeddings[other]))}
        lines["reconstructions of these"] = self.sampler.embed(self.sampler.reconstruct(self.real.tokens[other]))
        for name, rows in self.sets.items():
            if len(rows) >= size and not name.startswith("texts"):
                lines[name] = rows
        made = {
            name: {"fid": metrics.fid(target, rows), "kid": metrics.kid(target, rows, seed=self.config.seed)}
            for name, rows in ((name, rows[:size]) for name, rows in lines.items())
        }
        return {"n": size, "real": len(target), "lines": made}

    def nearest_table(self) -> dict[str, Any]:
        """The nearest training image of every set, and what real images and reconstructions have."""
        self.say("nearest training images")
        limit = self.config.duplicate_distance
        sets = dict(self.sets)
        if self.source != "training images" and not self.training.whole:
            some = np.sort(self.places[: self.config.n])
            sets["held-out images"] = ask.unit(np.asarray(self.real.embeddings[some]))
        made = {}
        for name, rows in sets.items():
            found = metrics.nearest_training(self.tree, rows, limit)
            made[name] = {"duplicates": found["duplicates"].dict(), "quantiles": found["quantiles"]}
        return {"duplicate_distance": limit, "sets": made}

    def tokenizer_facts(self) -> dict[str, Any]:
        """How far the tokenizer moves the embeddings of real images."""
        some = np.sort(self.places[: self.config.n])
        again = self.sampler.embed(self.sampler.reconstruct(self.real.tokens[some]))
        distance = metrics.cos_distance(again, ask.unit(np.asarray(self.real.embeddings[some])))
        levels = (0.05, 0.5, 0.95)
        return {
            "n": len(some),
            "mean_cosine": float(1.0 - distance.mean()),
            "distance_quantiles": {f"{level:g}": float(np.quantile(distance, level)) for level in levels},
        }


def _bound_text(bound: dict[str, float]) -> str:
    ((name, value),) = bound.items()
    return f"{name} {value:g}"


def _grid(path: Path, result: SampleResult, columns: int, settings: dict[str, Any], titles: Sequence[str] = ()) -> None:
    from genmodel import grids

    most = 16 * columns if titles else 64
    grids.save_grid(path, result.images[:most], columns, titles[:16], settings)


def _check(config: EvaluateConfig) -> None:
    if not config.mass and not config.max_cos_distance:
        raise ConfigError("expected at least one mass or max_cos_distance, got none")
    if not config.guidance:
        raise ConfigError("expected at least one guidance, got none")
    if config.n < 2 or config.text_n < 1:
        raise ConfigError(f"expected n of at least 2 and text_n of at least 1, got {config.n} and {config.text_n}")
    if config.duplicate_distance < 0:
        raise ConfigError(f"duplicate_distance: expected a number >= 0, got {config.duplicate_distance}")
