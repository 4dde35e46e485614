"""A configuration resolved once, on the host that builds the graph.

The builder passes the plan to the ingress, and to each replica its part.  The scaling
policy gets the profiles from the replicas' reports (`serve_app.scaling.reports`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serve_app.core.inference import VariantInfo
from serve_app.core.measurements import Measurements, Profile
from serve_app.core.settings import GraphSettings
from serve_app.models.quantized import drop_unavailable_variants, open_registry
from serve_app.models.registry import Registry
from serve_app.models.weights import WeightStore
from serve_app.profiles.measurements import load_measurements
from serve_app.profiles.variants import variant_info


@dataclass(frozen=True, slots=True)
class Plan:
    """The input of the graph builder; picklable.

    Attributes:
        settings: the configuration without unavailable variants.
        registry: the models, including those made on this host.
        measurements: those that are valid for the configuration.
        variants: by name, what ``/v1/models`` says of a variant.
        unavailable: variants that were dropped, each with the reason.
    """

    settings: GraphSettings
    registry: Registry
    measurements: Measurements
    variants: Mapping[str, VariantInfo]
    unavailable: Mapping[str, str]

    @property
    def warnings(self) -> tuple[str, ...]:
        """For the operator's log."""
        dropped = (
            f"{name} is served by its reference: {reason}"
            for name, reason in self.unavailable.items()
        )
        return (*dropped, *self.measurements.warnings)

    def profile(self, variant: str) -> Profile | None:
        """A variant's measured profile; None: not measured."""
        return self.measurements.profiles.get(variant)


def resolve(settings: GraphSettings) -> Plan:
    """Read the files that a configuration refers to: registry, built models, measurements.

    Raises:
        RegistryError: the registry cannot be used, or an int8 variant is unavailable and has no
            reference or is the default.
        ValueError: the model of a variant is not in the registry or does not fit its settings.
    """
    settings, unavailable = drop_unavailable_variants(settings)
    store = WeightStore(Path(settings.weights_dir) if settings.weights_dir else None)
    registry = open_registry(settings.registry, store.root)
    measurements = load_measurements(settings, registry)
    variants = {}
    for name, variant in settings.variants.items():
        info = variant_info(name, variant, registry)
        details = {**info.details, **_figures(name, measurements)}
        variants[name] = replace(info, details=details)
    return Plan(settings, registry, measurements, variants, unavailable)


def _figures(name: str, measurements: Measurements) -> dict[str, Any]:
    entry = measurements.entries.get(name)
    if entry is None:
        return {"measured": None, "not_measured": measurements.ignored.get(name, "not measured")}
    in_info = {"model", "weights_hash", "preprocessing", "device", "dtype", "engine"}
    figures: dict[str, Any] = {
        "measured": entry.model_dump(mode="json", exclude=in_info, exclude_none=True)
    }
    if name in measurements.dominated:
        figures["dominated_by"] = measurements.dominated[name]
    return figures
