"""Runs the examples of README.md and docs/*.md, so that what a reader copies works.

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


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+\s+(.*?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*FILES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for match in LINK.finditer(text):
        target = (page.parent / match["path"]).resolve() if match["path"] else page
        assert target.exists(), f"{page.name} links to {match['path']}, which does not exist"
        if match["anchor"] and target.suffix == ".md":
            assert match["anchor"][1:] in anchors(target), (
                f"{page.name}: no heading for {match['path']}{match['anchor']}"
            )
