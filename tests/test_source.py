"""Rules about the sources that rustfmt, clippy, ruff and mypy do not check."""

from __future__ import annotations

import ast
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


PACKAGES = {"captree": ROOT / "python" / "captree", "genmodel": ROOT / "genmodel" / "src" / "genmodel"}


def module_name(file: Path, folder: Path, package: str) -> str:
    parts = file.relative_to(folder).with_suffix("").parts
    return ".".join((package, *(part for part in parts if part != "__init__")))


class _Imports(ast.NodeVisitor):
    """What a module imports when it runs, in its functions too; not what it imports for type checkers."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found.update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "imports are absolute"
        self.found.update(f"{node.module}.{alias.name}" for alias in node.names)


def python_imports(package: str, folder: Path) -> dict[str, set[str]]:
    """Each module of a package with those of the same package that it imports."""
    files = {module_name(file, folder, package): file for file in sorted(folder.rglob("*.py"))}
    uses = {}
    for name, file in files.items():
        visitor = _Imports()
        visitor.visit(ast.parse(file.read_text(encoding="utf-8")))
        # `from a.b import c` names the module a.b.c, or something in the module a.b.
        compiled = f"{package}._core"
        places = {place for place in visitor.found if not place.startswith(compiled)}
        named = {place if place in files else place.rpartition(".")[0] for place in places}
        uses[name] = (named & files.keys()) - {name}
    return uses


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_of_python_point_one_way(package: str) -> None:
    uses = python_imports(package, PACKAGES[package])
    assert len(uses) > 20
    assert sum(map(len, uses.values())) > 50
    assert cycle(uses) == []
