"""Configuration files, and the graph's settings and models that follow from them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from serve_app.cli import CommandError
from serve_app.core.settings import GraphSettings
from serve_app.models.families import text_model
from serve_app.models.quantized import open_registry
from serve_app.models.registry import Registry, RegistryError
from serve_app.models.weights import WeightStore
from serve_app.profiles.plan import Plan, resolve


def read_yaml(path: Path | None, default: str, kind: str) -> Any:
    """The content of a YAML file; None: of ``configs/<default>``.

    Raises:
        CommandError: the file cannot be read, or is not YAML; ``kind`` is its name in the message.
    """
    source = path or resources.files("configs").joinpath(default)
    try:
        return yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise CommandError(f"the {kind} {path or default} cannot be read") from exc
    except yaml.YAMLError as exc:
        raise CommandError(f"the {kind} {source.name}: not YAML: {exc}") from exc


def read_config(path: Path | None) -> dict[str, Any]:
    """A Serve config file with a list of applications; path and errors as in `load_plans`."""
    content = read_yaml(path, "local.yaml", "config")
    applications = content.get("applications") if isinstance(content, dict) else None
    if not isinstance(applications, list) or not applications:
        raise CommandError(f"the config {path or 'local.yaml'} has no list of applications")
    return dict(content)


def load_plans(path: Path | None) -> tuple[Plan, ...]:
    """The plan of each application in a Serve config file; None: ``configs/local.yaml``.

    Raises:
        CommandError: the file is unreadable or not a config of this project's graphs.
    """
    found, config = [], "local.yaml" if path is None else path.name
    for application in read_config(path)["applications"]:
        if not isinstance(application, dict):
            raise CommandError(f"an application of the config {config} is not a mapping")
        try:
            found.append(resolve(GraphSettings.model_validate(application.get("args") or {})))
        except ValidationError as exc:
            name = application.get("name", "default")
            raise CommandError(f"args of the application {name} in {config}: {exc}") from exc
        except (RegistryError, ValueError) as exc:
            raise CommandError(str(exc)) from exc
    return tuple(found)


def load_settings(path: Path | None) -> tuple[GraphSettings, ...]:
    """The settings of each application, without unavailable variants; errors as `load_plans`."""
    return tuple(plan.settings for plan in load_plans(path))


def open_models(settings: GraphSettings) -> tuple[Registry, WeightStore]:
    """The registry and the weights of a configuration.

    Raises:
        CommandError: the registry cannot be used.
    """
    # The command fetch ignores ``offline``, which is for the graph's replicas.
    store = WeightStore(Path(settings.weights_dir) if settings.weights_dir else None)
    try:
        return open_registry(settings.registry, store.root), store
    except RegistryError as exc:
        raise CommandError(str(exc)) from exc


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
    text = None if settings.text is None else text_model(settings.text)
    if text is not None:
        uses.setdefault(text, []).append("text")
    return uses
