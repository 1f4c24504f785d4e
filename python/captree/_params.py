"""Checks of plain parameters: integers, seeds, sizes in bytes, storage names."""

from __future__ import annotations

import math
import numbers
import operator
import re
import secrets
from typing import Any

import numpy as np

from captree._core import limits
from captree.errors import InvalidParameterError, InvalidTypeError

#: What the core takes at most, by name; see ``captree._core.limits``.
LIMITS = limits()

#: The largest integer that the core can be handed.
MACHINE_INTEGER = 2**63 - 1

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtp", start=1):
    _UNITS |= {_letter: 1024**_power, f"{_letter}ib": 1024**_power, f"{_letter}b": 1000**_power}

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)\s*")


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as a Python int in [low, high]; bools, floats and strings are refused."""
    if isinstance(value, (bool, np.bool_)):
        raise InvalidTypeError(f"expected an integer, got {value!r}", parameter=name)
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidTypeError(f"expected an integer, got {_brief(value)}", parameter=name) from None
    if number < low or (high is not None and number > high):
        wanted = f"at least {low}" if high is None else f"between {low} and {high}"
        raise InvalidParameterError(f"expected an integer {wanted}, got {number}", parameter=name)
    return number


def fraction(name: str, value: Any, low: float, high: float, *, open_ends: bool = False) -> float:
    """`value` as a float in [low, high], or in (low, high) when `open_ends`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (numbers.Real, np.floating, np.integer)):
        raise InvalidTypeError(f"expected a number, got {_brief(value)}", parameter=name)
    number = float(value)
    inside = low < number < high if open_ends else low <= number <= high
    if not inside:
        wanted = f"strictly between {low:g} and {high:g}" if open_ends else f"between {low:g} and {high:g}"
        raise InvalidParameterError(f"expected a number {wanted}, got {number!r}", parameter=name)
    return number


def seed(value: Any, name: str = "seed") -> int:
    """A seed in [0, 2**64); None draws a fresh one from the operating system."""
    return secrets.randbits(63) if value is None else integer(name, value, 0, 2**64 - 1)


def threads(value: Any) -> int | None:
    """A thread count of at least 1; None stands for every core."""
    return None if value is None else integer("threads", value, 1, LIMITS["threads"])


def fanout(value: Any) -> int:
    """Children of a node."""
    return integer("fanout", value, LIMITS["fanout_least"], LIMITS["fanout"])


def one_of(name: str, value: Any, names: tuple[str, ...], *others: str) -> str:
    """`value`, which is one of `names`; a message mentions what else the caller would take."""
    if not isinstance(value, str) or value not in names:
        wanted = " or ".join([*(f'"{known}"' for known in names), *others])
        raise InvalidParameterError(f"expected {wanted}, got {_brief(value)}", parameter=name)
    return value


def storage(value: Any) -> str:
    """``"float16"`` or ``"float32"``, from its name or a numpy dtype."""
    try:
        name = value if isinstance(value, str) else np.dtype(value).name
    except TypeError:
        name = None
    if value is None or name not in ("float16", "float32"):
        raise InvalidParameterError(f'expected "float16" or "float32", got {_brief(value)}', parameter="storage")
    return name


def size_in_bytes(name: str, value: Any) -> int:
    """Bytes from an int, or from a string such as ``"8GiB"``, ``"500 MB"`` or ``"1.5G"``.

    ``G`` and ``GiB`` are 1024**3, ``GB`` is 1000**3.
    """
    if not isinstance(value, str):
        return integer(name, value, 1)
    match = _SIZE.fullmatch(value)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise InvalidParameterError(
            f'expected bytes as an integer or a size such as "8GiB", got {value!r}', parameter=name
        )
    return integer(name, math.floor(float(match[1]) * unit), 1)


def memory_limit(value: Any) -> int | None:
    """Bytes for the parameter `memory_limit`, None for the default."""
    return None if value is None else size_in_bytes("memory_limit", value)


def _brief(value: Any) -> str:
    text = repr(value)
    kind = type(value).__name__
    return f"{kind} {text}" if len(text) <= 60 else f"an object of type {kind}"
