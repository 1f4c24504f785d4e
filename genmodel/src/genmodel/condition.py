"""Conditions: a batch of caps, and the layers that turn them into one vector per image.

A cap is a center and a ``max_cos_distance``. The null cap is the whole sphere; it says nothing, so it *is* the
unconditional case, and classifier-free guidance needs no token of its own. Other kinds of condition fit the same
three tensors:

==============  =================================================================================
``cap``         the image lies within `high` of the center
``embedding``   the center is the image's own embedding, `high` is 0
``distance``    the image lies at cosine distance `high` (= `low`) from the center
``range``       the image's distance from the center lies in [`low`, `high`]
==============  =================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genmodel.errors import ConfigError, InputError

CONDITION_KINDS = ("cap", "embedding", "distance", "range")
"""What a model can be conditioned on; one of these per model."""

_UNIT_TOLERANCE = 2e-2
_FREQUENCIES = 8


@dataclass
class Condition:
    """A batch of caps (or of the other kinds above); all tensors are float32 on one device.

    Attributes:
        center: (n, d) unit vectors; zeros for the null cap.
        high: (n,) max_cos_distance in [0, 2].
        low: (n,) least cosine distance in [0, high]; 0 for a cap.
    """

    center: Tensor
    high: Tensor
    low: Tensor

    def __post_init__(self) -> None:
        n = self.center.shape[0] if self.center.ndim == 2 else -1
        if n < 0 or self.high.shape != (n,) or self.low.shape != (n,):
            shapes = [tuple(tensor.shape) for tensor in (self.center, self.high, self.low)]
            raise InputError(f"expected center (n, d), high (n,) and low (n,), got {shapes}")
        for tensor in (self.center, self.high, self.low):
            if tensor.dtype != torch.float32:
                raise InputError(f"expected float32 tensors, got {tensor.dtype}")

    @classmethod
    def cap(cls, center: Any, max_cos_distance: Any) -> Condition:
        """Caps around `center` (n, d) or (d,), unit vectors, with `max_cos_distance` (n,) or a number in [0, 2].

        Raises:
            InputError: a center is not a finite unit vector, or a bound lies outside [0, 2].
        """
        return cls.range(center, 0.0, max_cos_distance)

    @classmethod
    def embedding(cls, center: Any) -> Condition:
        """The images' own embeddings (n, d): caps of bound 0."""
        return cls.cap(center, 0.0)

    @classmethod
    def distance(cls, center: Any, cos_distance: Any) -> Condition:
        """Images at `cos_distance` (n,), in [0, 2], from `center` (n, d)."""
        return cls.range(center, cos_distance, cos_distance)

    @classmethod
    def range(cls, center: Any, low: Any, high: Any) -> Condition:
        """Images whose distance from `center` (n, d) lies in [`low`, `high`], each (n,) or a number in [0, 2]."""
        center = torch.as_tensor(center).to(torch.float32)
        center = center[None] if center.ndim == 1 else center
        if center.ndim != 2:
            raise InputError(f"expected centers of shape (n, d), got {tuple(center.shape)}")
        length = center.norm(dim=1)
        if not bool(((length - 1).abs() <= _UNIT_TOLERANCE).all()):
            raise InputError(f"expected unit centers, got a length of {float(length[(length - 1).abs().argmax()]):.4g}")
        low, high = (_bounds(name, bound, center) for name, bound in (("low", low), ("high", high)))
        if not bool((low <= high).all()):
            raise InputError("expected low <= high in every row")
        return cls(center, high, low)

    @classmethod
    def null(cls, n: int, dim: int, device: torch.device | str | None = None) -> Condition:
        """`n` null caps of dimension `dim`: center 0, low 0, high 2."""
        center = torch.zeros(n, dim, device=device)
        return cls(center, torch.full((n,), 2.0, device=device), torch.zeros(n, device=device))

    @property
    def is_null(self) -> Tensor:
        """Bool (n,): the rows that are the null cap, whatever their center."""
        return (self.high >= 2.0) & (self.low <= 0.0)

    @property
    def dim(self) -> int:
        """Dimension of the centers."""
        return self.center.shape[1]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Condition:
        """The same condition on `device`."""
        return Condition(*(tensor.to(device, non_blocking=non_blocking) for tensor in self._tensors()))

    def __len__(self) -> int:
        return self.center.shape[0]

    def __getitem__(self, index: Any) -> Condition:
        """Rows by slice, integers or mask; a single integer gives a batch of one."""
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        return Condition(*(tensor[index] for tensor in self._tensors()))

    def where_null(self, mask: Tensor) -> Condition:
        """The rows where `mask`, bool (n,), is set replaced by the null cap."""
        high, low = self.high.masked_fill(mask, 2.0), self.low.masked_fill(mask, 0.0)
        return Condition(self.center.masked_fill(mask[:, None], 0.0), high, low)

    def repeat(self, k: int) -> Condition:
        """Each row `k` times in succession."""
        return Condition(*(tensor.repeat_interleave(k, dim=0) for tensor in self._tensors()))

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """The rows of all parts in order."""
        if not parts:
            raise InputError("expected at least one condition, got none")
        columns = zip(*(part._tensors() for part in parts), strict=True)
        return Condition(*(torch.cat(column) for column in columns))

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.center, self.high, self.low


def _bounds(name: str, bound: Any, center: Tensor) -> Tensor:
    given = torch.as_tensor(bound, device=center.device).to(torch.float32)
    if given.ndim > 1 or (given.ndim == 1 and given.shape[0] not in (1, center.shape[0])):
        raise InputError(f"{name}: expected a number or shape ({center.shape[0]},), got {tuple(given.shape)}")
    if not bool(((given >= 0) & (given <= 2)).all()):
        raise InputError(f"{name}: expected cosine distances in [0, 2], got {given.flatten().tolist()[:4]}")
    return given.expand(center.shape[0]).contiguous()


class ConditionEmbedder(nn.Module):
    """``linear(sqrt(d) * center) + MLP(Fourier features of the radius)``, float (n, width).

    sqrt(d) gives the center's components unit scale. Bounds enter as angles, arccos(1 - bound) / pi in [0, 1], which
    resolve small caps better than cosine distances; a range has the features of both of its ends. Null caps are made
    canonical first (center 0), so that every null cap has exactly one vector.
    """

    frequencies: Tensor

    def __init__(self, dim: int, width: int, kind: str = "cap") -> None:
        super().__init__()
        if kind not in CONDITION_KINDS:
            raise ConfigError(f"condition: expected one of {CONDITION_KINDS}, got {kind!r}")
        self.dim, self.kind = dim, kind
        self.ends = 2 if kind in ("distance", "range") else 1
        self.reset_buffers()
        self.center = nn.Linear(dim, width, bias=False)
        self.radius = nn.Sequential(
            nn.Linear(self.ends * (2 * _FREQUENCIES + 1), width), nn.SiLU(), nn.Linear(width, width)
        )

    def reset_buffers(self, device: torch.device | str | None = None) -> None:
        """The table of frequencies, computed on `device`."""
        frequencies = math.pi * 2.0 ** torch.arange(_FREQUENCIES)
        self.register_buffer("frequencies", frequencies.to(device), persistent=False)

    def extra_repr(self) -> str:
        """Kind of the condition, for printing."""
        return f"kind={self.kind!r}"

    def forward(self, condition: Condition) -> Tensor:
        """Vectors float (n, width) for `condition` of n rows.

        Raises:
            InputError: the condition's centers have another dimension than the model's.
        """
        if condition.dim != self.dim:
            raise InputError(f"expected centers of dimension {self.dim}, got {condition.dim}")
        null = condition.is_null
        # where, not a product: a null cap's center may hold anything, NaN too.
        center = torch.where(null[:, None], 0.0, condition.center)
        high = torch.where(null, 2.0, condition.high)
        ends = [high] if self.ends == 1 else [high, torch.where(null, 0.0, condition.low)]
        angles = torch.stack([torch.arccos((1 - end).clamp(-1, 1)) / math.pi for end in ends], dim=1)
        waves = angles[:, :, None] * self.frequencies
        features = torch.cat([angles[:, :, None], waves.sin(), waves.cos()], dim=-1).flatten(1)
        dtype = self.center.weight.dtype
        embedded: Tensor = self.center((center * math.sqrt(self.dim)).to(dtype)) + self.radius(features.to(dtype))
        return embedded
