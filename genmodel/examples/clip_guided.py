"""CLIP-guided optimization: no generator, only gradient ascent on a tokenizer's codes against the CLIP score of a text.

    python examples/clip_guided.py --prompt "a red apple" --encoder clip/ --tokenizer tokenizer/ --out apple.png

It is what people did before there were generators to prompt, and what a generator has to beat: a high score by itself
is cheap, since pixels that please the encoder need not look like anything. The codes are distributions over the
tokenizer's codebook; the picture of the most probable codes is decoded, its gradient is that of the expected code
(straight-through), and the score is taken over random crops, without which the result is noise that scores well in one
view only.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodel import grids
from genmodel.encoders import load_encoder
from genmodel.tokenizers import load_tokenizer


@dataclass
class Settings:
    """What to make.

    Attributes:
        prompt: the text.
        encoder: as in ``genmodel encode``.
        tokenizer: likewise.
        out: the grid, .png.
        n: images, each from its own random start.
        steps: of Adam.
        learning_rate: of Adam, on logits.
        crops: random views per image and step.
        start: an image to start from, in place of noise.
        seed: of start and crops.
        device: "cpu", "cuda".
    """

    prompt: str
    encoder: str
    tokenizer: str
    out: Path = Path("clip_guided.png")
    n: int = 4
    steps: int = 300
    learning_rate: float = 0.3
    crops: int = 8
    start: Path | None = None
    seed: int = 0
    device: str = "cpu"


def optimize(
    encoder: Any,
    tokenizer: Any,
    target: Tensor,
    logits: Tensor,
    *,
    steps: int = 300,
    learning_rate: float = 0.3,
    crops: int = 8,
    seed: int = 0,
) -> tuple[Tensor, list[float]]:
    """Climbs the cosine of decoded images with a target.

    Args:
        encoder: with ``images_float``.
        tokenizer: with ``decode_soft``.
        target: (d,) unit embedding.
        logits: (n, L, codebook_size), the start.
        steps: of Adam.
        learning_rate: of Adam.
        crops: random views per image and step.
        seed: of the views.

    Returns:
        Tokens int64 (n, L), and the mean cosine of each step.
    """
    logits = logits.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([logits], lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    history = []
    for _ in range(steps):
        images = tokenizer.decode_soft(logits.softmax(dim=-1))
        cosine = encoder.images_float(views(images, crops, generator)) @ target
        optimizer.zero_grad()
        (-cosine.mean()).backward()
        optimizer.step()
        history.append(float(cosine.detach().mean()))
    return logits.detach().argmax(dim=-1), history


def views(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random views of images (n, 3, s, s): crops of 70 to 100% of the side, at the old size, half of them mirrored."""
    size, made = images.shape[-1], []
    for _ in range(count):
        draw = torch.rand(4, generator=generator).tolist()
        side = max(1, round(size * (0.7 + 0.3 * draw[0])))
        top, left = (int(share * (size - side + 1)) for share in draw[1:3])
        view = F.interpolate(
            images[..., top : top + side, left : left + side], size=size, mode="bilinear", align_corners=False
        )
        made.append(view.flip(-1) if draw[3] < 0.5 else view)
    return torch.cat(made)


def starting_logits(settings: Settings, tokenizer: Any) -> Tensor:
    """Noise, or the codes of an image with a little of it."""
    shape = settings.n, tokenizer.grid**2, tokenizer.codebook_size
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(settings.seed))
    if settings.start is not None:
        from genmodel.images import square
        from genmodel.prompts import open_image

        picture = square(open_image(settings.start), tokenizer.image_size)
        pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        pixels = pixels.view(1, tokenizer.image_size, tokenizer.image_size, 3).permute(0, 3, 1, 2)
        logits += 4.0 * F.one_hot(tokenizer.encode(pixels), tokenizer.codebook_size)
    return logits.to(settings.device)


def main(settings: Settings) -> None:
    """Makes the images and writes the grid."""
    encoder = load_encoder(settings.encoder, settings.device)
    tokenizer = load_tokenizer(settings.tokenizer, settings.device)
    target = encoder.text([settings.prompt])[0]
    tokens, history = optimize(
        encoder,
        tokenizer,
        target,
        starting_logits(settings, tokenizer),
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        crops=settings.crops,
        seed=settings.seed,
    )
    images = tokenizer.decode(tokens)
    cosine = float((encoder.images(images) @ target).mean())
    grids.save_grid(settings.out, images, settings.n, [settings.prompt], {**vars(settings), "cosine": cosine})
    sys.stdout.write(f"{settings.out}: cosine {history[0]:.3f} at the start, {cosine:.3f} at the end\n")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Settings))
