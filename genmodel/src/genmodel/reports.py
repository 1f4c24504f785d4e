"""The files of an evaluation: a table to read, JSON to compute with, plots to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmodel.errors import MissingDependencyError

__all__ = ["markdown", "plot_in_cap", "plot_nearest", "write"]

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito
_GREY, _INK = "#8c8c8c", "#333333"


def write(out: Path, report: dict[str, Any], sets: dict[str, NDArray[np.float32]], plots: bool = True) -> None:
    """Writes report.json and report.md to `out`, and in_cap.png and nearest.png where matplotlib is.

    Args:
        out: the folder; made if missing.
        report: of :func:`genmodel.evaluate.evaluate`.
        sets: embeddings (m, d) by name; only their nearest distances in the report are drawn.
        plots: draw them.

    Raises:
        MissingDependencyError: plots without matplotlib.
    """
    out.mkdir(parents=True, exist_ok=True)
    _replace(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    _replace(out / "report.md", markdown(report))
    if not plots:
        return
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "the report is written, but plots need matplotlib: pip install 'genmodel[evaluate]'"
        ) from error
    for name in ("images", "texts"):
        if report[name]:
            plot_in_cap(out / f"in_cap_{name}.png", report[name], name)
    plot_nearest(out / "nearest.png", report["nearest"])


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    model, parts = report["model"], []
    parts.append(
        f"# Evaluation of {report['settings']['checkpoint']}\n\n"
        f"{model['parameters']:,} parameters, trained on {model['training_rows']:,} images; "
        f"encoder {model['encoder']}, tokenizer {model['tokenizer']}; "
        f"{model['images_per_second']:.2f} images/s unconditionally, {report['seconds']:.0f} s in all. "
        "Brackets are 95% Wilson intervals."
    )
    parts.append(f"## Caps around real images ({model['real']})\n\n" + _in_cap_table(report["images"], texts=False))
    if report["texts"]:
        parts.append("## Caps around texts\n\n" + _in_cap_table(report["texts"], texts=True))
    parts.append(
        "*Data*: share of the training images in the cap. *Unconditional*: samples of the null cap. *Ceiling*: real "
        "images drawn from the cap, through the tokenizer and embedded again; a perfect model scores this."
    )
    parts.append(_distribution(report["distribution"]))
    parts.append(_nearest(report["nearest"]))
    facts = report["tokenizer"]
    parts.append(
        f"## Tokenizer\n\nThe embedding of a real image and that of its reconstruction have a mean cosine of "
        f"{facts['mean_cosine']:.3f} (n = {facts['n']}; distances at 5/50/95%: "
        + ", ".join(f"{value:.3f}" for value in facts["distance_quantiles"].values())
        + ")."
    )
    return "\n\n".join(parts) + "\n"


def _in_cap_table(lines: list[dict[str, Any]], texts: bool) -> str:
    head = ["cap", "mean bound", "guidance", "n", "in cap", "unconditional", "data", "ceiling", "cosine"]
    if texts:
        head += [
            f"{what}: {of}" for what in ("CLIP score", "right text") for of in ("samples", "unconditional", "ceiling")
        ]
    rows = []
    for line in lines:
        made, free, top = line["samples"], line["unconditional"], line["ceiling"]
        cells = [
            f"mass {line['mass']:g}" if "mass" in line else f"max_cos_distance {line['max_cos_distance']:g}",
            f"{line['mean_max_cos_distance']:.3f}",
            f"{line['guidance']:g}",
            str(made["in_cap"]["n"]),
            _rate(made["in_cap"]),
            _rate(free["in_cap"]),
            f"{100 * line['data']:.1f}%",
            _rate(top and top["in_cap"]),
            f"{made['cosine']:.3f}",
        ]
        if texts:
            scores = [f"{part['clip_score']:.1f}" if part else "-" for part in (made, free, top)]
            cells += [*scores, *(_rate(part and part["accuracy"]) for part in (made, free, top))]
        rows.append(cells)
    return _table(head, rows)


def _distribution(found: dict[str, Any]) -> str:
    rows = [
        [name, f"{line['fid']:.4f}", f"{1000 * line['kid']['mean']:.2f} ± {1000 * line['kid']['std']:.2f}"]
        for name, line in found["lines"].items()
    ]
    return (
        f"## FID and KID in the encoder's space\n\n{found['n']} rows against {found['real']} training images. "
        f"The features are unit embeddings of the encoder, so these are not Inception FIDs; FID "
        "is biased at this size, which is why real images stand beside it.\n\n"
        + _table(["rows", "FID", "1000 KID"], rows)
    )


def _nearest(found: dict[str, Any]) -> str:
    limit = found["duplicate_distance"]
    rows = [
        [name, _rate(line["duplicates"]), *(f"{line['quantiles'][level]:.3f}" for level in ("0", "0.05", "0.5"))]
        for name, line in found["sets"].items()
    ]
    return (
        "## Nearest training image\n\nCosine distance of a sample's embedding to the nearest training image's (exact, "
        "by captree).\n\n" + _table(["samples", f"within {limit:g}", "least", "5%", "median"], rows)
    )


def plot_in_cap(path: Path, lines: list[dict[str, Any]], name: str) -> None:
    """In-cap rate against the bounds, with the unconditional rate, the data and the ceiling."""
    figure, axes = _figure()
    lines = sorted(lines, key=lambda line: line["mean_max_cos_distance"])
    for color, guidance in zip(_COLORS * 9, sorted({line["guidance"] for line in lines}), strict=False):
        mine = [line for line in lines if line["guidance"] == guidance]
        _curve(axes, mine, [line["samples"]["in_cap"] for line in mine], f"guidance {guidance:g}", color, "o-")
    one = lines[0]["guidance"]
    some = [line for line in lines if line["guidance"] == one]
    _curve(axes, some, [line["unconditional"]["in_cap"] for line in some], "unconditional", _GREY, "s--")
    whole = [line for line in some if line["ceiling"]]
    _curve(axes, whole, [line["ceiling"]["in_cap"] for line in whole], "ceiling (tokenizer)", _INK, "^:")
    x, data = [line["mean_max_cos_distance"] for line in some], [100 * line["data"] for line in some]
    axes.plot(x, data, "x:", color=_GREY, label="data")
    axes.set_xlabel("mean max_cos_distance")
    axes.set_ylabel("in the cap (%)")
    axes.set_ylim(0, 100)
    axes.set_title(f"Caps around {name}")
    axes.legend(frameon=False)
    _save(figure, path)


def plot_nearest(path: Path, found: dict[str, Any]) -> None:
    """Quantiles of the distance to the nearest training image, set by set."""
    names = list(found["sets"])
    figure, axes = _figure(height=1.2 + 0.32 * len(names))
    for place, name in enumerate(names):
        at = found["sets"][name]["quantiles"]
        axes.plot([at["0.05"], at["0.95"]], [place, place], color=_GREY, linewidth=1)
        axes.plot([at["0.25"], at["0.75"]], [place, place], color=_COLORS[0], linewidth=5, solid_capstyle="butt")
        axes.plot([at["0.5"]], [place], "o", color=_INK, markersize=4)
    axes.axvline(found["duplicate_distance"], color=_COLORS[1], linewidth=1, label="duplicates")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("cosine distance to the nearest training image (5, 25, 50, 75, 95%)")
    axes.legend(frameon=False)
    _save(figure, path)


def _curve(
    axes: Any, lines: list[dict[str, Any]], rates: list[dict[str, float]], label: str, color: str, style: str
) -> None:
    if not lines:
        return
    x = [line["mean_max_cos_distance"] for line in lines]
    value = np.array([rate["value"] for rate in rates])
    reach = np.array([[rate["value"] - rate["low"], rate["high"] - rate["value"]] for rate in rates]).T
    reach = 100 * np.maximum(reach, 0)
    axes.errorbar(x, 100 * value, reach, fmt=style, color=color, label=label, capsize=3, linewidth=1.5)


def _figure(width: float = 7.2, height: float = 4.4) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    beside = path.with_name(f".{path.name}.tmp")
    figure.savefig(beside, format="png", dpi=150)
    beside.replace(path)


def _rate(rate: dict[str, float] | None) -> str:
    if rate is None:
        return "-"
    return f"{100 * rate['value']:.1f}% [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
