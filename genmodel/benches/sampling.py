"""Sampling with the cache against recomputation, and the caps' share of a training step.

    python benches/sampling.py [--size tiny] [--images 8] [--rounds 3]

``cache``: 256 tokens (16 x 16) of a named size, batches of `--images`; both draw the same tokens, which is checked.
``caps``: a training run on made-up shards of 10,000 rows in 512 dimensions, at 64 tokens, size "tiny": the share of the
steps' time spent waiting for pairs, and the CPU time of drawing as many pairs alone, against the steps' own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import captree
import numpy as np
import torch
from common import quartiles, write_record

from genmodel.condition import Condition
from genmodel.data import center_prior, parse_radii
from genmodel.generate import generate
from genmodel.model import Generator, ModelConfig
from genmodel.shards import write_shards
from genmodel.train import TrainConfig, train


def unit_rows(n: int, dim: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Rows of about 40 intrinsic dimensions, as embeddings have, and not the whole space's."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, 40)) @ rng.standard_normal((40, dim)) + 2 * rng.standard_normal(dim)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def cache(size: str, images: int, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Generator(ModelConfig.sized(size, codebook_size=1024, grid=16, condition_dim=512)).eval()
    for parameter in model.parameters():
        if not parameter.any():  # fresh blocks do nothing; let every matrix count
            torch.nn.init.normal_(parameter, std=0.02)
    condition = Condition.cap(torch.from_numpy(unit_rows(images, 512)), 0.5)
    times: dict[bool, list[float]] = {True: [], False: []}
    cpu: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        drawn = {}
        for cached in (True, False):
            wall, own = time.perf_counter(), time.process_time()
            drawn[cached] = generate(model, condition, cache=cached)
            times[cached].append(time.perf_counter() - wall)
            cpu[cached].append(time.process_time() - own)
        same = float((drawn[True] == drawn[False]).float().mean())
    return {
        "size": size,
        "images": images,
        "tokens": 256,
        "same_tokens": same,
        "cached_seconds": quartiles(times[True]),
        "recomputed_seconds": quartiles(times[False]),
        "ratio_wall": quartiles([b / a for a, b in zip(times[True], times[False], strict=True)]),
        "ratio_cpu": quartiles([b / a for a, b in zip(cpu[True], cpu[False], strict=True)]),
    }


def caps(steps: int, radii: str) -> dict[str, Any]:
    rows, batch = unit_rows(10_000, 512), 128
    tokens = np.random.default_rng(0).integers(0, 1000, (len(rows), 64))
    meta = {"encoder": "none", "tokenizer": "none", "grid": 8, "dim": 512, "codebook_size": 1000, "image_size": 64}
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder) / "data", meta, rows, tokens)
        settings = {"radii": radii, "batch_size": batch, "save_every": 10**6, "threads": torch.get_num_threads()}
        config = TrainConfig(data=str(shards.folder), out=str(Path(folder) / "out"), steps=steps, **settings)
        own = time.process_time()
        report = train(config)
        own = time.process_time() - own
    size = 2048
    threads = torch.get_num_threads()
    priors = {"centers": center_prior("slerp-noise"), "radii": parse_radii(radii)}
    stream = captree.PairStream(
        captree.build(rows, threads=threads), batch_size=size, prefetch=0, threads=threads, **priors
    )
    next(stream)
    pairs, began = 0, time.process_time()
    while pairs < steps * batch:
        next(stream)
        pairs += size
    drawing = (time.process_time() - began) / pairs
    return {
        "radii": radii,
        "steps": report.step,
        "batch": batch,
        "wait_share": round(report.data_share, 5),
        "cpu_share": round(drawing * batch * steps / own, 5),
        "pairs_per_cpu_second": round(1 / drawing),
        "images_per_second": round(report.tokens_per_second / 64, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results: dict[str, Any] = {"cache": cache(given.size, given.images, given.rounds)}
    results["caps"] = [caps(given.steps, radii) for radii in ("mixture", "mass:0.001:1")]
    write_record("sampling", results)


if __name__ == "__main__":
    main()
