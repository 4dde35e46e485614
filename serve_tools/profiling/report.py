"""A ledger as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping

from serve_app.core.measurements import Figure, MeasurementsFile, VariantMeasurements, dominated
from serve_tools.markdown import markdown_table
from serve_tools.profiling.cascade import cascade_table


def markdown(ledger: MeasurementsFile) -> str:
    """All figures of a ledger with their intervals."""
    host, data = ledger.host, ledger.data
    versions = ", ".join(f"{name} {version}" for name, version in ledger.versions.items())
    gpus = f", {', '.join(host.gpus)}" if host.gpus else ""
    parts = [
        "# Ledger",
        f"{host.cpu}, {host.cores} cores{gpus}; {versions}.",
        "Times are medians, shares are means; in brackets 95 % intervals by bootstrap, over "
        "passes and over images.",
        _startup(ledger.entries),
        _passes(ledger.entries),
        f"## Quality\n\nOn {data.objects:,} objects in {data.images:,} images ({data.name}).",
        _quality(ledger.entries),
    ]
    profiles = {name: entry.profile for name, entry in ledger.entries.items()}
    for worse, better in dominated(profiles).items():
        parts.append(f"**{worse} is dominated by {better}**, which is faster and better.")
    for pair, rules in ledger.escalation.items():
        first, second = pair.split(">")
        if ledger.entries.keys() >= {first, second}:
            parts.append(cascade_table(first, second, rules, ledger.entries))
    return "\n\n".join(parts) + "\n"


def _startup(entries: Mapping[str, VariantMeasurements]) -> str:
    head = ["variant", "model", "on", "cold start s", "load s", "memory MB", "peak MB"]
    head += ["GPU MB", "embedding MB"]
    rows = [
        [
            name,
            entry.model,
            f"{entry.engine}, {entry.device}, {entry.dtype}, {entry.threads} threads",
            interval(entry.cold_start_s, ".1f"),
            interval(entry.load_s, ".1f"),
            *(
                _megabytes(size)
                for size in (
                    entry.memory_bytes,
                    entry.peak_memory_bytes,
                    entry.gpu_memory_bytes,
                    entry.embedding_bytes,
                )
            ),
        ]
        for name, entry in entries.items()
    ]
    return "## Start and memory\n\n" + markdown_table(head, rows, left=3)


def _passes(entries: Mapping[str, VariantMeasurements]) -> str:
    parts = []
    for title, tables in (
        ("encode ms by images in a pass", {n: e.encode_ms for n, e in entries.items()}),
        ("decode ms by prompts in a pass", {n: e.decode_ms for n, e in entries.items()}),
    ):
        sizes = sorted({size for table in tables.values() for size in table})
        rows = [
            [name, *(interval(table.get(size), ",.0f") for size in sizes)]
            for name, table in tables.items()
        ]
        parts += [f"## {title.capitalize()}", markdown_table(["variant", *map(str, sizes)], rows)]
    return "\n\n".join(parts)


def _quality(entries: Mapping[str, VariantMeasurements]) -> str:
    head = ["variant", "box IoU", "point IoU", "reference", "embedding cosine", "mask IoU with it"]
    rows = []
    for name, entry in entries.items():
        parity = entry.agreement
        rows.append(
            [
                name,
                interval(entry.quality.get("box"), ".3f"),
                interval(entry.quality.get("point"), ".3f"),
                parity.reference if parity else "–",
                interval(parity.embedding_cosine if parity else None, ".5f"),
                interval(parity.mask_iou if parity else None, ".5f"),
            ]
        )
    return markdown_table(head, rows)


def interval(figure: Figure | None, form: str) -> str:
    """Such as ``812 (790–850)``; a dash for nothing."""
    if figure is None:
        return "–"
    if figure.low is None or figure.high is None:
        return format(figure.value, form)
    return f"{figure.value:{form}} ({figure.low:{form}}–{figure.high:{form}})"


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:,.0f}"
