"""The graph's settings in a Ray Serve config file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from serve_app.cli import CommandError
from serve_app.core.settings import GraphSettings

if TYPE_CHECKING:
    from serve_app.profiles.plan import Plan

DEFAULT_CONFIG = "local.yaml"


def load_plans(path: Path | None) -> tuple[Plan, ...]:
    """The plan of each application in a Serve config file; None: ``configs/local.yaml``.

    Raises:
        CommandError: the file is unreadable or not a config of this project's graphs.
    """
    from serve_app.models.registry import RegistryError
    from serve_app.profiles.plan import resolve

    try:
        return tuple(resolve(settings) for settings in _read(path))
    except (RegistryError, ValueError) as exc:
        raise CommandError(str(exc)) from exc


def load_settings(path: Path | None) -> tuple[GraphSettings, ...]:
    """The settings of each application, without unavailable variants.

    Raises:
        CommandError: as `load_plans`.
    """
    return tuple(plan.settings for plan in load_plans(path))


def unavailable_variants(path: Path | None) -> dict[str, str]:
    """Variants that the graphs of a config drop, each with the reason.

    Raises:
        CommandError: as `load_plans`.
    """
    return {name: reason for plan in load_plans(path) for name, reason in plan.unavailable.items()}


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
    """The models that a graph needs to start: all except those of variants that scale to zero."""
    running = {n: v for n, v in settings.variants.items() if not v.scales_to_zero}
    return set(used_models(settings.model_copy(update={"variants": running})))


def used_models(settings: GraphSettings) -> dict[str, list[str]]:
    """Registry names of the models that a graph loads, each with its users."""
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
