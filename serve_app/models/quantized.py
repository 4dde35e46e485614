"""Models that were made on this machine: int8 versions of registry models.

`serve_tools.workshop.quantise` puts each into a folder of its own beside the downloaded weights,
with a manifest that holds its registry entry, hashes included, and the figures it was made with.
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
"""How the names of models made here end."""

_MAX_BYTES = 2**20
_COMMAND = "run 'python -m serve_app quantise'"


class Figures(Strict):
    """An int8 model against its original, on the same images and host."""

    embedding_cosine: float = Field(description="mean over images")
    mask_iou: float = Field(description="of its masks with the original's, mean over prompts")
    mean_iou: float = Field(description="with the exact masks, mean over prompts")
    original_mean_iou: float
    encode_ms: float = Field(gt=0, description="one image, median")
    original_encode_ms: float = Field(gt=0)
    speedup: float = Field(gt=0, description="median of the ratios of passes taken in turns")
    images: int = Field(ge=1)
    objects: int = Field(ge=1)
    data: str = Field(description="what the exact masks are of")

    @property
    def iou_loss(self) -> float:
        """Mean IoU lost; negative where it gained."""
        return self.original_mean_iou - self.mean_iou


class Manifest(Strict):
    """What lies in the folder of a made model."""

    format: Literal[1] = 1
    spec: ModelSpec
    original: str = Field(description="registry name of the model it was made of")
    original_weights: Sha256 = Field(description="that model's weights_hash")
    calibration: str = Field(description="the images it was calibrated with")
    calibration_images: int = Field(ge=1)
    figures: Figures
    created: str = Field(description="ISO 8601, UTC")
    cpu: str = Field(description="the processor that it was measured on")
    versions: dict[str, str]


def made_models(root: Path) -> dict[str, Manifest]:
    """Manifests below a weights folder, by model; one that cannot be read is left out."""
    found: dict[str, Manifest] = {}
    for path in sorted(root.glob(f"*/{MANIFEST}")):
        if not re.match(MODEL_NAME, path.parent.name):
            log.warning("a folder beside the weights has no model's name and is left out")
            continue
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise ValueError("too large")
            found[path.parent.name] = Manifest.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            log.warning("the manifest of %s is not readable: %s", path.parent.name, _COMMAND)
    return found


def open_registry(path: str | None, root: Path) -> Registry:
    """A registry (None: the packaged one) with the models made on this machine.

    Raises:
        RegistryError: not readable, or not valid.
    """
    registry = load_registry(Path(path) if path else None)
    made = {name: manifest.spec for name, manifest in made_models(root).items()}
    return Registry(models={**made, **registry.models})


def deployable(settings: GraphSettings) -> tuple[GraphSettings, dict[str, str]]:
    """A configuration without the int8 variants that are not here or not worth it.

    The variant's ``reference`` answers under its name.  Figures of another processor count only
    where the ledger's do too.

    Returns:
        The configuration, and by variant why it was left out.

    Raises:
        RegistryError: such a variant has no reference, or is the default.
    """
    root = WeightStore(Path(settings.weights_dir) if settings.weights_dir else None).root
    registry, made = load_registry(Path(settings.registry) if settings.registry else None), None
    measured_on = None if settings.ledger.trust_host else this_host(gpus=False).cpu
    left_out: dict[str, str] = {}
    for name, variant in settings.variants.items():
        if variant.model in registry.models or not variant.model.endswith(MADE):
            continue  # a name that nobody knows is told where its files are asked for
        made = made_models(root) if made is None else made
        reason = refusal(variant.model, made, registry, settings.quantized, measured_on)
        if reason is not None:
            if variant.reference is None or name == settings.router.default:
                raise RegistryError(f"variant {name}: {reason}")
            left_out[name] = reason
    return _without(settings, left_out), left_out


def refusal(
    model: str,
    made: Mapping[str, Manifest],
    registry: Registry,
    wanted: QuantizedSettings,
    cpu: str | None = None,
) -> str | None:
    """Why a made model is not deployed; None if it is.

    ``cpu``: the processor that its figures must be of; None: any.
    """
    manifest = made.get(model)
    if manifest is None:
        return f"there is no {model}, in the registry or made here; {_COMMAND}"
    original = registry.models.get(manifest.original)
    if original is None or original.weights_hash != manifest.original_weights:
        return f"{model} was made of other weights than the present ones; {_COMMAND}"
    if cpu is not None and manifest.cpu != cpu:
        return f"{model} was made and measured on another processor; {_COMMAND}"
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


def _without(settings: GraphSettings, left_out: Mapping[str, str]) -> GraphSettings:
    if not left_out:
        return settings
    router = settings.router

    def stand_in(name: str) -> str:
        """Who answers for a variant: its reference, or that one's, down to one that is here."""
        seen: set[str] = set()
        while name in left_out and name not in seen:
            seen.add(name)
            name = str(settings.variants[name].reference)
        return name

    aliases = {alias: stand_in(name) for alias, name in router.aliases.items()}
    aliases |= {name: stand_in(name) for name in left_out}
    kept = {
        name: variant.model_copy(update={"reference": None})
        if variant.reference in left_out
        else variant
        for name, variant in settings.variants.items()
        if name not in left_out
    }
    update = {
        "aliases": {alias: name for alias, name in aliases.items() if name in kept},
        "cascade_to": None if router.cascade_to in left_out else router.cascade_to,
    }
    return settings.model_copy(
        update={"variants": kept, "router": router.model_copy(update=update)}
    )
