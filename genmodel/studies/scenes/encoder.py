"""The given encoder of the scenes: a small open_clip model trained on the captioned half.

A convolutional image tower (open_clip's ModifiedResNet) and a two-layer text tower with open_clip's own tokenizer,
built from a config by open_clip's model factory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genmodel.encoders import Encoder

from ..common import train_open_clip
from .captions import CAPTION_WORDINGS, Prompts, describe
from .read import obeys
from .render import IMAGE_SIZE

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 24, "head_width": 24},
        "text_cfg": {"context_length": 20, "width": 64, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"size": IMAGE_SIZE, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}


def train_encoder(
    images: NDArray[np.uint8], attributes: NDArray[np.int64], out: Path, *, steps: int, batch_size: int, seed: int
) -> dict[str, Any]:
    """Trains on images uint8 (n, 3, 32, 32) with captions of their attributes int64 (n, 4); writes the folder `out`."""
    texts = [[describe(wording, row) for wording in CAPTION_WORDINGS] for row in attributes]
    return train_open_clip(CONFIG, images, texts, out, steps=steps, batch_size=batch_size, seed=seed)


def retrieval(
    encoder: Encoder, images: NDArray[np.uint8], attributes: NDArray[np.int64], prompts: Prompts, k: int = 10
) -> dict[str, Any]:
    """How well the encoder understands prompts: the share of each prompt's `k` nearest images that obey it."""
    rows = encoder.images(torch.from_numpy(images)).numpy()
    texts = encoder.text(list(prompts.texts)).numpy()
    nearest = np.argsort(-(texts @ rows.T), axis=1)[:, :k]
    good = obeys(attributes[nearest], prompts.wanted[:, None])
    return {
        "k": k,
        "obeyed": int(good.all(2).sum()),
        "n": int(nearest.size),
        "by_attribute": good.sum((0, 1)).tolist(),
        "distance_of_last": float(1.0 - np.take_along_axis(texts @ rows.T, nearest, 1)[:, -1].mean()),
    }
