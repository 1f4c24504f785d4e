"""The report of the study of rendered scenes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from ..common import percent
from ..reporting import (
    Cell,
    Records,
    all_seeds,
    arm_cells,
    bullets,
    cost_table,
    findings,
    finished,
    plot_rates,
    pooled,
    provenance_points,
    rate_table,
    seed_range,
    seed_shares,
    seeds_of,
    write_figures,
)
from .captions import NAMES

if TYPE_CHECKING:
    from .study import ScenesConfig

GROUPS = {
    "full": "Prompts of all four attributes (held-out combinations)",
    "pair": "Prompts of shape and color (held-out wordings)",
    "image": "Images as prompts (nothing was trained on them)",
}


def write_report(records: Records, config: ScenesConfig) -> None:
    """Writes README.md, figures.json and the plots into ``config.report`` from the stages that are there."""
    config.report.mkdir(parents=True, exist_ok=True)
    cells = arm_cells(records)
    reference = records["reference"]["result"]["cells"]
    write_figures(config.report / "figures.json", records, asdict(config))
    parts = ["# Rendered scenes: does a sample obey the prompt?\n", findings(config.report), _setup(records, config)]
    for group, title in GROUPS.items():
        parts.append(f"## {title}\n")
        if config.plots:
            perfect = [_share(reference, group, mass, "obeyed") for mass in config.masses]
            plot_rates(
                config.report / f"obeyed-{group}.png",
                cells,
                "obeyed",
                group,
                config.guidances,
                config.masses,
                f"Samples that obey the whole prompt, by the pixels ({group})",
                {"training images in the cap": perfect},
            )
            parts.append(f"![obeyed](obeyed-{group}.png)\n")
        for guidance in config.guidances:
            parts.append(f"Share of samples that obey the *whole* prompt, guidance {guidance:g}:\n")
            parts.append(
                rate_table(cells, "obeyed", group, guidance, config.masses, _references(records, config, group)) + "\n"
            )
        parts.append(_attributes(cells, config, group))
        parts.append("In-cap rate (by the given encoder), guidance 3:\n".replace("3", f"{config.guidances[-1]:g}"))
        extra = {
            "ceiling: training images in the cap, reconstructed": _reference_line(
                records, config, group, "in_cap_reconstructed"
            )
        }
        parts.append(rate_table(cells, "in_cap", group, config.guidances[-1], config.masses, extra) + "\n")
    held = config.masses[1], config.masses[min(2, len(config.masses) - 1)]
    parts.append(
        f"## Grids\n\nSeed {_first_seeds(records)}, guidance {config.guidances[-1]:g}; caps hold {held[0]:g} of the "
        f"images for full prompts, {held[1]:g} for pairs.\n"
    )
    for path in sorted((config.report / "grids").glob("*.png")):
        parts.append(f"- [{path.stem}](grids/{path.name})")
    parts.append("\n## Cost\n\n" + cost_table(records) + "\n")
    (config.report / "README.md").write_text("\n".join(parts).rstrip() + "\n")


def _setup(records: Records, config: ScenesConfig) -> str:
    reader, encoder = records["reader"]["result"], records["encoder"]["result"]
    tokenizer, prompts = records["tokenizer"]["result"], records["prompts"]["result"]
    full, pair = encoder["retrieval_full"], encoder["retrieval_pair"]
    run = config.run
    again = tokenizer["reader"]
    generators = [record["result"] for name, record in records.items() if name.startswith("train-")]
    size = f"{generators[0]['parameters'] / 1e6:.2f}M parameters, " if generators else ""
    shares = zip(NAMES, again["by_attribute"], strict=True)
    by_attribute = ", ".join(f"{name} {100 * value / again['n']:.1f}%" for name, value in shares)
    seeds = ", ".join(f"{arm} {len(of_arm)}" for arm, of_arm in seeds_of(records).items())
    points = [
        *provenance_points(records, "scenes"),
        f"""scenes: one shape of 4, 6 colors, 2 sizes, 5 places = 240 combinations on 32x32 pixels, with jitter
        of gray level,
        hue, place, size and angle that no caption names; {config.images:,} in each half""",
        f"""the given encoder: an open_clip model trained on one half with captions ({prompts["captions"]:,}
        different ones);
        {prompts["held_out_combinations"]} combinations are in none of its images or captions. Of 4,000 fresh
        scenes, the 10 nearest to a prompt obey it in {percent(full["obeyed"], full["n"])}% (full prompts,
        all held out) and {percent(pair["obeyed"], pair["n"])}% (pairs)""",
        f"""the reader of the pixels is right on {percent(reader["obeyed"], reader["n"])}% of fresh scenes, and on
        {percent(again["obeyed"], again["n"])}% of the tokenizer's reconstructions: **the ceiling of every rate
        by pixels below** (by attribute: {by_attribute})""",
        f"""the tokenizer: FSQ, 8x8 tokens of 1,000, {tokenizer["psnr"]:.1f} dB on held-out scenes; it and the
        generators saw
        only the other half's pictures, no captions""",
        f"""each generator: {size}{run.steps} steps of {run.batch_size} images; caps hold a log-uniform share
        of 0.0005 to 1 of
        the images, except the uniform caps, whose center needs the bound first: 95% U[0, 1], 5% U[1, 2]""",
        """each prompt's cap holds the given share ("mass") of the generator's images; all arms are judged by
        the same caps.
        An arm of own embeddings takes no bound, so one set of samples fills its line""",
        f"intervals in brackets: 95% Wilson over samples, the seeds together (trainings: {seeds})",
    ]
    if len(all_seeds(records)) > 1:
        points.append(
            """a share is the mean over the seeds; in parentheses the least and the greatest of them. A seed is one
            training of the generator and its own draws and samples; prompts, encoder, tokenizer and second stage are
            the same for all"""
        )
    return f"## What was done\n\n{bullets(points)}\n"


def _first_seeds(records: Records) -> str:
    """The lowest seed of the arms, which their grids are of; all of them where arms differ."""
    return " or ".join(map(str, sorted({of_arm[0] for of_arm in seeds_of(records).values()})))


def _references(records: Records, config: ScenesConfig, group: str) -> dict[str, list[str]]:
    lines = {
        "training images in the cap: a perfect model": _reference_line(records, config, group, "obeyed"),
        "the same, reconstructed by the tokenizer": _reference_line(records, config, group, "obeyed_reconstructed"),
    }
    free = [
        record["result"]["unconditional"][group]
        for name, record in records.items()
        if name.startswith("arm-") and group in record["result"]["unconditional"]
    ]
    if free:
        share = sum(free) / len(free)
        lines["unconditional samples"] = [f"{100 * share:.1f}"] * len(config.masses)
    return lines


def _reference_line(records: Records, config: ScenesConfig, group: str, key: str) -> list[str]:
    cells = records["reference"]["result"]["cells"]
    found = [pooled(cells, key, group=group, mass=mass) for mass in config.masses]
    return [percent(int(sum_), n) for sum_, n in found]


def _share(cells: list[Cell], group: str, mass: float, key: str) -> float:
    sum_, n = pooled(cells, key, group=group, mass=mass)
    return sum_ / max(n, 1)


def _attributes(cells: list[Cell], config: ScenesConfig, group: str) -> str:
    mass = config.masses[1] if group != "pair" else config.masses[min(2, len(config.masses) - 1)]
    guidance = config.guidances[-1]
    lines = [
        f"By attribute, mass {mass:g}, guidance {guidance:g} (% of samples; what is not named counts as obeyed):\n",
        "| | " + " | ".join(NAMES) + " | unreadable |",
        "|---|" + "---|" * (len(NAMES) + 1),
    ]
    for arm in finished(cells):
        chosen = [
            {**cell, **dict(zip(NAMES, cell["by_attribute"], strict=True))}
            for cell in cells
            if (cell["arm"], cell["group"], cell["mass"], cell["guidance"]) == (arm, group, mass, guidance)
        ]
        shown = [f"{100 * _share(chosen, group, mass, key):.1f}" for key in (*NAMES, "unreadable")]
        spread = [seed_range(seed_shares(chosen, key)) for key in (*NAMES, "unreadable")]
        lines.append(f"| {arm} | " + " | ".join(map("".join, zip(shown, spread, strict=True))) + " |")
    return "\n".join(lines) + "\n"
