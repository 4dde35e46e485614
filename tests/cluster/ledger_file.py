"""A ledger for the tests' own service: written by hand, so that what it says is known.

Its times are of the right order for two cores; nothing here depends on them being exact.
"""

from __future__ import annotations

from pathlib import Path

from serve_app.core.host import this_host
from serve_app.core.measurements import (
    Additive,
    Data,
    Duration,
    Escalation,
    MeasurementsFile,
    Point,
    Share,
    VariantMeasurements,
)
from serve_app.core.settings import GraphSettings
from serve_app.models.registry import load_registry

ENCODE_MS = {"fast": 1500.0, "accurate": 4500.0}
DECODE_MS = {"fast": 35.0, "accurate": 60.0}
QUALITY = {"fast": {"box": 0.9, "point": 0.6}, "accurate": {"box": 0.8, "point": 0.8}}


def write_ledger(settings: GraphSettings, path: Path) -> None:
    """Figures for the variants of ``settings``, and a cascade that always asks again.

    The cascade is for one click with one mask alone, a form of prompt that no other test uses.
    """
    registry = load_registry()
    entries = {}
    for name, variant in settings.variants.items():
        if name not in ENCODE_MS:
            continue
        spec, compute = registry.get(variant.model), variant.encoder_compute
        entries[name] = VariantMeasurements(
            model=variant.model,
            weights_hash=spec.weights_hash,
            preprocessing=spec.preprocessing,
            device=compute.device,
            dtype=compute.dtype,
            engine=spec.engine(compute),
            threads=compute.threads,
            cold_start_s=Duration(value=15),
            load_s=Duration(value=2),
            memory_bytes=2**30,
            peak_memory_bytes=2**30,
            embedding_bytes=4 * 2**20,
            encode_ms={1: Duration(value=ENCODE_MS[name])},
            decode_ms={1: Duration(value=DECODE_MS[name]), 8: Duration(value=8 * DECODE_MS[name])},
            quality={kind: Share(value=iou) for kind, iou in QUALITY[name].items()},
        )
    always = (Point(threshold=0.0, share=0.4, gain=0.1),)
    rule = Escalation(
        gain=Additive(intercept=0.1),
        first=Additive(intercept=0.6),
        second=Additive(intercept=0.8),
        curve=always,
        single=always,
        first_iou=0.6,
        second_iou=0.8,
    )
    ledger = MeasurementsFile(
        created="2026-01-01T00:00:00Z",
        host=this_host(gpus=False),
        versions={},
        data=Data(name="written by hand", images=1, objects=1),
        entries=entries,
        escalation={"fast>accurate": {"point-1": rule}},
    )
    path.write_text(ledger.model_dump_json(), encoding="utf-8")
