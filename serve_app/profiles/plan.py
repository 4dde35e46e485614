"""A configuration resolved once, on the host that builds the graph.

The builder passes the plan to the ingress, and to each replica its part.  The scaling policy gets
the profiles from the reports of the ingress (`serve_app.scaling.reports`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.core.measurements import Measurements
from serve_app.core.ports import Predictor
from serve_app.core.settings import GraphSettings, VariantSettings
from serve_app.models.quantized import drop_unavailable_variants, open_registry
from serve_app.models.registry import Registry
from serve_app.models.weights import WeightStore
from serve_app.profiles.measurements import load_measurements
from serve_app.routing.dispatcher import Dispatcher
from serve_app.routing.load_tracker import Capacity


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
    variants: Mapping[str, Mapping[str, Any]]
    unavailable: Mapping[str, str]

    @property
    def warnings(self) -> tuple[str, ...]:
        """For the operator's log."""
        dropped = (
            f"{name} is served by its reference: {reason}"
            for name, reason in self.unavailable.items()
        )
        return (*dropped, *self.measurements.warnings)

    def dispatcher(self, predictors: Mapping[str, Predictor], *, in_process: bool) -> Dispatcher:
        """The router of the variants that have a predictor.

        Args:
            in_process: one encoder and one decoder each; else the configured initial replicas.
        """
        cache = self.settings.cache
        capacities = {}
        for name in predictors:
            variant = self.settings.variants[name]
            decoders = 1 if in_process else variant.decoder.initial_replicas
            one_pool = in_process or variant.layout == "fused"
            capacities[name] = Capacity(
                encoders=decoders if one_pool else variant.encoder.initial_replicas,
                decoders=decoders,
                encoder_batch=variant.encoder.batching.max_batch_size,
                decoder_batch=variant.decoder.batching.max_batch_size,
                embeddings=cache.embedding_bytes,
                shared=cache.redis_url is not None,
            )
        return Dispatcher(
            self.settings.router.among(list(predictors)),
            capacities,
            self.measurements,
            {name: predictor.scale_from_zero for name, predictor in predictors.items()},
        )


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
    variants = {
        name: {**variant_info(name, variant, registry), **_figures(name, measurements)}
        for name, variant in settings.variants.items()
    }
    return Plan(settings, registry, measurements, variants, unavailable)


def variant_info(name: str, variant: VariantSettings, registry: Registry) -> dict[str, Any]:
    """The description of a variant in ``/v1/models``.

    Raises:
        ValueError: the model is not in the registry, does not segment, or does not support the
            variant's compute settings.
    """
    spec = registry.get(variant.model)
    compute = variant.encoder_compute
    try:
        segmentation = spec.segmentation
        for component in (variant.encoder.compute, variant.decoder.compute):
            segmentation.check_compute(component)
        engine = spec.engine(compute)
    except ValueError as exc:
        raise ValueError(f"variant {name}: {variant.model}: {exc}") from exc
    return {
        "model": variant.model,
        "family": spec.family,
        "description": variant.description,
        "title": spec.title,
        "architecture": spec.architecture,
        "license": spec.license,
        "weights_hash": spec.weights_hash,
        "weights_bytes": spec.size,
        "preprocessing": spec.preprocessing,
        "layout": variant.layout,
        "device": compute.device,
        "dtype": compute.dtype,
        "engine": engine,
    }


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
