"""The story of captree on real data: ``captree demo``.

Builds a tree of WordNet synsets, asks it for a meaning, compares exact, approximate and brute force, writes training
pairs and plots. Everything it prints is computed while it runs.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TextIO

import numpy as np
from numpy.typing import NDArray

import captree
from captree import plot
from captree.cli import _brute, bench
from captree.cli import _text as text
from captree.cli._files import write_table
from captree.cli.build import depth_table
from captree.data import Texts, wordnet
from captree.errors import InternalError, InvalidParameterError, MissingDependencyError, StorageError

MARK = "demo.json"
OUTPUTS = ("words.captree", "words.txt", "queries.parquet", "pairs", "plots")
WIDTH = 100
PHRASE = "small birds"
BOUNDS = (0.4, 0.5, 0.6, 0.8)
OTHERS = ("things you sit on", "a feeling of regret", "stringed musical instruments", "volcanic rock", "sweet desserts")


def run(out: str | Path = "demo-out", quick: bool = False, progress: bool = True, stream: TextIO | None = None) -> None:
    """Tells the story on `stream` (standard output) and leaves what it makes in the folder `out`.

    Args:
        out: a folder: new, empty, or that of an earlier demo, whose files are replaced.
        quick: a fifth of the rows and a tenth of the pairs.
        progress: show progress on standard error.
        stream: where the text goes.

    Raises
    ------
        MissingDependencyError: pyarrow or matplotlib is not installed; the message has the line that installs them.
        InvalidParameterError: `out` holds files that no demo wrote.
        InternalError: an answer differs from brute force.
    """
    missing = [name for name in ("pyarrow", "matplotlib") if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"the demo needs {' and '.join(missing)}: pip install 'captree[plot]'")
    folder = Path(out)
    _prepare(folder)
    _Story(folder, quick, progress, stream or sys.stdout).tell()


def _prepare(folder: Path) -> None:
    """Makes the folder, or clears that of an earlier demo; nobody else's files are touched."""
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder}: expected a folder, got a file")
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise InvalidParameterError(f"{folder}: expected an empty folder or that of an earlier demo, got other files")
    folder.mkdir(parents=True, exist_ok=True)
    for name in OUTPUTS:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class _Story:
    """The chapters, and what they hand on to each other."""

    def __init__(self, folder: Path, quick: bool, progress: bool, stream: TextIO) -> None:
        self.folder = folder
        self.quick = quick
        self.progress = progress
        self.stream = stream
        self.bold = bool(getattr(stream, "isatty", lambda: False)())
        self.began = time.perf_counter()
        self.data: Texts
        self.tree: captree.Tree

    def tell(self) -> None:
        """All chapters."""
        (self.folder / MARK).write_text(json.dumps({"captree": captree.__version__, "quick": self.quick}) + "\n")
        self.load()
        self.build()
        self.ask()
        self.compare()
        self.fairness()
        self.pairs()
        self.plots()
        self.end()

    def say(self, *paragraphs: str) -> None:
        """Paragraphs, filled to the width of the page."""
        for paragraph in paragraphs:
            self.print(textwrap.fill(" ".join(paragraph.split()), text.width(WIDTH)) + "\n")

    def print(self, lines: str = "") -> None:
        """Lines as they are, each cut to the width of the page."""
        for line in lines.split("\n"):
            self.stream.write(text.fit(line, text.width(WIDTH)) + "\n")
        self.stream.flush()

    def heading(self, title: str) -> None:
        """A chapter's title."""
        rule = "-" * len(title)
        self.print(f"\n\x1b[1m{title}\x1b[0m\n{rule}\n" if self.bold else f"\n{title}\n{rule}\n")

    def texts(self, rows: NDArray[np.int64] | Sequence[int], indent: int = 4) -> None:
        """The texts of rows as a list."""
        for row in rows:
            self.print(" " * indent + self.data.texts[int(row)])

    def load(self) -> None:
        """The data."""
        self.data = data = wordnet(6_000 if self.quick else None)
        n, d = data.vectors.shape
        self.heading("The data")
        self.say(
            f"""{n:,} words of WordNet with their definitions. A sentence encoder (all-MiniLM-L6-v2) has turned each
            into a unit vector of {d} numbers, such that texts of like meaning point in like directions."""
        )
        self.texts([int(share * n) for share in (0.06, 0.21, 0.45, 0.62, 0.83)])

    def build(self) -> None:
        """The tree."""
        path = self.folder / "words.captree"
        self.heading("1. Build a tree")
        self.print('    tree = captree.build(vectors, out="words.captree")\n')
        began = time.perf_counter()
        self.tree = tree = captree.build(self.data.vectors, out=path, progress=self.progress)
        built = time.perf_counter() - began
        began = time.perf_counter()
        self.tree = tree = captree.open(path)
        opened = time.perf_counter() - began
        stats = tree.stats()
        self.say(
            f"""Built and saved in {text.duration(built)}, opened again by memory map in {text.duration(opened)}.
            {text.size(stats["bytes"])} on disk, of which {text.size(stats["vector_bytes"])} are the vectors.""",
            """Every node is a spherical cap that holds all rows below it: a center, and the largest cosine distance
            of its rows as its bound.""",
        )
        self.print(depth_table(tree))
        (self.folder / "words.txt").write_text("\n".join(self.data.texts) + "\n", encoding="utf-8")
        write_table(
            str(self.folder / "queries.parquet"), {"text": self.data.queries, "center": self.data.query_centers}
        )

    def ask(self) -> None:
        """How many, which, and a fair draw."""
        tree, center = self.tree, self.data.query(PHRASE)
        caps = captree.Caps(np.repeat(center, len(BOUNDS), axis=0), BOUNDS)
        counts, about = tree.count(caps), tree.estimate(caps, seed=0)
        self.heading(f'2. Ask for "{PHRASE}"')
        self.say(
            f"""The same encoder turns the phrase "{PHRASE}" into a direction. A query is a cap around it. How many
            rows lie within this distance? The count is exact; the estimate looks at 4,096 random rows only and
            comes with a 95% interval."""
        )
        lines = [
            [
                f"{bound:g}",
                f"{counts[i]:,}",
                text.share(counts[i] / len(tree)),
                f"{about.count[i]:,.0f}",
                f"{about.low[i]:,} to {about.high[i]:,}",
            ]
            for i, bound in enumerate(BOUNDS)
        ]
        header = ["max cos distance", "rows inside", "of all", "estimate", "95% interval"]
        self.print(text.table(header, lines, indent=4, most=WIDTH))
        self.print("\nWhich? The nearest ones:\n")
        self.texts(tree.nearest(center, 5).rows[0])
        self.print("\nAnd a fair random draw, every row inside being equally likely:")
        drawn = tree.sample(caps, k=4, replace=False, seed=7)
        for bound, rows in zip(BOUNDS, drawn, strict=True):
            self.print(f"\n  within {bound:g}")
            self.texts(rows[rows >= 0])
        self.print("\nOne draw within 0.55 of some other phrases:\n")
        caps = captree.Caps(np.concatenate([self.data.query(phrase) for phrase in OTHERS]), 0.55)
        for phrase, row in zip(OTHERS, tree.sample(caps, seed=3)[:, 0], strict=True):
            self.print(f"    {phrase:<28}  {self.data.texts[row] if row >= 0 else '(nothing there)'}")

    def compare(self) -> None:
        """Times, and answers equal to brute force."""
        self.heading("3. Exact, approximate, brute force")
        self.say(
            """Random caps as used for training: the center lies on the arc between two random rows, the bound is
            random. Speed is in caps per second, by the share of rows inside; "approximate" is the two-stage scheme
            that estimates densities at the root's children; "numpy scan" is a float32 matrix product over all rows."""
        )
        found = bench.measure(self.tree, 400 if self.quick else 1500, seconds=0.05 if self.quick else 0.25)
        self.print(bench.table(found, indent=4))
        caps = captree.training_caps(self.tree, 300, seed=1)
        counts = self.tree.count(caps)
        truth, _ = _brute.count(self.tree, caps.centers, caps.max_cos_distance)
        if not np.array_equal(counts, truth):
            raise InternalError(f"{int((counts != truth).sum())} of 300 counts differ from brute force")
        self.print()
        self.say(
            f"""Answers: {found.counts_checked + len(caps):,} counts compared with brute force in exact arithmetic, all
            equal. {found.draws_checked:,} draws, all inside their caps."""
        )

    def fairness(self) -> None:
        """Total variation from uniform, beside the floor that chance sets."""
        calls, k = (40, 500) if self.quick else (200, 1000)
        cap = captree.Caps(self.data.query(PHRASE), 0.6)
        rows = np.sort(self.tree.search(cap, distances=None).rows)
        total = calls * k
        self.heading("4. Is the draw fair?")
        self.say(
            f"""The cap of {len(rows):,} rows within 0.6 of "{PHRASE}", asked {calls} times for {k:,} draws. How far
            are the {total:,} draws from uniform? Total variation is 0 for exactly uniform frequencies and 1 for
            disjoint ones; even a perfect draw shows some by chance, which is the last line."""
        )
        rng = np.random.default_rng(0)
        fair = rng.multinomial(total, np.full(len(rows), 1 / len(rows)), size=20)
        lines = []
        methods: tuple[Literal["exact", "approximate"], ...] = ("exact", "approximate")
        for method in methods:
            drawn = [self.tree.sample(cap, k=k, method=method, seed=call)[0] for call in range(calls)]
            hits = np.bincount(np.searchsorted(rows, np.concatenate(drawn)), minlength=len(rows))
            one = np.mean([np.unique(part).size for part in drawn])
            lines.append([method, f"{_variation(hits):.4f}", f"{int((hits == 0).sum())}", f"{one:,.0f}"])
        floor = np.mean([_variation(hits) for hits in fair])
        distinct = len(rows) * (1 - (1 - 1 / len(rows)) ** k)
        lines.append(["a perfect draw", f"{floor:.4f}", f"{np.mean((fair == 0).sum(axis=1)):.0f}", f"{distinct:,.0f}"])
        header = ["method", "total variation", "rows never drawn", "distinct rows in one call"]
        self.print(text.table(header, lines, left=(0,), indent=4, most=WIDTH))

    def pairs(self) -> None:
        """Training pairs."""
        n = 10_000 if self.quick else 100_000
        self.heading("5. Write training pairs")
        self.say(f"""{n:,} pairs of a random cap and a random row inside it, as Parquet.""")
        self.print(f'    captree.write_pairs(tree, "pairs", n={n:_})\n')
        report = captree.write_pairs(self.tree, self.folder / "pairs", n, seed=0, progress=self.progress)
        self.say(
            f"""{report.pairs:,} pairs in {text.duration(report.seconds)}; {report.empty_caps:,} of
            {report.caps_drawn:,} caps were empty and were drawn again. A few of them, the center told by the row
            nearest to it:"""
        )
        import pyarrow.parquet as pq

        table = pq.read_table(report.files[0]).slice(0, 400)
        bounds = table["max_cos_distance"].to_numpy()
        some = np.argsort(bounds, kind="stable")[[8, 40, 100, 180, 300]]
        centers = np.array(table["center"].to_pylist(), dtype=np.float32)[some]
        nearest = self.tree.nearest(centers, 1).rows[:, 0]
        lines = [
            [_word(self.data.texts[near]), f"{bounds[i]:.2f}", self.data.texts[table["row"][int(i)].as_py()]]
            for i, near in zip(some, nearest, strict=True)
        ]
        self.print(text.table(["center near", "bound", "row drawn"], lines, left=(0, 2), indent=4, most=WIDTH))

    def plots(self) -> None:
        """Pictures."""
        self.heading("6. Plots")
        folder = self.folder / "plots"
        folder.mkdir()
        caps = captree.training_caps(self.tree, 2000, seed=0)
        plot.save(plot.draw_tree(self.tree), folder / "tree.png")
        plot.save(plot.draw_selectivity(self.tree, caps), folder / "selectivity.png")
        plot.save(plot.draw_map(self.tree, self.data.texts), folder / "map.png")
        self.say(
            """The shape of the tree, the selectivity of 2,000 training caps, and a map of the root's children, each
            called by the row nearest to its center."""
        )

    def end(self) -> None:
        """What is there now, and what to try."""
        out = self.folder
        self.heading("What was written")
        about = {
            "words.captree": "the tree",
            "words.txt": "the text of every row",
            "queries.parquet": f"{len(self.data.queries)} embedded phrases to ask for",
            "pairs/": "training pairs",
            "plots/": "tree.png, selectivity.png, map.png",
        }
        for name, what in about.items():
            self.print(f"    {out / name!s:<28}  {what}")
        self.heading("Try next")
        tree, words, queries = (
            shlex.quote(str(out / name)) for name in ("words.captree", "words.txt", "queries.parquet")
        )
        commands = [
            f"captree count {tree} {queries} -d 0.5",
            f"captree sample {tree} {queries} -d 0.5 -k 3 --texts {words}",
            f"captree search {tree} --row 0 -d 0.6 --sort --limit 10 --texts {words}",
            f"captree info {tree}",
        ]
        self.stream.write("".join(f"    {command}\n" for command in commands))  # never cut: they are to be copied
        self.print(f"\n{text.duration(time.perf_counter() - self.began)} in all.")


def _variation(hits: NDArray[np.int64]) -> float:
    """Total variation between frequencies and the uniform distribution."""
    return 0.5 * float(np.abs(hits / hits.sum() - 1 / len(hits)).sum())


def _word(line: str) -> str:
    return text.fit(line.split(":")[0].split(",")[0], 24)
