"""A report as Markdown and as a picture."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

from serve_tools.bench.rows import Compared, Report, Row, Section, Spread, compared
from serve_tools.markdown import markdown_table

_OURS, _OTHERS = "#1b6ca8", "#c0504d"


def markdown(report: Report) -> str:
    """The machine, and a table for each section."""
    machine = report.machine
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    gpus = f", {', '.join(machine.gpus)}" if machine.gpus else ""
    lines = [
        f"Machine: {machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB{gpus}; "
        f"{machine.system}; {machine.threads} threads a model.",
        "",
        f"Versions: {versions}.",
        "",
    ]
    for section in report.sections:
        lines += [_section(section), ""]
    return "\n".join(lines)


def _section(section: Section) -> str:
    quick = ", --quick" if section.quick else ""
    head = ["", "system", "figure", "range", "ours is better by", "of the floor", "what dominates"]
    rows = []
    last = ""
    for found in compared(section.rows):
        rows.append(_cells(found, found.row.case if found.row.case != last else ""))
        last = found.row.case
    parts = [
        f"### {section.key}: {section.title}",
        f"{section.at}, {section.seconds:.0f} s{quick}",
        markdown_table(head, rows, left=2, right=1),
        *section.notes,
    ]
    return "\n\n".join(parts)


def _cells(found: Compared, case: str) -> list[str]:
    row = found.row
    figure = row.figure
    share = row.of_floor
    return [
        case,
        f"**{row.system}**" if row.ours else row.system,
        f"{_number(figure.median)} {row.unit}",
        f"{_number(figure.low)} – {_number(figure.high)}" if len(row.rounds) > 1 else "",
        "" if found.ours_is_better is None else _times(found.ours_is_better),
        "" if share is None else f"{share:.0%}",
        "; ".join(part for part in (row.dominates, _details(row)) if part),
    ]


def _times(better: Spread) -> str:
    median, low, high = better
    return f"{median:.2f} × ({low:.2f} – {high:.2f})"


def _details(row: Row) -> str:
    if "p50_ms" not in row.details:
        return ""
    failures = int(row.details.get("failures", 0))
    failed = f", {failures} failed" if failures else ""
    return f"p50 {row.details['p50_ms']:.0f} ms, p95 {row.details['p95_ms']:.0f} ms{failed}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plot(path: Path, report: Report) -> None:
    """How many times better the first of ours is than each other row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = {s.key: found for s in report.sections if (found := _bars(s))}
    if not shown:
        return
    heights = [0.6 + 0.26 * len(found) for found in shown.values()]
    figure, axes = plt.subplots(
        len(shown), 1, figsize=(9, sum(heights) + 0.6), squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    titles = {section.key: f"{section.key}: {section.title}" for section in report.sections}
    for axis, (key, found) in zip(axes[:, 0], shown.items(), strict=True):
        _draw(axis, titles[key], found)
    axes[-1][0].set_xlabel("ours is better by (times, logarithmic; line: range of the rounds)")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _bars(section: Section) -> list[tuple[str, Spread, bool]]:
    return [
        (f"{row.case} | {row.system}", better, row.ours)
        for row, better in compared(section.rows)
        if better is not None and better.low > 0 and isfinite(better.high)
    ]


def _draw(axis: Any, title: str, bars: list[tuple[str, Spread, bool]]) -> None:
    places = range(len(bars), 0, -1)
    medians = [better.median for _, better, _ in bars]
    lows = [better.median - better.low for _, better, _ in bars]
    highs = [better.high - better.median for _, better, _ in bars]
    colours = [_OURS if ours else _OTHERS for *_, ours in bars]
    axis.barh(places, medians, xerr=(lows, highs), color=colours, height=0.7, capsize=2)
    axis.set_xscale("log")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(places, [label for label, *_ in bars], fontsize=7)
    axis.tick_params(axis="x", labelsize=7)
    axis.set_title(title, fontsize=9, loc="left")
    for place, median in zip(places, medians, strict=True):
        axis.annotate(f" {median:.1f}", (median, place), fontsize=7, va="center")
