"""``fetch``: download and verify weights."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from serve_app.cli import CommandError, log
from serve_app.cli.configuration import load_settings, open_models, used_models
from serve_app.cli.models import folder_of, megabytes
from serve_app.core.errors import WeightsUnavailable
from serve_app.models.registry import ModelSpec, RegistryError
from serve_app.models.weights import SourcesFailed, WeightStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="models (default: the config's)")
    add("--all", action="store_true", help="every model of the registry")
    add("--config", type=Path, metavar="FILE", help="Serve config (default: configs/local.yaml)")


def run(args: argparse.Namespace) -> int:
    """Fetch and verify models; 1 if one of them is unavailable."""
    missing = fetch_models(args.config, args.names, args.all)
    if missing:
        log(f"error: some weights are unavailable: {', '.join(missing)}")
    return 1 if missing else 0


def fetch_models(
    config: Path | None, wanted: Sequence[str] = (), everything: bool = False
) -> list[str]:
    """Fetch and verify the wanted models of the registry; none: those that the config uses.

    Returns:
        The names of those that could not be fetched.
    """
    failed: list[str] = []
    for settings in load_settings(config):
        registry, store = open_models(settings)
        names = list(registry.models) if everything else wanted or list(used_models(settings))
        try:
            specs = {name: registry.get(name) for name in names}
        except RegistryError as exc:
            raise CommandError(str(exc)) from exc
        failed += [name for name, spec in specs.items() if not _fetch(name, spec, store)]
    return failed


def _fetch(name: str, spec: ModelSpec, store: WeightStore) -> bool:
    try:
        paths = store.ensure(name, spec, progress=sys.stderr.isatty())
    except WeightsUnavailable as exc:
        if isinstance(exc.__cause__, SourcesFailed):
            log(f"{name}: no source provided the pinned file")
            for attempt in exc.__cause__.attempts:
                log(f"  {attempt.file} from {attempt.source}: {attempt.reason}")
        else:
            log(f"{name}: {exc}")
        return False
    print(f"{name}: verified, {megabytes(spec.size)} in {folder_of(list(paths.values()))}")
    return True
