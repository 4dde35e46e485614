"""What is told of a configured variant."""

from __future__ import annotations

from serve_app.core.settings import Compute, VariantSettings
from serve_app.core.types import VariantInfo
from serve_app.models.registry import Registry

SEGMENTERS = ("sam", "sam2_onnx")
"""The registry's families that segment."""


def encoder_compute(variant: VariantSettings) -> Compute:
    """On what a variant's encoder runs: in the fused layout, where the decoder does."""
    return variant.decoder.compute if variant.layout == "fused" else variant.encoder.compute


def variant_info(name: str, variant: VariantSettings, registry: Registry) -> VariantInfo:
    """What ``/v1/models`` tells of a variant.

    Raises:
        ValueError: the model is not in the registry, or does not segment.
    """
    spec = registry.get(variant.model)
    if spec.family not in SEGMENTERS:
        raise ValueError(f"variant {name}: {variant.model} does not segment")
    compute = encoder_compute(variant)
    halves = (variant.encoder.compute, variant.decoder.compute)
    if spec.family == "sam2_onnx" and any(
        half.dtype != "float32" or half.memory_fraction is not None for half in halves
    ):
        raise ValueError(
            f"variant {name}: {variant.model} runs in float32, without memory_fraction"
        )
    try:
        engine = spec.engine(compute)
    except ValueError as exc:
        raise ValueError(f"variant {name}: {exc}") from exc
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
