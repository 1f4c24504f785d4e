"""The study of rendered scenes, stage by stage; see :func:`run`."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import captree
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from genmodel import grids
from genmodel.encode import EncodeConfig, encode
from genmodel.encoders import load_encoder
from genmodel.prompts import Prompt, fit_shift, load_shift, save_shift, text_prompts, unit
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
from .captions import CAPTION_WORDINGS, assert_in_no_caption, describe, full_prompts, pair_prompts, split_combinations
from .encoder import retrieval, train_encoder
from .read import UNREADABLE, obeys, read
from .render import COMBINATIONS, IMAGE_SIZE, draw_scenes, render


@dataclass
class ScenesConfig:
    """Settings of the study. Every stage leaves a file in `out`; a rerun goes on after the last one."""

    out: Path = Path("studies/out/scenes")
    """Everything that is made; not committed."""
    report: Path = Path("studies/scenes/report")
    """Report, figures and pictures; committed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Trainings of each arm."""
    threads: int = 1
    """torch threads."""
    images: int = 20_000
    """Scenes in each half."""
    encoder_steps: int = 700
    encoder_batch: int = 128
    tokenizer_steps: int = 3500
    run: RunConfig = field(default_factory=lambda: RunConfig(steps=500, depth=4, width=128, heads=4))
    """Training of each arm and of the second stage."""
    masses: tuple[float, ...] = (0.001, 0.004, 0.04, 0.25)
    """Bounds, as shares of the generator's images. One of 240 combinations has 0.0042, one of 24 pairs 0.042."""
    guidances: tuple[float, ...] = (1.0, 3.0)
    samples_per_prompt: int = 3
    image_prompts: int = 96
    order: tuple[str, ...] = ("own", "uniform", "slerp", "slerp-noise", "gap-shift")
    """Order in which the generators are trained."""
    only_until: str | None = None
    """Stop after the stage of this name."""
    plots: bool = True


class Study:
    """Paths and what stages share."""

    def __init__(self, config: ScenesConfig) -> None:
        self.config = config
        self.out = config.out
        self.stages = Stages(config.out, say)
        self.kept, self.held = split_combinations(seed=0)
        self.full, self.pair = full_prompts(self.held), pair_prompts()

    @property
    def encoder(self) -> Path:
        """Folder of the given encoder."""
        return self.out / "encoder"

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer."""
        return self.out / "tokenizer"

    @property
    def shards(self) -> Path:
        """Encoded images of the generator's half."""
        return self.out / SHARDS

    @property
    def tree(self) -> Path:
        """Tree of their embeddings."""
        return self.out / TREE

    @property
    def shift(self) -> Path:
        """The gap shift."""
        return self.out / SHIFT

    def captioned(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The encoder's half: images uint8 (n, 3, 32, 32) and attributes, held-out combinations left out."""
        rng = np.random.default_rng([1, 0])
        attributes = self.kept[rng.integers(len(self.kept), size=self.config.images)]
        return render(draw_scenes(attributes, np.random.SeedSequence([1, 1]))), attributes

    def uncaptioned(self, purpose: int, n: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Other scenes, of all combinations: purpose 2 is the generator's half, 3 are scenes to test with."""
        rng = np.random.default_rng([purpose, 0])
        attributes = COMBINATIONS[rng.integers(len(COMBINATIONS), size=n)]
        return render(draw_scenes(attributes, np.random.SeedSequence([purpose, 1]))), attributes

    def groups(self, encoder: Any) -> list[Group]:
        """Prompts: unseen texts of all four attributes and of two, and images that nothing was trained on."""
        each, count = self.config.samples_per_prompt, self.config.image_prompts
        images, attributes = self.uncaptioned(3, count)
        rows = unit(encoder.images(torch.from_numpy(images)))
        pictures = [Prompt(f"image {i}", row, row) for i, row in enumerate(rows)]
        return [
            Group("full", text_prompts(encoder, self.full.texts), each, self.full.wanted),
            Group("pair", text_prompts(encoder, self.pair.texts), 2 * each, self.pair.wanted),
            Group("image", pictures, 1, attributes),
        ]


def run(config: ScenesConfig) -> dict[str, Any]:
    """Runs what is not there yet and writes the report; returns the stages' results."""
    set_threads(config.threads)
    study = Study(config)
    todo: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("prompts", lambda: _prompts(study)),
        ("reader", lambda: _reader(study)),
        ("encoder", lambda: _encoder(study)),
        ("images", lambda: _images(study)),
        ("tokenizer", lambda: _tokenizer(study)),
        ("encode", lambda: _encode(study)),
        ("second-stage", lambda: _second_stage(study)),
        ("reference", lambda: _reference(study)),
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
            _report(study)
    _report(study)
    return results


def _report(study: Study) -> None:
    from .report import write_report

    write_report(study.stages.records(), study.config)


def _prompts(study: Study) -> dict[str, Any]:
    _, attributes = study.captioned()
    used = sorted({describe(wording, row) for wording in CAPTION_WORDINGS for row in attributes})
    assert_in_no_caption(study.full, used)
    assert_in_no_caption(study.pair, used)
    return {
        **provenance(study.config.threads),
        "captions": len(used),
        "held_out_combinations": len(study.held),
        "full": list(study.full.texts),
        "pair": list(study.pair.texts),
    }


def _reader(study: Study) -> dict[str, Any]:
    images, attributes = study.uncaptioned(3, 4000)
    good = obeys(read(images), attributes)
    return {"n": len(good), "obeyed": int(good.all(1).sum()), "by_attribute": good.sum(0).tolist()}


def _encoder(study: Study) -> dict[str, Any]:
    images, attributes = study.captioned()
    config = study.config
    report = train_encoder(
        images, attributes, study.encoder, steps=config.encoder_steps, batch_size=config.encoder_batch, seed=0
    )
    encoder = load_encoder(str(study.encoder))
    fresh, wanted = study.uncaptioned(3, 4000)
    for prompts in (study.full, study.pair):
        report[f"retrieval_{prompts.group}"] = retrieval(encoder, fresh, wanted, prompts)
    return report


def _images(study: Study) -> dict[str, Any]:
    images, _ = study.uncaptioned(2, study.config.images)
    rows = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG", compress_level=1)
        rows.append(buffer.getvalue())
    # Pictures alone: nothing that genmodel is given from here on holds a word.
    pq.write_table(pa.table({"png": pa.array(rows, pa.binary())}), study.out / "images.parquet")
    return {"images": len(rows)}


def _tokenizer(study: Study) -> dict[str, Any]:
    config = TokenizerConfig(
        images=str(study.out / "images.parquet"),
        out=str(study.tokenizer),
        image_size=IMAGE_SIZE,
        grid=8,
        width=32,
        steps=study.config.tokenizer_steps,
        batch_size=16,
        seed=0,
        threads=study.config.threads,
        progress=False,
    )
    report = train_tokenizer(config)
    images, attributes = study.uncaptioned(3, 2000)
    made = _reconstruct(study, images)
    found = read(made)
    good = obeys(found, attributes)
    report["reader"] = {
        "n": len(good),
        "obeyed": int(good.all(1).sum()),
        "by_attribute": good.sum(0).tolist(),
        "unreadable": int((found == UNREADABLE).any(1).sum()),
    }
    return report


def _reconstruct(study: Study, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    tokenizer = load_tokenizer(study.tokenizer)
    made = [tokenizer.decode(tokenizer.encode(part)) for part in torch.from_numpy(images).split(250)]
    return torch.cat(made).numpy()


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
    shards = open_shards(study.shards)
    captree.build(np.asarray(shards.embeddings), out=study.tree)
    # The shift needs the mean of some texts' embeddings: those of the encoder's own captions.
    _, attributes = study.captioned()
    used = sorted({describe(wording, row) for wording in CAPTION_WORDINGS for row in attributes[:2000]})
    texts = load_encoder(str(study.encoder)).text(used).numpy()
    vector = fit_shift(texts, np.asarray(shards.embeddings))
    save_shift(study.shift, vector)
    return {"rows": report.rows, "texts": len(used), "shift_length": float(np.linalg.norm(vector))}


def _second_stage(study: Study) -> dict[str, Any]:
    return train_flow_of(study.config.run, study.out, study.config.threads)


def _reference(study: Study) -> dict[str, Any]:
    """What a perfect model of the caps would score: the training images inside them, as they are and reconstructed."""
    tree, shards = captree.open(study.tree), open_shards(study.shards)
    encoder, tokenizer = load_encoder(str(study.encoder)), load_tokenizer(study.tokenizer)
    _, attributes = study.uncaptioned(2, study.config.images)
    cells = []
    for group in study.groups(encoder):
        assert group.wanted is not None
        centers = np.stack([prompt.center for prompt in group.prompts])
        for mass in study.config.masses:
            limits = tree.radius_for_mass(centers, mass)
            rows = tree.sample(captree.Caps(centers, limits), k=group.n, seed=0)
            tokens = torch.from_numpy(np.asarray(shards.tokens)[rows.reshape(-1)].astype(np.int64))
            made = torch.cat([tokenizer.decode(part) for part in tokens.split(250)])
            again = encoder.images(made).numpy().reshape(*rows.shape, -1)
            found = read(made.numpy()).reshape(*rows.shape, -1)
            inside = 1.0 - np.einsum("pnd,pd->pn", again, centers) <= limits[:, None]
            good = obeys(attributes[rows], group.wanted[:, None])
            kept = obeys(found, group.wanted[:, None])
            cells.append(
                {
                    "group": group.name,
                    "mass": mass,
                    "max_cos_distance": round(float(limits.mean()), 4),
                    "n": int(rows.size),
                    "obeyed": int(good.all(2).sum()),
                    "by_attribute": good.sum((0, 1)).tolist(),
                    "obeyed_reconstructed": int(kept.all(2).sum()),
                    "in_cap_reconstructed": int(inside.sum()),
                }
            )
    return {"cells": cells}


def _arm(study: Study, arm: Arm, seed: int) -> dict[str, Any]:
    config = study.config
    sampler = Sampler.open(
        study.out / f"train-{arm.training}-{seed}",
        encoder=str(study.encoder),
        tokenizer=str(study.tokenizer),
        tree=study.tree,
        batch_size=192,
    )
    stage = load_second_stage(study.out / SECOND_STAGE) if arm.way == "two-stage" else None
    groups = study.groups(sampler.encoder)
    first = is_lowest_seed(study.stages.records(), arm.name, seed)

    def keep(group: Group, mass: float, guidance: float, result: SampleResult) -> None:
        shown = {"full": config.masses[1], "pair": config.masses[min(2, len(config.masses) - 1)]}.get(group.name)
        if first and guidance == config.guidances[-1] and shown is not None and (arm.way == "own" or mass == shown):
            save_grid(config.report / "grids" / f"{group.name}-{arm.key}.png", group, result)

    cells = run_arm(
        arm,
        sampler,
        groups,
        judge,
        masses=config.masses,
        guidances=config.guidances,
        seed=seed,
        shift=load_shift(study.shift),
        second_stage=stage,
        keep=keep,
    )
    return {"arm": arm.name, "seed": seed, "cells": cells, "unconditional": _unconditional(sampler, groups, seed)}


def _unconditional(sampler: Sampler, groups: list[Group], seed: int) -> dict[str, float]:
    """Of 192 samples of the null cap, the share that obeys a prompt, over all pairs of sample and prompt, by group."""
    found = read(sampler.samples([], n=192, seed=seed, measure=False).images.numpy())
    shares = {"readable": float((found != UNREADABLE).all(1).mean())}
    for group in groups:
        assert group.wanted is not None
        shares[group.name] = float(obeys(found[None], group.wanted[:, None]).all(2).mean())
    return shares


def judge(group: Group, result: SampleResult, limits: NDArray[np.float64]) -> dict[str, Any]:
    """Counts of the samples that obey the prompt, by the pixels, and of those in its cap, by the encoder."""
    assert group.wanted is not None
    plain = np.stack([prompt.center for prompt in group.prompts])
    found = read(result.images.numpy()).reshape(len(plain), -1, group.wanted.shape[1])
    good = obeys(found, group.wanted[:, None])
    return {
        "obeyed": int(good.all(2).sum()),
        "by_attribute": good.sum((0, 1)).tolist(),
        "unreadable": int((found == UNREADABLE).any(2).sum()),
        "in_cap": int(in_caps(result, plain, limits).sum()),
        "cosine_sum": float(cosines(result, plain).sum()),
    }


def save_grid(path: Path, group: Group, result: SampleResult, prompts: int = 12, columns: int = 4) -> None:
    """The first samples of the first prompts, a row each."""
    images = result.images.reshape(len(group.prompts), -1, *result.images.shape[1:])[:prompts, :columns]
    titles = [prompt.label for prompt in group.prompts[:prompts]]
    save_small(grids.make_grid(images.flatten(0, 1), images.shape[1], titles, smallest=64), path)
