"""Captions of scenes, and prompts whose wording occurs in none of them.

Captions teach the *given* encoder; genmodel never sees one. A fifth of the combinations is held out of every captioned
scene, and some wordings are held out of every caption, so a prompt is new in one of the two ways or in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .render import ATTRIBUTES, COMBINATIONS

HELD_OUT_SHARE = 0.2
NAMES = tuple(ATTRIBUTES)

# Every word of a prompt's wording also occurs in some caption; only the wording as a whole is new.
CAPTION_WORDINGS = (
    "a {size} {color} {shape} in the {position}",
    "{position}: a {size} {color} {shape}",
    "a {color} {shape}, {size}, {position}",
    "{size} {shape} in {color}, {position}",
    "a {color} {shape}",
    "a {size} {shape} that is {color}",
    "a {size} {shape} in the {position}",
    "a {color} shape in the {position}",
    "something {color} and {size}",
    "a {shape} in the {position}",
)
FULL_WORDINGS = (
    "a {size} {color} {shape} in the {position}",
    "a {shape} in the {position} that is {color} and {size}",
)
PAIR_WORDINGS = ("a {shape} that is {color}", "something {color}: a {shape}")


@dataclass(frozen=True)
class Prompts:
    """Texts and what they ask for: int64 (n, 4), -1 where an attribute is not named."""

    texts: tuple[str, ...]
    wanted: NDArray[np.int64]
    group: str


def split_combinations(seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The captioned combinations and the held-out ones, int64 (., 4).

    Each attribute value, and each pair of values of two attributes, still occurs among the captioned ones.
    """
    for attempt in range(100):
        order = np.random.default_rng([seed, attempt]).permutation(len(COMBINATIONS))
        held = round(HELD_OUT_SHARE * len(COMBINATIONS))
        kept, out = COMBINATIONS[np.sort(order[held:])], COMBINATIONS[np.sort(order[:held])]
        if all(_pairs(kept, a, b) == _pairs(COMBINATIONS, a, b) for a in range(4) for b in range(a)):
            return kept, out
    raise RuntimeError(f"no split keeps every pair of attribute values in 100 tries, seed {seed}")


def captions(attributes: NDArray[np.int64], seed: int | np.random.SeedSequence) -> list[str]:
    """One caption per row of attributes int64 (n, 4), its wording drawn from `CAPTION_WORDINGS`."""
    choice = np.random.default_rng(seed).integers(len(CAPTION_WORDINGS), size=len(attributes))
    return [describe(CAPTION_WORDINGS[k], row) for k, row in zip(choice, attributes, strict=True)]


def describe(wording: str, row: NDArray[np.int64]) -> str:
    """`wording` with the values of one scene, int64 (4,), put in."""
    return wording.format(**{name: ATTRIBUTES[name][value] for name, value in zip(NAMES, row, strict=True)})


def full_prompts(held_out: NDArray[np.int64]) -> Prompts:
    """All four attributes of every held-out combination; the two wordings take turns."""
    texts = tuple(describe(FULL_WORDINGS[i % 2], row) for i, row in enumerate(held_out))
    return Prompts(texts, held_out.copy(), "full")


def pair_prompts() -> Prompts:
    """Shape and color only, in wordings that no caption has."""
    rows = np.unique(COMBINATIONS[:, :2], axis=0)
    wanted = np.concatenate([rows, np.full((len(rows), 2), -1)], axis=1)
    filled = np.maximum(wanted, 0)
    return Prompts(tuple(describe(PAIR_WORDINGS[i % 2], row) for i, row in enumerate(filled)), wanted, "pair")


def assert_in_no_caption(prompts: Prompts, used: list[str]) -> None:
    """Raises AssertionError when a prompt's wording, case and punctuation aside, is one of the captions `used`."""
    seen = {_plain(caption) for caption in used}
    known = [text for text in prompts.texts if _plain(text) in seen]
    if known:
        raise AssertionError(f"expected prompts that are in no caption, got {len(known)} that are, first {known[0]!r}")


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def _pairs(rows: NDArray[np.int64], a: int, b: int) -> set[tuple[int, int]]:
    return {(int(x), int(y)) for x, y in rows[:, [a, b]]}
