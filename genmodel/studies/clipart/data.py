"""The clip-art table, cut into a half for the encoder, a half for the generator and pictures for tests; prompts."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

TEST_PICTURES = 510
IMAGE_SIZE = 64

# Wordings of our own; `assert_in_no_caption` checks that none is a caption, case and punctuation aside.
PROMPTS = (
    "a picture of a red apple",
    "a big green tree",
    "a round yellow smiling face",
    "a face that is crying",
    "a flag with red and white stripes",
    "a flag with a blue background",
    "a little red car",
    "a yellow taxi seen from the side",
    "a woman with long brown hair",
    "a man who wears a hat",
    "a cat that looks at you",
    "a white dog",
    "a fish in the sea",
    "a small blue bird",
    "a butterfly with colorful wings",
    "a big pink flower",
    "a yellow sun with rays",
    "the moon at night",
    "a cloud in the sky",
    "a drawing of a house",
    "a cup of hot coffee",
    "a slice of pizza with cheese",
    "a birthday cake with candles",
    "a red heart shape",
    "a golden star shape",
    "a black arrow that points right",
    "a yellow folder for files",
    "an old computer screen",
    "an open book to read",
    "a guitar to make music",
    "a clock on the wall",
    "a playing card with hearts",
)


@dataclass(frozen=True)
class Clipart:
    """Rows of the table and how they are split.

    `png`: encoded pictures. `captions`: per row its caption and its caption with keywords. `encoder`, `generator` and
    `test`: row numbers, int64, disjoint unless the encoder was given more than its half.
    """

    png: list[bytes]
    captions: list[list[str]]
    encoder: NDArray[np.int64]
    generator: NDArray[np.int64]
    test: NDArray[np.int64]


def load(path: Path, encoder_share: float = 0.5, seed: int = 0) -> Clipart:
    """Reads the table that `tools/make_clipart.py` writes and splits it at random.

    The generator has the second half of what the tests leave, the encoder the first `encoder_share` of it.

    Raises:
        SystemExit: no such file; the message says how to make it.
    """
    if not 0.0 < encoder_share <= 1.0:
        raise SystemExit(f"encoder share: expected a number in (0, 1], got {encoder_share}")
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; make it with: python tools/make_clipart.py --out {path}")
    table = pq.read_table(path, columns=["png", "caption", "keywords"])
    captions = []
    for caption, keywords in zip(table["caption"].to_pylist(), table["keywords"].to_pylist(), strict=True):
        words = [word.replace("_", " ") for word in keywords or []]
        captions.append([caption, f"{caption}: {', '.join(words)}"] if words else [caption])
    order = np.random.default_rng(seed).permutation(len(captions))
    test, rest = order[:TEST_PICTURES], order[TEST_PICTURES:]
    captioned, half = int(encoder_share * len(rest)), len(rest) // 2
    return Clipart(table["png"].to_pylist(), captions, np.sort(rest[:captioned]), np.sort(rest[half:]), np.sort(test))


def pictures(data: Clipart, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Decoded pictures, uint8 (n, 3, 64, 64)."""
    out = np.empty((len(rows), 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for place, row in enumerate(rows):
        with Image.open(io.BytesIO(data.png[row])) as image:
            out[place] = np.asarray(image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE))).transpose(2, 0, 1)
    return out


def write_pictures(data: Clipart, rows: NDArray[np.int64], path: Path) -> None:
    """The pictures alone as Parquet: nothing that genmodel is given holds a word."""
    pq.write_table(pa.table({"png": pa.array([data.png[row] for row in rows], pa.binary())}), path)


def assert_in_no_caption(prompts: tuple[str, ...], data: Clipart) -> None:
    """Raises AssertionError when a prompt, case and punctuation aside, is a caption of any row."""
    seen = {_plain(text) for texts in data.captions for text in texts}
    known = [prompt for prompt in prompts if _plain(prompt) in seen]
    if known:
        raise AssertionError(f"expected prompts that are in no caption, got {len(known)} that are, first {known[0]!r}")


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
