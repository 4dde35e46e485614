"""Checks and description of a configured variant."""

from __future__ import annotations

from serve_app.core.inference import VariantInfo
from serve_app.core.settings import Compute, VariantSettings
from serve_app.models.registry import Registry


def encoder_compute(variant: VariantSettings) -> Compute:
    """The compute settings of a variant's encoder: in the fused layout those of its decoder."""
    return variant.decoder.compute if variant.layout == "fused" else variant.encoder.compute


def variant_info(name: str, variant: VariantSettings, registry: Registry) -> VariantInfo:
    """The description of a variant in ``/v1/models``.

    Raises:
        ValueError: the model is not in the registry, does not segment, or does not support the
            variant's compute settings.
    """
    spec = registry.get(variant.model)
    compute = encoder_compute(variant)
    try:
        segmentation = spec.segmentation
        for component in (variant.encoder.compute, variant.decoder.compute):
            segmentation.check_compute(component)
        engine = spec.engine(compute)
    except ValueError as exc:
        raise ValueError(f"variant {name}: {variant.model}: {exc}") from exc
    return VariantInfo(
        name=name,
        model=variant.model,
        family=spec.family,
        description=variant.description,
        details={
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
        },
    )
