"""Tables, plots and the JSON of a study's report."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .arms import ARMS
from .common import percent, wilson, write_json

Records = Mapping[str, Mapping[str, Any]]
Cell = dict[str, Any]


def arm_cells(records: Records, part: str = "cells") -> list[Cell]:
    """Every cell of every finished arm's `part`, with the arm's name and seed."""
    found = []
    for name, record in records.items():
        if name.startswith("arm-"):
            result = record["result"]
            found += [{"arm": result["arm"], "seed": result["seed"], **cell} for cell in result.get(part, [])]
    return found


def finished(cells: Sequence[Cell]) -> list[str]:
    """Names of the arms that have cells, in the order of the table."""
    there = {cell["arm"] for cell in cells}
    return [arm.name for arm in ARMS if arm.name in there]


def seeds_of(records: Records) -> dict[str, list[int]]:
    """Seeds of each arm's finished stages, ascending, by the arm's name, in the order of the table."""
    found = [record["result"] for name, record in records.items() if name.startswith("arm-")]
    seeds = {arm.name: sorted({result["seed"] for result in found if result["arm"] == arm.name}) for arm in ARMS}
    return {name: of_arm for name, of_arm in seeds.items() if of_arm}


def all_seeds(records: Records) -> list[int]:
    """Seeds of any arm's finished stages, ascending."""
    return sorted(set().union(*seeds_of(records).values()))


def is_lowest_seed(records: Records, arm: str, seed: int) -> bool:
    """Whether no lower seed of the arm is finished: pictures in a report are of the lowest."""
    return seed <= min(seeds_of(records).get(arm, [seed]))


def pooled(cells: Sequence[Cell], key: str, **where: Any) -> tuple[float, int]:
    """Sum of `key` and of n over the cells that match, seeds together."""
    chosen = [cell for cell in cells if all(cell.get(name) == value for name, value in where.items())]
    return sum(cell[key] for cell in chosen), sum(cell["n"] for cell in chosen)


def seed_shares(cells: Sequence[Cell], key: str, **where: Any) -> list[float]:
    """Share of `key` in n, a value for each seed that has matching cells, by seed."""
    seeds = sorted({cell["seed"] for cell in cells if all(cell.get(name) == value for name, value in where.items())})
    found = [pooled(cells, key, seed=seed, **where) for seed in seeds]
    return [sum_ / n for sum_, n in found if n]


def seed_range(shares: Sequence[float]) -> str:
    """The least and the greatest share in percent, such as ` (31-38)`; empty for fewer than two."""
    return f" ({100 * min(shares):.0f}-{100 * max(shares):.0f})" if len(shares) > 1 else ""


def rate_table(
    cells: Sequence[Cell],
    key: str,
    group: str,
    guidance: float,
    masses: Sequence[float],
    extra: Mapping[str, Sequence[str]],
) -> str:
    """Arms by mass: share of samples in percent with its 95% Wilson interval; `extra` are further lines, by name.

    Where an arm has several seeds the share is their mean; the least and the greatest follow in parentheses.
    """
    lines = [
        "| | " + " | ".join(f"mass {mass:g}" for mass in masses) + " |",
        "|---|" + "---|" * len(masses),
    ]
    for arm in finished(cells):
        shown = []
        for mass in masses:
            where = {"arm": arm, "group": group, "guidance": guidance, "mass": mass}
            sum_, n = pooled(cells, key, **where)
            shown.append(percent(int(sum_), n) + seed_range(seed_shares(cells, key, **where)))
        lines.append(f"| {arm} | " + " | ".join(shown) + " |")
    for name, values in extra.items():
        lines.append(f"| *{name}* | " + " | ".join(values) + " |")
    return "\n".join(lines)


def mean_table(
    cells: Sequence[Cell],
    key: str,
    group: str,
    guidance: float,
    masses: Sequence[float],
    extra: Mapping[str, Sequence[str]],
    error: str = "",
) -> str:
    """Arms by mass: the mean of a sum over samples, three digits, with its 95% interval where cells have an `error`.

    `error` names the standard error of a cell's mean. Over several seeds theirs is averaged, which is rather too wide.
    """
    lines = [
        "| | " + " | ".join(f"mass {mass:g}" for mass in masses) + " |",
        "|---|" + "---|" * len(masses),
    ]
    for arm in finished(cells):
        shown = []
        for mass in masses:
            where = {"arm": arm, "group": group, "guidance": guidance, "mass": mass}
            sum_, n = pooled(cells, key, **where)
            shown.append(f"{sum_ / n:.3f}{_half_width(cells, error, **where)}" if n else "-")
        lines.append(f"| {arm} | " + " | ".join(shown) + " |")
    for name, values in extra.items():
        lines.append(f"| *{name}* | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _half_width(cells: Sequence[Cell], error: str, **where: Any) -> str:
    chosen = [cell for cell in cells if error in cell and all(cell.get(name) == value for name, value in where.items())]
    return f" ±{1.96 * sum(cell[error] for cell in chosen) / len(chosen):.3f}" if chosen else ""


def plot_rates(
    path: Path,
    cells: Sequence[Cell],
    key: str,
    group: str,
    guidances: Sequence[float],
    masses: Sequence[float],
    title: str,
    lines: Mapping[str, Sequence[float]],
) -> None:
    """Share against mass, a panel per guidance, with Wilson intervals; `lines` are references."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(guidances), figsize=(5.2 * len(guidances), 4.2), sharey=True, squeeze=False)
    for axis, guidance in zip(axes[0], guidances, strict=True):
        for arm in finished(cells):
            found = [pooled(cells, key, arm=arm, group=group, guidance=guidance, mass=mass) for mass in masses]
            shares = [100 * sum_ / max(n, 1) for sum_, n in found]
            spans = [wilson(int(sum_), n) for sum_, n in found]
            error = [
                [max(0.0, share - 100 * low) for share, (low, _) in zip(shares, spans, strict=True)],
                [max(0.0, 100 * high - share) for share, (_, high) in zip(shares, spans, strict=True)],
            ]
            axis.errorbar(masses, shares, yerr=error, marker="o", markersize=3, linewidth=1.2, capsize=2, label=arm)
        for name, values in lines.items():
            axis.plot(masses, [100 * value for value in values], "--", color="gray", linewidth=1, label=name)
        axis.set(xscale="log", xlabel="share of the images in the cap", title=f"guidance {guidance:g}")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("% of samples")
    axes[0][-1].legend(fontsize=7)
    figure.suptitle(title)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def save_small(image: Any, path: Path) -> None:
    """Writes a picture as PNG of 128 colors, a fifth of the bytes: reports are committed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert("RGB").quantize(128).save(path, optimize=True)


def cost_table(records: Records) -> str:
    """CPU and wall seconds of every stage."""
    lines = ["| stage | CPU-s | wall s |", "|---|---|---|"]
    for name, record in sorted(records.items(), key=lambda item: _stage_order(item[0])):
        lines.append(f"| {name} | {record['cpu_seconds']:.0f} | {record['wall_seconds']:.0f} |")
    total = [sum(record[key] for record in records.values()) for key in ("cpu_seconds", "wall_seconds")]
    lines.append(f"| **all** | **{total[0]:.0f}** | **{total[1]:.0f}** |")
    return "\n".join(lines)


def bullets(points: Sequence[str]) -> str:
    """Points of a list, wrapped."""
    return "\n".join(
        textwrap.fill(
            " ".join(point.split()),
            width=116,
            initial_indent="- ",
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for point in points
    )


def provenance_points(records: Records, study: str) -> list[str]:
    """Commands, commit, seeds, versions and machine of the study "scenes" or "clipart".

    The seeds are those of the stages that are there: the flags of any one command need not name them all.
    """
    made = records["prompts"]["result"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    seeds = all_seeds(records)
    fewer = [f"{arm}: {_listed(of_arm)}" for arm, of_arm in seeds_of(records).items() if of_arm != seeds]
    apart = f" (but {'; '.join(fewer)})" if fewer else ""
    flags = f"--seeds {' '.join(map(str, seeds))}"
    return [
        f'command: `make study-{study} STUDY_FLAGS="{flags}"`; it goes on where it stopped',
        f"begun by `{made['command']}` at commit {made['commit']}"
        + (" with uncommitted changes" if made["changes"] else ""),
        f"seeds of the generators' trainings: {_listed(seeds)}{apart}; of all else 0",
        f"{made['machine']}, {made['threads']} thread; Python {made['python']}, {versions}",
    ]


def write_figures(path: Path, records: Records, settings: Mapping[str, Any]) -> None:
    """Everything the tables were made from, as JSON: the stages, the seeds they combine, and the settings.

    The settings are those of the last command, so its seeds, which may be some of several, are left out.
    """
    kept = {name: value for name, value in settings.items() if name != "seeds"}
    combined = {"seeds": all_seeds(records), "arms": seeds_of(records)}
    write_json(path, {"combined": combined, "settings": kept, "stages": dict(records)})


def findings(folder: Path) -> str:
    """What the figures mean, written by hand into `findings.md` after reading them; empty where there is none yet."""
    path = folder / "findings.md"
    return path.read_text().strip() + "\n\n" if path.is_file() else ""


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _stage_order(name: str) -> tuple[int, str]:
    first = ("prompts", "reader", "encoder", "images", "tokenizer", "encode", "second-stage", "reference", "judge")
    return (first.index(name), name) if name in first else (len(first) + name.startswith("arm-"), name)
