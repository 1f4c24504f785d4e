"""Rules about the Rust sources that rustfmt and clippy do not check."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "captree-core" / "src"
FILES = sorted(
    [*SOURCES.rglob("*.rs"), *(ROOT / "captree-core" / "tests").glob("*.rs"), *(ROOT / "benches").glob("*.rs")]
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_lines_have_at_most_120_columns_comments_too(file: Path) -> None:
    lines = enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
    assert [number for number, line in lines if len(line) > 120] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_safety_comments_give_a_reason(file: Path) -> None:
    assert re.findall(r"SAFETY: (?:forwarded|as for)[^\n]*", file.read_text(encoding="utf-8"), re.IGNORECASE) == []


def rooms() -> dict[str, set[str]]:
    """Each top-level module of the core with the others that it names outside of its tests."""
    uses: dict[str, set[str]] = {}
    for file in sorted(SOURCES.rglob("*.rs")):
        parts = file.relative_to(SOURCES).with_suffix("").parts
        if "tests" in parts or parts == ("lib",):
            continue
        code = re.sub(r"//[^\n]*", "", file.read_text(encoding="utf-8")).split("#[cfg(test)]")[0]
        named = set(re.findall(r"\bcrate::([a-z_0-9]+)", code))
        uses.setdefault(parts[0], set()).update(named - {parts[0]})
    return uses


def cycle(uses: dict[str, set[str]]) -> list[str]:
    """Modules that name each other in a circle, or nothing."""
    done: set[str] = set()

    def walk(room: str, path: list[str]) -> list[str]:
        if room in path:
            return [*path[path.index(room) :], room]
        if room in done:
            return []
        for other in sorted(uses.get(room, ())):
            if found := walk(other, [*path, room]):
                return found
        done.add(room)
        return []

    return next((found for room in sorted(uses) if (found := walk(room, []))), [])


def test_imports_of_the_core_point_one_way() -> None:
    uses = rooms()
    assert {"store", "tree", "build", "scan", "query", "sample"} <= set(uses)
    assert cycle(uses) == []
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
