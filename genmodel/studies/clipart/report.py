"""The report of the study of clip art."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from ..common import percent
from ..reporting import (
    Records,
    arm_cells,
    bullets,
    cost_table,
    findings,
    mean_table,
    plot_rates,
    pooled,
    provenance_points,
    rate_table,
    write_figures,
)

if TYPE_CHECKING:
    from .study import ClipartConfig

GROUPS = {
    "image": "Caps around pictures that nothing was trained on",
    "text": "Caps around texts that are in no caption",
}


def write_report(records: Records, config: ClipartConfig) -> None:
    """Writes README.md, figures.json and the plots into ``config.report`` from the stages that are there."""
    config.report.mkdir(parents=True, exist_ok=True)
    cells = arm_cells(records)
    write_figures(config.report / "figures.json", records, asdict(config))
    parts = ["# Clip art: in-cap rate and CLIP score\n", findings(config.report), _setup(records, config)]
    for group, title in GROUPS.items():
        parts.append(f"## {title}\n")
        ceiling = _reference(records, config, group, "in_cap_reconstructed")
        if config.plots:
            lines = {
                "ceiling: training images, reconstructed": [sum_ / max(n, 1) for sum_, n in ceiling],
                "unconditional": _free(records, config, group, "in_cap_share"),
            }
            plot_rates(
                config.report / f"in-cap-{group}.png",
                cells,
                "in_cap",
                group,
                config.guidances,
                config.masses,
                f"In-cap rate ({group})",
                lines,
            )
            parts.append(f"![in-cap rate](in-cap-{group}.png)\n")
        rates = {
            "ceiling: training images in the cap, reconstructed": [percent(int(sum_), n) for sum_, n in ceiling],
            "unconditional samples": [f"{100 * share:.1f}" for share in _free(records, config, group, "in_cap_share")],
            "mean bound (max_cos_distance)": [f"{bound:.2f}" for bound in _bounds(records, config, group)],
        }
        cosine = {
            "training images in the cap": _means(records, config, group, "cosine_sum"),
            "the same, reconstructed": _means(records, config, group, "cosine_sum_reconstructed"),
            "unconditional samples": [f"{value:.3f}" for value in _free(records, config, group, "cosine")],
        }
        for guidance in config.guidances:
            parts.append(f"In-cap rate in percent, guidance {guidance:g}:\n")
            parts.append(rate_table(cells, "in_cap", group, guidance, config.masses, rates) + "\n")
        for guidance in config.guidances:
            parts.append(
                f"CLIP score (mean cosine with the prompt, by the given encoder; ± is 95% over the prompts), "
                f"guidance {guidance:g}:\n"
            )
            table = mean_table(cells, "cosine_sum", group, guidance, config.masses, cosine, "cosine_error")
            parts.append(table + "\n")
    parts += _reranked(records, config) + _second_judge(records, config)
    parts.append(
        f"## Grids\n\nGuidance {config.guidances[-1]:g}, caps of {config.masses[0]:g} of the pictures; "
        "*best of* are the reranked.\n"
    )
    for path in sorted((config.report / "grids").glob("*.png")):
        parts.append(f"### {path.stem}\n\n![{path.stem}](grids/{path.name})\n")
    parts.append("## Cost\n\n" + cost_table(records) + "\n")
    (config.report / "README.md").write_text("\n".join(parts).rstrip() + "\n")


def _reranked(records: Records, config: ClipartConfig) -> list[str]:
    """Texts once more, with the best of some candidates; empty where that was not asked for."""
    cells = arm_cells(records, "reranked")
    if not cells:
        return []
    guidance, masses = config.guidances[-1], config.masses
    return [
        f"## Texts, the best of {config.best_of}\n",
        f"""Of every {config.best_of} samples the one nearest to the prompt is kept. The encoder that ranks them is the
one that judges, so this says what reranking buys by its own measure; the next section has another's.
""",
        f"In-cap rate in percent, guidance {guidance:g}:\n",
        rate_table(cells, "in_cap", "text", guidance, masses, {}) + "\n",
        f"CLIP score, guidance {guidance:g}:\n",
        mean_table(cells, "cosine_sum", "text", guidance, masses, {}, "cosine_error") + "\n",
    ]


def _second_judge(records: Records, config: ClipartConfig) -> list[str]:
    """Texts by the second encoder, as drawn and reranked by the first."""
    result = records["judge"]["result"]
    guidance, masses, recall = config.guidances[-1], config.masses, result["recall"]
    reference = [pooled(result["cells"], "second_in_cap", mass=mass) for mass in masses]
    means = [pooled(result["cells"], "second_cosine_sum", mass=mass) for mass in masses]
    shares = ", ".join(f"{100 * recall[k] / recall['n']:.0f}% at {k}" for k in ("1", "5", "10"))
    made = "training images in the first's cap, reconstructed"
    parts = [
        "## Texts, by a second encoder\n",
        f"""Trained in the same way from the captions of the generators' own half, which nothing else reads; it had no
part in the training, the prompts or the choice of a sample. (The frozen text tower is the same.) Its caps are its own
and hold the same shares of the pictures. Recall: {shares}; pairs: {result["pair_cosine"]:.3f}.
""",
    ]
    for part, title in (("cells", "as drawn"), ("reranked", f"the best of {config.best_of} by the first encoder")):
        cells = arm_cells(records, part)
        if not cells:
            continue
        ceiling = {made: [percent(int(sum_), n) for sum_, n in reference]}
        mean = {made: [f"{sum_ / n:.3f}" for sum_, n in means]}
        parts += [
            f"In-cap rate in percent, guidance {guidance:g}, {title}:\n",
            rate_table(cells, "second_in_cap", "text", guidance, masses, ceiling) + "\n",
            f"CLIP score, guidance {guidance:g}, {title}:\n",
            mean_table(cells, "second_cosine_sum", "text", guidance, masses, mean, "second_cosine_error") + "\n",
        ]
    return parts


def _setup(records: Records, config: ClipartConfig) -> str:
    rows, encoder = records["prompts"]["result"]["rows"], records["encoder"]["result"]
    tokenizer, run = records["tokenizer"]["result"], config.run
    recall = encoder["recall"]
    fidelity = records["reference"]["result"]["cells"][0]["fidelity"]
    generators = [record["result"] for name, record in records.items() if name.startswith("train-")]
    size = f"{generators[0]['parameters'] / 1e6:.1f}M parameters, " if generators else ""
    shares = ", ".join(f"{100 * recall[k] / recall['n']:.0f}% at {k}" for k in ("1", "5", "10"))
    points = [
        *provenance_points(records, "clipart"),
        f"""{rows["encoder"]:,} pictures with captions for the given encoder, {rows["generator"]:,}
        {"others" if config.encoder_share <= 0.5 else "(among them some of the encoder's)"} without for tokenizer and
        generators, {rows["test"]} for tests; `tools/make_clipart.py` makes the table""",
        f"""the given encoder: open_clip, all-MiniLM-L6-v2 as the frozen text tower and a convolutional image
        tower of our own
        training. Text -> image recall on {recall["n"]} unseen pictures: {shares} (chance 0.2, 1, 2). Such a
        picture and its own caption have a mean cosine of {encoder["pair_cosine"]:.3f}, any picture and any caption
        {encoder["other_cosine"]:.3f}; the loss's scale ended at {encoder["scale"]:g}""",
        f"""the tokenizer: FSQ, 8x8 tokens of 1,000, {tokenizer["psnr"]:.1f} dB on held-out pictures. A picture
        and its
        reconstruction have a mean cosine of {fidelity:.3f} by the encoder, which bounds all rates below""",
        f"each generator: {size}{run.steps} steps of {run.batch_size} pictures",
        f"""{len(records["prompts"]["result"]["prompts"])} texts, {config.samples_per_prompt} samples each, and
        {config.image_prompts} pictures, one sample each; intervals are 95% Wilson over samples""",
        """all but the tables of the second encoder is judged by the encoder that also steers; the study of rendered
        scenes reads the pixels instead""",
    ]
    return f"## What was done\n\n{bullets(points)}\n"


def _reference(records: Records, config: ClipartConfig, group: str, key: str) -> list[tuple[float, int]]:
    cells = records["reference"]["result"]["cells"]
    return [pooled(cells, key, group=group, mass=mass) for mass in config.masses]


def _means(records: Records, config: ClipartConfig, group: str, key: str) -> list[str]:
    return [f"{sum_ / max(n, 1):.3f}" for sum_, n in _reference(records, config, group, key)]


def _bounds(records: Records, config: ClipartConfig, group: str) -> list[float]:
    cells = records["reference"]["result"]["cells"]
    return [
        next(cell["max_cos_distance"] for cell in cells if (cell["group"], cell["mass"]) == (group, mass))
        for mass in config.masses
    ]


def _free(records: Records, config: ClipartConfig, group: str, key: str) -> list[float]:
    """The mean over the arms' unconditional samples, by mass."""
    found = []
    for mass in config.masses:
        values = [
            cell[key]
            for name, record in records.items()
            if name.startswith("arm-")
            for cell in record["result"]["unconditional"]
            if (cell["group"], cell["mass"]) == (group, mass)
        ]
        found.append(sum(values) / max(len(values), 1))
    return found
