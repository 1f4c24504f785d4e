"""Tiny data and settings for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from genmodel.condition import Condition
from genmodel.model import Generator, ModelConfig
from genmodel.shards import Shards, write_shards
from genmodel.train import TrainConfig

DIM, GRID, CODES = 16, 3, 32
LENGTH = GRID * GRID


def tiny_config(**settings: Any) -> ModelConfig:
    given = {
        "codebook_size": CODES,
        "grid": GRID,
        "condition_dim": DIM,
        "depth": 2,
        "width": 32,
        "heads": 2,
        **settings,
    }
    return ModelConfig(**given)


def tiny_model(seed: int = 0, **settings: Any) -> Generator:
    """A model with weights that all matter: fresh ones have blocks that do nothing."""
    generator = torch.Generator().manual_seed(seed)
    model = Generator(tiny_config(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model.eval()


def centers(n: int, seed: int = 0, dim: int = DIM) -> torch.Tensor:
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def caps(n: int, max_cos_distance: Any = 0.5, seed: int = 0) -> Condition:
    return Condition.cap(centers(n, seed), max_cos_distance)


def some_tokens(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, CODES, (n, LENGTH), generator=torch.Generator().manual_seed(seed))


def meta(**other: Any) -> dict[str, Any]:
    return {
        "encoder": "test-encoder", "tokenizer": "test-tokenizer", "grid": GRID, "dim": DIM, "codebook_size": CODES,
        "image_size": 12, **other,
    }  # fmt: skip


def tiny_shards(folder: Path, n: int = 200, seed: int = 0) -> Shards:
    """Shards whose tokens follow from the embedding, so that a condition helps."""
    rows = centers(n, seed).numpy()
    signs = (rows[:, :LENGTH] > 0).astype(np.int64)
    tokens = signs * 7 + np.arange(LENGTH) % 4 + 8 * (rows[:, LENGTH : LENGTH + 1] > 0)
    return write_shards(folder, meta(), rows, tokens)


def train_config(data: Path, out: Path, **settings: Any) -> TrainConfig:
    given = {
        "depth": 1, "width": 32, "heads": 2, "steps": 6, "batch_size": 8, "warmup": 2, "heldout": 16, "threads": 1,
        "save_every": 100, "log_every": 2, "peak_flops": 1e11, "progress": False, "radii": "mixture", **settings,
    }  # fmt: skip
    return TrainConfig(data=str(data), out=str(out), **given)


def final_weights(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    from genmodel.checkpoint import read_tensors

    return read_tensors(Path(checkpoint) / "model.safetensors")[0]
