"""Runs the examples of README.md and docs/*.md, so that what a reader copies works; checks the links of all documents.

The blocks of one file share a folder and a namespace and run from top to bottom:

- ```python: executed; a block with `>>>` prompts is a doctest and its output is compared.
- ```console: every line that starts with `$ captree` or `$ python` is run in a shell, and what follows it is compared
  with what is printed, unless nothing follows. Other commands (git, pip, make) are not run.
- `...` in expected output stands for any text.
- `<!-- setup ... -->` holds Python that is run but not shown.
- `<!-- skip: reason -->` before a block leaves it out; `<!-- needs: module -->` does where the module is missing.
"""

import doctest
import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECORDS = ROOT / "benches" / "record"
COLUMNS = 120


def documents() -> list[Path]:
    """Every Markdown file of the repository, but what programs left in hidden and ignored folders."""
    folders = [ROOT / name for name in ("benches", "captree-core", "docs", "genmodel", "python", "tests", "tools")]
    pages = [*ROOT.glob("*.md"), *(page for folder in folders for page in folder.rglob("*.md"))]
    ignored = {"out", "build", "dist", "node_modules"}
    return sorted(
        page
        for page in pages
        if not any(part in ignored or part.startswith(".") for part in page.relative_to(ROOT).parts)
    )


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


BLOCK = re.compile(
    r"^(?:<!--\s*(?P<mark>skip|needs):\s*(?P<why>[^>]*?)\s*-->\n+)?^```(?P<kind>\w+)[^\n]*\n(?P<code>.*?)^```$"
    r"|^<!--\s*setup\n(?P<setup>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)
COMMAND = re.compile(r"^\$ (?P<command>(?:[^\n]*\\\n)*[^\n]*)\n?(?P<expected>(?:(?!\$ )[^\n]*\n?)*)", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:)(?P<path>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")
DOCTEST_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Example:
    """One block of a page."""

    kind: str
    code: str
    line: int


def examples(page: Path) -> list[Example]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        missing = match["mark"] == "needs" and importlib.util.find_spec(match["why"]) is None
        if match["mark"] == "skip" or missing:
            continue
        kind, group = ("python", "setup") if match["setup"] is not None else (match["kind"], "code")
        found.append(Example(kind, match[group], text.count("\n", 0, match.start(group)) + 1))
    return found


def run_python(page: Path, example: Example, namespace: dict[str, object]) -> None:
    if ">>> " in example.code:
        test = doctest.DocTestParser().get_doctest(example.code, namespace, page.name, str(page), example.line - 1)
        report: list[str] = []
        runner = doctest.DocTestRunner(optionflags=DOCTEST_FLAGS)
        runner.run(test, out=report.append, clear_globs=False)
        assert runner.summarize(verbose=False).failed == 0, "".join(report)
        namespace.update(test.globs)
    else:
        # The leading newlines make a traceback name the line of the page.
        exec(compile("\n" * (example.line - 1) + example.code, str(page), "exec"), namespace)


def run_console(page: Path, example: Example, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    for match in COMMAND.finditer(example.code):
        command, expected = match["command"], match["expected"].rstrip("\n")
        if command.split()[0] not in ("captree", "python"):
            continue
        ran = subprocess.run(
            command,
            shell=True,
            cwd=folder,
            env={**os.environ, "PATH": path, "COLUMNS": "100"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        where = f"{page.name}:{example.line}: $ {command}"
        assert ran.returncode == 0, f"{where}\nexit status {ran.returncode}\n{ran.stdout}{ran.stderr}"
        same = doctest.OutputChecker().check_output(expected + "\n", ran.stdout + "\n", DOCTEST_FLAGS)
        assert not expected or same, f"{where}\nexpected:\n{expected}\n\nprinted:\n{ran.stdout}"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", FILES, ids=lambda page: page.name)
def test_examples(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for example in examples(page):
        if example.kind == "python":
            run_python(page, example, namespace)
        elif example.kind == "console":
            run_console(page, example, tmp_path)


def prose(page: Path) -> str:
    """A page without its blocks of code; their lines are left empty, so that numbers of lines stay right."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^ *```.*?^ *```$", lambda block: "\n" * block[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+\s+(.*?)\s*$", prose(page), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        again = sum(re.fullmatch(re.escape(anchor) + r"(-\d+)?", other) is not None for other in found)
        found.append(f"{anchor}-{again}" if anchor in found else anchor)
    return set(found)


def broken_links(page: Path) -> list[str]:
    """Relative links of a page whose file, or whose heading, does not exist."""
    broken = []
    for match in LINK.finditer(prose(page)):
        target = (page.parent / match["path"]).resolve() if match["path"] else page
        lost = not target.exists()
        if match["anchor"] and not lost and target.suffix == ".md":
            lost = match["anchor"][1:] not in anchors(target)
        if lost:
            broken.append(f"{match['path']}{match['anchor'] or ''}")
    return broken


@pytest.mark.parametrize("page", documents(), ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    other = "# One\n\n## Same\n\n## Same\n\n```text\n# Not a heading\n```\n"
    (tmp_path / "other.md").write_text(other, encoding="utf-8")
    good = ["other.md", "other.md#one", "other.md#same-1", "#here", "https://example.org/nothing#there"]
    bad = ["missing.md", "other.md#two", "other.md#same-2", "other.md#not-a-heading", "#there"]
    links = "\n".join(f"- [link]({target})" for target in good + bad)
    page.write_text(f"# Here\n\n{links}\n\n```text\n[code](missing.md)\n```\n", encoding="utf-8")
    assert broken_links(page) == bad


def is_too_long(line: str) -> bool:
    """Whether a line of prose should have been wrapped; tables, pictures and quoted licences are left as they are."""
    return len(line) > COLUMNS and not line.lstrip().startswith(("|", "![", ">"))


@pytest.mark.parametrize("page", [page for page in documents() if RECORDS not in page.parents], ids=name_of)
def test_lines_have_at_most_120_columns(page: Path) -> None:
    lines = prose(page).splitlines()
    assert [number for number, line in enumerate(lines, start=1) if is_too_long(line)] == []
