"""Reading the graph's settings out of a Ray Serve config file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from serve_app.cli import CommandError
from serve_app.core.settings import GraphSettings

DEFAULT_CONFIG = "local.yaml"


def load_settings(path: Path | None) -> tuple[GraphSettings, ...]:
    """The settings of each application in a Serve config file; None: ``configs/local.yaml``.

    Without the int8 variants that graphs leave out (`left_out`).

    Raises:
        CommandError: not readable, or not the config of our graphs.
    """
    return tuple(_deployable(settings)[0] for settings in _read(path))


def left_out(path: Path | None) -> dict[str, str]:
    """Variants of a config that graphs leave out, each with why (`serve_app.models.quantized`).

    Raises:
        CommandError: as `load_settings`.
    """
    reasons: dict[str, str] = {}
    for settings in _read(path):
        reasons |= _deployable(settings)[1]
    return reasons


def _deployable(settings: GraphSettings) -> tuple[GraphSettings, dict[str, str]]:
    from serve_app.models.quantized import drop_unavailable_variants
    from serve_app.models.registry import RegistryError

    try:
        return drop_unavailable_variants(settings)
    except RegistryError as exc:
        raise CommandError(str(exc)) from exc


def _read(path: Path | None) -> tuple[GraphSettings, ...]:
    source = path or resources.files("configs").joinpath(DEFAULT_CONFIG)
    try:
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise CommandError(f"the config {path or DEFAULT_CONFIG} cannot be read") from exc
    except yaml.YAMLError as exc:
        raise CommandError(f"the config {source.name} is not YAML: {exc}") from exc
    applications = content.get("applications") if isinstance(content, dict) else None
    if not isinstance(applications, list) or not applications:
        raise CommandError(f"the config {source.name} has no list of applications")
    return tuple(_settings(application, source.name) for application in applications)


def _settings(application: Any, config: str) -> GraphSettings:
    if not isinstance(application, dict):
        raise CommandError(f"an application of the config {config} is not a mapping")
    try:
        return GraphSettings.model_validate(application.get("args") or {})
    except ValidationError as exc:
        name = application.get("name", "default")
        raise CommandError(f"args of the application {name} in {config}: {exc}") from exc


def needed_models(settings: GraphSettings) -> set[str]:
    """Of the models a graph uses those without which it does not start: sleepers may wait."""
    awake = {n: v for n, v in settings.variants.items() if not v.sleeps}
    return set(used_models(settings.model_copy(update={"variants": awake})))


def used_models(settings: GraphSettings) -> dict[str, list[str]]:
    """Registry names of the models that a graph loads, each with what uses it."""
    uses: dict[str, list[str]] = {}
    for variant, chosen in settings.variants.items():
        uses.setdefault(chosen.model, []).append(variant)
    if settings.proposals.detector is not None:
        uses.setdefault(settings.proposals.detector, []).append("proposals")
    from serve_app.models.families import text_model

    text = None if settings.text is None else text_model(settings.text)
    if text is not None:
        uses.setdefault(text, []).append("text")
    return uses
