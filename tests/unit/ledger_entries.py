"""Ledgers for tests, of plausible figures."""

from __future__ import annotations

from typing import Any

from serve_app.core.host import this_host
from serve_app.core.measurements import Host, MeasurementsFile, VariantMeasurements
from serve_app.models.registry import Registry

REGISTRY = Registry.model_validate(
    {
        "models": {
            name: {
                "family": "sam",
                "architecture": "vit_t",
                "title": name,
                "license": "MIT",
                "origin": "a test",
                "preprocessing": "p1",
                "files": {
                    "checkpoint": {"name": "a.pt", "size": size, "sha256": digit * 64},
                },
            }
            for name, size, digit in (("small", 10, "a"), ("large", 20, "b"))
        }
    }
)


def entry(model: str = "small", **changes: Any) -> VariantMeasurements:
    """An entry that fits `REGISTRY` and default settings."""
    spec = REGISTRY.get(model)
    figures: dict[str, Any] = {
        "model": model,
        "weights_hash": spec.weights_hash,
        "preprocessing": spec.preprocessing,
        "device": "cpu",
        "dtype": "float32",
        "engine": "torch",
        "threads": 1,
        "cold_start_s": {"value": 5.0},
        "load_s": {"value": 1.0},
        "memory_bytes": 900_000_000,
        "embedding_bytes": 2**22,
        "encode_ms": {1: {"value": 100.0, "low": 90.0, "high": 120.0}, 4: {"value": 300.0}},
        "decode_ms": {1: {"value": 10.0}, 8: {"value": 40.0}},
        "quality": {"box": {"value": 0.8, "low": 0.7, "high": 0.9}, "point": {"value": 0.6}},
        "agreement": {"reference": "segment_anything", "mask_iou": {"value": 1.0}},
    }
    return VariantMeasurements.model_validate(figures | changes)


def ledger(
    entries: dict[str, VariantMeasurements] | None = None, **changes: Any
) -> MeasurementsFile:
    """A ledger of this host."""
    content: dict[str, Any] = {
        "created": "2026-01-02T03:04:05+00:00",
        "host": this_host(gpus=False),
        "versions": {"python": "3.11.7"},
        "data": {"name": "drawn", "images": 2, "objects": 4},
        "entries": entries if entries is not None else {"fast": entry()},
    }
    return MeasurementsFile.model_validate(content | changes)


def other_host(**changes: Any) -> Host:
    return this_host(gpus=False).model_copy(update=changes)


def rule() -> dict[str, Any]:
    """An escalation rule of no particular wisdom."""
    flat, point = {"intercept": 0.0}, {"threshold": 0.1, "share": 0.3, "gain": 0.02}
    return {
        "gain": flat,
        "first": flat,
        "second": flat,
        "curve": [point],
        "single": [point],
        "first_iou": 0.7,
        "second_iou": 0.8,
    }
