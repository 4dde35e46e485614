"""``models``: the registry, which weights are on this machine, and what was measured."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve_app.cli import log, text_table
from serve_app.cli.configuration import load_plans, open_models, used_models
from serve_app.core.measurements import Measurements
from serve_app.models.registry import ModelSpec
from serve_app.models.weights import WeightStore

_FIGURES = {"encode_ms", "decode_ms", "cold_start_s", "memory_bytes", "quality", "agreement"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="Serve config (default: configs/local.yaml)")
    add("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the registry as a table or as JSON."""
    rows: dict[str, dict[str, Any]] = {}
    measured: list[dict[str, Any]] = []
    warnings: list[str] = []
    for plan in load_plans(args.config):
        settings, loaded = plan.settings, plan.measurements
        _, store = open_models(settings)
        uses = used_models(settings)
        for name, spec in plan.registry.models.items():
            row = rows.setdefault(name, _row(name, spec, store))
            row["used_by"] += [use for use in uses.get(name, []) if use not in row["used_by"]]
        warnings += [text for text in plan.warnings if text not in warnings]
        for variant, chosen in settings.variants.items():
            figures = _figures(variant, loaded)
            measured.append(figures)
            if chosen.model in rows:
                rows[chosen.model]["ledger"].append(figures)
    for text in warnings:
        log(f"warning: {text}")
    if args.json:
        print(json.dumps(list(rows.values()), indent=2))
    else:
        print(_model_table(list(rows.values())))
        if any(figures["state"] == "valid" for figures in measured):
            print(f"\n{_measurement_table(measured)}")
    return 0


def _row(name: str, spec: ModelSpec, store: WeightStore) -> dict[str, Any]:
    paths = [state.path for state in store.state(name, spec) if state.path is not None]
    sources = ", ".join(source.label for source in next(iter(spec.files.values())).sources)
    return {
        **store.describe(name, spec, verify=True),
        "where": str(folder_of(paths)) if paths else sources,
        "used_by": [],
        "ledger": [],
    }


def _figures(variant: str, loaded: Measurements) -> dict[str, Any]:
    """A variant's measurements, or why there are none."""
    entry = loaded.entries.get(variant)
    if entry is None:
        return {"variant": variant, "state": f"ignored: {loaded.ignored[variant]}"}
    return {
        "variant": variant,
        "state": "valid",
        "dominated_by": loaded.dominated.get(variant),
        **entry.model_dump(mode="json", include=_FIGURES),
    }


def folder_of(paths: list[Path]) -> Path:
    """The folder of a model's files; of a model of one file, the file."""
    if len(paths) == 1:
        return paths[0]
    return min((path.parent for path in paths), key=lambda path: len(path.parts))


def _model_table(rows: list[dict[str, Any]]) -> str:
    head = ("model", "family", "licence", "size", "state", "used by", "where")
    table = []
    for row in rows:
        size = megabytes(row["bytes"]) if row["bytes"] else "-"
        uses = ", ".join(row["used_by"]) or "-"
        named = row["model"], row["family"], row["license"]
        table.append((*named, size, row["state"], uses, row["where"]))
    return text_table(head, table)


def _measurement_table(measured: Sequence[dict[str, Any]]) -> str:
    head = (
        "variant", "encode ms", "decode ms", "cold start", "memory", "IoU box", "IoU point",
        "dominated by", "state",
    )  # fmt: skip
    table: list[Sequence[str]] = []
    for row in measured:
        if row["state"] != "valid":
            table.append((row["variant"], *["-"] * 7, row["state"]))
            continue
        # The smallest measured passes: of one item, unless sizes were chosen otherwise.
        passes = (row[half][min(row[half])]["value"] for half in ("encode_ms", "decode_ms"))
        quality = (row["quality"].get(kind) for kind in ("box", "point"))
        table.append(
            (
                row["variant"],
                *(f"{ms:,.0f}" for ms in passes),
                f"{row['cold_start_s']['value']:.1f} s",
                megabytes(row["memory_bytes"]),
                *(f"{share['value']:.3f}" if share else "-" for share in quality),
                row["dominated_by"] or "-",
                row["state"],
            )
        )
    return text_table(head, table)


def megabytes(size: int) -> str:
    """Such as ``40.7 MB``."""
    return f"{size / 1e6:,.1f} MB"
