"""``models`` lists the registry and what is here of it; ``fetch`` brings what is missing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve_app.commands import CommandError

if TYPE_CHECKING:
    from serve_app.compute.weights import WeightStore
    from serve_app.domain.registry import ModelSpec, Registry
    from serve_app.domain.settings import GraphSettings


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
    from serve_app.commands.configuration import load_settings, used_models

    rows: dict[str, dict[str, Any]] = {}
    for settings in load_settings(args.config):
        registry, store = _open(settings)
        uses = used_models(settings)
        for name, spec in registry.models.items():
            row = rows.setdefault(name, _row(name, spec, store))
            row["used_by"] += [use for use in uses.get(name, []) if use not in row["used_by"]]
    if args.json:
        print(json.dumps(list(rows.values()), indent=2))
    else:
        _print_table(list(rows.values()))
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
    from serve_app.commands.configuration import load_settings, used_models

    failed: list[str] = []
    for settings in load_settings(config):
        registry, store = _open(settings)
        names = list(registry.models) if everything else wanted or list(used_models(settings))
        specs = {name: _spec(registry, name) for name in names}
        failed += [name for name, spec in specs.items() if not _fetch(name, spec, store)]
    return failed


def _fetch(name: str, spec: ModelSpec, store: WeightStore) -> bool:
    from serve_app.compute.weights import SourcesFailed
    from serve_app.domain.errors import WeightsUnavailable

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


def _open(settings: GraphSettings) -> tuple[Registry, WeightStore]:
    from serve_app.compute.weights import WeightStore
    from serve_app.domain.registry import RegistryError, load_registry

    try:
        registry = load_registry(Path(settings.registry) if settings.registry else None)
    except RegistryError as exc:
        raise CommandError(str(exc)) from exc
    root = Path(settings.weights_dir) if settings.weights_dir else None
    # Whoever types "fetch" wants to fetch: ``offline`` is for the graph's replicas.
    return registry, WeightStore(root)


def _spec(registry: Registry, name: str) -> ModelSpec:
    from serve_app.domain.registry import RegistryError

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
    return row


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
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    for line in table:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
