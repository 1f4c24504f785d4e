"""Text for people: tables, numbers, durations; and JSON for programs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

MISSING = "-"

_JOINERS = "\u200c\u200d"
"""What letters of some scripts and parts of one emoji are joined with: not printable alone, and harmless."""


def width(most: int = 120) -> int:
    """Columns of the terminal, between 60 and `most`; at most 100 where there is none."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, 60), most)


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (), indent: int = 0, most: int = 120
) -> str:
    """Lines of a table: numbers to the right, the columns in `left` to the left; the last column is cut to fit."""
    header, rows = [printable(cell) for cell in header], [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    room = max(width(most) - indent - sum(widths[:-1]) - 2 * (len(widths) - 1), 10)
    widths[-1] = min(widths[-1], room)

    def line(cells: Sequence[str]) -> str:
        parts = [
            fit(cell, size).ljust(size) if i in left else fit(cell, size).rjust(size)
            for i, (cell, size) in enumerate(zip(cells, widths, strict=True))
        ]
        return " " * indent + "  ".join(parts).rstrip()

    rule = " " * indent + "  ".join("-" * size for size in widths)
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def printable(text: str) -> str:
    """`text` without what a terminal would obey: control characters, line ends and marks of direction as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode() for c in text)


def fit(text: str, size: int) -> str:
    """`text`, cut to `size` characters with an ellipsis."""
    return text if len(text) <= size else text[: max(size - 3, 0)].rstrip() + "..."


def share(value: float) -> str:
    """A share of all rows as a percentage with three significant digits."""
    return "0%" if value == 0 else f"{100 * value:.3g}%"


def rate(per_second: float | None) -> str:
    """Things per second, with three significant digits."""
    if per_second is None:
        return MISSING
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def duration(seconds: float) -> str:
    """A time as people write it."""
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} us"
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def size(count: float) -> str:
    """A number of bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def print_json(value: Any) -> None:
    """One JSON document on standard output; numpy arrays and numbers become lists and numbers."""
    print(json.dumps(value, default=_plain, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return str(value)
