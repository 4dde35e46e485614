"""The family ``efficientdet``: object detectors for CPUs."""

from __future__ import annotations

from serve_app.core.ports import DetectorEngine
from serve_app.engines.family import Family, Weights


def _load(weights: Weights, threads: int) -> DetectorEngine:
    from serve_app.engines.efficientdet.detector import EfficientDet

    return EfficientDet(weights.paths["model"], threads)


EFFICIENTDET = Family(name="efficientdet", file_keys=frozenset({"model"}), load_detector=_load)
