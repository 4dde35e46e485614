"""Models that were built on this machine: int8 versions of registry models.

`serve_tools.workshop.quantise` puts each into a folder of its own beside the downloaded weights,
with a manifest of its registry entry, hashes included, and the measurements of its build.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from serve_app.core.host import this_host
from serve_app.core.settings import GraphSettings, QuantizedSettings, Strict
from serve_app.models.registry import (
    MODEL_NAME,
    ModelSpec,
    Registry,
    RegistryError,
    Sha256,
    load_registry,
)
from serve_app.models.weights import WeightStore

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MADE = "_int8"
"""Suffix of the names of models that are built here."""

_MAX_BYTES = 2**20
_COMMAND = "run 'python -m serve_app quantise'"


class Figures(Strict):
    """An int8 model compared with its original, on the same images and host."""

    embedding_cosine: float = Field(description="mean over images")
    mask_iou: float = Field(description="of its masks with the original's masks, mean over prompts")
    mean_iou: float = Field(description="with the exact masks, mean over prompts")
    original_mean_iou: float
    encode_ms: float = Field(gt=0, description="one image, median")
    original_encode_ms: float = Field(gt=0)
    speedup: float = Field(gt=0, description="median of the ratios of interleaved passes")
    images: int = Field(ge=1)
    objects: int = Field(ge=1)
    data: str = Field(description="the images of the exact masks")

    @property
    def iou_loss(self) -> float:
        """Mean IoU lost; negative if it gained."""
        return self.original_mean_iou - self.mean_iou


class Manifest(Strict):
    """The manifest in the folder of a built model."""

    format: Literal[1] = 1
    spec: ModelSpec
    original: str = Field(description="registry name of the model it was built from")
    original_weights: Sha256 = Field(description="that model's weights_hash")
    calibration: str = Field(description="the calibration images")
    calibration_images: int = Field(ge=1)
    figures: Figures
    created: str = Field(description="ISO 8601, UTC")
    cpu: str = Field(description="the processor of the measurements")
    versions: dict[str, str]


def made_models(root: Path) -> dict[str, Manifest]:
    """Manifests below a weights folder, by model; unreadable ones are logged and skipped."""
    found: dict[str, Manifest] = {}
    for path in sorted(root.glob(f"*/{MANIFEST}")):
        if not re.match(MODEL_NAME, path.parent.name):
            log.warning("a folder beside the weights is not named like a model and is skipped")
            continue
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise ValueError("too large")
            found[path.parent.name] = Manifest.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            log.warning("the manifest of %s is not readable: %s", path.parent.name, _COMMAND)
    return found


def open_registry(path: str | None, root: Path) -> Registry:
    """As `load_registry`, with the models built on this machine."""
    registry = load_registry(path)
    made = {name: manifest.spec for name, manifest in made_models(root).items()}
    return Registry(models={**made, **registry.models})


def drop_unavailable_variants(settings: GraphSettings) -> tuple[GraphSettings, dict[str, str]]:
    """Drop the int8 variants with a missing model or with measurements below the requirements.

    Requests for a dropped variant are served by its ``reference``.  Measurements of another
    processor are valid only if those of the ledger are, too.

    Returns:
        The configuration, and the reason for each dropped variant.

    Raises:
        RegistryError: a dropped variant has no reference, or is the default.
    """
    registry = load_registry(settings.registry)
    # Another unknown name is reported when its files are loaded.
    int8 = {
        name: variant
        for name, variant in settings.variants.items()
        if variant.model.endswith(MADE) and variant.model not in registry.models
    }
    dropped: dict[str, str] = {}
    if int8:
        made = made_models(WeightStore(settings.weights_dir).root)
        measured_on = None if settings.measurements.trust_host else this_host(gpus=False).cpu
        for name, variant in int8.items():
            reason = refusal(variant.model, made, registry, settings.quantized, measured_on)
            if reason is not None:
                if variant.reference is None or name == settings.router.default:
                    raise RegistryError(f"variant {name}: {reason}")
                dropped[name] = reason
    return _without(settings, dropped) if dropped else settings, dropped


def refusal(
    model: str,
    made: Mapping[str, Manifest],
    registry: Registry,
    wanted: QuantizedSettings,
    cpu: str | None = None,
) -> str | None:
    """The reason why a built model is not deployed, measured on ``cpu`` if given; None if it is."""
    manifest = made.get(model)
    if manifest is None:
        return f"there is no {model}, in the registry or built here; {_COMMAND}"
    original = registry.models.get(manifest.original)
    if original is None or original.weights_hash != manifest.original_weights:
        return f"{model} was built from other weights than the present ones; {_COMMAND}"
    if cpu is not None and manifest.cpu != cpu:
        return f"{model} was built and measured on another processor; {_COMMAND}"
    figures = manifest.figures
    if figures.speedup < wanted.least_speedup:
        return (
            f"{model} is refused: its encoder is {figures.speedup:.2f} times as fast as "
            f"{manifest.original}'s, and quantized.least_speedup is {wanted.least_speedup:g}"
        )
    if figures.iou_loss > wanted.most_iou_loss:
        return (
            f"{model} is refused: it loses {figures.iou_loss:.4f} of mean IoU against "
            f"{manifest.original}, and quantized.most_iou_loss is {wanted.most_iou_loss:g}"
        )
    return None


def _without(settings: GraphSettings, dropped: Mapping[str, str]) -> GraphSettings:
    router = settings.router

    def replacement(name: str) -> str:
        """The variant that replaces one: its reference, or the reference of that, and so on."""
        seen: set[str] = set()
        while name in dropped and name not in seen:
            seen.add(name)
            name = str(settings.variants[name].reference)
        return name

    aliases = {alias: replacement(name) for alias, name in router.aliases.items()}
    aliases |= {name: replacement(name) for name in dropped}
    kept = {
        name: variant.model_copy(update={"reference": None})
        if variant.reference in dropped
        else variant
        for name, variant in settings.variants.items()
        if name not in dropped
    }
    update = {
        "aliases": {alias: name for alias, name in aliases.items() if name in kept},
        "cascade_to": None if router.cascade_to in dropped else router.cascade_to,
    }
    return settings.model_copy(
        update={"variants": kept, "router": router.model_copy(update=update)}
    )
