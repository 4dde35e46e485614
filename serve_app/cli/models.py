"""``models`` lists the registry and what is here of it; ``fetch`` brings what is missing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve_app.cli import CommandError

if TYPE_CHECKING:
    from serve_app.core.measurements import Measurements
    from serve_app.core.settings import GraphSettings
    from serve_app.models.registry import ModelSpec, Registry
    from serve_app.models.weights import WeightStore

_FIGURES = {"encode_ms", "decode_ms", "cold_start_s", "memory_bytes", "quality", "agreement"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parsers of ``models`` and ``fetch``."""
    config_help = "a Ray Serve config file of this project (default: configs/local.yaml)"
    models = subparsers.add_parser("models", help="list the models, their state and their use")
    models.add_argument("--config", type=Path, help=config_help)
    models.add_argument("--json", action="store_true", help="print JSON")
    models.set_defaults(run=run_models)
    fetch = subparsers.add_parser("fetch", help="fetch and verify weights")
    fetch.add_argument("names", nargs="*", metavar="NAME", help="models (default: the config's)")
    fetch.add_argument("--all", action="store_true", help="every model of the registry")
    fetch.add_argument("--config", type=Path, help=config_help)
    fetch.set_defaults(run=run_fetch)


def run_models(args: argparse.Namespace) -> int:
    """Print the registry as a table or as JSON; returns 0."""
    from serve_app.cli.configuration import load_plans, used_models

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
        print(f"warning: {text}", file=sys.stderr)
    if args.json:
        print(json.dumps(list(rows.values()), indent=2))
    else:
        _print_table(list(rows.values()))
        if any(figures["state"] == "valid" for figures in measured):
            _print_ledger(measured)
    return 0


def run_fetch(args: argparse.Namespace) -> int:
    """Fetch and verify models; returns 1 if one of them could not be had."""
    missing = fetch_models(args.config, args.names, args.all)
    if missing:
        print(f"error: not all weights are here; missing: {', '.join(missing)}", file=sys.stderr)
    return 1 if missing else 0


def fetch_models(
    config: Path | None, wanted: Sequence[str] = (), everything: bool = False
) -> list[str]:
    """Fetch and verify ``wanted`` models, or those of the config; answers those not to be had."""
    from serve_app.cli.configuration import load_settings, used_models

    failed: list[str] = []
    for settings in load_settings(config):
        registry, store = open_models(settings)
        names = list(registry.models) if everything else wanted or list(used_models(settings))
        specs = {name: _spec(registry, name) for name in names}
        failed += [name for name, spec in specs.items() if not _fetch(name, spec, store)]
    return failed


def _fetch(name: str, spec: ModelSpec, store: WeightStore) -> bool:
    from serve_app.core.errors import WeightsUnavailable
    from serve_app.models.weights import SourcesFailed

    try:
        paths = store.ensure(name, spec, progress=sys.stderr.isatty())
    except WeightsUnavailable as exc:
        if isinstance(exc.__cause__, SourcesFailed):
            print(f"{name}: no source gave the pinned file", file=sys.stderr)
            for attempt in exc.__cause__.attempts:
                tried = f"  {attempt.file} from {attempt.source}: {attempt.reason}"
                print(tried, file=sys.stderr)
        else:
            print(f"{name}: {exc}", file=sys.stderr)
        return False
    print(f"{name}: verified, {_megabytes(spec.size)} in {_folder(list(paths.values()))}")
    return True


def open_models(settings: GraphSettings) -> tuple[Registry, WeightStore]:
    """The registry and the weights of a configuration.

    Raises:
        CommandError: the registry cannot be used.
    """
    from serve_app.models.quantized import open_registry
    from serve_app.models.registry import RegistryError
    from serve_app.models.weights import WeightStore

    # Whoever types "fetch" wants to fetch: ``offline`` is for the graph's replicas.
    store = WeightStore(Path(settings.weights_dir) if settings.weights_dir else None)
    try:
        return open_registry(settings.registry, store.root), store
    except RegistryError as exc:
        raise CommandError(str(exc)) from exc


def _spec(registry: Registry, name: str) -> ModelSpec:
    from serve_app.models.registry import RegistryError

    try:
        return registry.get(name)
    except RegistryError as exc:
        raise CommandError(str(exc)) from exc


def _row(name: str, spec: ModelSpec, store: WeightStore) -> dict[str, Any]:
    row = store.describe(name, spec, verify=True)
    paths = [state.path for state in store.state(name, spec) if state.path is not None]
    if paths:
        row["where"] = str(_folder(paths))
    else:
        row["where"] = ", ".join(s.label for s in next(iter(spec.files.values())).sources)
    row["used_by"] = []
    row["ledger"] = []
    return row


def _figures(variant: str, loaded: Measurements) -> dict[str, Any]:
    """What the ledger says of a variant, or why it says nothing."""
    entry = loaded.entries.get(variant)
    if entry is None:
        return {"variant": variant, "state": f"ignored: {loaded.ignored[variant]}"}
    return {
        "variant": variant,
        "state": "valid",
        "dominated_by": loaded.dominated.get(variant),
        **entry.model_dump(mode="json", include=_FIGURES),
    }


def _folder(paths: list[Path]) -> Path:
    """The folder of a model's files; of a model of one file, the file."""
    return paths[0] if len(paths) == 1 else min((path.parent for path in paths), key=_depth)


def _depth(path: Path) -> int:
    return len(path.parts)


def _print_table(rows: list[dict[str, Any]]) -> None:
    header = ("model", "family", "licence", "size", "state", "used by", "where")
    table = [header] + [
        (
            row["model"],
            row["family"],
            row["license"],
            _megabytes(row["bytes"]) if row["bytes"] else "-",
            row["state"],
            ", ".join(row["used_by"]) or "-",
            row["where"],
        )
        for row in rows
    ]
    _print_columns(table)


def _print_ledger(measured: Sequence[dict[str, Any]]) -> None:
    header = ("variant", "encode ms", "decode ms", "cold start", "memory", "IoU box", "IoU point")
    table = [(*header, "dominated by", "state")]
    for row in measured:
        if row["state"] != "valid":
            table.append((row["variant"], *["-"] * 7, row["state"]))
            continue
        quality = (row["quality"].get(kind) for kind in ("box", "point"))
        table.append(
            (
                row["variant"],
                *(f"{_of_one(row[half]):,.0f}" for half in ("encode_ms", "decode_ms")),
                f"{row['cold_start_s']['value']:.1f} s",
                _megabytes(row["memory_bytes"]),
                *(f"{share['value']:.3f}" if share else "-" for share in quality),
                row["dominated_by"] or "-",
                row["state"],
            )
        )
    print()
    _print_columns(table)


def _of_one(table: dict[int, dict[str, float]]) -> float:
    """The time of the smallest measured pass: of one item, unless sizes were chosen otherwise."""
    return table[min(table)]["value"]


def _print_columns(table: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
