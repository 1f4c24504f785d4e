"""The tables, the plot and the record of a run."""

import json
from pathlib import Path
from typing import Any

from benches.compare.peers import OPERATIONS

Results = list[dict[str, Any]]


def table(header: list[str], lines: list[list[str]]) -> str:
    """A markdown table, numbers to the right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])


def origin(record: dict[str, Any]) -> str:
    """Where a record was made, and by what."""
    machine = record["machine"]
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}; "
        f"commit {record['commit']}; `{record['command']}`"
    )


def save(record: dict[str, Any], text: str, folder: Path, name: str) -> None:
    """Write a record and its markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text)


def rate(value: float) -> str:
    """Three significant digits and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def group_names(results: Results) -> list[str]:
    """Groups in the order in which they were measured."""
    return list(dict.fromkeys(timing["group"] for result in results for timing in result["timings"]))


def speeds(results: Results, operation: str) -> str:
    """Queries per second of every peer, all caps and decade by decade; the last columns say how right they were."""
    timed = {r["peer"]: [t for t in r["timings"] if t["operation"] == operation] for r in results}
    groups = [g for g in group_names(results) if any(t["group"] == g for ts in timed.values() for t in ts)]
    judged = list(dict.fromkeys(key for ts in timed.values() for t in ts for key in t["judged"]))
    lines = []
    for peer, timings in timed.items():
        if not timings:
            continue
        by_group = {t["group"]: t for t in timings}
        line = [peer, *(rate(by_group[g]["per_second"]) if g in by_group else "" for g in groups)]
        for key in judged:
            # Each decade counts by its share of the caps, whatever number of them was timed.
            parts = [t for t in timings if key in t["judged"] and (t["group"] != "all" or len(timings) == 1)]
            whole = sum(t["share"] for t in parts)
            mean = sum(t["judged"][key] * t["share"] for t in parts) / whole if whole else float("nan")
            line.append(f"{mean:.4f}")
        lines.append(line)
    return table(["per second", *groups, *(key.replace("_", " ") for key in judged)], lines) if lines else ""


def costs(results: Results) -> str:
    lines = [[r["peer"], f"{r['build_seconds']:.1f}", f"{r['memory_bytes'] / 2**20:,.0f}", r["note"]] for r in results]
    return table(["peer", "build s", "memory MiB", "settings"], lines)


def uniformity(results: Results) -> str:
    lines = []
    for result in results:
        for s in result["samplers"]:
            numbers = [
                s["total_variation"],
                s["noise_floor"],
                s["duplicate_rate"],
                s["fair_duplicate_rate"],
                s["outside"],
            ]
            lines.append(
                [result["peer"], s["how"], str(s["rows"]), f"{s['draws']:.0f}", *(f"{x:.4f}" for x in numbers)]
            )
    header = [
        "sampler",
        "drawn in",
        "rows in cap",
        "draws",
        "total variation",
        "of fair draws",
        "duplicates",
        "of fair draws",
        "outside",
    ]
    return table(header, lines) if lines else ""


def ratios(results: Results, base: str = "numpy") -> str:
    """How many times as fast as `base` captree is, by operation and group."""
    by_peer = {r["peer"]: {(t["operation"], t["group"]): t["per_second"] for t in r["timings"]} for r in results}
    if base not in by_peer or "captree" not in by_peer:
        return ""
    lines = []
    groups = group_names(results)
    for operation in OPERATIONS:
        pairs = [(by_peer["captree"].get((operation, g)), by_peer[base].get((operation, g))) for g in groups]
        if any(a and b for a, b in pairs):
            lines.append([operation, *(f"{a / b:.1f}x" if a and b else "" for a, b in pairs)])
    return table([f"captree / {base}", *groups], lines)


def markdown(record: dict[str, Any]) -> str:
    """The whole report."""
    results: Results = record["results"]
    parts = [
        f"# {record['rows']:,} x {record['dim']}, {record['data']}, {record['threads']} threads",
        origin(record),
        ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        "Queries per second, by the share of all rows that a cap holds.",
    ]
    for operation in OPERATIONS:
        body = speeds(results, operation)
        if body:
            parts += [f"## {operation}", body]
    for title, body in [
        ("captree over numpy", ratios(results)),
        ("Build and memory", costs(results)),
        ("Samplers: repeated single draws from one cap", uniformity(results)),
    ]:
        if body:
            parts += [f"## {title}", body]
    left_out = [f"- {r['peer']}: {op}: {why}" for r in results for op, why in r["unsupported"].items()]
    left_out += [f"- {line}" for line in record["left_out"]]
    if left_out:
        parts += ["## Not measured", "\n".join(left_out)]
    return "\n\n".join(parts) + "\n"


def plot(record: dict[str, Any], path: Path) -> None:
    """Queries per second by decade of selectivity, one panel for each operation."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    results: Results = record["results"]
    groups = [g for g in group_names(results) if g != "all"]
    shown = [
        op
        for op in OPERATIONS
        if any(t["operation"] == op and t["group"] != "all" for r in results for t in r["timings"])
    ]
    if not shown:
        return
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(5 * columns, 3.6 * lines), squeeze=False)
    colors = plt.get_cmap("tab20")
    for axis, operation in zip(axes.flat, shown, strict=False):
        for i, result in enumerate(results):
            points = {t["group"]: t["per_second"] for t in result["timings"] if t["operation"] == operation}
            at = [j for j, group in enumerate(groups) if group in points]
            width = 2.5 if result["peer"] == "captree" else 1.2
            axis.plot(
                at, [points[groups[j]] for j in at], "o-", ms=3, lw=width, color=colors(i % 20), label=result["peer"]
            )
        axis.set(yscale="log", title=operation)
        axis.set_xticks(range(len(groups)), groups, rotation=30, ha="right", fontsize=8)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for row in axes:
        row[0].set_ylabel("queries per second")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    what = f"{record['rows']:,} x {record['dim']} {record['data']}, {record['threads']} threads"
    figure.suptitle(f"{what}; rows of the cap / all rows", fontsize=10)
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(record: dict[str, Any], folder: Path, name: str) -> str:
    """Write the three files and return the markdown."""
    text = markdown(record)
    save(record, text, folder, name)
    plot(record, folder / f"{name}.png")
    return text
