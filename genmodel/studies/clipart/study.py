"""The study of clip art, stage by stage; see :func:`run`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import captree
import numpy as np
import torch
from numpy.typing import NDArray

from genmodel import grids
from genmodel.encode import EncodeConfig, encode
from genmodel.encoders import load_encoder
from genmodel.prompts import Prompt, bounds, fit_shift, load_shift, save_shift, text_prompts, unit
from genmodel.sampler import Sampler, SampleResult
from genmodel.second_stage import load_second_stage
from genmodel.shards import open_shards
from genmodel.tokenizers import load_tokenizer
from genmodel.tokenizers.train import TokenizerConfig, train_tokenizer

from ..arms import (
    ARMS,
    SECOND_STAGE,
    SHARDS,
    SHIFT,
    TREE,
    Arm,
    Group,
    RunConfig,
    cosines,
    in_caps,
    run_arm,
    train_flow_of,
    train_line,
)
from ..common import Stages, provenance, say, set_threads
from ..reporting import is_lowest_seed, save_small
from .data import IMAGE_SIZE, PROMPTS, Clipart, assert_in_no_caption, load, pictures, write_pictures
from .encoder import embed_texts, train_encoder


@dataclass
class ClipartConfig:
    """Settings of the study. Every stage leaves a file in `out`; a rerun goes on after the last one."""

    data: Path = Path("studies/out/clipart64.parquet")
    """The table that tools/make_clipart.py makes."""
    out: Path = Path("studies/out/clipart")
    """Everything that is made; not committed."""
    report: Path = Path("studies/clipart/report")
    """Report, figures and pictures; committed."""
    seeds: tuple[int, ...] = (0,)
    """Trainings of each arm."""
    encoder_share: float = 0.5
    """Share of the pictures outside the tests whose captions the encoder learns from. The generators have the second
    half; above 0.5 the encoder has seen captions of theirs."""
    threads: int = 1
    """torch threads."""
    encoder_steps: int = 600
    encoder_batch: int = 128
    encoder_max_scale: float = 14.3
    """Bound of the loss's scale, here CLIP's value at the start: left free it rises with every pass over so small a
    set, for no better recall. Cosines, pictures with their own captions among them, grow as it falls."""
    tokenizer_steps: int = 7000
    tokenizer_seconds: float | None = None
    """End the tokenizer's training after this time."""
    tokenizer_width: int = 48
    run: RunConfig = field(default_factory=lambda: RunConfig(steps=600, depth=4, width=160, heads=5, batch_size=64))
    """Training of each arm and of the second stage."""
    masses: tuple[float, ...] = (0.001, 0.01, 0.1, 0.5)
    """Bounds, as shares of the generator's images."""
    guidances: tuple[float, ...] = (1.0, 3.0)
    samples_per_prompt: int = 4
    image_prompts: int = 128
    """Pictures that nothing was trained on, one sample each."""
    best_of: int = 4
    """Texts once more, at the last guidance: candidates of which one is kept, by the encoder that also judges."""
    order: tuple[str, ...] = ("own", "uniform", "slerp-noise", "gap-shift", "slerp")
    """Order in which the generators are trained."""
    only_until: str | None = None
    """Stop after the stage of this name."""
    plots: bool = True


class Study:
    """Paths and what stages share."""

    def __init__(self, config: ClipartConfig) -> None:
        self.config, self.out = config, config.out
        self.stages = Stages(config.out, say)
        self.encoder, self.tokenizer = config.out / "encoder", config.out / "tokenizer"
        self.judge, self.judge_tree = config.out / "judge", config.out / "judge.captree"
        self.shards, self.tree, self.shift = (config.out / name for name in (SHARDS, TREE, SHIFT))
        self._data: Clipart | None = None

    @property
    def data(self) -> Clipart:
        """The table, read once."""
        if self._data is None:
            self._data = load(self.config.data, self.config.encoder_share)
        return self._data

    def groups(self, encoder: Any) -> list[Group]:
        """Texts that are in no caption, and pictures that nothing was trained on."""
        images = pictures(self.data, self.data.test[: self.config.image_prompts])
        rows = unit(encoder.images(torch.from_numpy(images)))
        return [
            Group("text", text_prompts(encoder, PROMPTS), self.config.samples_per_prompt),
            Group("image", [Prompt(f"picture {i}", row, row) for i, row in enumerate(rows)], 1),
        ]


def run(config: ClipartConfig) -> dict[str, Any]:
    """Runs what is not there yet and writes the report; returns the stages' results."""
    set_threads(config.threads)
    study = Study(config)
    todo: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("prompts", lambda: _prompts(study)),
        ("encoder", lambda: _encoder(study)),
        ("tokenizer", lambda: _tokenizer(study)),
        ("encode", lambda: _encode(study)),
        ("second-stage", lambda: train_flow_of(config.run, study.out, config.threads)),
        ("reference", lambda: _reference(study)),
        ("judge", lambda: _judge(study)),
    ]
    for seed in config.seeds:
        for training in config.order:
            todo.append(
                (
                    f"train-{training}-{seed}",
                    lambda t=training, s=seed: train_line(t, s, config.run, study.out, config.threads),
                )
            )
            for arm in ARMS:
                if arm.training == training:
                    todo.append((f"arm-{arm.key}-{seed}", lambda a=arm, s=seed: _arm(study, a, s)))
    results = {}
    for name, work in todo:
        results[name] = study.stages.run(name, work)
        if name == config.only_until:
            return results
        if name.startswith("arm-") and name in study.stages.ran:
            write_reports(study)
    write_reports(study)
    return results


def write_reports(study: Study) -> None:
    """Writes the report from the stages that are there."""
    from .report import write_report

    write_report(study.stages.records(), study.config)


def _prompts(study: Study) -> dict[str, Any]:
    data = study.data
    assert_in_no_caption(PROMPTS, data)
    return {
        **provenance(study.config.threads),
        "prompts": list(PROMPTS),
        "rows": {"encoder": len(data.encoder), "generator": len(data.generator), "test": len(data.test)},
    }


def _encoder(study: Study) -> dict[str, Any]:
    return _given_encoder(study, study.data.encoder, study.encoder)


def _given_encoder(study: Study, learned: NDArray[np.int64], out: Path) -> dict[str, Any]:
    """Trains an encoder on the captions of the rows `learned`, and measures it on the tests'."""
    data, config = study.data, study.config
    report = train_encoder(
        pictures(data, learned),
        [data.captions[row] for row in learned],
        out,
        steps=config.encoder_steps,
        batch_size=config.encoder_batch,
        max_scale=config.encoder_max_scale,
        seed=0,
    )
    # Text -> image recall on pictures and captions that it has not seen, and the cosines of such pairs: the scale on
    # which the samples' are to be read.
    rows = data.test[:500]
    images = load_encoder(str(out)).images(torch.from_numpy(pictures(data, rows))).numpy()
    texts = np.concatenate(embed_texts([data.captions[row][-1:] for row in rows]))
    scores = texts @ images.T
    report["pair_cosine"], report["other_cosine"] = float(np.diag(scores).mean()), float(scores.mean())
    rank = (scores > np.diag(scores)[:, None]).sum(1)
    report["recall"] = {str(k): int((rank < k).sum()) for k in (1, 5, 10)} | {"n": len(rows)}
    return report


def _tokenizer(study: Study) -> dict[str, Any]:
    write_pictures(study.data, study.data.generator, study.out / "images.parquet")
    return train_tokenizer(
        TokenizerConfig(
            images=str(study.out / "images.parquet"),
            out=str(study.tokenizer),
            image_size=IMAGE_SIZE,
            grid=8,
            width=study.config.tokenizer_width,
            steps=study.config.tokenizer_steps,
            max_seconds=study.config.tokenizer_seconds,
            batch_size=16,
            flip=True,
            seed=0,
            threads=study.config.threads,
            progress=False,
        )
    )


def _encode(study: Study) -> dict[str, Any]:
    report = encode(
        EncodeConfig(
            images=str(study.out / "images.parquet"),
            out=str(study.shards),
            encoder=str(study.encoder),
            tokenizer=str(study.tokenizer),
            threads=study.config.threads,
            workers=1,
            progress=False,
        )
    )
    embeddings = np.asarray(open_shards(study.shards).embeddings)
    captree.build(embeddings, out=study.tree)
    # The shift needs the mean of some texts' embeddings: those of the encoder's own captions.
    data = study.data
    texts = np.concatenate(embed_texts([data.captions[row][:1] for row in data.encoder[:1000]]))
    vector = fit_shift(texts, embeddings)
    save_shift(study.shift, vector)
    return {"rows": report.rows, "texts": len(texts), "shift_length": float(np.linalg.norm(vector))}


def _reference(study: Study) -> dict[str, Any]:
    """The ceiling: training images drawn inside the caps, put through the tokenizer and embedded again."""
    tree, shards = captree.open(study.tree), open_shards(study.shards)
    encoder, tokenizer = load_encoder(str(study.encoder)), load_tokenizer(study.tokenizer)
    cells = []
    for group in study.groups(encoder):
        centers = np.stack([prompt.center for prompt in group.prompts])
        for mass in study.config.masses:
            limits = tree.radius_for_mass(centers, mass)
            rows = tree.sample(captree.Caps(centers, limits), k=group.n, seed=0)
            tokens = torch.from_numpy(np.asarray(shards.tokens)[rows.reshape(-1)].astype(np.int64))
            made = torch.cat([tokenizer.decode(part) for part in tokens.split(128)])
            again = encoder.images(made).numpy().reshape(*rows.shape, -1)
            own = unit(tree.take(rows))
            cells.append(
                {
                    "group": group.name,
                    "mass": mass,
                    "max_cos_distance": round(float(limits.mean()), 4),
                    "n": int(rows.size),
                    "cosine_sum": float(np.einsum("pnd,pd->", own, centers)),
                    "cosine_sum_reconstructed": float(np.einsum("pnd,pd->", again, centers)),
                    "in_cap_reconstructed": int(
                        (1.0 - np.einsum("pnd,pd->pn", again, centers) <= limits[:, None]).sum()
                    ),
                    "fidelity": float(np.einsum("pnd,pnd->pn", own, again).mean()),
                }
            )
    return {"cells": cells}


def _judge(study: Study) -> dict[str, Any]:
    """A second encoder, from the captions that nothing else reads: those of the generators' half.

    Its caps hold the same shares of the pictures as the first's, and it sees the same pictures of the first's caps.
    """
    report = _given_encoder(study, study.data.generator, study.judge)
    encoder, tokenizer = load_encoder(str(study.judge)), load_tokenizer(study.tokenizer)
    parts = np.array_split(study.data.generator, max(1, len(study.data.generator) // 256))
    rows = [encoder.images(torch.from_numpy(pictures(study.data, part))).numpy() for part in parts]
    captree.build(unit(np.concatenate(rows)), out=study.judge_tree)
    second, tree, tokens = SecondJudge.open(study), captree.open(study.tree), open_shards(study.shards).tokens
    group = next(group for group in study.groups(load_encoder(str(study.encoder))) if group.name == "text")
    centers = np.stack([prompt.center for prompt in group.prompts])
    cells = []
    for mass in study.config.masses:
        drawn = tree.sample(captree.Caps(centers, tree.radius_for_mass(centers, mass)), k=group.n, seed=0).reshape(-1)
        made = tokenizer.decode(torch.from_numpy(np.asarray(tokens)[drawn].astype(np.int64)))
        cells.append({"group": group.name, "mass": mass, "n": len(drawn), **second.judge(group, made, mass)})
    return {**report, "cells": cells}


@dataclass(frozen=True)
class SecondJudge:
    """The second encoder with its own caps. `tree` holds the generators' pictures as it sees them."""

    encoder: Any
    tree: Any

    @classmethod
    def open(cls, study: Study) -> SecondJudge:
        """Reads what the stage left."""
        return cls(load_encoder(str(study.judge)), captree.open(study.judge_tree))

    def judge(self, group: Group, images: torch.Tensor, mass: float) -> dict[str, Any]:
        """Figures of images uint8 (p * n, 3, s, s) of a group of texts, by caps that hold `mass` of the pictures."""
        centers = unit(self.encoder.text([prompt.label for prompt in group.prompts]))
        rows = torch.cat([self.encoder.images(part) for part in images.split(128)])
        found = np.einsum("pnd,pd->pn", unit(rows).reshape(len(centers), -1, centers.shape[1]), centers)
        limits = bounds(centers, mass=(mass,), tree=self.tree)
        figures = {"in_cap": int((1.0 - found <= limits[:, None]).sum()), **_cosine_figures(found)}
        return {f"second_{name}": value for name, value in figures.items()}


def _arm(study: Study, arm: Arm, seed: int) -> dict[str, Any]:
    config, second = study.config, SecondJudge.open(study)
    sampler = Sampler.open(
        study.out / f"train-{arm.training}-{seed}",
        encoder=str(study.encoder),
        tokenizer=str(study.tokenizer),
        tree=study.tree,
        batch_size=128,
    )
    stage = load_second_stage(study.out / SECOND_STAGE) if arm.way == "two-stage" else None
    groups = study.groups(sampler.encoder)
    first = is_lowest_seed(study.stages.records(), arm.name, seed)

    def cells(groups: list[Group], guidances: tuple[float, ...], best_of: int, grid: str) -> list[dict[str, Any]]:
        def keep(group: Group, mass: float, guidance: float, result: SampleResult) -> None:
            if (
                first
                and guidance == config.guidances[-1]
                and group.name == "text"
                and (arm.way == "own" or mass == config.masses[0])
            ):
                save_grid(config.report / "grids" / grid, group, result)

        return run_arm(
            arm,
            sampler,
            groups,
            judge,
            masses=config.masses,
            guidances=guidances,
            seed=seed,
            shift=load_shift(study.shift),
            second_stage=stage,
            best_of=best_of,
            second=lambda group, result, mass: second.judge(group, result.images, mass) if group.name == "text" else {},
            keep=keep,
        )

    texts = [group for group in groups if group.name == "text"]
    last, best_of = config.guidances[-1:], config.best_of
    return {
        "arm": arm.name,
        "seed": seed,
        "cells": cells(groups, config.guidances, 1, f"{arm.key}.png"),
        "reranked": cells(texts, last, best_of, f"{arm.key}-best-of-{best_of}.png") if best_of > 1 else [],
        "unconditional": _unconditional(sampler, groups, config, seed),
    }


def _unconditional(sampler: Sampler, groups: list[Group], config: ClipartConfig, seed: int) -> list[dict[str, Any]]:
    """128 samples of the null cap, each held against every prompt's cap."""
    rows = sampler.embed(sampler.samples([], n=128, seed=seed, measure=False).images).astype(np.float64)
    cells = []
    for group in groups:
        plain = np.stack([prompt.center for prompt in group.prompts])
        found = plain.astype(np.float64) @ rows.T
        for mass in config.masses:
            limits = bounds(plain, mass=(mass,), tree=sampler.tree)
            inside = 1.0 - found <= limits[:, None]
            cells.append(
                {"group": group.name, "mass": mass, "in_cap_share": float(inside.mean()), "cosine": float(found.mean())}
            )
    return cells


def judge(group: Group, result: SampleResult, limits: NDArray[np.float64]) -> dict[str, Any]:
    """Samples in their caps and their cosines with the prompts (the CLIP score), by the given encoder."""
    plain = np.stack([prompt.center for prompt in group.prompts])
    found = cosines(result, plain)
    return {"in_cap": int(in_caps(result, plain, limits).sum()), **_cosine_figures(found)}


def _cosine_figures(found: NDArray[Any]) -> dict[str, float]:
    """The sum of cosines (p, n), and the standard error of their mean over prompts, which differ more than samples."""
    error = float(found.mean(1).std(ddof=1) / math.sqrt(len(found))) if len(found) > 1 else 0.0
    return {"cosine_sum": float(found.sum()), "cosine_error": error}


def save_grid(path: Path, group: Group, result: SampleResult, columns: int = 4) -> None:
    """The first samples of every second prompt, a row each."""
    images = result.images.reshape(len(group.prompts), -1, *result.images.shape[1:])[::2, :columns]
    titles = [prompt.label for prompt in group.prompts[::2]]
    save_small(grids.make_grid(images.flatten(0, 1), images.shape[1], titles, smallest=64), path)
