"""Pictures of a tree, with matplotlib: its shape, the selectivity of caps, a map of the root's children.

Every ``draw_`` function returns a ``matplotlib.figure.Figure`` of its own, made without pyplot: nothing global
changes, no window opens. :func:`save` writes it as PNG or SVG. Colours are those of Okabe and Ito and of the map
"cividis", which stay apart for colour-blind readers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from captree._caps import as_caps
from captree._tree import CapsLike, Tree
from captree.errors import InvalidParameterError, MissingDependencyError, StorageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

__all__ = ["decades", "draw_map", "draw_overview", "draw_selectivity", "draw_tree", "require_matplotlib", "save"]

BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#8c8c8c", "#333333"
DPI = 150
_WIDE = (9.6, 4.6)
_SQUARE = (9.6, 8.0)
_MOST_POINTS = 3000
_LABEL = 28
_LARGEST = 800.0


def require_matplotlib() -> None:
    """Raises MissingDependencyError, with the line that installs it, where matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("plots need matplotlib: pip install 'captree[plot]'") from error


def draw_tree(tree: Tree) -> Figure:
    """Rows and angular radius of the nodes, depth by depth."""
    figure = _figure(_WIDE)
    _fill_tree(figure, tree)
    return figure


def draw_selectivity(tree: Tree, caps: CapsLike, threads: int | None = None) -> Figure:
    """Share of caps by the share of rows inside them: a bar per decade, one apart for empty caps."""
    figure = _figure(_WIDE)
    _fill_selectivity(figure, tree, caps, threads)
    return figure


def draw_map(tree: Tree, texts: Sequence[str] | None = None) -> Figure:
    """The root's children on the plane of their centers' first two principal components.

    Area goes by rows, colour by bound. With `texts`, one per row of the tree, a child is called by the text of the row
    nearest to its center, up to the first comma or colon; names that would overlap one of a larger child are left out.
    """
    figure = _figure(_SQUARE)
    _fill_map(figure, tree, texts)
    return figure


def draw_overview(tree: Tree, caps: CapsLike, texts: Sequence[str] | None = None, threads: int | None = None) -> Figure:
    """The three pictures on one page."""
    figure = _figure((_WIDE[0], 2 * _WIDE[1] + _SQUARE[1]))
    top, middle, bottom = np.asarray(figure.subfigures(3, 1, height_ratios=[_WIDE[1], _WIDE[1], _SQUARE[1]]))
    _fill_tree(top, tree)
    _fill_selectivity(middle, tree, caps, threads)
    _fill_map(bottom, tree, texts)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Writes a figure as .png or .svg, by the ending of `path`, under a temporary name first."""
    from matplotlib import rc_context

    target = Path(path)
    if target.suffix not in (".png", ".svg"):
        raise InvalidParameterError(f"{target}: expected a file name that ends in .png or .svg")
    if not target.parent.is_dir():
        raise StorageError(f"{target}: there is no folder {target.parent}")
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        temporary = Path(folder) / target.name
        # Without the date and with fixed names of its parts, the same tree gives the same SVG.
        with rc_context({"svg.hashsalt": "captree"}):
            figure.savefig(temporary, dpi=DPI, metadata={"Date": None} if target.suffix == ".svg" else None)
        temporary.replace(target)


def decades(counts: NDArray[np.int64], rows: int) -> list[tuple[str, NDArray[np.int64]]]:
    """Names of the decades of selectivity, widest last, and which caps fall in each; the first is of empty caps.

    A decade holds its upper end: ``"1% - 10%"`` are the caps with more than 1% and at most 10% of all rows.
    """
    found = []
    upper, power = rows, 1
    while upper:
        lower = rows // 10 ** (2 - power)  # whole numbers: 10% of 30,000 rows is exactly 3,000
        found.append(
            (f"{_percent(power)} - {_percent(power + 1)}", np.flatnonzero((counts > lower) & (counts <= upper)))
        )
        upper, power = lower, power - 1
    return [("none", np.flatnonzero(counts == 0)), *reversed(found)]


def _percent(power: int) -> str:
    return np.format_float_positional(10.0**power, trim="-") + "%"


def _figure(size: tuple[float, float]) -> Figure:
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _tidy(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)


def _fill_tree(figure: FigureBase, tree: Tree) -> None:
    nodes = tree._core.nodes()
    depth, rows, leaf = nodes["depth"], nodes["rows"], nodes["first_child"] < 0
    angle = np.degrees(2.0 * np.arcsin(np.sqrt(np.clip(nodes["max_cos_distance"], 0.0, 2.0) / 2.0)))
    left, right = figure.subplots(1, 2)
    levels = range(int(depth.max()) + 1)
    for axes, values in ((left, rows), (right, angle)):
        for level in levels:
            _strip(axes, level, values, (depth == level) & ~leaf, BLUE)
            _strip(axes, level, values, (depth == level) & leaf, ORANGE)
            middle = np.median(values[depth == level])
            axes.hlines(middle, level - 0.36, level + 0.36, color=INK, linewidth=1.6, zorder=3)
        sizes = [int((depth == level).sum()) for level in levels]
        names = [
            f"{level}\n{size:,} {'node' if size == 1 else 'nodes'}" for level, size in zip(levels, sizes, strict=True)
        ]
        axes.set_xticks(list(levels), names)
        axes.set_xlim(-0.6, levels[-1] + 0.6)
        axes.set_xlabel("depth")
    left.set_yscale("log")
    left.set_ylabel("rows of a node")
    _tidy(left, f"{len(tree):,} rows in {len(depth):,} nodes")
    right.set_ylabel("angular radius of a node (degrees)")
    right.set_ylim(bottom=0)
    _tidy(right, "radii")
    for label, colour in (("inner nodes", BLUE), ("leaves", ORANGE)):
        right.scatter([], [], s=16, color=colour, label=label)
    right.plot([], [], color=INK, linewidth=1.6, label="median")
    right.legend(frameon=False, fontsize=9, loc="best")


def _strip(axes: Axes, level: int, values: NDArray[Any], chosen: NDArray[np.bool_], colour: str) -> None:
    """Values of one depth as dots beside each other, at most a few thousand of them."""
    places = np.flatnonzero(chosen)
    rng = np.random.default_rng(level)
    if places.size > _MOST_POINTS:
        places = rng.choice(places, _MOST_POINTS, replace=False)
    spread = rng.uniform(-0.3, 0.3, places.size) if places.size > 1 else np.zeros(places.size)
    size = 8 if places.size > 300 else 18
    axes.scatter(level + spread, values[places], s=size, color=colour, alpha=0.45, linewidths=0, zorder=2)


def _fill_selectivity(figure: FigureBase, tree: Tree, caps: CapsLike, threads: int | None) -> None:
    caps = as_caps(caps, tree.dim)
    if not len(caps):
        raise InvalidParameterError("expected at least one cap to draw")
    counts = tree.count(caps, threads=threads)
    groups = decades(counts, len(tree))
    shares = [100 * members.size / len(caps) for _, members in groups]
    axes = figure.subplots()
    bars = axes.bar(range(len(groups)), shares, width=0.8, color=[GREY] + [BLUE] * (len(groups) - 1))
    bars[0].set_hatch("//")
    bars[0].set_edgecolor("white")
    axes.bar_label(bars, [f"{share:.1f}%" if share else "" for share in shares], fontsize=9, color=INK, padding=2)
    axes.set_xticks(range(len(groups)), [name.replace(" - ", "\nto ") for name, _ in groups])
    axes.set_xlabel(f"rows inside, as a share of {len(tree):,}")
    axes.set_ylabel("share of caps (%)")
    axes.set_ylim(0, 1.12 * max(shares))
    _tidy(axes, f"selectivity of {len(caps):,} caps, {int((counts == 0).sum()):,} of them empty")


def _fill_map(figure: FigureBase, tree: Tree, texts: Sequence[str] | None) -> None:
    if texts is not None and len(texts) != len(tree):
        raise InvalidParameterError(f"expected {len(tree):,} texts, one per row, got {len(texts):,}")
    nodes = tree._core.nodes()
    children = np.flatnonzero(nodes["parent"] == 0)
    children = children if children.size else np.array([0])  # a small tree is all root
    children = children[np.argsort(-nodes["rows"][children], kind="stable")]
    centers, rows = nodes["center"][children], nodes["rows"][children]
    place, kept = _plane(centers)
    axes = figure.subplots()
    area = _LARGEST * rows / rows.max()
    dots = axes.scatter(
        place[:, 0],
        place[:, 1],
        s=area,
        c=nodes["max_cos_distance"][children],
        cmap="cividis",
        alpha=0.8,
        edgecolors="white",
        linewidths=0.8,
    )
    axes.margins(0.12)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second principal component")
    what = "children of the root" if children[0] else "the root, which has no children"
    _tidy(axes, f"{len(children):,} {what}; the plane shows {100 * kept:.0f}% of how their centers differ")
    axes.grid(False)
    figure.colorbar(dots, ax=axes, label="bound (max_cos_distance)", shrink=0.7, pad=0.02)
    for size in sorted({int(rows.max()), int(np.median(rows)), int(rows.min())}, reverse=True):
        axes.scatter([], [], s=_LARGEST * size / rows.max(), color="#bbbbbb", label=f"{size:,} rows")
    axes.legend(frameon=False, fontsize=9, labelspacing=1.6, loc="best", borderpad=1.2)
    if texts is not None:
        nearest = tree.nearest(_unit(centers), 1).rows[:, 0]
        _name(axes, place, np.sqrt(area / np.pi), [_first_word(texts[row]) for row in nearest])


def _plane(centers: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """(k, 2) coordinates on the first two principal axes, and the share of the variance they keep."""
    shifted = centers.astype(np.float64) - centers.astype(np.float64).mean(axis=0)
    _, values, axes = np.linalg.svd(shifted, full_matrices=False)
    axes = axes[:2] * np.where(axes[:2].sum(axis=1, keepdims=True) < 0, -1.0, 1.0)  # the signs are arbitrary: fix them
    place = shifted @ axes.T
    place = np.pad(place, ((0, 0), (0, 2 - place.shape[1])))
    energy = float((values**2).sum())
    return place, float((values[:2] ** 2).sum()) / energy if energy > 0 else 1.0


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    exact = vectors.astype(np.float64)
    return np.asarray(exact / np.linalg.norm(exact, axis=1, keepdims=True), dtype=np.float32)


def _first_word(text: str) -> str:
    word = " ".join(text.split(":")[0].split(",")[0].split())
    return word if len(word) <= _LABEL else word[: _LABEL - 3].rstrip() + "..."


def _name(axes: Axes, place: NDArray[np.float64], radii: NDArray[np.float64], names: list[str]) -> None:
    """Writes the names beside their dots of `radii` points, the first ones first; names that overlap are left out."""
    from matplotlib.patheffects import withStroke

    figure: Any = axes.figure.figure  # of a subfigure, the whole figure
    figure.draw_without_rendering()  # the constrained layout settles, so that pixels mean something
    taken: list[tuple[float, float, float, float]] = []
    points_per_pixel = 72.0 / figure.dpi
    dots = axes.transData.transform(place) * points_per_pixel
    for at, (x, y), radius, name in zip(place, dots, radii, names, strict=True):
        wide, high, away = 4.4 * len(name), 9.0, float(radius) + 1.5  # of 8-point text, in points
        sides = (((away, -3), "left"), ((-away, -3), "right"), ((0, away), "center"), ((0, -away - 7), "center"))
        for shift, align in sides:
            left = x + shift[0] - {"left": 0.0, "right": wide, "center": wide / 2}[align]
            box = (left, y + shift[1], left + wide, y + shift[1] + high)
            if not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
                taken.append(box)
                axes.annotate(
                    name,
                    (float(at[0]), float(at[1])),
                    xytext=shift,
                    textcoords="offset points",
                    ha=align,
                    fontsize=8,
                    color=INK,
                    parse_math=False,
                    path_effects=[withStroke(linewidth=2, foreground="white")],
                )
                break
